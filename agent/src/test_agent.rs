//! An agent without sockets for tests: node, sync and cache, against a [`TestServer`].
#![allow(clippy::disallowed_methods, reason = "tests own their tasks")]

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::key::PrivateKeyManager;
use finial_identity::key::manager::DiskKeyManager;
use finial_identity::process::{Clock, Stop};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use tokio::task::JoinHandle;

use crate::config::Rebootstrap;
use crate::node::{
    BootstrapSource, BundleFormat, Jitter, JoinTokenAttestor, Node, NodeAttestor, NodeAttestors, NodeError,
    NodeHandle, NodeSettings, NodeState, RotationStrategy,
};
use crate::svids::{
    CachedEntry, JwtCache, JwtCacheSettings, Snapshot, SvidCache, SyncCounters, SyncSettings, Synchronizer,
};
use crate::test_server::TestServer;

#[derive(Debug)]
pub(crate) struct TestAgent {
    pub(crate) node: NodeHandle,
    pub(crate) cache: SvidCache,
    pub(crate) counters: Arc<SyncCounters>,
    pub(crate) run: JoinHandle<Result<(), NodeError>>,
    sync: JoinHandle<()>,
}

impl TestAgent {
    /// Starts with what `dir` holds, and a join token.
    pub(crate) fn start(server: &TestServer, dir: &Path) -> Self {
        Self::start_with(server, dir, Some(Arc::new(JoinTokenAttestor::new("token"))))
    }

    pub(crate) fn start_with(
        server: &TestServer,
        dir: &Path,
        attestor: Option<Arc<dyn NodeAttestor>>,
    ) -> Self {
        let settings = settings(server, dir);
        Self::start_as(settings, attestor, Clock::system())
    }

    /// With settings and a clock of the test's.
    pub(crate) fn start_as(
        settings: NodeSettings,
        attestor: Option<Arc<dyn NodeAttestor>>,
        clock: Clock,
    ) -> Self {
        let node = open_as(settings, attestor, clock.clone()).unwrap();
        let handle = node.handle();
        let jitter = Jitter::new(|| 0.5);
        let jwt = JwtCache::new(
            Arc::new(handle.upstream().clone()),
            JwtCacheSettings::default(),
            clock.clone(),
            jitter.clone(),
        );
        let cache = SvidCache::new(handle.own_bundle(), jwt);
        let sync_settings = SyncSettings {
            sync_interval: Duration::from_millis(200),
            agent_version: "1.2.3".to_owned(),
            ..SyncSettings::default()
        };
        let sync = Synchronizer::new(cache.clone(), handle.clone(), sync_settings, clock, jitter);
        Self {
            node: handle,
            cache,
            counters: sync.counters(),
            run: tokio::spawn(node.run(Stop::never())),
            sync: tokio::spawn(async move {
                let _never_fails = sync.run(Stop::never()).await;
            }),
        }
    }

    /// Waits for a snapshot that is as wanted.
    pub(crate) async fn snapshot(&self, what: &str, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut snapshots = self.cache.snapshots();
        let found = tokio::time::timeout(PATIENCE, snapshots.wait_for(|snapshot| wanted(snapshot))).await;
        match found {
            Ok(Ok(snapshot)) => Arc::clone(&snapshot),
            _ => panic!("no snapshot with {what}: {:#?}", self.cache.snapshot()),
        }
    }

    /// Waits until the entry has an SVID.
    pub(crate) async fn issued(&self, id: &str) -> Arc<CachedEntry> {
        let snapshot = self
            .snapshot(&format!("an SVID for {id}"), |snapshot| is_issued(snapshot, id))
            .await;
        Arc::clone(snapshot.entry(id).unwrap())
    }

    pub(crate) async fn state(&self, wanted: impl Fn(&NodeState) -> bool) -> NodeState {
        let mut states = self.node.state();
        let found = tokio::time::timeout(PATIENCE, states.wait_for(|state| wanted(state))).await;
        match found {
            Ok(Ok(state)) => state.clone(),
            _ => panic!("state stays {:?}", *self.node.state().borrow()),
        }
    }
}

impl Drop for TestAgent {
    fn drop(&mut self) {
        self.run.abort();
        self.sync.abort();
    }
}

/// Opens a node in `dir`, whose trust bundle is the server's unless there is a file already.
pub(crate) fn open(server: &TestServer, dir: &Path, attestor: Option<Arc<dyn NodeAttestor>>) -> Node {
    open_at(server, dir, attestor, Clock::system())
}

/// The same with a clock of the test's.
pub(crate) fn open_at(
    server: &TestServer,
    dir: &Path,
    attestor: Option<Arc<dyn NodeAttestor>>,
    clock: Clock,
) -> Node {
    open_as(settings(server, dir), attestor, clock).unwrap()
}

/// The same with settings of the test's.
pub(crate) fn open_as(
    settings: NodeSettings,
    attestor: Option<Arc<dyn NodeAttestor>>,
    clock: Clock,
) -> Result<Node, NodeError> {
    let keys = DiskKeyManager::open(&settings.data_dir.join("keys.json")).unwrap();
    let keys: Arc<dyn PrivateKeyManager> = Arc::new(keys);
    let attestors = NodeAttestors::only(attestor);
    Node::open(settings, keys, attestors, clock, Jitter::new(|| 0.5))
}

/// What an agent of `server` that lives in `dir` is started with.
pub(crate) fn settings(server: &TestServer, dir: &Path) -> NodeSettings {
    let path = dir.join("bundle.pem");
    if !path.exists() {
        std::fs::write(&path, server.state().bundle.to_pem()).unwrap();
    }
    NodeSettings {
        trust_domain: TrustDomain::parse("example.org").unwrap(),
        server_address: server.address.ip().to_string(),
        server_port: server.address.port(),
        bootstrap: BootstrapSource::File {
            path,
            format: BundleFormat::Pem,
        },
        rebootstrap: Rebootstrap::default(),
        data_dir: dir.to_owned(),
        rotation: RotationStrategy::default(),
        agent_version: "1.2.3".to_owned(),
    }
}

pub(crate) fn is_issued(snapshot: &Snapshot, id: &str) -> bool {
    snapshot.entry(id).is_some_and(|entry| entry.svid.is_some())
}

pub(crate) fn uid(uid: u32) -> Arc<HashSet<Selector>> {
    Arc::new(HashSet::from([
        Selector::new("unix", &format!("uid:{uid}")).unwrap()
    ]))
}

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
