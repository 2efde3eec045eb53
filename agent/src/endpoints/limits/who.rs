//! Whom connections and calls are counted for.

use tokio::net::unix::UCred;

use crate::workload::ProcFs;

/// A caller before anything is known of it but what costs next to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// A process that opened a Unix socket.
    Process {
        /// Its user.
        uid: u32,
        /// Its pid namespace, by the inode, when that is not the agent's own: the processes of one container or pod.
        container: Option<u64>,
    },
    /// A broker, by its place in the configuration.
    Broker(usize),
}

/// One of those to whose share a caller's connections and calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    User(u32),
    Container(u64),
    Broker(usize),
}

impl Who {
    /// Who connected with these credentials. A pid that was given to another process meanwhile makes a count a
    /// little wrong, no more.
    pub fn of(credentials: &UCred, procfs: &ProcFs) -> Self {
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        let container = pid
            .filter(|pid| *pid != 0)
            .and_then(|pid| pid_namespace(procfs, pid))
            .filter(|namespace| pid_namespace(procfs, std::process::id()) != Some(*namespace));
        Self::Process {
            uid: credentials.uid(),
            container,
        }
    }

    /// A user's process in a pid namespace of its own.
    #[cfg(test)]
    pub(crate) fn within(uid: u32, namespace: u64) -> Self {
        Self::Process {
            uid,
            container: Some(namespace),
        }
    }

    /// The shares that this caller uses up. Many containers have root, so only the container counts there; a user
    /// may make namespaces at will, so the user counts too.
    pub(super) fn holders(self) -> impl Iterator<Item = Holder> {
        let shares = match self {
            Self::Process { uid, container } => [
                (uid != 0).then_some(Holder::User(uid)),
                container.map(Holder::Container),
            ],
            Self::Broker(place) => [Some(Holder::Broker(place)), None],
        };
        shares.into_iter().flatten()
    }

    /// The user whose container it is, unless that is root, whom many containers have.
    pub(super) fn user_of_container(self) -> Option<u32> {
        match self {
            Self::Process { uid, container } => container.and((uid != 0).then_some(uid)),
            Self::Broker(_) => None,
        }
    }

    /// Who is meant when each caller is given the same.
    pub(super) fn narrowest(self) -> Holder {
        match self {
            Self::Process { uid, container } => container.map_or(Holder::User(uid), Holder::Container),
            Self::Broker(place) => Holder::Broker(place),
        }
    }
}

impl From<u32> for Who {
    /// A user's process in the agent's own pid namespace.
    fn from(uid: u32) -> Self {
        Self::Process { uid, container: None }
    }
}

/// `None` where it may not be looked at, as for an agent that is not root; then users alone are told apart.
fn pid_namespace(procfs: &ProcFs, pid: u32) -> Option<u64> {
    let told = rustix::fs::stat(procfs.folder(pid).join("ns/pid")).ok()?;
    Some(told.st_ino)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_beside_the_agent_is_its_user_alone() {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let who = Who::of(&ours.peer_cred().unwrap(), &ProcFs::default());
        assert_eq!(who, Who::from(rustix::process::geteuid().as_raw()));
    }
}
