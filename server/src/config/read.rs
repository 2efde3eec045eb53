//! From the document to [`Config`].

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use finial_identity::key::KeyType;
use finial_identity::settings::{
    Document, HealthChecks, LogFlags, Problems, Section, SettingsError, Telemetry, read_log,
};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use super::experimental;
use super::federation::{self, FederationConfig};
use super::k8s_psat;
use super::kubernetes::{self, KubernetesCluster};
use super::plugins::{self, Plugins};
use super::{
    AuthorityConfig, CaSubject, Config, DEFAULT_SOCKET_PATH, Flags, PruneAgents, RateLimits, default_key_type,
};
use crate::telemetry::LogSettings;

/// Reads everything; what is wrong is reported together.
pub fn read(document: &Document, flags: &Flags) -> Result<Config, SettingsError> {
    let problems = Problems::new();
    let root = document.section(&problems);
    let mut warnings = Vec::new();
    let server = root
        .required_section("server")
        .and_then(|server| Server::read(server, flags, &problems, &mut warnings));
    let plugins = root
        .required_section("plugins")
        .and_then(|section| plugins::read(section, &mut warnings));
    let health_checks = root.section("health_checks").and_then(HealthChecks::read);
    let telemetry = root.section("telemetry");
    let telemetry = telemetry.map(|section| Telemetry::read(section, &mut warnings));
    root.finish();
    if let (Some(server), Some(plugins)) = (&server, &plugins) {
        k8s_psat::check_rules(&plugins.k8s_psat, &server.kubernetes, &problems);
    }
    problems.into_result()?;
    // Whatever is missing was reported as a problem above.
    match (server, plugins) {
        (Some(server), Some(plugins)) => {
            let telemetry = telemetry.unwrap_or_default();
            Ok(server.into_config(plugins, health_checks, telemetry, warnings))
        }
        _ => Err(unreadable()),
    }
}

/// The `server` block.
struct Server {
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
    kubernetes: Vec<KubernetesCluster>,
    federation: FederationConfig,
}

impl Server {
    fn read(
        server: Section<'_>,
        flags: &Flags,
        problems: &Problems,
        warnings: &mut Vec<String>,
    ) -> Option<Self> {
        let trust_domain = read_trust_domain(&server, flags, problems);
        let data_dir = match given(&flags.data_dir) {
            Some(dir) => {
                server.string("data_dir");
                Some(dir)
            }
            None => server.required_string("data_dir"),
        };
        let bind = read_bind(&server, flags, problems);
        let socket_path = server.string("socket_path");
        let socket_path = given(&flags.socket_path)
            .or(socket_path)
            .unwrap_or_else(|| DEFAULT_SOCKET_PATH.to_owned());
        let admin_ids = server.parse_each("admin_ids", SpiffeId::parse);
        let log = read_log(&server, log_flags(flags), problems);
        let limits = read_limits(&server);
        let prune_agents = read_prune(&server);
        let audit_log = server.bool("audit_log_enabled").unwrap_or_default();
        let experimental = server
            .section("experimental")
            .map(|section| experimental::read(section, warnings))
            .unwrap_or_default();
        let kubernetes = server
            .section("kubernetes")
            .map(|section| kubernetes::read(section, warnings))
            .unwrap_or_default();
        let federation = server
            .section("federation")
            .map(|section| federation::read(section, trust_domain.as_ref(), warnings))
            .unwrap_or_default();
        refuse_unserved(&server, warnings);
        // Read before the early return, so that its mistakes are told together with the others.
        let fallback = TrustDomain::parse("example.org").ok()?;
        let mut authority = read_authority(&server, trust_domain.clone().unwrap_or(fallback), warnings);
        authority.wit = experimental.wit(authority.ca_key_type);
        server.finish();
        Some(Self {
            trust_domain: trust_domain?,
            data_dir: PathBuf::from(data_dir?),
            bind: bind?,
            socket_path: PathBuf::from(socket_path),
            admin_ids,
            authority,
            audit_log,
            log,
            limits,
            prune_agents,
            agent_spiffe_id_as_selector: experimental.agent_spiffe_id_as_selector,
            kubernetes,
            federation,
        })
    }

