//! A trust bundle in a ConfigMap, asked of the API server of the cluster that the agent's pod is in.
//!
//! The server of the trust domain writes it when it has started, mostly after the agents. A ConfigMap that is mounted
//! would reach them a minute or more later, for so seldom a kubelet looks for what has changed.

use std::collections::BTreeMap;
use std::path::Path;

use finial_identity::process::private_file::{self, FileError};
use http::{HeaderValue, StatusCode, Uri};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::Deserialize;

use super::url::{self, FetchError};
use crate::config::{ApiServer, ConfigMapKey};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigMapError {
    #[error("it is not known where the API server is: KUBERNETES_SERVICE_HOST is not set")]
    Nowhere,
    #[error("{0}")]
    File(#[from] FileError),
    #[error("{path}: {why}")]
    Unusable { path: String, why: &'static str },
    #[error("the server has not written it yet: there is no such ConfigMap")]
    Absent,
    #[error("{0}")]
    Fetch(FetchError),
    #[error("the API server answered with something else")]
    OtherObject,
    #[error("has no key {0}")]
    NoKey(String),
}

/// What the key holds.
pub(super) async fn fetch(map: &ConfigMapKey, server: &ApiServer) -> Result<Vec<u8>, ConfigMapError> {
    let url = url_of(map, server)?;
    let (roots, token) = (roots(&server.ca_path)?, token(&server.token_path)?);
    let answer = url::fetch(&url, roots, Some(&token)).await;
    let answer = answer.map_err(|error| match error {
        FetchError::Status(StatusCode::NOT_FOUND) => ConfigMapError::Absent,
        other => ConfigMapError::Fetch(other),
    })?;
    let read: ConfigMap = serde_json::from_slice(&answer).map_err(|_error| ConfigMapError::OtherObject)?;
    let is_it = read.kind == "ConfigMap"
        && read.metadata.namespace == map.namespace
        && read.metadata.name == map.name;
    if !is_it {
        return Err(ConfigMapError::OtherObject);
    }
    let text = read.data.and_then(|mut data| data.remove(&map.key));
    let text = text.ok_or_else(|| ConfigMapError::NoKey(map.key.clone()))?;
    Ok(text.into_bytes())
}

#[derive(Deserialize)]
struct ConfigMap {
    kind: String,
    metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize)]
struct Metadata {
    namespace: String,
    name: String,
}

/// Namespace and name are such as can stand in a path: the configuration was checked for that.
fn url_of(map: &ConfigMapKey, server: &ApiServer) -> Result<Uri, ConfigMapError> {
    let host = server.host.as_deref().ok_or(ConfigMapError::Nowhere)?;
    let host = match host.contains(':') {
        true => format!("[{host}]"),
        false => host.to_owned(),
    };
    let text = format!(
        "https://{host}:{}/api/v1/namespaces/{}/configmaps/{}",
        server.port, map.namespace, map.name
    );
    text.parse()
        .map_err(|_error| ConfigMapError::Fetch(FetchError::Url(text)))
}

fn roots(path: &Path) -> Result<RootCertStore, ConfigMapError> {
    let text = private_file::read_bounded(path, MAX_FILE)?;
    let certificates = CertificateDer::pem_slice_iter(&text).map_while(Result::ok);
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(unusable(path, "holds no certificate of an authority"));
    }
    Ok(roots)
}

/// Kubelets renew the token in place, so it is read each time.
fn token(path: &Path) -> Result<HeaderValue, ConfigMapError> {
    let secret = private_file::read_secret(path, MAX_FILE)?;
    let token = secret.as_bytes().trim_ascii();
    if token.is_empty() {
        return Err(unusable(path, "holds no token"));
    }
    let mut header = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_invalid| unusable(path, "holds no text of one line"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn unusable(path: &Path, why: &'static str) -> ConfigMapError {
    ConfigMapError::Unusable {
        path: path.display().to_string(),
        why,
    }
}

/// Most bytes of the files that are read.
const MAX_FILE: usize = 1024 * 1024;
