//! One process, held by a pidfd so that its pid cannot be taken for another process.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use time::OffsetDateTime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::procfs::{FileId, ProcFs};

/// A process that runs, or has ended. As long as this value exists the kernel reports by its descriptor whether the
/// process still runs; whatever is read from `/proc` and followed by [`Process::is_alive`] is about this process.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    started_at: OnceLock<OffsetDateTime>,
    pidfd: AsyncFd<OwnedFd>,
    procfs: ProcFs,
    connected_as: Option<ConnectedAs>,
    program: Option<FileId>,
}

/// The effective ids that a process had when it connected, as the kernel froze them in its socket. They cannot
/// be changed by a program that the process executes later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectedAs {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Why a process could not be taken hold of.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The process is in a pid namespace that cannot be seen from here, or there is none.
    #[error("pid is not visible to the agent: {0}")]
    NotVisible(i64),
    /// It ended, or its pid belongs to another process by now.
    #[error("process is gone: pid {0}")]
    Gone(u32),
    /// The operating system refused.
    #[error("{action}: pid {pid}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The process.
        pid: u32,
        /// What the system said.
        source: io::Error,
    },
}

impl Process {
    /// Takes hold of a process by its pid. The start time is compared before and after, so only a pid that was
    /// given to another process before this call is mistaken for it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn open(pid: i64, procfs: &ProcFs) -> Result<Self, ProcessError> {
        let (number, handle) = visible(pid)?;
        let before = start_ticks(number, procfs)?;
        let pidfd = pidfd_open(handle, PidfdFlags::empty()).map_err(|error| match error {
            rustix::io::Errno::SRCH => ProcessError::Gone(number),
            // Kernels say either about the id of a thread that is not the first of its process.
            rustix::io::Errno::INVAL | rustix::io::Errno::NOENT => ProcessError::NotVisible(pid),
            error => failed("open pidfd", number, error.into()),
        })?;
        let process = Self::of_pidfd(pid, pidfd, procfs)?;
        if start_ticks(number, procfs)? == before && process.is_alive() {
            Ok(process)
        } else {
            Err(ProcessError::Gone(number))
        }
    }

    /// Takes hold of the process that `pidfd` is a descriptor of and that has this `pid`. Must be called within
    /// a tokio runtime.
    ///
    /// # Errors
    /// [`ProcessError`].
    pub fn of_pidfd(pid: i64, pidfd: OwnedFd, procfs: &ProcFs) -> Result<Self, ProcessError> {
        let (number, _handle) = visible(pid)?;
        #[allow(
            deprecated,
            reason = "its successor is unsafe; an OwnedFd stays open as long as it lives"
        )]
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)
            .map_err(|error| failed("watch process", number, error))?;
        let process = Self {
            pid: number,
            started_at: OnceLock::new(),
            pidfd,
            procfs: procfs.clone(),
            connected_as: None,
            program: procfs.program(number).ok(),
        };
        // Only now is it certain that the program is this process' and no successor's.
        if process.is_alive() {
            Ok(process)
        } else {
            Err(ProcessError::Gone(number))
        }
    }

    /// The same process, with the ids that its socket says it connected with. Facts about a process that acts
    /// as somebody else by then are refused.
    #[must_use]
    pub fn connected_as(mut self, ids: ConnectedAs) -> Self {
        self.connected_as = Some(ids);
        self
    }

    /// The same process, as if it had executed another program when it was taken hold of.
    #[cfg(test)]
    pub(crate) fn that_executes(mut self, program: Option<FileId>) -> Self {
        self.program = program;
        self
    }

    /// The ids that it connected with; `None` when it was taken hold of by its pid alone.
    pub fn ids_at_connect(&self) -> Option<ConnectedAs> {
        self.connected_as
    }

    /// The program that it executed when it was taken hold of; `None` when that could not be found out.
    pub fn program_at_connect(&self) -> Option<FileId> {
        self.program
    }

    /// The pid.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// When it started, as far as the system tells; `None` when it had ended before anybody asked.
    pub fn started_at(&self) -> Option<OffsetDateTime> {
        if let Some(known) = self.started_at.get() {
            return Some(*known);
        }
        let ticks = self.procfs.start_ticks(self.pid).ok()?;
        let instant = self.procfs.instant_of(ticks)?;
        // Else they may be of the next process with this pid.
        self.is_alive().then(|| *self.started_at.get_or_init(|| instant))
    }

    /// The `/proc` that shows it.
    pub fn procfs(&self) -> &ProcFs {
        &self.procfs
    }

    /// Whether the process has not ended. A zombie has ended.
    pub fn is_alive(&self) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // A descriptor that cannot be asked proves nothing: the process counts as gone. A signal to this program is no
        // such answer: poll(2) ends early by one even when it need not wait.
        matches!(retry_on_intr(|| poll(&mut fds, Some(&now))), Ok(0))
    }

    /// Completes when the process has ended.
    pub async fn exited(&self) {
        loop {
            let ready = self.pidfd.readable().await;
            if !self.is_alive() {
                return;
            }
            match ready {
                Ok(mut guard) => guard.clear_ready(),
                // Without its runtime nothing can be watched; nothing is served either.
                Err(_shutdown) => return,
            }
        }
    }
}

