//! The authorities over time, with a store and a key manager that can fail at any call.

mod lifecycle;
mod restarts;
mod signing;
mod wit;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::bundle::Bundle;
use finial_identity::entry::{Entry, EntryParts};
use finial_identity::key::manager::MemoryKeyManager;
use finial_identity::key::{KeyError, KeyManager, KeyType, PrivateKey, Signer};
use finial_identity::process::clock::Clock;
use finial_identity::process::tasks::TaskSet;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::Certificate;
use time::OffsetDateTime;
use time::macros::datetime;

use super::records::Records;
use super::*;
use crate::store::{
    BundleDeleteMode, BundleDeleted, BundleEdit, BundleStore, JournalStore, StoreError, StoredBundle,
};

const T0: OffsetDateTime = datetime!(2030-06-01 12:00 UTC);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

/// What survives a restart.
#[derive(Clone, Debug)]
struct World {
    clock: Clock,
    keys: Arc<Cut<MemoryKeyManager>>,
    store: Arc<Cut<MemoryStore>>,
    fuse: Arc<Fuse>,
}

/// Lets that many changes through; after that the process is as good as dead.
#[derive(Debug)]
struct Fuse {
    left: AtomicUsize,
    /// Whether the change at which it burns is still made.
    done_at_last: Mutex<bool>,
}

#[derive(Debug)]
struct Cut<T> {
    inner: T,
    fuse: Arc<Fuse>,
}

#[derive(Debug, Default)]
struct MemoryStore {
    bundle: Mutex<Option<Bundle>>,
    journals: Mutex<BTreeMap<String, Vec<u8>>>,
}

enum Pass {
    Through,
    DoneButLost,
    Blocked,
}

impl Fuse {
    fn pass(&self) -> Pass {
        let left = self.left.load(Ordering::SeqCst);
        self.left.store(left.saturating_sub(1), Ordering::SeqCst);
        match left {
            0 => Pass::Blocked,
            1 if *self.done_at_last.lock().unwrap() => Pass::DoneButLost,
            1 => Pass::Blocked,
            _ => Pass::Through,
        }
    }

    fn mend(&self) {
        self.left.store(usize::MAX, Ordering::SeqCst);
    }

    fn burn_at(&self, change: usize, done: bool) {
        self.left.store(change, Ordering::SeqCst);
        *self.done_at_last.lock().unwrap() = done;
    }
}

#[async_trait]
impl KeyManager for Cut<MemoryKeyManager> {
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        let lost = || KeyError::Remote("cut off".to_owned());
        match self.fuse.pass() {
            Pass::Through => self.inner.generate_key(id, key_type).await,
            Pass::DoneButLost => self.inner.generate_key(id, key_type).await.and(Err(lost())),
            Pass::Blocked => Err(lost()),
        }
    }
    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        self.inner.key(id).await
    }
    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, KeyError> {
        self.inner.keys().await
    }
}

#[async_trait]
impl BundleStore for Cut<MemoryStore> {
    async fn bundle(&self, _: &TrustDomain) -> Result<Option<StoredBundle>, StoreError> {
        let bundle = self.inner.bundle.lock().unwrap().clone();
        Ok(bundle.map(|bundle| StoredBundle {
            row: 1,
            bundle: Arc::new(bundle),
        }))
    }
    async fn list_bundles(&self, _: u64, _: u32) -> Result<Vec<StoredBundle>, StoreError> {
        Ok(Vec::new())
    }
    async fn put_bundle(&self, _: Bundle) -> Result<StoredBundle, StoreError> {
        Err(StoreError::Closed)
    }
    async fn create_bundle(&self, _: Bundle) -> Result<Option<StoredBundle>, StoreError> {
        Err(StoreError::Closed)
    }
    async fn edit_bundle(
        &self,
        td: &TrustDomain,
        edit: BundleEdit,
    ) -> Result<Option<StoredBundle>, StoreError> {
        let pass = self.fuse.pass();
        if matches!(pass, Pass::Blocked) {
            return Err(StoreError::Closed);
        }
        let mut held = self.inner.bundle.lock().unwrap();
        let mut bundle = held.clone().unwrap_or_else(|| Bundle::new(td.clone()));
        edit(&mut bundle);
        *held = Some(bundle.clone());
        match pass {
            Pass::Through => Ok(Some(StoredBundle {
                row: 1,
                bundle: Arc::new(bundle),
            })),
            _ => Err(StoreError::Closed),
        }
    }
    async fn delete_bundle(&self, _: &TrustDomain, _: BundleDeleteMode) -> Result<BundleDeleted, StoreError> {
        Err(StoreError::Closed)
    }
}

