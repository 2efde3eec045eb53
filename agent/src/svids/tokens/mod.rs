//! Tokens: JWT-SVIDs, and WIT-SVIDs ([`super::wit`]). Cached, renewed at half of their lifetime, requested once for all
//! waiting calls, and dropped when their key is tainted or revoked.
//!
//! A token past half of its lifetime that is still valid is returned at once, and a new one requested in the background.
//! Only in the last eighth of its lifetime does a call wait for the new one; when none comes within `hit_timeout`, the
//! cached one is returned, and from then on no call waits for that token's successor.

mod kept;
mod requests;
mod settings;
mod source;
mod withdrawn;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use finial_identity::process::Clock;
use finial_identity::spiffe_id::SpiffeId;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::Shared;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::kept::{Key, Tokens};
use self::requests::{Answer, Joinable, Request, Running};
use self::withdrawn::Withdrawn;
use super::counters::{CacheCounters, TokenCounters};
use crate::node::{Backoff, Jitter, Moment};
use crate::telemetry::metrics;

pub use self::kept::Token;
pub use self::settings::JwtCacheSettings;
pub use self::source::{JwtError, JwtSource, Signed};
pub use crate::upstream::SignedJwt;

/// The cache of JWT-SVIDs.
pub type JwtCache = TokenCache<SignedJwt>;

/// A cache of tokens. Cheap to clone.
pub struct TokenCache<T: Signed> {
    inner: Arc<Inner<T>>,
}

impl<T: Signed> Clone for TokenCache<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T: Signed> TokenCache<T> {
    /// An empty cache in front of `source`.
    pub fn new(source: Arc<T::Source>, settings: JwtCacheSettings, clock: Clock, jitter: Jitter) -> Self {
        Self::counting(Arc::default(), source, settings, clock, jitter)
    }

    /// The same with counters that others share.
    pub fn counting(
        counters: Arc<CacheCounters>,
        source: Arc<T::Source>,
        settings: JwtCacheSettings,
        clock: Clock,
        jitter: Jitter,
    ) -> Self {
        let (renewals, renewing) = mpsc::channel(MAX_RENEWALS);
        Self {
            inner: Arc::new(Inner {
                source,
                hit_timeout: settings.hit_timeout,
                clock,
                jitter,
                counters,
                state: Mutex::new(State {
                    tokens: Tokens::new(settings.max_size),
                    withdrawn: Withdrawn::default(),
                    requests: HashMap::new(),
                    requests_after_sweep: 0,
                    next_request: 0,
                }),
                renewals,
                renewing: tokio::sync::Mutex::new(renewing),
            }),
        }
    }

    /// A token for the entry and the audiences. A cached one may have them in another order; a new one has them
    /// as they are given. With `reuse` false it is always a new one.
    ///
    /// # Errors
    /// [`JwtError`] when there is no valid cached token and the server gave none.
    pub async fn fetch(
        &self,
        entry_id: &str,
        spiffe_id: &SpiffeId,
        audiences: &[String],
        reuse: bool,
    ) -> Result<T, JwtError> {
        let held = self.fetch_held(entry_id, spiffe_id, audiences, reuse).await?;
        Ok(held.value.clone())
    }

    /// The same, with what the cache knows about the token.
    ///
    /// # Errors
    /// As [`TokenCache::fetch`].
    pub async fn fetch_held(
        &self,
        entry_id: &str,
        spiffe_id: &SpiffeId,
        audiences: &[String],
        reuse: bool,
    ) -> Result<Arc<Token<T>>, JwtError> {
        self.obtain(entry_id, spiffe_id, audiences, reuse, false).await
    }

    /// The same for who has a token already, and so waits for the successor of one past half of its life.
    ///
    /// # Errors
    /// As [`TokenCache::fetch`].
    pub async fn renew_held(
        &self,
        entry_id: &str,
        spiffe_id: &SpiffeId,
        audiences: &[String],
    ) -> Result<Arc<Token<T>>, JwtError> {
        self.obtain(entry_id, spiffe_id, audiences, true, true).await
    }

