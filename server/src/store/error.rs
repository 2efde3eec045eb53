//! Errors of stores.

use std::error::Error as StdError;
use std::path::PathBuf;
use std::sync::Arc;

use finial_identity::spiffe_id::TrustDomain;
use thiserror::Error;

/// A cause that several callers get, because they shared a transaction.
pub type SharedCause = Arc<dyn StdError + Send + Sync>;

/// Why the store could not do what was asked. Nothing that was acknowledged before is lost, and
/// what got the error was not done.
#[derive(Clone, Debug, Error)]
pub enum StoreError {
    /// No space is left for the file.
    #[error("store is out of disk space: {0}")]
    Full(SharedCause),
    /// Somebody else held the store for too long.
    #[error("store is locked by another process: {0}")]
    Locked(SharedCause),
    /// What is stored cannot be read.
    #[error("store is corrupted: {0}")]
    Corrupted(SharedCause),
    /// The file cannot be read or written.
    #[error("store failed to read or write: {0}")]
    Io(SharedCause),
    /// The store was closed.
    #[error("store is closed")]
    Closed,
    /// Anything else.
    #[error("store failed: {0}")]
    Internal(SharedCause),
}

impl StoreError {
    /// A record that does not decode.
    pub(super) fn unreadable(what: &'static str, key: &str, cause: impl StdError) -> Self {
        Self::Corrupted(Arc::new(Unreadable {
            what,
            key: key.to_owned(),
            cause: cause.to_string(),
        }))
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        if matches!(error, sqlx::Error::WorkerCrashed) {
            return Self::Closed;
        }
        if matches!(error, sqlx::Error::Io(_)) {
            return Self::Io(Arc::new(error));
        }
        // The low byte of SQLite's extended code is the primary code (sqlite.org/rescode.html).
        let code = error
            .as_database_error()
            .and_then(|error| error.code())
            .and_then(|code| code.parse::<i32>().ok())
            .map(|code| code & 0xff);
        let cause: SharedCause = Arc::new(error);
        match code {
            Some(5 | 6) => Self::Locked(cause),
            Some(8 | 10 | 14) => Self::Io(cause),
            Some(11 | 26) => Self::Corrupted(cause),
            Some(13) => Self::Full(cause),
            _ => Self::Internal(cause),
        }
    }
}

#[derive(Debug, Error)]
#[error("{what} {key:?} cannot be read: {cause}")]
struct Unreadable {
    what: &'static str,
    key: String,
    cause: String,
}

/// Why a store is not opened. The file is as it was.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The file is SPIRE's.
    #[error(
        "{} is a SPIRE database, which Finial does not open: name another file in connection_string and register the entries again",
        .0.display()
    )]
    SpireDatabase(PathBuf),
    /// The file is neither empty nor Finial's.
    #[error("{} is not a Finial database: name another file in connection_string", .0.display())]
    ForeignFile(PathBuf),
    /// A newer version of Finial wrote the file.
    #[error(
        "{} has schema version {found}, newer than {supported}, the newest that this version of Finial knows: start the newer version",
        path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The version found.
        found: i64,
        /// The newest version known here.
        supported: i64,
    },
    /// The file belongs to another trust domain.
    #[error("{} belongs to trust domain {stored}, not to the configured {configured}", path.display())]
    OtherTrustDomain {
        /// The file.
        path: PathBuf,
        /// The trust domain that made it.
        stored: String,
        /// The trust domain of the configuration.
        configured: TrustDomain,
    },
    /// Another server has the file.
    #[error("{} is in use by another server", .0.display())]
    InUse(PathBuf),
    /// The file cannot be made or read.
    #[error("database {} cannot be {action}: {cause}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        cause: std::io::Error,
    },
    /// The store failed.
    #[error("database {} cannot be opened: {cause}", path.display())]
    Store {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        cause: StoreError,
    },
}
