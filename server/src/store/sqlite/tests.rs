#![allow(clippy::disallowed_methods)] // std::fs::write makes the files of others

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::store::testing::{agent, domain, entry};
use crate::store::*;

struct Place {
    _directory: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("datastore.sqlite3");
    Place {
        _directory: directory,
        path,
    }
}

async fn open(path: &Path) -> Result<SqliteStore, OpenError> {
    SqliteStore::open(path, &domain(), Clock::system()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_in_a_file() {
    let directory = tempfile::tempdir().unwrap();
    let count = std::sync::atomic::AtomicUsize::new(0);
    contract::all(async || {
        let n = count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let store = open(&directory.path().join(format!("{n}.sqlite3")))
            .await
            .unwrap();
        Arc::new(store) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keeps_the_contract_in_memory() {
    contract::all(async || {
        let store = SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap();
        Arc::new(store) as Arc<dyn Store>
    })
    .await;
}

#[tokio::test]
async fn content_and_revision_outlive_a_restart() {
    let place = place();
    let store = open(&place.path).await.unwrap();
    store
        .create_entries(vec![entry("a", "/w", "/p", &["u:1"])])
        .await
        .unwrap();
    let revision = store.revision();
    store.close().await;
    let closed = store.create_entries(vec![entry("b", "/w", "/p", &["u:2"])]).await;
    assert!(matches!(closed, Err(StoreError::Closed)), "{closed:?}");
    drop(store);
    let store = open(&place.path).await.unwrap();
    assert_eq!(store.revision(), revision);
    assert!(store.entry("a").await.unwrap().is_some());
    // Nothing is in memory now: the table answers.
    assert_eq!(store.changes_since(Revision::START).await.unwrap().len(), 1);
    assert!(store.changes_since(revision).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_was_acknowledged_outlives_a_store_dropped_in_the_middle() {
    let place = place();
    for round in 0..5 {
        let store = Arc::new(open(&place.path).await.unwrap());
        let (acknowledged, mut received) = tokio::sync::mpsc::unbounded_channel();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let (store, acknowledged) = (store.clone(), acknowledged.clone());
            writers.spawn(async move {
                for n in 0.. {
                    let id = format!("r{round}-w{writer}-{n}");
                    let entries = vec![
                        entry(&id, &format!("/{id}"), "/p", &["u:1"]),
                        entry(&format!("{id}-second"), &format!("/{id}/second"), "/p", &["u:1"]),
                    ];
                    if store.create_entries(entries).await.is_ok() {
                        acknowledged.send(id).unwrap();
                    }
                }
            });
        }
        let mut promised = Vec::new();
        while promised.len() < 50 {
            promised.push(received.recv().await.unwrap());
        }
        writers.abort_all();
        while writers.join_next().await.is_some() {}
        drop(store);
        while let Ok(id) = received.try_recv() {
            promised.push(id);
        }
        let store = open(&place.path).await.unwrap();
        for id in &promised {
            assert!(store.entry(id).await.unwrap().is_some(), "{id}");
            assert!(
                store.entry(&format!("{id}-second")).await.unwrap().is_some(),
                "{id}"
            );
        }
        // A commit that was under way may still have come after the store was opened.
        store.create_join_token("barrier", round).await.unwrap();
        store.take_join_token("barrier").await.unwrap();
        assert_dense(&store).await;
    }
}

async fn assert_dense(store: &SqliteStore) {
    let mut at = Revision::START;
    loop {
        let changes = store.changes_since(at).await.unwrap();
        let Some(last) = changes.last() else { break };
        for (n, change) in (at.n + 1..).zip(&changes) {
            assert_eq!(change.revision.n, n);
        }
        at = last.revision;
    }
    assert_eq!(at, store.revision());
    let entries = store.list_entries(0, u32::MAX).await.unwrap();
    assert_eq!(u64::try_from(entries.len()).unwrap(), at.n);
}

#[tokio::test]
async fn the_files_are_for_the_owner_only() {
    let place = place();
    let store = open(&place.path).await.unwrap();
    store.create_join_token("t", 1).await.unwrap();
    let mut names = 0;
    for file in fs::read_dir(place.path.parent().unwrap()).unwrap() {
        let file = file.unwrap();
        assert_eq!(
            file.metadata().unwrap().permissions().mode() & 0o777,
            0o600,
            "{file:?}"
        );
        names += 1;
    }
    assert!(names >= 3, "file, log and lock");
}

#[tokio::test]
async fn a_loosened_file_is_restricted_again() {
    let place = place();
    open(&place.path).await.unwrap().close().await;
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o644)).unwrap();
    let _store = open(&place.path).await.unwrap();
    assert_eq!(
        fs::metadata(&place.path).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

#[tokio::test]
async fn a_second_server_is_kept_out() {
    let place = place();
    let store = open(&place.path).await.unwrap();
    assert!(matches!(open(&place.path).await, Err(OpenError::InUse(_))));
    drop(store);
    open(&place.path).await.unwrap();
}

#[tokio::test]
async fn another_trust_domains_store_is_refused() {
    let place = place();
    open(&place.path).await.unwrap().close().await;
    let other = TrustDomain::parse("other.test").unwrap();
    let error = SqliteStore::open(&place.path, &other, Clock::system())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.ends_with("belongs to trust domain example.test, not to the configured other.test"),
        "{text}"
    );
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let place = place();
    open(&place.path).await.unwrap().close().await;
    let options = SqliteConnectOptions::new().filename(&place.path);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::query("INSERT INTO schema_versions (version) VALUES (99)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    let error = open(&place.path).await.unwrap_err();
    assert!(matches!(error, OpenError::Newer { found: 99, .. }), "{error}");
    assert!(!error.to_string().contains('\n'));
}

async fn spire_database(path: &Path, is_in_wal: bool) {
    let mode = if is_in_wal { "WAL" } else { "DELETE" };
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .pragma("journal_mode", mode);
    let mut connection = SqliteConnection::connect_with(&options).await.unwrap();
    for statement in [
        "CREATE TABLE migrations (id integer primary key autoincrement, version integer)",
        "CREATE TABLE registered_entries (id integer primary key autoincrement, entry_id varchar(255))",
        "CREATE TABLE attested_node_entries (id integer primary key autoincrement, spiffe_id varchar(255))",
    ] {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    if is_in_wal {
        // As after a kill: the content is in the log only.
        let copy = path.with_extension("copy");
        fs::copy(path, &copy).unwrap();
        let log = path.with_file_name(format!("{}-wal", path.file_name().unwrap().to_str().unwrap()));
        let log_copy = path.with_extension("copy-wal");
        fs::copy(&log, &log_copy).unwrap();
        connection.close().await.unwrap();
        fs::rename(copy, path).unwrap();
        fs::rename(log_copy, log).unwrap();
    } else {
        connection.close().await.unwrap();
    }
}

fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files: Vec<PathBuf> = fs::read_dir(path.parent().unwrap())
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files
        .into_iter()
        .map(|file| (file.clone(), fs::read(file).unwrap()))
        .collect()
}

#[tokio::test]
async fn a_spire_database_is_refused_and_left_as_it_was() {
    for is_in_wal in [false, true] {
        let place = place();
        spire_database(&place.path, is_in_wal).await;
        let before = contents(&place.path);
        let error = open(&place.path).await.unwrap_err();
        assert!(matches!(error, OpenError::SpireDatabase(_)), "{error}");
        assert!(error.to_string().contains("is a SPIRE database"), "{error}");
        assert_eq!(contents(&place.path), before);
    }
}

#[tokio::test]
async fn a_foreign_file_is_refused_and_left_as_it_was() {
    let place = place();
    for content in [
        b"not a database at all".as_slice(),
        &[b"SQLite format 3\0".as_slice(), &[0; 400]].concat(),
        b"S",
    ] {
        fs::write(&place.path, content).unwrap();
        assert!(matches!(open(&place.path).await, Err(OpenError::ForeignFile(_))));
        assert_eq!(fs::read(&place.path).unwrap(), content);
    }
}

#[tokio::test]
async fn an_empty_file_and_leftovers_of_a_killed_start_are_no_obstacle() {
    let place = place();
    fs::write(&place.path, b"").unwrap();
    fs::write(place.path.with_file_name("datastore.sqlite3-new"), b"half a file").unwrap();
    let store = open(&place.path).await.unwrap();
    assert!(store.create_join_token("t", 1).await.unwrap());
}

#[tokio::test]
async fn a_missing_directory_is_an_error_with_its_path() {
    let place = place();
    let path = place.path.parent().unwrap().join("missing/datastore.sqlite3");
    let error = open(&path).await.unwrap_err();
    assert!(matches!(error, OpenError::File { .. }), "{error}");
    assert!(error.to_string().contains("missing/datastore.sqlite3"), "{error}");
}

#[tokio::test]
async fn a_damaged_file_is_an_error_and_not_a_panic() {
    let place = place();
    let store = open(&place.path).await.unwrap();
    let entries = (0..500).map(|n| entry(&format!("e{n}"), &format!("/w{n}"), "/p", &["u:1"]));
    store.create_entries(entries.collect()).await.unwrap();
    store.close().await;
    drop(store);
    let mut content = fs::read(&place.path).unwrap();
    let end = content.len();
    content[4096..end].fill(0xa5);
    fs::write(&place.path, content).unwrap();
    match open(&place.path).await {
        Err(OpenError::Store { cause, .. }) => assert!(matches!(cause, StoreError::Corrupted(_)), "{cause}"),
        Err(other) => panic!("{other}"),
        Ok(store) => {
            let error = store.list_entries(0, 1_000).await.unwrap_err();
            assert!(matches!(error, StoreError::Corrupted(_)), "{error}");
        }
    }
}

#[tokio::test]
async fn a_full_disk_is_an_error_that_loses_nothing() {
    let place = place();
    let store = open(&place.path).await.unwrap();
    store
        .create_entries(vec![entry("kept", "/kept", "/p", &["u:1"])])
        .await
        .unwrap();
    let before = store.revision();
    // The page limit makes SQLite answer as it does when the disk is full.
    limit_pages(&store, 1).await;
    let many = (0..2_000).map(|n| entry(&format!("e{n}"), &format!("/w{n}"), "/p", &["u:1"]));
    let error = store.create_entries(many.collect()).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert_eq!(store.revision(), before);
    assert!(store.entry("kept").await.unwrap().is_some());
    limit_pages(&store, 1_000_000).await;
    store
        .create_entries(vec![entry("after", "/after", "/p", &["u:1"])])
        .await
        .unwrap();
    assert_eq!(store.revision().n, before.n + 1);
}

async fn limit_pages(store: &SqliteStore, pages: u32) {
    store
        .writer
        .write(move |work| {
            Box::pin(async move {
                sqlx::query(sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}")))
                    .execute(&mut work.connection)
                    .await?;
                Ok(())
            })
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn a_failed_job_undoes_only_itself() {
    let store = SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap();
    let failing = store.writer.write(|work| {
        Box::pin(async move {
            sqlx::query("INSERT INTO join_tokens (token, expires_at) VALUES ('half', 1)")
                .execute(&mut work.connection)
                .await?;
            work.record(What::EntryDeleted("half".into()));
            Err::<(), _>(StoreError::Closed)
        })
    });
    let (failed, before, after) = tokio::join!(
        failing,
        store.create_entries(vec![entry("a", "/a", "/p", &["u:1"])]),
        store.put_agent(agent("/spire/agent/a", "1", &[])),
    );
    assert!(failed.is_err() && before.is_ok() && after.is_ok());
    assert_eq!(store.take_join_token("half").await.unwrap(), None);
    assert_eq!(store.revision().n, 2);
    assert_eq!(store.changes_since(Revision::START).await.unwrap().len(), 2);
}

#[tokio::test]
async fn old_changes_are_pruned_and_say_so() {
    let store = SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap();
    let mut first = None;
    for _ in 0..103 {
        store
            .writer
            .write(|work| {
                Box::pin(async move {
                    (0..1_000).for_each(|n| work.record(What::EntryDeleted(format!("e{n}"))));
                    Ok(())
                })
            })
            .await
            .unwrap();
        first.get_or_insert(store.revision());
    }
    let pruned = store.changes_since(first.unwrap()).await.unwrap_err();
    assert!(
        matches!(pruned, HistoryError::Pruned { oldest: 3_001, .. }),
        "{pruned}"
    );
    let row = sqlx::query("SELECT COUNT(*) FROM changes")
        .fetch_one(&mut *store.readers.acquire().await.unwrap())
        .await
        .unwrap();
    assert_eq!(sqlx::Row::get::<i64, _>(&row, 0), 100_000);
}

#[tokio::test]
async fn says_when_it_takes_no_writes_any_more() {
    let store = SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap();
    let mut closed = std::pin::pin!(store.closed());
    assert!(futures_util::poll!(closed.as_mut()).is_pending());
    store.close().await;
    closed.await;
}
