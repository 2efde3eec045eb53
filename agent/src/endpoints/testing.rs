//! A served socket over a cache that the test fills, with a fake attestor and a fake signer of JWT-SVIDs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::bundle::{Bundle, JwtAuthority, WitAuthority};
use finial_identity::key::{JwsAlgorithm, KeyType, PrivateKey, PublicKey};
use finial_identity::process::{Clock, TaskSet};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::{jwt, wit};
use serde_json::json;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::client::{self, WorkloadClient};
use super::health::Probe;
use super::limits::Admission;
use super::listener::LocalSocket;
use super::routes::LocalRoutes;
use super::sds::Sds;
use super::session::{CallerPolicy, LoggedSelectors, Refusals, SessionParts, Sessions, SyncMode};
use super::workload_api::WorkloadApi;
use crate::config::SdsSettings;
use crate::node::{Jitter, NodeState};
use crate::socket_tree::PodRecord;
use crate::svids::tests::unissued;
use crate::svids::tokens::{JwtCache, JwtCacheSettings, JwtSource};
use crate::svids::{CachedEntry, IssuedSvid, SignedJwt, Snapshot, SvidCache, WitCache, WitSigner, WitSource};
use crate::test_pki::Authority;
use crate::upstream::UpstreamError;
use crate::workload::{
    AttestorError, ListedPod, PodLookup, PodReference, ProcFs, Process, WorkloadAttestation, WorkloadAttestor,
};

pub(crate) const TRUST_DOMAIN: &str = "example.org";
pub(crate) const KEY_ID: &str = "key-1";
pub(crate) const WIT_KEY_ID: &str = "wit-1";

/// What the fake attestor answers: selectors, or a failure.
pub(crate) type Facts = Arc<Mutex<Option<Vec<&'static str>>>>;

/// What tests fill and stop.
#[derive(Debug)]
pub(crate) struct World {
    pub authority: Authority,
    pub svids: SvidCache,
    pub node: watch::Sender<NodeState>,
    pub facts: Facts,
    pub clock: Clock,
    pub tasks: TaskSet,
    pub policy: CallerPolicy,
    pub sds: SdsSettings,
    pub own_pid: u32,
    pub is_pushed: bool,
    next: Mutex<Snapshot>,
}

#[derive(Debug)]
struct FakeAttestor(Facts);

#[async_trait]
impl WorkloadAttestor for FakeAttestor {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn attest(&self, _process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
        let facts = self.0.lock().unwrap().clone().ok_or(AttestorError::CutOff)?;
        Ok(facts
            .into_iter()
            .map(|fact| Selector::parse(fact).unwrap())
            .collect())
    }
}

/// What holds for processes by their pids; nothing can be told about others.
#[derive(Clone, Debug, Default)]
pub(crate) struct FactsByPid {
    pub by_pid: Arc<Mutex<HashMap<u32, Vec<&'static str>>>>,
    /// Published while the next process is attested.
    pub meanwhile: Arc<Mutex<Option<(SvidCache, Snapshot)>>>,
}

impl FactsByPid {
    pub(crate) fn set(&self, pid: u32, facts: &[&'static str]) {
        self.by_pid.lock().unwrap().insert(pid, facts.to_vec());
    }
}

#[async_trait]
impl WorkloadAttestor for FactsByPid {
    fn name(&self) -> &'static str {
        "facts"
    }

    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
        if let Some((cache, next)) = self.meanwhile.lock().unwrap().take() {
            cache.publish(next);
        }
        let facts = self.by_pid.lock().unwrap().get(&process.pid()).cloned();
        let facts = facts.ok_or(AttestorError::CutOff)?;
        let parse = |fact| Selector::parse(fact).unwrap();
        Ok(facts.into_iter().map(parse).collect())
    }
}

/// A kubelet that lists these pods, each with these facts; `None` does not answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct FakePods {
    listed: Arc<Mutex<Option<Vec<FakePod>>>>,
    /// After so many answers it lists none.
    answers_left: Arc<Mutex<Option<usize>>>,
}

