//! The agent's configuration: SPIRE's keys in HCL, JSON or YAML, command-line flags override the file.
//! The result is a checked [`Config`]. All mistakes are reported at once.

mod admin;
mod api_server;
mod attestors;
mod bootstrap;
mod broker;
mod cgroup_patterns;
mod csi;
mod explain;
mod features;
mod k8s;
mod limits;
mod node_attestor;
mod plugins;
mod read;
mod rootless;
mod sds;
mod selinux;
mod unserved;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::key::KeyType;
use finial_identity::settings::{DataFile, Document, Telemetry};
use finial_identity::spiffe_id::TrustDomain;
use zeroize::Zeroizing;

pub use self::admin::AdminSettings;
pub use self::api_server::ApiServer;
pub use self::attestors::{DockerSettings, UnixSettings, UserSocket, WorkloadAttestors};
pub use self::bootstrap::{Rebootstrap, RebootstrapMode};
pub use self::broker::{
    AllowedBroker, AllowedReference, BindAddress, BrokerSettings, OBJECT_REFERENCE, PID_REFERENCE,
};
pub use self::cgroup_patterns::{CgroupPatternError, CgroupPatterns};
pub use self::csi::{CsiSettings, NODE_NAME_VARIABLE};
pub use self::features::Features;
pub use self::k8s::{K8sSettings, KubeletLogin, KubeletPort, KubeletVerification};
pub use self::limits::RateLimits;
pub use self::node_attestor::{K8sPsatSettings, NodeAttestorSettings, X509PopSettings};
pub use self::rootless::TrustedUsers;
pub use self::sds::SdsSettings;
use crate::telemetry::LogSettings;

pub use finial_identity::settings::{ConfigError, HealthChecks};

/// Where the configuration stands unless `-config` says otherwise.
pub const DEFAULT_CONFIG_PATH: &str = "conf/agent/agent.conf";
/// Where workloads connect unless the configuration says otherwise.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-agent/public/api.sock";
/// Between polls of a server that cannot push, unless the configuration says otherwise.
pub const DEFAULT_SYNC_INTERVAL: Duration = Duration::from_secs(5);
/// How many SVIDs of each kind are kept, unless the configuration says otherwise.
pub const DEFAULT_CACHE_SIZE: usize = 1000;

/// The flags of `run` and `validate`, which override the file. Empty and 0 count as not given.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// `data_dir`
    pub data_dir: Option<String>,
    /// `join_token`
    pub join_token: Option<JoinToken>,
    /// `log_file`
    pub log_file: Option<String>,
    /// `log_format`
    pub log_format: Option<String>,
    /// `log_level`
    pub log_level: Option<String>,
    /// `log_source_location`
    pub log_source_location: Option<bool>,
    /// `server_address`
    pub server_address: Option<String>,
    /// `server_port`
    pub server_port: Option<u16>,
    /// `socket_path`
    pub socket_path: Option<String>,
    /// `trust_domain`
    pub trust_domain: Option<String>,
    /// `disable_workload_api`
    pub disable_workload_api: Option<bool>,
    /// `disable_sds_api`
    pub disable_sds_api: Option<bool>,
    /// `trust_bundle_path`
    pub trust_bundle: Option<String>,
    /// `trust_bundle_url`
    pub trust_bundle_url: Option<String>,
    /// `trust_bundle_format`
    pub trust_bundle_format: Option<String>,
    /// `allow_unauthenticated_verifiers`
    pub allow_unauthenticated_verifiers: Option<bool>,
    /// `insecure_bootstrap`
    pub insecure_bootstrap: Option<bool>,
    /// `rebootstrap_mode`
    pub rebootstrap_mode: Option<String>,
    /// `rebootstrap_delay`
    pub rebootstrap_delay: Option<String>,
    /// Whether `$NAME` and `${NAME}` in the file are replaced by variables.
    pub expand_env: bool,
}

/// A join token, or where it stands.
#[derive(Clone, PartialEq, Eq)]
pub enum JoinToken {
    /// `join_token`
    Given(Zeroizing<String>),
    /// `join_token_file`
    File(PathBuf),
}

/// Where private keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// `KeyManager "memory"`: the agent attests again with each start.
    Memory,
    /// `KeyManager "disk"`: in `keys.json` in this directory.
    Disk(PathBuf),
}

/// How the configured trust bundle is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BundleFormat {
    /// Certificates in PEM, one after the other.
    #[default]
    Pem,
    /// A SPIFFE bundle document; only its X.509 authorities count.
    Spiffe,
}

