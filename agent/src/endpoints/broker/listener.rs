//! The listeners of the Broker Endpoint: TLS with X509-SVIDs on both sides (SPIFFE Broker Endpoint §3.1, §5).
//!
//! The agent uses its own SVID, and verifies brokers with its bundles, both as they are at the time of the
//! handshake. A connection lasts no longer than the certificate that it was opened with.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::peer::{self, BundleSource, PeerError, PeerPolicy};
use finial_identity::process::Stop;
use finial_identity::process::sources::{Begun, Source};
use finial_identity::process::unix_listener::SocketGuard;
use finial_identity::x509::{X509Error, X509Svid};
use futures_util::future::BoxFuture;
use futures_util::stream::{self, Stream};
use rustix::io::Errno;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tonic::service::Routes;
use tower::Layer as _;

use super::allowed::AllowedBrokers;
use super::caller::{BrokerCaller, Transport, Trust};
use super::gate::GateLayer;
use super::{BrokerApi, Shared};
use crate::config::{AllowedBroker, BindAddress, BrokerSettings};
use crate::endpoints::calls::CallsLayer;
use crate::endpoints::connection::Connection;
use crate::endpoints::limits::{Admission, LimitLayer, SocketShare, Who};
use crate::endpoints::listener::{LocalSocket, PrivateSocketError};
use crate::endpoints::routes::{LocalRoutes, RoutesError};
use crate::endpoints::serving;
use crate::endpoints::session::Sessions;
use crate::workload::ProcFs;

/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How many handshakes of one listener there are at a time.
const MOST_HANDSHAKES: usize = 64;
/// How long to wait after the system refused to give a connection, as when no more files may be opened.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The Unix socket.
    #[error("broker {0}")]
    Socket(#[from] PrivateSocketError),
    /// The TCP address.
    #[error("broker: listen on {host}:{port}: {source}")]
    Listen {
        /// The host; empty is every address.
        host: String,
        /// The port.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
}

/// What the endpoint stands on.
#[derive(Debug)]
pub struct BrokerParts {
    /// Who the workloads are, and what they get.
    pub sessions: Sessions,
    /// What the agent shows.
    pub svid: watch::Receiver<Option<Arc<X509Svid>>>,
    /// The bundle of the agent's trust domain; those of others come with what workloads get.
    pub own_bundle: Arc<dyn BundleSource>,
    /// Where processes are looked up by their pids.
    pub procfs: ProcFs,
    /// How much brokers may take up, all together.
    pub share: SocketShare,
    /// When streams are to end.
    pub stop: Stop,
}

/// Listeners that are open and not yet served.
#[derive(Debug)]
pub struct BrokerEndpoint {
    brokers: Vec<AllowedBroker>,
    listeners: Vec<Listener>,
}

#[derive(Debug)]
enum Listener {
    Unix(UnixListener, SocketGuard),
    Tcp(TcpListener),
}

/// A connection before its handshake.
type Socket = Either<UnixStream, TcpStream>;
/// A connection of a broker.
type Brokered = (Connection<TlsStream<Socket>>, BrokerCaller);

/// A task that serves one listener, under its name.
pub type Serving = (&'static str, BoxFuture<'static, Result<(), Infallible>>);

impl BrokerEndpoint {
    /// Opens what is configured. The Unix socket stands apart from the `public` one, which must be open; it is for the
    /// user and the group of the agent.
    ///
    /// # Errors
    /// [`BrokerError`]; then nothing is left bound.
    pub async fn bind(settings: &BrokerSettings, public: &Path) -> Result<Self, BrokerError> {
        let mut listeners = Vec::new();
        if let Some(path) = &settings.socket_path {
            let (listener, guard) = LocalSocket::private(path, public)?.into_parts();
            listeners.push(Listener::Unix(listener, guard));
        }
        if let Some(BindAddress { host, port }) = &settings.bind_address {
            let bound = match host {
                Some(host) => TcpListener::bind((host.as_str(), *port)).await,
                None => every_address(*port, async |host, port| TcpListener::bind((host, port)).await).await,
            };
            let listener = bound.map_err(|source| BrokerError::Listen {
                host: host.clone().unwrap_or_default(),
                port: *port,
                source,
            })?;
            listeners.push(Listener::Tcp(listener));
        }
        Ok(Self {
            brokers: settings.brokers.clone(),
            listeners,
        })
    }

    /// Where it listens on TCP, when it does.
    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.listeners.iter().find_map(|listener| match listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        })
    }

    /// A task for each listener.
    ///
    /// # Errors
    /// When the schema that reflection shows cannot be read, which a build would have found.
    pub fn into_tasks(self, parts: BrokerParts) -> Result<Vec<Serving>, RoutesError> {
        let BrokerParts {
            sessions,
            svid,
            own_bundle,
            procfs,
            share,
            stop,
        } = parts;
        let brokers = AllowedBrokers::new(&self.brokers, share.processes);
        let trust = Trust::new(own_bundle, sessions.svids().clone(), sessions.clock().clone());
        let policy = PeerPolicy::OneOf(brokers.ids());
        let verifier = peer::client_verifier(trust.bundles(), policy, trust.clock().clone(), true);
        let tls = peer::server_config(svid, Some(verifier), trust.clock().clone());
        let api = BrokerApi {
            shared: Arc::new(Shared {
                sessions,
                brokers,
                trust,
                procfs,
            }),
        };
        let host = Arc::new(Host {
            api: api.clone(),
            tls: Arc::new(tls),
            admission: Admission::for_brokers(share.connections, self.brokers.len()),
        });
        let routes = LocalRoutes::without_health().with(api).build()?;
        let serving = self.listeners.into_iter().map(|listener| {
            let name = listener.name();
            let served = serve(listener, Arc::clone(&host), routes.clone(), stop.clone());
            (name, Box::pin(served) as BoxFuture<'static, _>)
        });
        Ok(serving.collect())
    }
}