    fn into_config(
        self,
        plugins: Plugins,
        health_checks: Option<HealthChecks>,
        telemetry: Telemetry,
        warnings: Vec<String>,
    ) -> Config {
        let mut authority = self.authority;
        authority.unique_id = plugins.unique_id;
        Config {
            trust_domain: self.trust_domain,
            data_dir: self.data_dir,
            bind: self.bind,
            socket_path: self.socket_path,
            admin_ids: self.admin_ids,
            authority,
            audit_log: self.audit_log,
            log: self.log,
            limits: self.limits,
            prune_agents: self.prune_agents,
            agent_spiffe_id_as_selector: self.agent_spiffe_id_as_selector,
            health_checks,
            telemetry,
            database: plugins.database,
            keys: plugins.keys,
            k8s_psat: plugins.k8s_psat,
            kubernetes: self.kubernetes,
            federation: self.federation,
            configmap_publishers: plugins.configmap_publishers,
            warnings,
        }
    }
}

fn read_trust_domain(server: &Section<'_>, flags: &Flags, problems: &Problems) -> Option<TrustDomain> {
    match given(&flags.trust_domain) {
        None => server.required_parse("trust_domain", TrustDomain::parse_name_or_id),
        Some(name) => {
            server.string("trust_domain");
            TrustDomain::parse_name_or_id(&name)
                .map_err(|error| problems.add("-trustDomain", None, error.to_string()))
                .ok()
        }
    }
}

fn read_bind(server: &Section<'_>, flags: &Flags, problems: &Problems) -> Option<SocketAddr> {
    let address = server.parse("bind_address", str::parse::<IpAddr>);
    let port = server.u16("bind_port");
    let address = match given(&flags.bind_address) {
        None if server.has("bind_address") => address,
        None => Some(IpAddr::from([0, 0, 0, 0])),
        Some(text) => text
            .parse()
            .map_err(|error| problems.add("-bindAddress", None, format!("{error}: {text}")))
            .ok(),
    };
    let port = flags
        .server_port
        .or(port)
        .filter(|port| *port != 0)
        .unwrap_or(8081);
    address.map(|address| SocketAddr::new(address, port))
}

fn log_flags(flags: &Flags) -> LogFlags<'_> {
    LogFlags {
        file: flags.log_file.as_deref(),
        level: flags.log_level.as_deref(),
        format: flags.log_format.as_deref(),
        source_location: flags.log_source_location,
    }
}

fn read_limits(server: &Section<'_>) -> RateLimits {
    let Some(section) = server.section("ratelimit") else {
        return RateLimits {
            attestation: true,
            signing: true,
        };
    };
    let limits = RateLimits {
        attestation: section.bool("attestation").unwrap_or(true),
        signing: section.bool("signing").unwrap_or(true),
    };
    section.finish();
    limits
}

fn read_prune(server: &Section<'_>) -> Option<PruneAgents> {
    let expired_for = server.duration("prune_attested_nodes_expired_for");
    let batch_size = server
        .u32("prune_attested_nodes_batch_size")
        .filter(|size| *size > 0);
    let tofu = server.bool("prune_tofu_nodes").unwrap_or_default();
    Some(PruneAgents {
        expired_for: expired_for.filter(|duration| !duration.is_zero())?,
        batch_size: batch_size.unwrap_or(1000),
        tofu,
    })
}

fn refuse_unserved(server: &Section<'_>, warnings: &mut Vec<String>) {
    if !server.strings("proxy_protocol_trusted_cidrs").is_empty() {
        server.problem(
            "proxy_protocol_trusted_cidrs",
            "the PROXY protocol is not served by this version",
        );
    }
    // Callers are judged by memory that the store keeps current, never by a record known to be old.
    if server.duration("max_attested_node_info_staleness").is_some() {
        warnings.push(
            "server.max_attested_node_info_staleness: what is known of agents is always current; the key has no effect"
                .to_owned(),
        );
    }
    let mut profiling = server.bool("profiling_enabled").unwrap_or_default();
    for key in ["profiling_port", "profiling_freq", "profiling_names"] {
        profiling |= server.ignore(key);
    }
    if profiling {
        warnings.push("server.profiling_*: profiling is not served; the keys have no effect".to_owned());
    }
}

