//! One GET, over TLS or to this machine, bounded in size and time; and its credentials: certificates and tokens in
//! files.

use std::net::IpAddr;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use finial_identity::process::private_file::{self, FileError};
use futures_util::future::{Either, select};
use http::header::{AUTHORIZATION, HOST, HeaderValue, USER_AGENT};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::pod_list::PodsError;

/// Most bytes of the files that are read.
pub(super) const MAX_FILE: usize = 1024 * 1024;
/// How long an answer may take.
pub(super) const ANSWER_TIME: Duration = Duration::from_secs(10);
/// How much of an error response is reported.
const MAX_REFUSAL: usize = 200;

/// Why there is no answer from the kubelet or the API server.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
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
    /// What it is called is no name of a machine.
    #[error("not a host name: {0:?}")]
    HostName(String),
    /// It is not known where it is.
    #[error("{0}")]
    Nowhere(&'static str),
    /// It cannot be connected to, or is not trusted.
    #[error("connect to {address}: {source}")]
    Connect {
        /// Its address.
        address: String,
        /// What happened.
        source: std::io::Error,
    },
    /// The answer is not HTTP.
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
    /// The list of pods cannot be understood.
    #[error("{0}")]
    Malformed(PodsError),
    /// The answer is not what was asked for.
    #[error("answered with something else than {0}")]
    OtherObject(String),
    /// It did not answer in time.
    #[error("no answer within {} s", ANSWER_TIME.as_secs())]
    TimedOut,
    /// The agent stops.
    #[error("cut off")]
    CutOff,
}

/// A host and a port as URLs have them: an IPv6 address in brackets.
pub(super) fn authority(host: &str, port: u16) -> String {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(host)) => format!("[{host}]:{port}"),
        _ => format!("{host}:{port}"),
    }
}

/// Connects to `host:port`.
///
/// # Errors
/// [`AskError::Connect`].
pub(super) async fn connect(address: &str) -> Result<TcpStream, AskError> {
    TcpStream::connect(address)
        .await
        .map_err(|source| AskError::Connect {
            address: address.to_owned(),
            source,
        })
}

/// Asks for one path, of which the answer may have so many bytes.
///
/// # Errors
/// [`AskError`].
pub(super) async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    address: &str,
    path: &str,
    bearer: Option<HeaderValue>,
    max_answer: usize,
) -> Result<Bytes, AskError> {
    let mut request = Request::get(path)
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
        let body = Limited::new(response.into_body(), max_answer).collect();
        let body = body.await.map_err(AskError::Body)?.to_bytes();
        if status == StatusCode::OK {
            return Ok(body);
        }
        let text = String::from_utf8_lossy(&body);
        Err(AskError::Refused {
            status,
            text: text.trim().chars().take(MAX_REFUSAL).collect(),
        })
    };
    match select(pin!(exchange), pin!(connection)).await {
        Either::Left((answer, _)) => answer,
        // The other side closed it; what it sent before is still to be read.
        Either::Right((_closed, exchange)) => exchange.await,
    }
}

/// The certificates of a file, of which there is at least one.
///
/// # Errors
/// [`AskError`].
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AskError> {
    // A key may stand beside them.
    let text = private_file::read_secret(path, MAX_FILE)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    let certificates = read.map_err(|error| unusable("certificates", path, error))?;
    if certificates.is_empty() {
        return Err(unusable("certificates", path, "there is none"));
    }
    Ok(certificates)
}

/// The token of a file, as it is shown.
///
/// # Errors
/// [`AskError`].
pub(super) fn token(path: &Path) -> Result<HeaderValue, AskError> {
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

pub(super) fn unusable(what: &'static str, path: &Path, why: impl std::fmt::Display) -> AskError {
    AskError::Unusable {
        what,
        path: path.display().to_string(),
        why: why.to_string(),
    }
}