type FakePod = (PodRecord, Vec<&'static str>);

impl FakePods {
    pub(crate) fn set(&self, pods: Option<&[(&str, &str, &[&'static str])]>) {
        let pod = |(name, uid, facts): &(&str, &str, &[&'static str])| {
            let record = PodRecord {
                uid: (*uid).to_owned(),
                namespace: "shop".to_owned(),
                name: (*name).to_owned(),
                service_account: "default".to_owned(),
            };
            (record, facts.to_vec())
        };
        *self.listed.lock().unwrap() = pods.map(|pods| pods.iter().map(pod).collect());
    }

    /// All pods go after so many answers.
    pub(crate) fn go_after(&self, answers: usize) {
        *self.answers_left.lock().unwrap() = Some(answers);
    }
}

#[async_trait]
impl PodLookup for FakePods {
    async fn by_uid(&self, _uid: &str) -> Result<Vec<Selector>, AttestorError> {
        Err(AttestorError::CutOff)
    }

    async fn listed(
        &self,
        meant: &PodReference,
        _max_age: Duration,
    ) -> Result<Option<ListedPod>, AttestorError> {
        if let Some(left) = self.answers_left.lock().unwrap().as_mut() {
            let Some(fewer) = left.checked_sub(1) else {
                return Ok(None);
            };
            *left = fewer;
        }
        let pods = self.listed.lock().unwrap();
        let pods = pods.as_ref().ok_or(AttestorError::CutOff)?;
        let found = pods.iter().find(|(record, _)| {
            let name = (record.namespace.clone(), record.name.clone());
            meant.name.as_ref().is_none_or(|told| *told == name)
                && meant.uid.as_ref().is_none_or(|told| *told == record.uid)
        });
        Ok(found.map(|(record, facts)| ListedPod {
            record: record.clone(),
            started_at: None,
            facts: facts.iter().map(|fact| Selector::parse(fact).unwrap()).collect(),
        }))
    }
}

/// A process that lives until it is killed.
#[derive(Debug)]
pub(crate) struct Workload(Child);

impl Workload {
    pub(crate) fn start() -> Self {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Self(command.spawn().unwrap())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _ended_already = self.0.kill();
        let _reaped_already = self.0.wait();
    }
}

/// Signs as a server would.
#[derive(Debug)]
struct FakeServer {
    key: Arc<PrivateKey>,
    clock: Clock,
}

#[async_trait]
impl JwtSource for FakeServer {
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        if entry_id == "unsignable" {
            return Err(UpstreamError::Malformed("no such entry".to_owned()));
        }
        let spiffe_id = format!("spiffe://{TRUST_DOMAIN}/{entry_id}");
        let now = self.clock.now();
        let claims = json!({
            "sub": spiffe_id, "aud": audiences, "iat": now.unix_timestamp(),
            "exp": now.unix_timestamp() + 300, "role": "db",
        });
        let token = jwt::sign(&*self.key, KEY_ID, claims.as_object().unwrap()).unwrap();
        Ok(SignedJwt {
            token: Arc::from(token),
            spiffe_id: SpiffeId::parse(&spiffe_id).unwrap(),
            issued_at: now,
            expires_at: now + time::Duration::minutes(5),
        })
    }
}

#[async_trait]
impl WitSource for FakeServer {
    async fn sign_wit(
        &self,
        entry_id: &str,
        public_key: &PublicKey,
        algorithm: JwsAlgorithm,
    ) -> Result<SignedJwt, UpstreamError> {
        if entry_id == "unsignable" {
            return Err(UpstreamError::Malformed("no such entry".to_owned()));
        }
        let spiffe_id = format!("spiffe://{TRUST_DOMAIN}/{entry_id}");
        let now = self.clock.now();
        let claims = json!({
            "sub": spiffe_id, "exp": now.unix_timestamp() + 300,
            "cnf": wit::confirmation(public_key, algorithm).unwrap(),
        });
        let token = wit::sign(&*self.key, WIT_KEY_ID, claims.as_object().unwrap()).unwrap();
        Ok(SignedJwt {
            token: Arc::from(token),
            spiffe_id: SpiffeId::parse(&spiffe_id).unwrap(),
            issued_at: now,
            expires_at: now + time::Duration::minutes(5),
        })
    }
}

impl World {
    /// A synced agent with no entries, whose callers are all `unix:uid:1000`.
    pub(crate) fn new() -> Self {
        Self::at(Clock::system())
    }

    pub(crate) fn at(clock: Clock) -> Self {
        Self::build(clock, None)
    }

    /// The same with the WIT profile.
    pub(crate) fn with_wit(clock: Clock) -> Self {
        Self::build(clock, Some(JwtCacheSettings::default()))
    }

    /// The same, whose cache keeps no WIT-SVID.
    pub(crate) fn with_wit_not_kept(clock: Clock) -> Self {
        let settings = JwtCacheSettings {
            max_size: 0,
            ..JwtCacheSettings::default()
        };
        Self::build(clock, Some(settings))
    }

    fn build(clock: Clock, wit: Option<JwtCacheSettings>) -> Self {
        let authority = Authority::new(TRUST_DOMAIN);
        let jwt_key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        let mut bundle = authority.bundle();
        bundle.jwt_authorities = vec![jwt_authority(&jwt_key)];
        let source = FakeServer {
            key: jwt_key,
            clock: clock.clone(),
        };
        let jwt = JwtCache::new(
            Arc::new(source),
            JwtCacheSettings::default(),
            clock.clone(),
            Jitter::new(|| 0.5),
        );
        let wit = wit.map(|settings| {
            let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
            bundle.append_wit(vec![WitAuthority(JwtAuthority {
                key_id: WIT_KEY_ID.to_owned(),
                ..jwt_authority(&key)
            })]);
            let server = FakeServer {
                key,
                clock: clock.clone(),
            };
            WitCache::new(
                Arc::new(WitSigner::new(Arc::new(server), KeyType::EcP256)),
                settings,
                clock.clone(),
                Jitter::new(|| 0.5),
            )
        });
        let svids = SvidCache::with_wit(Arc::new(bundle), jwt, wit);
        let mut next = (*svids.snapshot()).clone();
        next.synced_at = Some(clock.now());
        svids.publish(next.clone());
        Self {
            authority,
            svids,
            node: watch::Sender::new(NodeState::Serving),
            facts: Arc::new(Mutex::new(Some(vec!["unix:uid:1000"]))),
            clock,
            tasks: TaskSet::new(),
            policy: CallerPolicy {
                allow_unauthenticated_verifiers: false,
                allowed_foreign_jwt_claims: vec!["team".to_owned()],
                sync_interval: Duration::from_millis(50),
                logged_selectors: LoggedSelectors::default(),
            },
            sds: SdsSettings::default(),
            own_pid: u32::MAX,
            is_pushed: false,
            next: Mutex::new(next),
        }
    }

    /// An entry with its SVID, for `unix:uid:1000`.
    pub(crate) fn entry(&self, id: &str) -> CachedEntry {
        CachedEntry {
            svid: Some(self.issue(id)),
            ..self.unissued(id)
        }
    }

    /// An entry that has no SVID yet. Its SPIFFE ID ends in its id.
    pub(crate) fn unissued(&self, id: &str) -> CachedEntry {
        unissued(id, vec![Selector::parse("unix:uid:1000").unwrap()])
    }

    pub(crate) fn issue(&self, id: &str) -> Arc<IssuedSvid> {
        Arc::new(IssuedSvid::new(self.authority.svid(&format!("/{id}"))))
    }

    /// Publishes what `change` makes of the last snapshot.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = self.next.lock().unwrap();
        change(&mut next);
        self.svids.publish(next.clone());
    }

    pub(crate) fn publish_entries(&self, entries: Vec<CachedEntry>) {
        self.publish(|snapshot| snapshot.entries = entries.into_iter().map(Arc::new).collect());
    }

    pub(crate) fn own_bundle(&self) -> Bundle {
        (*self.next.lock().unwrap().own_bundle).clone()
    }

    pub(crate) fn parts(&self) -> SessionParts {
        let is_pushed = self.is_pushed;
        let attestor = Arc::new(FakeAttestor(Arc::clone(&self.facts)));
        SessionParts {
            refusals: Refusals::default(),
            attestation: WorkloadAttestation::new(vec![attestor], Duration::from_secs(5)),
            svids: self.svids.clone(),
            sync: SyncMode::new(move || is_pushed),
            node: self.node.subscribe(),
            clock: self.clock.clone(),
            stop: self.tasks.stop_signal(),
            own_pid: self.own_pid,
            policy: self.policy.clone(),
        }
    }

    /// Serves all of it on a socket.
    pub(crate) fn serve(mut self) -> Served {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("public/api.sock");
        let socket = LocalSocket::public(&path).unwrap();
        let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o777, 0o755));
        let probe = Probe::new(Some(path.clone()), self.node.subscribe());
        let sessions = Sessions::new(self.parts());
        let sds = Sds::new(sessions.clone(), self.sds.clone());
        let routes = LocalRoutes::new(probe)
            .with(WorkloadApi::new(sessions))
            .with(sds)
            .build()
            .unwrap();
        let stop = self.tasks.stop_signal();
        let serve = socket.serve(routes, Admission::new(4096), ProcFs::default(), stop);
        self.tasks.spawn("workload-api", serve);
        Served {
            world: self,
            path,
            _dir: dir,
        }
    }
}

/// A world behind a socket.
#[derive(Debug)]
pub(crate) struct Served {
    pub world: World,
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Served {
    pub(crate) async fn client(&self) -> WorkloadClient {
        client::workload(&self.path).await.unwrap()
    }

    /// Stops the tasks and waits for them.
    pub(crate) async fn stop(self) {
        let done = self.world.tasks.run_until_first_exit(std::future::ready(()));
        done.await.unwrap();
    }
}

pub(crate) fn jwt_authority(key: &PrivateKey) -> JwtAuthority {
    JwtAuthority {
        key_id: KEY_ID.to_owned(),
        public_key: key.public_key().clone(),
        expires_at: 0,
        tainted: false,
    }
}

/// A foreign trust domain with keys of its own.
#[derive(Debug)]
pub(crate) struct Foreign {
    pub name: TrustDomain,
    pub bundle: Bundle,
    key: PrivateKey,
}

impl Foreign {
    pub(crate) fn new(name: &str) -> Self {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let mut bundle = Authority::new(name).bundle();
        bundle.jwt_authorities = vec![jwt_authority(&key)];
        Self {
            name: TrustDomain::parse(name).unwrap(),
            bundle,
            key,
        }
    }

    /// A token of `/peer` in this trust domain.
    pub(crate) fn token(&self, audience: &serde_json::Value, at: OffsetDateTime) -> String {
        let claims = json!({
            "sub": format!("spiffe://{}/peer", self.name), "aud": audience, "iat": at.unix_timestamp(),
            "exp": at.unix_timestamp() + 300, "team": "blue", "role": "db", "iss": "https://foreign",
        });
        jwt::sign(&self.key, KEY_ID, claims.as_object().unwrap()).unwrap()
    }

    pub(crate) fn federated(&self) -> BTreeMap<TrustDomain, Arc<Bundle>> {
        BTreeMap::from([(self.name.clone(), Arc::new(self.bundle.clone()))])
    }
}

/// Selectors as a set.
pub(crate) fn selectors(texts: &[&str]) -> HashSet<Selector> {
    texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
}
