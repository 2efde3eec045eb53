//! JWT-SVIDs: cached, renewed at half of their life, requested once for all who wait.
//!
//! A token past half of its life that is still valid is handed out when no new one comes in time: after
//! `hit_timeout`, or as soon as the server has failed once. From then on nobody waits for that token's successor,
//! which is asked for in the background, until there is one or the token expires.

mod tokens;

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::process::Clock;
use finial_identity::spiffe_id::SpiffeId;
use futures_util::FutureExt;
use futures_util::StreamExt;
use futures_util::future::{Shared, WeakShared};
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Code;

use self::tokens::{Key, Token, Tokens};
use super::counters::CacheCounters;
use crate::node::{Backoff, Jitter};
use crate::upstream::{Upstream, UpstreamError};

pub use crate::upstream::SignedJwt;

/// Signs JWT-SVIDs: the server, or what stands for it in tests.
#[async_trait]
pub trait JwtSource: Send + Sync + fmt::Debug {
    /// One JWT-SVID for an entry.
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError>;
}

#[async_trait]
impl JwtSource for Upstream {
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        Self::sign_jwt(self, entry_id, audiences).await
    }
}

/// Why there is no JWT-SVID.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JwtError {
    /// The entry is unknown to the server, or this agent is not authorized for it.
    #[error("entry not found or not authorized: {0}")]
    NotFound(String),
    /// The server refuses such a request.
    #[error("server refused: {0}")]
    Refused(String),
    /// The server could not be reached or did not answer in time.
    #[error("server unavailable: {0}")]
    Unavailable(String),
}

/// The cache of JWT-SVIDs. Cheap to clone.
#[derive(Clone)]
pub struct JwtCache {
    inner: Arc<Inner>,
}

/// How much is cached, and how long a caller waits.
#[derive(Clone, Copy, Debug)]
pub struct JwtCacheSettings {
    /// How many tokens are kept; the least recently used goes first (`jwt_svid_cache_max_size`).
    pub max_size: usize,
    /// How long to wait for a new token while the cached one is still valid (`jwt_svid_cache_hit_timeout`).
    pub hit_timeout: Duration,
}

impl Default for JwtCacheSettings {
    fn default() -> Self {
        Self {
            max_size: 1000,
            hit_timeout: DEFAULT_HIT_TIMEOUT,
        }
    }
}

