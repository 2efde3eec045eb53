//! From the document to [`Config`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::key::KeyType;
use finial_identity::settings::{
    Document, HealthChecks, LogFlags, Problems, Section, SettingsError, Telemetry, read_log,
};
use finial_identity::spiffe_id::TrustDomain;
use zeroize::Zeroizing;

use super::admin;
use super::plugins::{self, Plugins};
use super::unserved;
use super::{
    AdminSettings, BootstrapSource, BrokerSettings, Config, DEFAULT_CACHE_SIZE, DEFAULT_SOCKET_PATH,
    DEFAULT_SYNC_INTERVAL, Essentials, Features, Flags, JoinToken, RateLimits, Rebootstrap, SdsSettings,
    features, limits, sds,
};
use super::{CsiSettings, bootstrap, broker, csi, explain, selinux};
use crate::telemetry::LogSettings;

/// Reads everything; what is wrong is reported together.
pub(super) fn read(document: &Document, flags: &Flags) -> Result<Config, SettingsError> {
    let problems = Problems::new();
    let root = document.section(&problems);
    let mut warnings = Vec::new();
    let agent = root
        .required_section("agent")
        .map(|agent| Agent::read(agent, flags, &problems, &mut warnings));
    let plugins = root
        .required_section("plugins")
        .and_then(|plugins| plugins::read(plugins, &mut warnings));
    let health_checks = root.section("health_checks").and_then(HealthChecks::read);
    let telemetry = root.section("telemetry");
    let telemetry = telemetry.map(|section| Telemetry::read(section, &mut warnings));
    root.finish();
    let config = agent.zip(plugins).and_then(|(agent, plugins)| {
        agent.into_config(plugins, health_checks, telemetry.unwrap_or_default(), warnings)
    });
    match config {
        Some(config) => problems.into_result().map(|()| config),
        None => Err(reported(problems)),
    }
}

/// The `agent` block. What is `None` although it is required was reported.
struct Agent {
    trust_domain: Option<TrustDomain>,
    server_address: Option<String>,
    server_port: Option<u16>,
    bootstrap: Option<BootstrapSource>,
    rebootstrap: Rebootstrap,
    data_dir: PathBuf,
    socket_path: PathBuf,
    join_token: Option<JoinToken>,
    log: LogSettings,
    log_selectors: Vec<String>,
    workload_key_type: KeyType,
    availability_target: Option<Duration>,
    x509_svid_cache_max_size: usize,
    jwt_svid_cache_max_size: usize,
    allow_unauthenticated_verifiers: bool,
    allowed_foreign_jwt_claims: Vec<String>,
    disable_workload_api: bool,
    redact: Option<Vec<String>>,
    admin: Option<AdminSettings>,
    csi: Option<CsiSettings>,
    socket_selinux_type: Option<String>,
    sds: Option<SdsSettings>,
    experimental: Experimental,
}

/// The `experimental` block, as far as it has an effect.
#[derive(Default)]
struct Experimental {
    sync_interval: Option<Duration>,
    jwt_svid_cache_hit_timeout: Option<Duration>,
    rate_limits: RateLimits,
    broker: Option<BrokerSettings>,
    features: Features,
}