#[async_trait]
impl JournalStore for Cut<MemoryStore> {
    async fn save_journal(&self, key: &str, journal: &[u8]) -> Result<(), StoreError> {
        let pass = self.fuse.pass();
        if matches!(pass, Pass::Blocked) {
            return Err(StoreError::Closed);
        }
        self.inner
            .journals
            .lock()
            .unwrap()
            .insert(key.to_owned(), journal.to_vec());
        if matches!(pass, Pass::Through) {
            Ok(())
        } else {
            Err(StoreError::Closed)
        }
    }
    async fn list_journals(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        Ok(self.inner.journals.lock().unwrap().clone().into_iter().collect())
    }
    async fn delete_journal(&self, key: &str) -> Result<bool, StoreError> {
        Ok(self.inner.journals.lock().unwrap().remove(key).is_some())
    }
}

impl World {
    fn new() -> Self {
        let fuse = Arc::new(Fuse {
            left: AtomicUsize::new(usize::MAX),
            done_at_last: Mutex::new(false),
        });
        Self {
            clock: Clock::paused_at(T0),
            keys: Arc::new(Cut {
                inner: MemoryKeyManager::new(),
                fuse: Arc::clone(&fuse),
            }),
            store: Arc::new(Cut {
                inner: MemoryStore::default(),
                fuse: Arc::clone(&fuse),
            }),
            fuse,
        }
    }

    async fn start(&self) -> Result<Arc<AuthorityManager>, AuthorityError> {
        self.start_as(config()).await
    }

    async fn start_as(&self, config: AuthorityConfig) -> Result<Arc<AuthorityManager>, AuthorityError> {
        let records = Records::new(
            config.trust_domain.clone(),
            Arc::clone(&self.store) as Arc<dyn BundleStore>,
            Arc::clone(&self.store) as Arc<dyn JournalStore>,
        );
        let keys = Arc::clone(&self.keys) as Arc<dyn KeyManager>;
        AuthorityManager::start_with(config, keys, records, self.clock.clone()).await
    }

    fn bundle(&self) -> Bundle {
        self.store.inner.bundle.lock().unwrap().clone().unwrap()
    }

    fn has_x509(&self, id: &str) -> bool {
        self.bundle()
            .x509_authorities
            .iter()
            .any(|authority| authority.certificate.authority_id() == id)
    }

    /// What is signed now verifies with what the bundle says now.
    fn check_signing(&self, manager: &AuthorityManager) {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let chain = manager.sign_x509(&workload(&key)).unwrap();
        let authority = hex(chain[0].authority_key_id().unwrap());
        let bundle = self.bundle();
        let root = bundle
            .x509_authorities
            .iter()
            .find(|root| root.certificate.authority_id() == authority)
            .expect("authority is in the bundle");
        chain[0].check_signature(root.certificate.public_key()).unwrap();
        chain[0].check_valid_at(self.clock.now()).unwrap();
        assert!(chain[0].not_after() <= root.certificate.not_after());

        let token = manager.sign_jwt(&token_request(&["a"])).unwrap().token;
        let header = decode(token.split('.').next().unwrap());
        let key = bundle
            .jwt_authority(header["kid"].as_str().unwrap())
            .expect("key is in the bundle");
        let (input, signature) = token.rsplit_once('.').unwrap();
        let signature = data_encoding::BASE64URL_NOPAD
            .decode(signature.as_bytes())
            .unwrap();
        let algorithm = header["alg"].as_str().unwrap().parse().unwrap();
        key.public_key
            .verify_jws(algorithm, input.as_bytes(), &signature)
            .unwrap();
    }
}

fn config() -> AuthorityConfig {
    AuthorityConfig::new(trust_domain())
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}

fn id(path: &str) -> SpiffeId {
    SpiffeId::new(&trust_domain(), path).unwrap()
}

fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

fn decode(part: &str) -> serde_json::Value {
    serde_json::from_slice(&data_encoding::BASE64URL_NOPAD.decode(part.as_bytes()).unwrap()).unwrap()
}

fn request(key: &PrivateKey, subject: X509Subject) -> X509Request {
    X509Request {
        subject,
        public_key: key.public_key().clone(),
        ttl: None,
    }
}

fn workload(key: &PrivateKey) -> X509Request {
    request(
        key,
        X509Subject::Workload {
            spiffe_id: id("/db"),
            dns_names: Vec::new(),
            name: None,
        },
    )
}

fn token_request(audiences: &[&str]) -> JwtRequest {
    JwtRequest {
        spiffe_id: id("/db"),
        audiences: audiences.iter().map(|name| (*name).to_owned()).collect(),
        ttl: None,
        include_jti: false,
    }
}

fn entry(change: impl FnOnce(&mut EntryParts)) -> Entry {
    let mut parts = EntryParts {
        id: "entry".to_owned(),
        ..EntryParts::new(
            id("/db"),
            id("/spire/agent/x"),
            vec![Selector::new("unix", "uid:1").unwrap()],
        )
    };
    change(&mut parts);
    Entry::check(parts, &trust_domain()).unwrap()
}

fn active(manager: &AuthorityManager) -> (String, String) {
    (
        manager.x509_state().unwrap().active.authority_id,
        manager.jwt_state().unwrap().active.authority_id,
    )
}
