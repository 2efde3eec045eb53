//! `plugin_data` of `WorkloadAttestor "k8s"`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_identity::settings::Section;

use super::api_server::{ACCOUNT_TOKEN, ApiServer, CLUSTER_CA};

const SECURE_PORT: u16 = 10250;
const NODE_NAME_VARIABLE: &str = "MY_NODE_NAME";
const POLL_ATTEMPTS: u32 = 60;
const POLL_INTERVAL: Duration = Duration::from_millis(500);
const RELOAD_INTERVAL: Duration = Duration::from_secs(60);

/// How `WorkloadAttestor "k8s"` asks the kubelet, and what it makes of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct K8sSettings {
    /// `kubelet_secure_port` or `kubelet_read_only_port`
    pub port: KubeletPort,
    /// `kubelet_ca_path` with `kubelet_certificate.paths`, or `skip_kubelet_verification`
    pub verification: KubeletVerification,
    /// `token_path`, `certificate_path` with `private_key_path`, or `use_anonymous_authentication`
    pub login: KubeletLogin,
    /// `node_name`, else what the variable `node_name_env` says; the kubelet is at 127.0.0.1 without.
    pub node_name: Option<String>,
    /// `node_name_env`
    pub node_name_env: String,
    /// `max_poll_attempts`: how often the kubelet is asked while it does not list a container.
    pub max_poll_attempts: u32,
    /// `poll_retry_interval`: the kubelet is asked once in this time at most.
    pub poll_retry_interval: Duration,
    /// `reload_interval`: how long files that were read are used.
    pub reload_interval: Duration,
    /// `disable_container_selectors`: a pod is enough, its container may be unknown.
    pub disable_container_selectors: bool,
    /// `enable_namespace_labels`: who is asked for the labels of namespaces.
    pub namespace_labels: Option<ApiServer>,
    /// `verbose_container_locator_logs`: log the control groups of each process at debug level.
    pub verbose: bool,
}

/// Where the kubelet answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KubeletPort {
    /// Over TLS.
    Secure(u16),
    /// In plain text, to this machine alone.
    ReadOnly(u16),
}

/// How the kubelet proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeletVerification {
    /// By a certificate that is in one of these files.
    Certificates {
        /// Certificates that an authority in it signed are accepted too.
        authorities: PathBuf,
        /// The kubelet's own, as far as they are there.
        own: Vec<PathBuf>,
    },
    /// Not at all.
    Skip,
}

/// How the agent proves itself to the kubelet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KubeletLogin {
    /// By the token in this file.
    Token(PathBuf),
    /// By a client certificate.
    Certificate {
        /// The certificate and what leads to its authority, PEM.
        certificate: PathBuf,
        /// Its key, PEM.
        private_key: PathBuf,
    },
    /// Not at all.
    Anonymous,
}

impl Default for K8sSettings {
    fn default() -> Self {
        Self {
            port: KubeletPort::Secure(SECURE_PORT),
            verification: KubeletVerification::Certificates {
                authorities: CLUSTER_CA.into(),
                own: Vec::new(),
            },
            login: KubeletLogin::Token(ACCOUNT_TOKEN.into()),
            node_name: None,
            node_name_env: NODE_NAME_VARIABLE.to_owned(),
            max_poll_attempts: POLL_ATTEMPTS,
            poll_retry_interval: POLL_INTERVAL,
            reload_interval: RELOAD_INTERVAL,
            disable_container_selectors: false,
            namespace_labels: None,
            verbose: false,
        }
    }
}

impl K8sSettings {
    /// The same, with the node's name from the environment where the file has none, and with the API server from there.
    pub(super) fn with_variables(mut self, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        if self.node_name.is_none() {
            self.node_name = env(&self.node_name_env);
        }
        self.namespace_labels = self.namespace_labels.map(|server| server.with_variables(&env));
        self
    }
}

pub(super) fn read(data: Option<Section<'_>>, warnings: &mut Vec<String>) -> K8sSettings {
    let defaults = K8sSettings::default();
    let Some(data) = data else {
        return defaults;
    };
    refuse_unserved(&data, warnings);
    let settings = K8sSettings {
        port: read_port(&data, warnings),
        verification: read_verification(&data, warnings),
        login: read_login(&data),
        node_name: data.string("node_name"),
        node_name_env: data.string("node_name_env").unwrap_or(defaults.node_name_env),
        max_poll_attempts: data
            .u32("max_poll_attempts")
            .filter(|attempts| *attempts > 0)
            .unwrap_or(defaults.max_poll_attempts),
        poll_retry_interval: positive(&data, "poll_retry_interval").unwrap_or(defaults.poll_retry_interval),
        reload_interval: positive(&data, "reload_interval").unwrap_or(defaults.reload_interval),
        disable_container_selectors: data.bool("disable_container_selectors").unwrap_or_default(),
        namespace_labels: data
            .bool("enable_namespace_labels")
            .unwrap_or_default()
            .then(ApiServer::default),
        verbose: data.bool("verbose_container_locator_logs").unwrap_or_default(),
    };
    data.finish();
    settings
}

