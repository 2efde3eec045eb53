//! Content of the store that is held back.

use super::*;

#[tokio::test]
async fn another_history_is_held_back_until_released() {
    let setup = setup().await;
    setup.create(vec![child(1)]).await;
    setup.registry.catch_up().await.unwrap();
    let foreign = Revision {
        n: setup.registry.applied().n,
        mark: 1,
    };
    setup.registry.write().loaded_at(foreign);
    setup.registry.applied.send_replace(foreign);
    setup.store.delete_entry("e1").await.unwrap();
    assert!(matches!(
        setup.registry.catch_up().await,
        Err(RegistryError::Held(_))
    ));
    assert!(matches!(
        &*setup.registry.following().borrow(),
        Following::Held(_)
    ));
    assert!(setup.registry.held().is_some());
    assert!(setup.registry.entry("e1").is_some(), "memory stays as it was");
    assert!(
        setup
            .registry
            .authorized_entry(&id(AGENT), "nobody")
            .await
            .is_err(),
        "no refusal while held"
    );
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    setup.registry.release().await.unwrap();
    assert_eq!(*setup.registry.following().borrow(), Following::Yes);
    assert!(setup.registry.entry("e1").is_none());
    assert!(
        matches!(next_of_entries(&mut feed).await, FeedEvent::Snapshot { entries, .. } if entries.is_empty())
    );
}

/// A registry that stands at the revision of an earlier life of the store.
async fn stale(directory: &TempDir, meanwhile: &'static str) -> Arc<Registry> {
    let store = open(directory).await;
    store.create_entries((0..10).map(child).collect()).await.unwrap();
    let core = super::tail::load(&*store, &domain()).await.unwrap();
    store
        .delete_entries((0..8).map(|n| format!("e{n}")).collect())
        .await
        .unwrap();
    store.close().await;
    drop(store);
    let path = directory.path().join("datastore.sqlite3");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options)
        .await
        .unwrap();
    sqlx::raw_sql(meanwhile).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let store = open(directory).await;
    Arc::new(Registry {
        sources: sources::Sources::default(),
        loaded_at: tokio::time::Instant::now(),
        askable: RwLock::default(),
        hops: Mutex::default(),
        store,
        trust_domain: domain(),
        clock: Clock::system(),
        tail: Tail::new(),
        applied: watch::Sender::new(core.applied()),
        bundles: watch::Sender::new(core.bundles.clone()),
        core: RwLock::new(core),
    })
}

#[tokio::test]
async fn a_reload_that_loses_most_entries_needs_an_explanation_in_the_log() {
    // Row 10 of the log is the one that the registry stands at; rows 11 to 18 are the deletions.
    let directory = tempfile::tempdir().unwrap();
    let explained = stale(&directory, "DELETE FROM changes WHERE n <= 10").await;
    explained.catch_up().await.unwrap();
    assert_eq!(explained.entry_count(), 2);

    let directory = tempfile::tempdir().unwrap();
    let unexplained = stale(&directory, "DELETE FROM changes WHERE n <= 15").await;
    assert!(matches!(
        unexplained.catch_up().await,
        Err(RegistryError::Held(_))
    ));
    assert_eq!(unexplained.entry_count(), 10);
    unexplained.release().await.unwrap();
    assert_eq!(unexplained.entry_count(), 2);
}
