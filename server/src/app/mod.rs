//! Builds the server from its parts: the only module that knows all concrete types.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finial_identity::federation::DeclaredSets;
use finial_identity::key::manager::{DiskKeyManager, MemoryKeyManager};
use finial_identity::key::{KeyError, KeyManager};
use finial_identity::metrics::{OwnIdentity, TlsError};
use finial_identity::peer::{self, BundleSource};
use finial_identity::process::http_listener::HttpListener;
use finial_identity::process::private_file::{FileError, FileMode, create_private_dir};
use finial_identity::process::unix_listener::{self, ListenError, UnixListenerOptions};
use finial_identity::process::{Clock, Stop, TaskError, TaskSet, limits};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::traces::TraceExporter;
use finial_identity::x509::Certificate;
use finial_proto::finial::server::explain::v1::explain_server::ExplainServer;
use finial_proto::finial::server::registry::v1::registry_server::RegistryServer;
use finial_proto::finial::server::sync::v1::sync_server::SyncServer;
use finial_proto::grpc::health::v1::health_server::HealthServer;
use finial_proto::spire::api::server::agent::v1::agent_server::AgentServer;
use finial_proto::spire::api::server::bundle::v1::bundle_server::BundleServer;
use finial_proto::spire::api::server::debug::v1::debug_server::DebugServer;
use finial_proto::spire::api::server::entry::v1::entry_server::EntryServer;
use finial_proto::spire::api::server::localauthority::v1::local_authority_server::LocalAuthorityServer;
use finial_proto::spire::api::server::logger::v1::logger_server::LoggerServer;
use finial_proto::spire::api::server::svid::v1::svid_server::SvidServer;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_server::TrustDomainServer;
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::service::{Routes, RoutesBuilder};
use tonic::transport::Channel;

use crate::api::agent::AgentService;
use crate::api::bundle::BundleService;
use crate::api::debug::DebugService;
use crate::api::entry::EntryService;
use crate::api::explain::ExplainService;
use crate::api::local_authority::LocalAuthorityService;
use crate::api::logger::LoggerService;
use crate::api::registry::RegistryService;
use crate::api::svid::SvidService;
use crate::api::sync::SyncService;
use crate::api::trust_domain::TrustDomainService;
use crate::api::{ApiSettings, Services};
use crate::attestation::Attestors;
use crate::attestation::join_token::JoinTokenAttestor;
use crate::attestation::k8s_psat::K8sPsatAttestor;
use crate::authority::{AuthorityError, AuthorityManager};
use crate::config::{Config, Keys};
use crate::endpoints::audit::Audit;
use crate::endpoints::caller::{Callers, client_policy};
use crate::endpoints::gate::Rules;
use crate::endpoints::health::HealthService;
use crate::endpoints::limits::{LimitSettings, Limits};
use crate::endpoints::tcp::TcpEndpoint;
use crate::endpoints::uds::UdsEndpoint;
use crate::federation::{Federation, FederationParts};
use crate::kubernetes::{self, KubernetesError};
use crate::registry::{Registry, RegistryError};
use crate::store::{Metered, OpenError, SqliteStore, Store, StoreError, prune};
use crate::telemetry::LogControl;

/// How long everything may take to end after the signal to stop, as in SPIRE.
pub const STOP_DEADLINE: Duration = Duration::from_secs(10);

/// The largest message that a caller may send: gRPC's usual limit, as SPIRE has it.
pub const MAX_MESSAGE: usize = 4 * 1024 * 1024;

