//! Serves gRPC on the Unix sockets whose callers are processes: the public one, the admin one and those of pods.
//!
//! On every connection `:authority` is repaired, because else clients in Python, C++ and Java are refused; its [`Peer`]
//! is kept with it, and it counts against the limits.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::Stop;
use finial_identity::process::private_file::FileMode;
use finial_identity::process::unix_listener::{self, ListenError, SocketGuard, UnixListenerOptions};
use futures_util::stream::{self, Stream};
use rustix::io::Errno;
use tokio::net::{UnixListener, UnixStream};
use tonic::service::Routes;
use tower::Layer as _;

use super::calls::CallsLayer;
use super::connection::Connection;
use super::limits::{Admission, Admitted, LimitLayer, Who};
use super::peer::Peer;
use super::serving;
use crate::workload::{Pod, ProcFs, ProcessError};

/// How long to wait after the system refused to give a connection, as when no more files may be opened.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// A socket that is open and not yet served.
#[derive(Debug)]
pub struct LocalSocket {
    listener: UnixListener,
    guard: SocketGuard,
}

/// Why a socket that is not for workloads could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum PrivateSocketError {
    /// As the public one could not.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// Links lead it to where workloads may look.
    #[error(
        "socket must not be in the directory of the workload API's socket or below it: {} is in {}",
        path.display(), public.display()
    )]
    Beside {
        /// The directory of the socket.
        path: PathBuf,
        /// The directory of the public socket.
        public: PathBuf,
    },
    /// It cannot be found out where one of the two is.
    #[error("find out where socket is: {}: {source}", path.display())]
    Unknown {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl LocalSocket {
    /// Opens a socket for everybody on this machine: mode 0777 in a directory of mode 0755.
    ///
    /// # Errors
    /// [`ListenError`].
    pub fn public(path: &Path) -> Result<Self, ListenError> {
        Self::bind(path, FileMode::new(0o777))
    }

    /// Opens a socket for the user and the group of the agent: mode 0770 in a directory of mode 0755, as SPIRE's.
    /// Wherever links lead, it stands apart from the `public` socket, which must be open.
    ///
    /// # Errors
    /// [`PrivateSocketError`].
    pub fn private(path: &Path, public: &Path) -> Result<Self, PrivateSocketError> {
        let socket = Self::bind(path, FileMode::new(0o770))?;
        let (path, public) = (real_directory(path)?, real_directory(public)?);
        if path.starts_with(&public) {
            return Err(PrivateSocketError::Beside { path, public });
        }
        Ok(socket)
    }

    fn bind(path: &Path, socket_mode: FileMode) -> Result<Self, ListenError> {
        let options = UnixListenerOptions {
            socket_mode,
            dir_mode: FileMode::PUBLIC_DIR,
        };
        let (listener, guard) = unix_listener::bind(path, options)?;
        Ok(Self { listener, guard })
    }

    /// The open socket, and what removes it.
    pub fn into_parts(self) -> (UnixListener, SocketGuard) {
        (self.listener, self.guard)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.guard.path()
    }

    /// Serves `routes` until `stop`; then requests have a moment to end, and the socket is removed.
    ///
    /// # Errors
    /// None; a connection's trouble is not the socket's.
    pub async fn serve(
        self,
        routes: Routes,
        admission: Admission,
        procfs: ProcFs,
        stop: Stop,
    ) -> Result<(), Infallible> {
        self.serve_whom(None, routes, admission, procfs, stop).await
    }

    /// The same on the socket of a pod: every caller belongs to that pod.
    ///
    /// # Errors
    /// As [`LocalSocket::serve`].
    pub async fn serve_pod(
        self,
        pod: Arc<Pod>,
        routes: Routes,
        admission: Admission,
        procfs: ProcFs,
        stop: Stop,
    ) -> Result<(), Infallible> {
        self.serve_whom(Some(pod), routes, admission, procfs, stop).await
    }

    async fn serve_whom(
        self,
        pod: Option<Arc<Pod>>,
        routes: Routes,
        admission: Admission,
        procfs: ProcFs,
        stop: Stop,
    ) -> Result<(), Infallible> {
        let Self { listener, guard } = self;
        let shown = guard.path().display().to_string();
        let service = CallsLayer.layer(LimitLayer.layer(routes.prepare()));
        let connections = connections(listener, shown, pod, admission, procfs);
        let outcome = serving::serve(connections, service, &stop).await;
        drop(guard);
        outcome
    }
}

/// The directory of a socket, with all links followed.
fn real_directory(socket: &Path) -> Result<PathBuf, PrivateSocketError> {
    let parent = socket
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    parent
        .canonicalize()
        .map_err(|source| PrivateSocketError::Unknown {
            path: socket.to_owned(),
            source,
        })
}

/// The connections of a socket as they come, without end and without errors.
fn connections(
    listener: UnixListener,
    socket: String,
    pod: Option<Arc<Pod>>,
    admission: Admission,
    procfs: ProcFs,
) -> impl Stream<Item = (Connection<UnixStream>, Caller)> {
    let state = Accept {
        listener,
        socket,
        pod,
        admission,
        procfs,
        failing: false,
    };
    stream::unfold(state, |mut state| async move {
        let connection = state.next().await;
        Some((connection, state))
    })
}

struct Accept {
    listener: UnixListener,
    /// Its path, for the log.
    socket: String,
    /// Whose it is, if it is a pod's.
    pod: Option<Arc<Pod>>,
    admission: Admission,
    procfs: ProcFs,
    /// The last attempt failed and was logged.
    failing: bool,
}

impl Accept {
    async fn next(&mut self) -> (Connection<UnixStream>, Caller) {
        loop {
            let stream = match self.listener.accept().await {
                Ok((stream, _address)) => stream,
                Err(error) => {
                    self.report(&error.to_string());
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            };
            let Ok(credentials) = stream.peer_cred() else {
                continue; // Gone already.
            };
            let who = match &self.pod {
                Some(pod) => Who::of_pod(pod),
                None => Who::of(&credentials, &self.procfs, self.admission.tells_pods()),
            };
            let Some(admitted) = self.admission.admit(who) else {
                self.report("too many connections");
                continue; // Closed; the client tries again later.
            };
            let peer = Peer::of(&stream, &credentials, &self.procfs);
            let peer = match &self.pod {
                Some(pod) => peer.on_socket_of(pod),
                None => peer,
            };
            if let Err(error) = peer.process()
                && is_passing(error)
            {
                // It would stick to the connection. Closed; the client tries again later.
                self.report(&error.to_string());
                drop(stream);
                tokio::time::sleep(ACCEPT_RETRY).await;
                continue;
            }
            if std::mem::take(&mut self.failing) {
                tracing::info!(socket = self.socket, "connections are accepted again");
            }
            let admitted = Arc::new(admitted);
            let caller = Caller {
                peer,
                admitted: Arc::clone(&admitted),
            };
            return (Connection::new(stream, admitted), caller);
        }
    }

    fn report(&mut self, error: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(socket = self.socket, error, "connections cannot be accepted");
        }
    }
}

/// Whether the system lacked something that it may have for the next connection, as descriptors or memory.
fn is_passing(error: &ProcessError) -> bool {
    let ProcessError::Io { source, .. } = error else {
        return false;
    };
    let errno = Errno::from_io_error(source);
    errno.is_some_and(|errno| [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::AGAIN].contains(&errno))
}

/// What requests find among their extensions: whose connection it is, and its user's share.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Who connected.
    pub peer: Peer,
    /// Counts the calls of its user.
    pub admitted: Arc<Admitted>,
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn want_of_descriptors_passes_and_a_process_that_ended_does_not() {
        let failed = |errno: Errno| ProcessError::Io {
            action: "open pidfd",
            pid: 1,
            source: errno.into(),
        };
        assert!(is_passing(&failed(Errno::MFILE)) && is_passing(&failed(Errno::NFILE)));
        assert!(!is_passing(&failed(Errno::PERM)) && !is_passing(&ProcessError::Gone(1)));
    }

    #[tokio::test]
    async fn a_connection_over_the_limit_is_closed_and_the_next_is_let_in_after_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let LocalSocket { listener, guard } = LocalSocket::public(&path).unwrap();
        let mut accept = Accept {
            listener,
            socket: String::new(),
            pod: None,
            admission: Admission::new(1),
            procfs: ProcFs::default(),
            failing: false,
        };
        let _first = UnixStream::connect(&path).await.unwrap();
        let admitted = if rustix::process::geteuid().is_root() {
            Some(accept.next().await)
        } else {
            None // Half of one is none: every connection of a user is over the limit.
        };
        let mut second = UnixStream::connect(&path).await.unwrap();
        let mut nothing = [0];
        tokio::select! {
            _connection = accept.next() => panic!("let in over the limit"),
            closed = second.read(&mut nothing) => assert_eq!(closed.unwrap(), 0),
        }
        assert!(accept.failing);
        if admitted.is_some() {
            drop(admitted);
            let _third = UnixStream::connect(&path).await.unwrap();
            let (_connection, caller) = accept.next().await;
            assert_eq!(caller.peer.process().unwrap().pid(), std::process::id());
            assert!(!accept.failing);
        }
        drop(guard);
    }

    #[tokio::test]
    async fn a_private_socket_is_for_the_agents_user_and_group_and_never_beside_the_public_one() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let public = LocalSocket::public(&at("public/api.sock")).unwrap();
        let admin = LocalSocket::private(&at("private/admin.sock"), public.path()).unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(admin.path()), mode(&at("private"))),
            (0o770, 0o755),
            "as SPIRE makes them"
        );
        symlink(at("public"), at("link")).unwrap();
        for name in ["link/admin.sock", "public/admin.sock", "link/below/admin.sock"] {
            let error = LocalSocket::private(&at(name), public.path()).unwrap_err();
            assert!(matches!(error, PrivateSocketError::Beside { .. }), "{error}");
            assert!(!at(name).exists(), "a refused socket leaves nothing behind");
        }
    }
}
