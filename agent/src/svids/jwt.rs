//! JWT-SVIDs: cached, renewed at half of their life, requested once for all who wait.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::jwt::parse_unverified;
use finial_identity::process::Clock;
use finial_identity::spiffe_id::SpiffeId;
use futures_util::FutureExt;
use futures_util::future::{Shared, WeakShared};
use time::OffsetDateTime;
use tonic::Code;

use crate::node::{Backoff, Jitter, remaining_at_renewal};
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
            hit_timeout: BUDGET,
        }
    }
}

impl JwtCache {
    /// An empty cache in front of `source`.
    pub fn new(source: Arc<dyn JwtSource>, settings: JwtCacheSettings, clock: Clock, jitter: Jitter) -> Self {
        Self {
            inner: Arc::new(Inner {
                source,
                settings,
                clock,
                jitter,
                state: Mutex::new(State::default()),
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
        let key = Key::new(entry_id, spiffe_id, audiences);
        if !reuse {
            return self.inner.request(&key, audiences).await;
        }
        let now = self.inner.clock.now();
        let (cached, request, generation) = {
            let mut state = self.inner.locked();
            let cached = state.used(&key);
            if let Some(jwt) = &cached
                && is_fresh(jwt, now, self.inner.jitter.draw())
            {
                return Ok(jwt.clone());
            }
            let generation = state.generation;
            (
                cached,
                self.inner.join_request(&mut state, &key, audiences),
                generation,
            )
        };
        let Some(valid) = cached.filter(|jwt| jwt.expires_at > now) else {
            return request.await;
        };
        let answered = tokio::time::timeout(self.inner.settings.hit_timeout, request).await;
        let error = match answered {
            Ok(Ok(jwt)) => return Ok(jwt),
            Ok(Err(error)) => error.to_string(),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        if self.inner.locked().has_forgotten(&key, &valid, generation)
            || valid.expires_at <= self.inner.clock.now()
        {
            return Err(JwtError::Unavailable(error));
        }
        tracing::warn!(
            error,
            entry_id,
            "JWT-SVID could not be renewed; the cached one is still valid"
        );
        Ok(valid)
    }

    /// Forgets the tokens signed with these keys, which are tainted or revoked.
    pub fn forget_authorities(&self, key_ids: &HashSet<String>) {
        let mut state = self.inner.locked();
        state.begin_generation();
        let before = state.tokens.len();
        state
            .tokens
            .retain(|_key, token| token.key_id.as_ref().is_none_or(|id| !key_ids.contains(id)));
        let forgotten = before - state.tokens.len();
        if forgotten > 0 {
            tracing::info!(forgotten, "JWT-SVIDs of tainted or revoked keys were dropped");
        }
    }

    /// Forgets the tokens of an entry that was removed or changed.
    pub fn forget_entry(&self, entry_id: &str) {
        let mut state = self.inner.locked();
        state.begin_generation();
        state.tokens.retain(|key, _token| key.entry_id != entry_id);
    }

    /// How many tokens are held.
    pub fn len(&self) -> usize {
        self.inner.locked().tokens.len()
    }

    /// Whether none is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for JwtCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtCache").field("tokens", &self.len()).finish()
    }
}

type Answer = Result<SignedJwt, JwtError>;
type Request = Pin<Box<dyn Future<Output = Answer> + Send>>;

struct Inner {
    source: Arc<dyn JwtSource>,
    settings: JwtCacheSettings,
    clock: Clock,
    jitter: Jitter,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tokens: HashMap<Key, Token>,
    /// Requests under way. Weak: one that nobody waits for any more is dropped.
    requests: HashMap<Key, WeakShared<Request>>,
    uses: u64,
    /// Changes whenever tokens are forgotten: what was asked for or looked up before may be one of them.
    generation: u64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    entry_id: String,
    spiffe_id: SpiffeId,
    /// Sorted, without duplicates.
    audiences: Vec<String>,
}

struct Token {
    jwt: SignedJwt,
    key_id: Option<String>,
    last_use: u64,
}

impl Inner {
    /// The request for `key` that is under way, or a new one. It is driven by those who wait for it.
    fn join_request(self: &Arc<Self>, state: &mut State, key: &Key, audiences: &[String]) -> Shared<Request> {
        if let Some(shared) = state.requests.get(key).and_then(WeakShared::upgrade) {
            return shared;
        }
        let inner = Arc::clone(self);
        let (wanted, audiences) = (key.clone(), audiences.to_vec());
        let generation = state.generation;
        let request: Request = Box::pin(async move {
            let answer = inner.request(&wanted, &audiences).await;
            let mut state = inner.locked();
            if state.generation != generation {
                return answer; // Another request may be under way in place of this one.
            }
            state.requests.remove(&wanted);
            if let Ok(jwt) = &answer
                && jwt.token.len() <= MAX_CACHED_TOKEN
            {
                state.keep(wanted, jwt.clone(), inner.settings.max_size);
            }
            answer
        });
        let shared = request.shared();
        state.requests.retain(|_key, request| request.upgrade().is_some());
        if let Some(weak) = shared.downgrade() {
            state.requests.insert(key.clone(), weak);
        }
        shared
    }

    /// Asks the server, again after passing trouble, for as long as the budget lasts.
    async fn request(&self, key: &Key, audiences: &[String]) -> Answer {
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
                tokio::time::sleep(backoff.failed()).await;
            }
        };
        match tokio::time::timeout(BUDGET, attempts).await {
            Ok(answer) => answer,
            Err(_elapsed) => {
                Err(last.unwrap_or_else(|| JwtError::Unavailable("no answer in time".to_owned())))
            }
        }
    }

    fn locked(&self) -> MutexGuard<'_, State> {
        // A token more or less after a panic does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether a token that was looked up in this generation was forgotten since.
    fn has_forgotten(&self, key: &Key, jwt: &SignedJwt, generation: u64) -> bool {
        let held = self.tokens.get(key);
        self.generation != generation && held.is_none_or(|held| held.jwt.token != jwt.token)
    }

    /// Those who come from now on do not join requests that are under way.
    fn begin_generation(&mut self) {
        self.generation = self.generation.wrapping_add(1);
        self.requests.clear();
    }

    fn used(&mut self, key: &Key) -> Option<SignedJwt> {
        self.uses = self.uses.wrapping_add(1);
        let token = self.tokens.get_mut(key)?;
        token.last_use = self.uses;
        Some(token.jwt.clone())
    }

    fn keep(&mut self, key: Key, jwt: SignedJwt, max_size: usize) {
        self.uses = self.uses.wrapping_add(1);
        let token = Token {
            key_id: parse_unverified(&jwt.token).ok().map(|token| token.kid),
            jwt,
            last_use: self.uses,
        };
        self.tokens.insert(key, token);
        while self.tokens.len() > max_size {
            let oldest = self.tokens.iter().min_by_key(|(_key, token)| token.last_use);
            let Some(oldest) = oldest.map(|(key, _token)| key.clone()) else {
                break;
            };
            self.tokens.remove(&oldest);
        }
    }
}

impl Key {
    fn new(entry_id: &str, spiffe_id: &SpiffeId, audiences: &[String]) -> Self {
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

/// Whether more than about half of the token's life remains.
fn is_fresh(jwt: &SignedJwt, now: OffsetDateTime, drawn: f64) -> bool {
    jwt.expires_at - now > remaining_at_renewal(jwt.issued_at, jwt.expires_at, drawn)
}

/// For one token, all attempts together.
const BUDGET: Duration = Duration::from_secs(30);
/// Larger tokens, in bytes, are handed out and not kept.
const MAX_CACHED_TOKEN: usize = 16 * 1024;
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;
    use finial_identity::jwt::sign;
    use finial_identity::key::{KeyType, PrivateKey};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use time::macros::datetime;

    /// Signs after a while; can be told to fail.
    #[derive(Debug)]
    struct Signing {
        clock: Clock,
        calls: AtomicUsize,
        lifetime: time::Duration,
        failure: Mutex<Option<UpstreamError>>,
    }

    #[async_trait]
    impl JwtSource for Signing {
        async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
            let call = self.calls.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(10)).await;
            if let Some(error) = self.failure.lock().unwrap().clone() {
                return Err(error);
            }
            let key = PrivateKey::generate(KeyType::EcP256).unwrap();
            let claims = serde_json::json!({
                "sub": web().as_str(), "aud": audiences, "exp": 4_000_000_000_i64, "jti": call
            });
            let token = sign(&key, &format!("key-{entry_id}"), claims.as_object().unwrap()).unwrap();
            Ok(SignedJwt {
                token: token.into(),
                spiffe_id: web(),
                issued_at: self.clock.now(),
                expires_at: self.clock.now() + self.lifetime,
            })
        }
    }