fn read_authority(
    server: &Section<'_>,
    trust_domain: TrustDomain,
    warnings: &mut Vec<String>,
) -> AuthorityConfig {
    let defaults = AuthorityConfig::new(trust_domain);
    let ttl = |key: &str, default: Duration| {
        server
            .duration(key)
            .filter(|ttl| !ttl.is_zero())
            .unwrap_or(default)
    };
    let ca_ttl = ttl("ca_ttl", defaults.ca_ttl);
    let x509_ttl = ttl("default_x509_svid_ttl", defaults.default_x509_svid_ttl);
    let jwt_ttl = ttl("default_jwt_svid_ttl", defaults.default_jwt_svid_ttl);
    let agent_ttl = server.duration("agent_ttl").filter(|ttl| !ttl.is_zero());
    let ca_key_type = server.parse("ca_key_type", str::parse::<KeyType>);
    let jwt_key_type = server.parse("jwt_key_type", str::parse::<KeyType>);
    let longest = (ca_ttl / 6).min(Duration::from_secs(7 * 24 * 3600));
    for (key, ttl) in [
        ("default_x509_svid_ttl", Some(x509_ttl)),
        ("default_jwt_svid_ttl", Some(jwt_ttl)),
        ("agent_ttl", agent_ttl),
    ] {
        if let Some(ttl) = ttl.filter(|ttl| *ttl > longest) {
            warnings.push(format!(
                "server.{key}: {} s is too high for ca_ttl {} s, and SVIDs may be issued with less: set ca_ttl to at least {} s, or {key} to at most {} s",
                ttl.as_secs(),
                ca_ttl.as_secs(),
                ttl.as_secs() * 6,
                longest.as_secs()
            ));
        }
    }
    AuthorityConfig {
        ca_ttl,
        ca_key_type: ca_key_type.unwrap_or_else(default_key_type),
        jwt_key_type: jwt_key_type.or(ca_key_type).unwrap_or_else(default_key_type),
        ca_subject: read_subject(server),
        jwt_issuer: server.string("jwt_issuer"),
        disable_jwt_svids: server.bool("disable_jwt_svids").unwrap_or_default(),
        default_x509_svid_ttl: x509_ttl,
        default_jwt_svid_ttl: jwt_ttl,
        agent_ttl,
        ..defaults
    }
}

/// Any value that is given replaces the whole default.
fn read_subject(server: &Section<'_>) -> CaSubject {
    let Some(section) = server.section("ca_subject") else {
        return CaSubject::default();
    };
    let subject = CaSubject {
        country: section.strings("country"),
        organization: section.strings("organization"),
        common_name: section.string("common_name").unwrap_or_default(),
    };
    section.finish();
    if subject.is_empty() {
        CaSubject::default()
    } else {
        subject
    }
}

fn given(flag: &Option<String>) -> Option<String> {
    flag.clone().filter(|value| !value.is_empty())
}

