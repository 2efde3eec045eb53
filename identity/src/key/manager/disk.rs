//! Keys in one JSON file, as SPIRE's `KeyManager "disk"` keeps them.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use data_encoding::BASE64;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::memory::KeyMap;
use super::{KeyManager, PrivateKeyManager, generate, in_blocking_thread};
use crate::key::{KeyError, KeyType, PrivateKey, Signer};
use crate::process::private_file::{self, FileError, FileMode};

/// A larger file is not one that a key manager wrote.
const MAX_FILE: usize = 4 * 1024 * 1024;

/// Keeps keys in a file (`keys.json`): `{"keys":{"<id>":"<base64 of the PKCS#8 DER>"}}`, mode 0600,
/// replaced whole at every change.
#[derive(Clone, Debug)]
pub struct DiskKeyManager(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    keys: KeyMap,
    /// Held while the file is replaced, so that files follow one another in the order of changes.
    writing: Mutex<()>,
}

/// The file's content. Wiped when dropped, shows nothing.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct KeyFile {
    keys: BTreeMap<String, SecretText>,
}

#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct SecretText(String);

impl DiskKeyManager {
    /// Reads the file, which need not exist yet; its directory must. Blocks on the disk.
    ///
    /// # Errors
    /// [`KeyError::Storage`] when the file cannot be read, [`KeyError::Corrupted`] when it holds
    /// something else than keys. Neither changes the file.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let keys = match private_file::read_secret(path, MAX_FILE) {
            Ok(secret) => {
                if secret.is_readable_by_others() {
                    tracing::warn!(path = %path.display(), "file of private keys is readable by others");
                }
                read_keys(secret.as_bytes()).map_err(|why| KeyError::Corrupted {
                    path: path.to_owned(),
                    why,
                })?
            }
            Err(FileError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                BTreeMap::new()
            }
            Err(error) => return Err(storage("read keys", path, &error)),
        };
        Ok(Self(Arc::new(Inner {
            path: path.to_owned(),
            keys: KeyMap::new(keys),
            writing: Mutex::new(()),
        })))
    }
}

#[async_trait]
impl KeyManager for DiskKeyManager {
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        let key = generate(key_type).await?;
        self.set_private_key(id, key.clone()).await?;
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        Ok(self.0.keys.signer(id))
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, KeyError> {
        Ok(self.0.keys.signers())
    }
}

#[async_trait]
impl PrivateKeyManager for DiskKeyManager {
    fn private_key(&self, id: &str) -> Option<Arc<PrivateKey>> {
        self.0.keys.lock().get(id).cloned()
    }

    async fn set_private_key(&self, id: &str, key: Arc<PrivateKey>) -> Result<(), KeyError> {
        let inner = self.0.clone();
        let id = id.to_owned();
        in_blocking_thread(move || inner.set(id, key)).await
    }
}

impl Inner {
    /// The file first, then memory: a key that could not be kept is not returned.
    fn set(&self, id: String, key: Arc<PrivateKey>) -> Result<(), KeyError> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut keys = self.keys.lock().clone();
        keys.insert(id, key);
        let text = write_keys(&keys);
        private_file::write(&self.path, &text, FileMode::SECRET)
            .map_err(|error| storage("write keys", &self.path, &error))?;
        *self.keys.lock() = keys;
        Ok(())
    }
}

fn read_keys(text: &[u8]) -> Result<BTreeMap<String, Arc<PrivateKey>>, String> {
    // serde would take a list for the fields in their order.
    if text.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err("not a key file: not a JSON object".to_owned());
    }
    // The error of serde_json may quote the text: only the position is passed on.
    let file: KeyFile = serde_json::from_slice(text)
        .map_err(|e| format!("not a key file at line {}, column {}", e.line(), e.column()))?;
    let read = |(id, encoded): (&String, &SecretText)| {
        let der = BASE64
            .decode(encoded.0.as_bytes())
            .map(Zeroizing::new)
            .map_err(|_| format!("key {id:?} is not base64"))?;
        let key = PrivateKey::from_pkcs8_der(&der).map_err(|e| format!("key {id:?}: {e}"))?;
        Ok((id.clone(), Arc::new(key)))
    };
    file.keys.iter().map(read).collect()
}

