//! A document over HTTPS from a bundle endpoint (SPIFFE Federation §5.2): one GET, redirects to other valid endpoints
//! followed and not remembered, everything limited in size and time.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use finial_identity::bundle::MAX_FOREIGN_DOCUMENT_BYTES;
use finial_identity::federation::{EndpointUrl, EndpointUrlError};
use finial_identity::peer::{self, PeerError, PeerPolicy, SharedBundles, X509Bundles};
use finial_identity::process::Clock;
use finial_identity::process::http_get::{Answer, Get, GetError};
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::Certificate;
use http::StatusCode;
use rustls::{CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use thiserror::Error;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

/// For everything together.
const TIMEOUT: Duration = Duration::from_secs(30);
/// For a connection and its handshake, with all addresses of the host.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// For one address at least, while there is time.
const SHORTEST_ATTEMPT: Duration = Duration::from_secs(1);
/// How often an endpoint may lead on.
const MOST_REDIRECTS: usize = 5;
const USER_AGENT: &str = concat!("finial-server/", env!("CARGO_PKG_VERSION"));
const HTTP1: &[u8] = b"http/1.1";

/// Why there is no document.
#[derive(Debug, Error)]
pub enum FetchError {
    /// Nobody is trusted by the profile `https_web`.
    #[error("this machine has no root certificates: {0}")]
    NoRoots(String),
    /// The host of the URL is neither a DNS name nor an address.
    #[error("host of the URL is neither a name nor an address: {0:?}")]
    Host(String),
    /// The endpoint cannot be reached.
    #[error("connect to {endpoint}: {cause}")]
    Connect {
        /// Host and port.
        endpoint: String,
        /// What the system said.
        cause: io::Error,
    },
    /// The endpoint has the wrong identity, or does not use TLS.
    #[error("authenticate {endpoint}: {cause}")]
    Tls {
        /// Host and port.
        endpoint: String,
        /// What is wrong.
        cause: String,
    },
    /// The exchange failed.
    #[error(transparent)]
    Exchange(#[from] GetError),
    /// The answer is another than 200.
    #[error("endpoint answered {0}, want 200")]
    Status(StatusCode),
    /// A redirect does not say where to.
    #[error("endpoint answered {0} without a location")]
    NoLocation(StatusCode),
    /// A redirect leads to where no endpoint can be.
    #[error("endpoint redirects to where no endpoint can be: {0}")]
    Redirect(EndpointUrlError),
    /// Endpoints lead on and on.
    #[error("endpoint redirects more than {MOST_REDIRECTS} times")]
    TooManyRedirects,
    /// It took too long.
    #[error("no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// By what an endpoint is authenticated.
#[derive(Debug)]
pub(super) enum Trust {
    /// The root certificates of this machine, for the host of the URL.
    Web,
    /// These authorities of the ID's trust domain, for exactly this ID.
    Spiffe {
        /// The ID.
        id: SpiffeId,
        /// The authorities.
        authorities: Vec<Certificate>,
    },
}

/// What the endpoint at `url` answers.
///
/// # Errors
/// [`FetchError`].
pub(super) async fn fetch(url: &EndpointUrl, trust: Trust, clock: &Clock) -> Result<Bytes, FetchError> {
    let is_web = matches!(trust, Trust::Web);
    let tls = TlsConnector::from(Arc::new(client_config(trust, clock).await?));
    let client = Client { tls, is_web };
    let exchange = timeout(TIMEOUT, client.follow(url));
    exchange.await.unwrap_or(Err(FetchError::TimedOut(TIMEOUT)))
}

struct Client {
    tls: TlsConnector,
    is_web: bool,
}

impl Client {
    /// Each redirect is authenticated like the first endpoint (SPIFFE Federation §5.2.1.4, §5.2.2.4).
    async fn follow(&self, url: &EndpointUrl) -> Result<Bytes, FetchError> {
        let mut url = url.clone();
        for _ in 0..=MOST_REDIRECTS {
            let answer = self.ask(&url).await?;
            match answer.status {
                StatusCode::OK => return Ok(answer.body),
                StatusCode::MOVED_PERMANENTLY
                | StatusCode::FOUND
                | StatusCode::SEE_OTHER
                | StatusCode::TEMPORARY_REDIRECT
                | StatusCode::PERMANENT_REDIRECT => {
                    let location = answer.location.ok_or(FetchError::NoLocation(answer.status))?;
                    url = url.redirected(&location).map_err(FetchError::Redirect)?;
                    tracing::debug!(%url, "bundle endpoint leads on");
                }
                other => return Err(FetchError::Status(other)),
            }
        }
        Err(FetchError::TooManyRedirects)
    }

    async fn ask(&self, url: &EndpointUrl) -> Result<Answer, FetchError> {
        let (host, port) = (url.host(), url.port());
        let name =
            ServerName::try_from(host.to_owned()).map_err(|_neither| FetchError::Host(host.to_owned()))?;
        let endpoint = &format!("{host}:{port}");
        let unreachable = |cause| FetchError::Connect {
            endpoint: endpoint.clone(),
            cause,
        };
        let started = Instant::now();
        let addresses = timeout(CONNECT_WITHIN, lookup_host((host, port)))
            .await
            .map_err(|_elapsed| FetchError::TimedOut(CONNECT_WITHIN))?
            .map_err(unreachable)?
            .collect();
        let attempt = |address: SocketAddr| {
            let (tls, name) = (self.tls.clone(), name.clone());
            async move {
                let stream = TcpStream::connect(address).await.map_err(unreachable)?;
                let stream = tls.connect(name, stream).await;
                stream.map_err(|error| FetchError::Tls {
                    endpoint: endpoint.clone(),
                    cause: tls_text(&error, self.is_web),
                })
            }
        };
        let stream = first_of(addresses, started + CONNECT_WITHIN, attempt).await?;
        let get = Get {
            authority: url.uri().authority().map_or("", http::uri::Authority::as_str),
            target: url.path_and_query(),
            user_agent: USER_AGENT,
            authorization: None,
            max_body: MAX_FOREIGN_DOCUMENT_BYTES,
        };
        Ok(get.send(stream).await?)
    }
}

/// The connection to the first address that answers. What is left of the time is divided among the addresses that are
/// left, so that one that does not answer does not cost the others theirs. One that answers and is not who it should
/// be is the outcome.
async fn first_of<T, F>(
    addresses: Vec<SocketAddr>,
    until: Instant,
    attempt: impl Fn(SocketAddr) -> F,
) -> Result<T, FetchError>
where
    F: Future<Output = Result<T, FetchError>>,
{
    let mut outcome = Err(FetchError::TimedOut(CONNECT_WITHIN));
    let mut left = u32::try_from(addresses.len()).unwrap_or(u32::MAX);
    for address in addresses {
        let remaining = until.saturating_duration_since(Instant::now());
        let share = (remaining / left.max(1)).max(SHORTEST_ATTEMPT).min(remaining);
        outcome = timeout(share, attempt(address))
            .await
            .unwrap_or(Err(FetchError::TimedOut(CONNECT_WITHIN)));
        match outcome {
            Err(FetchError::Connect { .. } | FetchError::TimedOut(_)) => left = left.saturating_sub(1),
            outcome => return outcome,
        }
    }
    outcome
}

async fn client_config(trust: Trust, clock: &Clock) -> Result<ClientConfig, FetchError> {
    let mut config = match trust {
        Trust::Web => {
            // Read each time, so that an authority that the machine no longer trusts is not trusted here either.
            let roots = tokio::task::spawn_blocking(system_roots).await;
            let roots = roots.map_err(|error| FetchError::NoRoots(error.to_string()))??;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
                .with_safe_default_protocol_versions()
                .expect("ring has cipher suites for TLS 1.2 and 1.3")
                .with_root_certificates(roots)
                .with_no_client_auth()
        }
        Trust::Spiffe { id, authorities } => {
            let bundles: X509Bundles = [(id.trust_domain().clone(), authorities.into())].into();
            let verifier = peer::server_verifier(
                Arc::new(SharedBundles::fixed(bundles)),
                PeerPolicy::OneOf(vec![id]),
                clock.clone(),
            );
            peer::client_config(verifier, None, clock.clone())
        }
    };
    config.resumption = rustls::client::Resumption::disabled();
    config.alpn_protocols = vec![HTTP1.to_vec()];
    Ok(config)
}

fn system_roots() -> Result<RootCertStore, FetchError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unusable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        return Err(FetchError::NoRoots(errors.join("; ")));
    }
    Ok(roots)
}

/// What is wrong with the endpoint, in our own words where it is an SVID, and with a hint where the profile may be the
/// wrong one.
fn tls_text(error: &io::Error, is_web: bool) -> String {
    let Some(inner) = error
        .get_ref()
        .and_then(|inner| inner.downcast_ref::<rustls::Error>())
    else {
        return error.to_string();
    };
    if let Some(peer) = PeerError::within(inner) {
        return peer.to_string();
    }
    match inner {
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer
            | CertificateError::NotValidForName
            | CertificateError::NotValidForNameContext { .. },
        ) if is_web => {
            format!("{inner} (an endpoint with an X509-SVID is authenticated by the profile https_spiffe)")
        }
        _ => inner.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(count: u8) -> Vec<SocketAddr> {
        (1..=count)
            .map(|host| SocketAddr::from(([192, 0, 2, host], 443)))
            .collect()
    }

    fn refused() -> FetchError {
        FetchError::Connect {
            endpoint: "a.test:443".into(),
            cause: io::ErrorKind::ConnectionRefused.into(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn addresses_that_do_not_answer_leave_time_for_those_that_do() {
        let started = Instant::now();
        let last = addresses(4)[3];
        let attempt = |address| async move {
            if address == last {
                tokio::time::sleep(Duration::from_secs(2)).await;
                return Ok(address);
            }
            std::future::pending().await
        };
        let found = first_of(addresses(4), started + CONNECT_WITHIN, attempt).await;
        assert_eq!(found.unwrap(), last);
        assert!(started.elapsed() <= CONNECT_WITHIN);
    }

    #[tokio::test(start_paused = true)]
    async fn all_addresses_together_have_the_time_of_one() {
        for count in [1, 3, 200] {
            let started = Instant::now();
            let until = started + CONNECT_WITHIN;
            let none = first_of::<(), _>(addresses(count), until, |_| std::future::pending()).await;
            assert!(
                matches!(none, Err(FetchError::TimedOut(CONNECT_WITHIN))),
                "{count}"
            );
            assert!(
                started.elapsed() <= CONNECT_WITHIN + Duration::from_secs(1),
                "{count}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stranger_at_one_address_is_the_outcome_and_a_closed_port_is_not() {
        let until = Instant::now() + CONNECT_WITHIN;
        let [closed, stranger, good] = addresses(3).try_into().unwrap();
        let attempt = |address| async move {
            match address {
                address if address == closed => Err(refused()),
                address if address == stranger => Err(FetchError::Host("a stranger".into())),
                address => Ok(address),
            }
        };
        assert!(matches!(
            first_of(vec![closed, stranger, good], until, attempt).await,
            Err(FetchError::Host(_))
        ));
        assert_eq!(first_of(vec![closed, good], until, attempt).await.unwrap(), good);
        assert!(matches!(
            first_of(vec![closed], until, attempt).await,
            Err(FetchError::Connect { .. })
        ));
    }
}