/// Where the first trust bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootstrapSource {
    /// A file, read at each attempt, so that it may arrive late.
    File {
        /// The file.
        path: PathBuf,
        /// How it is written.
        format: BundleFormat,
    },
    /// A URL (`trust_bundle_url`), asked at each attempt.
    Url {
        /// `https`, verified by the system's root certificates; `http` over a socket of this machine.
        url: http::Uri,
        /// Whom to ask instead of the URL's host (`trust_bundle_unix_socket`).
        unix_socket: Option<PathBuf>,
        /// How the answer is written.
        format: BundleFormat,
    },
    /// Another Workload API on this machine (`trust_bundle_spiffe_workload_api`).
    WorkloadApi {
        /// Its socket.
        socket: PathBuf,
    },
    /// A ConfigMap of the cluster that the agent is in (`trust_bundle_config_map`), asked for at each attempt.
    ConfigMap {
        /// Which, and where in it.
        map: ConfigMapKey,
        /// Who is asked.
        server: ApiServer,
        /// How the bundle is written.
        format: BundleFormat,
    },
    /// None: the server is not verified at the first contact.
    Insecure,
}

/// A key of a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapKey {
    /// The namespace that it is in.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// The key.
    pub key: String,
}

impl BootstrapSource {
    /// The same, with the API server from the environment.
    fn with_variables(self, env: &dyn Fn(&str) -> Option<String>) -> Self {
        match self {
            Self::ConfigMap { map, server, format } => Self::ConfigMap {
                map,
                server: server.with_variables(env),
                format,
            },
            other => other,
        }
    }
}

/// What an agent cannot do without; everything else has a default.
#[derive(Clone, Debug)]
pub struct Essentials {
    /// The agent's trust domain.
    pub trust_domain: TrustDomain,
    /// Host name or address of the server.
    pub server_address: String,
    /// The server's port.
    pub server_port: u16,
    /// Whom to trust at first contact.
    pub bootstrap: BootstrapSource,
    /// What the agent keeps across restarts.
    pub data_dir: PathBuf,
    /// The socket of the Workload API.
    pub socket_path: PathBuf,
    /// Where private keys are kept.
    pub keys: Keys,
    /// Proves to the server that this agent may join.
    pub join_token: Option<JoinToken>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    essentials: Essentials,
    log: LogSettings,
    log_selectors: Vec<String>,
    workload_key_type: KeyType,
    availability_target: Option<Duration>,
    rebootstrap: Rebootstrap,
    x509_svid_cache_max_size: usize,
    jwt_svid_cache_max_size: usize,
    jwt_svid_cache_hit_timeout: Option<Duration>,
    sync_interval: Duration,
    allow_unauthenticated_verifiers: bool,
    allowed_foreign_jwt_claims: Vec<String>,
    disable_workload_api: bool,
    sds: Option<SdsSettings>,
    rate_limits: RateLimits,
    features: Features,
    node_attestor: NodeAttestorSettings,
    fixed_files: Vec<DataFile>,
    workload_attestors: WorkloadAttestors,
    health_checks: Option<HealthChecks>,
    admin: Option<AdminSettings>,
    broker: Option<BrokerSettings>,
    csi: Option<CsiSettings>,
    socket_selinux_type: Option<String>,
    redact: Option<Vec<String>>,
    telemetry: Telemetry,
    warnings: Vec<String>,
}

