//! Workload attestation: which facts hold for the process that called.
//!
//! A fact is a selector. An attestor answers with all facts of its kind that hold, so that a fact that is not among them
//! does not hold, as for a process that is in no container; an attestor that cannot find out fails. A failure of any
//! attestor fails the attestation: with fewer facts a workload would lose identities without a visible
//! reason. (SPIRE continues without the attestor that failed.)

mod configured;
pub mod container;
pub mod docker;
pub mod k8s;
pub mod listed;
pub mod permits;
pub mod pods;
pub mod process;
pub mod procfs;
mod program_hash;
pub mod systemd;
pub mod unix;
mod user_database;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::selector::{Selector, SelectorError};
use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::Code;
use tracing::Instrument;

pub use self::configured::ConfiguredAttestors;
pub use self::container::ContainerError;
use self::container::{Cgroup, parse_cgroups};
pub use self::docker::DockerAttestor;
pub use self::k8s::K8sAttestor;
pub use self::listed::{ListedPod, PodReference};
pub use self::pods::{Pod, PodLookup, PodNumber, Workload};
pub use self::process::{ConnectedAs, Process, ProcessError};
pub use self::procfs::{FileId, ProcFs};
pub use self::systemd::SystemdAttestor;
pub use self::unix::UnixAttestor;
use crate::telemetry::{TRACE_TARGET, metrics};

/// How long each attestor may take by default.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Finds out facts of one kind about a process.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync + std::fmt::Debug {
    /// The name in the configuration, and the type of the selectors.
    fn name(&self) -> &'static str;

    /// All facts of this kind that hold for the process; none when it is known that none holds. Whether it lived
    /// through the call is checked by the caller, afterwards. May be dropped at any time.
    ///
    /// # Errors
    /// When any of them cannot be found out.
    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError>;
}

/// The attestors of this agent. Each question is put to those that there are when it is put.
#[derive(Clone, Debug)]
pub struct WorkloadAttestation {
    set: watch::Receiver<Arc<AttestorSet>>,
    deadline: Duration,
}

/// Attestors that are asked together.
#[derive(Clone, Debug, Default)]
struct AttestorSet {
    attestors: Vec<Arc<dyn WorkloadAttestor>>,
    pod_lookup: Option<Arc<dyn PodLookup>>,
}

/// What one attestor said about a process, for those who want to know why an identity is or is not given.
///
/// Facts may be secret: `docker:env:…` has whatever a container was given. `Debug` shows how many there are.
pub struct AttestorReport {
    /// The attestor's name.
    pub name: &'static str,
    /// How long it took.
    pub took: Duration,
    /// The facts, none if it is known that none holds; or why they are not known.
    pub outcome: Result<Vec<Selector>, AttestorError>,
}

/// Why it is not known who called.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process ended meanwhile, so what was read may be about another.
    #[error("process ended during attestation: pid {0}")]
    Gone(u32),
    /// The pod lost its socket, or ended, meanwhile.
    #[error("pod is gone: {0}")]
    PodGone(String),
    /// An attestor failed.
    #[error("workload attestor {attestor}: {source}")]
    Attestor {
        /// Its name.
        attestor: &'static str,
        /// What happened.
        source: AttestorError,
    },
}

