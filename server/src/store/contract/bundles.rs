//! Bundles and journals.

use super::*;

pub(super) async fn the_own_bundle_counts_effective_edits(store: &dyn Store) {
    let own = domain();
    let edited = update_bundle(store, &own, |bundle| {
        bundle.refresh_hint = 60;
        "done"
    });
    let (stored, value) = edited.await.unwrap().unwrap();
    assert_eq!((stored.bundle.sequence_number, value), (1, "done"));
    let revision = store.revision();
    let (same, ()) = update_bundle(store, &domain(), |_| ()).await.unwrap().unwrap();
    assert_eq!(same.bundle.sequence_number, 1);
    assert_eq!(store.revision(), revision);
    let (next, ()) = update_bundle(store, &domain(), |bundle| bundle.refresh_hint = 61)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(next.bundle.sequence_number, 2);
    assert_eq!(store.bundle(&domain()).await.unwrap(), Some(next));
}

pub(super) async fn a_foreign_bundle_is_kept_as_it_is(store: &dyn Store) {
    let name = foreign("a.test");
    assert!(update_bundle(store, &name, |_| ()).await.unwrap().is_none());
    assert!(
        store
            .create_bundle(bundle("a.test", 5, 77))
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        store
            .create_bundle(bundle("a.test", 6, 78))
            .await
            .unwrap()
            .is_none()
    );
    let (edited, ()) = update_bundle(store, &name, |bundle| bundle.refresh_hint = 9)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (edited.bundle.refresh_hint, edited.bundle.sequence_number),
        (9, 77)
    );
    let put = store.put_bundle(bundle("a.test", 1, 3)).await.unwrap();
    assert_eq!(put.row, edited.row);
    assert_eq!(store.bundle(&name).await.unwrap().unwrap(), put);
    store.put_bundle(bundle("b.test", 0, 0)).await.unwrap();
    let names: Vec<String> = store
        .list_bundles(put.row, 10)
        .await
        .unwrap()
        .iter()
        .map(|s| s.bundle.trust_domain.to_string())
        .collect();
    assert_eq!(names, ["b.test"]);
}

pub(super) async fn deleting_a_bundle_respects_the_mode(store: &dyn Store) {
    for name in ["a.test", "b.test", "c.test"] {
        store.put_bundle(bundle(name, 0, 0)).await.unwrap();
    }
    create(store, federated(1, &["a.test", "b.test"])).await;
    create(store, federated(2, &["b.test"])).await;
    let delete = async |name, mode| store.delete_bundle(&foreign(name), mode).await.unwrap();
    assert_eq!(
        delete("b.test", BundleDeleteMode::Restrict).await,
        BundleDeleted::InUse(2)
    );
    assert_eq!(
        delete("c.test", BundleDeleteMode::Restrict).await,
        BundleDeleted::Deleted(0)
    );
    assert_eq!(
        delete("c.test", BundleDeleteMode::Restrict).await,
        BundleDeleted::NotFound
    );
    assert_eq!(
        delete("a.test", BundleDeleteMode::Dissociate).await,
        BundleDeleted::Deleted(1)
    );
    let first = store.entry("e1").await.unwrap().unwrap().entry;
    assert_eq!(
        (first.federates_with.as_slice(), first.revision_number),
        ([foreign("b.test")].as_slice(), 1)
    );
    assert_eq!(
        delete("b.test", BundleDeleteMode::Delete).await,
        BundleDeleted::Deleted(2)
    );
    assert!(store.list_entries(0, 10).await.unwrap().is_empty());
}

fn relationship(name: &str, url: &str, profile: EndpointProfile) -> Relationship {
    Relationship {
        trust_domain: foreign(name),
        endpoint_url: EndpointUrl::parse(url).unwrap(),
        profile,
    }
}

pub(super) async fn relationships_are_stored_with_the_bundles_that_come_with_them(store: &dyn Store) {
    let id = SpiffeId::parse("spiffe://b.test/spire/server").unwrap();
    let web = relationship("a.test", "https://a.test/b?x=1", EndpointProfile::HttpsWeb);
    let spiffe = relationship("b.test", "https://b.test", EndpointProfile::HttpsSpiffe(id));
    let a = store
        .create_relationship(web.clone(), None)
        .await
        .unwrap()
        .unwrap();
    let first = Some(bundle("b.test", 1, 1));
    let b = store
        .create_relationship(spiffe.clone(), first)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&a.relationship, &b.relationship), (&web, &spiffe));
    assert_eq!(
        store.list_relationships(0, 10).await.unwrap(),
        [a.clone(), b.clone()]
    );
    assert_eq!(
        store.list_relationships(a.row, 10).await.unwrap(),
        std::slice::from_ref(&b)
    );
    assert_eq!(
        store.list_relationships(0, 1).await.unwrap(),
        std::slice::from_ref(&a)
    );
    assert_eq!(
        store.relationship(&foreign("b.test")).await.unwrap(),
        Some(b.clone())
    );

    // One that is refused leaves the bundle as it was.
    let hint = async || {
        store
            .bundle(&foreign("b.test"))
            .await
            .unwrap()
            .unwrap()
            .bundle
            .refresh_hint
    };
    let again = store.create_relationship(spiffe.clone(), Some(bundle("b.test", 2, 2)));
    assert_eq!(again.await.unwrap(), None);
    assert_eq!(hint().await, 1);
    let change: fn(Relationship) -> Relationship = |before| Relationship {
        trust_domain: foreign("stolen.test"),
        profile: EndpointProfile::HttpsWeb,
        ..before
    };
    let (missing, second) = (foreign("c.test"), bundle("b.test", 2, 2));
    let unknown = store.update_relationship(&missing, Box::new(change), Some(second));
    assert_eq!(unknown.await.unwrap(), None);
    assert_eq!(hint().await, 1);
    let updated = store
        .update_relationship(&foreign("b.test"), Box::new(change), Some(bundle("b.test", 2, 2)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(hint().await, 2);
    assert_eq!(updated.row, b.row);
    let expected = relationship("b.test", "https://b.test", EndpointProfile::HttpsWeb);
    assert_eq!(updated.relationship, expected);
    assert_eq!(
        store.relationship(&foreign("b.test")).await.unwrap(),
        Some(updated)
    );

    assert!(store.delete_relationship(&foreign("b.test")).await.unwrap());
    assert!(!store.delete_relationship(&foreign("b.test")).await.unwrap());
    assert_eq!(store.relationship(&foreign("b.test")).await.unwrap(), None);
    assert_eq!(hint().await, 2, "the bundle stays");
    let anew = store.create_relationship(spiffe, None).await.unwrap().unwrap();
    assert!(anew.row > b.row, "rows are not given again");
}

pub(super) async fn journals_are_replaced_by_key(store: &dyn Store) {
    store.save_journal("k1", b"one").await.unwrap();
    store.save_journal("k2", b"two").await.unwrap();
    store.save_journal("k1", b"three").await.unwrap();
    let expected = [
        ("k1".to_owned(), b"three".to_vec()),
        ("k2".to_owned(), b"two".to_vec()),
    ];
    assert_eq!(store.list_journals().await.unwrap(), expected);
    assert!(store.delete_journal("k1").await.unwrap());
    assert!(!store.delete_journal("k1").await.unwrap());
}
