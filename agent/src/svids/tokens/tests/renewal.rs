//! When a token is replaced, and who waits for that.

use super::*;

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
async fn who_has_a_token_already_waits_for_its_successor() {
    let (cache, _signing) = cache(10);
    let (id, audiences) = (web(), names(&["a"]));
    let first = cache.fetch_held("web", &id, &audiences, true).await.unwrap();
    tokio::time::advance(Duration::from_secs(60)).await;
    let next = cache.renew_held("web", &id, &audiences).await.unwrap();
    assert!(!Arc::ptr_eq(&first, &next));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_back_puts_off_no_renewal() {
    let (cache, signing) = cache(10);
    let first = fetch(&cache, "web", &["a"]).await.unwrap();
    signing.clock.shift(-time::Duration::hours(1));
    tokio::time::advance(Duration::from_secs(49)).await;
    assert_eq!(fetch(&cache, "web", &["a"]).await.unwrap().token, first.token);
    tokio::time::advance(Duration::from_secs(2)).await;
    let second = renewing(&cache, async {
        assert_eq!(fetch(&cache, "web", &["a"]).await.unwrap().token, first.token);
        tokio::time::sleep(Duration::from_millis(20)).await;
        fetch(&cache, "web", &["a"]).await.unwrap()
    })
    .await;
    assert_ne!(first.token, second.token);
    // What has no life left by the time that has passed is not handed out where there is a new one.
    signing.clock.shift(-time::Duration::hours(1));
    tokio::time::advance(Duration::from_secs(101)).await;
    let third = fetch(&cache, "web", &["a"]).await.unwrap();
    assert_ne!(second.token, third.token);
    assert_eq!(signing.calls.load(Ordering::SeqCst), 3);
}
