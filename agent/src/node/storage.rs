//! `agent-data.json`: the agent's SVID and bundle on disk, in SPIRE's format.
//!
//! Certificates are listed as base64 of their PEM text; all keys are always written, absent lists as `null`.
//! The file is replaced atomically and is readable by its owner only. A file that cannot be read as such is never
//! overwritten: it is an error that names it, or is set aside when the agent can do without.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use data_encoding::BASE64;
use finial_identity::process::private_file::{self, FileError, FileMode};
use finial_identity::x509::Certificate;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// What an agent remembers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentData {
    /// The agent's SVID, leaf first; empty when there is none.
    pub svid: Vec<Certificate>,
    /// X.509 authorities of the own trust domain; empty when there are none.
    pub bundle: Vec<Certificate>,
    /// The server said that the agent may attest again.
    pub reattestable: bool,
    /// Written by SPIRE's agents when bootstrapping again; kept as found.
    pub bootstrap: BootstrapRecord,
}

/// What SPIRE's agents note about bootstrapping. Kept as found, so that going back to SPIRE loses nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootstrapRecord {
    bootstrap_use: i64,
    bootstrap_start_time: String,
    connection_attempts: i64,
}

/// The file, and what it holds.
#[derive(Debug)]
pub struct AgentStorage {
    path: PathBuf,
    held: Mutex<Held>,
    /// Locked while the file is replaced, which may take long; the data can be read meanwhile.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct Held {
    data: AgentData,
    /// When the file was found to be corrupted, in seconds since 1970; while it stands in its place nothing is written.
    in_the_way: Option<i64>,
}

