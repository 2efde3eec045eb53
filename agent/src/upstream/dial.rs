//! Opens connections: resolves the server's name, tries its addresses, and uses TLS with our own verifier.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::connection::Connection;
use super::error::{UpstreamError, classify_tls, tls_error};

/// Where the server is. Clones share the rotation of addresses and the count of connections.
#[derive(Clone, Debug)]
pub(super) struct Target {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: String,
    port: u16,
    /// Which of the resolved addresses to try first; moves on when one fails, so that a server that
    /// accepts and then drops connections does not hold us.
    rotation: AtomicUsize,
    /// The address that was left last for another. It is tried last, in whatever order names are resolved.
    left: Mutex<Option<SocketAddr>>,
    connections: AtomicU64,
    /// In place of what the name resolves to.
    #[cfg(test)]
    resolved: std::sync::OnceLock<Vec<SocketAddr>>,
}

/// Which server a channel has reached last. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Contact {
    inner: Arc<Mutex<Reached>>,
}

#[derive(Debug, Default)]
struct Reached {
    address: Option<SocketAddr>,
    /// What it said against our certificate, which with TLS 1.3 it says after the handshake.
    refusal: Option<UpstreamError>,
}

/// Why no connection was made.
#[derive(Clone, Debug)]
pub(super) struct DialError {
    cause: UpstreamError,
}

impl Target {
    pub(super) fn new(host: String, port: u16) -> Self {
        Self {
            inner: Arc::new(Inner {
                host,
                port,
                rotation: AtomicUsize::new(0),
                left: Mutex::new(None),
                connections: AtomicU64::new(0),
                #[cfg(test)]
                resolved: std::sync::OnceLock::new(),
            }),
        }
    }

    /// How many connections were made so far.
    pub(super) fn connections(&self) -> u64 {
        self.inner.connections.load(Ordering::Relaxed)
    }

    /// How often another address was preferred.
    #[cfg(test)]
    pub(super) fn rotation(&self) -> usize {
        self.inner.rotation.load(Ordering::Relaxed)
    }

    /// The address that comes last.
    #[cfg(test)]
    pub(super) fn last(&self) -> Option<SocketAddr> {
        *self.lock_left()
    }

    /// Resolves the name to these addresses.
    #[cfg(test)]
    pub(super) fn resolve_to(&self, addresses: Vec<SocketAddr>) {
        self.inner.resolved.set(addresses).expect("once");
    }

    /// Starts with another address next time, and comes to this one last.
    pub(super) fn leave(&self, address: Option<SocketAddr>) {
        if address.is_some() {
            *self.lock_left() = address;
        }
        self.rotate();
    }

    fn rotate(&self) {
        self.inner.rotation.fetch_add(1, Ordering::Relaxed);
    }

    fn lock_left(&self) -> MutexGuard<'_, Option<SocketAddr>> {
        // The value is replaced whole, so a panic cannot leave it half-changed.
        self.inner.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel that connects when it is first used and again whenever its connection ends, and whom it reaches.
    ///
    /// # Errors
    /// [`UpstreamError::Unavailable`] when host and port do not make an authority.
    pub(super) fn channel(&self, tls: Arc<ClientConfig>) -> Result<(Channel, Contact), UpstreamError> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.authority()))
            .map_err(|error| {
                UpstreamError::Unavailable(format!("server address {}: {error}", self.authority()))
            })?
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let contact = Contact::default();
        let (target, reached) = (self.clone(), contact.clone());
        let connector = tower::service_fn(move |_uri: http::Uri| {
            let (target, tls, reached) = (target.clone(), Arc::clone(&tls), reached.clone());
            async move { target.connect(tls, reached).await.map(TokioIo::new) }
        });
        Ok((endpoint.connect_with_connector_lazy(connector), contact))
    }

    /// `host:port`, with brackets around an IPv6 address.
    pub(super) fn authority(&self) -> String {
        let Inner { host, port, .. } = &*self.inner;
        if host.contains(':') && !host.starts_with('[') {
            format!("[{host}]:{port}")
        } else {
            format!("{host}:{port}")
        }
    }

    async fn connect(&self, tls: Arc<ClientConfig>, contact: Contact) -> Result<Connection, DialError> {
        let start = self.inner.rotation.load(Ordering::Relaxed);
        // A connection that has ended says no more to whom a failure is due.
        contact.connecting();
        let addresses = in_turn(self.resolve().await?, start, *self.lock_left());
        let mut worst: Option<UpstreamError> = None;
        for address in addresses {
            // All others have failed: no address stays the last one for good.
            self.lock_left().take_if(|left| *left == address);
            match tokio::time::timeout(ADDRESS_TIMEOUT, self.connect_to(address, &tls)).await {
                Ok(Ok(stream)) => {
                    self.inner.connections.fetch_add(1, Ordering::Relaxed);
                    contact.reached(address);
                    return Ok(Connection::new(stream, contact));
                }
                Ok(Err(cause)) => worst = Some(graver(worst, cause)),
                Err(_elapsed) => {
                    let cause =
                        UpstreamError::Unavailable(format!("connect to {address}: no answer in time"));
                    worst = Some(graver(worst, cause));
                }
            }
            self.rotate();
        }
        let none = || UpstreamError::Unavailable(format!("resolve {}: no addresses", self.authority()));
        Err(DialError {
            cause: worst.unwrap_or_else(none),
        })
    }

    async fn resolve(&self) -> Result<Vec<SocketAddr>, DialError> {
        #[cfg(test)]
        if let Some(addresses) = self.inner.resolved.get() {
            return Ok(addresses.clone());
        }
        let host = self.inner.host.trim_start_matches('[').trim_end_matches(']');
        let found = match tokio::time::timeout(RESOLVE_TIMEOUT, lookup_host((host, self.inner.port))).await {
            Ok(Ok(found)) => Ok(found.take(MAX_ADDRESSES).collect()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_elapsed) => Err("no answer in time".to_owned()),
        };
        found.map_err(|why| DialError {
            cause: UpstreamError::Unavailable(format!("resolve {}: {why}", self.authority())),
        })
    }

    async fn connect_to(
        &self,
        address: SocketAddr,
        tls: &Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, UpstreamError> {
        let failed = |error: io::Error| UpstreamError::Unavailable(format!("connect to {address}: {error}"));
        let stream = TcpStream::connect(address).await.map_err(failed)?;
        watch_liveness(&stream).map_err(failed)?;
        // The name is sent for proxies that route by it; who the server is, its SPIFFE ID tells.
        let name = ServerName::try_from(self.inner.host.clone())
            .unwrap_or_else(|_not_a_name| ServerName::IpAddress(address.ip().into()));
        TlsConnector::from(Arc::clone(tls))
            .connect(name, stream)
            .await
            .map_err(|error| match tls_error(&error) {
                Some(tls) => classify_tls(tls),
                None => failed(error),
            })
    }
}

