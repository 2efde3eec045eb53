//! Key managers: where private keys are kept by name.

mod disk;
mod memory;

#[cfg(test)]
mod contract;

pub use disk::DiskKeyManager;
pub use memory::MemoryKeyManager;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use super::{KeyError, KeyType, PrivateKey, Signer};

/// Keeps private keys by id, in this process or elsewhere.
#[async_trait]
pub trait KeyManager: Send + Sync + fmt::Debug {
    /// Makes a key and keeps it under the id in place of any key there. The key is kept for good
    /// when this returns.
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Signer>, KeyError>;

    /// The key with that id.
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError>;

    /// All keys, in the order of their ids.
    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, KeyError>;
}

/// A key manager whose keys are in this process: an agent needs its key itself, for TLS.
#[async_trait]
pub trait PrivateKeyManager: KeyManager {
    /// The key with that id.
    fn private_key(&self, id: &str) -> Option<Arc<PrivateKey>>;

    /// Keeps a key that was made elsewhere under the id, in place of any key there. The key is
    /// kept for good when this returns.
    async fn set_private_key(&self, id: &str, key: Arc<PrivateKey>) -> Result<(), KeyError>;
}

/// Generates a key; RSA keys on a blocking thread, because they take up to seconds.
async fn generate(key_type: KeyType) -> Result<Arc<PrivateKey>, KeyError> {
    let key = match key_type {
        KeyType::EcP256 | KeyType::EcP384 => PrivateKey::generate(key_type)?,
        KeyType::Rsa2048 | KeyType::Rsa4096 => {
            in_blocking_thread(move || PrivateKey::generate(key_type)).await?
        }
    };
    Ok(Arc::new(key))
}

async fn in_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeyError> + Send + 'static,
) -> Result<T, KeyError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(KeyError::Internal {
            what: "work on a blocking thread",
        }),
    }
}
