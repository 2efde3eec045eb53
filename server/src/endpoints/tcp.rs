//! The TLS listener: agents, admins and downstream servers. A client certificate is asked for, not
//! required; one that is presented must verify.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::peer;
use finial_identity::process::Stop;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::service::Routes;

use super::connection::{self, Connection, MAX_AGE};
use super::gate::{Gate, Rules};
use super::strangers::Strangers;
use crate::api::call::Peer;

/// A bound listener, not yet served.
#[derive(Debug)]
pub struct TcpEndpoint {
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    rules: Arc<Rules>,
    routes: Routes,
}

/// Why a connection never came to its first call.
#[derive(Debug, thiserror::Error)]
enum HandshakeError {
    #[error("TLS handshake took longer than {} s", HANDSHAKE_TIMEOUT.as_secs())]
    Timeout,
    #[error("TLS handshake: {0}")]
    Tls(#[from] std::io::Error),
    #[error("client certificate: {0}")]
    Certificate(#[from] finial_identity::x509::X509Error),
}

impl TcpEndpoint {
    /// Serves these services on a listener that was bound before.
    pub fn new(listener: TcpListener, tls: Arc<ServerConfig>, rules: Arc<Rules>, routes: Routes) -> Self {
        Self {
            listener,
            tls,
            rules,
            routes,
        }
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// None: a failure of a connection ends only that connection.
    pub async fn run(self, stop: Stop) -> Result<(), Infallible> {
        let acceptor = TlsAcceptor::from(self.tls);
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let strangers = Arc::new(Strangers::default());
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.stopped() => break,
                Some(_ended) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (stream, addr) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!(limit = MAX_CONNECTIONS, %addr, "too many connections");
                continue;
            };
            let (acceptor, strangers, rules, routes, stop) = (
                acceptor.clone(),
                Arc::clone(&strangers),
                Arc::clone(&self.rules),
                self.routes.clone(),
                stop.clone(),
            );
            connections.spawn(async move {
                match handshake(&acceptor, stream, addr).await {
                    Ok((stream, peer)) => {
                        // Held until the connection ends.
                        let _counted = match strangers.admit_peer(&peer) {
                            Ok(counted) => counted,
                            Err(error) => {
                                tracing::debug!(%error, %addr, "connection refused");
                                return;
                            }
                        };
                        let connection = Connection::new(peer);
                        let gate = Gate::new(rules, Arc::clone(&connection), routes);
                        connection::serve(stream, connection, gate, Some(MAX_AGE), stop).await;
                    }
                    Err(error) => tracing::debug!(%error, %addr, "connection refused"),
                }
                drop(slot);
            });
        }
        drop(self.listener);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    addr: SocketAddr,
) -> Result<(TlsStream<TcpStream>, Peer), HandshakeError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream))
        .await
        .map_err(|_elapsed| HandshakeError::Timeout)??;
    let presented = peer::Peer::from_tls(stream.get_ref().1.peer_certificates())?;
    let (svid, intermediates) = match presented {
        None => (None, Vec::new()),
        Some(peer) => {
            let mut chain = peer.chain.into_iter();
            (chain.next().map(|leaf| (peer.spiffe_id, leaf)), chain.collect())
        }
    };
    let peer = Peer::Remote {
        addr,
        svid,
        intermediates: intermediates.into(),
    };
    Ok((stream, peer))
}

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// More connections than one server is meant for; beyond it new ones are closed at once.
const MAX_CONNECTIONS: usize = 20_000;
