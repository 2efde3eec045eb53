//! What is asked of the server, and what its refusals become.

use finial_identity::jwt::parse_unverified;
use tonic::Code;

use super::*;

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
