//! A few connections that read in parallel to the writer. We have our own pool because the one of sqlx uses
//! timers, which expire too early when a test pauses time.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection, SqliteConnection};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::store::StoreError;

/// Connections that read.
#[derive(Debug)]
pub(super) struct Readers {
    idle: Mutex<Vec<SqliteConnection>>,
    turns: Semaphore,
}

/// One connection, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reader<'r> {
    connection: Option<SqliteConnection>,
    readers: &'r Readers,
    _turn: SemaphorePermit<'r>,
}

impl Readers {
    /// Opens `count` connections that cannot write.
    pub(super) async fn open(options: SqliteConnectOptions, count: usize) -> Result<Self, StoreError> {
        let options = options.pragma("query_only", "ON");
        let mut idle = Vec::with_capacity(count);
        for _ in 0..count {
            idle.push(SqliteConnection::connect_with(&options).await?);
        }
        Ok(Self {
            idle: Mutex::new(idle),
            turns: Semaphore::new(count),
        })
    }

    /// Waits for a connection.
    pub(super) async fn acquire(&self) -> Result<Reader<'_>, StoreError> {
        let turn = self.turns.acquire().await.map_err(|_closed| StoreError::Closed)?;
        let connection = self.idle().pop().ok_or(StoreError::Closed)?;
        Ok(Reader {
            connection: Some(connection),
            readers: self,
            _turn: turn,
        })
    }

    /// Closes the connections; later callers get [`StoreError::Closed`].
    pub(super) async fn close(&self) {
        self.turns.close();
        let idle = std::mem::take(&mut *self.idle());
        for connection in idle {
            if let Err(error) = connection.close().await {
                tracing::warn!(%error, "store reader did not close cleanly");
            }
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<SqliteConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deref for Reader<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.connection.as_ref().expect("taken by drop only")
    }
}

impl DerefMut for Reader<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.connection.as_mut().expect("taken by drop only")
    }
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        if let Some(connection) = self.connection.take()
            && !self.readers.turns.is_closed()
        {
            self.readers.idle().push(connection);
        }
    }
}
