//! Opens the file: which program and which trust domain it belongs to, and which schema it has.
//!
//! A file of another program is recognised by reading its bytes, without SQLite, which would write
//! to it or make files next to it. A new file is made under another name and renamed when it is complete, so
//! that it has our application id in its header from the beginning.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::spiffe_id::TrustDomain;
use rustix::fs::{FlockOperation, flock};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, Row, SqliteConnection};

use crate::store::schema::{self, Migration};
use crate::store::{OpenError, StoreError};

/// "FINL", in the header of each of our files.
const APPLICATION_ID: u32 = 0x4649_4e4c;
const APPLICATION_ID_OFFSET: usize = 68;
const HEADER_BYTES: usize = 100;
const MAGIC: &[u8] = b"SQLite format 3\0";
/// How much of a foreign file is searched for the names of SPIRE's tables.
const SEARCHED_BYTES: u64 = 16 * 1024 * 1024;
/// SPIRE's tables, at least one of which a SPIRE database names.
const SPIRE_TABLES: [&[u8]; 3] = [
    b"registered_entries",
    b"attested_node_entries",
    b"federated_registration_entries",
];
const FILE_MODE: u32 = 0o600;

/// A file that is ours and up to date.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) options: SqliteConnectOptions,
    /// Keeps other servers out for as long as it is open.
    pub(super) lock: File,
}

/// Opens or makes the file at `path`.
pub(super) async fn open(path: &Path, trust_domain: &TrustDomain) -> Result<Opened, OpenError> {
    let exists = recognise(path)?;
    let lock = lock(path)?;
    if exists {
        restrict(path)?;
    } else {
        create(path, trust_domain).await?;
    }
    let options = connect_options(path).journal_mode(SqliteJournalMode::Wal);
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .map_err(|error| failed(path, error))?;
    prepare(&mut connection, path, trust_domain, schema::SQLITE).await?;
    connection.close().await.map_err(|error| failed(path, error))?;
    Ok(Opened { options, lock })
}

/// Settings of every connection to a file.
pub(super) fn connect_options(path: &Path) -> SqliteConnectOptions {
    durable(SqliteConnectOptions::new().filename(path))
}

/// Each commit survives a power cut; a lock held by a backup tool is waited for.
pub(super) fn durable(options: SqliteConnectOptions) -> SqliteConnectOptions {
    options
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(5))
}

/// Brings a store to the newest schema and checks whose it is.
pub(super) async fn prepare(
    connection: &mut SqliteConnection,
    path: &Path,
    trust_domain: &TrustDomain,
    migrations: &'static [Migration],
) -> Result<(), OpenError> {
    let found = migrate(connection, migrations)
        .await
        .map_err(|cause| OpenError::Store {
            path: path.to_owned(),
            cause,
        })?;
    let supported = schema::newest(migrations);
    if found > supported {
        return Err(OpenError::Newer {
            path: path.to_owned(),
            found,
            supported,
        });
    }
    let owner = own(connection, trust_domain)
        .await
        .map_err(|error| failed(path, error))?;
    if owner != trust_domain.as_str() {
        return Err(OpenError::OtherTrustDomain {
            path: path.to_owned(),
            stored: owner,
            configured: trust_domain.clone(),
        });
    }
    Ok(())
}

/// True when the file is ours, false when it is missing or empty.
fn recognise(path: &Path) -> Result<bool, OpenError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(file_error(path, "read", error)),
    };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    Read::by_ref(&mut file)
        .take(HEADER_BYTES as u64)
        .read_to_end(&mut header)
        .map_err(|error| file_error(path, "read", error))?;
    if header.is_empty() && !wal(path).exists() {
        return Ok(false);
    }
    let application_id = header.get(APPLICATION_ID_OFFSET..APPLICATION_ID_OFFSET + 4);
    if header.starts_with(MAGIC) && application_id == Some(&APPLICATION_ID.to_be_bytes()) {
        return Ok(true);
    }
    if names_spire_tables(path)? || (wal(path).exists() && names_spire_tables(&wal(path))?) {
        return Err(OpenError::SpireDatabase(path.to_owned()));
    }
    Err(OpenError::ForeignFile(path.to_owned()))
}