fn refuse_unserved(data: &Section<'_>, warnings: &mut Vec<String>) {
    for (key, why) in [
        (
            "sigstore",
            "image signatures are not verified by this version; entries would get selectors that nothing proves",
        ),
        ("experimental", "is not served by this version"),
    ] {
        if data.ignore(key) {
            data.problem(key, why);
        }
    }
    if data.bool("disable_kubelet_client").unwrap_or_default() {
        data.problem(
            "disable_kubelet_client",
            "is not served by this version: the kubelet alone knows which pods run here",
        );
    }
    if data.bool("use_new_container_locator") == Some(false) {
        warnings.push(
            "WorkloadAttestor \"k8s\": containers are always found as use_new_container_locator = true says; the key \
             has no effect"
                .to_owned(),
        );
    }
}

fn read_port(data: &Section<'_>, warnings: &mut Vec<String>) -> KubeletPort {
    let read_only = data.u16("kubelet_read_only_port").filter(|port| *port > 0);
    let secure = data.u16("kubelet_secure_port").filter(|port| *port > 0);
    match (read_only, secure) {
        (Some(_), Some(_)) => {
            data.problem("kubelet_read_only_port", "cannot be set with kubelet_secure_port");
            KubeletPort::Secure(SECURE_PORT)
        }
        (Some(port), None) => {
            warnings.push(
                "WorkloadAttestor \"k8s\": kubelet_read_only_port: whoever can listen on that port of this machine \
                 decides which pods there are"
                    .to_owned(),
            );
            KubeletPort::ReadOnly(port)
        }
        (None, secure) => KubeletPort::Secure(secure.unwrap_or(SECURE_PORT)),
    }
}

fn read_verification(data: &Section<'_>, warnings: &mut Vec<String>) -> KubeletVerification {
    let path = data.string("kubelet_ca_path");
    let own = data.section("kubelet_certificate").map(|block| {
        let paths = block.parse_each("paths", |path| match Path::new(path).is_absolute() {
            true => Ok(PathBuf::from(path)),
            false => Err("must be absolute paths"),
        });
        if paths.is_empty() {
            block.problem("paths", "must name a file");
        }
        block.finish();
        paths
    });
    if data.bool("skip_kubelet_verification").unwrap_or_default() {
        warnings.push(
            "WorkloadAttestor \"k8s\": skip_kubelet_verification: whoever answers at the kubelet's address decides \
             which pods there are"
                .to_owned(),
        );
        return KubeletVerification::Skip;
    }
    KubeletVerification::Certificates {
        authorities: path.unwrap_or_else(|| CLUSTER_CA.to_owned()).into(),
        own: own.unwrap_or_default(),
    }
}

fn read_login(data: &Section<'_>) -> KubeletLogin {
    let token = data.string("token_path");
    let files = (data.string("certificate_path"), data.string("private_key_path"));
    let anonymous = data.bool("use_anonymous_authentication").unwrap_or_default();
    match files {
        _ if anonymous => KubeletLogin::Anonymous,
        (Some(certificate), Some(private_key)) => KubeletLogin::Certificate {
            certificate: certificate.into(),
            private_key: private_key.into(),
        },
        (None, None) => KubeletLogin::Token(token.unwrap_or_else(|| ACCOUNT_TOKEN.to_owned()).into()),
        (certificate, _) => {
            let (given, missing) = match certificate {
                Some(_) => ("certificate_path", "private_key_path"),
                None => ("private_key_path", "certificate_path"),
            };
            data.problem(given, format!("needs {missing}"));
            KubeletLogin::Anonymous
        }
    }
}