impl Contact {
    /// Whether it is the same channel's.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The address of the last connection, unless another is being made.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.locked().address
    }

    /// Why the server ended the last connection, if it was for our certificate; told once.
    pub(super) fn take_refusal(&self) -> Option<UpstreamError> {
        self.locked().refusal.take()
    }

    fn connecting(&self) {
        self.locked().address = None;
    }

    pub(super) fn reached(&self, address: SocketAddr) {
        *self.locked() = Reached {
            address: Some(address),
            refusal: None,
        };
    }

    /// Notes an error of a connection that was made, if it says what the server has against our certificate.
    pub(super) fn note(&self, error: &io::Error) {
        if let Some(refused @ UpstreamError::SvidRefused { .. }) = tls_error(error).map(classify_tls) {
            self.locked().refusal = Some(refused);
        }
    }

    fn locked(&self) -> MutexGuard<'_, Reached> {
        // Each field is replaced whole, so a panic cannot leave one half-changed.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DialError {
    pub(super) fn to_upstream(&self) -> UpstreamError {
        self.cause.clone()
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.cause.fmt(f)
    }
}

impl std::error::Error for DialError {}

/// All addresses from the one whose turn it is, but last the one that was left.
fn in_turn(mut addresses: Vec<SocketAddr>, start: usize, left: Option<SocketAddr>) -> Vec<SocketAddr> {
    if let Some(start) = start.checked_rem(addresses.len()) {
        addresses.rotate_left(start);
    }
    addresses.sort_by_key(|address| Some(*address) == left);
    addresses
}

/// Of the failures at several addresses, one that an operator must look at wins over one that may pass.
fn graver(held: Option<UpstreamError>, new: UpstreamError) -> UpstreamError {
    match held {
        Some(held @ (UpstreamError::UnknownAuthority(_) | UpstreamError::Untrusted(_))) => held,
        _ => new,
    }
}

/// Has the kernel notice a peer that vanished. HTTP/2 pings would do as well, but servers written with
/// gRPC for Go cut off clients that ping more often than every five minutes.
fn watch_liveness(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(15))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(5))?;
    sockopt::set_tcp_keepcnt(stream, 3)?;
    sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
    Ok(())
}

/// For one address, TCP and TLS together.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(8);
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(8);
/// How long sent data may stay unacknowledged, in milliseconds.
const USER_TIMEOUT_MS: u32 = 20_000;
const MAX_ADDRESSES: usize = 64;
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_is_bracketed() {
        assert_eq!(Target::new("::1".to_owned(), 8081).authority(), "[::1]:8081");
        assert_eq!(Target::new("[::1]".to_owned(), 8081).authority(), "[::1]:8081");
        assert_eq!(
            Target::new("spire-server".to_owned(), 81).authority(),
            "spire-server:81"
        );
    }

    #[test]
    fn an_address_that_was_left_comes_last_in_whatever_order_the_name_resolves() {
        let address = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        let (one, two, three) = (address(1), address(2), address(3));
        assert_eq!(in_turn(vec![one, two, three], 4, None), [two, three, one]);
        assert_eq!(in_turn(vec![one, two, three], 1, Some(one)), [two, three, one]);
        assert_eq!(in_turn(vec![two, one, three], 1, Some(one)), [three, two, one]);
        assert_eq!(in_turn(vec![one], 7, Some(one)), [one]);
        assert_eq!(in_turn(vec![], 7, Some(one)), []);
    }

    #[test]
    fn distrust_at_one_address_is_not_hidden_by_an_outage_at_another() {
        let distrust = UpstreamError::UnknownAuthority("x".to_owned());
        let outage = UpstreamError::Unavailable("y".to_owned());
        let worst = graver(Some(graver(None, distrust)), outage);
        assert!(matches!(worst, UpstreamError::UnknownAuthority(_)));
    }
}