/// Why it is not known which pod is meant.
#[derive(Debug, thiserror::Error)]
pub enum FindPodError {
    /// No attestor of this agent knows pods.
    #[error("no workload attestor knows pods")]
    NoAttestor,
    /// It failed.
    #[error("{0}")]
    Attestor(#[from] AttestorError),
}

/// Why an attestor fails.
#[derive(Debug, thiserror::Error)]
pub enum AttestorError {
    /// Something could not be read.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the system said.
        source: io::Error,
    },
    /// The program is larger than `workload_size_limit`.
    #[error("program has {size} bytes, more than the limit of {limit}")]
    ProgramTooLarge {
        /// Its size.
        size: u64,
        /// The configured limit.
        limit: u64,
    },
    /// The process now runs as another user than when it connected, as after executing a setuid program.
    #[error(
        "process changed its ids since it connected: uid {} to {uid}, gid {} to {gid}",
        connected_as.uid, connected_as.gid
    )]
    IdsChanged {
        /// The ids that the socket reports.
        connected_as: ConnectedAs,
        /// The effective user id now.
        uid: u32,
        /// The effective group id now.
        gid: u32,
    },
    /// The process executes another program than when it connected, or which one that was is not known.
    #[error("process executes another program than when it connected: pid {0}")]
    ProgramChanged(u32),
    /// The program was written to, or its file was changed otherwise, while it was hashed.
    #[error("program changed while it was hashed: pid {0}")]
    ProgramRewritten(u32),
    /// It cannot be found out which container the process is in.
    #[error("{0}")]
    Container(#[from] ContainerError),
    /// The control group has the name of a container's and is not that container's.
    #[error("process is in a cgroup named after a container that it is not in: {0}")]
    ForeignCgroup(String),
    /// Somebody else knows another pod by the UID of the one whose socket it is.
    #[error("folder of the pod's socket tells another pod than is known by its uid: {0}")]
    OtherPod(Selector),
    /// A program that knows more about the process did not say it.
    #[error("{action}: {source}")]
    Service {
        /// What was tried.
        action: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There was no answer in time.
    #[error("no answer within {} s", .0.as_secs_f32())]
    TimedOut(Duration),
    /// A fact cannot be written as a selector.
    #[error("fact is no selector: {0}")]
    Selector(#[from] SelectorError),
    /// The work was cut off, as when the agent stops.
    #[error("attestation was cut off")]
    CutOff,
}

impl WorkloadAttestation {
    /// Asks these attestors, all at once, each for at most `deadline`.
    pub fn new(attestors: Vec<Arc<dyn WorkloadAttestor>>, deadline: Duration) -> Self {
        Self::of(AttestorSet {
            attestors,
            pod_lookup: None,
        })
        .0
        .within(deadline)
    }

    /// Knows more about pods that call on sockets of their own than the sockets report.
    #[must_use]
    pub fn with_pod_lookup(self, pod_lookup: Arc<dyn PodLookup>) -> Self {
        let set = AttestorSet {
            attestors: self.set().attestors.clone(),
            pod_lookup: Some(pod_lookup),
        };
        Self::of(set).0.within(self.deadline)
    }

    /// Asks a set, and what takes its place.
    fn of(set: AttestorSet) -> (Self, watch::Sender<Arc<AttestorSet>>) {
        let (sender, receiver) = watch::channel(Arc::new(set));
        let attestation = Self {
            set: receiver,
            deadline: DEFAULT_DEADLINE,
        };
        (attestation, sender)
    }

    fn within(self, deadline: Duration) -> Self {
        Self { deadline, ..self }
    }

    fn set(&self) -> Arc<AttestorSet> {
        Arc::clone(&self.set.borrow())
    }

    /// All facts about the caller.
    ///
    /// # Errors
    /// [`AttestError`].
    pub async fn attest_workload(&self, workload: &Workload) -> Result<HashSet<Selector>, AttestError> {
        match workload {
            Workload::Process(process) => self.attest(process).await,
            Workload::Pod(pod) => self.attest_pod(pod).await,
        }
    }

    /// The pod of this node that a broker names. `None` when the kubelet lists no such pod, or it has
    /// ended.
    ///
    /// # Errors
    /// [`FindPodError`].
    pub async fn find_pod(&self, meant: &PodReference) -> Result<Option<Arc<Pod>>, FindPodError> {
        let set = self.set();
        let kubelet = set.pod_lookup.as_ref().ok_or(FindPodError::NoAttestor)?;
        let asked = tokio::time::timeout(self.deadline, kubelet.listed(meant, Duration::ZERO));
        let found = asked
            .await
            .unwrap_or(Err(AttestorError::TimedOut(self.deadline)))?;
        let later = || Arc::new(CurrentLookup(self.set.clone()));
        Ok(found.map(|found| Arc::new(Pod::listed(found, later()))))
    }

    /// What is known about a pod by its socket, and by its UID. No attestor of processes is asked: which of the pod's
    /// containers calls is not known.
    async fn attest_pod(&self, pod: &Pod) -> Result<HashSet<Selector>, AttestError> {
        let timer = metrics().start("workload_api_workload_attestation");
        let set = self.set();
        let asked = async {
            let asked = tokio::time::timeout(self.deadline, pod.facts(set.pod_lookup.as_ref()));
            asked.await.unwrap_or(Err(AttestorError::TimedOut(self.deadline)))
        };
        let found = timer
            .around(
                async {
                    asked.await.map_err(|source| AttestError::Attestor {
                        attestor: "k8s",
                        source,
                    })
                },
                AttestError::code,
            )
            .await?;
        let found = found.ok_or_else(|| AttestError::PodGone(pod.record().uid.clone()))?;
        metrics().sample("workload_api_discovered_selectors", &[], found.len() as f64);
        Ok(found.into_iter().collect())
    }

    /// All facts about a process that runs before and after.
    ///
    /// # Errors
    /// [`AttestError`]; the failure of one attestor is the failure of all.
    pub async fn attest(&self, process: &Arc<Process>) -> Result<HashSet<Selector>, AttestError> {
        let span = tracing::info_span!(target: TRACE_TARGET, "attest_workload");
        let timer = metrics().start("workload_api_workload_attestation");
        let found = timer
            .around(self.ask(process).instrument(span), AttestError::code)
            .await?;
        metrics().sample("workload_api_discovered_selectors", &[], found.len() as f64);
        Ok(found)
    }

    async fn ask(&self, process: &Arc<Process>) -> Result<HashSet<Selector>, AttestError> {
        let reports = self.examine(process).await;
        // A process that ended explains every other failure.
        if !process.is_alive() {
            return Err(AttestError::Gone(process.pid()));
        }
        let mut facts = HashSet::new();
        for AttestorReport { name, outcome, .. } in reports {
            facts.extend(outcome.map_err(|source| AttestError::Attestor {
                attestor: name,
                source,
            })?);
        }
        Ok(facts)
    }

    /// What each attestor says, in the order of the configuration. Only of a process that is alive afterwards is
    /// it true ([`Process::is_alive`]).
    pub async fn examine(&self, process: &Arc<Process>) -> Vec<AttestorReport> {
        let set = self.set();
        let asked = set.attestors.iter().map(|attestor| async {
            let (begun, name) = (Instant::now(), attestor.name());
            let span = tracing::info_span!(target: TRACE_TARGET, "workload_attestor", attestor = name);
            let timer = metrics()
                .start("workload_api_workload_attestor")
                .labelled("attestor", name);
            let asked = tokio::time::timeout(self.deadline, attestor.attest(process));
            let outcome = asked
                .instrument(span)
                .await
                .unwrap_or(Err(AttestorError::TimedOut(self.deadline)));
            timer.end_with(&outcome, AttestorError::code);
            AttestorReport {
                name,
                took: begun.elapsed(),
                outcome,
            }
        });
        join_all(asked).await
    }
}

/// Knows pods as the attestor does that is configured when it is asked: a pod that a broker named may outlive the
/// settings that it was found with.
#[derive(Debug)]
struct CurrentLookup(watch::Receiver<Arc<AttestorSet>>);

impl CurrentLookup {
    fn get(&self) -> Result<Arc<dyn PodLookup>, AttestorError> {
        let current = self.0.borrow().pod_lookup.clone();
        current.ok_or_else(|| AttestorError::service("ask about a pod")(FindPodError::NoAttestor))
    }
}

#[async_trait]
impl PodLookup for CurrentLookup {
    async fn by_uid(&self, uid: &str) -> Result<Vec<Selector>, AttestorError> {
        self.get()?.by_uid(uid).await
    }

    async fn listed(
        &self,
        meant: &PodReference,
        max_age: Duration,
    ) -> Result<Option<ListedPod>, AttestorError> {
        self.get()?.listed(meant, max_age).await
    }
}

impl AttestError {
    fn code(&self) -> Code {
        match self {
            Self::Gone(_) | Self::PodGone(_) => Code::NotFound,
            Self::Attestor { source, .. } => source.code(),
        }
    }
}

impl AttestorError {
    fn code(&self) -> Code {
        match self {
            Self::TimedOut(_) => Code::DeadlineExceeded,
            _ => Code::Internal,
        }
    }

    /// An error of the operating system, with what was tried.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// An error of another program, with what was tried.
    pub fn service<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
        action: impl Into<String>,
    ) -> impl FnOnce(E) -> Self {
        let action = action.into();
        move |source| Self::Service {
            action,
            source: source.into(),
        }
    }
}

impl std::fmt::Debug for AttestorReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let outcome = self.outcome.as_ref().map(Vec::len);
        f.debug_struct("AttestorReport")
            .field("name", &self.name)
            .field("took", &self.took)
            .field("outcome", &outcome)
            .finish()
    }
}