/// Listens on every address of both families, and of IPv4 alone where the machine has no IPv6.
async fn every_address<T>(
    port: u16,
    bind: impl AsyncFn(&'static str, u16) -> io::Result<T>,
) -> io::Result<T> {
    match bind("::", port).await {
        Err(error) if lacks_family(&error) => bind("0.0.0.0", port).await,
        bound => bound,
    }
}

/// As the kernel says it when IPv6 is switched off at boot, or its addresses are.
fn lacks_family(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    errno.is_some_and(|errno| [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].contains(&errno))
}

impl Listener {
    fn name(&self) -> &'static str {
        match self {
            Self::Unix(..) => "broker-unix",
            Self::Tcp(_) => "broker-tcp",
        }
    }

    fn transport(&self) -> Transport {
        match self {
            Self::Unix(..) => Transport::Unix,
            Self::Tcp(_) => Transport::Tcp,
        }
    }

    async fn accept(&self) -> io::Result<(Socket, Source)> {
        match self {
            Self::Unix(listener, _guard) => {
                let (stream, _address) = listener.accept().await?;
                let source = Source::User(stream.peer_cred()?.uid());
                Ok((Either::Left(stream), source))
            }
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Either::Right(stream), Source::of_address(address.ip())))
            }
        }
    }
}

/// What turns sockets into connections of brokers.
#[derive(Debug)]
struct Host {
    api: BrokerApi,
    tls: Arc<ServerConfig>,
    admission: Admission,
}

