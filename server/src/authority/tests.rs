//! The authorities over time, with a store and a key manager that can be cut off at any call.

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
        spiffe_id: id("/db"),
        parent_id: id("/spire/agent/x"),
        selectors: vec![Selector::new("unix", "uid:1").unwrap()],
        x509_svid_ttl: 0,
        jwt_svid_ttl: 0,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        expires_at: 0,
        dns_names: Vec::new(),
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: 0,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
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

#[tokio::test(start_paused = true)]
async fn authorities_follow_each_other_through_generations() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        assert_eq!(manager.state(kind).unwrap().prepared, None);
    }
    // How old the active authority is when it takes over.
    let mut age = Duration::ZERO;
    for _ in 0..4 {
        let before = active(&manager);
        tokio::time::advance(12 * HOUR - age).await;
        age = 8 * HOUR;
        manager.step().await;
        assert_eq!(
            manager.x509_state().unwrap().prepared,
            None,
            "not yet at exactly half the lifetime"
        );
        tokio::time::advance(SECOND).await;
        manager.step().await;
        let prepared = manager
            .x509_state()
            .unwrap()
            .prepared
            .expect("prepared after half the lifetime");
        assert!(
            world.has_x509(&prepared.authority_id),
            "in the bundle before it signs"
        );
        assert!(manager.jwt_state().unwrap().prepared.is_some());
        assert_eq!(active(&manager), before);

        tokio::time::advance(8 * HOUR - SECOND).await;
        manager.step().await;
        assert_eq!(active(&manager), before, "not yet at exactly five sixths");
        tokio::time::advance(SECOND).await;
        manager.step().await;
        let states = manager.x509_state().unwrap();
        assert_eq!(states.active, prepared);
        assert_eq!(states.old.unwrap().authority_id, before.0);
        assert_eq!(manager.jwt_state().unwrap().old.unwrap().authority_id, before.1);
        world.check_signing(&manager);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_signed_verifies_at_any_hour_of_a_week() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let mut authorities = std::collections::BTreeSet::new();
    for _ in 0..7 * 24 * 4 {
        tokio::time::advance(HOUR / 4).await;
        let next = manager.step().await;
        assert!(next >= world.clock.now());
        world.check_signing(&manager);
        authorities.insert(active(&manager));
    }
    // A new one takes over every twelve hours and a quarter.
    assert_eq!(authorities.len(), 14);
    let slots: Vec<_> = world
        .keys
        .keys()
        .await
        .unwrap()
        .into_iter()
        .map(|(id, _)| id)
        .collect();
    assert_eq!(slots, ["JWT-Signer-A", "JWT-Signer-B", "x509-CA-A", "x509-CA-B"]);
}

#[tokio::test(start_paused = true)]
async fn the_loop_rotates_by_itself_and_stops_when_told() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    let mut tasks = TaskSet::new();
    tasks.spawn("authorities", Arc::clone(&manager).run(tasks.stop_signal()));
    tasks
        .run_until_first_exit(tokio::time::sleep(21 * HOUR))
        .await
        .unwrap();
    assert_ne!(active(&manager), first);
    assert_eq!(manager.x509_state().unwrap().old.unwrap().authority_id, first.0);
}

#[tokio::test(start_paused = true)]
async fn a_restart_keeps_authorities_and_statuses() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    tokio::time::advance(13 * HOUR).await;
    manager.step().await;
    let states = (manager.x509_state().unwrap(), manager.jwt_state().unwrap());
    let manager = world.start().await.unwrap();
    assert_eq!(
        (manager.x509_state().unwrap(), manager.jwt_state().unwrap()),
        states
    );
    tokio::time::advance(8 * HOUR).await;
    let manager = world.start().await.unwrap();
    let states = (manager.x509_state().unwrap(), manager.jwt_state().unwrap());
    assert_eq!(states.0.old.as_ref().unwrap().authority_id, first.0);
    let manager = world.start().await.unwrap();
    assert_eq!(
        (manager.x509_state().unwrap(), manager.jwt_state().unwrap()),
        states
    );
    assert_eq!(world.store.inner.journals.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_tainted_authority_does_not_sign_again_after_a_restart() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    if let Some(bundle) = &mut *world.store.inner.bundle.lock().unwrap() {
        bundle.taint_x509(&first.0).unwrap();
        bundle.taint_jwt(&first.1).unwrap();
    }
    let manager = world.start().await.unwrap();
    let second = active(&manager);
    assert!(second.0 != first.0 && second.1 != first.1);
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn an_old_tainted_authority_can_be_revoked_after_a_restart() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    for kind in [AuthorityKind::X509, AuthorityKind::Jwt] {
        let prepared = manager.prepare(kind).await.unwrap();
        manager.activate(kind, &prepared.authority_id).await.unwrap();
    }
    manager.taint(AuthorityKind::X509, &first.0).await.unwrap();
    manager.taint(AuthorityKind::Jwt, &first.1).await.unwrap();
    let second = active(&manager);
    let manager = world.start().await.unwrap();
    assert_eq!(active(&manager), second);
    manager.revoke(AuthorityKind::X509, &first.0).await.unwrap();
    manager.revoke(AuthorityKind::Jwt, &first.1).await.unwrap();
    assert!(!world.has_x509(&first.0));
}