fn visible(pid: i64) -> Result<(u32, Pid), ProcessError> {
    let number = u32::try_from(pid).map_err(|_| ProcessError::NotVisible(pid))?;
    let handle = i32::try_from(pid).ok().and_then(Pid::from_raw);
    handle
        .map(|handle| (number, handle))
        .ok_or(ProcessError::NotVisible(pid))
}

fn start_ticks(pid: u32, procfs: &ProcFs) -> Result<u64, ProcessError> {
    procfs.start_ticks(pid).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ProcessError::Gone(pid),
        _ => failed("read start time", pid, error),
    })
}

fn failed(action: &'static str, pid: u32, source: io::Error) -> ProcessError {
    ProcessError::Io { action, pid, source }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// A process that runs until its standard input is closed.
    fn child() -> Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn sees_its_process_end_before_it_is_reaped() {
        let mut child = child();
        let process = Process::open(i64::from(child.id()), &ProcFs::default()).unwrap();
        assert!(process.is_alive());
        assert_eq!(process.pid(), child.id());
        drop(child.stdin.take());
        process.exited().await;
        assert!(!process.is_alive(), "a zombie counts as dead");
        child.wait().unwrap();
        assert!(!process.is_alive());
        process.exited().await;
    }

    #[tokio::test]
    async fn a_dead_pid_is_refused() {
        let mut child = child();
        child.kill().unwrap();
        child.wait().unwrap();
        let error = Process::open(i64::from(child.id()), &ProcFs::default()).unwrap_err();
        assert!(
            matches!(error, ProcessError::Gone(pid) if pid == child.id()),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_reused_pid_is_refused() {
        // The descriptor is of one process, /proc shows another under its pid: a descriptor of a dead process
        // with a live pid is what reuse looks like.
        let mut old = child();
        let handle = Pid::from_raw(i32::try_from(old.id()).unwrap()).unwrap();
        let pidfd = pidfd_open(handle, PidfdFlags::empty()).unwrap();
        old.kill().unwrap();
        old.wait().unwrap();
        let successor = i64::from(std::process::id());
        let error = Process::of_pidfd(successor, pidfd, &ProcFs::default()).unwrap_err();
        assert!(matches!(error, ProcessError::Gone(_)), "{error}");
    }

    #[tokio::test]
    async fn a_process_of_an_invisible_namespace_is_refused() {
        for pid in [0, -1, i64::MAX] {
            let error = Process::open(pid, &ProcFs::default()).unwrap_err();
            assert!(matches!(error, ProcessError::NotVisible(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn knows_when_its_process_started() {
        let process = Process::open(i64::from(std::process::id()), &ProcFs::default()).unwrap();
        let age = finial_identity::process::Clock::system().now() - process.started_at().unwrap();
        assert!(
            age > time::Duration::seconds(-5) && age < time::Duration::hours(1),
            "{age}"
        );
    }
}