/// Files of `/proc` can make a reader wait, and hashing takes long: neither belongs on the thread that serves.
async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, AttestorError> + Send + 'static,
) -> Result<T, AttestorError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(answer) => answer,
        Err(_cut_off) => Err(AttestorError::CutOff),
    }
}

/// The control groups of a process; a process that has ended is in none.
fn cgroups(process: &Process, pid: u32) -> Result<Vec<Cgroup>, AttestorError> {
    let text = match process.procfs().cgroup(pid) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && pid != process.pid() => {
            return Ok(Vec::new());
        }
        text => text.map_err(AttestorError::io(format!("read cgroups of process {pid}")))?,
    };
    Ok(parse_cgroups(&text)?)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[derive(Debug)]
    enum Fake {
        Knows(&'static str),
        Fails,
        Hangs,
    }

    #[async_trait]
    impl WorkloadAttestor for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }

        async fn attest(&self, _process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
            match self {
                Self::Knows(value) => Ok(vec![Selector::new("fake", value)?]),
                Self::Fails => Err(AttestorError::CutOff),
                Self::Hangs => std::future::pending().await,
            }
        }
    }

    fn attestation(fakes: Vec<Fake>) -> WorkloadAttestation {
        let attestors = fakes
            .into_iter()
            .map(|fake| Arc::new(fake) as Arc<dyn WorkloadAttestor>)
            .collect();
        WorkloadAttestation::new(attestors, Duration::from_secs(3))
    }

    fn ourselves() -> Arc<Process> {
        Arc::new(Process::open(i64::from(std::process::id()), &ProcFs::default()).unwrap())
    }

    #[tokio::test]
    async fn facts_of_all_attestors_are_put_together() {
        let attestation = attestation(vec![Fake::Knows("a"), Fake::Knows("b"), Fake::Knows("a")]);
        let facts = attestation.attest(&ourselves()).await.unwrap();
        let expected = ["fake:a", "fake:b"].map(|text| Selector::parse(text).unwrap());
        assert_eq!(facts, HashSet::from(expected));
    }

    #[tokio::test]
    async fn one_failing_attestor_gives_no_facts_at_all() {
        let attestation = attestation(vec![Fake::Knows("a"), Fake::Fails]);
        let error = attestation.attest(&ourselves()).await.unwrap_err();
        assert!(
            matches!(error, AttestError::Attestor { attestor: "fake", .. }),
            "{error}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestor_that_hangs_is_given_up_at_the_deadline() {
        let attestation = attestation(vec![Fake::Knows("a"), Fake::Hangs]);
        let error = attestation.attest(&ourselves()).await.unwrap_err();
        assert_eq!(error.to_string(), "workload attestor fake: no answer within 3 s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_tells_of_each_attestor_what_it_said_and_how_long_it_took() {
        let attestation = attestation(vec![Fake::Knows("a"), Fake::Fails, Fake::Hangs]);
        let reports = attestation.examine(&ourselves()).await;
        let [knows, fails, hangs] = reports.as_slice() else {
            panic!("{reports:?}");
        };
        assert_eq!(knows.name, "fake");
        assert_eq!(knows.outcome.as_ref().unwrap()[0].as_str(), "fake:a");
        assert!(matches!(fails.outcome, Err(AttestorError::CutOff)), "{fails:?}");
        let limit = Duration::from_secs(3);
        assert!(matches!(hangs.outcome, Err(AttestorError::TimedOut(deadline)) if deadline == limit));
        assert!(hangs.took >= limit && knows.took < limit, "{reports:?}");
        assert!(!format!("{knows:?}").contains("fake:a"), "facts may be secret");
    }

    #[tokio::test]
    async fn a_pod_that_has_lost_its_socket_has_no_facts() {
        let mut tasks = finial_identity::process::TaskSet::new();
        let gone = tasks.stop_signal();
        let socket = gone.clone().stopped_owned();
        tasks.spawn("socket", async {
            socket.await;
            Ok::<(), std::convert::Infallible>(())
        });
        tasks.run_until_first_exit(async {}).await.unwrap();
        let record = pods::tests::pod("0a1b").record().clone();
        let workload = Workload::Pod(Arc::new(Pod::new(record, None, 1, gone)));
        let error = attestation(Vec::new())
            .attest_workload(&workload)
            .await
            .unwrap_err();
        assert!(
            matches!(error, AttestError::PodGone(ref uid) if uid == "0a1b"),
            "{error}"
        );
    }

    #[derive(Debug)]
    struct FakeFacts(Fake);

    #[async_trait]
    impl PodLookup for FakeFacts {
        async fn listed(
            &self,
            meant: &PodReference,
            _max_age: Duration,
        ) -> Result<Option<ListedPod>, AttestorError> {
            let uid = meant.uid.as_deref().unwrap_or_default();
            Ok(Some(ListedPod {
                record: pods::tests::pod(uid).record().clone(),
                started_at: None,
                facts: self.by_uid(uid).await?,
            }))
        }

        async fn by_uid(&self, uid: &str) -> Result<Vec<Selector>, AttestorError> {
            match &self.0 {
                Fake::Knows(value) => Ok(vec![
                    Selector::new("k8s", &format!("pod-label:app:{uid}"))?,
                    Selector::new("k8s", value)?,
                ]),
                Fake::Fails => Err(AttestorError::CutOff),
                Fake::Hangs => std::future::pending().await,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pod_is_known_by_its_socket_and_what_is_known_by_uid_and_no_attestor_of_processes_is_asked() {
        let workload = Workload::Pod(Arc::new(pods::tests::pod("0a1b")));
        let attestation = attestation(vec![Fake::Knows("a"), Fake::Fails]);
        let facts = attestation.attest_workload(&workload).await.unwrap();
        assert_eq!(facts.len(), 4);
        assert!(facts.contains(&Selector::parse("k8s:ns:shop").unwrap()));
        let with = |fake| attestation.clone().with_pod_lookup(Arc::new(FakeFacts(fake)));
        let more = with(Fake::Knows("ns:shop"))
            .attest_workload(&workload)
            .await
            .unwrap();
        assert!(more.contains(&Selector::parse("k8s:pod-label:app:0a1b").unwrap()));
        assert_eq!(more.len(), 5);
        for fake in [Fake::Fails, Fake::Hangs] {
            let error = with(fake).attest_workload(&workload).await.unwrap_err();
            assert!(
                matches!(error, AttestError::Attestor { attestor: "k8s", .. }),
                "{error}"
            );
        }
    }

    #[tokio::test]
    async fn a_pod_that_a_broker_named_is_known_by_the_settings_of_now_and_not_by_those_it_was_found_with() {
        let set = |fake| AttestorSet {
            pod_lookup: Some(Arc::new(FakeFacts(fake))),
            ..AttestorSet::default()
        };
        let (attestation, settings) = WorkloadAttestation::of(set(Fake::Knows("node-name:before")));
        let meant = PodReference {
            uid: Some("0a1b".to_owned()),
            ..PodReference::default()
        };
        let pod = attestation.find_pod(&meant).await.unwrap().unwrap();
        let workload = Workload::Pod(Arc::clone(&pod));
        for known in ["node-name:before", "node-name:after"] {
            settings.send_replace(Arc::new(set(Fake::Knows(known))));
            let facts = attestation.attest_workload(&workload).await.unwrap();
            assert!(facts.contains(&Selector::new("k8s", known).unwrap()), "{facts:?}");
        }
        assert!(pod.is_there().await.unwrap());
        settings.send_replace(Arc::new(set(Fake::Fails)));
        assert!(pod.is_there().await.is_err());
    }

    #[tokio::test]
    async fn a_folder_that_tells_another_pod_than_its_uid_is_refused() {
        let workload = Workload::Pod(Arc::new(pods::tests::pod("0a1b")));
        for contradicting in ["ns:other", "sa:other", "pod-name:other", "pod-uid:other"] {
            let attestation =
                attestation(Vec::new()).with_pod_lookup(Arc::new(FakeFacts(Fake::Knows(contradicting))));
            let error = attestation.attest_workload(&workload).await.unwrap_err();
            let AttestError::Attestor { source, .. } = &error else {
                panic!("{error}");
            };
            assert!(matches!(source, AttestorError::OtherPod(_)), "{error}");
        }
    }

    #[tokio::test]
    async fn a_process_that_ended_meanwhile_is_refused() {
        let mut child = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let process = Arc::new(Process::open(i64::from(child.id()), &ProcFs::default()).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        let error = attestation(vec![Fake::Knows("a")])
            .attest(&process)
            .await
            .unwrap_err();
        assert!(
            matches!(error, AttestError::Gone(pid) if pid == child.id()),
            "{error}"
        );
    }
}
