//! Pods that are identified by the socket they call on, and their facts.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::process::Stop;
use finial_identity::selector::Selector;
use time::OffsetDateTime;

use super::container::{self, ContainerError};
use super::k8s::pod_uid;
use super::listed::{ListedPod, Listing, PodReference};
use super::{AttestorError, ProcFs, Process};
use crate::socket_tree::PodRecord;

/// Type of the selectors, which SPIRE's workload attestor `k8s` has.
const KIND: &str = "k8s";

/// A pod that has its own socket, or that a broker named and the kubelet of this node lists.
#[derive(Debug)]
pub struct Pod {
    record: PodRecord,
    since: Option<OffsetDateTime>,
    place: u64,
    presence: Presence,
}

/// How it is known whether a pod still exists.
#[derive(Debug)]
enum Presence {
    /// It has its socket until then.
    Socket(Stop),
    /// The kubelet lists it.
    Listed(Listing),
}

/// Tells pods apart where it is counted what each of them takes: the digits of a pod's UID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PodNumber(u128);

/// Who asks.
#[derive(Clone, Debug)]
pub enum Workload {
    /// A process that connected, or that a delegate or broker asks for.
    Process(Arc<Process>),
    /// Some process of a pod.
    Pod(Arc<Pod>),
}

/// What more is known about pods than their sockets report.
#[async_trait]
pub trait PodLookup: Send + Sync + std::fmt::Debug {
    /// All facts about the pod with this UID that hold for each of its containers alike; none of a single container.
    /// May be dropped at any time.
    ///
    /// # Errors
    /// When any of them cannot be found out.
    async fn by_uid(&self, uid: &str) -> Result<Vec<Selector>, AttestorError>;

    /// The pod of this node that is meant, with the same facts; none when there is no such pod, or it has ended. The answer
    /// is from a list of the kubelet's that is no older than `max_age`. May be dropped at any time.
    ///
    /// # Errors
    /// When it cannot be found out.
    async fn listed(
        &self,
        meant: &PodReference,
        max_age: Duration,
    ) -> Result<Option<ListedPod>, AttestorError>;
}

/// The caller's process belongs elsewhere than its socket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// Its control groups name another pod.
    #[error("process is of another pod than its socket: socket of {socket}, cgroup of {cgroup}")]
    OtherPod {
        /// The UID of the socket's pod.
        socket: String,
        /// What its groups say.
        cgroup: String,
    },
    /// Its control groups name several, or cannot be understood.
    #[error("it cannot be told which pod the process is of: {0}")]
    Unclear(#[from] ContainerError),
}

impl Pod {
    /// A pod whose socket is open until `gone`. `since` is when it got it; `place` tells it from the others for limits.
    pub fn new(record: PodRecord, since: Option<OffsetDateTime>, place: u64, gone: Stop) -> Self {
        Self {
            record,
            since,
            place,
            presence: Presence::Socket(gone),
        }
    }

    /// A pod that `kubelet` lists. Nothing is known of a process of it, and nobody calls on a socket of it.
    pub fn listed(found: ListedPod, kubelet: Arc<dyn PodLookup>) -> Self {
        Self {
            presence: Presence::Listed(Listing::new(kubelet, &found.record.uid)),
            record: found.record,
            since: found.started_at,
            place: 0,
        }
    }

    /// Whose socket it is.
    pub fn record(&self) -> &PodRecord {
        &self.record
    }

    /// When the pod got its socket, or was taken on by the kubelet, as far as is known.
    pub fn since(&self) -> Option<OffsetDateTime> {
        self.since
    }

    /// Tells it from all other pods with a socket since the agent was started.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// Completes when the pod has lost its socket, or is listed no more, with what to say.
    pub async fn gone(&self) -> &'static str {
        match &self.presence {
            Presence::Socket(gone) => {
                gone.stopped().await;
                "the pod has lost its volume"
            }
            Presence::Listed(listing) => {
                listing.gone().await;
                "the pod has ended"
            }
        }
    }

    /// Whether the pod is known to be gone.
    pub fn is_gone(&self) -> bool {
        match &self.presence {
            Presence::Socket(gone) => gone.is_stopped(),
            Presence::Listed(listing) => listing.is_gone(),
        }
    }

    /// Asks whether the pod is there now.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub async fn is_there(&self) -> Result<bool, AttestorError> {
        match &self.presence {
            Presence::Socket(gone) => Ok(!gone.is_stopped()),
            Presence::Listed(listing) => Ok(listing.facts().await?.is_some()),
        }
    }

    /// What holds for the pod; none when it is gone. `more` knows more than a socket reports.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub(super) async fn facts(
        &self,
        more: Option<&Arc<dyn PodLookup>>,
    ) -> Result<Option<Vec<Selector>>, AttestorError> {
        match &self.presence {
            Presence::Socket(gone) => {
                let mut facts = self.selectors()?;
                if let Some(source) = more {
                    let more = source.by_uid(&self.record.uid).await?;
                    // Who can write to the folders on the node could else add another pod's facts to its own.
                    if let Some(other) = more.iter().find(|fact| self.contradicts(fact)) {
                        return Err(AttestorError::OtherPod(other.clone()));
                    }
                    facts.extend(more);
                }
                Ok((!gone.is_stopped()).then_some(facts))
            }
            Presence::Listed(listing) => listing.facts().await,
        }
    }

    /// Whether a process with these control groups (`/proc/<pid>/cgroup`) may be of this pod. Groups that name no pod
    /// say nothing.
    ///
    /// # Errors
    /// [`Mismatch`].
    pub fn admits(&self, cgroups: &str) -> Result<(), Mismatch> {
        let groups = container::parse_cgroups(cgroups)?;
        let named = container::in_cgroups(&groups)?.and_then(|container| container.pod_uid);
        match named {
            Some(cgroup) if !is_same_uid(&cgroup, &self.record.uid) => Err(Mismatch::OtherPod {
                socket: self.record.uid.clone(),
                cgroup,
            }),
            _ => Ok(()),
        }
    }

    /// What the socket reports, as SPIRE writes it.
    ///
    /// # Errors
    /// None that a checked record could cause.
    fn selectors(&self) -> Result<Vec<Selector>, AttestorError> {
        self.recorded()
            .into_iter()
            .map(|(name, value)| Ok(Selector::new(KIND, &format!("{name}:{value}"))?))
            .collect()
    }

    /// Whether a fact says otherwise than the socket.
    fn contradicts(&self, fact: &Selector) -> bool {
        let said = fact.value().split_once(':').filter(|_| fact.kind() == KIND);
        said.is_some_and(|(name, value)| {
            self.recorded()
                .into_iter()
                .any(|(own, recorded)| own == name && recorded != value)
        })
    }

    /// Facts of which a pod has one each.
    fn recorded(&self) -> [(&'static str, &str); 4] {
        let record = &self.record;
        [
            ("ns", &record.namespace),
            ("sa", &record.service_account),
            ("pod-name", &record.name),
            ("pod-uid", &record.uid),
        ]
    }
}

