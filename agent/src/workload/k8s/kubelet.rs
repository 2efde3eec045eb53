//! Asks the kubelet for its pods.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use finial_identity::process::private_file;
use http::header::HeaderValue;
use rustls::ClientConfig;
use rustls::client::danger::ServerCertVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::super::{AttestorError, off_thread};
use super::ask::{self, ANSWER_TIME, AskError, MAX_FILE, certificates, token, unusable};
use super::trust;
use crate::config::{K8sSettings, KubeletLogin, KubeletPort, KubeletVerification};

/// Where its list of pods is.
const PODS: &str = "/pods";
/// Most bytes of a list: 500 pods, which are many for a node, have some 20 MB.
const MAX_LIST: usize = 96 * 1024 * 1024;

/// Gives the list of pods, as JSON.
#[async_trait]
pub(super) trait FetchPods: Send + Sync + std::fmt::Debug {
    async fn fetch(&self) -> Result<Bytes, AskError>;
}

/// The kubelet of this node.
#[derive(Debug)]
pub(super) struct Kubelet {
    settings: Arc<K8sSettings>,
    /// What was read from files last, and when.
    access: Mutex<Option<(Instant, Access)>>,
}

/// The credentials for the kubelet.
#[derive(Clone)]
struct Access {
    tls: Arc<ClientConfig>,
    bearer: Option<HeaderValue>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Access")
    }
}

impl Kubelet {
    pub(super) fn new(settings: Arc<K8sSettings>) -> Self {
        Self {
            settings,
            access: Mutex::new(None),
        }
    }

    async fn ask(&self) -> Result<Bytes, AskError> {
        match self.settings.port {
            KubeletPort::ReadOnly(port) => {
                let address = format!("{}:{port}", Ipv4Addr::LOCALHOST);
                let stream = ask::connect(&address).await?;
                ask::get(stream, &address, PODS, None, MAX_LIST).await
            }
            KubeletPort::Secure(port) => {
                let access = self.access().await?;
                let (host, name) = self.host()?;
                let address = ask::authority(&host, port);
                let stream = ask::connect(&address).await?;
                let secured = TlsConnector::from(access.tls).connect(name, stream).await;
                let stream = secured.map_err(|source| AskError::Connect {
                    address: address.clone(),
                    source,
                })?;
                ask::get(stream, &address, PODS, access.bearer, MAX_LIST).await
            }
        }
    }

    /// The node by its name, else this machine.
    fn host(&self) -> Result<(String, ServerName<'static>), AskError> {
        let host = match &self.settings.node_name {
            Some(name) => name.clone(),
            None => Ipv4Addr::LOCALHOST.to_string(),
        };
        let name = ServerName::try_from(host.clone()).map_err(|_invalid| AskError::HostName(host.clone()))?;
        Ok((host, name))
    }

    /// What the files say, read again once in a while.
    async fn access(&self) -> Result<Access, AskError> {
        if let Some((read_at, access)) = self.held()
            && read_at.elapsed() < self.settings.reload_interval
        {
            return Ok(access);
        }
        let settings = Arc::clone(&self.settings);
        let read = off_thread(move || Ok(Access::read(&settings))).await;
        let access = read.map_err(|_cut_off: AttestorError| AskError::CutOff)??;
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), access.clone()));
        Ok(access)
    }

    fn held(&self) -> Option<(Instant, Access)> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl FetchPods for Kubelet {
    async fn fetch(&self) -> Result<Bytes, AskError> {
        let asked = tokio::time::timeout(ANSWER_TIME, self.ask()).await;
        let answer = asked.unwrap_or(Err(AskError::TimedOut));
        if answer.is_err() {
            // Files that were renewed meanwhile may help.
            *self.access.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }
}

impl Access {
    fn read(settings: &K8sSettings) -> Result<Self, AskError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier(&settings.verification)?);
        let mut bearer = None;
        let mut tls = match &settings.login {
            KubeletLogin::Anonymous => builder.with_no_client_auth(),
            KubeletLogin::Token(path) => {
                bearer = Some(token(path)?);
                builder.with_no_client_auth()
            }
            KubeletLogin::Certificate {
                certificate,
                private_key,
            } => {
                let key = private_file::read_secret(private_key, MAX_FILE)?;
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
                    .map_err(|_error| unusable("private key", private_key, "not a key in PEM"))?;
                builder
                    .with_client_auth_cert(certificates(certificate)?, key)
                    .map_err(|error| unusable("client certificate", certificate, error))?
            }
        };
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            tls: Arc::new(tls),
            bearer,
        })
    }
}

/// How the kubelet is verified. Its own certificate may be missing, and so may the authorities, but not both.
fn verifier(verification: &KubeletVerification) -> Result<Arc<dyn ServerCertVerifier>, AskError> {
    let (authorities, own) = match verification {
        KubeletVerification::Skip => return Ok(trust::of_anybody()),
        KubeletVerification::Certificates { authorities, own } => (authorities, own),
    };
    let own: Vec<_> = own
        .iter()
        .filter_map(|path| read_if_there(path))
        .flatten()
        .collect();
    match certificates(authorities) {
        Ok(authorities) => Ok(trust::of_certificates(authorities, own)),
        Err(_absent) if !own.is_empty() => Ok(trust::of_certificates(Vec::new(), own)),
        Err(error) => Err(error),
    }
}

fn read_if_there(path: &Path) -> Option<Vec<rustls_pki_types::CertificateDer<'static>>> {
    if !path.exists() {
        return None;
    }
    certificates(path)
        .inspect_err(|error| tracing::warn!(%error, "certificate of the kubelet cannot be read"))
        .ok()
}