/// Why the file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The operating system refused.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not what an agent wrote. It is left as it is.
    #[error("agent data file is corrupted, move it away to attest anew: {}: {why}", path.display())]
    Corrupted {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl AgentStorage {
    /// Reads `agent-data.json` in `data_dir`, which is made if it is missing. No file means no data.
    ///
    /// # Errors
    /// [`StorageError`].
    pub fn open(data_dir: &Path) -> Result<Self, StorageError> {
        private_file::create_private_dir(data_dir, FileMode::PRIVATE_DIR)?;
        let path = data_dir.join(FILE_NAME);
        let data = if path.try_exists().unwrap_or(true) {
            let corrupted = |why| StorageError::Corrupted {
                path: path.clone(),
                why,
            };
            let bytes = match private_file::read_bounded(&path, MAX_FILE) {
                Err(FileError::TooLarge { max, .. }) => Err(corrupted(format!("larger than {max} bytes"))),
                bytes => bytes.map_err(StorageError::File),
            }?;
            decode(&bytes).map_err(corrupted)?
        } else {
            AgentData::default()
        };
        Ok(Self::holding(path, data, None))
    }

    /// The same for an agent that can attest anew: a corrupted file is set aside and counts as none. Tells what was
    /// done about it. If it cannot be set aside, that is tried again before anything is written.
    ///
    /// # Errors
    /// [`StorageError::File`]
    pub fn open_or_set_aside(
        data_dir: &Path,
        now: OffsetDateTime,
    ) -> Result<(Self, Option<SetAside>), StorageError> {
        let (path, why) = match Self::open(data_dir) {
            Err(StorageError::Corrupted { path, why }) => (path, why),
            opened => return opened.map(|storage| (storage, None)),
        };
        let now = now.unix_timestamp();
        let aside = SetAside::of(path.clone(), why, now);
        let in_the_way = aside.kept.is_err().then_some(now);
        Ok((Self::holding(path, AgentData::default(), in_the_way), Some(aside)))
    }

    fn holding(path: PathBuf, data: AgentData, in_the_way: Option<i64>) -> Self {
        Self {
            path,
            held: Mutex::new(Held { data, in_the_way }),
            writing: Mutex::new(()),
        }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds.
    pub fn data(&self) -> AgentData {
        self.locked().data.clone()
    }

    /// Changes the data and writes the file, when that makes a difference. Blocks for as long as the disk
    /// takes. After an error the data is as before, in memory and on disk.
    ///
    /// # Errors
    /// [`StorageError::File`].
    pub fn update(&self, change: impl FnOnce(&mut AgentData)) -> Result<(), StorageError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.data();
        let mut next = before.clone();
        change(&mut next);
        if next == before {
            return Ok(());
        }
        let in_the_way = self.locked().in_the_way;
        if let Some(since) = in_the_way {
            match private_file::set_aside(&self.path, CORRUPT, since) {
                Ok(kept) => tracing::info!(kept_as = %kept.display(), "corrupted file is set aside"),
                // Somebody took it away.
                Err(FileError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            }
            self.locked().in_the_way = None;
        }
        private_file::write(&self.path, &encode(&next), FileMode::SECRET)?;
        self.locked().data = next;
        Ok(())
    }

    /// Whether a file as large as any that is needed could be written now. Blocks for as long as the disk takes.
    ///
    /// # Errors
    /// [`StorageError::File`].
    pub fn check_room(&self) -> Result<(), StorageError> {
        let path = self.path.with_file_name(ROOM_FILE);
        let written = private_file::write(&path, &[b' '; ROOM], FileMode::SECRET);
        let removed = private_file::remove(&path);
        written?;
        removed?;
        Ok(())
    }

    fn locked(&self) -> MutexGuard<'_, Held> {
        // The data is replaced whole, so a panic cannot leave it half-changed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A file of an earlier run that nobody can read, and that is not needed.
#[derive(Debug)]
pub struct SetAside {
    path: PathBuf,
    why: String,
    kept: Result<PathBuf, FileError>,
}

impl SetAside {
    /// Sets a corrupted file aside.
    pub fn of(path: PathBuf, why: String, unix_time: i64) -> Self {
        let kept = private_file::set_aside(&path, CORRUPT, unix_time);
        Self { path, why, kept }
    }

    /// Whether its place is free.
    pub fn is_away(&self) -> bool {
        self.kept.is_ok()
    }
}

impl std::fmt::Display for SetAside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, why) = (self.path.display(), &self.why);
        match &self.kept {
            Ok(kept) => write!(
                f,
                "{path} was corrupted ({why}) and is kept as {}",
                kept.display()
            ),
            Err(error) => write!(
                f,
                "{path} is corrupted ({why}) and could not be set aside: {error}"
            ),
        }
    }
}

impl Default for BootstrapRecord {
    fn default() -> Self {
        Self {
            bootstrap_use: 0,
            bootstrap_start_time: ZERO_TIME.to_owned(),
            connection_attempts: 0,
        }
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    svid: Option<Vec<String>>,
    bundle: Option<Vec<String>>,
    #[serde(default)]
    reattestable: bool,
    #[serde(default)]
    bootstrap_use: i64,
    #[serde(default = "zero_time")]
    bootstrap_start_time: String,
    #[serde(default)]
    connection_attempts: i64,
}

fn encode(data: &AgentData) -> Vec<u8> {
    let file = File {
        svid: encode_certificates(&data.svid),
        bundle: encode_certificates(&data.bundle),
        reattestable: data.reattestable,
        bootstrap_use: data.bootstrap.bootstrap_use,
        bootstrap_start_time: data.bootstrap.bootstrap_start_time.clone(),
        connection_attempts: data.bootstrap.connection_attempts,
    };
    serde_json::to_vec(&file).expect("strings, numbers and lists of strings always serialise")
}

fn decode(bytes: &[u8]) -> Result<AgentData, String> {
    // serde would take a list for the fields in their order.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err("not a JSON object".to_owned());
    }
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let svid = decode_certificates("svid", file.svid)?;
    if let Some(leaf) = svid.first() {
        leaf.spiffe_id().map_err(|error| format!("svid[0]: {error}"))?;
    }
    Ok(AgentData {
        svid,
        bundle: decode_certificates("bundle", file.bundle)?,
        reattestable: file.reattestable,
        bootstrap: BootstrapRecord {
            bootstrap_use: file.bootstrap_use,
            bootstrap_start_time: file.bootstrap_start_time,
            connection_attempts: file.connection_attempts,
        },
    })
}

