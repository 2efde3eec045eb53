//! Builds the agent from its parts: the only module that knows all concrete types.
//!
//! `build` reads what an earlier run saved and binds the sockets; `run` attests, syncs and serves until stopped.
//! When it stops, open streams end with `Unavailable` first, then the tasks that fed them.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use finial_identity::key::KeyError;
use finial_identity::key::PrivateKeyManager;
use finial_identity::key::manager::{DiskKeyManager, MemoryKeyManager};
use finial_identity::process::private_file::{self, FileError, FileMode};
use finial_identity::process::selinux;
use finial_identity::process::unix_listener::ListenError;
use finial_identity::process::{Clock, TaskError, TaskSet, limits};
use finial_identity::settings::{DataFile, Variables};
use finial_identity::traces::TraceExporter;
use finial_identity::x509::X509Svid;
use tokio::sync::watch;
use tonic::service::Routes;
use tonic::transport::Channel;
use zeroize::Zeroizing;

use crate::config::{AdminSettings, Config, Essentials, JoinToken, Keys, NodeAttestorSettings};
use crate::endpoints::admin::{DebugParts, DebugService, LoggerService};
use crate::endpoints::broker::{BrokerEndpoint, BrokerError, BrokerParts};
use crate::endpoints::delegated::{DelegatedIdentity, DelegatedIdentityParts};
use crate::endpoints::explain::{ExplainParts, ExplainService, Redaction};
use crate::endpoints::health::Probe;
use crate::endpoints::http::{HttpError, HttpListeners, Watched};
use crate::endpoints::limits::{Admission, SocketShare, trim_after_crowds};
use crate::endpoints::listener::{LocalSocket, PrivateSocketError};
use crate::endpoints::pods::{PodSocketParts, PodSockets, PodSocketsError};
use crate::endpoints::routes::{LocalRoutes, RoutesError};
use crate::endpoints::sds::Sds;
use crate::endpoints::session::{CallerPolicy, LoggedSelectors, Refusals, SessionParts, Sessions, SyncMode};
use crate::endpoints::workload_api::WorkloadApi;
use crate::node::{
    Jitter, Node, NodeAttestors, NodeError, NodeSettings, NodeState, RotationStrategy, SetAside,
};
use crate::socket_tree::SocketTree;
use crate::svids::sync::{SyncSettings, Synchronizer};
use crate::svids::tokens::JwtCacheSettings;
use crate::svids::{JwtCache, SvidCache, WitCache, WitSigner};
use crate::telemetry::LogControl;
use crate::workload::{ConfiguredAttestors, ProcFs};

/// What the agent tells the server about itself.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Join tokens are UUIDs, or what an operator chose.
const MAX_TOKEN_FILE: usize = 64 * 1024;
/// File of `KeyManager "disk"` in its directory, as SPIRE's agents have it.
const KEYS_FILE: &str = "keys.json";

