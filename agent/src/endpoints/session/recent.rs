//! Attestations of a moment ago, for other streams of the same process.
//!
//! Whatever is new for a process is new for all its streams: an Envoy has one for each secret. Each of them has the
//! process attested again before it tells anything, so the answer for one that was asked after the news was there is as
//! good for the others: what they tell, the process was entitled to at that moment.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::view::Selectors;
use crate::workload::{ConnectedAs, FileId, Process};

/// How long an attestation is good for other streams. All streams of a process get the same news within this time,
/// unless there are thousands; then it is attested some times.
const GOOD_FOR: Duration = Duration::from_millis(100);
/// How many processes have theirs kept. With more of them at once some are attested more often.
const MOST: usize = 1024;

/// The last attestation of each process that had one a moment ago.
#[derive(Debug, Default)]
pub(super) struct RecentAttestations {
    by_pid: Mutex<HashMap<u32, Recent>>,
}

#[derive(Debug)]
struct Recent {
    subject: Subject,
    asked: Asked,
    selectors: Arc<Selectors>,
}

/// When an attestation was begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    at: Instant,
    /// The snapshot that was there at that time, or a later one.
    version: u64,
}

/// A stream that has something to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stream {
    /// Since when it has held the process.
    pub(super) since: Instant,
    /// The snapshot that it tells of.
    pub(super) version: u64,
}

/// What must be the same of two connections of one process for the same to hold for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subject {
    connected_as: Option<ConnectedAs>,
    program: Option<FileId>,
}

impl Asked {
    /// Now, with this snapshot.
    pub(super) fn now(version: u64) -> Self {
        Self {
            at: Instant::now(),
            version,
        }
    }
}

impl RecentAttestations {
    /// Keeps what was found out about a process that has lived through it.
    pub(super) fn keep(&self, process: &Process, asked: Asked, selectors: &Arc<Selectors>) {
        let mut by_pid = self.lock();
        if by_pid.len() >= MOST && !by_pid.contains_key(&process.pid()) {
            by_pid.clear();
        }
        by_pid.insert(
            process.pid(),
            Recent {
                subject: Subject::of(process),
                asked,
                selectors: Arc::clone(selectors),
            },
        );
    }