#[tokio::test(start_paused = true)]
async fn authorities_without_a_bundle_or_with_another_key_in_it_are_not_taken_up() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    let other = PrivateKey::generate(KeyType::EcP256).unwrap();
    if let Some(bundle) = &mut *world.store.inner.bundle.lock().unwrap() {
        bundle.jwt_authorities[0].public_key = other.public_key().clone();
    }
    let second = active(&world.start().await.unwrap());
    assert_eq!(second.0, first.0);
    assert_ne!(second.1, first.1);
    *world.store.inner.bundle.lock().unwrap() = None;
    let manager = world.start().await.unwrap();
    let third = active(&manager);
    assert!(third.0 != second.0 && third.1 != second.1);
    world.check_signing(&manager);
}

/// Cuts the process off at every single change in turn, before and after it takes effect, and starts again.
async fn survives_every_cut(age: Duration) {
    for done in [false, true] {
        for change in 1.. {
            let world = World::new();
            let before = if age.is_zero() {
                None
            } else {
                let manager = world.start().await.unwrap();
                tokio::time::advance(12 * HOUR + SECOND).await;
                if age > 13 * HOUR {
                    manager.step().await;
                    tokio::time::advance(age - 12 * HOUR).await;
                }
                Some(manager)
            };
            let known: Vec<(String, String)> = before.iter().map(|manager| active(manager)).collect();
            world.fuse.burn_at(change, done);
            let cut = match &before {
                None => world.start().await.is_err(),
                Some(manager) => {
                    manager.step().await;
                    // Whatever happened, what is signed verifies.
                    world.check_signing(manager);
                    world.fuse.left.load(Ordering::SeqCst) == 0
                }
            };
            let in_use: Vec<(String, String)> = before.iter().map(|manager| active(manager)).collect();
            drop(before);
            world.fuse.mend();
            let manager = world.start().await.unwrap();
            world.check_signing(&manager);
            let after = active(&manager);
            for (now, former) in in_use.iter().zip(&known) {
                // The authority in use at the cut, or the one that was taking over from it.
                let x509_moves = after.0 == now.0 || now.0 == former.0;
                let jwt_moves = after.1 == now.1 || now.1 == former.1;
                assert!(x509_moves && jwt_moves, "change {change}, done {done}");
                assert!(world.has_x509(&now.0), "what was in use is still in the bundle");
                if age < 13 * HOUR {
                    assert_eq!(&after, now, "change {change}, done {done}");
                }
            }
            manager.step().await;
            let again = world.start().await.unwrap();
            assert_eq!(active(&again), active(&manager));
            if !cut {
                assert!(change > 1, "nothing was cut off");
                break;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_first_start_can_be_cut_off_anywhere() {
    survives_every_cut(Duration::ZERO).await;
}

#[tokio::test(start_paused = true)]
async fn a_preparation_can_be_cut_off_anywhere() {
    survives_every_cut(12 * HOUR + SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn an_activation_can_be_cut_off_anywhere() {
    survives_every_cut(20 * HOUR + SECOND).await;
}

#[tokio::test(start_paused = true)]
async fn lost_keys_lead_to_new_authorities() {
    let mut world = World::new();
    let first = active(&world.start().await.unwrap());
    world.keys = Arc::new(Cut {
        inner: MemoryKeyManager::new(),
        fuse: Arc::clone(&world.fuse),
    });
    let manager = world.start().await.unwrap();
    assert_ne!(active(&manager).0, first.0);
    assert!(world.has_x509(&first.0), "the former one stays in the bundle");
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn an_authority_that_is_not_in_the_bundle_is_not_used_again() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    *world.store.inner.bundle.lock().unwrap() = Some(Bundle::new(trust_domain()));
    let manager = world.start().await.unwrap();
    assert_ne!(active(&manager).0, first.0);
    assert_ne!(active(&manager).1, first.1);
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn an_expired_authority_is_replaced_at_start() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    tokio::time::advance(25 * HOUR).await;
    let manager = world.start().await.unwrap();
    assert_ne!(active(&manager).0, first.0);
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn a_failing_store_leaves_the_active_authority_at_work() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    world.fuse.burn_at(0, false);
    for _ in 0..6 {
        tokio::time::advance(4 * HOUR - SECOND).await;
        manager.step().await;
        world.check_signing(&manager);
    }
    assert_eq!(active(&manager), first);
    world.fuse.mend();
    tokio::time::advance(SECOND).await;
    manager.step().await;
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn own_svid_is_renewed_at_half_its_life() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let receiver = manager.server_svid();
    let serial = || receiver.borrow().as_ref().unwrap().leaf().serial_hex();
    let first = serial();
    let leaf = receiver.borrow().as_ref().unwrap().leaf().clone();
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/spire/server"]);
    assert_eq!(
        leaf.not_after() - leaf.not_before(),
        time::Duration::seconds(3610)
    );
    // The ten seconds that it is backdated by are no part of its life.
    tokio::time::advance(Duration::from_secs(1800)).await;
    manager.step().await;
    assert_eq!(serial(), first);
    tokio::time::advance(SECOND).await;
    manager.step().await;
    assert_ne!(serial(), first);
}

#[tokio::test(start_paused = true)]
async fn forced_rotation_goes_prepare_activate_taint_revoke() {
    let world = World::new();
    let manager = world.start_as(wit::config_with_wit()).await.unwrap();
    let receiver = manager.server_svid();
    let first = active(&manager);
    let first_wit = manager.state(AuthorityKind::Wit).unwrap().active.authority_id;
    for (kind, old) in [
        (AuthorityKind::X509, &first.0),
        (AuthorityKind::Jwt, &first.1),
        (AuthorityKind::Wit, &first_wit),
    ] {
        let invalid = |result: Result<AuthorityState, AuthorityError>, text: &str| {
            assert!(
                matches!(&result, Err(AuthorityError::InvalidArgument(found)) if found == text),
                "{result:?}"
            );
        };
        invalid(manager.activate(kind, "").await, "no authority ID provided");
        invalid(manager.activate(kind, "x").await, "unexpected authority ID");
        let prepared = manager.prepare(kind).await.unwrap();
        let again = manager.prepare(kind).await.unwrap();
        assert_ne!(
            prepared, again,
            "a second preparation takes the place of the first"
        );
        invalid(
            manager.activate(kind, &prepared.authority_id).await,
            "unexpected authority ID",
        );
        invalid(
            manager.taint(kind, &again.authority_id).await,
            "only Old local authorities can be tainted",
        );
        assert_eq!(manager.activate(kind, &again.authority_id).await.unwrap(), again);
        assert_eq!(&manager.state(kind).unwrap().old.unwrap().authority_id, old);
        let not_prepared = manager.activate(kind, old).await;
        assert!(matches!(not_prepared, Err(AuthorityError::Internal { .. })));

        invalid(manager.taint(kind, "").await, "no authority ID provided");
        invalid(
            manager.taint(kind, &again.authority_id).await,
            "unable to taint current local authority",
        );
        invalid(manager.taint(kind, "x").await, "unexpected authority ID");
        let untainted = manager.revoke(kind, old).await;
        assert!(
            matches!(untainted, Err(AuthorityError::Internal { .. })),
            "{untainted:?}"
        );
        manager.taint(kind, old).await.unwrap();
        let twice = manager.taint(kind, old).await;
        assert!(matches!(twice, Err(AuthorityError::Internal { .. })));

        let text = "invalid authority ID: unable to use current authority";
        invalid(manager.revoke(kind, &again.authority_id).await, text);
        let unknown = match kind {
            AuthorityKind::X509 => "invalid authority ID: only Old local authority can be revoked",
            AuthorityKind::Jwt => "invalid authority ID: no JWT authority found with provided authority ID",
            AuthorityKind::Wit => "invalid authority ID: no WIT authority found with provided authority ID",
        };
        invalid(manager.revoke(kind, "x").await, unknown);
        invalid(
            manager.revoke(kind, "").await,
            "invalid authority ID: no authority ID provided",
        );
        assert_eq!(&manager.revoke(kind, old).await.unwrap().authority_id, old);
    }
    let own = receiver.borrow().as_ref().unwrap().leaf().clone();
    assert_eq!(
        hex(own.authority_key_id().unwrap()),
        active(&manager).0,
        "own SVID left the tainted authority"
    );
    assert!(!world.has_x509(&first.0));
    assert!(world.bundle().jwt_authority(&first.1).is_none());
    assert!(world.bundle().wit_authority(&first_wit).is_none());
    world.check_signing(&manager);
    let after = active(&manager);
    let manager = world.start().await.unwrap();
    assert_eq!(active(&manager), after);
    assert_eq!(manager.x509_state().unwrap().old, None);
}

#[tokio::test(start_paused = true)]
async fn a_prepared_jwt_key_cannot_be_revoked_and_a_foreign_tainted_one_can() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let kind = AuthorityKind::Jwt;
    let first = manager.prepare(kind).await.unwrap().authority_id;
    let second = manager.prepare(kind).await.unwrap().authority_id;
    let refused = manager.revoke(kind, &second).await.unwrap_err().to_string();
    assert_eq!(refused, "invalid authority ID: unable to use a prepared key");
    world
        .store
        .inner
        .bundle
        .lock()
        .unwrap()
        .as_mut()
        .unwrap()
        .taint_jwt(&first)
        .unwrap();
    manager.revoke(kind, &first).await.unwrap();
    assert!(world.bundle().jwt_authority(&first).is_none());
}

#[tokio::test(start_paused = true)]
async fn switched_off_jwt_svids_have_no_authority() {
    let world = World::new();
    let manager = world
        .start_as(AuthorityConfig {
            disable_jwt_svids: true,
            ..config()
        })
        .await
        .unwrap();
    manager.step().await;
    assert!(matches!(manager.jwt_state(), Err(AuthorityError::JwtDisabled)));
    assert!(matches!(
        manager.prepare(AuthorityKind::Jwt).await,
        Err(AuthorityError::JwtDisabled)
    ));
    assert!(matches!(
        manager.sign_jwt(&token_request(&["a"])),
        Err(AuthorityError::JwtDisabled)
    ));
    assert!(world.bundle().jwt_authorities.is_empty());
    assert_eq!(world.keys.keys().await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn expired_authorities_leave_the_bundle_a_day_later() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let first = active(&manager);
    for _ in 0..14 {
        tokio::time::advance(4 * HOUR).await;
        manager.step().await;
        let age = world.clock.now() - T0;
        // Whether it is pruned at the next pruning, within eight hours here, is not of interest.
        if age <= time::Duration::hours(48) {
            assert!(world.has_x509(&first.0), "{age}");
        }
    }
    assert!(!world.has_x509(&first.0));
    assert!(world.bundle().jwt_authority(&first.1).is_none());
}

#[tokio::test(start_paused = true)]
async fn what_expired_long_ago_leaves_the_bundle_at_the_first_step_after_a_start() {
    let world = World::new();
    let first = active(&world.start().await.unwrap());
    tokio::time::advance(49 * HOUR).await;
    let manager = world.start().await.unwrap();
    assert!(world.has_x509(&first.0));
    manager.step().await;
    assert!(!world.has_x509(&first.0));
    assert!(world.bundle().jwt_authority(&first.1).is_none());
    world.check_signing(&manager);
}

#[tokio::test(start_paused = true)]
async fn journals_of_absent_servers_are_forgotten() {
    let world = World::new();
    let absent = World {
        keys: Arc::new(Cut {
            inner: MemoryKeyManager::new(),
            fuse: Arc::clone(&world.fuse),
        }),
        ..world.clone()
    };
    absent.start().await.unwrap();
    let manager = world.start().await.unwrap();
    let journals = || world.store.inner.journals.lock().unwrap().len();
    assert_eq!(journals(), 2);
    for _ in 0..15 {
        tokio::time::advance(12 * HOUR).await;
        manager.step().await;
        tokio::time::advance(12 * HOUR).await;
        manager.step().await;
        assert_eq!(journals(), 2);
    }
    tokio::time::advance(8 * HOUR).await;
    manager.step().await;
    assert_eq!(journals(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_entry_decides_all_but_the_key() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let entry = entry(|parts| {
        parts.x509_svid_ttl = 600;
        parts.dns_names = vec!["db.example.org".to_owned(), "db".to_owned()];
    });
    let request = X509Request::for_entry(&entry, key.public_key().clone());
    let chain = manager.sign_x509(&request).unwrap();
    let [leaf] = chain.as_slice() else {
        panic!("a self-signed root is not handed out")
    };
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/db"]);
    assert_eq!(leaf.dns_names(), ["db.example.org", "db"]);
    assert_eq!(leaf.subject_text(), "CN=db.example.org,O=SPIRE,C=US");
    assert_eq!(leaf.public_key(), key.public_key());
    assert_eq!(leaf.not_before(), T0 - time::Duration::seconds(10));
    assert_eq!(leaf.not_after(), T0 + time::Duration::seconds(600));
}

#[tokio::test(start_paused = true)]
async fn lifetimes_follow_the_kind_and_end_with_the_authority() {
    let world = World::new();
    let agent_ttl = Some(2 * HOUR);
    let manager = world
        .start_as(AuthorityConfig {
            agent_ttl,
            ..config()
        })
        .await
        .unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let end = |request: &X509Request| manager.sign_x509(request).unwrap()[0].not_after() - T0;
    let agent = request(&key, X509Subject::Agent(id("/spire/agent/x")));
    let downstream = request(&key, X509Subject::DownstreamCa);
    assert_eq!(end(&workload(&key)), time::Duration::HOUR);
    assert_eq!(end(&agent), time::Duration::hours(2));
    assert_eq!(end(&downstream), time::Duration::DAY);
    let long = X509Request {
        ttl: Some(1000 * HOUR),
        ..workload(&key)
    };
    assert_eq!(end(&long), time::Duration::DAY);
    let endless = X509Request {
        ttl: Some(Duration::MAX),
        ..workload(&key)
    };
    assert_eq!(end(&endless), time::Duration::DAY);

    let token = manager
        .sign_jwt(&JwtRequest {
            ttl: Some(1000 * HOUR),
            ..token_request(&["a"])
        })
        .unwrap();
    assert_eq!(token.expires_at - T0, time::Duration::DAY);
    assert_eq!(token.issued_at, T0);
}

#[tokio::test(start_paused = true)]
async fn ids_that_do_not_fit_are_refused() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let foreign = SpiffeId::parse("spiffe://other.org/db").unwrap();
    let named = |spiffe_id: SpiffeId, dns_names: Vec<String>| X509Subject::Workload {
        spiffe_id,
        dns_names,
        name: None,
    };
    for subject in [
        named(foreign.clone(), Vec::new()),
        named(trust_domain().id(), Vec::new()),
        named(trust_domain().server_id(), Vec::new()),
        named(id("/spire/agent/x"), Vec::new()),
        named(id("/db"), vec!["not a name".to_owned()]),
        X509Subject::Agent(id("/db")),
        X509Subject::Agent(SpiffeId::parse("spiffe://other.org/spire/agent/x").unwrap()),
    ] {
        let refused = manager.sign_x509(&request(&key, subject));
        assert!(
            matches!(refused, Err(AuthorityError::InvalidArgument(_))),
            "{refused:?}"
        );
    }
    for refused in [
        manager.sign_jwt(&JwtRequest {
            spiffe_id: foreign,
            ..token_request(&["a"])
        }),
        manager.sign_jwt(&token_request(&[])),
        manager.sign_jwt(&token_request(&["", ""])),
    ] {
        assert!(
            matches!(refused, Err(AuthorityError::InvalidArgument(_))),
            "{refused:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_says_what_its_entry_says() {
    let world = World::new();
    let jwt_issuer = Some("https://issuer.example".to_owned());
    let manager = world
        .start_as(AuthorityConfig {
            jwt_issuer,
            ..config()
        })
        .await
        .unwrap();
    let entry = entry(|parts| {
        parts.jwt_svid_ttl = 60;
        parts.jwt_svid_include_jti = true;
    });
    let signed = manager
        .sign_jwt(&JwtRequest::for_entry(
            &entry,
            vec![String::new(), "a".to_owned()],
        ))
        .unwrap();
    let parts: Vec<_> = signed.token.split('.').collect();
    let header = decode(parts[0]);
    let kid = manager.jwt_state().unwrap().active.authority_id;
    assert_eq!(
        header,
        serde_json::json!({"alg": "ES256", "kid": kid, "typ": "JWT"})
    );
    let mut claims = decode(parts[1]);
    assert!(claims.as_object_mut().unwrap().remove("jti").is_some());
    let now = T0.unix_timestamp();
    let expected = serde_json::json!({
        "sub": "spiffe://example.org/db", "aud": ["a"], "iat": now, "exp": now + 60, "iss": "https://issuer.example",
    });
    assert_eq!(claims, expected);
    assert!(!format!("{signed:?}").contains(parts[2]), "tokens are not shown");
}

#[tokio::test(start_paused = true)]
async fn every_key_type_signs() {
    for key_type in [KeyType::EcP384, KeyType::Rsa2048] {
        let world = World::new();
        let types = AuthorityConfig {
            ca_key_type: key_type,
            jwt_key_type: key_type,
            ..config()
        };
        let manager = world.start_as(types.clone()).await.unwrap();
        world.check_signing(&manager);
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        manager.sign_x509_off_thread(workload(&key)).await.unwrap();
        manager.sign_jwt_off_thread(token_request(&["a"])).await.unwrap();
        let own = manager.server_svid().borrow().as_ref().unwrap().key().key_type();
        assert_eq!(own, Some(key_type));
        let again = world.start_as(types).await.unwrap();
        assert_eq!(active(&again), active(&manager));
    }
}

#[tokio::test(start_paused = true)]
async fn a_downstream_ca_is_an_authority_of_the_trust_domain() {
    let world = World::new();
    let manager = world.start().await.unwrap();
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let chain = manager
        .sign_x509(&request(&key, X509Subject::DownstreamCa))
        .unwrap();
    finial_identity::x509::check_authority(&chain[0], &trust_domain()).unwrap();
    assert!(
        chain[0].subject_text().contains("OU=DOWNSTREAM-1"),
        "{}",
        chain[0].subject_text()
    );
    let root = world.bundle().x509_authorities[0].certificate.clone();
    assert_eq!(chain[0].authority_key_id(), root.subject_key_id());
    assert_eq!(chain[0].issuer_der(), root.subject_der());
}

#[tokio::test(start_paused = true)]
async fn a_root_is_named_after_its_serial_number_unless_configured() {
    let root = |config: AuthorityConfig| async move {
        let world = World::new();
        world.start_as(config).await.unwrap();
        world.bundle().x509_authorities[0].certificate.clone()
    };
    let certificate: Certificate = root(config()).await;
    let expected = format!("SERIALNUMBER={},O=SPIFFE,C=US", certificate.serial_decimal());
    assert_eq!(certificate.subject_text(), expected);
    assert_eq!(certificate.uri_sans(), ["spiffe://example.org"]);
    assert_eq!(certificate.authority_key_id(), None);
    let ca_subject = CaSubject {
        country: Vec::new(),
        organization: Vec::new(),
        common_name: "ca".to_owned(),
    };
    let certificate = root(AuthorityConfig {
        ca_subject,
        ..config()
    })
    .await;
    let expected = format!("SERIALNUMBER={},CN=ca", certificate.serial_decimal());
    assert_eq!(certificate.subject_text(), expected);
}

#[tokio::test]
async fn the_database_brings_authorities_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("datastore.sqlite3");
    let keys: Arc<dyn KeyManager> = Arc::new(MemoryKeyManager::new());
    let clock = Clock::system();
    let mut states = Vec::new();
    for _ in 0..2 {
        let trust_domain = trust_domain();
        let store = crate::store::SqliteStore::open(&path, &trust_domain, clock.clone());
        let store = Arc::new(store.await.unwrap());
        let shared = Arc::clone(&store) as Arc<dyn Store>;
        let manager = AuthorityManager::start(config(), Arc::clone(&keys), shared, clock.clone());
        let manager = manager.await.unwrap();
        if states.is_empty() {
            manager.prepare(AuthorityKind::X509).await.unwrap();
        }
        states.push((manager.x509_state().unwrap(), manager.jwt_state().unwrap()));
        store.close().await;
    }
    assert_eq!(states[0], states[1]);
}
