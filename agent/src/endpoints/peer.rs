//! Who is at the other end of a Unix socket: the process that connected, held by a descriptor.
//!
//! The descriptor comes from the socket itself (`SO_PEERPIDFD`, Linux 6.5). On older kernels it is opened by the pid
//! that the socket reports, with the start time compared before and after; if a process ends between `connect` and that
//! moment, and its pid is given to another process, the caller is taken for the other one.

use std::io;
use std::os::fd::AsFd as _;
use std::sync::{Arc, LazyLock};

use finial_identity::process::sys;
use tokio::net::UnixStream;
use tokio::net::unix::UCred;

use crate::workload::pods::Mismatch;
use crate::workload::{ConnectedAs, Pod, ProcFs, Process, ProcessError, Workload};

/// The peer of a connection, as it was when it connected. Requests find it among their extensions.
#[derive(Clone, Debug)]
pub struct Peer {
    process: Result<Arc<Process>, Arc<ProcessError>>,
    /// The pod whose socket it is, if it is one's.
    pod: Option<Result<Arc<Pod>, Arc<StrangerError>>>,
}

/// Why nothing is said to who calls on a pod's socket.
#[derive(Debug, thiserror::Error)]
pub enum StrangerError {
    /// The process belongs elsewhere.
    #[error("{0}")]
    Mismatch(#[from] Mismatch),
    /// It cannot be found out where it belongs.
    #[error("read control groups of caller: pid {pid}: {source}")]
    Unreadable {
        /// The process.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

/// Why it is not known who calls.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UnknownCaller {
    /// The process.
    #[error("{0}")]
    Process(Arc<ProcessError>),
    /// It is not the pod's.
    #[error("{0}")]
    Stranger(Arc<StrangerError>),
}

impl Peer {
    /// Finds out who connected. A process that cannot be identified is not refused here: health checks need
    /// no caller. Must be called within a tokio runtime.
    pub fn of(stream: &UnixStream, credentials: &UCred, procfs: &ProcFs) -> Self {
        Self {
            process: identify(stream, credentials, procfs)
                .map(Arc::new)
                .map_err(Arc::new),
            pod: None,
        }
    }

    /// The same on the socket of a pod. A process that can be seen must not be another pod's.
    #[must_use]
    pub fn on_socket_of(self, pod: &Arc<Pod>) -> Self {
        let compared = match &self.process {
            // It lives where the agent does not look, as a pod's processes mostly do.
            Err(_) => Ok(()),
            Ok(process) => compare(process, pod),
        };
        Self {
            process: self.process,
            pod: Some(compared.map(|()| Arc::clone(pod)).map_err(Arc::new)),
        }
    }

    /// Who asks: the pod on its own socket, else the process.
    ///
    /// # Errors
    /// [`UnknownCaller`].
    pub fn workload(&self) -> Result<Workload, UnknownCaller> {
        match (&self.pod, &self.process) {
            (None, Ok(process)) => Ok(Workload::Process(Arc::clone(process))),
            (Some(Err(stranger)), _) => Err(UnknownCaller::Stranger(Arc::clone(stranger))),
            (Some(Ok(pod)), Ok(_)) => Ok(Workload::Pod(Arc::clone(pod))),
            (Some(Ok(pod)), Err(error)) if matches!(**error, ProcessError::NotVisible(_)) => {
                Ok(Workload::Pod(Arc::clone(pod)))
            }
            (_, Err(error)) => Err(UnknownCaller::Process(Arc::clone(error))),
        }
    }

    /// A peer that is this process.
    #[cfg(test)]
    pub(crate) fn of_process(process: Process) -> Self {
        Self {
            process: Ok(Arc::new(process)),
            pod: None,
        }
    }

    /// A peer in a pid namespace that cannot be seen.
    #[cfg(test)]
    pub(crate) fn hidden() -> Self {
        Self {
            process: Err(Arc::new(ProcessError::NotVisible(0))),
            pod: None,
        }
    }

    /// A peer that has ended.
    #[cfg(test)]
    pub(crate) fn ended() -> Self {
        Self {
            process: Err(Arc::new(ProcessError::Gone(1))),
            pod: None,
        }
    }

    /// Whether this program itself connected.
    pub fn is_own_process(&self) -> bool {
        static OWN: LazyLock<u32> = LazyLock::new(std::process::id);
        self.process.as_ref().is_ok_and(|process| process.pid() == *OWN)
    }

    /// The process that connected.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn process(&self) -> Result<&Arc<Process>, &ProcessError> {
        self.process.as_ref().map_err(Arc::as_ref)
    }
}

fn compare(process: &Process, pod: &Pod) -> Result<(), StrangerError> {
    let cgroups = process.procfs().cgroup(process.pid());
    let cgroups = cgroups.map_err(|source| StrangerError::Unreadable {
        pid: process.pid(),
        source,
    })?;
    Ok(pod.admits(&cgroups)?)
}

fn identify(stream: &UnixStream, credentials: &UCred, procfs: &ProcFs) -> Result<Process, ProcessError> {
    let failed = |action, pid: i64| {
        move |source| ProcessError::Io {
            action,
            pid: u32::try_from(pid).unwrap_or_default(),
            source,
        }
    };
    let pid = credentials
        .pid()
        .map(i64::from)
        .ok_or(ProcessError::NotVisible(0))?;
    let process = match sys::peer_pidfd(stream.as_fd()) {
        Ok(Some(pidfd)) => Process::of_pidfd(pid, pidfd, procfs)?,
        Ok(None) => Process::open(pid, procfs)?,
        Err(error) if is_gone(&error) => {
            return Err(ProcessError::Gone(u32::try_from(pid).unwrap_or_default()));
        }
        Err(error) => return Err(failed("ask socket for its peer's pidfd", pid)(error)),
    };
    Ok(process.connected_as(ConnectedAs {
        uid: credentials.uid(),
        gid: credentials.gid(),
    }))
}

/// Kernels say either when the peer was reaped.
fn is_gone(error: &std::io::Error) -> bool {
    let errno = rustix::io::Errno::from_io_error(error);
    errno.is_some_and(|errno| errno == rustix::io::Errno::SRCH || errno == rustix::io::Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn the_caller_is_the_process_that_connected() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("s")).unwrap();
        let (_client, accepted) = tokio::join!(UnixStream::connect(dir.path().join("s")), listener.accept());
        let stream = accepted.unwrap().0;
        let peer = Peer::of(&stream, &stream.peer_cred().unwrap(), &ProcFs::default());
        let process = peer.process().unwrap();
        assert_eq!(process.pid(), std::process::id());
        assert!(process.is_alive());
        let ids = process.ids_at_connect().unwrap();
        assert_eq!(ids.uid, rustix::process::geteuid().as_raw());
        assert_eq!(ids.gid, rustix::process::getegid().as_raw());
        assert!(process.program_at_connect().is_some());
    }

    #[tokio::test]
    async fn a_caller_that_ended_is_refused_although_its_connection_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        // The connecting process hands its connection to a child of its own and ends.
        let script = format!(
            "import os,socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect({:?})\n\
             if os.fork(): os._exit(0)\nsys.stdin.read()\n",
            path.display().to_string()
        );
        let Ok(mut python) = Command::new("python3")
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .spawn()
        else {
            return; // No interpreter on this machine; `workload::process` has the same rule without one.
        };
        let (stream, _address) = listener.accept().await.unwrap();
        let stdin = python.stdin.take();
        python.wait().unwrap();
        let peer = Peer::of(&stream, &stream.peer_cred().unwrap(), &ProcFs::default());
        assert!(
            matches!(peer.process(), Err(ProcessError::Gone(pid)) if *pid == python.id()),
            "{peer:?}"
        );
        drop(stdin);
    }
}
