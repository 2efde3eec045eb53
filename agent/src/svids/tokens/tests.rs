//! The cache in paused time, with a server that can be made to fail or not to answer.

use super::*;
use crate::upstream::UpstreamError;
use async_trait::async_trait;
use finial_identity::jwt::{parse_unverified, sign};
use finial_identity::key::{KeyType, PrivateKey};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use time::macros::datetime;
use tonic::Code;

/// Signs after a while; can be told to fail.
#[derive(Debug)]
struct Signing {
    clock: Clock,
    calls: AtomicUsize,
    lifetime: time::Duration,
    failure: Mutex<Option<UpstreamError>>,
    is_silent: AtomicBool,
}

#[async_trait]
impl JwtSource for Signing {
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(10)).await;
        if self.is_silent.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
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

impl Signing {
    fn fail(&self) {
        *self.failure.lock().unwrap() = Some(UpstreamError::Unavailable("down".to_owned()));
    }
}

fn cache(max_size: usize) -> (JwtCache, Arc<Signing>) {
    cache_drawing(max_size, || 0.5)
}

fn cache_drawing(
    max_size: usize,
    draw: impl Fn() -> f64 + Send + Sync + 'static,
) -> (JwtCache, Arc<Signing>) {
    let clock = Clock::paused_at(datetime!(2030-01-01 00:00 UTC));
    let signing = Arc::new(Signing {
        clock: clock.clone(),
        calls: AtomicUsize::new(0),
        lifetime: time::Duration::seconds(100),
        failure: Mutex::new(None),
        is_silent: AtomicBool::new(false),
    });
    let settings = JwtCacheSettings {
        max_size,
        hit_timeout: Duration::from_secs(5),
    };
    let source = Arc::clone(&signing) as Arc<dyn JwtSource>;
    (JwtCache::new(source, settings, clock, Jitter::new(draw)), signing)
}

/// Does `work` while tokens are renewed in the background.
async fn renewing<W>(cache: &JwtCache, work: impl Future<Output = W>) -> W {
    tokio::select! {
        () = cache.renew() => unreachable!("it never ends"),
        done = work => done,
    }
}

async fn fetch(cache: &JwtCache, entry_id: &str, audiences: &[&str]) -> Result<SignedJwt, JwtError> {
    cache.fetch(entry_id, &web(), &names(audiences), true).await
}

