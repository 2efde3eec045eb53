//! The JWT-SVIDs held, the least recently used of which goes first.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use finial_identity::jwt::parse_unverified;
use finial_identity::spiffe_id::SpiffeId;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::SignedJwt;
use crate::node::remaining_at_renewal;

/// What a token is for.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) entry_id: String,
    pub(super) spiffe_id: SpiffeId,
    /// Sorted, without duplicates.
    audiences: Vec<String>,
}

/// One JWT-SVID.
pub(super) struct Token {
    pub(super) jwt: SignedJwt,
    /// `kid` of the authority that signed it.
    pub(super) key_id: Option<String>,
    /// It must not be handed out any more.
    forgotten: AtomicBool,
}

/// Tokens by what they are for; a hard limit holds.
pub(super) struct Tokens {
    max_size: usize,
    held: HashMap<Arc<Key>, Held>,
    /// By last use.
    order: BTreeMap<u64, Arc<Key>>,
    uses: u64,
}

struct Held {
    token: Arc<Token>,
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

impl Token {
    pub(super) fn new(jwt: SignedJwt) -> Self {
        Self {
            key_id: parse_unverified(&jwt.token).ok().map(|token| token.kid),
            jwt,
            forgotten: AtomicBool::new(false),
        }
    }

    /// Whether more than about half of its life remains; `drawn` in `[0, 1)` spreads it.
    pub(super) fn is_fresh(&self, now: OffsetDateTime, drawn: f64) -> bool {
        let SignedJwt {
            issued_at,
            expires_at,
            ..
        } = self.jwt;
        expires_at - now > remaining_at_renewal(issued_at, expires_at, drawn)
    }

    /// Whether so little of its life remains that a new one is worth waiting for.
    pub(super) fn is_ending(&self, now: OffsetDateTime) -> bool {
        let life = self.jwt.expires_at - self.jwt.issued_at;
        self.jwt.expires_at - now < life / 8
    }

    /// Whether it may be handed out.
    pub(super) fn is_valid(&self, now: OffsetDateTime) -> bool {
        now < self.jwt.expires_at && !self.forgotten.load(Ordering::Relaxed)
    }
}

impl Tokens {
    pub(super) fn new(max_size: usize) -> Self {
        Self {
            max_size,
            held: HashMap::new(),
            order: BTreeMap::new(),
            uses: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// The token for `key`, if there is one.
    pub(super) fn peek(&self, key: &Key) -> Option<&Arc<Token>> {
        self.held.get(key).map(|held| &held.token)
    }

    /// The token for `key`, which counts as used now, and since when there is trouble with it.
    pub(super) fn used(&mut self, key: &Key) -> Option<(Arc<Token>, Option<Instant>)> {
        let held = self.held.get_mut(key)?;
        let known = self.order.remove(&held.last_use)?;
        self.uses += 1;
        held.last_use = self.uses;
        self.order.insert(self.uses, known);
        Some((Arc::clone(&held.token), held.trouble))
    }

    /// Keeps a token in the place of an earlier one.
    pub(super) fn keep(&mut self, key: &Arc<Key>, token: Arc<Token>) {
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

    /// Notes that `token`, or whichever is held, was not renewed in time, and that the server is not to be asked
    /// before `until`.
    pub(super) fn note_trouble(&mut self, key: &Key, token: Option<&Arc<Token>>, until: Instant) {
        if let Some(held) = self.held.get_mut(key)
            && token.is_none_or(|token| Arc::ptr_eq(&held.token, token))
        {
            held.trouble = Some(until);
        }
    }

    /// Forgets tokens, also for those who hold them already. Returns how many.
    pub(super) fn forget(&mut self, is_forgotten: impl Fn(&Key, &Token) -> bool) -> usize {
        let before = self.held.len();
        let order = &mut self.order;
        self.held.retain(|key, held| {
            let goes = is_forgotten(key, &held.token);
            if goes {
                held.token.forgotten.store(true, Ordering::Relaxed);
                order.remove(&held.last_use);
            }
            !goes
        });
        before - self.held.len()
    }
}
