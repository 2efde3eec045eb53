//! The server's configuration: SPIRE's keys in HCL, JSON or YAML, command-line flags override the file.
//! The result is a checked [`Config`]. All mistakes are reported at once.

mod authority;
mod bundle_publisher;
mod experimental;
mod federation;
mod k8s_psat;
mod kubernetes;
mod plugins;
mod read;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::key::KeyType;
use finial_identity::settings::{Document, Telemetry};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use crate::telemetry::LogSettings;

pub use authority::{AuthorityConfig, CaSubject, WitConfig};
pub use bundle_publisher::{BundleFormat, ConfigMapPublisher};
pub use federation::{BundleEndpoint, EndpointCertificate, FederationConfig};
pub use finial_identity::settings::{ConfigError, HealthChecks};
pub use k8s_psat::K8sPsatCluster;
pub use kubernetes::{ClusterSource, IGNORED_NAMESPACES, KubernetesCluster, psat_agent_path};

/// Where the configuration stands unless `-config` says otherwise.
pub const DEFAULT_CONFIG_PATH: &str = "conf/server/server.conf";
/// Where local callers connect unless the configuration says otherwise.
pub const DEFAULT_SOCKET_PATH: &str = "/tmp/spire-server/private/api.sock";

/// The flags of `run` and `validate`, which override the file. Empty and 0 count as not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// The configuration file.
    pub config: Option<PathBuf>,
    /// `bind_address`
    pub bind_address: Option<String>,
    /// `bind_port`
    pub server_port: Option<u16>,
    /// `data_dir`
    pub data_dir: Option<String>,
    /// `log_file`
    pub log_file: Option<String>,
    /// `log_format`
    pub log_format: Option<String>,
    /// `log_level`
    pub log_level: Option<String>,
    /// `log_source_location`
    pub log_source_location: Option<bool>,
    /// `trust_domain`
    pub trust_domain: Option<String>,
    /// `socket_path`
    pub socket_path: Option<String>,
    /// Whether `$NAME` and `${NAME}` in the file are replaced by variables.
    pub expand_env: bool,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    trust_domain: TrustDomain,
    data_dir: PathBuf,
    bind: SocketAddr,
    socket_path: PathBuf,
    admin_ids: Vec<SpiffeId>,
    authority: AuthorityConfig,
    audit_log: bool,
    log: LogSettings,
    limits: RateLimits,
    prune_agents: Option<PruneAgents>,
    agent_spiffe_id_as_selector: bool,
    health_checks: Option<HealthChecks>,
    telemetry: Telemetry,
    database: PathBuf,
    keys: Keys,
    k8s_psat: Vec<K8sPsatCluster>,
    kubernetes: Vec<KubernetesCluster>,
    federation: FederationConfig,
    configmap_publishers: Vec<ConfigMapPublisher>,
    warnings: Vec<String>,
}

/// Which rate limits are on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// Of attestations.
    pub attestation: bool,
    /// Of signatures.
    pub signing: bool,
}

/// When expired nodes are deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PruneAgents {
    /// For how long they must have been expired.
    pub expired_for: Duration,
    /// How many at once.
    pub batch_size: u32,
    /// Also those that cannot attest again.
    pub tofu: bool,
}

