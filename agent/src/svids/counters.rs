//! Counts of what the caches have and have done, for metrics.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that anybody may read and the caches alone change.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

/// What the caches hold now, and what happened since the start.
#[derive(Debug, Default)]
pub struct CacheCounters {
    /// Now: entries the agent is authorized for.
    pub entries: Count,
    /// Entries that came.
    pub entries_added: Count,
    /// Entries that went.
    pub entries_removed: Count,
    /// Entries that changed.
    pub entries_updated: Count,
    /// Now: X509-SVIDs held.
    pub x509_svids: Count,
    /// What happens to JWT-SVIDs.
    pub jwt: TokenCounters,
    /// What happens to WIT-SVIDs.
    pub wit: TokenCounters,
    /// Snapshots published.
    pub snapshots: Count,
    /// X509-SVIDs taken up, renewals among them.
    pub x509_issued: Count,
    /// X509-SVIDs that took the place of one that was still held.
    pub x509_rotated: Count,
    /// Entries for which signing failed, each time counted.
    pub x509_failed: Count,
    /// X509-SVIDs dropped because they expired.
    pub x509_expired: Count,
    /// X509-SVIDs dropped because the cache held more than its size.
    pub x509_evicted: Count,
    /// X509-SVIDs that an authority had signed when it was tainted or went.
    pub x509_tainted: Count,
}

/// The same for tokens of one kind.
#[derive(Debug, Default)]
pub struct TokenCounters {
    /// Now: tokens held.
    pub held: Count,
    /// Tokens served from the cache.
    pub hits: Count,
    /// Tokens served from the cache past half of their lifetime, because no new one came in time.
    pub stale_hits: Count,
    /// Calls for a token that were answered, or failed, by asking the server.
    pub misses: Count,
    /// Requests for a token that ended without one.
    pub failed: Count,
    /// Tokens dropped because an authority was tainted or went.
    pub tainted: Count,
}

impl Count {
    /// The present value.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, more: usize) {
        self.0.fetch_add(more as u64, Ordering::Relaxed);
    }

    pub(super) fn set(&self, now: usize) {
        self.0.store(now as u64, Ordering::Relaxed);
    }
}
