//! TLS of HTTP listeners: the one that Prometheus scrapes, and a server's bundle endpoint.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::peer::{self, BundleSource, PeerPolicy};
use crate::process::Clock;
use crate::process::private_file::{self, FileError};
use crate::spiffe_id::SpiffeId;
use crate::x509::X509Svid;

const HTTP1: &[u8] = b"http/1.1";
/// The files are read again when a handshake comes and they were read longer ago than this, unless said otherwise.
const FRESH: Duration = Duration::from_secs(60);
/// Most bytes of each file.
const MAX_FILE: usize = 1024 * 1024;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// It holds no PEM of the kind that it should.
    #[error("{}: {source}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: pem::Error,
    },
    /// Key and certificate do not fit, or the authorities cannot be used.
    #[error("{}: {source}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What the TLS library said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A certificate in files, which may be renewed.
#[derive(Debug)]
pub struct CertificateFiles {
    cert_file: PathBuf,
    key_file: PathBuf,
    client_ca_file: Option<PathBuf>,
    clock: Clock,
    fresh_for: Duration,
    held: Mutex<(Instant, Arc<ServerConfig>)>,
}

impl CertificateFiles {
    /// Reads the files. With authorities of clients, only clients whose certificate they signed are served.
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn read(
        cert_file: PathBuf,
        key_file: PathBuf,
        client_ca_file: Option<PathBuf>,
        clock: Clock,
    ) -> Result<Self, TlsError> {
        let config = load(&cert_file, &key_file, client_ca_file.as_deref(), &clock)?;
        Ok(Self {
            cert_file,
            key_file,
            client_ca_file,
            clock,
            fresh_for: FRESH,
            held: Mutex::new((Instant::now(), Arc::new(config))),
        })
    }

    /// The same, read again when a handshake comes and they were read longer ago than this.
    #[must_use]
    pub fn fresh_for(self, fresh_for: Duration) -> Self {
        Self { fresh_for, ..self }
    }

    /// What the next handshake uses. Files that cannot be used leave in place what was read before.
    pub fn config(&self) -> Arc<ServerConfig> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.0.elapsed() >= self.fresh_for {
            held.0 = Instant::now();
            match load(
                &self.cert_file,
                &self.key_file,
                self.client_ca_file.as_deref(),
                &self.clock,
            ) {
                Ok(config) => held.1 = Arc::new(config),
                Err(error) => {
                    tracing::warn!(%error, "certificate of an HTTP listener cannot be read again")
                }
            }
        }
        Arc::clone(&held.1)
    }
}

/// TLS with the process's own SVID. With `authorized` IDs, only clients with one of these SVIDs are served; with
/// none, no client certificate is asked for.
pub fn tls_of_svid(
    svid: watch::Receiver<Option<Arc<X509Svid>>>,
    bundles: Arc<dyn BundleSource>,
    authorized: Vec<SpiffeId>,
    clock: Clock,
) -> Arc<ServerConfig> {
    let verifier = (!authorized.is_empty())
        .then(|| peer::client_verifier(bundles, PeerPolicy::OneOf(authorized), clock.clone(), true));
    let mut config = peer::server_config(svid, verifier, clock);
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Arc::new(config)
}

fn load(
    cert_file: &Path,
    key_file: &Path,
    client_ca_file: Option<&Path>,
    clock: &Clock,
) -> Result<ServerConfig, TlsError> {
    let chain = certificates(cert_file)?;
    let key_pem = private_file::read_secret(key_file, MAX_FILE)?;
    let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes()).map_err(|source| TlsError::Pem {
        path: key_file.to_owned(),
        source,
    })?;
    let clients: Arc<dyn ClientCertVerifier> = match client_ca_file {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(path) => {
            let unusable = |source: Box<dyn std::error::Error + Send + Sync>| TlsError::Unusable {
                path: path.to_owned(),
                source,
            };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(|error| unusable(error.into()))?;
            }
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), peer::ring_provider())
                .build()
                .map_err(|error| unusable(error.into()))?
        }
    };
    let mut config = peer::server_builder(clock.clone())
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)
        .map_err(|error| TlsError::Unusable {
            path: cert_file.to_owned(),
            source: error.into(),
        })?;
    config.alpn_protocols = vec![HTTP1.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = private_file::read_text(path, MAX_FILE)?;
    let broken = |source| TlsError::Pem {
        path: path.to_owned(),
        source,
    };
    let found: Vec<_> = CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(broken)?;
    if found.is_empty() {
        return Err(broken(pem::Error::NoItemsFound));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use super::*;

    struct Files(tempfile::TempDir);

    impl Files {
        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn write(&self) {
            let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
            let pem = |label: &str, der: &[u8]| {
                let text = data_encoding::BASE64.encode(der);
                format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
            };
            let key_pem = pem("PRIVATE KEY", &made.signing_key.serialize_der());
            std::fs::write(self.path("cert.pem"), pem("CERTIFICATE", made.cert.der())).unwrap();
            std::fs::write(self.path("key.pem"), key_pem).unwrap();
        }

        fn read(&self, client_ca: Option<&str>) -> Result<CertificateFiles, TlsError> {
            CertificateFiles::read(
                self.path("cert.pem"),
                self.path("key.pem"),
                client_ca.map(|name| self.path(name)),
                Clock::system(),
            )
        }
    }

    fn files() -> Files {
        let files = Files(tempfile::tempdir().unwrap());
        files.write();
        files
    }

    #[tokio::test(start_paused = true)]
    async fn replaced_files_are_taken_up_and_broken_ones_are_not() {
        let files = files();
        let read = files.read(Some("cert.pem")).unwrap();
        let first = read.config();
        assert_eq!(first.alpn_protocols, [HTTP1.to_vec()]);
        assert!(Arc::ptr_eq(&first, &read.config()), "not read at every handshake");
        tokio::time::advance(FRESH).await;
        files.write();
        let second = read.config();
        assert!(!Arc::ptr_eq(&first, &second));
        tokio::time::advance(FRESH).await;
        std::fs::write(files.path("cert.pem"), "broken").unwrap();
        assert!(Arc::ptr_eq(&second, &read.config()));
    }

    #[test]
    fn what_cannot_be_used_is_told_with_its_file() {
        let files = files();
        let error = files.read(Some("absent.pem")).unwrap_err().to_string();
        assert!(error.contains("absent.pem"), "{error}");
        let key = std::fs::read(files.path("key.pem")).unwrap();
        files.write();
        std::fs::write(files.path("key.pem"), key).unwrap();
        let error = files.read(None).unwrap_err();
        assert!(
            matches!(error, TlsError::Unusable { .. }),
            "key of another certificate: {error}"
        );
        std::fs::write(files.path("key.pem"), "nothing").unwrap();
        assert!(matches!(files.read(None).unwrap_err(), TlsError::Pem { .. }));
    }
}