fn unreadable() -> SettingsError {
    let problems = Problems::new();
    problems.add("server", None, "cannot be read");
    match problems.into_result() {
        Err(error) => error,
        Ok(()) => unreachable!("a problem was added above"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Keys};
    use super::*;

    const MINIMAL: &str = r#"
        server {
            trust_domain = "example.org"
            data_dir = "/var/lib/finial"
        }
        plugins {
            DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/var/lib/finial/db.sqlite3" } }
            KeyManager "memory" { plugin_data {} }
        }
    "#;

    fn parse(text: &str) -> Result<Config, String> {
        parse_with(text, &Flags::default())
    }

    fn parse_with(text: &str, flags: &Flags) -> Result<Config, String> {
        Config::parse(text, Path::new("server.conf"), flags).map_err(|error| error.to_string())
    }

    #[test]
    fn a_minimal_file_gives_spires_defaults() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.bind().to_string(), "0.0.0.0:8081");
        assert_eq!(config.socket_path(), Path::new(DEFAULT_SOCKET_PATH));
        assert_eq!(config.authority().ca_ttl, Duration::from_secs(86_400));
        assert_eq!(
            config.authority().default_x509_svid_ttl,
            Duration::from_secs(3600)
        );
        assert_eq!(config.authority().default_jwt_svid_ttl, Duration::from_secs(300));
        assert_eq!(config.authority().agent_ttl, None);
        assert_eq!(config.authority().ca_subject, CaSubject::default());
        assert!(config.limits().attestation && config.limits().signing);
        assert_eq!(config.keys(), &Keys::Memory);
        assert!(config.health_checks().is_none() && !config.audit_log());
        assert_eq!(config.warnings(), [""; 0]);
    }

    #[test]
    fn flags_override_the_file_and_supply_what_it_lacks() {
        let text = MINIMAL.replace(r#"trust_domain = "example.org""#, "bind_port = 9000");
        let flags = Flags {
            trust_domain: Some("spiffe://other.org".to_owned()),
            server_port: Some(9443),
            bind_address: Some("127.0.0.1".to_owned()),
            log_level: Some("debug".to_owned()),
            ..Flags::default()
        };
        let config = parse_with(&text, &flags).unwrap();
        assert_eq!(config.trust_domain().as_str(), "other.org");
        assert_eq!(config.bind().to_string(), "127.0.0.1:9443");
        assert_eq!(config.log().level, crate::telemetry::Level::Debug);
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let text = r#"
            server { trust_domain = "EXAMPLE" bind_port = 70000 colour = 1 ca_key_type = "dsa" }
            plugins { KeyManager "memory" {} }
        "#;
        let error = parse(text).unwrap_err();
        for part in [
            "trust_domain",
            "bind_port",
            "colour",
            "ca_key_type",
            "data_dir",
            "DataStore",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(error.starts_with("unknown configuration detected"), "{error}");
    }

    #[test]
    fn what_is_not_served_is_refused_by_name() {
        let text = MINIMAL.replace(
            "trust_domain",
            r#"federation { bundle_endpoint { port = 8443 acme {} } }
               proxy_protocol_trusted_cidrs = ["10.0.0.0/8"]
               experimental { require_pq_kem = true feature_flags = ["other"] }
               trust_domain"#,
        );
        let error = parse(&text).unwrap_err();
        for part in [
            "server.federation.bundle_endpoint.acme",
            "proxy_protocol",
            "require_pq_kem",
            "feature_flags",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn wit_svids_are_off_unless_the_flag_is_set() {
        assert_eq!(parse(MINIMAL).unwrap().authority().wit, None);
        let with = |experimental: &str| {
            let block = format!("ca_key_type = \"ec-p384\"\nexperimental {{ {experimental} }}\ntrust_domain");
            parse(&MINIMAL.replace("trust_domain", &block)).unwrap()
        };
        let on = with(r#"feature_flags = ["wit-svid"]"#);
        let wit = on.authority().wit.as_ref().unwrap();
        assert_eq!((wit.key_type, wit.issuer.as_deref()), (KeyType::EcP384, None));
        assert!(on.warnings().is_empty());
        let on = with(r#"feature_flags = ["wit-svid"] wit_key_type = "ec-p256" wit_issuer = "https://x""#);
        let wit = on.authority().wit.as_ref().unwrap();
        assert_eq!(
            (wit.key_type, wit.issuer.as_deref()),
            (KeyType::EcP256, Some("https://x"))
        );
        assert!(on.warnings()[0].contains("OpenID"), "{:?}", on.warnings());
        let off = with(r#"wit_key_type = "ec-p256""#);
        assert_eq!(off.authority().wit, None);
        assert!(off.warnings()[0].contains("wit_key_type"), "{:?}", off.warnings());
    }

    #[test]
    fn harmless_keys_of_spire_are_accepted_and_said_to_have_no_effect() {
        let text = format!(
            "{}\ntelemetry {{ Prometheus {{ port = 9988 }} }}",
            MINIMAL.replace(
                "trust_domain",
                "experimental { cache_reload_interval = \"5s\" events_based_cache = true }\nprofiling_enabled = true\n\
                 max_attested_node_info_staleness = \"5s\"\ntrust_domain"
            )
        );
        let config = parse(&text).unwrap();
        let [profiling, staleness] = config.warnings() else {
            panic!("{:?}", config.warnings());
        };
        assert!(profiling.contains("profiling") != staleness.contains("profiling"));
        assert!(
            [profiling, staleness]
                .iter()
                .any(|text| text.contains("max_attested_node_info_staleness"))
        );
        assert_eq!(
            config
                .telemetry()
                .prometheus
                .as_ref()
                .map(|prometheus| prometheus.port),
            Some(9988)
        );
    }

    #[test]
    fn a_ttl_too_long_for_the_ca_is_a_warning() {
        let text = MINIMAL.replace("trust_domain", "default_x509_svid_ttl = \"12h\"\ntrust_domain");
        let config = parse(&text).unwrap();
        assert!(
            config.warnings()[0].contains("default_x509_svid_ttl"),
            "{:?}",
            config.warnings()
        );
    }

    #[test]
    fn a_ca_subject_replaces_the_whole_default() {
        let text = MINIMAL.replace("trust_domain", "ca_subject { common_name = \"x\" }\ntrust_domain");
        let subject = parse(&text).unwrap().authority().ca_subject.clone();
        assert_eq!(subject.common_name, "x");
        assert!(subject.country.is_empty() && subject.organization.is_empty());
    }
}