    async fn obtain(
        &self,
        entry_id: &str,
        spiffe_id: &SpiffeId,
        audiences: &[String],
        reuse: bool,
        is_patient: bool,
    ) -> Result<Arc<Token<T>>, JwtError> {
        let inner = &self.inner;
        let key = Arc::new(Key::new(entry_id, spiffe_id, audiences));
        if !reuse {
            inner.counted().misses.add(1);
            return inner.request(&key, audiences, None).await;
        }
        match inner.look_up(&key, audiences) {
            Found::Fresh(token) => {
                inner.counted().hits.add(1);
                Ok(token)
            }
            Found::Nothing(request) => {
                inner.counted().misses.add(1);
                request.answer.await
            }
            Found::Aging(token, Some(request)) if is_patient || token.is_ending(inner.now()) => {
                inner.renewed_in_time(&key, &token, request).await
            }
            // Its successor is asked for in the background.
            Found::Aging(token, _request) => inner.hand_out_aging(token),
        }
    }

    /// Whether a token for the entry and the audiences is there, or asked for already.
    pub fn holds(&self, entry_id: &str, spiffe_id: &SpiffeId, audiences: &[String]) -> bool {
        let key = Key::new(entry_id, spiffe_id, audiences);
        let now = self.inner.clock.now();
        let state = self.inner.locked();
        let is_running = |request: &Joinable<T>| request.answer.upgrade().is_some();
        state.tokens.peek(&key).is_some_and(|token| token.is_valid(now))
            || state.requests.get(&key).is_some_and(is_running)
    }

    /// Has tokens renewed that nobody waits for any more, until dropped. To be run once for each cache.
    pub(super) async fn renew(&self) {
        let mut incoming = self.inner.renewing.lock().await;
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(request) = incoming.recv(), if running.len() < MAX_RENEWALS => running.push(request),
                Some(_answer) = running.next() => {}
            }
        }
    }

    /// Forgets the tokens signed with these keys, which are tainted or revoked.
    pub fn forget_authorities(&self, key_ids: &HashSet<String>) {
        let mut state = self.inner.locked();
        // What is being signed may be signed with them.
        state.requests.clear();
        state.withdrawn.add(key_ids.clone());
        let is_forgotten = |_key: &Key, token: &Token<T>| {
            let key_id = token.key_id.as_ref();
            key_id.is_some_and(|id| key_ids.contains(id))
        };
        let forgotten = state.tokens.forget(is_forgotten);
        self.inner.counted().tainted.add(forgotten);
        self.inner.counted().held.set(state.tokens.len());
        if forgotten > 0 {
            if let Some(name) = T::TAINTED {
                metrics().sample(name, &[], forgotten as f64);
            }
            tracing::info!(
                forgotten,
                kind = T::NAME,
                "tokens of tainted or revoked keys were dropped"
            );
        }
    }

    /// Forgets the tokens of entries that were removed or changed.
    pub fn forget_entries(&self, entry_ids: &HashSet<String>) {
        let mut state = self.inner.locked();
        state
            .requests
            .retain(|key, _request| !entry_ids.contains(&key.entry_id));
        state
            .tokens
            .forget(|key, _token| entry_ids.contains(&key.entry_id));
        self.inner.counted().held.set(state.tokens.len());
    }

    /// How many tokens are held.
    pub fn len(&self) -> usize {
        self.inner.locked().tokens.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn counters(&self) -> &Arc<CacheCounters> {
        &self.inner.counters
    }
}

impl<T: Signed> fmt::Debug for TokenCache<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenCache")
            .field("kind", &T::NAME)
            .field("tokens", &self.len())
            .finish()
    }
}

struct Inner<T: Signed> {
    source: Arc<T::Source>,
    hit_timeout: Duration,
    clock: Clock,
    jitter: Jitter,
    counters: Arc<CacheCounters>,
    state: Mutex<State<T>>,
    /// Requests that continue although nobody waits for them.
    renewals: mpsc::Sender<Shared<Running<T>>>,
    renewing: tokio::sync::Mutex<mpsc::Receiver<Shared<Running<T>>>>,
}

