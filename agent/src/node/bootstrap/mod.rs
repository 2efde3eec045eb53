//! The trust bundle for the first contact with the server.
//!
//! A bundle that an earlier run saved takes precedence over the configured source, as with SPIRE's agents. The source
//! is read at each attempt, so it may change.

mod config_map;
#[cfg(test)]
mod config_map_tests;
mod url;
#[cfg(test)]
mod url_tests;
mod workload_api;

use std::path::Path;

use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::process::private_file::{self, FileError};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::Certificate;
use time::OffsetDateTime;

pub use crate::config::{BootstrapSource, BundleFormat};

/// Why there is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("trust bundle: {0}")]
    File(#[from] FileError),
    /// Nobody gave it.
    #[error("trust bundle: {from}: {why}")]
    Fetch {
        /// The URL or the socket.
        from: String,
        /// What went wrong.
        why: String,
    },
    /// What was found is not a bundle.
    #[error("trust bundle: {from}: {why}")]
    Malformed {
        /// The file, the URL or the socket.
        from: String,
        /// What is wrong with it.
        why: String,
    },
}

/// Who asks for a bundle, and why: a source on this machine may decide by it.
#[derive(Clone, Debug)]
pub struct BundleRequest<'a> {
    /// Whose bundle.
    pub trust_domain: &'a TrustDomain,
    /// Host name or address of the server that is to be verified.
    pub server_address: &'a str,
    /// Its port.
    pub server_port: u16,
    /// There is a bundle already, and the server does not fit it.
    pub is_again: bool,
    /// When the agent first tried to find a server that it can trust.
    pub since: OffsetDateTime,
    /// How often it has tried since.
    pub attempts: u64,
}

impl BootstrapSource {
    /// The configured bundle; `None` when there is to be none.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub async fn load(&self, request: &BundleRequest<'_>) -> Result<Option<Bundle>, BootstrapError> {
        let from = self.describe();
        let fetch = |why: String| BootstrapError::Fetch {
            from: from.clone(),
            why,
        };
        let malformed = |why: String| BootstrapError::Malformed {
            from: from.clone(),
            why,
        };
        let authorities = match self {
            Self::Insecure => return Ok(None),
            Self::File { path, format } => {
                let bytes = private_file::read_bounded(path, MAX_BUNDLE)?;
                format.read(request.trust_domain, &bytes).map_err(malformed)?
            }
            Self::Url {
                url,
                unix_socket,
                format,
            } => {
                let answer = match unix_socket {
                    Some(socket) => url::fetch_over_socket(url, socket, request).await,
                    None => match url::system_roots() {
                        Ok(roots) => url::fetch(url, roots, None).await,
                        Err(error) => Err(error),
                    },
                };
                let bytes = answer.map_err(|error| fetch(error.to_string()))?;
                format.read(request.trust_domain, &bytes).map_err(malformed)?
            }
            Self::WorkloadApi { socket } => workload_api::fetch(socket, request.trust_domain)
                .await
                .map_err(fetch)?,
            Self::ConfigMap { map, server, format } => {
                let answer = config_map::fetch(map, server).await;
                let bytes = answer.map_err(|error| fetch(error.to_string()))?;
                format.read(request.trust_domain, &bytes).map_err(malformed)?
            }
        };
        if authorities.is_empty() {
            return Err(malformed("holds no X.509 authority".to_owned()));
        }
        Ok(Some(bundle_of(request.trust_domain, authorities)))
    }

    /// The source in a few words, for those who must find what is wrong with it.
    pub fn describe(&self) -> String {
        match self {
            Self::File { path, .. } => format!("trust_bundle_path {}", path.display()),
            // A query may hold a secret.
            Self::Url { url, .. } => {
                let (scheme, authority) = (url.scheme_str().unwrap_or_default(), url.authority());
                let authority = authority.map(|authority| authority.as_str()).unwrap_or_default();
                format!("trust_bundle_url {scheme}://{authority}{}", url.path())
            }
            Self::WorkloadApi { socket } => {
                format!("trust_bundle_spiffe_workload_api {}", socket.display())
            }
            Self::ConfigMap { map, .. } => {
                format!("trust_bundle_config_map {}/{}", map.namespace, map.name)
            }
            Self::Insecure => "insecure_bootstrap".to_owned(),
        }
    }
}

