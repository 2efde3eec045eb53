//! Workload attestation: which facts hold for the process that called.
//!
//! A fact is a selector. An attestor answers with all facts of its kind that hold, so that what is not among them
//! is known not to hold; one that cannot tell fails. A failure of any attestor fails the attestation: with fewer
//! facts a workload could only lose identities for a reason that nobody sees. (SPIRE goes on without the
//! attestor that failed.)

pub mod process;
pub mod procfs;
pub mod unix;
mod user_database;

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::selector::{Selector, SelectorError};
use futures_util::future::join_all;

pub use self::process::{ConnectedAs, Process, ProcessError};
pub use self::procfs::{FileId, ProcFs};
pub use self::unix::UnixAttestor;

/// How long attestors may take together, unless told otherwise.
pub const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Finds out facts of one kind about a process.
#[async_trait]
pub trait WorkloadAttestor: Send + Sync + std::fmt::Debug {
    /// The name in the configuration, and the type of the selectors.
    fn name(&self) -> &'static str;

    /// All facts of this kind that hold for the process. Whether it lived through the call is checked by
    /// the caller, afterwards.
    ///
    /// # Errors
    /// When any of them cannot be told.
    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError>;
}

/// The attestors of this agent.
#[derive(Clone, Debug)]
pub struct WorkloadAttestation {
    attestors: Arc<[Arc<dyn WorkloadAttestor>]>,
    deadline: Duration,
}

/// Why it is not known who called.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process ended meanwhile, so what was read may be about another.
    #[error("process ended during attestation: pid {0}")]
    Gone(u32),
    /// An attestor cannot tell.
    #[error("workload attestor {attestor}: {source}")]
    Attestor {
        /// Its name.
        attestor: &'static str,
        /// What happened.
        source: AttestorError,
    },
    /// An attestor did not answer in time.
    #[error("workload attestor {attestor}: no answer within {} s", deadline.as_secs_f32())]
    TimedOut {
        /// Its name.
        attestor: &'static str,
        /// The time it had.
        deadline: Duration,
    },
}

/// Why an attestor cannot tell.
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
    /// The process acts as somebody else than the one who connected, as after executing a setuid program.
    #[error(
        "process changed its ids since it connected: uid {} to {uid}, gid {} to {gid}",
        connected_as.uid, connected_as.gid
    )]
    IdsChanged {
        /// The ids that the socket tells.
        connected_as: ConnectedAs,
        /// The effective user id now.
        uid: u32,
        /// The effective group id now.
        gid: u32,
    },
    /// The process executes another program than when it connected, or which one that was is not known.
    #[error("process executes another program than when it connected: pid {0}")]
    ProgramChanged(u32),
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
        Self {
            attestors: attestors.into(),
            deadline,
        }
    }

    /// All facts about a process that lives before and after.
    ///
    /// # Errors
    /// [`AttestError`]; the failure of one attestor is the failure of all.
    pub async fn attest(&self, process: &Arc<Process>) -> Result<HashSet<Selector>, AttestError> {
        let answers = join_all(self.attestors.iter().map(|attestor| async {
            let name = attestor.name();
            match tokio::time::timeout(self.deadline, attestor.attest(process)).await {
                Ok(Ok(facts)) => Ok(facts),
                Ok(Err(source)) => Err(AttestError::Attestor {
                    attestor: name,
                    source,
                }),
                Err(_elapsed) => Err(AttestError::TimedOut {
                    attestor: name,
                    deadline: self.deadline,
                }),
            }
        }))
        .await;
        // A process that ended explains every other failure.
        if !process.is_alive() {
            return Err(AttestError::Gone(process.pid()));
        }
        let mut facts = HashSet::new();
        for answer in answers {
            facts.extend(answer?);
        }
        Ok(facts)
    }
}

impl AttestorError {
    /// An error of the operating system, with what was tried.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }
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
