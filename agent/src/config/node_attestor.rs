//! The `NodeAttestor` block.

use std::path::PathBuf;

use finial_identity::settings::plugins::not_served;
use finial_identity::settings::{Plugin, Section};

/// How the agent proves to the server which node it runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NodeAttestorSettings {
    /// `NodeAttestor "join_token"`: the token stands in the block `agent`.
    #[default]
    JoinToken,
    /// `NodeAttestor "x509pop"`
    X509Pop(X509PopSettings),
    /// `NodeAttestor "k8s_psat"`
    K8sPsat(K8sPsatSettings),
}

/// `plugin_data` of `NodeAttestor "x509pop"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct X509PopSettings {
    /// The key, PEM (`private_key_path`).
    pub private_key: PathBuf,
    /// The leaf and perhaps intermediates, PEM (`certificate_path`).
    pub certificate: PathBuf,
    /// Further intermediates, PEM (`intermediates_path`).
    pub intermediates: Option<PathBuf>,
}

/// `plugin_data` of `NodeAttestor "k8s_psat"`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct K8sPsatSettings {
    /// What the server calls the cluster (`cluster`).
    pub cluster: String,
    /// The service account token for the server (`token_path`).
    pub token_path: PathBuf,
}

/// Where the chart of SPIRE and ours mount the token.
const TOKEN_PATH: &str = "/var/run/secrets/tokens/spire-agent";

/// Reads the block of this name; `None` when something was reported.
pub(super) fn read(name: &str, section: Section<'_>) -> Option<Plugin<NodeAttestorSettings>> {
    type Read = fn(&Section<'_>) -> Option<NodeAttestorSettings>;
    let (required, read_data): (&str, Read) = match name {
        // Its token stands in the `agent` block.
        "join_token" => ("", |_no_keys| Some(NodeAttestorSettings::JoinToken)),
        "x509pop" => ("private_key_path and certificate_path", |data| {
            read_x509pop(data).map(NodeAttestorSettings::X509Pop)
        }),
        "k8s_psat" => ("cluster", |data| {
            read_k8s_psat(data).map(NodeAttestorSettings::K8sPsat)
        }),
        other => {
            not_served(&section, "NodeAttestor", other);
            return None;
        }
    };
    if !required.is_empty() && !section.has_plugin_data() {
        section.problem("plugin_data", format!("is required: {required}"));
    }
    let Plugin { data, file } = Plugin::read(section, |data| match data {
        Some(data) => {
            let settings = read_data(&data);
            data.finish();
            settings
        }
        None if required.is_empty() => Some(NodeAttestorSettings::JoinToken),
        None => None,
    });
    data.map(|data| Plugin { data, file })
}

/// Reads the block; `None` when something was reported.
fn read_k8s_psat(data: &Section<'_>) -> Option<K8sPsatSettings> {
    let cluster = data.required_string("cluster");
    let token_path = data.string("token_path").unwrap_or_else(|| TOKEN_PATH.to_owned());
    Some(K8sPsatSettings {
        cluster: cluster?,
        token_path: token_path.into(),
    })
}

/// Reads the block; `None` when something was reported.
fn read_x509pop(data: &Section<'_>) -> Option<X509PopSettings> {
    if data.ignore("spiffe_endpoint_socket") {
        data.problem(
            "spiffe_endpoint_socket",
            "is not served by this version: name the files of a certificate and its key",
        );
    }
    let private_key = data.required_string("private_key_path");
    let certificate = data.required_string("certificate_path");
    let intermediates = data.string("intermediates_path").filter(|path| !path.is_empty());
    Some(X509PopSettings {
        private_key: private_key?.into(),
        certificate: certificate?.into(),
        intermediates: intermediates.map(PathBuf::from),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Flags};

    fn parse(attestor: &str) -> Result<Config, String> {
        parse_named("x509pop", attestor)
    }

    fn parse_named(name: &str, attestor: &str) -> Result<Config, String> {
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 insecure_bootstrap = true }}
            plugins {{ KeyManager "memory" {{}} WorkloadAttestor "unix" {{}} NodeAttestor "{name}" {attestor} }}"#
        );
        Config::parse(&text, Path::new("agent.conf"), &Flags::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn x509pop_names_a_key_and_a_certificate() {
        let files = r#"{ plugin_data { private_key_path = "/k" certificate_path = "/c" } }"#;
        let expected = X509PopSettings {
            private_key: "/k".into(),
            certificate: "/c".into(),
            intermediates: None,
        };
        let config = parse(files).unwrap();
        assert_eq!(config.node_attestor(), &NodeAttestorSettings::X509Pop(expected));
        for (wrong, why) in [
            ("{}", "plugin_data"),
            (
                r#"{ plugin_data { private_key_path = "/k" } }"#,
                "certificate_path",
            ),
            (
                r#"{ plugin_data { spiffe_endpoint_socket = "/s" } }"#,
                "spiffe_endpoint_socket",
            ),
            (
                r#"{ plugin_data { private_key_path = "/k" certificate_path = "/c" x = 1 } }"#,
                "x",
            ),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn k8s_psat_names_a_cluster_and_has_spires_token_path() {
        let parse = |attestor: &str| parse_named("k8s_psat", attestor);
        let mut expected = K8sPsatSettings {
            cluster: "demo".to_owned(),
            token_path: "/var/run/secrets/tokens/spire-agent".into(),
        };
        let config = parse(r#"{ plugin_data { cluster = "demo" } }"#).unwrap();
        assert_eq!(
            config.node_attestor(),
            &NodeAttestorSettings::K8sPsat(expected.clone())
        );
        let config = parse(r#"{ plugin_data { cluster = "demo" token_path = "/t" } }"#).unwrap();
        expected.token_path = "/t".into();
        assert_eq!(config.node_attestor(), &NodeAttestorSettings::K8sPsat(expected));
        for (wrong, why) in [
            ("{}", "plugin_data"),
            ("{ plugin_data { } }", "cluster"),
            (r#"{ plugin_data { cluster = "demo" clusters = 1 } }"#, "clusters"),
        ] {
            let error = parse(wrong).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
