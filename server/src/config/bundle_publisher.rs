//! `BundlePublisher "k8s_configmap"`: ConfigMaps that contain the bundle.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use finial_identity::settings::Section;

/// A ConfigMap that carries the bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigMapPublisher {
    /// Names the cluster in logs.
    pub cluster: String,
    /// The namespace.
    pub namespace: String,
    /// The ConfigMap's name.
    pub name: String,
    /// The key in it.
    pub key: String,
    /// What is written.
    pub format: BundleFormat,
    /// The cluster's kubeconfig; without one the cluster that the server runs in.
    pub kube_config_file: Option<PathBuf>,
    /// The refresh hint in the document, in place of the bundle's own.
    pub refresh_hint: Option<Duration>,
}

/// How a bundle is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleFormat {
    /// X.509 authorities in PEM.
    Pem,
    /// A SPIFFE bundle document.
    Spiffe,
    /// A JWK set of the JWT authorities.
    Jwks,
}

impl FromStr for BundleFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "pem" => Ok(Self::Pem),
            "spiffe" => Ok(Self::Spiffe),
            "jwks" => Ok(Self::Jwks),
            _ => Err(format!("unknown format {text:?}: pem, spiffe or jwks")),
        }
    }
}

/// Reads the plugin's data.
pub fn read(data: Section<'_>) -> Vec<ConfigMapPublisher> {
    let mut publishers = Vec::new();
    for (cluster, section) in data.labelled("clusters") {
        let namespace = section.required_string("namespace");
        let name = section.required_string("configmap_name");
        let key = section.required_string("configmap_key");
        let format = section.required_parse("format", str::parse);
        let kube_config_file = section.string("kubeconfig_path").map(PathBuf::from);
        let refresh_hint = section.duration("refresh_hint");
        section.finish();
        if let (Some(namespace), Some(name), Some(key), Some(format)) = (namespace, name, key, format) {
            publishers.push(ConfigMapPublisher {
                cluster,
                namespace,
                name,
                key,
                format,
                kube_config_file,
                refresh_hint,
            });
        }
    }
    if !data.has("clusters") {
        data.problem("clusters", "are required");
    }
    data.finish();
    publishers
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Flags};

    fn parse(data: &str) -> Result<Config, String> {
        let text = format!(
            r#"server {{ trust_domain = "example.org" data_dir = "/d" }}
            plugins {{
                DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/d/db" }} }}
                KeyManager "memory" {{}}
                BundlePublisher "k8s_configmap" {{ plugin_data {{ {data} }} }}
            }}"#
        );
        Config::parse(&text, Path::new("server.conf"), &Flags::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_spires_keys() {
        let config = parse(
            r#"clusters = { "a" = { namespace = "spire" configmap_name = "bundle" configmap_key = "bundle.crt"
                format = "PEM" kubeconfig_path = "/k" refresh_hint = "5m" } }"#,
        )
        .unwrap();
        let expected = ConfigMapPublisher {
            cluster: "a".to_owned(),
            namespace: "spire".to_owned(),
            name: "bundle".to_owned(),
            key: "bundle.crt".to_owned(),
            format: BundleFormat::Pem,
            kube_config_file: Some("/k".into()),
            refresh_hint: Some(Duration::from_secs(300)),
        };
        assert_eq!(config.configmap_publishers(), [expected]);
    }

    #[test]
    fn mistakes_name_their_key() {
        let error = parse(r#"clusters = { "a" = { format = "der" x = 1 } }"#).unwrap_err();
        for part in ["namespace", "configmap_name", "configmap_key", "format", "x"] {
            assert!(error.contains(part), "{part} in {error}");
        }
        assert!(parse("").unwrap_err().contains("clusters"));
    }
}