fn positive(data: &Section<'_>, key: &str) -> Option<Duration> {
    data.duration(key).filter(|duration| !duration.is_zero())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Flags};
    use super::*;

    fn config(data: &str) -> Result<Config, String> {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 trust_bundle_path = "/b" }}
            plugins {{
                KeyManager "memory" {{}}
                NodeAttestor "join_token" {{}}
                WorkloadAttestor "k8s" {{ plugin_data {{ {data} }} }}
            }}"#
        );
        Config::parse(&text, Path::new("agent.conf"), &Flags::default()).map_err(|error| error.to_string())
    }

    fn k8s(data: &str) -> Result<K8sSettings, String> {
        Ok(config(data)?.workload_attestors().k8s.clone().unwrap())
    }

    #[test]
    fn the_kubelet_is_verified_unless_told_otherwise() {
        let settings = k8s("use_new_container_locator = true").unwrap();
        assert_eq!(settings, K8sSettings::default());
        assert_eq!(settings.port, KubeletPort::Secure(10250));
        assert_eq!(
            settings.verification,
            KubeletVerification::Certificates {
                authorities: CLUSTER_CA.into(),
                own: Vec::new()
            }
        );
    }

    #[test]
    fn every_key_has_its_effect() {
        let settings = k8s(
            "kubelet_secure_port = 1 kubelet_ca_path = \"/ca\" token_path = \"/t\" node_name = \"n\" node_name_env = \"N\"\n\
             max_poll_attempts = 2 poll_retry_interval = \"3s\" reload_interval = \"4s\"\n\
             disable_container_selectors = true verbose_container_locator_logs = true enable_namespace_labels = true\n\
             kubelet_certificate { paths = [\"/a\", \"/b\"] }",
        );
        let expected = K8sSettings {
            port: KubeletPort::Secure(1),
            verification: KubeletVerification::Certificates {
                authorities: "/ca".into(),
                own: vec!["/a".into(), "/b".into()],
            },
            login: KubeletLogin::Token("/t".into()),
            node_name: Some("n".to_owned()),
            node_name_env: "N".to_owned(),
            max_poll_attempts: 2,
            poll_retry_interval: Duration::from_secs(3),
            reload_interval: Duration::from_secs(4),
            disable_container_selectors: true,
            namespace_labels: Some(ApiServer::default()),
            verbose: true,
        };
        assert_eq!(settings.unwrap(), expected);
        let login = |data: &str| k8s(data).unwrap().login;
        assert_eq!(
            login("certificate_path = \"/c\" private_key_path = \"/k\""),
            KubeletLogin::Certificate {
                certificate: "/c".into(),
                private_key: "/k".into()
            }
        );
        assert_eq!(
            login("use_anonymous_authentication = true"),
            KubeletLogin::Anonymous
        );
    }

    #[test]
    fn the_nodes_name_comes_from_the_variable_where_the_file_has_none() {
        let env = |name: &str| (name == "N").then(|| "node-a".to_owned());
        let named = |data: &str| k8s(data).unwrap().with_variables(&env).node_name;
        assert_eq!(named("node_name_env = \"N\"").as_deref(), Some("node-a"));
        assert_eq!(
            named("node_name_env = \"N\" node_name = \"b\"").as_deref(),
            Some("b")
        );
        assert_eq!(named(""), None);
    }

    #[test]
    fn the_api_server_is_where_pods_are_told_and_only_asked_for_labels_of_namespaces() {
        let env = |name: &str| match name {
            "KUBERNETES_SERVICE_HOST" => Some("fd00::1".to_owned()),
            "KUBERNETES_SERVICE_PORT" => Some("6443".to_owned()),
            _ => None,
        };
        let asked = |data: &str| k8s(data).unwrap().with_variables(&env).namespace_labels;
        let server = asked("enable_namespace_labels = true").unwrap();
        assert_eq!((server.host.as_deref(), server.port), (Some("fd00::1"), 6443));
        assert_eq!(server.ca_path, Path::new(CLUSTER_CA));
        assert_eq!(asked(""), None);
        assert_eq!(asked("enable_namespace_labels = false"), None);
    }

    #[test]
    fn what_trusts_anybody_is_asked_for_and_warned_of() {
        for (data, key) in [
            ("skip_kubelet_verification = true", "skip_kubelet_verification"),
            ("kubelet_read_only_port = 10255", "kubelet_read_only_port"),
            ("use_new_container_locator = false", "use_new_container_locator"),
        ] {
            let config = config(data).unwrap();
            let warned = |warning: &String| warning.contains(key);
            assert!(config.warnings().iter().any(warned), "{:?}", config.warnings());
        }
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (key, data) in [
            ("sigstore", "sigstore { ignore_tlog = true }"),
            ("experimental", "experimental { }"),
            ("kubelet_certificate", "kubelet_certificate { paths = [] }"),
            ("paths", "kubelet_certificate { paths = [\"a\"] }"),
            ("kubelet_certificate", "kubelet_certificate { path = \"/a\" }"),
            ("disable_kubelet_client", "disable_kubelet_client = true"),
            (
                "kubelet_read_only_port",
                "kubelet_read_only_port = 1 kubelet_secure_port = 2",
            ),
            ("private_key_path", "certificate_path = \"/c\""),
            ("certificate_path", "private_key_path = \"/c\""),
            ("kubelet_port", "kubelet_port = 1"),
        ] {
            let error = k8s(data).unwrap_err();
            assert!(error.contains(key), "{key} in {error}");
        }
    }
}
