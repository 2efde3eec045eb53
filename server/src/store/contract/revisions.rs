//! Revisions and their changes.

use super::*;

/// One letter and the key of each change after a revision.
pub(super) async fn changes(store: &dyn Store, after: Revision) -> Vec<String> {
    let changes = store.changes_since(after).await.unwrap();
    for (n, change) in (after.n + 1..).zip(&changes) {
        assert_eq!(change.revision.n, n);
    }
    changes
        .into_iter()
        .map(|change| match change.what {
            What::EntryPut(stored) => format!("+{}", stored.entry.id),
            What::EntryDeleted(id) => format!("-{id}"),
            What::AgentPut(agent) => format!("+{}", agent.id),
            What::AgentDeleted(id) => format!("-{id}"),
            What::BundlePut(bundle) => format!("+{}", bundle.trust_domain),
            What::BundleDeleted(name) => format!("-{name}"),
        })
        .collect()
}

pub(super) async fn revisions_are_dense_and_carry_what_changed(store: &dyn Store) {
    let committed = store.committed();
    assert_eq!(store.revision(), Revision::START);
    store.create_entries(vec![e(1), e(1), e(2)]).await.unwrap();
    assert_eq!(committed.borrow().n, 2);
    let middle = store.revision();
    store.put_agent(agent("/spire/agent/a", "1", &[])).await.unwrap();
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    store.delete_entry("e1").await.unwrap();
    store.delete_agent(&id("/spire/agent/a")).await.unwrap();
    store
        .delete_bundle(&foreign("a.test"), BundleDeleteMode::Restrict)
        .await
        .unwrap();
    let a = id("/spire/agent/a");
    let later = [
        format!("+{a}"),
        "+a.test".into(),
        "-e1".into(),
        format!("-{a}"),
        "-a.test".into(),
    ];
    assert_eq!(changes(store, middle).await, later);
    assert_eq!(changes(store, Revision::START).await[..2], ["+e1", "+e2"]);
    assert!(changes(store, store.revision()).await.is_empty());
    assert_eq!(store.entries_deleted_since(0).await.unwrap(), 1);
    assert_eq!(store.entries_deleted_since(store.revision().n).await.unwrap(), 0);
}

pub(super) async fn what_changes_nothing_makes_no_revision(store: &dyn Store) {
    create(store, e(1)).await;
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    store.put_agent(agent("/spire/agent/a", "1", &[])).await.unwrap();
    let before = store.revision();
    store.create_entries(vec![e(1)]).await.unwrap();
    store.delete_entry("nobody").await.unwrap();
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    store.set_agent_version(&id("/spire/agent/a"), "").await.unwrap();
    store.create_join_token("t", 1).await.unwrap();
    store.save_journal("k", b"j").await.unwrap();
    assert_eq!(store.revision(), before);
}

pub(super) async fn another_history_is_recognised(store: &dyn Store) {
    store.create_entries(vec![e(1), e(2), e(3)]).await.unwrap();
    let head = store.revision();
    let is_other = async |n, mark| {
        matches!(
            store.changes_since(Revision { n, mark }).await,
            Err(HistoryError::Other { .. })
        )
    };
    assert!(is_other(head.n, head.mark ^ 1).await);
    assert!(is_other(head.n + 1, head.mark).await);
    assert!(is_other(1, 12_345).await);
    assert!(is_other(0, 1).await);
}

pub(super) async fn many_writers_at_once_lose_nothing(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..20 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..10 {
                let entry = e(writer * 10 + n);
                let id = entry.id.clone();
                create(&*store, entry).await;
                assert!(store.entry(&id).await.unwrap().is_some());
                if n % 3 == 0 {
                    store.delete_entry(&id).await.unwrap().unwrap();
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.list_entries(0, 1_000).await.unwrap().len(), 120);
    assert_eq!(store.revision().n, 280);
    assert_eq!(changes(&*store, Revision::START).await.len(), 280);
}

pub(super) async fn long_batches_are_one_commit_of_dense_revisions(store: &dyn Store) {
    let created = store.create_entries((0..1_000).map(e).collect()).await.unwrap();
    assert!(
        created
            .iter()
            .all(|created| matches!(created, EntryCreated::Created(_)))
    );
    assert_eq!(store.revision().n, 1_000);
    let deleted = store
        .delete_entries((0..1_000).map(|n| format!("e{n}")).collect())
        .await
        .unwrap();
    assert_eq!(deleted.iter().flatten().count(), 1_000);
    assert_eq!(changes(store, Revision::START).await.len(), 2_000);
}
