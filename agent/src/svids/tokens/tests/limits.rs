//! How much is kept.

use super::*;

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
async fn a_huge_token_is_handed_out_and_not_kept() {
    let (cache, _signing) = cache(10);
    let audience = "a".repeat(MAX_CACHED_TOKEN);
    assert!(fetch(&cache, "web", &[&audience]).await.is_ok());
    assert!(cache.is_empty());
}
