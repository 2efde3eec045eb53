//! The user, container or pod that a connection or call is counted for.

use tokio::net::unix::UCred;

use crate::workload::{Pod, PodNumber, ProcFs};

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
    /// A pod: the callers on its socket, and its processes that are identified by their cgroup.
    Pod(PodNumber),
    /// A broker, by its place in the configuration.
    Broker(usize),
}

/// One of those to whose share a caller's connections and calls count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::endpoints) enum Holder {
    User(u32),
    Container(u64),
    Pod(PodNumber),
    Broker(usize),
}

impl Who {
    /// Who connected with these credentials. A pid that was given to another process meanwhile makes a count a
    /// little wrong, no more. With `tells_pods` a process of a pod is that pod, whatever its user.
    pub fn of(credentials: &UCred, procfs: &ProcFs, tells_pods: bool) -> Self {
        let pid = credentials.pid().and_then(|pid| u32::try_from(pid).ok());
        Self::of_process(credentials.uid(), pid.filter(|pid| *pid != 0), procfs, tells_pods)
    }

    fn of_process(uid: u32, pid: Option<u32>, procfs: &ProcFs, tells_pods: bool) -> Self {
        let in_cgroup = |pid: u32| PodNumber::of_process(procfs, pid);
        if let Some(pod) = pid.filter(|_| tells_pods).and_then(in_cgroup) {
            return Self::Pod(pod);
        }
        let container = pid
            .and_then(|pid| procfs.pid_namespace(pid))
            .filter(|namespace| procfs.own_pid_namespace() != Some(*namespace));
        Self::Process { uid, container }
    }

    /// Whoever calls on the socket of this pod.
    pub fn of_pod(pod: &Pod) -> Self {
        Self::Pod(PodNumber::of(pod))
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
    /// may make namespaces at will, so the user counts too. Nobody but root makes pods, and pods of several tenants
    /// have one user, so the pod alone counts.
    pub(super) fn holders(self) -> impl Iterator<Item = Holder> {
        let shares = match self {
            Self::Process { uid, container } => [
                (uid != 0).then_some(Holder::User(uid)),
                container.map(Holder::Container),
            ],
            Self::Pod(pod) => [Some(Holder::Pod(pod)), None],
            Self::Broker(place) => [Some(Holder::Broker(place)), None],
        };
        shares.into_iter().flatten()
    }

    /// On whose account it goes what becomes of the call: whoever could have made any number of the others.
    pub(super) fn accountable(self) -> Holder {
        self.holders().next().unwrap_or(self.narrowest())
    }

    /// The user whose container it is, unless that is root, whom many containers have.
    pub(super) fn user_of_container(self) -> Option<u32> {
        match self {
            Self::Process { uid, container } => container.and((uid != 0).then_some(uid)),
            Self::Pod(_) | Self::Broker(_) => None,
        }
    }

    /// Who is meant when each caller is given the same.
    pub(super) fn narrowest(self) -> Holder {
        match self {
            Self::Process { uid, container } => container.map_or(Holder::User(uid), Holder::Container),
            Self::Pod(pod) => Holder::Pod(pod),
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

#[cfg(test)]
#[allow(clippy::disallowed_methods, reason = "a /proc is laid out by hand")]
mod tests {
    use super::*;
    use crate::socket_tree::PodRecord;

    const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";
    const OTHER: &str = "00000000-25a7-4c0b-9ab1-4e2f1bd4a9b1";

    /// A process whose control group is this.
    fn process_in(group: &str, tells_pods: bool) -> Who {
        let dir = tempfile::tempdir().unwrap();
        let process = dir.path().join("42");
        std::fs::create_dir(&process).unwrap();
        std::fs::write(process.join("cgroup"), format!("0::{group}\n")).unwrap();
        Who::of_process(1000, Some(42), &ProcFs::at(dir.path()), tells_pods)
    }

    fn pod(uid: &str) -> Who {
        Who::Pod(PodNumber::parse(uid).unwrap())
    }

    #[tokio::test]
    async fn a_process_beside_the_agent_is_its_user_alone() {
        let (ours, _theirs) = tokio::net::UnixStream::pair().unwrap();
        let who = Who::of(&ours.peer_cred().unwrap(), &ProcFs::default(), false);
        assert_eq!(who, Who::from(rustix::process::geteuid().as_raw()));
    }

    #[test]
    fn a_process_of_a_pod_is_the_pod_where_pods_are_told_apart() {
        let id = "0".repeat(64);
        let of = |uid: &str| format!("/kubepods/besteffort/pod{uid}/{id}");
        assert_eq!(process_in(&of(UID), true), pod(UID));
        let systemd = format!(
            "/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{id}.scope",
            UID.replace('-', "_")
        );
        assert_eq!(process_in(&systemd, true), pod(UID));
        assert_ne!(process_in(&of(OTHER), true), pod(UID));
        assert_eq!(process_in(&of(UID), false), Who::from(1000));
    }

    #[test]
    fn who_names_a_group_after_a_pod_is_not_taken_for_it() {
        let id = "0".repeat(64);
        let forged = [
            format!("/user.slice/user-1000.slice/user@1000.service/kubepods/pod{UID}/{id}"),
            format!("/kubepods/pod{OTHER}/{id}/kubepods/pod{UID}/{id}"),
            format!("/system.slice/build.service/kubepods/pod{UID}/{id}"),
            format!("/any/pod{UID}/{id}"),
            format!("/docker/{id}"),
            "/".to_owned(),
        ];
        for group in forged {
            assert_eq!(process_in(&group, true), Who::from(1000), "{group}");
        }
    }

    #[test]
    fn a_pod_is_one_on_its_own_socket_and_on_that_of_all() {
        let of = |uid: &str, place| {
            let record = PodRecord {
                uid: uid.to_owned(),
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                service_account: "web".to_owned(),
            };
            let stop = finial_identity::process::TaskSet::new().stop_signal();
            Who::of_pod(&Pod::new(record, None, place, stop))
        };
        assert_eq!(of(UID, 1), pod(UID));
        assert_eq!(of(UID, 2), pod(UID));
        assert_ne!(of(OTHER, 1), pod(UID));
        assert_ne!(of("of no known form", 1), of("of no known form", 2));
    }
}
