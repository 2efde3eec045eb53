//! Registration entries.

use super::*;

pub(super) async fn creates_entries_and_answers_each_in_order(store: &dyn Store) {
    let entries: Vec<Entry> = (0..90).map(e).collect();
    let created = store.create_entries(entries.clone()).await.unwrap();
    assert_eq!(created.len(), 90);
    for (sent, created) in entries.iter().zip(&created) {
        let EntryCreated::Created(stored) = created else {
            panic!("{created:?}")
        };
        assert_eq!(stored.entry.id, sent.id);
        assert_eq!(stored.entry.revision_number, 0);
        assert!(stored.entry.created_at > 0);
        assert_eq!(store.entry(&sent.id).await.unwrap().as_ref(), Some(stored));
    }
    assert_eq!(store.entry("nobody").await.unwrap(), None);
}

pub(super) async fn similar_entries_and_taken_ids_are_refused_in_one_call_as_in_many(store: &dyn Store) {
    let first = create(store, e(1)).await;
    let mut alike = e(1).into_parts();
    alike.id = "other".into();
    alike.selectors.reverse();
    let alike = Entry::check(alike, &domain()).unwrap();
    let mut taken = e(2).into_parts();
    taken.id = "e1".into();
    let taken = Entry::check(taken, &domain()).unwrap();
    let mut alike_fresh = e(3).into_parts();
    alike_fresh.id = "third".into();
    let alike_fresh = Entry::check(alike_fresh, &domain()).unwrap();
    let results = store
        .create_entries(vec![alike, taken, e(3), alike_fresh, e(4)])
        .await
        .unwrap();
    assert_eq!(results[0], EntryCreated::Similar(first));
    assert_eq!(results[1], EntryCreated::IdTaken);
    let EntryCreated::Created(third) = &results[2] else {
        panic!("{results:?}")
    };
    assert_eq!(results[3], EntryCreated::Similar(third.clone()));
    assert!(matches!(results[4], EntryCreated::Created(_)));
    let ids: Vec<String> = store
        .list_entries(0, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|s| s.entry.id.clone())
        .collect();
    assert_eq!(ids, ["e1", "e3", "e4"]);
}

pub(super) async fn update_advances_the_revision_number_and_keeps_what_is_the_stores(store: &dyn Store) {
    let before = create(store, e(1)).await;
    let patch: EntryPatch = Box::new(|mut parts| {
        parts.hint = "db".into();
        parts.id = "stolen".into();
        parts.created_at = 7;
        parts.revision_number = 99;
        parts
    });
    let EntryUpdated::Updated(updated) = store.update_entry("e1", patch).await.unwrap() else {
        panic!()
    };
    assert_eq!(updated.row, before.row);
    assert_eq!(
        (updated.entry.id.as_str(), updated.entry.hint.as_str()),
        ("e1", "db")
    );
    assert_eq!(updated.entry.revision_number, 1);
    assert_eq!(updated.entry.created_at, before.entry.created_at);
    let EntryUpdated::Updated(same) = store.update_entry("e1", Box::new(|parts| parts)).await.unwrap() else {
        panic!()
    };
    assert_eq!(same.entry.revision_number, 2);
    assert_eq!(store.entry("e1").await.unwrap(), Some(same));
    let nobody = store
        .update_entry("nobody", Box::new(|parts| parts))
        .await
        .unwrap();
    assert_eq!(nobody, EntryUpdated::NotFound);
    let empty: EntryPatch = Box::new(|mut parts| {
        parts.selectors.clear();
        parts
    });
    let refused = store.update_entry("e1", empty).await.unwrap();
    assert_eq!(refused, EntryUpdated::Refused(EntryError::NoSelectors));
    assert_eq!(store.entry("e1").await.unwrap().unwrap().entry.revision_number, 2);
}

pub(super) async fn an_update_may_make_two_entries_alike(store: &dyn Store) {
    create(store, e(1)).await;
    create(store, e(2)).await;
    let like_first: EntryPatch = Box::new(|mut parts| {
        parts.spiffe_id = id("/w1");
        parts
    });
    let updated = store.update_entry("e2", like_first).await.unwrap();
    assert!(matches!(updated, EntryUpdated::Updated(_)), "{updated:?}");
    // What e2 was is free again.
    let mut free = e(2).into_parts();
    free.id = "free".into();
    create(store, Entry::check(free, &domain()).unwrap()).await;
}

pub(super) async fn deletes_entries_and_says_which_were_unknown(store: &dyn Store) {
    let stored = create(store, e(1)).await;
    let deleted = store
        .delete_entries(vec!["x".into(), "e1".into(), "e1".into()])
        .await
        .unwrap();
    assert_eq!(deleted, [None, Some(stored), None]);
    assert_eq!(store.entry("e1").await.unwrap(), None);
    create(store, e(1)).await;
}

pub(super) async fn pages_by_row_and_never_gives_a_row_again(store: &dyn Store) {
    let rows: Vec<u64> = {
        let created = store.create_entries((0..5).map(e).collect()).await.unwrap();
        created
            .into_iter()
            .map(|created| match created {
                EntryCreated::Created(stored) => stored.row,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert!(rows.is_sorted_by(|a, b| a < b));
    let page: Vec<u64> = store
        .list_entries(rows[1], 2)
        .await
        .unwrap()
        .iter()
        .map(|s| s.row)
        .collect();
    assert_eq!(page, [rows[2], rows[3]]);
    assert!(store.list_entries(u64::MAX, 2).await.unwrap().is_empty());
    store.delete_entry("e4").await.unwrap();
    assert!(create(store, e(4)).await.row > rows[4]);
}

pub(super) async fn expired_entries_are_pruned(store: &dyn Store) {
    for (n, expires_at) in [(1, 0), (2, 1_000), (3, 3_000)] {
        let mut parts = e(n).into_parts();
        parts.expires_at = expires_at;
        create(store, Entry::check(parts, &domain()).unwrap()).await;
    }
    assert_eq!(store.prune_expired_entries(at(1_000)).await.unwrap(), 0);
    assert_eq!(store.prune_expired_entries(at(2_000)).await.unwrap(), 1);
    assert_eq!(store.entry("e2").await.unwrap(), None);
    assert_eq!(store.list_entries(0, 10).await.unwrap().len(), 2);
}

pub(super) async fn entries_need_the_bundles_they_name(store: &dyn Store) {
    let missing = store
        .create_entries(vec![federated(1, &["a.test"]), e(2)])
        .await
        .unwrap();
    assert_eq!(missing[0], EntryCreated::MissingBundle(foreign("a.test")));
    assert!(matches!(missing[1], EntryCreated::Created(_)));
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    assert_eq!(
        create(store, federated(1, &["a.test"]))
            .await
            .entry
            .federates_with,
        [foreign("a.test")]
    );
    let patch: EntryPatch = Box::new(|mut parts| {
        parts.federates_with.push(foreign("b.test"));
        parts
    });
    let updated = store.update_entry("e1", patch).await.unwrap();
    assert_eq!(updated, EntryUpdated::MissingBundle(foreign("b.test")));
}