struct State<T: Signed> {
    tokens: Tokens<T>,
    withdrawn: Withdrawn,
    /// Running requests that later callers can join. Weak: one without waiting callers is dropped.
    requests: HashMap<Arc<Key>, Joinable<T>>,
    requests_after_sweep: usize,
    next_request: u64,
}

/// What the cache has.
enum Found<T: Signed> {
    Fresh(Arc<Token<T>>),
    /// Past half of its lifetime; with the request that it is worth to wait for.
    Aging(Arc<Token<T>>, Option<Request<T>>),
    Nothing(Request<T>),
}

impl<T: Signed> Inner<T> {
    fn look_up(self: &Arc<Self>, key: &Arc<Key>, audiences: &[String]) -> Found<T> {
        let now = self.now();
        let mut state = self.locked();
        let used = state.tokens.used(key);
        let Some((token, trouble)) = used.filter(|(token, _trouble)| token.is_valid(now.clock)) else {
            let (request, _is_new) = self.join(&mut state, key, audiences);
            return Found::Nothing(request);
        };
        if token.is_fresh(now) {
            return Found::Fresh(token);
        }
        if trouble.is_some_and(|until| now.passed < until) {
            return Found::Aging(token, None);
        }
        let (request, is_new) = self.join(&mut state, key, audiences);
        if is_new {
            // When there is no room, it lasts as long as somebody waits.
            let _full = self.renewals.try_send(request.answer.clone());
        }
        // Trouble of half a lifetime ago says nothing about the server of now.
        let is_worth_waiting = trouble.is_none() || token.is_ending(now);
        Found::Aging(token, is_worth_waiting.then_some(request))
    }

