//! The embedded store: one SQLite file in WAL mode, one writer with group commit, a few readers.
//!
//! `open` decides whether the file is one of Finial; `writer` owns the only connection that writes; the
//! aggregates are one file each; `history` is the log of changes.

mod agents;
mod bundles;
mod entries;
mod history;
mod journals;
mod open;
mod readers;
mod relationships;
mod tokens;
mod writer;

use std::fs::File;
use std::future::ready;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use finial_identity::process::clock::Clock;
use finial_identity::process::tasks::TaskSet;
use finial_identity::spiffe_id::TrustDomain;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};

use self::history::History;
use self::readers::Readers;
use self::writer::{Work, Writer};
use super::schema;
use super::{OpenError, StoreError};

/// Connections that read in parallel to the writer.
const READERS: usize = 2;

/// A store in a SQLite file.
#[derive(Debug)]
pub struct SqliteStore {
    trust_domain: TrustDomain,
    writer: Writer,
    readers: Readers,
    history: Arc<History>,
    tasks: Mutex<Option<TaskSet>>,
    /// Keeps other servers out of the file.
    _lock: Option<File>,
}

impl SqliteStore {
    /// Opens the store at `path`, or makes one with mode 0600; its directory must exist.
    ///
    /// # Errors
    /// [`OpenError`]: the file is SPIRE's, another program's, a newer version's, another trust
    /// domain's or in use; it is then left as it was.
    pub async fn open(path: &Path, trust_domain: &TrustDomain, clock: Clock) -> Result<Self, OpenError> {
        let opened = open::open(path, trust_domain).await?;
        Self::start(opened.options, Some(opened.lock), trust_domain, clock)
            .await
            .map_err(|cause| OpenError::Store {
                path: path.to_owned(),
                cause,
            })
    }

    /// A store in memory, gone when it is dropped.
    ///
    /// # Errors
    /// [`OpenError::Store`].
    pub async fn in_memory(trust_domain: &TrustDomain, clock: Clock) -> Result<Self, OpenError> {
        let path = Path::new(":memory:");
        let failed = |cause: StoreError| OpenError::Store {
            path: path.to_owned(),
            cause,
        };
        let options =
            SqliteConnectOptions::from_str("sqlite::memory:").map_err(|error| failed(error.into()))?;
        let options = open::durable(options);
        // Lives until the writer's connection has joined, so that the content does.
        let mut first = SqliteConnection::connect_with(&options)
            .await
            .map_err(|error| failed(error.into()))?;
        open::prepare(&mut first, path, trust_domain, schema::SQLITE).await?;
        let store = Self::start(options, None, trust_domain, clock)
            .await
            .map_err(failed)?;
        first.close().await.map_err(|error| failed(error.into()))?;
        Ok(store)
    }

    async fn start(
        options: SqliteConnectOptions,
        lock: Option<File>,
        trust_domain: &TrustDomain,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let mut connection = SqliteConnection::connect_with(&options).await?;
        let head = writer::read_head(&mut connection).await?;
        let readers = Readers::open(options, READERS).await?;
        let history = Arc::new(History::new(head));
        let (writer, queue) = Writer::new();
        let mut tasks = TaskSet::new();
        let work = Work::new(connection, trust_domain.clone(), clock);
        tasks.spawn(
            "store-writer",
            writer::run(work, queue, history.clone(), tasks.stop_signal()),
        );
        Ok(Self {
            trust_domain: trust_domain.clone(),
            writer,
            readers,
            history,
            tasks: Mutex::new(Some(tasks)),
            _lock: lock,
        })
    }

    /// Completes once the store takes no writes any more: it was closed, or its writer has failed,
    /// and then every write gets [`StoreError::Closed`] forever.
    pub async fn closed(&self) {
        self.writer.closed().await;
    }

    /// Finishes the writes that were handed in and closes the file. Later calls get
    /// [`StoreError::Closed`]. Without it, dropping the store loses nothing that was acknowledged.
    pub async fn close(&self) {
        let tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(tasks) = tasks
            && let Err(error) = tasks.run_until_first_exit(ready(())).await
        {
            tracing::error!(%error, "store did not close cleanly");
        }
        self.readers.close().await;
    }
}

/// Splits rows into statements of few different sizes, so that each is prepared once.
fn chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    const SIZES: [usize; 4] = [64, 16, 4, 1];
    let mut rest = rows;
    std::iter::from_fn(move || {
        let size = SIZES.into_iter().find(|size| *size <= rest.len())?;
        let (chunk, after) = rest.split_at(size);
        rest = after;
        Some(chunk)
    })
}

/// `(?,?),(?,?)` for so many columns and rows.
fn placeholders(columns: usize, rows: usize) -> String {
    let row = format!("({})", vec!["?"; columns].join(","));
    vec![row; rows].join(",")
}

/// A row's number as SQLite has it.
fn row_number(row: i64) -> u64 {
    row.cast_unsigned()
}

/// A page token as SQLite has it; one that no row can have lies behind all rows.
fn row_bound(after_row: u64) -> i64 {
    i64::try_from(after_row).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