impl BundleFormat {
    fn read(self, trust_domain: &TrustDomain, bytes: &[u8]) -> Result<Vec<Certificate>, String> {
        match self {
            Self::Pem => from_pem(bytes),
            Self::Spiffe => from_spiffe(trust_domain, bytes),
        }
    }
}

/// A bundle of X.509 authorities alone, as saved or configured.
pub fn bundle_of(trust_domain: &TrustDomain, certificates: Vec<Certificate>) -> Bundle {
    let mut bundle = Bundle::new(trust_domain.clone());
    bundle.x509_authorities = certificates.into_iter().map(X509Authority::new).collect();
    bundle
}

/// How a saved bundle is named in messages.
pub(super) fn describe_saved(path: &Path) -> String {
    format!("trust bundle saved in {}", path.display())
}

fn from_pem(bytes: &[u8]) -> Result<Vec<Certificate>, String> {
    let text = std::str::from_utf8(bytes).map_err(|_binary| "is not PEM text".to_owned())?;
    Certificate::from_pem(text).map_err(|error| error.to_string())
}

fn from_spiffe(trust_domain: &TrustDomain, bytes: &[u8]) -> Result<Vec<Certificate>, String> {
    let bundle = Bundle::parse_spiffe_json(trust_domain.clone(), bytes).map_err(|error| error.to_string())?;
    Ok(bundle.x509_certificates())
}

/// Most bytes of a bundle, which has a few certificates of a kilobyte or two.
const MAX_BUNDLE: usize = 4 << 20;

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "tests write the files that operators and SPIRE would write"
    )]

    use super::*;
    use crate::test_pki::Authority;

    pub(super) fn td() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    /// What an agent asks at its first start.
    pub(super) fn first(trust_domain: &TrustDomain) -> BundleRequest<'_> {
        BundleRequest {
            trust_domain,
            server_address: "spire-server",
            server_port: 8081,
            is_again: false,
            since: time::macros::datetime!(2030-01-02 03:04:05 UTC),
            attempts: 1,
        }
    }

    #[tokio::test]
    async fn reads_both_formats_to_the_same_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let bundle = bundle_of(&td(), vec![authority.certificate()]);
        for (format, text) in [
            (BundleFormat::Pem, authority.certificate().to_pem()),
            (BundleFormat::Spiffe, bundle.to_spiffe_json()),
        ] {
            let path = dir.path().join("bundle");
            std::fs::write(&path, text).unwrap();
            let loaded = BootstrapSource::File { path, format }.load(&first(&td())).await;
            let loaded = loaded.unwrap().unwrap();
            assert_eq!(loaded.x509_certificates(), bundle.x509_certificates());
        }
    }

    #[tokio::test]
    async fn a_missing_empty_or_wrong_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("no-bundle");
        let source = BootstrapSource::File {
            path: path.clone(),
            format: BundleFormat::Pem,
        };
        for content in [None, Some(""), Some("not pem")] {
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let error = source.load(&first(&td())).await.unwrap_err().to_string();
            assert!(error.contains("no-bundle"), "{error}");
        }
    }

    #[tokio::test]
    async fn insecure_bootstrap_has_no_bundle() {
        let loaded = BootstrapSource::Insecure.load(&first(&td())).await;
        assert_eq!(loaded.unwrap(), None);
    }

    #[test]
    fn a_source_is_described_without_what_may_be_secret() {
        let source = BootstrapSource::Url {
            url: "https://b.example.org:8443/x?token=secret".parse().unwrap(),
            unix_socket: None,
            format: BundleFormat::Pem,
        };
        assert_eq!(source.describe(), "trust_bundle_url https://b.example.org:8443/x");
    }
}
