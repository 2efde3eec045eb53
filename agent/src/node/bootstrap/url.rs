//! A trust bundle over HTTP: with TLS verified by the system's root certificates, or over a Unix socket of this machine.
//!
//! One GET, answered with 200 and a body of bounded size in bounded time. Redirects are not followed: they would lead
//! away from the host that the operator chose.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::http_get::{Get, GetError};
use http::{HeaderValue, StatusCode, Uri};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::{BundleRequest, MAX_BUNDLE};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("this machine has no root certificates: {0}")]
    NoRoots(String),
    #[error("connect: {0}")]
    Connect(std::io::Error),
    #[error("{0}")]
    Exchange(#[from] GetError),
    #[error("not a URL that can be asked for: {0}")]
    Url(String),
    #[error("answered {0}; only 200 will do, and redirects are not followed")]
    Status(StatusCode),
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

/// The root certificates of this machine.
pub(super) fn system_roots() -> Result<RootCertStore, FetchError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(FetchError::NoRoots(errors.join("; ")));
    }
    Ok(roots)
}

/// The answer of `https` URL `url`. The certificate of its host is verified with `roots`, then `authorization` is sent.
pub(super) async fn fetch(
    url: &Uri,
    roots: RootCertStore,
    authorization: Option<&HeaderValue>,
) -> Result<Vec<u8>, FetchError> {
    let host = url.host().unwrap_or_default();
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(|error| FetchError::Url(error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has ciphers for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let port = url.port_u16().unwrap_or(443);
    let exchange = async {
        let stream = TcpStream::connect((host, port))
            .await
            .map_err(FetchError::Connect)?;
        let connector = TlsConnector::from(Arc::new(tls));
        let stream = connector
            .connect(name, stream)
            .await
            .map_err(FetchError::Connect)?;
        get(stream, url, path_and_query(url), authorization).await
    };
    within_time(exchange).await
}

/// The answer of the server at `socket` to `http` URL `url`; the query says who asks and why.
pub(super) async fn fetch_over_socket(
    url: &Uri,
    socket: &Path,
    request: &BundleRequest<'_>,
) -> Result<Vec<u8>, FetchError> {
    let target = with_query(path_and_query(url), request);
    let exchange = async {
        let stream = UnixStream::connect(socket).await.map_err(FetchError::Connect)?;
        get(stream, url, &target, None).await
    };
    within_time(exchange).await
}

async fn within_time(
    exchange: impl Future<Output = Result<Vec<u8>, FetchError>>,
) -> Result<Vec<u8>, FetchError> {
    let answer = tokio::time::timeout(TIMEOUT, exchange).await;
    answer.unwrap_or(Err(FetchError::TimedOut))
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    url: &Uri,
    target: &str,
    authorization: Option<&HeaderValue>,
) -> Result<Vec<u8>, FetchError> {
    let get = Get {
        authority: url
            .authority()
            .map(http::uri::Authority::as_str)
            .unwrap_or_default(),
        target,
        user_agent: concat!("finial-agent/", env!("CARGO_PKG_VERSION")),
        authorization,
        max_body: MAX_BUNDLE,
    };
    let answer = get.send(stream).await?;
    match answer.status {
        StatusCode::OK => Ok(answer.body.to_vec()),
        other => Err(FetchError::Status(other)),
    }
}

fn path_and_query(url: &Uri) -> &str {
    url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str)
}

/// Adds the query parameters of SPIRE's agents.
fn with_query(target: &str, request: &BundleRequest<'_>) -> String {
    let since = request.since.format(&Rfc3339).unwrap_or_default();
    let mode = if request.is_again {
        "rebootstrap"
    } else {
        "bootstrap"
    };
    let parameters = [
        ("spiffe-trust-domain", request.trust_domain.as_str().to_owned()),
        ("spire-attest-mode", mode.to_owned()),
        ("spire-attest-start-time", since),
        ("spire-connection-attempts", request.attempts.to_string()),
        ("spire-server-address", request.server_address.to_owned()),
        ("spire-server-port", request.server_port.to_string()),
    ];
    let mut target = target.to_owned();
    for (name, value) in parameters {
        target.push(if target.contains('?') { '&' } else { '?' });
        target.push_str(name);
        target.push('=');
        percent_encode(&value, &mut target);
    }
    target
}

/// Everything but RFC 3986's unreserved characters becomes `%XX`.
fn percent_encode(value: &str, into: &mut String) {
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// For the whole exchange.
const TIMEOUT: Duration = Duration::from_secs(30);