fn write_keys(keys: &BTreeMap<String, Arc<PrivateKey>>) -> Zeroizing<Vec<u8>> {
    let file = KeyFile {
        keys: keys
            .iter()
            .map(|(id, key)| (id.clone(), SecretText(BASE64.encode(key.pkcs8_der()))))
            .collect(),
    };
    // In one piece: growing would leave copies of the keys behind. An escaped byte takes six.
    let size = |(id, text): (&String, &SecretText)| 6 * id.len() + text.0.len() + 8;
    let capacity = 16 + file.keys.iter().map(size).sum::<usize>();
    let mut text = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *text, &file).expect("a map of strings is valid JSON");
    text
}

fn storage(what: &str, path: &Path, error: &FileError) -> KeyError {
    KeyError::Storage {
        what: format!("{what}: {error}"),
        path: path.to_owned(),
    }
}

impl Drop for SecretText {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText")
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Tests damage the file by hand.
mod tests {
    use super::*;
    use crate::process::Clock;
    use crate::process::log::{self, LogFormat, LogLevel, LogOptions};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_that_others_may_read_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        private_file::write(&path, br#"{"keys":{}}"#, FileMode::SECRET).unwrap();
        let said = |mode| {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let log = dir.path().join(format!("log-{mode:o}"));
            let options = LogOptions {
                level: LogLevel::Warn,
                format: LogFormat::Text,
                file: Some(log.clone()),
                source_location: false,
                clock: Clock::paused_at(time::macros::datetime!(2030-01-02 03:04:05 UTC)),
            };
            let (dispatch, _control) = log::build(options).unwrap();
            tracing::dispatcher::with_default(&dispatch, || DiskKeyManager::open(&path).unwrap());
            std::fs::read_to_string(log).unwrap()
        };
        assert_eq!(said(0o600), "");
        let text = said(0o640);
        assert!(
            text.contains("readable by others") && text.contains("keys.json"),
            "{text}"
        );
    }

    #[tokio::test]
    async fn keys_survive_reopening_in_a_private_file_of_spires_form() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        let manager = DiskKeyManager::open(&path).unwrap();
        let made = manager
            .generate_key("JWT-Signer-A", KeyType::EcP256)
            .await
            .unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let file: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        let der = BASE64
            .decode(file["keys"]["JWT-Signer-A"].as_str().unwrap().as_bytes())
            .unwrap();
        let on_disk = PrivateKey::from_pkcs8_der(&der).unwrap();
        assert_eq!(on_disk.public_key(), made.public_key());

        let reopened = DiskKeyManager::open(&path).unwrap();
        let key = reopened.key("JWT-Signer-A").await.unwrap().unwrap();
        assert_eq!(key.public_key(), made.public_key());
    }

    #[test]
    fn a_corrupted_file_is_an_error_and_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        for content in [
            "",
            "{",
            "[]",
            r#"{"keys":{"a":"SECRETVALUE!"}}"#,
            r#"{"keys":{"a":"AAAA"}}"#,
            r#"{"keys":{"a":7}}"#,
            r#"{"keys":{},"more":1}"#,
        ] {
            std::fs::write(&path, content).unwrap();
            let error = DiskKeyManager::open(&path).unwrap_err();
            assert!(matches!(error, KeyError::Corrupted { .. }), "{content}");
            assert!(!error.to_string().contains("SECRETVALUE"));
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[tokio::test]
    async fn a_key_that_cannot_be_kept_is_not_handed_out() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        std::fs::create_dir(&gone).unwrap();
        let manager = DiskKeyManager::open(&gone.join("keys.json")).unwrap();
        let kept = manager.generate_key("a", KeyType::EcP256).await.unwrap();
        std::fs::remove_dir_all(&gone).unwrap();
        let error = manager.generate_key("a", KeyType::EcP256).await.unwrap_err();
        assert!(matches!(error, KeyError::Storage { .. }));
        let still = manager.key("a").await.unwrap().unwrap();
        assert_eq!(still.public_key(), kept.public_key());
    }
}
