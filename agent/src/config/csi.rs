//! `agent.csi`: the CSI driver `finial agent csi`, and the sockets that the agent opens for it.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use finial_identity::process::unix_listener::MAX_PATH_BYTES;
use finial_identity::settings::Section;

use crate::socket_tree::SocketTree;

/// Names the node where the configuration does not.
pub const NODE_NAME_VARIABLE: &str = "MY_NODE_NAME";
/// Bytes of a pod's UID as Kubernetes makes it.
const UID_BYTES: usize = 36;
/// Most bytes of a driver's name (CSI, GetPluginInfo).
const MAX_PLUGIN_NAME: usize = 63;
/// Kubernetes' own listener for health has no default port, so there is no listener without one.
const DEFAULT_HEALTH_ADDRESS: &str = "localhost";

/// What driver and agent agree on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CsiSettings {
    /// `plugin_name`: what pods name in `volumes[].csi.driver`.
    pub plugin_name: String,
    /// `socket_dir`: where the sockets are, for both.
    pub socket_dir: PathBuf,
    /// `socket_names`: how the socket is called in a pod; the first is the socket, the others lead to it.
    pub socket_names: Vec<String>,
    /// `kubelet_path`: the kubelet's folder.
    pub kubelet_path: PathBuf,
    /// `per_pod`: each pod has a socket of its own.
    pub per_pod: bool,
    /// `node_name`, or what the environment says.
    pub node_name: Option<String>,
    /// `health`: where the driver answers `/healthz`.
    pub health: Option<SocketAddr>,
    /// `kubelet_certificates`: files with the kubelet's own certificate, which the driver passes on without their keys.
    pub kubelet_certificates: Vec<PathBuf>,
}

impl Default for CsiSettings {
    fn default() -> Self {
        Self {
            plugin_name: "csi.spiffe.io".to_owned(),
            socket_dir: PathBuf::from("/run/finial/csi"),
            socket_names: ["spire-agent.sock", "socket", "api.sock"]
                .map(str::to_owned)
                .to_vec(),
            kubelet_path: PathBuf::from("/var/lib/kubelet"),
            per_pod: true,
            node_name: None,
            health: None,
            kubelet_certificates: Vec::new(),
        }
    }
}

impl CsiSettings {
    /// Where the agent finds the kubelet's own certificate, when the driver passes it on.
    pub fn kubelet_certificate(&self) -> PathBuf {
        self.socket_dir.join("kubelet.pem")
    }

    /// The driver's own folder, which the kubelet expects it to make.
    pub fn plugin_dir(&self) -> PathBuf {
        self.kubelet_path.join("plugins").join(&self.plugin_name)
    }

    /// Where the kubelet calls the driver.
    pub fn plugin_socket(&self) -> PathBuf {
        self.plugin_dir().join("csi.sock")
    }

    /// Where the kubelet asks which driver this is.
    pub fn registration_socket(&self) -> PathBuf {
        self.kubelet_path
            .join("plugins_registry")
            .join(format!("{}-reg.sock", self.plugin_name))
    }

    /// Below it the kubelet has every pod's volumes.
    pub fn kubelet_pods(&self) -> PathBuf {
        self.kubelet_path.join("pods")
    }

    /// The same, with what the environment adds.
    pub(super) fn with_variables(mut self, variable: &dyn Fn(&str) -> Option<String>) -> Self {
        if self.node_name.is_none() {
            self.node_name = variable(NODE_NAME_VARIABLE).filter(|name| !name.is_empty());
        }
        self
    }
}

/// Reads the block; `None` without it.
pub(super) fn read(agent: &Section<'_>) -> Option<CsiSettings> {
    let csi = agent.section("csi")?;
    let defaults = CsiSettings::default();
    let names = csi.parse_each("socket_names", |name| {
        if is_file_name(name) {
            Ok(name.to_owned())
        } else {
            Err("must be the name of a file, of letters, digits, dots, dashes and underscores")
        }
    });
    let settings = CsiSettings {
        plugin_name: csi
            .parse("plugin_name", |name| {
                is_plugin_name(name)
                    .then(|| name.to_owned())
                    .ok_or("must be a domain name of at most 63 characters")
            })
            .unwrap_or(defaults.plugin_name),
        socket_dir: read_folder(&csi, "socket_dir").unwrap_or(defaults.socket_dir),
        socket_names: if csi.has("socket_names") {
            names
        } else {
            defaults.socket_names
        },
        kubelet_path: read_folder(&csi, "kubelet_path").unwrap_or(defaults.kubelet_path),
        per_pod: csi.bool("per_pod").unwrap_or(defaults.per_pod),
        node_name: csi.string("node_name").filter(|name| !name.is_empty()),
        health: csi.section("health").and_then(read_health),
        kubelet_certificates: csi.parse_each("kubelet_certificates", read_path),
    };
    if settings.socket_names.is_empty() {
        csi.problem("socket_names", "must have a name");
    }
    let mut seen = std::collections::BTreeSet::new();
    if let Some(twice) = settings.socket_names.iter().find(|name| !seen.insert(*name)) {
        csi.problem("socket_names", format!("stands twice: {twice}"));
    }
    let tree = SocketTree::layout(&settings.socket_dir);
    let longest = settings.socket_names.iter().map(String::len).max();
    let uid = "u".repeat(UID_BYTES);
    let length = tree.sockets_of(&uid).as_os_str().as_bytes().len() + 1 + longest.unwrap_or_default();
    if length > MAX_PATH_BYTES {
        csi.problem(
            "socket_dir",
            format!("makes paths of sockets of {length} bytes, more than the {MAX_PATH_BYTES} that the system allows"),
        );
    }
    csi.finish();
    Some(settings)
}

