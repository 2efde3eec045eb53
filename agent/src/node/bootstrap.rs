//! Whom to trust at first contact.
//!
//! A bundle that an earlier run saved wins over the configured source, as with SPIRE's agents.

use std::path::{Path, PathBuf};

use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::process::private_file::{self, FileError};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::Certificate;

pub use crate::config::{BootstrapSource, BundleFormat};

/// Why there is no trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file cannot be read.
    #[error("trust bundle: {0}")]
    File(#[from] FileError),
    /// The file is not a bundle.
    #[error("trust bundle {}: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl BootstrapSource {
    /// The configured bundle; `None` when there is to be none.
    ///
    /// # Errors
    /// [`BootstrapError`].
    pub fn load(&self, trust_domain: &TrustDomain) -> Result<Option<Bundle>, BootstrapError> {
        let Self::File { path, format } = self else {
            return Ok(None);
        };
        let bytes = private_file::read_bounded(path, MAX_FILE)?;
        let malformed = |why: String| BootstrapError::Malformed {
            path: path.clone(),
            why,
        };
        let authorities = match format {
            BundleFormat::Pem => from_pem(&bytes).map_err(malformed)?,
            BundleFormat::Spiffe => from_spiffe(trust_domain, &bytes).map_err(malformed)?,
        };
        if authorities.is_empty() {
            return Err(malformed("holds no X.509 authority".to_owned()));
        }
        Ok(Some(bundle_of(trust_domain, authorities)))
    }

    /// The source in a sentence, for those who must find what is wrong with it.
    pub fn describe(&self) -> String {
        match self {
            Self::File { path, .. } => format!("trust_bundle_path {}", path.display()),
            Self::Insecure => "insecure_bootstrap".to_owned(),
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

/// A bundle has a few certificates of a kilobyte or two.
const MAX_FILE: usize = 4 << 20;

#[cfg(test)]
mod tests {
    #![allow(
        clippy::disallowed_methods,
        reason = "tests write the files that operators and SPIRE would write"
    )]

    use super::*;
    use crate::test_pki::Authority;

    fn td() -> TrustDomain {
        TrustDomain::parse("example.org").unwrap()
    }

    #[test]
    fn reads_both_formats_to_the_same_authorities() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let bundle = bundle_of(&td(), vec![authority.certificate()]);
        for (format, text) in [
            (BundleFormat::Pem, authority.certificate().to_pem()),
            (BundleFormat::Spiffe, bundle.to_spiffe_json()),
        ] {
            let path = dir.path().join("bundle");
            std::fs::write(&path, text).unwrap();
            let loaded = BootstrapSource::File { path, format }.load(&td()).unwrap();
            assert_eq!(loaded.unwrap().x509_certificates(), bundle.x509_certificates());
        }
    }

    #[test]
    fn a_missing_empty_or_wrong_file_is_named() {
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
            let error = source.load(&td()).unwrap_err().to_string();
            assert!(error.contains("no-bundle"), "{error}");
        }
    }

    #[test]
    fn insecure_bootstrap_has_no_bundle() {
        assert_eq!(BootstrapSource::Insecure.load(&td()).unwrap(), None);
    }
}
