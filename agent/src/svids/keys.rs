//! Keys and requests for workloads' SVIDs. The keys are made here and never leave the node.

use std::sync::{Arc, Mutex, PoisonError};

use finial_identity::key::{KeyError, KeyType, PrivateKey};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::{Csr, CsrSubject};

use crate::upstream::EntryStamp;

/// Makes keys. Some are made ahead, in idle time, so that the first SVID costs one round trip.
#[derive(Debug)]
pub struct KeyPool {
    key_type: KeyType,
    spare: Mutex<Vec<Arc<PrivateKey>>>,
}

/// What is to be signed.
#[derive(Clone, Debug)]
pub struct SvidRequest {
    /// For which entry.
    pub entry_id: String,
    /// Its identity.
    pub spiffe_id: SpiffeId,
    /// Its revision at the time.
    pub stamp: EntryStamp,
}

/// A request with its key.
#[derive(Debug)]
pub struct Order {
    /// What it is for.
    pub wanted: SvidRequest,
    /// The new key.
    pub key: Arc<PrivateKey>,
    /// The PKCS#10 request.
    pub csr_der: Vec<u8>,
}

impl KeyPool {
    /// A pool of keys of one type, empty yet.
    pub fn new(key_type: KeyType) -> Self {
        Self {
            key_type,
            spare: Mutex::new(Vec::new()),
        }
    }

    /// Whether a key costs so little that it can be made on a thread that serves sockets.
    pub fn is_cheap(&self) -> bool {
        self.key_type == KeyType::EcP256
    }

    /// Makes keys ahead until some are spare; nothing when they are expensive. Takes well under a millisecond.
    pub fn refill(&self) {
        if !self.is_cheap() {
            return;
        }
        loop {
            if self.locked().len() >= SPARE {
                return;
            }
            match PrivateKey::generate(self.key_type) {
                Ok(key) => self.locked().push(Arc::new(key)),
                // The one who needs a key will see the same error and report it.
                Err(_no_randomness) => return,
            }
        }
    }

    /// A fresh key and a request for each entry.
    ///
    /// # Errors
    /// [`KeyError`] when no key can be made.
    pub fn order(&self, wanted: Vec<SvidRequest>) -> Result<Vec<Order>, KeyError> {
        wanted
            .into_iter()
            .map(|wanted| {
                let key = self.take()?;
                let csr_der = Csr::build(&*key, CsrSubject::spire(), Some(&wanted.spiffe_id), &[])
                    .map_err(|error| KeyError::Remote(format!("certificate request: {error}")))?;
                Ok(Order { wanted, key, csr_der })
            })
            .collect()
    }

    fn take(&self) -> Result<Arc<PrivateKey>, KeyError> {
        if let Some(key) = self.locked().pop() {
            return Ok(key);
        }
        PrivateKey::generate(self.key_type).map(Arc::new)
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, Vec<Arc<PrivateKey>>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Enough for the first workloads of a node.
const SPARE: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(id: &str) -> SvidRequest {
        SvidRequest {
            entry_id: id.to_owned(),
            spiffe_id: SpiffeId::parse(&format!("spiffe://example.org/{id}")).unwrap(),
            stamp: EntryStamp {
                revision_number: 0,
                created_at: 0,
            },
        }
    }

    #[test]
    fn every_request_has_a_key_of_its_own_and_names_the_identity() {
        let pool = KeyPool::new(KeyType::EcP256);
        pool.refill();
        let orders = pool
            .order((0..40).map(|n| wanted(&format!("w{n}"))).collect())
            .unwrap();
        let keys: std::collections::HashSet<_> = orders
            .iter()
            .map(|order| order.key.public_key().spki_der().to_vec())
            .collect();
        assert_eq!(keys.len(), 40);
        let csr = Csr::parse(&orders[3].csr_der).unwrap();
        csr.verify_self_signature().unwrap();
        assert_eq!(csr.uri_sans(), ["spiffe://example.org/w3"]);
        assert_eq!(csr.public_key(), orders[3].key.public_key());
    }

    #[test]
    fn spare_keys_are_made_for_cheap_types_only() {
        let pool = KeyPool::new(KeyType::EcP256);
        pool.refill();
        assert_eq!(pool.locked().len(), SPARE);
        let expensive = KeyPool::new(KeyType::Rsa2048);
        expensive.refill();
        assert!(expensive.locked().is_empty());
    }
}