impl PodNumber {
    /// Of a UID, or of the hash that a static pod has for one, however its parts are joined.
    pub fn parse(uid: &str) -> Option<Self> {
        let digits: String = uid.chars().filter(|c| !matches!(c, '-' | '_')).collect();
        let is_number = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_number.then(|| u128::from_str_radix(&digits, 16).ok().map(Self))?
    }

    /// Of a pod; where its UID is none of a known form, by the socket that it has.
    pub fn of(pod: &Pod) -> Self {
        Self::parse(&pod.record().uid).unwrap_or(Self(pod.place().into()))
    }

    /// Of the pod that a process is of, by its control groups, if a kubelet made them.
    pub fn of_process(procfs: &ProcFs, pid: u32) -> Option<Self> {
        Self::parse(&pod_uid(procfs, pid)?)
    }
}

impl Workload {
    /// The process, if it is known.
    pub fn process(&self) -> Option<&Arc<Process>> {
        match self {
            Self::Process(process) => Some(process),
            Self::Pod(_) => None,
        }
    }

    /// Its pid; 0 for a pod, whose processes need not be visible.
    pub fn pid(&self) -> u32 {
        self.process().map_or(0, |process| process.pid())
    }

    /// Since when it can have asked.
    pub fn started_at(&self) -> Option<OffsetDateTime> {
        match self {
            Self::Process(process) => process.started_at(),
            Self::Pod(pod) => pod.since(),
        }
    }

    /// Completes when it is no more, with what to say.
    pub async fn ended(&self) -> &'static str {
        match self {
            Self::Process(process) => {
                process.exited().await;
                "the process that opened the stream has ended"
            }
            Self::Pod(pod) => pod.gone().await,
        }
    }
}

/// Static pods have UIDs without dashes, which names of groups may be shown with.
pub(crate) fn is_same_uid(one: &str, other: &str) -> bool {
    let digits = |uid: &str| uid.replace(['-', '_'], "").to_ascii_lowercase();
    digits(one) == digits(other)
}

#[cfg(test)]
pub(crate) mod tests {
    use finial_identity::process::TaskSet;

    use super::*;

    const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";

    pub(crate) fn pod(uid: &str) -> Pod {
        let record = PodRecord {
            uid: uid.to_owned(),
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            service_account: "web".to_owned(),
        };
        Pod::new(record, None, 1, TaskSet::new().stop_signal())
    }

    #[test]
    fn a_socket_tells_four_facts() {
        let selectors = pod(UID).selectors().unwrap();
        let texts: Vec<&str> = selectors.iter().map(Selector::as_str).collect();
        assert_eq!(
            texts,
            [
                "k8s:ns:shop",
                "k8s:sa:web",
                "k8s:pod-name:web-0",
                &format!("k8s:pod-uid:{UID}"),
            ]
        );
    }

    #[test]
    fn a_process_of_another_pod_is_told_from_one_of_this_or_of_none() {
        let id = "c".repeat(64);
        let of = |uid: &str| format!("0::/kubepods/besteffort/pod{uid}/{id}\n");
        let pod = pod(UID);
        pod.admits(&of(UID)).unwrap();
        pod.admits(&format!(
            "0::/kubepods.slice/kubepods-pod{}.slice/cri-containerd-{id}.scope\n",
            UID.replace('-', "_")
        ))
        .unwrap();
        pod.admits("0::/user.slice\n").unwrap();
        let other = of("00000000-25a7-4c0b-9ab1-4e2f1bd4a9b1");
        assert!(matches!(pod.admits(&other), Err(Mismatch::OtherPod { .. })));
        let both = format!("1:cpu:{}2:pids:{}", &of(UID)[3..], &other[3..]);
        assert!(matches!(pod.admits(&both), Err(Mismatch::Unclear(_))));
        assert!(matches!(pod.admits("nonsense"), Err(Mismatch::Unclear(_))));
    }
}