    /// What holds for the process by an attestation for another stream, which was begun when there was
    /// already what this one tells.
    pub(super) fn find(&self, process: &Process, stream: Stream) -> Option<Arc<Selectors>> {
        let by_pid = self.lock();
        let recent = by_pid.get(&process.pid())?;
        let is_recent = recent.asked.at.elapsed() < GOOD_FOR && recent.asked.version >= stream.version;
        // A process that was held before the attestation and is alive after it is the one that had the pid meanwhile.
        let is_same = recent.asked.at >= stream.since && recent.subject == Subject::of(process);
        (is_recent && is_same && process.is_alive()).then(|| Arc::clone(&recent.selectors))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Recent>> {
        // Each entry is right on its own, so a panic leaves nothing half-done.
        self.by_pid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subject {
    fn of(process: &Process) -> Self {
        Self {
            connected_as: process.ids_at_connect(),
            program: process.program_at_connect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use finial_identity::selector::Selector;
    use tonic::Request;

    use super::*;
    use crate::endpoints::limits::Admission;
    use crate::endpoints::listener::Caller;
    use crate::endpoints::peer::Peer;
    use crate::endpoints::session::{Access, Session, Sessions};
    use crate::endpoints::testing::{Workload, World, selectors};
    use crate::workload::{AttestorError, ProcFs, WorkloadAttestation, WorkloadAttestor};

    /// Knows the user of everybody, and how often it was asked.
    #[derive(Debug, Default)]
    struct Counting(AtomicUsize);

    #[async_trait]
    impl WorkloadAttestor for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        async fn attest(&self, _process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Ok(vec![Selector::parse("unix:uid:1000").unwrap()])
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_attested_once_for_news_to_all_its_streams() {
        let (one, other) = (Workload::start(), Workload::start());
        let (world, counting) = (World::new(), Arc::new(Counting::default()));
        world.publish_entries(vec![world.entry("a")]);
        let mut parts = world.parts();
        parts.attestation = WorkloadAttestation::new(vec![counting.clone()], Duration::from_secs(1));
        let (sessions, asked) = (Sessions::new(parts), || counting.0.load(Ordering::Relaxed));
        let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
        let mut streams = Vec::new();
        for workload in [&one, &one, &one, &other] {
            let mut request = Request::new(());
            let (peer, admitted) = (Peer::of_process(open(workload)), Arc::clone(&admitted));
            request.extensions_mut().insert(Caller { peer, admitted });
            let mut session = Session::open(&sessions, &request, Access::X509Svids)
                .await
                .unwrap();
            session.view().await.unwrap();
            streams.push(session);
        }
        assert_eq!(asked(), 4, "a new stream is always attested");
        for round in 1..3 {
            world.publish_entries(vec![world.entry("a")]);
            for session in &mut streams {
                session.changed().await.unwrap();
                session.view().await.unwrap();
                assert!(session.attest_again().await.unwrap());
            }
            assert_eq!(asked(), 4 + 2 * round, "once for each process");
        }
    }

    const NEWS: u64 = 7;

    fn open(workload: &Workload) -> Process {
        Process::open(workload.pid().into(), &ProcFs::default()).unwrap()
    }

    fn telling(version: u64) -> Stream {
        Stream {
            since: Instant::now(),
            version,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestation_is_good_for_other_streams_of_the_process_for_a_moment() {
        let (mut workload, another) = (Workload::start(), Workload::start());
        let (one, other, stranger) = (open(&workload), open(&workload), open(&another));
        let (recent, facts) = (
            RecentAttestations::default(),
            Arc::new(selectors(&["unix:uid:1"])),
        );
        let stream = telling(NEWS);
        assert!(recent.find(&one, stream).is_none());
        recent.keep(&one, Asked::now(NEWS), &facts);
        assert!(Arc::ptr_eq(&recent.find(&other, stream).unwrap(), &facts));
        assert!(recent.find(&stranger, stream).is_none());

        tokio::time::advance(GOOD_FOR).await;
        assert!(recent.find(&other, stream).is_none(), "too old");
        recent.keep(&other, Asked::now(NEWS), &facts);
        assert!(recent.find(&one, stream).is_some());
        workload.end();
        assert!(recent.find(&one, stream).is_none(), "the process has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestation_before_the_news_or_before_the_stream_proves_nothing() {
        let workload = Workload::start();
        let (recent, process) = (RecentAttestations::default(), open(&workload));
        let stream = telling(NEWS);
        for (asked, stream, is_good) in [
            (Asked::now(NEWS - 1), stream, false),
            (Asked::now(NEWS), stream, true),
            (Asked::now(NEWS + 1), stream, true),
        ] {
            recent.keep(&process, asked, &Arc::default());
            assert_eq!(recent.find(&process, stream).is_some(), is_good, "{asked:?}");
        }
        tokio::time::advance(GOOD_FOR / 2).await;
        let later = telling(NEWS);
        assert!(
            recent.find(&process, later).is_none(),
            "the pid may have been another process's"
        );
    }

    #[tokio::test]
    async fn connections_of_other_users_or_programs_do_not_share() {
        let workload = Workload::start();
        let recent = RecentAttestations::default();
        let as_user = |uid| open(&workload).connected_as(ConnectedAs { uid, gid: 1 });
        let stream = telling(NEWS);
        recent.keep(&as_user(1), Asked::now(NEWS), &Arc::default());
        assert!(recent.find(&as_user(1), stream).is_some());
        for other in [as_user(0), open(&workload), as_user(1).that_executes(None)] {
            assert!(recent.find(&other, stream).is_none(), "{other:?}");
        }
    }

    #[tokio::test]
    async fn processes_that_come_and_go_do_not_fill_the_memory() {
        let workload = Workload::start();
        let (recent, process) = (RecentAttestations::default(), open(&workload));
        recent.keep(&process, Asked::now(NEWS), &Arc::default());
        let one = recent.lock().remove(&process.pid()).unwrap();
        let another = |pid| {
            let selectors = Arc::clone(&one.selectors);
            (pid, Recent { selectors, ..one })
        };
        recent.lock().extend((1_000_000..).take(MOST).map(another));
        recent.keep(&process, Asked::now(NEWS), &Arc::default());
        assert_eq!(recent.lock().len(), 1);
    }
}
