//! Derived entries that wait for the place of those that they give way to.

use finial_identity::entry::EntryParts;

use super::*;

fn of(source: &str, created_at: i64) -> Derived {
    let id = format!("k8s.{source}.1");
    let mut parts = entry(&id, "/pod", AGENT, &["k8s:pod-uid:1"]).into_parts();
    parts.created_at = created_at;
    Derived {
        entry: Arc::new(Entry::check(parts, &domain()).unwrap()),
        origin: "ClusterSPIFFEID r".into(),
    }
}

fn stored(id: &str) -> Entry {
    entry(id, "/pod", AGENT, &["k8s:pod-uid:1"])
}

fn ids(registry: &Registry) -> Vec<String> {
    let entries = registry.entries(0, 9).into_iter();
    entries.map(|stored| stored.entry.id.clone()).collect()
}

/// The ids that come and those that go with the next delta.
async fn delta(feed: &mut Feed) -> (Vec<String>, Vec<String>) {
    match next_of_entries(feed).await {
        FeedEvent::Delta {
            upserts, removals, ..
        } => {
            let upserts = upserts.iter().map(|entry| entry.id.clone()).collect();
            (upserts, removals)
        }
        other => panic!("{other:?} is no delta"),
    }
}

/// A stored entry in whose favour the derived one of `a` gives way, and an agent that knows it.
async fn masked() -> (Setup, Feed) {
    let setup = setup().await;
    setup.create(vec![stored("e1")]).await;
    setup.registry.catch_up().await.unwrap();
    setup.registry.mask(&[of("a", 5)], &[]);
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    (setup, feed)
}

fn one(id: &str) -> Vec<String> {
    vec![id.to_owned()]
}

#[tokio::test]
async fn a_stored_entry_that_goes_and_the_derived_one_that_it_masked_are_one_delta() {
    let (setup, mut feed) = masked().await;
    let registry = &setup.registry;
    setup.store.delete_entry("e1").await.unwrap();
    registry.catch_up().await.unwrap();
    assert_eq!(delta(&mut feed).await, (one("k8s.a.1"), one("e1")));
    assert_eq!(registry.origin("k8s.a.1").as_deref(), Some("ClusterSPIFFEID r"));

    // Its source finds out later, and says nothing new to agents.
    assert!(!registry.gives_way(&of("a", 5).entry));
    registry.apply_derived(&[of("a", 5)], &[]);
    assert!(feed.heartbeat().is_some());
    registry.apply_derived(&[], &["k8s.a.1".into()]);
    assert_eq!(delta(&mut feed).await, (Vec::new(), one("k8s.a.1")));
}

#[tokio::test]
async fn what_took_a_place_gives_it_back_to_a_stored_entry_and_goes_with_its_object() {
    let setup = setup().await;
    let registry = &setup.registry;
    registry.mask(&[of("a", 5)], &[]);
    assert_eq!(ids(registry), ["k8s.a.1"], "nothing has the place by now");
    setup.create(vec![stored("e1")]).await;
    registry.catch_up().await.unwrap();
    assert_eq!(ids(registry), ["e1"]);
    let moved = Box::new(|mut parts: EntryParts| {
        parts.spiffe_id = id("/elsewhere");
        parts
    });
    setup.store.update_entry("e1", moved).await.unwrap();
    registry.catch_up().await.unwrap();
    assert_eq!(ids(registry), ["e1", "k8s.a.1"]);
    let derived_at = || registry.hop(&id(AGENT), "k8s.a.1").derived_at;
    assert!(derived_at().is_some());
    registry.mask(&[], &["k8s.a.1".into()]);
    assert_eq!(ids(registry), ["e1"]);
    assert_eq!(registry.origin("k8s.a.1"), None);
    assert_eq!(derived_at(), None, "nothing of it is kept");
}

#[tokio::test]
async fn of_several_that_wait_the_first_takes_the_place_and_the_next_follows_it() {
    let setup = setup().await;
    let registry = &setup.registry;
    setup.create(vec![stored("e1")]).await;
    registry.catch_up().await.unwrap();
    registry.mask(&[of("c", 5)], &[]);
    registry.mask(&[of("b", 5)], &[]);
    registry.mask(&[of("d", 4)], &[]);
    assert_eq!(ids(registry), ["e1"]);
    setup.store.delete_entry("e1").await.unwrap();
    registry.catch_up().await.unwrap();
    assert_eq!(ids(registry), ["k8s.d.1"], "the older one");
    // Its source publishes it, and takes it back.
    registry.apply_derived(&[of("d", 4)], &[]);
    registry.apply_derived(&[], &["k8s.d.1".into()]);
    assert_eq!(ids(registry), ["k8s.b.1"]);
    registry.mask(&[], &["k8s.b.1".into()]);
    assert_eq!(ids(registry), ["k8s.c.1"]);
}

#[tokio::test]
async fn a_place_that_a_reload_finds_free_is_taken() {
    let (setup, mut feed) = masked().await;
    let registry = &setup.registry;
    setup.store.delete_entry("e1").await.unwrap();
    registry.release().await.unwrap();
    assert_eq!(ids(registry), ["k8s.a.1"]);
    setup.create(vec![stored("e2")]).await;
    registry.release().await.unwrap();
    assert_eq!(ids(registry), ["e2"]);
    setup.store.delete_entry("e2").await.unwrap();
    registry.catch_up().await.unwrap();
    assert_eq!(ids(registry), ["k8s.a.1"]);
    let FeedEvent::Snapshot { entries, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    assert_eq!(entries.len(), 1);
}