/// Where private keys are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keys {
    /// `KeyManager "memory"`: new ones with each start.
    Memory,
    /// `KeyManager "disk"`: in this file.
    Disk(PathBuf),
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
        Ok(Self {
            telemetry: config.telemetry.with_variables(env),
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

    /// The configuration of a server for development: everything in one directory, a loopback port
    /// that the system chooses, join tokens.
    pub fn dev(trust_domain: TrustDomain, data_dir: &Path, socket_path: &Path) -> Self {
        Self {
            data_dir: data_dir.to_owned(),
            bind: SocketAddr::from(([127, 0, 0, 1], 0)),
            socket_path: socket_path.to_owned(),
            admin_ids: Vec::new(),
            authority: AuthorityConfig::new(trust_domain.clone()),
            audit_log: false,
            log: LogSettings::default(),
            limits: RateLimits {
                attestation: true,
                signing: true,
            },
            prune_agents: None,
            agent_spiffe_id_as_selector: false,
            health_checks: None,
            telemetry: Telemetry::default(),
            database: data_dir.join("datastore.sqlite3"),
            keys: Keys::Disk(data_dir.join("keys.json")),
            k8s_psat: Vec::new(),
            kubernetes: Vec::new(),
            federation: FederationConfig::default(),
            configmap_publishers: Vec::new(),
            warnings: Vec::new(),
            trust_domain,
        }
    }

    /// The same with this TCP address.
    #[must_use]
    pub fn with_bind(self, bind: SocketAddr) -> Self {
        Self { bind, ..self }
    }

    /// The same with these settings of the authorities, whose trust domain stays the configured one.
    #[must_use]
    pub fn with_authority(self, change: impl FnOnce(&mut AuthorityConfig)) -> Self {
        let mut config = self;
        change(&mut config.authority);
        config.authority.trust_domain = config.trust_domain.clone();
        config
    }

    /// The same with an HTTP health listener.
    #[must_use]
    pub fn with_health_checks(self, health_checks: HealthChecks) -> Self {
        Self {
            health_checks: Some(health_checks),
            ..self
        }
    }

    /// The same with this federation.
    #[must_use]
    pub fn with_federation(self, federation: FederationConfig) -> Self {
        Self { federation, ..self }
    }

    /// The same with these clusters, whose objects declare entries.
    #[must_use]
    pub fn with_kubernetes(self, kubernetes: Vec<KubernetesCluster>) -> Self {
        Self { kubernetes, ..self }
    }

    /// `trust_domain`
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// `data_dir`
    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    /// `bind_address` and `bind_port`
    pub fn bind(&self) -> SocketAddr {
        self.bind
    }

    /// `socket_path`
    pub fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    /// `admin_ids`
    pub fn admin_ids(&self) -> &[SpiffeId] {
        &self.admin_ids
    }

    /// Everything about keys, lifetimes and what is signed.
    pub fn authority(&self) -> &AuthorityConfig {
        &self.authority
    }

    /// `audit_log_enabled`
    pub fn audit_log(&self) -> bool {
        self.audit_log
    }

    /// Where and how logs are written.
    pub fn log(&self) -> &LogSettings {
        &self.log
    }

    /// `ratelimit`
    pub fn limits(&self) -> RateLimits {
        self.limits
    }

    /// `prune_attested_nodes_expired_for` and its companions.
    pub fn prune_agents(&self) -> Option<PruneAgents> {
        self.prune_agents
    }

    /// `experimental.agent_spiffe_id_as_selector`
    pub fn agent_spiffe_id_as_selector(&self) -> bool {
        self.agent_spiffe_id_as_selector
    }

    /// `health_checks`, when its listener is on.
    pub fn health_checks(&self) -> Option<&HealthChecks> {
        self.health_checks.as_ref()
    }

    /// `telemetry`: metrics and traces.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The file of `DataStore "sql"`.
    pub fn database(&self) -> &Path {
        &self.database
    }

    /// The `KeyManager`.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// `NodeAttestor "k8s_psat"`: whose agents prove themselves by service account tokens; none when it is off.
    pub fn k8s_psat(&self) -> &[K8sPsatCluster] {
        &self.k8s_psat
    }

    /// `kubernetes.clusters`: where objects declare entries.
    pub fn kubernetes(&self) -> &[KubernetesCluster] {
        &self.kubernetes
    }

    /// `federation`: the bundle endpoint, and trust domains to federate with.
    pub fn federation(&self) -> &FederationConfig {
        &self.federation
    }

    /// `BundlePublisher "k8s_configmap"`: where the bundle is published.
    pub fn configmap_publishers(&self) -> &[ConfigMapPublisher] {
        &self.configmap_publishers
    }

    /// What is accepted but deserves a word in the log.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

fn default_key_type() -> KeyType {
    KeyType::default()
}