impl Agent {
    fn read(agent: Section<'_>, flags: &Flags, problems: &Problems, warnings: &mut Vec<String>) -> Self {
        let cache_size = |key: &str| {
            let size = agent.usize(key).filter(|size| *size > 0);
            size.unwrap_or(DEFAULT_CACHE_SIZE)
        };
        let socket_path = agent.string("socket_path");
        let data_dir = agent.string("data_dir");
        let allow_unauthenticated_verifiers = agent.bool("allow_unauthenticated_verifiers");
        let disable_workload_api = agent.bool("disable_workload_api");
        let (bootstrap, rebootstrap) = bootstrap::read(&agent, flags, problems, warnings);
        let mut read = Self {
            trust_domain: read_trust_domain(&agent, flags, problems),
            server_address: flag_or(&flags.server_address, &agent, "server_address"),
            server_port: read_server_port(&agent, flags),
            bootstrap,
            rebootstrap,
            data_dir: given(&flags.data_dir)
                .or(data_dir)
                .unwrap_or_else(|| ".".to_owned())
                .into(),
            socket_path: given(&flags.socket_path)
                .or(socket_path)
                .unwrap_or_else(|| DEFAULT_SOCKET_PATH.to_owned())
                .into(),
            join_token: read_join_token(&agent, flags),
            log: read_log(&agent, log_flags(flags), problems),
            log_selectors: agent.strings("log_selectors"),
            workload_key_type: read_key_type(&agent),
            availability_target: read_availability_target(&agent),
            x509_svid_cache_max_size: cache_size("x509_svid_cache_max_size"),
            jwt_svid_cache_max_size: cache_size("jwt_svid_cache_max_size"),
            allow_unauthenticated_verifiers: flags
                .allow_unauthenticated_verifiers
                .or(allow_unauthenticated_verifiers)
                .unwrap_or_default(),
            allowed_foreign_jwt_claims: agent.strings("allowed_foreign_jwt_claims"),
            redact: explain::read(&agent),
            disable_workload_api: flags
                .disable_workload_api
                .or(disable_workload_api)
                .unwrap_or_default(),
            admin: None,
            csi: csi::read(&agent),
            socket_selinux_type: selinux::read(&agent),
            sds: sds::read(&agent, flags),
            experimental: Experimental::default(),
        };
        if let Some(section) = agent.section("experimental") {
            read.experimental = read_experimental(section, &read.socket_path, warnings);
        }
        read.admin = admin::read(&agent, read.trust_domain.as_ref(), &read.socket_path, warnings);
        let of_broker = read.experimental.broker.as_ref();
        let of_broker = of_broker.and_then(|broker| broker.socket_path.as_ref());
        if of_broker.is_some_and(|path| {
            read.admin
                .as_ref()
                .is_some_and(|admin| admin.socket_path == *path)
        }) {
            agent.problem(
                "admin_socket_path",
                "is the socket of experimental.broker as well: each needs its own",
            );
        }
        unserved::agent(&agent, warnings);
        agent.finish();
        read
    }

    fn into_config(
        self,
        plugins: Plugins,
        health_checks: Option<HealthChecks>,
        telemetry: Telemetry,
        warnings: Vec<String>,
    ) -> Option<Config> {
        Some(Config {
            essentials: Essentials {
                trust_domain: self.trust_domain?,
                server_address: self.server_address?,
                server_port: self.server_port?,
                bootstrap: self.bootstrap?,
                data_dir: self.data_dir,
                socket_path: self.socket_path,
                keys: plugins.keys,
                join_token: self.join_token,
            },
            log: self.log,
            log_selectors: self.log_selectors,
            workload_key_type: self.workload_key_type,
            availability_target: self.availability_target,
            rebootstrap: self.rebootstrap,
            x509_svid_cache_max_size: self.x509_svid_cache_max_size,
            jwt_svid_cache_max_size: self.jwt_svid_cache_max_size,
            jwt_svid_cache_hit_timeout: self.experimental.jwt_svid_cache_hit_timeout,
            sync_interval: self.experimental.sync_interval.unwrap_or(DEFAULT_SYNC_INTERVAL),
            allow_unauthenticated_verifiers: self.allow_unauthenticated_verifiers,
            allowed_foreign_jwt_claims: self.allowed_foreign_jwt_claims,
            disable_workload_api: self.disable_workload_api,
            redact: self.redact,
            sds: self.sds,
            rate_limits: self.experimental.rate_limits,
            features: self.experimental.features,
            node_attestor: plugins.node_attestor,
            fixed_files: plugins.fixed_files,
            workload_attestors: plugins.workload_attestors,
            health_checks,
            admin: self.admin,
            csi: self.csi,
            socket_selinux_type: self.socket_selinux_type,
            broker: self.experimental.broker,
            telemetry,
            warnings,
        })
    }
}

/// A text flag that is given and not empty.
pub(super) fn given(flag: &Option<String>) -> Option<String> {
    flag.clone().filter(|value| !value.is_empty())
}

/// A required text; a flag supplies what the file lacks.
fn flag_or(flag: &Option<String>, agent: &Section<'_>, key: &str) -> Option<String> {
    match given(flag) {
        Some(value) => {
            agent.string(key);
            Some(value)
        }
        None => agent.required_string(key),
    }
}

