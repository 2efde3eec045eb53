//! What becomes of tokens whose key is tainted, or whose entry is changed.

use super::*;

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