impl JwtCache {
    /// An empty cache in front of `source`.
    pub fn new(source: Arc<dyn JwtSource>, settings: JwtCacheSettings, clock: Clock, jitter: Jitter) -> Self {
        let (renewals, renewing) = mpsc::channel(MAX_RENEWALS);
        Self {
            inner: Arc::new(Inner {
                source,
                hit_timeout: settings.hit_timeout,
                clock,
                jitter,
                counters: Arc::default(),
                state: Mutex::new(State {
                    tokens: Tokens::new(settings.max_size),
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
    ) -> Result<SignedJwt, JwtError> {
        let inner = &self.inner;
        let key = Arc::new(Key::new(entry_id, spiffe_id, audiences));
        if !reuse {
            inner.counters.jwt_misses.add(1);
            return inner.request(&key, audiences, None).await;
        }
        match inner.look_up(&key, audiences) {
            Found::Fresh(token) => {
                inner.counters.jwt_hits.add(1);
                Ok(token.jwt.clone())
            }
            Found::Nothing(request) => {
                inner.counters.jwt_misses.add(1);
                request.answer.await
            }
            Found::Aging(token, None) => inner.hand_out_aging(&token),
            Found::Aging(token, Some(request)) => inner.renewed_in_time(&key, &token, request).await,
        }
    }

    /// Whether a token for the entry and the audiences is there, or asked for already.
    pub fn holds(&self, entry_id: &str, spiffe_id: &SpiffeId, audiences: &[String]) -> bool {
        let key = Key::new(entry_id, spiffe_id, audiences);
        let now = self.inner.clock.now();
        let state = self.inner.locked();
        let is_running = |request: &Joinable| request.answer.upgrade().is_some();
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
        let is_forgotten = |_key: &Key, token: &Token| {
            let key_id = token.key_id.as_ref();
            key_id.is_some_and(|id| key_ids.contains(id))
        };
        let forgotten = state.tokens.forget(is_forgotten);
        self.inner.counters.jwt_tainted.add(forgotten);
        self.inner.counters.jwt_svids.set(state.tokens.len());
        if forgotten > 0 {
            tracing::info!(forgotten, "JWT-SVIDs of tainted or revoked keys were dropped");
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
        self.inner.counters.jwt_svids.set(state.tokens.len());
    }

    /// How many tokens are held.
    pub fn len(&self) -> usize {
        self.inner.locked().tokens.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn counters(&self) -> &Arc<CacheCounters> {
        &self.inner.counters
    }
}

impl fmt::Debug for JwtCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtCache").field("tokens", &self.len()).finish()
    }
}

type Answer = Result<SignedJwt, JwtError>;
type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

struct Inner {
    source: Arc<dyn JwtSource>,
    hit_timeout: Duration,
    clock: Clock,
    jitter: Jitter,
    counters: Arc<CacheCounters>,
    state: Mutex<State>,
    /// Requests that go on although nobody waits for them.
    renewals: mpsc::Sender<Shared<Running>>,
    renewing: tokio::sync::Mutex<mpsc::Receiver<Shared<Running>>>,
}

struct State {
    tokens: Tokens,
    /// Requests under way that those who come may join. Weak: one that nobody waits for any more is dropped.
    requests: HashMap<Arc<Key>, Joinable>,
    requests_after_sweep: usize,
    next_request: u64,
}

struct Joinable {
    id: u64,
    answer: WeakShared<Running>,
    started: Instant,
    has_failed: watch::Receiver<bool>,
}

/// A request that one takes part in.
struct Request {
    answer: Shared<Running>,
    started: Instant,
    /// Whether an attempt has failed already.
    has_failed: watch::Receiver<bool>,
}

/// What the cache has.
enum Found {
    Fresh(Arc<Token>),
    /// Past half of its life; with the request that it is worth to wait for.
    Aging(Arc<Token>, Option<Request>),
    Nothing(Request),
}

impl Inner {
    fn look_up(self: &Arc<Self>, key: &Arc<Key>, audiences: &[String]) -> Found {
        let now = self.clock.now();
        let mut state = self.locked();
        let used = state.tokens.used(key);
        let Some((token, trouble)) = used.filter(|(token, _trouble)| token.is_valid(now)) else {
            let (request, _is_new) = self.join(&mut state, key, audiences);
            return Found::Nothing(request);
        };
        if token.is_fresh(now, self.jitter.draw()) {
            return Found::Fresh(token);
        }
        if trouble.is_some_and(|until| Instant::now() < until) {
            return Found::Aging(token, None);
        }
        let (request, is_new) = self.join(&mut state, key, audiences);
        if is_new {
            // When there is no room, it lasts as long as somebody waits.
            let _full = self.renewals.try_send(request.answer.clone());
        }
        Found::Aging(token, trouble.is_none().then_some(request))
    }

    /// Waits for the successor of a valid token, but not long.
    async fn renewed_in_time(&self, key: &Key, token: &Arc<Token>, request: Request) -> Answer {
        let Request {
            answer,
            started,
            mut has_failed,
        } = request;
        let has_failed = async {
            let failed = has_failed.wait_for(|failed| *failed).await.is_ok();
            if !failed || token.is_ending(self.clock.now()) {
                // The answer is there, or worth waiting for.
                std::future::pending::<()>().await;
            }
        };
        let error = tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(jwt) => {
                    self.counters.jwt_misses.add(1);
                    return Ok(jwt);
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
            "JWT-SVID could not be renewed; the cached one is still valid"
        );
        self.hand_out_aging(token)
    }

    fn hand_out_aging(&self, token: &Token) -> Answer {
        self.counters.jwt_stale_hits.add(1);
        Ok(token.jwt.clone())
    }

    /// The request for `key` that is under way, or a new one, and which of the two. It is driven by those who wait
    /// for it.
    fn join(self: &Arc<Self>, state: &mut State, key: &Arc<Key>, audiences: &[String]) -> (Request, bool) {
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
        let running: Running = Box::pin(async move {
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
    fn finish(&self, id: u64, key: &Arc<Key>, answer: &Answer) {
        let mut state = self.locked();
        if state.requests.get(key).is_none_or(|present| present.id != id) {
            return;
        }
        state.requests.remove(key);
        match answer {
            Ok(jwt) if jwt.token.len() <= MAX_CACHED_TOKEN => {
                state.tokens.keep(key, Arc::new(Token::new(jwt.clone())));
                self.counters.jwt_svids.set(state.tokens.len());
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
        key: &Key,
        audiences: &[String],
        failing: Option<&watch::Sender<bool>>,
    ) -> Answer {
        let mut backoff = Backoff::new(FIRST_RETRY, LONGEST_RETRY, self.jitter.clone());
        let mut last = None;
        let attempts = async {
            loop {
                match self.source.sign_jwt(&key.entry_id, audiences).await {
                    Ok(jwt) if jwt.spiffe_id != key.spiffe_id => {
                        let text = format!("token is for {}, not for {}", jwt.spiffe_id, key.spiffe_id);
                        return Err(JwtError::Refused(text));
                    }
                    Ok(jwt) => return Ok(jwt),
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
            self.counters.jwt_failed.add(1);
        }
        answer
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // A token more or less after a panic does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl From<UpstreamError> for JwtError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Other {
                code: Code::NotFound,
                message,
            } => Self::NotFound(message),
            error if error.is_refusal() => Self::Refused(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}

/// For one token, all attempts together.
const BUDGET: Duration = Duration::from_secs(30);
/// Shorter than the patience of most clients.
const DEFAULT_HIT_TIMEOUT: Duration = Duration::from_secs(5);
/// After a token could not be renewed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(5);
/// Renewals in the background at one time.
const MAX_RENEWALS: usize = 1000;
/// Larger tokens, in bytes, are handed out and not kept.
const MAX_CACHED_TOKEN: usize = 16 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