fn encode_certificates(certificates: &[Certificate]) -> Option<Vec<String>> {
    let encode = |certificate: &Certificate| BASE64.encode(certificate.to_pem().as_bytes());
    (!certificates.is_empty()).then(|| certificates.iter().map(encode).collect())
}

fn decode_certificates(key: &str, list: Option<Vec<String>>) -> Result<Vec<Certificate>, String> {
    let mut certificates = Vec::new();
    for (index, text) in list.unwrap_or_default().iter().enumerate() {
        let wrong = |why: String| format!("{key}[{index}]: {why}");
        let pem = BASE64
            .decode(text.as_bytes())
            .map_err(|error| wrong(error.to_string()))?;
        let pem = String::from_utf8(pem).map_err(|_binary| wrong("is not PEM text".to_owned()))?;
        let mut found = Certificate::from_pem(&pem).map_err(|error| wrong(error.to_string()))?;
        match (found.pop(), found.is_empty()) {
            (Some(certificate), true) => certificates.push(certificate),
            _ => return Err(wrong("is not one certificate".to_owned())),
        }
    }
    Ok(certificates)
}

fn zero_time() -> String {
    ZERO_TIME.to_owned()
}

const FILE_NAME: &str = "agent-data.json";
/// Stands in the name of a file that was set aside.
const CORRUPT: &str = "corrupt";
/// How SPIRE writes a time that was never set.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";
const MAX_FILE: usize = 16 << 20;
/// Written and removed to see whether there is room; left behind only by a crash in between.
const ROOM_FILE: &str = "agent-data.room";
/// More than an SVID with its chain and a bundle take.
const ROOM: usize = 64 << 10;

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "tests write the files that operators and SPIRE would write"
    )]

    use super::*;
    use crate::test_pki::Authority;
    use serde_json::Value;
    use std::os::unix::fs::PermissionsExt;

    fn read(path: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    #[test]
    fn writes_every_key_also_when_there_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let storage = AgentStorage::open(dir.path()).unwrap();
        storage.update(|data| data.reattestable = true).unwrap();
        let expected = serde_json::json!({
            "svid": null, "bundle": null, "reattestable": true,
            "bootstrap_use": 0, "bootstrap_start_time": "0001-01-01T00:00:00Z", "connection_attempts": 0
        });
        assert_eq!(read(storage.path()), expected);
        let mode = std::fs::metadata(storage.path()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn certificates_are_base64_of_pem_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let svid = authority.svid("/spire/agent/x/1");
        let storage = AgentStorage::open(dir.path()).unwrap();
        storage
            .update(|data| {
                data.svid = svid.chain().to_vec();
                data.bundle = vec![authority.certificate()];
            })
            .unwrap();
        let text = read(storage.path())["svid"][0].as_str().unwrap().to_owned();
        let pem = String::from_utf8(BASE64.decode(text.as_bytes()).unwrap()).unwrap();
        assert!(pem.starts_with("-----BEGIN CERTIFICATE-----\n"));
        let again = AgentStorage::open(dir.path()).unwrap().data();
        assert_eq!(again, storage.data());
        assert_eq!(again.svid[0].der(), svid.leaf().der());
    }

    #[test]
    fn a_corrupted_file_is_named_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        for content in [
            "",
            "{",
            "{\"svid\":[\"!\"],\"bundle\":null}",
            "{\"svid\":[\"AAAA\"],\"bundle\":null}",
            "[]",
            "[null,null,true,0,\"0001-01-01T00:00:00Z\",0]",
            "\n [null,null]",
        ] {
            std::fs::write(&path, content).unwrap();
            let error = AgentStorage::open(dir.path()).unwrap_err().to_string();
            assert!(
                error.contains("agent-data.json") && error.contains("corrupted"),
                "{error}"
            );
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn a_corrupted_file_that_is_not_needed_is_kept_under_another_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let now = time::macros::datetime!(2030-01-02 03:04:05 UTC);
        std::fs::write(&path, "{\"svid\":").unwrap();
        let (storage, aside) = AgentStorage::open_or_set_aside(dir.path(), now).unwrap();
        let kept = dir
            .path()
            .join(format!("agent-data.json.corrupt-{}", now.unix_timestamp()));
        let said = aside.unwrap().to_string();
        assert!(
            said.contains("was corrupted (EOF") && said.contains(&*kept.to_string_lossy()),
            "{said}"
        );
        assert_eq!(storage.data(), AgentData::default());
        storage.update(|data| data.reattestable = true).unwrap();
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "{\"svid\":");
        assert_eq!(read(&path)["reattestable"], true);
        let (storage, aside) = AgentStorage::open_or_set_aside(dir.path(), now).unwrap();
        assert!(aside.is_none() && storage.data().reattestable);
    }

    #[test]
    fn a_corrupted_file_that_cannot_be_set_aside_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let now = time::macros::datetime!(2030-01-02 03:04:05 UTC);
        let victim = dir.path().join("elsewhere");
        std::fs::write(&victim, "{").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        let (storage, aside) = AgentStorage::open_or_set_aside(dir.path(), now).unwrap();
        let said = aside.unwrap().to_string();
        assert!(said.contains("could not be set aside"), "{said}");
        assert!(storage.update(|data| data.reattestable = true).is_err());
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "{");
        // Whatever was in the way is repaired.
        std::fs::remove_file(&path).unwrap();
        std::fs::rename(&victim, &path).unwrap();
        storage.update(|data| data.reattestable = true).unwrap();
        let kept = dir
            .path()
            .join(format!("agent-data.json.corrupt-{}", now.unix_timestamp()));
        assert_eq!(std::fs::read_to_string(kept).unwrap(), "{");
        assert_eq!(read(&path)["reattestable"], true);
    }

    #[test]
    fn what_spires_rebootstrap_noted_survives_and_old_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE_NAME);
        let noted = "{\"svid\":null,\"bundle\":null,\"reattestable\":false,\"bootstrap_use\":2,\
                     \"bootstrap_start_time\":\"2026-01-02T03:04:05Z\",\"connection_attempts\":7}";
        std::fs::write(&path, noted).unwrap();
        let storage = AgentStorage::open(dir.path()).unwrap();
        storage.update(|data| data.reattestable = true).unwrap();
        assert_eq!(read(&path)["bootstrap_use"], 2);
        assert_eq!(read(&path)["bootstrap_start_time"], "2026-01-02T03:04:05Z");
        assert_eq!(read(&path)["connection_attempts"], 7);
        std::fs::write(&path, "{\"svid\":null,\"bundle\":null}").unwrap();
        assert_eq!(
            AgentStorage::open(dir.path()).unwrap().data(),
            AgentData::default()
        );
    }

    #[test]
    fn a_failed_write_leaves_data_and_file_as_they_were() {
        let dir = tempfile::tempdir().unwrap();
        let storage = AgentStorage::open(dir.path()).unwrap();
        std::fs::create_dir(storage.path()).unwrap();
        assert!(storage.update(|data| data.reattestable = true).is_err());
        assert!(!storage.data().reattestable);
    }

    #[test]
    fn room_is_tested_by_writing_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let storage = AgentStorage::open(&data_dir).unwrap();
        storage.check_room().unwrap();
        assert_eq!(std::fs::read_dir(&data_dir).unwrap().count(), 0);
        std::fs::rename(&data_dir, dir.path().join("away")).unwrap();
        let error = storage.check_room().unwrap_err().to_string();
        assert!(error.contains(&*data_dir.to_string_lossy()), "{error}");
    }
}