impl Config {
    /// Reads the file that the flags name and applies the flags. `env` looks variables up.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(flags: &Flags, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let path = flags.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG_PATH));
        let text = Document::read_text(path, flags.expand_env.then_some(env))?;
        let config = Self::parse(&text, path, flags)?;
        let bootstrap = config.essentials.bootstrap.with_variables(env);
        Ok(Self {
            essentials: Essentials {
                bootstrap,
                ..config.essentials
            },
            telemetry: config.telemetry.with_variables(env),
            csi: config.csi.map(|csi| csi.with_variables(env)),
            workload_attestors: config.workload_attestors.with_variables(env),
            ..config
        })
    }

    /// Checks a text as if it were the file at `path`, whose extension is the format.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn parse(text: &str, path: &Path, flags: &Flags) -> Result<Self, ConfigError> {
        let document = Document::parse_file(text, path)?;
        Ok(read::read(&document, flags)?)
    }

    /// An agent with all defaults and the workload attestor `unix`, for a process that embeds one.
    pub fn embedded(essentials: Essentials) -> Self {
        Self {
            essentials,
            log: LogSettings::default(),
            log_selectors: Vec::new(),
            workload_key_type: KeyType::EcP256,
            availability_target: None,
            rebootstrap: Rebootstrap::default(),
            x509_svid_cache_max_size: DEFAULT_CACHE_SIZE,
            jwt_svid_cache_max_size: DEFAULT_CACHE_SIZE,
            jwt_svid_cache_hit_timeout: None,
            sync_interval: DEFAULT_SYNC_INTERVAL,
            allow_unauthenticated_verifiers: false,
            allowed_foreign_jwt_claims: Vec::new(),
            disable_workload_api: false,
            sds: Some(SdsSettings::default()),
            rate_limits: RateLimits::default(),
            features: Features::default(),
            node_attestor: NodeAttestorSettings::JoinToken,
            fixed_files: Vec::new(),
            workload_attestors: WorkloadAttestors {
                unix: Some(UnixSettings::default()),
                ..WorkloadAttestors::default()
            },
            health_checks: None,
            admin: None,
            broker: None,
            csi: None,
            socket_selinux_type: None,
            redact: None,
            telemetry: Telemetry::default(),
            warnings: Vec::new(),
        }
    }

    /// What the agent cannot do without.
    pub fn essentials(&self) -> &Essentials {
        &self.essentials
    }

    /// How and where to log.
    pub fn log(&self) -> &LogSettings {
        &self.log
    }

    /// `log_selectors`: prefixes of selectors that may be logged.
    pub fn log_selectors(&self) -> &[String] {
        &self.log_selectors
    }

    /// `workload_x509_svid_key_type`
    pub fn workload_key_type(&self) -> KeyType {
        self.workload_key_type
    }

    /// `availability_target`
    pub fn availability_target(&self) -> Option<Duration> {
        self.availability_target
    }

    /// Whether the agent may return to its bootstrap source (`rebootstrap_mode`, `rebootstrap_delay`).
    pub fn rebootstrap(&self) -> Rebootstrap {
        self.rebootstrap
    }

    /// `x509_svid_cache_max_size`
    pub fn x509_svid_cache_max_size(&self) -> usize {
        self.x509_svid_cache_max_size
    }

    /// `jwt_svid_cache_max_size`
    pub fn jwt_svid_cache_max_size(&self) -> usize {
        self.jwt_svid_cache_max_size
    }

    /// `experimental.jwt_svid_cache_hit_timeout`
    pub fn jwt_svid_cache_hit_timeout(&self) -> Option<Duration> {
        self.jwt_svid_cache_hit_timeout
    }

    /// `experimental.sync_interval`
    pub fn sync_interval(&self) -> Duration {
        self.sync_interval
    }

    /// `allow_unauthenticated_verifiers`
    pub fn allow_unauthenticated_verifiers(&self) -> bool {
        self.allow_unauthenticated_verifiers
    }

    /// `allowed_foreign_jwt_claims`
    pub fn allowed_foreign_jwt_claims(&self) -> &[String] {
        &self.allowed_foreign_jwt_claims
    }

    /// `disable_workload_api`
    pub fn disable_workload_api(&self) -> bool {
        self.disable_workload_api
    }

    /// How often one caller may call each method (`experimental.ratelimit`).
    pub fn rate_limits(&self) -> RateLimits {
        self.rate_limits
    }

    /// What is not stable yet and was switched on (`experimental.feature_flags`).
    pub fn features(&self) -> Features {
        self.features
    }

    /// Envoy's secret discovery, when it is on (`sds`, `disable_sds_api`).
    pub fn sds(&self) -> Option<&SdsSettings> {
        self.sds.as_ref()
    }

    /// The `NodeAttestor` block.
    pub fn node_attestor(&self) -> &NodeAttestorSettings {
        &self.node_attestor
    }

    /// Files with data of plugins (`plugin_data_file`) that are read at start and not again.
    pub fn fixed_files(&self) -> &[DataFile] {
        &self.fixed_files
    }

    /// The `WorkloadAttestor` blocks.
    pub fn workload_attestors(&self) -> &WorkloadAttestors {
        &self.workload_attestors
    }

    /// `explain.redact`: beginnings of selectors whose values operators are not shown; `None` for the default.
    pub fn redact(&self) -> Option<&[String]> {
        self.redact.as_deref()
    }

    /// `telemetry`: metrics and traces.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The HTTP health listener, when it is on.
    pub fn health_checks(&self) -> Option<&HealthChecks> {
        self.health_checks.as_ref()
    }

    /// The admin socket, when it is on.
    pub fn admin(&self) -> Option<&AdminSettings> {
        self.admin.as_ref()
    }

    /// The SPIFFE Broker API, when it is on (`experimental.broker`).
    pub fn broker(&self) -> Option<&BrokerSettings> {
        self.broker.as_ref()
    }

    /// The CSI driver and the sockets of its pods, when there are such (`csi`).
    pub fn csi(&self) -> Option<&CsiSettings> {
        self.csi.as_ref()
    }

    /// The type that the folders of sockets get where SELinux labels files (`selinux`).
    pub fn socket_selinux_type(&self) -> Option<&str> {
        self.socket_selinux_type.as_deref()
    }

    /// Parts that have no effect, and choices that deserve attention; one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

impl std::fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
        }
    }
}
