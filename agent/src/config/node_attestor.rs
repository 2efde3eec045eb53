//! Settings of the node attestors that have any.

use std::path::PathBuf;

use finial_identity::settings::Section;

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

/// Reads the block; `None` when something was reported.
pub(super) fn read_k8s_psat(data: &Section<'_>) -> Option<K8sPsatSettings> {
    let cluster = data.required_string("cluster");
    let token_path = data.string("token_path").unwrap_or_else(|| TOKEN_PATH.to_owned());
    Some(K8sPsatSettings {
        cluster: cluster?,
        token_path: token_path.into(),
    })
}

/// Reads the block; `None` when something was reported.
pub(super) fn read_x509pop(data: &Section<'_>) -> Option<X509PopSettings> {
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
        assert_eq!(parse(files).unwrap().x509pop(), Some(&expected));
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
        assert_eq!(config.k8s_psat(), Some(&expected));
        assert!(config.x509pop().is_none());
        let config = parse(r#"{ plugin_data { cluster = "demo" token_path = "/t" } }"#).unwrap();
        expected.token_path = "/t".into();
        assert_eq!(config.k8s_psat(), Some(&expected));
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
