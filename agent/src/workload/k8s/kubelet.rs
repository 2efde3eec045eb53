//! Asks the kubelet for its pods: one GET over TLS, bounded in size and time.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use finial_identity::process::private_file::{self, FileError};
use futures_util::future::{Either, select};
use http::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::super::{AttestorError, off_thread};
use super::pods::PodsError;
use super::trust;
use crate::config::{K8sSettings, KubeletLogin, KubeletPort, KubeletVerification};

/// Most bytes of a list: 500 pods, which are many for a node, have some 20 MB.
const MAX_LIST: usize = 96 * 1024 * 1024;
/// Most bytes of the files that are read.
const MAX_FILE: usize = 1024 * 1024;
/// How long the kubelet has for an answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How much of a refusal is told.
const MAX_REFUSAL: usize = 200;

/// Gives the list of pods, as JSON.
#[async_trait]
pub(super) trait FetchPods: Send + Sync + std::fmt::Debug {
    async fn fetch(&self) -> Result<Bytes, KubeletError>;
}

/// The kubelet of this node.
#[derive(Debug)]
pub(super) struct Kubelet {
    settings: Arc<K8sSettings>,
    /// What was read from files last, and when.
    access: Mutex<Option<(Instant, Access)>>,
}

/// What opens the kubelet's door.
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

/// Why the kubelet did not tell about its pods.
#[derive(Debug, thiserror::Error)]
pub enum KubeletError {
    /// A file cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// A file is not what it should be.
    #[error("{what}: {path}: {why}")]
    Unusable {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// The node's name is none of a machine.
    #[error("node name is not a host name: {0:?}")]
    NodeName(String),
    /// It cannot be connected to, or is not trusted.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Its address.
        address: String,
        /// What happened.
        source: std::io::Error,
    },
    /// It does not speak HTTP.
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
    /// The request cannot be written.
    #[error("request: {0}")]
    Request(#[from] http::Error),
    /// The answer broke off, or is too long.
    #[error("read answer: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// It refused.
    #[error("answered {status}: {text}")]
    Refused {
        /// The status.
        status: StatusCode,
        /// What it said.
        text: String,
    },
    /// The answer cannot be understood.
    #[error("{0}")]
    Malformed(PodsError),
    /// It did not answer in time.
    #[error("no answer within {} s", ANSWER_TIME.as_secs())]
    TimedOut,
    /// The agent stops.
    #[error("cut off")]
    CutOff,
}

impl Kubelet {
    pub(super) fn new(settings: Arc<K8sSettings>) -> Self {
        Self {
            settings,
            access: Mutex::new(None),
        }
    }

    async fn ask(&self) -> Result<Bytes, KubeletError> {
        match self.settings.port {
            KubeletPort::ReadOnly(port) => {
                let address = format!("{}:{port}", Ipv4Addr::LOCALHOST);
                let stream = connect(&address).await?;
                get(stream, &address, None).await
            }
            KubeletPort::Secure(port) => {
                let access = self.access().await?;
                let (host, name) = self.host()?;
                let address = match host.parse::<IpAddr>() {
                    Ok(IpAddr::V6(host)) => format!("[{host}]:{port}"),
                    _ => format!("{host}:{port}"),
                };
                let stream = connect(&address).await?;
                let secured = TlsConnector::from(access.tls).connect(name, stream).await;
                let stream = secured.map_err(|source| KubeletError::Connect {
                    address: address.clone(),
                    source,
                })?;
                get(stream, &address, access.bearer).await
            }
        }
    }

    /// The node by its name, else this machine.
    fn host(&self) -> Result<(String, ServerName<'static>), KubeletError> {
        let host = match &self.settings.node_name {
            Some(name) => name.clone(),
            None => Ipv4Addr::LOCALHOST.to_string(),
        };
        let name =
            ServerName::try_from(host.clone()).map_err(|_invalid| KubeletError::NodeName(host.clone()))?;
        Ok((host, name))
    }

    /// What the files say, read again once in a while.
    async fn access(&self) -> Result<Access, KubeletError> {
        if let Some((read_at, access)) = self.held()
            && read_at.elapsed() < self.settings.reload_interval
        {
            return Ok(access);
        }
        let settings = Arc::clone(&self.settings);
        let read = off_thread(move || Ok(Access::read(&settings))).await;
        let access = read.map_err(|_cut_off: AttestorError| KubeletError::CutOff)??;
        *self.access.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), access.clone()));
        Ok(access)
    }

    fn held(&self) -> Option<(Instant, Access)> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl FetchPods for Kubelet {
    async fn fetch(&self) -> Result<Bytes, KubeletError> {
        let asked = tokio::time::timeout(ANSWER_TIME, self.ask()).await;
        let answer = asked.unwrap_or(Err(KubeletError::TimedOut));
        if answer.is_err() {
            // Files that were renewed meanwhile may help.
            *self.access.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        answer
    }
}

impl Access {
    fn read(settings: &K8sSettings) -> Result<Self, KubeletError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = match &settings.verification {
            KubeletVerification::Skip => trust::of_anybody(),
            KubeletVerification::Certificates(path) => trust::of_certificates(certificates(path)?),
        };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier);
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

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KubeletError> {
    let text = private_file::read_bounded(path, MAX_FILE)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = read.map_err(|error| unusable("certificates", path, error))?;
    if certificates.is_empty() {
        return Err(unusable("certificates", path, "there is none"));
    }
    Ok(certificates)
}

fn token(path: &Path) -> Result<HeaderValue, KubeletError> {
    let secret = private_file::read_secret(path, MAX_FILE)?;
    let token = secret.as_bytes().trim_ascii();
    if token.is_empty() {
        return Err(unusable("token", path, "it is empty"));
    }
    let mut header = HeaderValue::from_bytes(&[b"Bearer ", token].concat())
        .map_err(|_invalid| unusable("token", path, "it is no text of one line"))?;
    header.set_sensitive(true);
    Ok(header)
}

fn unusable(what: &'static str, path: &Path, why: impl std::fmt::Display) -> KubeletError {
    KubeletError::Unusable {
        what,
        path: path.display().to_string(),
        why: why.to_string(),
    }
}

async fn connect(address: &str) -> Result<TcpStream, KubeletError> {
    TcpStream::connect(address)
        .await
        .map_err(|source| KubeletError::Connect {
            address: address.to_owned(),
            source,
        })
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: &str,
    bearer: Option<HeaderValue>,
) -> Result<Bytes, KubeletError> {
    let mut request = Request::get("/pods")
        .header(HOST, address)
        .header(USER_AGENT, concat!("finial-agent/", env!("CARGO_PKG_VERSION")));
    if let Some(bearer) = bearer {
        request = request.header(AUTHORIZATION, bearer);
    }
    let request = request.body(Empty::<Bytes>::new())?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_LIST).collect();
        let body = body.await.map_err(KubeletError::Body)?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        Err(KubeletError::Refused {
            status,
            text: text.trim().chars().take(MAX_REFUSAL).collect(),
        })
    };
    match select(pin!(exchange), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // The kubelet closed it; what it sent before is still to be read.
        Either::Right((_closed, exchange)) => exchange.await,
    }
}