#[tokio::test(start_paused = true)]
async fn is_reused_until_half_of_its_life_is_over() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a", "b"]).await.unwrap();
    tokio::time::advance(Duration::from_secs(49)).await;
    let same = fetch(&cache, "web", &["b", "a", "a"]).await.unwrap();
    assert_eq!(first.token, same.token);
    tokio::time::advance(Duration::from_secs(2)).await;
    renewing(&cache, async {
        let asked = Instant::now();
        let same = fetch(&cache, "web", &["a", "b"]).await.unwrap();
        assert_eq!(first.token, same.token);
        assert_eq!(
            asked.elapsed(),
            Duration::ZERO,
            "what is cached waits for nothing"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
        let next = fetch(&cache, "web", &["a", "b"]).await.unwrap();
        assert_ne!(first.token, next.token);
    })
    .await;
    assert_eq!(signing.calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_there_or_under_way_needs_no_other_signature() {
    let (cache, _signing) = cache(10);
    let holds = |audiences: &[&str]| cache.holds("web", &web(), &names(audiences));
    assert!(!holds(&["a"]));
    let mut first = std::pin::pin!(fetch(&cache, "web", &["a"]));
    let pending = futures_util::poll!(&mut first).is_pending();
    assert!(pending && holds(&["a"]) && !holds(&["b"]));
    first.await.unwrap();
    assert!(holds(&["a"]));
    tokio::time::advance(Duration::from_secs(99)).await;
    assert!(holds(&["a"]));
    tokio::time::advance(Duration::from_secs(2)).await;
    assert!(!holds(&["a"]), "expired");
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
async fn half_of_life_is_drawn_once_for_each_token_within_a_tenth() {
    const DRAWS: [f64; 3] = [0.0, 0.999, 0.5];
    let drawn = Arc::new(AtomicUsize::new(0));
    let draws = Arc::clone(&drawn);
    let (cache, signing) = cache_drawing(10, move || DRAWS[draws.fetch_add(1, Ordering::SeqCst)]);
    renewing(&cache, async {
        fetch(&cache, "web", &["a"]).await.unwrap();
        for (tokens, last_fresh) in [(1, 54), (2, 44)] {
            // However often it is asked for, its point stays where it is.
            for _ in 0..last_fresh {
                tokio::time::advance(Duration::from_secs(1)).await;
                fetch(&cache, "web", &["a"]).await.unwrap();
            }
            assert_eq!(signing.calls.load(Ordering::SeqCst), tokens);
            tokio::time::advance(Duration::from_secs(2)).await;
            fetch(&cache, "web", &["a"]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(20)).await;
            assert_eq!(signing.calls.load(Ordering::SeqCst), tokens + 1);
            assert_eq!(drawn.load(Ordering::SeqCst), tokens + 1);
        }
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_outlives_an_outage_and_an_expired_one_does_not() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a"]).await.unwrap();
    signing.fail();
    tokio::time::advance(Duration::from_secs(60)).await;
    let asked = Instant::now();
    let same = fetch(&cache, "web", &["a"]).await.unwrap();
    assert_eq!(first.token, same.token);
    assert_eq!(asked.elapsed(), Duration::ZERO);
    tokio::time::advance(Duration::from_secs(60)).await;
    let error = fetch(&cache, "web", &["a"]).await.unwrap_err();
    assert!(matches!(error, JwtError::Unavailable(text) if text.contains("down")));
}

#[tokio::test(start_paused = true)]
async fn the_first_caller_for_a_token_about_to_end_waits_for_a_silent_server_and_the_following_do_not() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a"]).await.unwrap();
    signing.is_silent.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(88)).await;
    let asked = Instant::now();
    let late = async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        fetch(&cache, "web", &["a"]).await
    };
    let (one, two) = tokio::join!(fetch(&cache, "web", &["a"]), late);
    assert_eq!(
        (&one.unwrap().token, &two.unwrap().token),
        (&first.token, &first.token)
    );
    assert_eq!(
        asked.elapsed().as_secs(),
        5,
        "the second does not begin its wait anew"
    );
    for _ in 0..6 {
        let asked = Instant::now();
        assert_eq!(fetch(&cache, "web", &["a"]).await.unwrap().token, first.token);
        assert_eq!(asked.elapsed(), Duration::ZERO);
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    assert!(signing.calls.load(Ordering::SeqCst) <= 3);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_is_not_asked_by_every_caller() {
    let (cache, signing) = cache(10);
    fetch(&cache, "web", &["a"]).await.unwrap();
    *signing.failure.lock().unwrap() = Some(UpstreamError::Malformed("no token".to_owned()));
    tokio::time::advance(Duration::from_secs(60)).await;
    let callers = async {
        for _ in 0..20 {
            fetch(&cache, "web", &["a"]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    tokio::select! {
        () = cache.renew() => unreachable!("it never ends"),
        () = callers => {}
    }
    let calls = signing.calls.load(Ordering::SeqCst);
    assert!((2..=4).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_not_renewed_in_time_is_renewed_in_the_background() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a"]).await.unwrap();
    signing.fail();
    tokio::time::advance(Duration::from_secs(60)).await;
    let callers = async {
        fetch(&cache, "web", &["a"]).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        *signing.failure.lock().unwrap() = None;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let asked = Instant::now();
        let next = fetch(&cache, "web", &["a"]).await.unwrap();
        assert_ne!(first.token, next.token);
        assert_eq!(asked.elapsed(), Duration::ZERO);
    };
    tokio::select! {
        () = cache.renew() => unreachable!("it never ends"),
        () = callers => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_gives_up_on_a_token_about_to_end_leaves_its_renewal_to_the_background() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a"]).await.unwrap();
    tokio::time::advance(Duration::from_secs(90)).await;
    let callers = async {
        let given_up = tokio::time::timeout(Duration::from_millis(1), fetch(&cache, "web", &["a"])).await;
        assert!(given_up.is_err());
        tokio::time::sleep(Duration::from_millis(20)).await;
        let asked = Instant::now();
        let next = fetch(&cache, "web", &["a"]).await.unwrap();
        assert_ne!(first.token, next.token);
        assert_eq!(asked.elapsed(), Duration::ZERO);
        assert_eq!(signing.calls.load(Ordering::SeqCst), 2);
    };
    tokio::select! {
        () = cache.renew() => unreachable!("it never ends"),
        () = callers => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_about_to_end_is_worth_waiting_for_a_second_attempt() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a"]).await.unwrap();
    signing.fail();
    tokio::time::advance(Duration::from_secs(90)).await;
    let recovery = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        *signing.failure.lock().unwrap() = None;
    };
    let (next, ()) = tokio::join!(fetch(&cache, "web", &["a"]), recovery);
    assert_ne!(first.token, next.unwrap().token);
}

#[tokio::test(start_paused = true)]
async fn calls_are_counted_by_how_they_were_answered() {
    let (cache, signing) = cache(1);
    for _ in 0..3 {
        fetch(&cache, "web", &["a"]).await.unwrap();
    }
    signing.fail();
    tokio::time::advance(Duration::from_secs(60)).await;
    fetch(&cache, "web", &["a"]).await.unwrap();
    let counters = cache.counters();
    let counts = [
        &counters.jwt.hits,
        &counters.jwt.stale_hits,
        &counters.jwt.misses,
        &counters.jwt.held,
    ];
    assert_eq!(counts.map(|count| count.value()), [2, 1, 1, 1]);
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
    let codes = [
        Code::Unknown,
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::InvalidArgument,
        Code::Unimplemented,
    ];
    for (calls, code) in codes.into_iter().enumerate() {
        *signing.failure.lock().unwrap() = Some(tonic::Status::new(code, "no").into());
        let asked = Instant::now();
        assert!(fetch(&cache, "web", &["a"]).await.is_err());
        assert_eq!(asked.elapsed().as_millis(), 10, "{code:?}");
        assert_eq!(signing.calls.load(Ordering::SeqCst), calls + 2, "{code:?}");
    }
    let before = signing.calls.load(Ordering::SeqCst);
    signing.fail();
    assert!(fetch(&cache, "web", &["a"]).await.is_err());
    assert!(signing.calls.load(Ordering::SeqCst) > before + 5);
}

#[tokio::test(start_paused = true)]
async fn who_has_a_token_already_waits_for_its_successor() {
    let (cache, _signing) = cache(10);
    let (id, audiences) = (web(), names(&["a"]));
    let first = cache.fetch_held("web", &id, &audiences, true).await.unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    let next = cache.renew_held("web", &id, &audiences).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &next));
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
async fn tokens_that_have_expired_are_not_kept_for_ever() {
    let (cache, _signing) = cache(10);
    fetch(&cache, "web", &["a"]).await.unwrap();
    fetch(&cache, "web", &["b"]).await.unwrap();
    tokio::time::advance(Duration::from_secs(101)).await;
    fetch(&cache, "web", &["c"]).await.unwrap();
    assert_eq!(cache.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_of_a_tainted_key_or_a_changed_entry_are_forgotten() {
    let (cache, _signing) = cache(10);
    for entry in ["web", "api", "db"] {
        fetch(&cache, entry, &["a"]).await.unwrap();
    }
    cache.forget_authorities(&HashSet::from(["key-web".to_owned()]));
    assert_eq!(cache.len(), 2);
    cache.forget_entries(&HashSet::from(["api".to_owned()]));
    assert_eq!(cache.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_token_asked_for_before_its_entry_was_forgotten_is_not_kept() {
    let (cache, _signing) = cache(10);
    let forget = async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        cache.forget_entries(&HashSet::from(["web".to_owned()]));
    };
    let (answer, ()) = tokio::join!(fetch(&cache, "web", &["a"]), forget);
    assert!(answer.is_ok());
    assert!(cache.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_token_that_was_forgotten_meanwhile_does_not_stand_in_for_a_new_one() {
    let (cache, signing) = cache(10);
    fetch(&cache, "web", &["a"]).await.unwrap();
    signing.is_silent.store(true, Ordering::SeqCst);
    tokio::time::advance(Duration::from_secs(90)).await;
    let forget = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        cache.forget_authorities(&HashSet::from(["key-web".to_owned()]));
    };
    let (answer, ()) = tokio::join!(fetch(&cache, "web", &["a"]), forget);
    assert!(matches!(answer, Err(JwtError::Unavailable(_))), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn who_has_a_token_that_the_cache_does_not_keep_hears_that_it_is_forgotten() {
    let (cache, _signing) = cache(1);
    let now = cache.inner.clock.now();
    let held = |entry: &'static str, reuse: bool| {
        let cache = cache.clone();
        async move {
            cache
                .fetch_held(entry, &web(), &names(&["a"]), reuse)
                .await
                .unwrap()
        }
    };
    let (evicted, never_kept) = (held("web", true).await, held("web", false).await);
    let (other, removed) = (held("api", true).await, held("db", false).await);
    assert_eq!(cache.len(), 1);
    cache.forget_authorities(&HashSet::from(["key-web".to_owned()]));
    cache.forget_entries(&HashSet::from(["db".to_owned()]));
    let valid = [evicted, never_kept, other, removed].map(|token| token.is_valid(now));
    assert_eq!(valid, [false, false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn what_was_being_signed_with_a_key_that_is_forgotten_is_asked_for_again() {
    for reuse in [true, false] {
        let (cache, signing) = cache(10);
        let forget = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            for key_id in ["key-web", "key-other"] {
                cache.forget_authorities(&HashSet::from([key_id.to_owned()]));
            }
        };
        let (audiences, id) = (names(&["a"]), web());
        let token = cache.fetch_held("web", &id, &audiences, reuse);
        let (token, ()) = tokio::join!(token, forget);
        assert!(token.unwrap().is_valid(signing.clock.now()));
        assert_eq!(
            signing.calls.load(Ordering::SeqCst),
            2,
            "the first one is of no use"
        );
        cache.fetch_held("api", &id, &audiences, reuse).await.unwrap();
        assert_eq!(signing.calls.load(Ordering::SeqCst), 3);
    }
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
