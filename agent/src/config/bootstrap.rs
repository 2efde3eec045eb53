//! The source of the first trust bundle, exactly one; and whether the agent may use it again later.

use std::path::PathBuf;
use std::time::Duration;

use finial_identity::settings::{Problems, Section, parse_duration};
use http::Uri;

use super::read::given;
use super::{ApiServer, BootstrapSource, BundleFormat, ConfigMapKey, Flags};

/// Whether an agent whose server proves itself by authorities that the agent does not know returns to its bootstrap
/// source.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebootstrapMode {
    /// The bundle that was saved stays.
    #[default]
    Never,
    /// If the node attestor can attest more than once.
    Auto,
    /// In any case: a node attestor that cannot attest more than once is a mistake.
    Always,
}

/// `rebootstrap_mode` and `rebootstrap_delay`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebootstrap {
    /// Whether.
    pub mode: RebootstrapMode,
    /// For how long the server must have been unknown.
    pub delay: Duration,
}

impl Default for Rebootstrap {
    fn default() -> Self {
        Self {
            mode: RebootstrapMode::Never,
            delay: DEFAULT_DELAY,
        }
    }
}

/// Reads the keys of the trust bundle. No source when a problem was reported.
pub(super) fn read(
    agent: &Section<'_>,
    flags: &Flags,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> (Option<BootstrapSource>, Rebootstrap) {
    let insecure = agent.bool("insecure_bootstrap");
    let insecure = flags.insecure_bootstrap.or(insecure).unwrap_or_default();
    let rebootstrap = read_rebootstrap(agent, flags, insecure, problems, warnings);
    (
        read_source(agent, flags, insecure, problems, warnings),
        rebootstrap,
    )
}

fn read_source(
    agent: &Section<'_>,
    flags: &Flags,
    insecure: bool,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Option<BootstrapSource> {
    let path = agent.string("trust_bundle_path");
    let path = given(&flags.trust_bundle).or(path).map(PathBuf::from);
    let url = agent.string("trust_bundle_url");
    let url = given(&flags.trust_bundle_url).or(url);
    let unix_socket = agent.string("trust_bundle_unix_socket").map(PathBuf::from);
    let workload_api = agent.string("trust_bundle_spiffe_workload_api");
    let config_map = read_config_map(agent);
    let format = read_format(agent, flags, problems);

    let chosen = [
        ("trust_bundle_path", path.is_some()),
        ("trust_bundle_url", url.is_some()),
        ("trust_bundle_spiffe_workload_api", workload_api.is_some()),
        ("trust_bundle_config_map", config_map.is_some()),
        ("insecure_bootstrap", insecure),
    ];
    let chosen: Vec<_> = chosen
        .iter()
        .filter(|(_key, is)| *is)
        .map(|(key, _)| *key)
        .collect();
    if let [first, second, ..] = chosen.as_slice() {
        agent.problem(second, format!("only one of {first} and {second} can be set"));
        return None;
    }
    if unix_socket.is_some() && url.is_none() {
        agent.problem(
            "trust_bundle_unix_socket",
            "can only be set with trust_bundle_url",
        );
        return None;
    }
    if let Some(path) = path {
        return format.map(|format| BootstrapSource::File { path, format });
    }
    if let Some(url) = url {
        let checked = check_url(&url, unix_socket.is_some());
        let checked = checked.map_err(|why| agent.problem("trust_bundle_url", why)).ok();
        return Some(BootstrapSource::Url {
            url: checked?,
            unix_socket,
            format: format?,
        });
    }
    if let Some(address) = workload_api {
        let socket = socket_path(&address);
        let socket = socket.map_err(|why| agent.problem("trust_bundle_spiffe_workload_api", why));
        return socket.ok().map(|socket| BootstrapSource::WorkloadApi { socket });
    }
    if let Some(config_map) = config_map {
        return Some(BootstrapSource::ConfigMap {
            map: config_map?,
            server: ApiServer::default(),
            format: format?,
        });
    }
    if !insecure {
        agent.problem(
            "trust_bundle_path",
            "is required unless trust_bundle_url, trust_bundle_spiffe_workload_api, trust_bundle_config_map or \
             insecure_bootstrap is set",
        );
        return None;
    }
    warnings.push(
        "agent.insecure_bootstrap: the server is not verified at first contact; set trust_bundle_path instead"
            .to_owned(),
    );
    Some(BootstrapSource::Insecure)
}

fn read_rebootstrap(
    agent: &Section<'_>,
    flags: &Flags,
    insecure: bool,
    problems: &Problems,
    warnings: &mut Vec<String>,
) -> Rebootstrap {
    let mode = agent.parse("rebootstrap_mode", parse_mode);
    let delay = agent.duration("rebootstrap_delay");
    let flag_mode = given(&flags.rebootstrap_mode).and_then(|text| {
        let parsed = parse_mode(&text);
        parsed
            .map_err(|error| problems.add("-rebootstrapMode", None, error))
            .ok()
    });
    let flag_delay = given(&flags.rebootstrap_delay).and_then(|text| {
        let parsed = parse_duration(&text);
        parsed
            .map_err(|error| problems.add("-rebootstrapDelay", None, error.to_string()))
            .ok()
    });
    let mode = flag_mode.or(mode).unwrap_or_default();
    let delay = flag_delay.or(delay).filter(|delay| !delay.is_zero());
    if mode == RebootstrapMode::Never && delay.is_some() {
        warnings.push("agent.rebootstrap_delay: has no effect with rebootstrap_mode never".to_owned());
    }
    if mode != RebootstrapMode::Never && insecure {
        agent.problem(
            "rebootstrap_mode",
            "must be never with insecure_bootstrap: whoever answers would become the trust domain",
        );
    }
    Rebootstrap {
        mode,
        delay: delay.unwrap_or(DEFAULT_DELAY),
    }
}

/// The block, if it says anything; nothing in it when a problem was reported.
fn read_config_map(agent: &Section<'_>) -> Option<Option<ConfigMapKey>> {
    let block = agent.section("trust_bundle_config_map")?;
    let [namespace, name, key] = ["namespace", "name", "key"].map(|key| block.string(key));
    if namespace.is_none() && name.is_none() && key.is_none() {
        block.finish();
        return None;
    }
    let checked = |key: &str, value: Option<String>, is_good: fn(&str) -> bool| match value {
        Some(value) if is_good(&value) => Some(value),
        Some(value) => {
            block.problem(key, format!("is no name in Kubernetes: {value}"));
            None
        }
        None => {
            block.problem(key, "is required");
            None
        }
    };
    let map = (
        checked("namespace", namespace, is_object_name),
        checked("name", name, is_object_name),
        checked("key", key, |key| !key.is_empty()),
    );
    block.finish();
    let (Some(namespace), Some(name), Some(key)) = map else {
        return Some(None);
    };
    Some(Some(ConfigMapKey { namespace, name, key }))
}

/// Names of objects are those of RFC 1123, which can stand in a path as they are.
fn is_object_name(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let outer = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let ends = outer(name.bytes().next()) && outer(name.bytes().last());
    ends && name.len() <= 253 && name.bytes().all(inner)
}

fn read_format(agent: &Section<'_>, flags: &Flags, problems: &Problems) -> Option<BundleFormat> {
    let parse = |text: &str| match text {
        "pem" => Ok(BundleFormat::Pem),
        "spiffe" => Ok(BundleFormat::Spiffe),
        other => Err(format!("must be pem or spiffe: {other}")),
    };
    let of_file = agent.parse("trust_bundle_format", parse);
    match given(&flags.trust_bundle_format) {
        Some(text) => parse(&text)
            .map_err(|error| problems.add("-trustBundleFormat", None, error))
            .ok(),
        None => Some(of_file.unwrap_or_default()),
    }
}

fn parse_mode(text: &str) -> Result<RebootstrapMode, String> {
    match text {
        "never" => Ok(RebootstrapMode::Never),
        "auto" => Ok(RebootstrapMode::Auto),
        "always" => Ok(RebootstrapMode::Always),
        other => Err(format!("must be never, auto or always: {other}")),
    }
}

/// A URL whose answer can be trusted: over TLS, or over a socket of this machine.
fn check_url(text: &str, over_socket: bool) -> Result<Uri, String> {
    let url: Uri = text
        .parse()
        .map_err(|error| format!("not a URL: {text}: {error}"))?;
    let (scheme, with) = if over_socket {
        ("http", " with trust_bundle_unix_socket")
    } else {
        ("https", "")
    };
    if url.scheme_str() != Some(scheme) {
        return Err(format!("must begin with {scheme}://{with}: {text}"));
    }
    match url.authority() {
        Some(authority) if !authority.host().is_empty() && !authority.as_str().contains('@') => Ok(url),
        _ => Err(format!("must name a host and no user: {text}")),
    }
}

/// `unix:///run/api.sock`, `unix:/run/api.sock` or the path alone.
fn socket_path(address: &str) -> Result<PathBuf, String> {
    let path = address
        .strip_prefix("unix://")
        .or_else(|| address.strip_prefix("unix:"))
        .unwrap_or(address);
    if path.starts_with('/') {
        Ok(PathBuf::from(path))
    } else {
        Err(format!("must be the path of a Unix socket: {address}"))
    }
}

/// As SPIRE's agents have it.
const DEFAULT_DELAY: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parse_with(keys: &str, flags: &Flags) -> Result<Config, String> {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1
            {keys} }}
            plugins {{ KeyManager "memory" {{}} WorkloadAttestor "unix" {{}} NodeAttestor "join_token" {{}} }}"#
        );
        Config::parse(&text, Path::new("agent.conf"), flags).map_err(|error| error.to_string())
    }

    fn source(keys: &str) -> Result<BootstrapSource, String> {
        let config = parse_with(keys, &Flags::default())?;
        Ok(config.essentials().bootstrap.clone())
    }

    #[test]
    fn each_source_is_read() {
        let url = source(
            r#"trust_bundle_url = "https://bundles.example.org:8443/b?x=1" trust_bundle_format = "spiffe""#,
        );
        let expected = BootstrapSource::Url {
            url: Uri::from_static("https://bundles.example.org:8443/b?x=1"),
            unix_socket: None,
            format: BundleFormat::Spiffe,
        };
        assert_eq!(url.unwrap(), expected);
        let socket =
            source(r#"trust_bundle_url = "http://localhost/b" trust_bundle_unix_socket = "/run/b.sock""#);
        let expected = BootstrapSource::Url {
            url: Uri::from_static("http://localhost/b"),
            unix_socket: Some("/run/b.sock".into()),
            format: BundleFormat::Pem,
        };
        assert_eq!(socket.unwrap(), expected);
        for address in ["/run/api.sock", "unix:///run/api.sock", "unix:/run/api.sock"] {
            let found = source(&format!("trust_bundle_spiffe_workload_api = \"{address}\""));
            let socket = PathBuf::from("/run/api.sock");
            assert_eq!(found.unwrap(), BootstrapSource::WorkloadApi { socket });
        }
    }

    #[test]
    fn a_config_map_is_looked_for_where_the_environment_says_that_the_api_server_is() {
        let keys = r#"trust_bundle_config_map { namespace = "spire-system" name = "spire-bundle" key = "bundle.spiffe" }
            trust_bundle_format = "spiffe""#;
        let found = source(keys).unwrap();
        let expected = |host: Option<&str>, port| BootstrapSource::ConfigMap {
            map: ConfigMapKey {
                namespace: "spire-system".to_owned(),
                name: "spire-bundle".to_owned(),
                key: "bundle.spiffe".to_owned(),
            },
            server: ApiServer {
                host: host.map(str::to_owned),
                port,
                ..ApiServer::default()
            },
            format: BundleFormat::Spiffe,
        };
        assert_eq!(found, expected(None, 443));
        let env = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("10.96.0.1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
            _ => None,
        };
        assert_eq!(found.with_variables(&env), expected(Some("10.96.0.1"), 6443));
        // A block that says nothing is no source.
        let empty =
            "trust_bundle_path = \"/b\"\ntrust_bundle_config_map { namespace = \"\" name = \"\" key = \"\" }";
        assert!(matches!(source(empty), Ok(BootstrapSource::File { .. })));
    }

    #[test]
    fn sources_that_cannot_be_trusted_or_do_not_go_together_are_refused() {
        for (keys, why) in [
            (r#"trust_bundle_url = "http://a/b""#, "must begin with https://"),
            (r#"trust_bundle_url = "a/b""#, "not a URL"),
            (r#"trust_bundle_url = "/b""#, "must begin with https://"),
            (r#"trust_bundle_url = "https://u@a/b""#, "no user"),
            (
                r#"trust_bundle_url = "https://a/b" trust_bundle_unix_socket = "/s""#,
                "must begin with http:// with trust_bundle_unix_socket",
            ),
            (
                r#"trust_bundle_path = "/b" trust_bundle_unix_socket = "/s""#,
                "only be set with trust_bundle_url",
            ),
            (
                r#"trust_bundle_path = "/b" trust_bundle_url = "https://a/b""#,
                "only one of trust_bundle_path and trust_bundle_url",
            ),
            (
                r#"insecure_bootstrap = true trust_bundle_spiffe_workload_api = "/s""#,
                "only one of trust_bundle_spiffe_workload_api and insecure_bootstrap",
            ),
            (
                r#"trust_bundle_spiffe_workload_api = "tcp://a:1""#,
                "path of a Unix socket",
            ),
            (
                r#"trust_bundle_path = "/b" trust_bundle_config_map { namespace = "a" name = "b" key = "c" }"#,
                "only one of trust_bundle_path and trust_bundle_config_map",
            ),
            (
                r#"trust_bundle_config_map { namespace = "a" name = "b" }"#,
                "trust_bundle_config_map.key",
            ),
            (
                r#"trust_bundle_config_map { namespace = "a" name = "../secrets/b" key = "c" }"#,
                "is no name in Kubernetes: ../secrets/b",
            ),
            (
                r#"trust_bundle_config_map { namespace = "A" name = "b" key = "c" }"#,
                "is no name in Kubernetes: A",
            ),
            ("", "trust_bundle_path (line 1): is required unless"),
        ] {
            let error = source(keys).unwrap_err();
            assert!(error.contains(why), "{keys}: {error}");
            assert_eq!(error.lines().count(), 1, "one sentence: {error}");
        }
    }

    #[test]
    fn rebootstrap_is_read_from_the_file_and_the_flags() {
        let read = |keys: &str, flags: &Flags| {
            let config = parse_with(&format!("trust_bundle_path = \"/b\"\n{keys}"), flags).unwrap();
            config.rebootstrap()
        };
        assert_eq!(read("", &Flags::default()), Rebootstrap::default());
        let minute = Duration::from_secs(60);
        let auto = Rebootstrap {
            mode: RebootstrapMode::Auto,
            delay: minute,
        };
        let keys = "rebootstrap_mode = \"auto\"\nrebootstrap_delay = \"1m\"";
        assert_eq!(read(keys, &Flags::default()), auto);
        let flags = Flags {
            rebootstrap_mode: Some("always".to_owned()),
            rebootstrap_delay: Some("30s".to_owned()),
            ..Flags::default()
        };
        let always = Rebootstrap {
            mode: RebootstrapMode::Always,
            delay: minute / 2,
        };
        assert_eq!(read(keys, &flags), always);
    }

    #[test]
    fn rebootstrap_is_refused_where_nothing_vouches_for_the_server() {
        for keys in [
            "insecure_bootstrap = true\nrebootstrap_mode = \"auto\"",
            "insecure_bootstrap = true\nrebootstrap_mode = \"always\"",
        ] {
            let error = source(keys).unwrap_err();
            assert!(
                error.contains("rebootstrap_mode (line 3): must be never with insecure_bootstrap"),
                "{error}"
            );
        }
        let wrong = source("trust_bundle_path = \"/b\"\nrebootstrap_mode = \"sometimes\"").unwrap_err();
        assert!(
            wrong.contains("must be never, auto or always: sometimes"),
            "{wrong}"
        );
        for flags in [
            Flags {
                rebootstrap_mode: Some("x".to_owned()),
                ..Flags::default()
            },
            Flags {
                rebootstrap_delay: Some("x".to_owned()),
                ..Flags::default()
            },
        ] {
            let error = parse_with("trust_bundle_path = \"/b\"", &flags).unwrap_err();
            assert!(error.contains("-rebootstrap"), "{error}");
        }
    }
}