fn names_spire_tables(path: &Path) -> Result<bool, OpenError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(SEARCHED_BYTES).read_to_end(&mut content))
        .map_err(|error| file_error(path, "read", error))?;
    Ok(SPIRE_TABLES
        .iter()
        .any(|table| content.windows(table.len()).any(|window| window == *table)))
}

/// One server on one file. The lock is a separate file next to it: SQLite's own locks would be lost with the
/// first descriptor of the file that is closed.
fn lock(path: &Path) -> Result<File, OpenError> {
    let lock_path = beside(path, "-lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(FILE_MODE)
        .open(&lock_path)
        .map_err(|error| file_error(&lock_path, "created", error))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse(path.to_owned())),
        Err(error) => Err(file_error(&lock_path, "locked", error.into())),
    }
}

fn restrict(path: &Path) -> Result<(), OpenError> {
    fs::set_permissions(path, Permissions::from_mode(FILE_MODE))
        .map_err(|error| file_error(path, "restricted", error))
}

/// Makes a complete store under another name and gives it its name.
async fn create(path: &Path, trust_domain: &TrustDomain) -> Result<(), OpenError> {
    let fresh = beside(path, "-new");
    for leftover in [
        fresh.clone(),
        beside(&fresh, "-journal"),
        beside(&fresh, "-wal"),
        beside(&fresh, "-shm"),
    ] {
        match fs::remove_file(&leftover) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file_error(&leftover, "removed", error));
            }
            _ => {}
        }
    }
    OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(FILE_MODE)
        .open(&fresh)
        .map_err(|error| file_error(&fresh, "created", error))?;
    let options = connect_options(&fresh)
        .journal_mode(SqliteJournalMode::Delete)
        .pragma("application_id", APPLICATION_ID.to_string());
    let mut connection = SqliteConnection::connect_with(&options)
        .await
        .map_err(|error| failed(path, error))?;
    prepare(&mut connection, path, trust_domain, schema::SQLITE).await?;
    connection.close().await.map_err(|error| failed(path, error))?;
    File::open(&fresh)
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&fresh, path))
        .and_then(|()| sync_directory(path))
        .map_err(|error| file_error(path, "created", error))
}

fn sync_directory(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => File::open(parent)?.sync_all(),
        _ => File::open(".")?.sync_all(),
    }
}

/// Applies the missing steps and returns the version that is then there.
async fn migrate(
    connection: &mut SqliteConnection,
    migrations: &'static [Migration],
) -> Result<i64, StoreError> {
    run(
        connection,
        "CREATE TABLE IF NOT EXISTS schema_versions (version INTEGER PRIMARY KEY) STRICT",
    )
    .await?;
    let row = sqlx::query("SELECT COALESCE(MAX(version), 0) FROM schema_versions")
        .fetch_one(&mut *connection)
        .await?;
    let found: i64 = row.try_get(0)?;
    for migration in migrations.iter().filter(|migration| migration.version > found) {
        let mut transaction = connection.begin().await?;
        run(&mut transaction, migration.statements).await?;
        sqlx::query("INSERT INTO schema_versions (version) VALUES (?)")
            .bind(migration.version)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
    }
    Ok(found.max(schema::newest(migrations)))
}

async fn run(connection: &mut SqliteConnection, statements: &'static str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(statements))
        .execute(connection)
        .await?;
    Ok(())
}

/// Writes the trust domain into a new store and returns the one that is stored.
async fn own(connection: &mut SqliteConnection, trust_domain: &TrustDomain) -> Result<String, sqlx::Error> {
    sqlx::query("INSERT INTO owner (one, trust_domain) VALUES (1, ?) ON CONFLICT DO NOTHING")
        .bind(trust_domain.as_str())
        .execute(&mut *connection)
        .await?;
    let row = sqlx::query("SELECT trust_domain FROM owner")
        .fetch_one(connection)
        .await?;
    row.try_get(0)
}

fn wal(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

fn file_error(path: &Path, action: &'static str, cause: io::Error) -> OpenError {
    OpenError::File {
        path: path.to_owned(),
        action,
        cause,
    }
}

fn failed(path: &Path, error: sqlx::Error) -> OpenError {
    OpenError::Store {
        path: path.to_owned(),
        cause: error.into(),
    }
}