/// Why an agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The join token cannot be read.
    #[error("join_token_file: {0}")]
    JoinToken(#[source] FileError),
    /// The directory of the keys cannot be made.
    #[error("key manager: {0}")]
    KeyDirectory(#[source] FileError),
    /// The keys cannot be read.
    #[error("key manager: {0}")]
    Keys(#[from] KeyError),
    /// What an earlier run saved cannot be taken up.
    #[error("{0}")]
    Node(#[from] NodeError),
    /// The Workload API's socket cannot be opened.
    #[error("{0}")]
    Socket(#[from] ListenError),
    /// The admin socket cannot be opened.
    #[error("admin {0}")]
    AdminSocket(#[from] PrivateSocketError),
    /// The Broker API cannot be served.
    #[error("{0}")]
    Broker(#[from] BrokerError),
    /// Pods cannot have sockets of their own.
    #[error("{0}")]
    PodSockets(#[from] PodSocketsError),
    /// Health checks or metrics cannot be served.
    #[error("{0}")]
    Http(#[from] HttpError),
    /// The schema for reflection is broken.
    #[error("{0}")]
    Routes(#[from] RoutesError),
}

/// An agent whose sockets are open and not yet served.
#[derive(Debug)]
pub struct Bound {
    socket_path: PathBuf,
    health_addr: Option<SocketAddr>,
    metrics_addr: Option<SocketAddr>,
    broker_addr: Option<SocketAddr>,
    state: watch::Receiver<NodeState>,
    plugin_files: PluginFiles,
    tasks: TaskSet,
}

/// The files that hold data of plugins (`plugin_data_file`).
#[derive(Clone, Debug)]
pub struct PluginFiles {
    attestors: ConfiguredAttestors,
    fixed: Vec<DataFile>,
}

/// Reads what an earlier run saved and binds all sockets. `log` is what the admin socket changes. Must be called on the runtime that runs the agent; one
/// with a single thread serves best.
///
/// # Errors
/// [`BuildError`]; then nothing is left bound.
pub async fn build(config: Config, clock: Clock, log: LogControl) -> Result<Bound, BuildError> {
    limits::raise_open_files();
    let essentials = config.essentials();
    let jitter = Jitter::random();
    // First, for its directory is for everybody to enter, and may contain or be the data directory.
    let socket = LocalSocket::public(&essentials.socket_path)?;
    let admin_socket = config
        .admin()
        .map(|admin| LocalSocket::private(&admin.socket_path, socket.path()))
        .transpose()?;
    let broker = match config.broker() {
        Some(settings) => Some(BrokerEndpoint::bind(settings, socket.path()).await?),
        None => None,
    };
    let pod_sockets = config.csi().map(PodSockets::open).transpose()?;
    label_sockets(&config);
    let (node, lost) = open_node(&config, &clock, &jitter)?;
    let handle = node.handle();
    let (state, own_svid) = (handle.state(), handle.svid());
    let own_bundle = handle.bundle_source();

    let jwt_defaults = JwtCacheSettings::default();
    let jwt_settings = JwtCacheSettings {
        max_size: config.jwt_svid_cache_max_size(),
        hit_timeout: config
            .jwt_svid_cache_hit_timeout()
            .unwrap_or(jwt_defaults.hit_timeout),
    };
    let jwt = JwtCache::new(
        Arc::new(handle.upstream().clone()),
        jwt_settings,
        clock.clone(),
        jitter.clone(),
    );
    let wit = config.features().wit_svids.then(|| {
        let signer = WitSigner::new(Arc::new(handle.upstream().clone()), config.workload_key_type());
        let settings = JwtCacheSettings {
            // As many as X.509-SVIDs: both are one for each entry.
            max_size: config.x509_svid_cache_max_size(),
            hit_timeout: jwt_settings.hit_timeout,
        };
        let counters = Arc::clone(jwt.counters());
        WitCache::counting(
            counters,
            Arc::new(signer),
            settings,
            clock.clone(),
            jitter.clone(),
        )
    });
    let svids = SvidCache::with_wit(handle.own_bundle(), jwt, wit);
    let synchronizer = Synchronizer::new(
        svids.clone(),
        handle.clone(),
        SyncSettings {
            sync_interval: config.sync_interval(),
            rotation: RotationStrategy::new(config.availability_target()),
            x509_svid_cache_max_size: config.x509_svid_cache_max_size(),
            workload_key_type: config.workload_key_type(),
            agent_version: VERSION.to_owned(),
        },
        clock.clone(),
        jitter,
    );

    let counters = synchronizer.counters();
    let watched = Watched {
        node: handle,
        svids: svids.clone(),
        sync: Arc::clone(&counters),
        clock: clock.clone(),
    };

    let (attestors, attestation) =
        ConfiguredAttestors::new(config.workload_attestors().clone(), clock.clone());
    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    let parts = SessionParts {
        refusals: Refusals::default(),
        attestation,
        svids,
        sync: SyncMode::new(move || counters.is_pushed()),
        node: state.clone(),
        clock,
        stop: stop.clone(),
        own_pid: std::process::id(),
        policy: CallerPolicy {
            allow_unauthenticated_verifiers: config.allow_unauthenticated_verifiers(),
            allowed_foreign_jwt_claims: config.allowed_foreign_jwt_claims().to_vec(),
            sync_interval: config.sync_interval(),
            logged_selectors: LoggedSelectors::new(config.log_selectors().to_vec()),
        },
    };
    let sessions = Sessions::new(parts.clone());
    let workload_api = (!config.disable_workload_api()).then(|| WorkloadApi::new(sessions.clone()));
    let sds = config
        .sds()
        .map(|settings| Sds::new(sessions.clone(), settings.clone()));
    let probed = workload_api.as_ref().map(|_| essentials.socket_path.clone());
    let probe = Probe::new(probed, state.clone()).telling(lost);
    let routes = LocalRoutes::new(probe.clone())
        .with_any(workload_api)
        .with_any(sds)
        .build()?;

    let http =
        HttpListeners::bind(config.health_checks(), config.telemetry(), probe.clone(), watched).await?;
    let (health_addr, metrics_addr) = (http.health_addr(), http.metrics_addr());

    tasks.spawn("node", node.run(stop.clone()));
    tasks.spawn("svids", synchronizer.run(stop.clone()));
    let mut files = limits::open_files();
    if let Some((settings, admin_socket)) = config.admin().zip(admin_socket) {
        let share = SocketShare::of_open_files(files);
        files = files.saturating_sub(share.files());
        let redaction = config.redact().map(|prefixes| Redaction::new(prefixes.to_vec()));
        let redaction = redaction.unwrap_or_default();
        let own_svid = own_svid.clone();
        let per_pod = config.csi().filter(|csi| csi.per_pod);
        let pod_sockets = per_pod.map(|csi| SocketTree::layout(&csi.socket_dir));
        let shown = (redaction, pod_sockets);
        let routes = admin_routes(settings, share, &parts, shown, own_svid, log, probe.clone())?;
        let admission = Admission::new(share.connections);
        tasks.spawn(
            "admin",
            admin_socket.serve(routes, admission, ProcFs::default(), stop.clone()),
        );
    }
    let broker_addr = broker.as_ref().and_then(BrokerEndpoint::tcp_addr);
    if let Some(broker) = broker {
        let share = SocketShare::of_open_files(files);
        files = files.saturating_sub(share.files());
        let serving = broker.into_tasks(BrokerParts {
            sessions,
            svid: own_svid,
            own_bundle,
            procfs: ProcFs::default(),
            share,
            stop: stop.clone(),
        })?;
        for (name, task) in serving {
            tasks.spawn(name, task);
        }
    }
    let admission = Admission::for_open_files(files)
        .limited_to(config.rate_limits())
        .telling_pods(config.workload_attestors().k8s.is_some());
    if let Some(pod_sockets) = pod_sockets {
        let parts = PodSocketParts {
            routes: routes.clone(),
            admission: admission.clone(),
            procfs: ProcFs::default(),
            stop: stop.clone(),
        };
        tasks.spawn("pod-sockets", pod_sockets.run(parts));
    }
    tasks.spawn("memory", trim_after_crowds(admission.clone(), stop.clone()));
    tasks.spawn(
        "workload-api",
        socket.serve(routes, admission, ProcFs::default(), stop.clone()),
    );
    for (name, listener) in http.into_tasks() {
        tasks.spawn(name, listener.run(stop.clone()));
    }
    Ok(Bound {
        socket_path: essentials.socket_path.clone(),
        health_addr,
        metrics_addr,
        broker_addr,
        state,
        plugin_files: PluginFiles {
            attestors,
            fixed: config.fixed_files().to_vec(),
        },
        tasks,
    })
}

impl Bound {
    /// The socket of the Workload API.
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    /// Where the HTTP health checks listen, when they do.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health_addr
    }

    /// Where Prometheus scrapes, when it does.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Where brokers are served over TCP, when they are.
    pub fn broker_addr(&self) -> Option<SocketAddr> {
        self.broker_addr
    }

    /// Sends traces for as long as the agent runs.
    pub fn export_traces(&mut self, exporter: TraceExporter, collector: Channel) {
        let stop = self.tasks.stop_signal();
        self.tasks.spawn("traces", exporter.run(collector, stop));
    }

    /// Follows the agent's state.
    pub fn state(&self) -> watch::Receiver<NodeState> {
        self.state.clone()
    }

    /// What is to be read again when the operator says so (SIGUSR1).
    pub fn plugin_files(&self) -> PluginFiles {
        self.plugin_files.clone()
    }

    /// Works until `shutdown` completes, or the agent is banned, or attesting for the first time can never succeed.
    ///
    /// # Errors
    /// What ended it, other than `shutdown`.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), TaskError> {
        tracing::info!(socket = %self.socket_path.display(), version = VERSION, "agent started");
        let outcome = self.tasks.run_until_first_exit(shutdown).await;
        tracing::info!("agent stopped");
        outcome
    }
}

impl PluginFiles {
    /// Reads them again. Workload attestors take what changed; what else there is counts at the next start. `env` looks
    /// variables up.
    pub async fn read_again(&mut self, env: Variables<'_>) {
        if !self.attestors.has_files() && self.fixed.is_empty() {
            tracing::info!("no plugin reads its data from a file");
        }
        self.attestors.read_again(env).await;
        for file in &self.fixed {
            tracing::info!(
                path = %file.path().display(),
                "data of this plugin is read at start: a change has its effect after a restart"
            );
        }
    }
}

/// Gives the folders that are mounted into pods the type that containers may open. Where that cannot be done the agent
/// serves all others.
fn label_sockets(config: &Config) {
    let Some(socket_type) = config.socket_selinux_type() else {
        return;
    };
    let public = config.essentials().socket_path.parent();
    let of_pods = config.csi().map(|csi| csi.socket_dir.as_path());
    for folder in public.into_iter().chain(of_pods) {
        match selinux::set_type(folder, socket_type) {
            Ok(changed) => {
                tracing::debug!(path = %folder.display(), changed, "SELinux types of sockets are set");
            }
            Err(error) => {
                tracing::warn!(path = %folder.display(), %error, "SELinux type of sockets cannot be set: containers may be kept from them");
            }
        }
    }
}

/// The services of the admin socket, in addition to health and reflection.
fn admin_routes(
    settings: &AdminSettings,
    share: SocketShare,
    parts: &SessionParts,
    (redaction, pod_sockets): (Redaction, Option<SocketTree>),
    svid: watch::Receiver<Option<Arc<X509Svid>>>,
    log: LogControl,
    probe: Probe,
) -> Result<Routes, RoutesError> {
    let delegated = DelegatedIdentityParts {
        attestation: parts.attestation.clone(),
        svids: parts.svids.clone(),
        node: parts.node.clone(),
        stop: parts.stop.clone(),
        clock: parts.clock.clone(),
        procfs: ProcFs::default(),
        authorized_delegates: settings.authorized_delegates.clone(),
        max_processes: share.processes,
        sync_interval: parts.policy.sync_interval,
    };
    let debug = DebugParts {
        svid: svid.clone(),
        svids: parts.svids.clone(),
        clock: parts.clock.clone(),
    };
    let explain = ExplainParts {
        sessions: parts.clone(),
        svid: svid.clone(),
        redaction,
        procfs: ProcFs::default(),
        pod_sockets,
    };
    LocalRoutes::new(probe)
        .with(ExplainService::server(explain))
        .with(DelegatedIdentity::server(delegated))
        .with(DebugService::server(debug))
        .with(LoggerService::server(log))
        .build()
}

/// The node, and what is said of files of an earlier run that could not be read.
fn open_node(config: &Config, clock: &Clock, jitter: &Jitter) -> Result<(Node, Vec<String>), BuildError> {
    let essentials = config.essentials();
    let is_spare = *config.node_attestor() != NodeAttestorSettings::JoinToken;
    let token = join_token(essentials, is_spare)?;
    let token = token.as_ref().map(|token| token.as_str());
    let attestors = NodeAttestors::new(config.node_attestor(), token);
    let mut lost = Vec::new();
    let keys: Arc<dyn PrivateKeyManager> = match &essentials.keys {
        Keys::Memory => Arc::new(MemoryKeyManager::new()),
        Keys::Disk(directory) => {
            private_file::create_private_dir(directory, FileMode::PRIVATE_DIR)
                .map_err(BuildError::KeyDirectory)?;
            match DiskKeyManager::open(&directory.join(KEYS_FILE)) {
                Err(KeyError::Corrupted { path, why }) if attestors.are_repeatable() => {
                    let file = SetAside::of(path.clone(), why, clock.now().unix_timestamp());
                    tracing::error!(file = %file, "the agent's keys are lost, it attests anew");
                    lost.push(file.to_string());
                    match file.is_away() {
                        true => Arc::new(DiskKeyManager::open(&path)?),
                        false => Arc::new(MemoryKeyManager::new()),
                    }
                }
                opened => Arc::new(opened?),
            }
        }
    };
    let settings = NodeSettings {
        trust_domain: essentials.trust_domain.clone(),
        server_address: essentials.server_address.clone(),
        server_port: essentials.server_port,
        bootstrap: essentials.bootstrap.clone(),
        rebootstrap: config.rebootstrap(),
        data_dir: essentials.data_dir.clone(),
        rotation: RotationStrategy::new(config.availability_target()),
        agent_version: VERSION.to_owned(),
    };
    let node = Node::open(settings, keys, attestors, clock.clone(), jitter.clone())?;
    lost.extend(node.set_aside().map(ToString::to_string));
    Ok((node, lost))
}

/// The join token if there is one. One beside another node attestor (`is_spare`) may have been removed after its use.
fn join_token(essentials: &Essentials, is_spare: bool) -> Result<Option<Zeroizing<String>>, BuildError> {
    Ok(match &essentials.join_token {
        None => None,
        Some(JoinToken::Given(token)) => Some(token.clone()),
        Some(JoinToken::File(path)) => match private_file::read_secret(path, MAX_TOKEN_FILE) {
            Err(FileError::Io { source, .. })
                if is_spare && source.kind() == std::io::ErrorKind::NotFound =>
            {
                tracing::info!(path = %path.display(), "there is no join token, the configured node attestor is used");
                None
            }
            token => {
                let token = token.map_err(BuildError::JoinToken)?;
                let text = String::from_utf8_lossy(token.as_bytes());
                Some(Zeroizing::new(text.into_owned()))
            }
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::time::Duration;

    use finial_identity::spiffe_id::TrustDomain;
    use finial_proto::spire::api::types::permission_denied_details::Reason;
    use finial_proto::workload::{X509svidRequest, X509svidResponse};
    use tonic::{Code, Status, Streaming};

    use super::*;
    use crate::config::{BootstrapSource, BundleFormat};
    use crate::endpoints::client;
    use crate::test_server::{TestServer, entry};

    struct Setup {
        server: TestServer,
        dir: tempfile::TempDir,
    }

    impl Setup {
        fn new() -> Self {
            let (server, dir) = (TestServer::start(), tempfile::tempdir().unwrap());
            let bundle = server.state().bundle.to_pem();
            std::fs::write(dir.path().join("bundle.pem"), bundle).unwrap();
            std::fs::write(dir.path().join("token"), "token\n").unwrap();
            Self { server, dir }
        }

        fn essentials(&self) -> Essentials {
            let path = |name: &str| self.dir.path().join(name);
            Essentials {
                trust_domain: TrustDomain::parse("example.org").unwrap(),
                server_address: self.server.address.ip().to_string(),
                server_port: self.server.address.port(),
                bootstrap: BootstrapSource::File {
                    path: path("bundle.pem"),
                    format: BundleFormat::Pem,
                },
                data_dir: path("agent"),
                socket_path: path("agent/public/api.sock"),
                keys: Keys::Disk(path("agent")),
                join_token: Some(JoinToken::File(path("token"))),
            }
        }

        async fn build(&self) -> Bound {
            build(Config::embedded(self.essentials()), Clock::system(), log())
                .await
                .unwrap()
        }
    }

    fn log() -> LogControl {
        let options = finial_identity::process::log::LogOptions {
            level: crate::telemetry::LogLevel::Info,
            format: crate::telemetry::LogFormat::Text,
            file: None,
            source_location: false,
            clock: Clock::system(),
        };
        finial_identity::process::log::build(options).unwrap().1
    }

    fn uid() -> u32 {
        rustix::process::geteuid().as_raw()
    }

    /// The agent's own process is never made to wait, so the first sync is waited for here.
    async fn open(client: &mut client::WorkloadClient) -> Streaming<X509svidResponse> {
        loop {
            match client.fetch_x509svid(X509svidRequest {}).await {
                Ok(stream) => return stream.into_inner(),
                Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
            }
            tokio::task::yield_now().await;
        }
    }

    async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<Vec<String>, Status> {
        let message = tokio::time::timeout(Duration::from_secs(20), stream.message())
            .await
            .unwrap()?;
        let svids = message.expect("streams never end with OK").svids;
        Ok(svids.into_iter().map(|svid| svid.spiffe_id).collect())
    }

    #[tokio::test]
    async fn a_whole_agent_serves_a_process_by_its_user_and_follows_the_server() {
        let setup = Setup::new();
        setup.server.put(entry("a", uid()));
        setup.server.put(entry("other", uid() + 1));
        let agent = setup.build().await;
        let (path, mut state) = (agent.socket_path().to_owned(), agent.state());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let workload = async {
            state.wait_for(NodeState::is_serving).await.unwrap();
            let mut client = client::workload(&path).await.unwrap();
            let mut stream = open(&mut client).await;
            assert_eq!(next(&mut stream).await.unwrap(), ["spiffe://example.org/a"]);
            setup.server.change(vec![entry("b", uid())], Vec::new());
            let both = ["spiffe://example.org/a", "spiffe://example.org/b"];
            assert_eq!(next(&mut stream).await.unwrap(), both);
            setup
                .server
                .change(Vec::new(), vec!["a".to_owned(), "b".to_owned()]);
            assert_eq!(
                next(&mut stream).await.unwrap_err().code(),
                Code::PermissionDenied
            );
            stop.send(()).unwrap();
        };
        let (outcome, ()) = tokio::join!(agent.run(async { drop(stopped.await) }), workload);
        outcome.unwrap();
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_ban_denies_open_streams_and_ends_the_agent() {
        let setup = Setup::new();
        setup.server.put(entry("a", uid()));
        let agent = setup.build().await;
        let (path, mut state) = (agent.socket_path().to_owned(), agent.state());
        let workload = async {
            state.wait_for(NodeState::is_serving).await.unwrap();
            let mut client = client::workload(&path).await.unwrap();
            let mut stream = open(&mut client).await;
            next(&mut stream).await.unwrap();
            setup.server.state().denied = Some(Reason::AgentBanned);
            setup.server.end_streams();
            assert_eq!(
                next(&mut stream).await.unwrap_err().code(),
                Code::PermissionDenied
            );
        };
        let (outcome, ()) = tokio::join!(agent.run(std::future::pending()), workload);
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("banned"), "{error}");
    }

    #[tokio::test]
    async fn the_sockets_directory_is_open_to_all_and_secrets_are_not() {
        use std::os::unix::fs::PermissionsExt as _;
        let setup = Setup::new();
        let agent = setup.build().await;
        let mode = |name: &str| {
            let metadata = std::fs::metadata(setup.dir.path().join(name)).unwrap();
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(
            (mode("agent"), mode("agent/public"), mode("agent/public/api.sock")),
            (0o755, 0o755, 0o777)
        );
        let (state, (stop, stopped)) = (agent.state(), tokio::sync::oneshot::channel::<()>());
        let serve = async {
            let mut state = state;
            state.wait_for(NodeState::is_serving).await.unwrap();
            drop(stop);
        };
        let (outcome, ()) = tokio::join!(agent.run(async { drop(stopped.await) }), serve);
        outcome.unwrap();
        assert_eq!(
            (mode("agent/agent-data.json"), mode("agent/keys.json")),
            (0o600, 0o600)
        );
    }

    #[tokio::test]
    async fn an_agent_in_a_cluster_waits_for_the_bundle_that_the_server_has_yet_to_publish() {
        let setup = Setup::new();
        let path = |name: &str| setup.dir.path().join(name).display().to_string();
        std::fs::remove_file(path("bundle.pem")).unwrap();
        let text = format!(
            r#"agent {{
                trust_domain = "example.org" server_address = "{}" server_port = {}
                trust_bundle_path = "{}" data_dir = "{}" socket_path = "{}"
            }}
            plugins {{
                KeyManager "memory" {{}}
                NodeAttestor "k8s_psat" {{ plugin_data {{ cluster = "demo" token_path = "{}" }} }}
                WorkloadAttestor "k8s" {{}}
            }}"#,
            setup.server.address.ip(),
            setup.server.address.port(),
            path("bundle.pem"),
            path("agent"),
            path("agent/public/api.sock"),
            path("token"),
        );
        let config = Config::parse(&text, Path::new("agent.conf"), &Default::default()).unwrap();
        let agent = build(config, Clock::system(), log()).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut state = agent.state();
        let waiting = async {
            let missing = path("bundle.pem");
            let told =
                |state: &NodeState| matches!(state, NodeState::Degraded(why) if why.contains(&missing));
            state.wait_for(told).await.unwrap();
            std::fs::write(&missing, setup.server.state().bundle.to_pem()).unwrap();
            state.wait_for(NodeState::is_serving).await.unwrap();
            drop(stop);
        };
        let (outcome, ()) = tokio::join!(agent.run(async { drop(stopped.await) }), waiting);
        outcome.unwrap();
    }

    /// An agent of a cluster with this join token besides.
    fn of_a_cluster(setup: &Setup, token: &str) -> Config {
        let path = |name: &str| setup.dir.path().join(name).display().to_string();
        let text = format!(
            r#"agent {{
                trust_domain = "example.org" server_address = "{}" server_port = {}
                trust_bundle_path = "{}" data_dir = "{}" socket_path = "{}" {token}
            }}
            plugins {{
                KeyManager "disk" {{ plugin_data {{ directory = "{}" }} }}
                NodeAttestor "k8s_psat" {{ plugin_data {{ cluster = "demo" token_path = "{}" }} }}
                WorkloadAttestor "unix" {{}}
            }}"#,
            setup.server.address.ip(),
            setup.server.address.port(),
            path("bundle.pem"),
            path("agent"),
            path("agent/public/api.sock"),
            path("agent"),
            path("token"),
        );
        Config::parse(&text, Path::new("agent.conf"), &Default::default()).unwrap()
    }

    /// Runs an agent until it serves.
    async fn run(config: &Config) {
        let agent = build(config.clone(), Clock::system(), log()).await.unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let mut state = agent.state();
        let serving = async {
            state.wait_for(NodeState::is_serving).await.unwrap();
            drop(stop);
        };
        let (outcome, ()) = tokio::join!(agent.run(async { drop(stopped.await) }), serving);
        outcome.unwrap();
    }

    #[tokio::test]
    async fn a_token_beside_another_attestor_is_for_the_first_time_alone() {
        let setup = Setup::new();
        let config = of_a_cluster(&setup, "join_token = \"token\"");
        for attestor in ["join_token", "k8s_psat"] {
            run(&config).await;
            let calls = setup.server.calls("attest ");
            assert_eq!(calls.last().unwrap(), &format!("attest {attestor}"));
            // The next start must attest again, with the same configuration.
            std::fs::remove_file(setup.dir.path().join("agent/keys.json")).unwrap();
        }
        assert_eq!(setup.server.calls("attest ").len(), 2);
    }

    #[tokio::test]
    async fn a_token_that_was_used_before_leaves_the_other_attestor() {
        let setup = Setup::new();
        setup.server.state().tokens.clear();
        run(&of_a_cluster(&setup, "join_token = \"token\"")).await;
        let calls = setup.server.calls("attest ");
        assert_eq!(calls, ["attest join_token", "attest k8s_psat"]);
    }

    #[tokio::test]
    async fn a_token_file_beside_another_attestor_may_be_gone() {
        let setup = Setup::new();
        let gone = setup.dir.path().join("gone");
        run(&of_a_cluster(&setup, &format!("join_token_file = {gone:?}"))).await;
        assert_eq!(setup.server.calls("attest "), ["attest k8s_psat"]);
    }

    #[tokio::test]
    async fn a_missing_token_file_is_told_before_anything_starts() {
        let setup = Setup::new();
        std::fs::remove_file(setup.dir.path().join("token")).unwrap();
        let error = build(Config::embedded(setup.essentials()), Clock::system(), log())
            .await
            .unwrap_err();
        assert!(matches!(error, BuildError::JoinToken(_)), "{error}");
        assert!(!setup.dir.path().join("agent/public/api.sock").exists());
    }
}