/// Why a server cannot start.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The data directory cannot be made.
    #[error("data directory: {0}")]
    DataDir(#[source] FileError),
    /// The store cannot be opened.
    #[error("{0}")]
    Store(#[from] OpenError),
    /// The keys cannot be read.
    #[error("key manager: {0}")]
    Keys(#[from] KeyError),
    /// There is no authority to sign with.
    #[error("authority: {0}")]
    Authority(#[source] AuthorityError),
    /// What is registered cannot be read.
    #[error("registry: {0}")]
    Registry(#[from] RegistryError),
    /// A Kubernetes cluster cannot be asked about its agents or its objects.
    #[error("{0}")]
    Kubernetes(#[from] KubernetesError),
    /// The private socket cannot be opened.
    #[error("{0}")]
    Socket(#[from] ListenError),
    /// The metrics cannot be served over TLS.
    #[error("telemetry.Prometheus.tls: {0}")]
    MetricsTls(#[from] TlsError),
    /// The bundle endpoint's certificate cannot be used.
    #[error("federation.bundle_endpoint: {0}")]
    EndpointTls(#[source] TlsError),
    /// An address cannot be listened on.
    #[error("listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// What the system said.
        source: io::Error,
    },
}

/// A server that listens but does not work yet.
#[derive(Debug)]
pub struct Bound {
    tcp_addr: SocketAddr,
    socket_path: PathBuf,
    health_addr: Option<SocketAddr>,
    metrics_addr: Option<SocketAddr>,
    bundle_addr: Option<SocketAddr>,
    trust_domain: TrustDomain,
    store: Arc<SqliteStore>,
    tasks: TaskSet,
}

/// Opens the store, finds or makes the authorities, and binds all sockets.
///
/// # Errors
/// [`BuildError`]; then nothing is left bound.
pub async fn build(config: Config, clock: Clock, log: LogControl) -> Result<Bound, BuildError> {
    limits::raise_open_files();
    create_private_dir(config.data_dir(), FileMode::PUBLIC_DIR).map_err(BuildError::DataDir)?;
    let trust_domain = config.trust_domain().clone();
    let sqlite = Arc::new(SqliteStore::open(config.database(), &trust_domain, clock.clone()).await?);
    let store: Arc<dyn Store> = Arc::new(Metered::new(sqlite.clone()));
    let keys: Arc<dyn KeyManager> = match config.keys() {
        Keys::Memory => Arc::new(MemoryKeyManager::new()),
        Keys::Disk(path) => Arc::new(DiskKeyManager::open(path)?),
    };
    let authority = AuthorityManager::start(
        config.authority().clone(),
        keys,
        Arc::clone(&store),
        clock.clone(),
    )
    .await
    .map_err(BuildError::Authority)?;
    let registry = Registry::load(Arc::clone(&store), &trust_domain, clock.clone()).await?;

    let mut tasks = TaskSet::with_deadline(STOP_DEADLINE);
    let stop = tasks.stop_signal();
    let (declare, declared) = watch::channel(DeclaredSets::new());
    let federation = Federation::new(FederationParts {
        store: Arc::clone(&store),
        clock: clock.clone(),
        configured: config.federation().federates_with.clone(),
        declared,
        wit_svids: config.authority().wit.is_some(),
    });
    let declarations = kubernetes::Declarations {
        sets: declare,
        states: federation.states(),
    };
    kubernetes::start(config.kubernetes(), &registry, &declarations, &clock, &mut tasks).await?;
    kubernetes::publish_bundles(config.configmap_publishers(), &registry, &mut tasks).await?;
    let services = Arc::new(Services {
        trust_domain: trust_domain.clone(),
        store: Arc::clone(&store),
        registry: Arc::clone(&registry),
        authority: Arc::clone(&authority),
        federation: Arc::clone(&federation),
        attestors: attestors(&config, &store, &clock).await?,
        clock: clock.clone(),
        log,
        started_at: clock.now(),
        stop: stop.clone(),
        settings: ApiSettings {
            agent_spiffe_id_as_selector: config.agent_spiffe_id_as_selector(),
            disable_jwt_svids: config.authority().disable_jwt_svids,
            wit_svids: config.authority().wit.is_some(),
        },
    });
    let rules = Arc::new(Rules {
        callers: Callers::new(config.admin_ids().iter().cloned(), services.caller_lookup()),
        limits: Limits::new(LimitSettings {
            attestation: config.limits().attestation,
            signing: config.limits().signing,
        }),
        audit: Audit::new(config.audit_log()),
        services: Arc::clone(&services),
    });

    let tcp = listen(config.bind()).await?;
    let tcp_addr = local_addr(&tcp, config.bind())?;
    let bundles: Arc<dyn BundleSource> = Arc::new(RegisteredBundles(Arc::clone(&registry)));
    let tls = peer::server_config(
        authority.server_svid(),
        Some(peer::client_verifier(
            Arc::clone(&bundles),
            client_policy(config.trust_domain().clone(), config.admin_ids().to_vec()),
            clock.clone(),
            false,
        )),
        clock.clone(),
    );
    let tcp = TcpEndpoint::new(tcp, Arc::new(tls), Arc::clone(&rules), public_routes(&services));

    let (listener, socket) = unix_listener::bind(
        config.socket_path(),
        UnixListenerOptions {
            socket_mode: FileMode::new(0o770),
            dir_mode: FileMode::GROUP_DIR,
        },
    )?;
    let uds = UdsEndpoint::new(listener, socket, Arc::clone(&rules), private_routes(&services));

    let own = OwnIdentity {
        svid: authority.server_svid(),
        bundles,
    };
    let health = http::health(&config, &services).await?;
    let bundle_endpoint = http::bundle_endpoint(&config, &services).await?;
    let metrics = http::metrics(&config, &services, own).await?;
    let health_addr = health.as_ref().and_then(HttpListener::local_addr);
    let bundle_addr = bundle_endpoint.as_ref().and_then(HttpListener::local_addr);
    let metrics_addr = metrics.as_ref().and_then(HttpListener::local_addr);

    tasks.spawn("store", watch_store(Arc::clone(&sqlite), stop.clone()));
    tasks.spawn("authority", {
        let stop = stop.clone();
        async move { authority.run(stop).await }
    });
    tasks.spawn("registry", {
        let stop = stop.clone();
        async move { registry.run(stop).await }
    });
    tasks.spawn(
        "prune",
        prune::run(store, clock, config.prune_agents(), stop.clone()),
    );
    tasks.spawn("tcp", tcp.run(stop.clone()));
    tasks.spawn("uds", uds.run(stop.clone()));
    tasks.spawn("federation", federation.run(stop.clone()));
    let http = [
        ("health", health),
        ("metrics", metrics),
        ("bundle endpoint", bundle_endpoint),
    ];
    for (name, listener) in http {
        if let Some(listener) = listener {
            tasks.spawn(name, listener.run(stop.clone()));
        }
    }
    Ok(Bound {
        tcp_addr,
        socket_path: config.socket_path().to_owned(),
        health_addr,
        metrics_addr,
        bundle_addr,
        trust_domain,
        store: sqlite,
        tasks,
    })
}

impl Bound {
    /// Where agents connect.
    pub fn tcp_addr(&self) -> SocketAddr {
        self.tcp_addr
    }

    /// Where local callers connect.
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    /// Where the HTTP health checks are, when they are on.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health_addr
    }

    /// Where Prometheus scrapes, when it does.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics_addr
    }

    /// Where the own bundle is served to other trust domains, when it is.
    pub fn bundle_addr(&self) -> Option<SocketAddr> {
        self.bundle_addr
    }

    /// Sends traces for as long as the server runs.
    pub fn export_traces(&mut self, exporter: TraceExporter, collector: Channel) {
        let stop = self.tasks.stop_signal();
        self.tasks.spawn("traces", exporter.run(collector, stop));
    }

    /// Whose authority this is.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Serves until `shutdown` completes or a part fails. Then no new connection is accepted,
    /// streams are ended so that clients connect elsewhere, and what still runs after ten seconds is aborted.
    ///
    /// # Errors
    /// The first part that failed.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), TaskError> {
        tracing::info!(
            trust_domain = %self.trust_domain,
            address = %self.tcp_addr,
            socket = %self.socket_path.display(),
            "server started"
        );
        let ended = self.tasks.run_until_first_exit(shutdown).await;
        // Nobody writes any more.
        self.store.close().await;
        tracing::info!("server stopped");
        ended
    }
}

/// Join tokens need no block in the configuration, as in SPIRE.
async fn attestors(config: &Config, store: &Arc<dyn Store>, clock: &Clock) -> Result<Attestors, BuildError> {
    let attestors = Attestors::default().with(Arc::new(JoinTokenAttestor::new(
        config.trust_domain().clone(),
        Arc::clone(store),
        clock.clone(),
    )));
    if config.k8s_psat().is_empty() {
        return Ok(attestors);
    }
    let mut clusters = Vec::new();
    for settings in config.k8s_psat() {
        let client = kubernetes::client(&settings.name, settings.kube_config_file.as_ref()).await?;
        clusters.push((settings.clone(), client));
    }
    Ok(attestors.with(Arc::new(K8sPsatAttestor::new(
        config.trust_domain().clone(),
        clusters,
    ))))
}

/// Services of the TLS listener.
fn public_routes(services: &Arc<Services>) -> Routes {
    shared_routes(services).routes()
}

/// Services of the private socket: all of the other's, and what is for the machine's own operator.
fn private_routes(services: &Arc<Services>) -> Routes {
    let mut routes = shared_routes(services);
    let of = || Arc::clone(services);
    routes
        .add_service(LoggerServer::new(LoggerService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(DebugServer::new(DebugService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(ExplainServer::new(ExplainService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(RegistryServer::new(RegistryService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(HealthServer::new(HealthService::new(of())).max_decoding_message_size(MAX_MESSAGE));
    routes.routes()
}

fn shared_routes(services: &Arc<Services>) -> RoutesBuilder {
    let mut routes = Routes::builder();
    let of = || Arc::clone(services);
    routes
        .add_service(EntryServer::new(EntryService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(AgentServer::new(AgentService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(SvidServer::new(SvidService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(BundleServer::new(BundleService::new(of())).max_decoding_message_size(MAX_MESSAGE))
        .add_service(
            TrustDomainServer::new(TrustDomainService::new(of())).max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(
            LocalAuthorityServer::new(LocalAuthorityService::new(of()))
                .max_decoding_message_size(MAX_MESSAGE),
        )
        .add_service(SyncServer::new(SyncService::new(of())).max_decoding_message_size(MAX_MESSAGE));
    routes
}

/// Bundles as the registry has them now, for TLS.
#[derive(Debug)]
struct RegisteredBundles(Arc<Registry>);

impl BundleSource for RegisteredBundles {
    fn x509_authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        let bundle = self.0.bundle(trust_domain)?;
        Some(bundle.x509_certificates().into())
    }
}

/// Fails when the store takes no writes any more: a server that can only refuse had better end, so
/// that it is seen and started again.
async fn watch_store(store: Arc<SqliteStore>, stop: Stop) -> Result<(), StoreError> {
    tokio::select! {
        biased;
        () = stop.stopped() => Ok(()),
        () = store.closed() => Err(StoreError::Closed),
    }
}

async fn listen(address: SocketAddr) -> Result<TcpListener, BuildError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| BuildError::Listen {
            address: address.to_string(),
            source,
        })
}

fn local_addr(listener: &TcpListener, wanted: SocketAddr) -> Result<SocketAddr, BuildError> {
    listener.local_addr().map_err(|source| BuildError::Listen {
        address: wanted.to_string(),
        source,
    })
}

mod http;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