    /// Waits for the successor of a valid token, but not long.
    async fn renewed_in_time(&self, key: &Key, token: &Arc<Token<T>>, request: Request<T>) -> Answer<T> {
        let Request {
            answer,
            started,
            mut has_failed,
        } = request;
        let has_failed = async {
            let failed = has_failed.wait_for(|failed| *failed).await.is_ok();
            if !failed || token.is_ending(self.now()) {
                // The answer is there, or worth waiting for.
                std::future::pending::<()>().await;
            }
        };
        let error = tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(renewed) => {
                    self.counted().misses.add(1);
                    return Ok(renewed);
                }
                Err(error) => error.to_string(),
            },
            () = has_failed => "first attempt failed".to_owned(),
            () = tokio::time::sleep_until(started + self.hit_timeout) => "no answer in time".to_owned(),
        };
        let until = Instant::now() + RENEWAL_PAUSE;
        self.locked().tokens.note_trouble(key, Some(token), until);
        if !token.is_valid(self.clock.now()) {
            return Err(JwtError::Unavailable(error));
        }
        tracing::warn!(
            error,
            entry_id = key.entry_id,
            kind = T::NAME,
            "token could not be renewed; the cached one is still valid"
        );
        self.hand_out_aging(Arc::clone(token))
    }

    fn hand_out_aging(&self, token: Arc<Token<T>>) -> Answer<T> {
        self.counted().stale_hits.add(1);
        Ok(token)
    }

    /// The request for `key` that is under way, or a new one, and which of the two. It is driven by those who wait
    /// for it.
    fn join(
        self: &Arc<Self>,
        state: &mut State<T>,
        key: &Arc<Key>,
        audiences: &[String],
    ) -> (Request<T>, bool) {
        if let Some(present) = state.requests.get(key)
            && let Some(answer) = present.answer.upgrade()
        {
            let request = Request {
                answer,
                started: present.started,
                has_failed: present.has_failed.clone(),
            };
            return (request, false);
        }
        let id = state.next_request;
        state.next_request += 1;
        let (failing, has_failed) = watch::channel(false);
        let inner = Arc::clone(self);
        let (wanted, audiences) = (Arc::clone(key), audiences.to_vec());
        let running: Running<T> = Box::pin(async move {
            let answer = inner.request(&wanted, &audiences, Some(&failing)).await;
            inner.finish(id, &wanted, &answer);
            answer
        });
        let request = Request {
            answer: running.shared(),
            started: Instant::now(),
            has_failed,
        };
        if state.requests.len() > 2 * state.requests_after_sweep + 16 {
            state
                .requests
                .retain(|_key, request| request.answer.upgrade().is_some());
            state.requests_after_sweep = state.requests.len();
        }
        if let Some(answer) = request.answer.downgrade() {
            let joinable = Joinable {
                id,
                answer,
                started: request.started,
                has_failed: request.has_failed.clone(),
            };
            state.requests.insert(Arc::clone(key), joinable);
        }
        (request, true)
    }

    /// Keeps the answer, unless what was asked for was forgotten meanwhile.
    fn finish(&self, id: u64, key: &Arc<Key>, answer: &Answer<T>) {
        let mut state = self.locked();
        if state.requests.get(key).is_none_or(|present| present.id != id) {
            return;
        }
        state.requests.remove(key);
        match answer {
            Ok(token) if token.value.token().len() <= MAX_CACHED_TOKEN => {
                state.tokens.keep(key, Arc::clone(token));
                state.tokens.prune(self.clock.now());
                self.counted().held.set(state.tokens.len());
            }
            Ok(_huge) => {}
            // Those who come next do not wait.
            Err(_error) => state
                .tokens
                .note_trouble(key, None, Instant::now() + RENEWAL_PAUSE),
        }
    }

    /// Asks the server, again after passing trouble, for as long as the budget lasts.
    async fn request(
        &self,
        key: &Arc<Key>,
        audiences: &[String],
        failing: Option<&watch::Sender<bool>>,
    ) -> Answer<T> {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY, self.jitter.clone());
        let mut last = None;
        let attempts = async {
            loop {
                let withdrawn = self.locked().withdrawn.times();
                match T::sign(&self.source, &key.entry_id, audiences).await {
                    Ok(signed) if *signed.spiffe_id() != key.spiffe_id => {
                        let text = format!("token is for {}, not for {}", signed.spiffe_id(), key.spiffe_id);
                        return Err(JwtError::Refused(text));
                    }
                    Ok(signed) => match self.give(key, signed, withdrawn) {
                        Some(token) => return Ok(token),
                        None => last = Some(JwtError::Unavailable(WITHDRAWN.to_owned())),
                    },
                    Err(error) if error.is_transient() => last = Some(JwtError::from(error)),
                    Err(error) => return Err(JwtError::from(error)),
                }
                if let Some(failing) = failing {
                    failing.send_replace(true);
                }
                tokio::time::sleep(backoff.failed()).await;
            }
        };
        let answer = match tokio::time::timeout(BUDGET, attempts).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                Err(last.unwrap_or_else(|| JwtError::Unavailable("no answer in time".to_owned())))
            }
        };
        if answer.is_err() {
            self.counted().failed.add(1);
        }
        answer
    }

    /// The new token, unless its key was forgotten since keys had been `withdrawn` times.
    fn give(&self, key: &Arc<Key>, signed: T, withdrawn: u64) -> Option<Arc<Token<T>>> {
        let token = Token::new(signed, Instant::now(), self.jitter.draw());
        let mut state = self.locked();
        let is_withdrawn = state.withdrawn.has(token.key_id.as_deref(), withdrawn);
        (!is_withdrawn).then(|| state.tokens.give(key, token))
    }

    fn now(&self) -> Moment {
        Moment::now(&self.clock)
    }

    fn counted(&self) -> &TokenCounters {
        T::counters(&self.counters)
    }

    fn locked(&self) -> MutexGuard<'_, State<T>> {
        // A token more or less after a panic does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For one token, all attempts together.
const BUDGET: Duration = Duration::from_secs(30);
/// After a token could not be renewed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);
/// Renewals in the background at one time.
const MAX_RENEWALS: usize = 1000;
/// Larger tokens, in bytes, are served and not kept.
const MAX_CACHED_TOKEN: usize = 16 * 1024;
const WITHDRAWN: &str = "signed by an authority that was tainted or revoked meanwhile";
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
