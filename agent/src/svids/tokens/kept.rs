//! The cached tokens; the least recently used is dropped first.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use finial_identity::spiffe_id::SpiffeId;
use time::{Duration, OffsetDateTime};
use tokio::time::Instant;

use super::Signed;
use crate::node::{Moment, remaining_at_renewal};

/// What a token is for.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) entry_id: String,
    pub(super) spiffe_id: SpiffeId,
    /// Sorted, without duplicates.
    audiences: Vec<String>,
}

/// One token.
pub struct Token<T> {
    /// The token and what belongs to it.
    pub value: T,
    /// `kid` of the authority that signed it.
    pub key_id: Option<String>,
    issued_at: OffsetDateTime,
    expires_at: OffsetDateTime,
    renew_at: OffsetDateTime,
    /// In case the clock is set back.
    received: Instant,
    /// It must not be served any more.
    forgotten: AtomicBool,
}

/// Tokens by what they are for; a hard limit holds.
pub(super) struct Tokens<T> {
    max_size: usize,
    held: HashMap<Arc<Key>, Held<T>>,
    /// By last use.
    order: BTreeMap<u64, Arc<Key>>,
    uses: u64,
    pruned_at: OffsetDateTime,
    /// Every token that somebody may have, whether it is kept here or not: streams have theirs for as long as they are
    /// valid, and must hear that one is forgotten.
    given: Vec<(Arc<Key>, Weak<Token<T>>)>,
    given_after_sweep: usize,
}

struct Held<T> {
    token: Arc<Token<T>>,
    last_use: u64,
    /// The server did not renew it in time; not to be asked again before this.
    trouble: Option<Instant>,
}

impl Key {
    pub(super) fn new(entry_id: &str, spiffe_id: &SpiffeId, audiences: &[String]) -> Self {
        let mut audiences: Vec<_> = audiences
            .iter()
            .filter(|name| !name.is_empty())
            .cloned()
            .collect();
        audiences.sort_unstable();
        audiences.dedup();
        Self {
            entry_id: entry_id.to_owned(),
            spiffe_id: spiffe_id.clone(),
            audiences,
        }
    }
}

impl<T: Signed> Token<T> {
    /// One that comes `received`. `drawn` in `[0, 1)` spreads when it is renewed: when about half of its lifetime is
    /// over.
    pub(super) fn new(value: T, received: Instant, drawn: f64) -> Self {
        let (issued_at, expires_at) = value.life();
        Self {
            key_id: value.key_id(),
            value,
            issued_at,
            expires_at,
            renew_at: expires_at - remaining_at_renewal(issued_at, expires_at, drawn),
            received,
            forgotten: AtomicBool::new(false),
        }
    }

    /// How long until it is to be renewed.
    pub fn until_renewal(&self, now: Moment) -> Duration {
        self.left(now) - (self.expires_at - self.renew_at)
    }

    /// Whether it need not be renewed yet.
    pub fn is_fresh(&self, now: Moment) -> bool {
        self.until_renewal(now).is_positive()
    }

    /// Whether so little of its lifetime remains that a new one is worth waiting for.
    pub(super) fn is_ending(&self, now: Moment) -> bool {
        self.left(now) < self.life() / 8
    }

    /// Whether it may be served. The clock alone says when it no longer may: it may be right again since it was set back.
    pub fn is_valid(&self, now: OffsetDateTime) -> bool {
        now < self.expires_at && !self.forgotten.load(Ordering::Relaxed)
    }

    /// How much of its lifetime remains, by the clock or by the time that has passed, whichever is less.
    fn left(&self, now: Moment) -> Duration {
        let age = now.passed.saturating_duration_since(self.received);
        let age = Duration::try_from(age).unwrap_or(Duration::MAX);
        (self.expires_at - now.clock).min(self.life().saturating_sub(age))
    }

    fn life(&self) -> Duration {
        self.expires_at - self.issued_at
    }
}

impl<T> std::fmt::Debug for Token<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

impl<T> Tokens<T> {
    pub(super) fn new(max_size: usize) -> Self {
        Self {
            max_size,
            held: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            pruned_at: OffsetDateTime::UNIX_EPOCH,
            given: Vec::new(),
            given_after_sweep: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// The token for `key`, if there is one.
    pub(super) fn peek(&self, key: &Key) -> Option<&Arc<Token<T>>> {
        self.held.get(key).map(|held| &held.token)
    }

    /// The token for `key`, which counts as used now, and since when there is trouble with it.
    pub(super) fn used(&mut self, key: &Key) -> Option<(Arc<Token<T>>, Option<Instant>)> {
        let held = self.held.get_mut(key)?;
        let known = self.order.remove(&held.last_use)?;
        self.uses += 1;
        held.last_use = self.uses;
        self.order.insert(self.uses, known);
        Some((Arc::clone(&held.token), held.trouble))
    }

    /// Takes note of a new token, so that it can be forgotten wherever it is.
    pub(super) fn give(&mut self, key: &Arc<Key>, value: Token<T>) -> Arc<Token<T>> {
        if self.given.len() > 2 * self.given_after_sweep + 16 {
            self.given.retain(|(_key, token)| token.strong_count() > 0);
            self.given_after_sweep = self.given.len();
        }
        let token = Arc::new(value);
        self.given.push((Arc::clone(key), Arc::downgrade(&token)));
        token
    }

    /// Keeps a token that was given, in the place of an earlier one.
    pub(super) fn keep(&mut self, key: &Arc<Key>, token: Arc<Token<T>>) {
        self.uses += 1;
        let held = Held {
            token,
            last_use: self.uses,
            trouble: None,
        };
        if let Some(before) = self.held.insert(Arc::clone(key), held) {
            self.order.remove(&before.last_use);
        }
        self.order.insert(self.uses, Arc::clone(key));
        while self.held.len() > self.max_size {
            let Some((_last_use, oldest)) = self.order.pop_first() else {
                break;
            };
            self.held.remove(&oldest);
        }
    }

    /// Lets tokens go that have expired, each of them once in [`PRUNED_EVERY`] at most.
    pub(super) fn prune(&mut self, now: OffsetDateTime) {
        if (now - self.pruned_at).abs() >= PRUNED_EVERY {
            self.pruned_at = now;
            self.forget(|_, token| token.expires_at <= now);
        }
    }

    /// Notes that `token`, or whichever is held, was not renewed in time, and that the server is not to be asked
    /// before `until`.
    pub(super) fn note_trouble(&mut self, key: &Key, token: Option<&Arc<Token<T>>>, until: Instant) {
        if let Some(held) = self.held.get_mut(key)
            && token.is_none_or(|token| Arc::ptr_eq(&held.token, token))
        {
            held.trouble = Some(until);
        }
    }

    /// Forgets tokens, also for those who have them already. Returns how many were kept here.
    pub(super) fn forget(&mut self, is_forgotten: impl Fn(&Key, &Token<T>) -> bool) -> usize {
        self.given.retain(|(key, token)| {
            let Some(token) = token.upgrade() else {
                return false;
            };
            let goes = is_forgotten(key, &token);
            if goes {
                token.forgotten.store(true, Ordering::Relaxed);
            }
            !goes
        });
        let before = self.held.len();
        let order = &mut self.order;
        self.held.retain(|_key, held| {
            let goes = held.token.forgotten.load(Ordering::Relaxed);
            if goes {
                order.remove(&held.last_use);
            }
            !goes
        });
        before - self.held.len()
    }
}

/// Looking at all of them costs time, and those that have expired are served to nobody.
const PRUNED_EVERY: Duration = Duration::MINUTE;
