//! One authorized entry with its SVID, as the sync task holds it.

use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

use super::cache::{CachedEntry, IssuedSvid};
use super::keys::SvidRequest;
use super::renewal::{HeldTimes, RenewalState};
use crate::upstream::{AuthorizedEntry, EntryStamp};

#[derive(Debug)]
pub(super) struct Record {
    pub(super) entry: AuthorizedEntry,
    /// What snapshots show, with the SVID.
    pub(super) cached: Arc<CachedEntry>,
    /// About the SVID, if there is one.
    pub(super) held: Option<Held>,
    /// A subscriber's selectors match.
    pub(super) is_wanted: bool,
    pub(super) last_wanted: u64,
    pub(super) is_in_flight: bool,
    pub(super) retry: Retry,
    /// The server was asked for a snapshot because it did not know this revision of the entry.
    pub(super) is_resynced: bool,
}

#[derive(Debug)]
pub(super) struct Held {
    pub(super) times: HeldTimes,
    /// The revision of the entry that it was signed for.
    pub(super) stamp: EntryStamp,
    /// To be replaced from then on, because of its signer.
    pub(super) replace_at: Option<Instant>,
}

#[derive(Debug, Default)]
pub(super) struct Retry {
    failures: u32,
    pub(super) at: Option<Instant>,
}

impl Record {
    pub(super) fn new(entry: AuthorizedEntry) -> Self {
        Self {
            cached: Arc::new(show(&entry, None, false)),
            entry,
            held: None,
            is_wanted: false,
            last_wanted: 0,
            is_in_flight: false,
            retry: Retry::default(),
            is_resynced: false,
        }
    }

    /// Takes up what the entry is now. Returns whether that cost the SVID: it was for another identity.
    pub(super) fn replace(&mut self, entry: AuthorizedEntry) -> bool {
        let is_other = self.entry.spiffe_id != entry.spiffe_id;
        let lost = is_other && self.held.take().is_some();
        self.entry = entry;
        self.retry = Retry::default();
        self.is_resynced = false;
        let svid = self.cached.svid.clone().filter(|_| self.held.is_some());
        self.cached = Arc::new(show(&self.entry, svid, false));
        lost
    }

    /// Takes up an SVID and returns what was held before.
    pub(super) fn take_svid(&mut self, svid: IssuedSvid, held: Held) -> Option<Held> {
        self.retry = Retry::default();
        self.is_resynced = false;
        self.cached = Arc::new(show(&self.entry, Some(Arc::new(svid)), false));
        self.held.replace(held)
    }

    /// Returns whether there was one.
    pub(super) fn drop_svid(&mut self) -> bool {
        let had = self.held.take().is_some();
        if had {
            self.cached = Arc::new(show(&self.entry, None, self.retry.failures > 0));
        }
        had
    }

    /// Has the SVID replaced, from `at` on if not earlier.
    pub(super) fn replace_at(&mut self, at: Instant) {
        if let Some(held) = &mut self.held {
            held.replace_at = Some(held.replace_at.map_or(at, |before| before.min(at)));
        }
    }

    /// Has it tried again, later after each failure.
    pub(super) fn retry_later(&mut self, now: Instant) {
        self.retry.failures = self.retry.failures.saturating_add(1);
        let doubled = RETRY_FIRST * 2_u32.saturating_pow(self.retry.failures.min(10) - 1);
        self.retry.at = Some(now + doubled.min(RETRY_LIMIT));
    }

    /// When the SVID expires, if there is one.
    pub(super) fn expires_at(&self) -> Option<OffsetDateTime> {
        self.cached.svid.as_ref().map(|svid| svid.expires_at())
    }

    /// Shows that there is no SVID and that one could not be had. Returns whether that was not shown before.
    pub(super) fn show_failure(&mut self) -> bool {
        let is_new = self.cached.svid.is_none() && !self.cached.signing_failed;
        if is_new {
            self.cached = Arc::new(show(&self.entry, None, true));
        }
        is_new
    }

    pub(super) fn request(&self) -> SvidRequest {
        SvidRequest {
            entry_id: self.entry.id.clone(),
            spiffe_id: self.entry.spiffe_id.clone(),
            stamp: self.stamp(),
        }
    }

    pub(super) fn renewal_state(&self) -> RenewalState {
        RenewalState {
            wanted: self.is_wanted,
            prefetch: !self.entry.disable_x509_svid_prefetch,
            held: self.held.as_ref().map(|held| held.times),
            is_outdated: self.is_outdated(),
            replace_at: self.held.as_ref().and_then(|held| held.replace_at),
            in_flight: self.is_in_flight,
            retry_at: self.retry.at,
            last_wanted: self.last_wanted,
        }
    }

    /// Whether the SVID is of an earlier revision of the entry.
    pub(super) fn is_outdated(&self) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|held| self.stamp().differs_from(&held.stamp))
    }

    fn stamp(&self) -> EntryStamp {
        EntryStamp {
            revision_number: self.entry.revision_number,
            created_at: self.entry.created_at,
        }
    }
}

fn show(entry: &AuthorizedEntry, svid: Option<Arc<IssuedSvid>>, signing_failed: bool) -> CachedEntry {
    CachedEntry {
        entry_id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        selectors: entry.selectors.clone(),
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        federates_with: entry.federates_with.clone(),
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
        svid,
        signing_failed,
    }
}

const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LIMIT: Duration = Duration::from_secs(5);