    fn web() -> SpiffeId {
        SpiffeId::parse("spiffe://example.org/web").unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    fn cache(max_size: usize) -> (JwtCache, Arc<Signing>) {
        let clock = Clock::paused_at(datetime!(2030-01-01 00:00 UTC));
        let signing = Arc::new(Signing {
            clock: clock.clone(),
            calls: AtomicUsize::new(0),
            lifetime: time::Duration::seconds(100),
            failure: Mutex::new(None),
        });
        let settings = JwtCacheSettings {
            max_size,
            hit_timeout: Duration::from_secs(5),
        };
        let source = Arc::clone(&signing) as Arc<dyn JwtSource>;
        (
            JwtCache::new(source, settings, clock, Jitter::new(|| 0.5)),
            signing,
        )
    }

    async fn fetch(cache: &JwtCache, entry_id: &str, audiences: &[&str]) -> Result<SignedJwt, JwtError> {
        cache.fetch(entry_id, &web(), &names(audiences), true).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_token_has_the_audiences_in_the_callers_order_and_serves_any_order() {
        let (cache, signing) = cache(10);
        let jwt = fetch(&cache, "web", &["z", "a"]).await.unwrap();
        let token = parse_unverified(&jwt.token).unwrap();
        assert_eq!(token.claims["aud"], serde_json::json!(["z", "a"]));
        let again = fetch(&cache, "web", &["a", "z"]).await.unwrap();
        assert_eq!(again.token, jwt.token);
        assert_eq!(signing.calls.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn is_reused_until_half_of_its_life_is_over() {
        let (cache, signing) = cache(10);
        let first = fetch(&cache, "web", &["a", "b"]).await.unwrap();
        tokio::time::advance(Duration::from_secs(49)).await;
        let same = fetch(&cache, "web", &["b", "a", "a"]).await.unwrap();
        assert_eq!(first.token, same.token);
        tokio::time::advance(Duration::from_secs(2)).await;
        let next = fetch(&cache, "web", &["a", "b"]).await.unwrap();
        assert_ne!(first.token, next.token);
        assert_eq!(signing.calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn concurrent_callers_share_one_request() {
        let (cache, signing) = cache(10);
        let calls = (0..20).map(|_| fetch(&cache, "web", &["a"]));
        let tokens = futures_util::future::join_all(calls).await;
        let distinct: HashSet<_> = tokens.into_iter().map(|jwt| jwt.unwrap().token).collect();
        assert_eq!((distinct.len(), signing.calls.load(Ordering::SeqCst)), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_gives_up_does_not_leave_a_dead_request_behind() {
        let (cache, signing) = cache(10);
        let given_up = tokio::time::timeout(Duration::from_millis(1), fetch(&cache, "web", &["a"])).await;
        assert!(given_up.is_err());
        assert!(fetch(&cache, "web", &["a"]).await.is_ok());
        assert_eq!(signing.calls.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_valid_token_outlives_an_outage_and_an_expired_one_does_not() {
        let (cache, signing) = cache(10);
        let first = fetch(&cache, "web", &["a"]).await.unwrap();
        *signing.failure.lock().unwrap() = Some(UpstreamError::Unavailable("down".to_owned()));
        tokio::time::advance(Duration::from_secs(60)).await;
        let asked = tokio::time::Instant::now();
        let same = fetch(&cache, "web", &["a"]).await.unwrap();
        assert_eq!(first.token, same.token);
        assert_eq!(asked.elapsed().as_secs(), 5);
        tokio::time::advance(Duration::from_secs(60)).await;
        let error = fetch(&cache, "web", &["a"]).await.unwrap_err();
        assert!(matches!(error, JwtError::Unavailable(text) if text.contains("down")));
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_not_repeated_and_outages_are() {
        let (cache, signing) = cache(10);
        *signing.failure.lock().unwrap() = Some(UpstreamError::Other {
            code: Code::NotFound,
            message: "gone".to_owned(),
        });
        let error = fetch(&cache, "web", &["a"]).await.unwrap_err();
        assert!(matches!(error, JwtError::NotFound(_)));
        assert_eq!(signing.calls.load(Ordering::SeqCst), 1);
        *signing.failure.lock().unwrap() = Some(UpstreamError::Unavailable("down".to_owned()));
        assert!(fetch(&cache, "web", &["a"]).await.is_err());
        assert!(signing.calls.load(Ordering::SeqCst) > 5);
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_goes_first() {
        let (cache, signing) = cache(2);
        for audience in ["a", "b", "a", "c"] {
            fetch(&cache, "web", &[audience]).await.unwrap();
        }
        assert_eq!((cache.len(), signing.calls.load(Ordering::SeqCst)), (2, 3));
        fetch(&cache, "web", &["a"]).await.unwrap();
        assert_eq!(signing.calls.load(Ordering::SeqCst), 3);
        fetch(&cache, "web", &["b"]).await.unwrap();
        assert_eq!(signing.calls.load(Ordering::SeqCst), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_of_a_tainted_key_or_a_changed_entry_are_forgotten() {
        let (cache, _signing) = cache(10);
        for entry in ["web", "api", "db"] {
            fetch(&cache, entry, &["a"]).await.unwrap();
        }
        cache.forget_authorities(&HashSet::from(["key-web".to_owned()]));
        assert_eq!(cache.len(), 2);
        cache.forget_entry("api");
        assert_eq!(cache.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_asked_for_before_its_entry_was_forgotten_is_not_kept() {
        let (cache, _signing) = cache(10);
        let forget = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            cache.forget_entry("web");
        };
        let (answer, ()) = tokio::join!(fetch(&cache, "web", &["a"]), forget);
        assert!(answer.is_ok());
        assert!(cache.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_was_forgotten_meanwhile_does_not_stand_in_for_a_new_one() {
        let (cache, signing) = cache(10);
        fetch(&cache, "web", &["a"]).await.unwrap();
        *signing.failure.lock().unwrap() = Some(UpstreamError::Unavailable("down".to_owned()));
        tokio::time::advance(Duration::from_secs(60)).await;
        let forget = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            cache.forget_authorities(&HashSet::from(["key-web".to_owned()]));
        };
        let (answer, ()) = tokio::join!(fetch(&cache, "web", &["a"]), forget);
        assert!(matches!(answer, Err(JwtError::Unavailable(_))), "{answer:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_huge_token_is_handed_out_and_not_kept() {
        let (cache, _signing) = cache(10);
        let audience = "a".repeat(MAX_CACHED_TOKEN);
        assert!(fetch(&cache, "web", &[&audience]).await.is_ok());
        assert!(cache.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn without_reuse_every_token_is_new() {
        let (cache, signing) = cache(10);
        for _ in 0..2 {
            cache.fetch("web", &web(), &names(&["a"]), false).await.unwrap();
        }
        assert_eq!((cache.len(), signing.calls.load(Ordering::SeqCst)), (0, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_for_another_identity_is_refused() {
        let (cache, _signing) = cache(10);
        let other = SpiffeId::parse("spiffe://example.org/other").unwrap();
        let error = cache
            .fetch("web", &other, &names(&["a"]), true)
            .await
            .unwrap_err();
        assert!(matches!(error, JwtError::Refused(_)));
    }
}