fn read_trust_domain(agent: &Section<'_>, flags: &Flags, problems: &Problems) -> Option<TrustDomain> {
    match given(&flags.trust_domain) {
        None => agent.required_parse("trust_domain", TrustDomain::parse_name_or_id),
        Some(name) => {
            agent.string("trust_domain");
            let parsed = TrustDomain::parse_name_or_id(&name);
            parsed
                .map_err(|error| problems.add("-trustDomain", None, error.to_string()))
                .ok()
        }
    }
}

fn read_server_port(agent: &Section<'_>, flags: &Flags) -> Option<u16> {
    let has_key = agent.has("server_port");
    let port = agent.u16("server_port");
    if let Some(port) = flags.server_port.filter(|port| *port != 0) {
        return Some(port);
    }
    match port.filter(|port| *port != 0) {
        None if !has_key || port == Some(0) => {
            agent.problem("server_port", "is required");
            None
        }
        port => port,
    }
}

/// A flag replaces whichever of the two keys the file has.
fn read_join_token(agent: &Section<'_>, flags: &Flags) -> Option<JoinToken> {
    let token = agent.string("join_token").map(Zeroizing::new);
    let file = agent.string("join_token_file").map(PathBuf::from);
    if let Some(token) = &flags.join_token {
        return Some(token.clone());
    }
    match (token, file) {
        (Some(_), Some(_)) => {
            agent.problem(
                "join_token_file",
                "only one of join_token and join_token_file can be set",
            );
            None
        }
        (Some(token), None) => Some(JoinToken::Given(token)),
        (None, file) => file.map(JoinToken::File),
    }
}

fn read_key_type(agent: &Section<'_>) -> KeyType {
    let read = agent.parse("workload_x509_svid_key_type", |text| match text {
        "rsa-2048" | "ec-p256" | "ec-p384" => text.parse::<KeyType>().map_err(|error| error.to_string()),
        other => Err(format!("must be rsa-2048, ec-p256 or ec-p384: {other}")),
    });
    read.unwrap_or(KeyType::EcP256)
}

fn read_availability_target(agent: &Section<'_>) -> Option<Duration> {
    let target = agent.duration("availability_target")?;
    if target < MIN_AVAILABILITY_TARGET {
        agent.problem("availability_target", "must be at least 24h");
    }
    Some(target)
}

fn log_flags(flags: &Flags) -> LogFlags<'_> {
    LogFlags {
        file: flags.log_file.as_deref(),
        level: flags.log_level.as_deref(),
        format: flags.log_format.as_deref(),
        source_location: flags.log_source_location,
    }
}

fn read_experimental(section: Section<'_>, public_socket: &Path, warnings: &mut Vec<String>) -> Experimental {
    let sync_interval = section
        .duration("sync_interval")
        .filter(|interval| !interval.is_zero());
    let hit_timeout = section
        .duration("jwt_svid_cache_hit_timeout")
        .filter(|timeout| !timeout.is_zero());
    let bounds = Duration::from_secs(5)..Duration::from_secs(30);
    if hit_timeout.is_some_and(|timeout| timeout == bounds.start || !bounds.contains(&timeout)) {
        section.problem(
            "jwt_svid_cache_hit_timeout",
            "must be more than 5s and less than 30s",
        );
    }
    let rate_limits = limits::read(&section);
    let broker = broker::read(&section, public_socket, warnings);
    let features = features::read(&section);
    unserved::experimental(&section, warnings);
    section.finish();
    Experimental {
        sync_interval,
        jwt_svid_cache_hit_timeout: hit_timeout,
        rate_limits,
        broker,
        features,
    }
}

/// The problems that kept the configuration from being put together.
fn reported(problems: Problems) -> SettingsError {
    if problems.is_empty() {
        // Cannot be: whatever is missing was reported. A wrong sentence is better than a crash.
        problems.add("agent", None, "cannot be read");
    }
    problems
        .into_result()
        .expect_err("there is a problem, if only the one above")
}

const MIN_AVAILABILITY_TARGET: Duration = Duration::from_secs(24 * 3600);
