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
        let text = format!(
            r#"agent {{ trust_domain = "example.org" server_address = "a" server_port = 1 insecure_bootstrap = true }}
            plugins {{ KeyManager "memory" {{}} WorkloadAttestor "unix" {{}} NodeAttestor "x509pop" {attestor} }}"#
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
}