fn read_folder(csi: &Section<'_>, key: &str) -> Option<PathBuf> {
    csi.parse(key, read_path)
}

fn read_path(text: &str) -> Result<PathBuf, &'static str> {
    let path = PathBuf::from(text);
    let plain = path
        .components()
        .all(|part| !matches!(part, std::path::Component::ParentDir));
    if path.is_absolute() && plain {
        Ok(path)
    } else {
        Err("must be an absolute path without `..`")
    }
}

fn read_health(health: Section<'_>) -> Option<SocketAddr> {
    let address = health.parse("bind_address", |text| match text {
        DEFAULT_HEALTH_ADDRESS => Ok(IpAddr::from([127, 0, 0, 1])),
        text => text.parse::<IpAddr>().map_err(|_error| "must be an IP address"),
    });
    let port = health.u16("port");
    if port.is_none() {
        health.problem("port", "is required");
    }
    health.finish();
    Some(SocketAddr::new(
        address.unwrap_or(IpAddr::from([127, 0, 0, 1])),
        port?,
    ))
}

fn is_file_name(name: &str) -> bool {
    let characters = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    !name.is_empty() && name.len() <= 64 && name.bytes().all(characters) && !name.starts_with('.')
}

fn is_plugin_name(name: &str) -> bool {
    let characters = |byte: u8| byte.is_ascii_alphanumeric() || b".-".contains(&byte);
    let ends = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    name.len() <= MAX_PLUGIN_NAME
        && name.bytes().all(characters)
        && ends(name.as_bytes().first())
        && ends(name.as_bytes().last())
}

#[cfg(test)]
mod tests {
    use super::super::{Config, ConfigError, Flags};
    use super::*;

    fn parse(csi: &str) -> Result<Config, ConfigError> {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 insecure_bootstrap = true
                {csi} }}
            plugins {{ KeyManager "memory" {{}} NodeAttestor "join_token" {{}} WorkloadAttestor "unix" {{}} }}"#
        );
        Config::parse(&text, std::path::Path::new("agent.conf"), &Flags::default())
    }

    #[test]
    fn an_empty_block_has_all_defaults_and_no_block_is_no_driver() {
        let csi = parse("csi {}").unwrap();
        assert_eq!(csi.csi(), Some(&CsiSettings::default()));
        assert_eq!(parse("").unwrap().csi(), None);
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"csi { plugin_name = "a.b" socket_dir = "/run/x" socket_names = ["s"] kubelet_path = "/k" per_pod = false
                node_name = "n" health { bind_address = "0.0.0.0" port = 9810 } kubelet_certificates = ["/pki/a"] }"#,
        )
        .unwrap();
        let csi = config.csi().unwrap();
        assert_eq!(csi.plugin_socket(), PathBuf::from("/k/plugins/a.b/csi.sock"));
        assert_eq!(
            csi.registration_socket(),
            PathBuf::from("/k/plugins_registry/a.b-reg.sock")
        );
        assert_eq!(csi.kubelet_pods(), PathBuf::from("/k/pods"));
        assert_eq!((csi.socket_names.len(), csi.per_pod), (1, false));
        assert_eq!(csi.health, Some("0.0.0.0:9810".parse().unwrap()));
        assert_eq!(csi.node_name.as_deref(), Some("n"));
        assert_eq!(csi.kubelet_certificates, [PathBuf::from("/pki/a")]);
        assert_eq!(csi.kubelet_certificate(), PathBuf::from("/run/x/kubelet.pem"));
    }

    #[test]
    fn the_environment_names_the_node_where_the_file_does_not() {
        let variable = |name: &str| (name == "MY_NODE_NAME").then(|| "node".to_owned());
        let told = CsiSettings::default().with_variables(&variable);
        assert_eq!(told.node_name.as_deref(), Some("node"));
        let configured = CsiSettings {
            node_name: Some("other".to_owned()),
            ..CsiSettings::default()
        };
        assert_eq!(
            configured.with_variables(&variable).node_name.as_deref(),
            Some("other")
        );
    }

    #[test]
    fn what_would_lead_elsewhere_is_refused() {
        let long = format!(r#"socket_dir = "/{}""#, "d".repeat(60));
        for (block, key) in [
            (r#"plugin_name = "a/b""#, "plugin_name"),
            (r#"plugin_name = "..""#, "plugin_name"),
            (r#"socket_names = ["../s"]"#, "socket_names"),
            (r#"socket_names = [".."]"#, "socket_names"),
            (r#"socket_names = []"#, "socket_names"),
            (r#"socket_names = ["a", "a"]"#, "socket_names"),
            (r#"socket_dir = "run""#, "socket_dir"),
            (r#"kubelet_path = "/a/../b""#, "kubelet_path"),
            (r#"kubelet_certificates = ["/a", "b"]"#, "kubelet_certificates"),
            (r#"health { bind_address = "x" port = 1 }"#, "bind_address"),
            ("health { }", "port"),
            ("unknown = 1", "unknown"),
            (&long, "socket_dir"),
        ] {
            let error = parse(&format!("csi {{ {block} }}")).unwrap_err().to_string();
            assert!(error.contains(key), "{block}: {error}");
        }
    }
}
