//! Keys in memory only.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;

use super::{KeyManager, PrivateKeyManager, generate};
use crate::key::{KeyError, KeyType, PrivateKey, Signer};

/// Keeps keys in memory only, as SPIRE's `KeyManager "memory"`.
#[derive(Debug, Default)]
pub struct MemoryKeyManager {
    keys: KeyMap,
}

impl MemoryKeyManager {
    /// A key manager without keys.
    pub fn new() -> Self {
        Self::default()
    }
}

#[async_trait]
impl KeyManager for MemoryKeyManager {
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        let key = generate(key_type).await?;
        self.set_private_key(id, key.clone()).await?;
        Ok(key)
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        Ok(self.keys.signer(id))
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, KeyError> {
        Ok(self.keys.signers())
    }
}

#[async_trait]
impl PrivateKeyManager for MemoryKeyManager {
    fn private_key(&self, id: &str) -> Option<Arc<PrivateKey>> {
        self.keys.lock().get(id).cloned()
    }

    async fn set_private_key(&self, id: &str, key: Arc<PrivateKey>) -> Result<(), KeyError> {
        self.keys.lock().insert(id.to_owned(), key);
        Ok(())
    }
}

/// Keys by id, shared between callers.
#[derive(Debug, Default)]
pub(super) struct KeyMap(Mutex<BTreeMap<String, Arc<PrivateKey>>>);

impl KeyMap {
    pub(super) fn new(keys: BTreeMap<String, Arc<PrivateKey>>) -> Self {
        Self(Mutex::new(keys))
    }

    /// Whole maps are swapped and single keys inserted under the lock, so a panic elsewhere cannot
    /// leave it half changed.
    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<PrivateKey>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn signer(&self, id: &str) -> Option<Arc<dyn Signer>> {
        let key = self.lock().get(id).cloned()?;
        Some(key)
    }

    pub(super) fn signers(&self) -> Vec<(String, Arc<dyn Signer>)> {
        self.lock()
            .iter()
            .map(|(id, key)| (id.clone(), key.clone() as Arc<dyn Signer>))
            .collect()
    }
}
