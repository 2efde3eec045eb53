//! The private Unix socket: every process that may open it is a local caller.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::unix_listener::SocketGuard;
use finial_identity::process::{AuthorityAdapter, Stop};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tonic::service::Routes;

use super::connection::{self, Connection};
use super::gate::{Gate, Rules};
use crate::api::call::Peer;

/// A bound socket, not yet served.
#[derive(Debug)]
pub struct UdsEndpoint {
    listener: UnixListener,
    socket: SocketGuard,
    rules: Arc<Rules>,
    routes: Routes,
}

impl UdsEndpoint {
    /// Serves these services on a socket that was bound before.
    pub fn new(listener: UnixListener, socket: SocketGuard, rules: Arc<Rules>, routes: Routes) -> Self {
        Self {
            listener,
            socket,
            rules,
            routes,
        }
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        self.socket.path()
    }

    /// Serves until `stop`.
    ///
    /// # Errors
    /// None: a failure of a connection ends only that connection.
    pub async fn run(self, stop: Stop) -> Result<(), Infallible> {
        let mut connections = JoinSet::new();
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accepted = tokio::select! {
                () = stop.stopped() => break,
                Some(_ended) = connections.join_next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "failed to accept local connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
                tracing::warn!(limit = MAX_CONNECTIONS, "too many local connections");
                continue;
            };
            let connection = Connection::new(peer(&stream));
            let gate = Gate::new(
                Arc::clone(&self.rules),
                Arc::clone(&connection),
                self.routes.clone(),
            );
            let stop = stop.clone();
            connections.spawn(async move {
                connection::serve(AuthorityAdapter::new(stream), connection, gate, None, stop).await;
                drop(slot);
            });
        }
        drop(self.listener);
        drop(self.socket);
        while connections.join_next().await.is_some() {}
        Ok(())
    }
}

fn peer(stream: &UnixStream) -> Peer {
    match stream.peer_cred() {
        Ok(cred) => Peer::Local {
            uid: cred.uid(),
            gid: cred.gid(),
            pid: cred.pid(),
            path: cred
                .pid()
                .and_then(|pid| std::fs::read_link(format!("/proc/{pid}/exe")).ok()),
        },
        // The socket's permissions admitted the caller; only the audit log knows less.
        Err(error) => {
            tracing::warn!(%error, "failed to read credentials of local caller");
            Peer::Local {
                uid: u32::MAX,
                gid: u32::MAX,
                pid: None,
                path: None,
            }
        }
    }
}

const MAX_CONNECTIONS: usize = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
