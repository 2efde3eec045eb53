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