/// Why a connection never came to its first call.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("TLS handshake took longer than {} s", HANDSHAKE_WITHIN.as_secs())]
    Timeout,
    #[error("TLS handshake: {0}")]
    Tls(#[from] io::Error),
    #[error("client certificate: {0}")]
    Certificate(#[from] X509Error),
    #[error("no broker of the configuration")]
    Unlisted,
    #[error("too many connections of this broker")]
    TooMany,
}

impl Host {
    async fn handshake(&self, socket: Socket, transport: Transport) -> Option<Brokered> {
        match self.connect(socket, transport).await {
            Ok(connection) => Some(connection),
            Err(error) => {
                if error.is_of_somebody_else() {
                    tracing::warn!(%error, "a peer that is no broker is refused");
                } else {
                    tracing::debug!(%error, "connection of a broker refused");
                }
                None
            }
        }
    }

    async fn connect(&self, socket: Socket, transport: Transport) -> Result<Brokered, HandshakeError> {
        let accept = TlsAcceptor::from(Arc::clone(&self.tls)).accept(socket);
        let stream = tokio::time::timeout(HANDSHAKE_WITHIN, accept)
            .await
            .map_err(|_elapsed| HandshakeError::Timeout)??;
        let presented = peer::Peer::from_tls(stream.get_ref().1.peer_certificates())?;
        let broker = presented.ok_or(HandshakeError::Unlisted)?;
        let Shared { brokers, trust, .. } = &*self.api.shared;
        let place = brokers.place(&broker.spiffe_id).ok_or(HandshakeError::Unlisted)?;
        let life = broker.chain.first().map(|leaf| trust.remaining(leaf));
        let admitted = self
            .admission
            .admit(Who::Broker(place))
            .ok_or(HandshakeError::TooMany)?;
        let admitted = Arc::new(admitted);
        let caller = BrokerCaller {
            id: broker.spiffe_id,
            place,
            transport,
            chain: broker.chain.into(),
            admitted: Arc::clone(&admitted),
        };
        let connection = Connection::new(stream, admitted).for_at_most(life.unwrap_or_default());
        Ok((connection, caller))
    }
}

impl HandshakeError {
    /// Whether it is a known identity, and not one that may call.
    fn is_of_somebody_else(&self) -> bool {
        let Self::Tls(error) = self else {
            return matches!(self, Self::Unlisted);
        };
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        matches!(
            inner.and_then(PeerError::within),
            Some(PeerError::Unexpected { .. })
        )
    }
}

async fn serve(listener: Listener, host: Arc<Host>, routes: Routes, stop: Stop) -> Result<(), Infallible> {
    let trust = host.api.shared.trust.clone();
    let service = CallsLayer.layer(LimitLayer.layer(GateLayer { trust }.layer(routes.prepare())));
    serving::serve(connections(listener, host), service, &stop).await
}

/// The connections of a listener once their handshakes are done, without end and without errors.
fn connections(listener: Listener, host: Arc<Host>) -> impl Stream<Item = Brokered> {
    let state = Accept {
        listener,
        host,
        handshakes: Begun::new(MOST_HANDSHAKES),
        failing: false,
    };
    stream::unfold(state, |mut state| async move {
        let connection = state.next().await;
        Some((connection, state))
    })
}

struct Accept {
    listener: Listener,
    host: Arc<Host>,
    handshakes: Begun<Option<Brokered>>,
    /// The last attempt failed and was logged.
    failing: bool,
}

impl Accept {
    async fn next(&mut self) -> Brokered {
        loop {
            let accepted = tokio::select! {
                Some(done) = self.handshakes.next() => match done {
                    Some(connection) => return connection,
                    None => continue,
                },
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((socket, source)) => self.begin(socket, source),
                Err(error) => {
                    if !std::mem::replace(&mut self.failing, true) {
                        let listener = self.listener.name();
                        tracing::warn!(listener, %error, "connections cannot be accepted");
                    }
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    fn begin(&mut self, socket: Socket, source: Source) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(listener = self.listener.name(), "connections are accepted again");
        }
        let (host, transport) = (Arc::clone(&self.host), self.listener.transport());
        let handshake = async move { host.handshake(socket, transport).await };
        self.handshakes.begin(source, handshake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_address_is_of_ipv4_alone_where_there_is_no_ipv6() {
        let bind = |trouble: Errno| {
            async move |host: &'static str, port: u16| match host {
                "::" => Err(io::Error::from(trouble)),
                host => Ok((host, port)),
            }
        };
        for trouble in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL] {
            assert_eq!(every_address(7, bind(trouble)).await.unwrap(), ("0.0.0.0", 7));
        }
        let taken = every_address(7, bind(Errno::ADDRINUSE)).await.unwrap_err();
        assert_eq!(
            taken.kind(),
            io::ErrorKind::AddrInUse,
            "not a matter of the family"
        );
        let both = every_address(7, async |host, _port| Ok(host)).await.unwrap();
        assert_eq!(both, "::");
    }

    #[tokio::test]
    async fn a_missing_host_is_reached_by_ipv4() {
        let settings = BrokerSettings {
            socket_path: None,
            bind_address: Some(BindAddress { host: None, port: 0 }),
            brokers: Vec::new(),
        };
        let endpoint = BrokerEndpoint::bind(&settings, Path::new("unused"))
            .await
            .unwrap();
        let port = endpoint.tcp_addr().unwrap().port();
        TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    }
}
