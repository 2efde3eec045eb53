//! Builds the agent from its parts: the only module that knows all concrete types.
//!
//! `build` reads what an earlier run saved and binds the sockets; `run` attests, syncs and serves until stopped.
//! When it stops, open streams end with `Unavailable` first, then the tasks that fed them.

mod admin;
mod caches;
mod labels;
mod node;
mod plugin_files;

#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use finial_identity::key::KeyError;
use finial_identity::process::private_file::FileError;
use finial_identity::process::unix_listener::ListenError;
use finial_identity::process::{Clock, TaskError, TaskSet, limits};
use finial_identity::traces::TraceExporter;
use tokio::sync::watch;
use tonic::transport::Channel;

use self::admin::AdminParts;
pub use self::plugin_files::PluginFiles;
use crate::config::Config;
use crate::endpoints::broker::{BrokerEndpoint, BrokerError, BrokerParts};
use crate::endpoints::explain::Redaction;
use crate::endpoints::health::Probe;
use crate::endpoints::http::{HttpError, HttpListeners, Watched};
use crate::endpoints::limits::{Admission, SocketShare, trim_after_crowds};
use crate::endpoints::listener::{LocalSocket, PrivateSocketError};
use crate::endpoints::pod_sockets::{PodSocketParts, PodSockets, PodSocketsError, pods_for_open_files};
use crate::endpoints::routes::{LocalRoutes, RoutesError};
use crate::endpoints::sds::Sds;
use crate::endpoints::session::{CallerPolicy, LoggedSelectors, Refusals, SessionParts, Sessions, SyncMode};
use crate::endpoints::workload_api::WorkloadApi;
use crate::node::{Jitter, NodeError, NodeState, RotationStrategy};
use crate::socket_tree::SocketTree;
use crate::svids::sync::{SyncSettings, Synchronizer};
use crate::telemetry::LogControl;
use crate::workload::{ConfiguredAttestors, ProcFs};

/// What the agent tells the server about itself.
const VERSION: &str = env!("CARGO_PKG_VERSION");

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
    labels::set(&config);
    let (node, lost) = node::open(&config, &clock, &jitter)?;
    let handle = node.handle();
    let (state, own_svid, degrading) = (handle.state(), handle.svid(), handle.clone());
    let own_bundle = handle.bundle_source();

    let svids = caches::open(&config, &handle, &clock, &jitter);
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
    let most_pods = pods_for_open_files(files);
    if config.csi().is_some_and(|csi| csi.per_pod) {
        files = files.saturating_sub(most_pods.try_into().unwrap_or(u64::MAX));
    }
    let mut take_share = || {
        let share = SocketShare::of_open_files(files);
        files = files.saturating_sub(share.files());
        share
    };
    if let Some((settings, admin_socket)) = config.admin().zip(admin_socket) {
        let share = take_share();
        let redaction = config.redact().map(|prefixes| Redaction::new(prefixes.to_vec()));
        let per_pod = config.csi().filter(|csi| csi.per_pod);
        let routes = admin::routes(AdminParts {
            settings,
            share,
            sessions: &parts,
            redaction: redaction.unwrap_or_default(),
            pod_sockets: per_pod.map(|csi| SocketTree::layout(&csi.socket_dir)),
            svid: own_svid.clone(),
            log,
            probe: probe.clone(),
        })?;
        let admission = Admission::new(share.connections);
        tasks.spawn(
            "admin",
            admin_socket.serve(routes, admission, ProcFs::default(), stop.clone()),
        );
    }
    let broker_addr = broker.as_ref().and_then(BrokerEndpoint::tcp_addr);
    if let Some(broker) = broker {
        let share = take_share();
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
        let (too_many, told) = watch::channel(None);
        tasks.spawn("pods", degrading.follow_pods(told));
        let parts = PodSocketParts {
            most: most_pods,
            too_many,
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
