//! Attestations of a moment ago, for other streams of the same process.
//!
//! What is new for a process is new for all its streams: an Envoy has one for each secret. Each of them has the
//! process attested again before it tells anything. An attestation that was begun for one of them when the news was
//! there is as good for the others, which wait for it: what they tell, the process was entitled to at that moment.
//!
//! Nobody goes back in time: a stream takes up nothing that was begun before what it knows already. The first attestation
//! of each stream is its own and is not kept here, and a pod on its own socket is always attested for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::view::Selectors;
use crate::workload::{ConnectedAs, FileId, Process};

/// How long ago an attestation may have ended. All streams of a process get the same news within this time, unless
/// there are thousands; then it is attested some times. After a change of the attestors' settings, what the former
/// ones said may be told for as long.
const GOOD_FOR: Duration = Duration::from_millis(100);
/// How many processes have theirs kept. With more of them at once some are attested more often.
const MOST: usize = 1024;

/// The last attestation of each process that had one a moment ago, and those that are under way.
#[derive(Debug, Default)]
pub(super) struct RecentAttestations {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    succeeded: HashMap<u32, Succeeded>,
    under_way: HashMap<u32, UnderWay>,
}

#[derive(Debug)]
struct Succeeded {
    begun: Begun,
    ended: Instant,
    /// Nothing is kept about a process whose streams have all ended.
    selectors: Weak<Selectors>,
}

#[derive(Debug)]
struct UnderWay {
    begun: Begun,
    /// Closed when it has ended, however that was.
    end: watch::Receiver<()>,
}

/// How an attestation was begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Begun {
    subject: Subject,
    at: Instant,
    /// A snapshot that was there by then.
    version: u64,
}

/// What a stream is about to tell.
#[derive(Clone, Copy, Debug)]
pub(super) struct News {
    /// An attestation that was begun before proves nothing. The stream has held its process since then, or longer.
    pub(super) since: Instant,
    /// The snapshot that the news is from.
    pub(super) version: u64,
}

/// What must be the same of two connections of one process for the same to hold for both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Subject {
    connected_as: Option<ConnectedAs>,
    program: Option<FileId>,
}

/// What holds for a process.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) selectors: Arc<Selectors>,
    /// When it was begun to be found out.
    pub(super) begun: Instant,
}

/// An attestation that others may wait for, until this is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a> {
    recent: &'a RecentAttestations,
    pid: u32,
    begun: Begun,
    _end: watch::Sender<()>,
}

impl RecentAttestations {
    /// What holds for the process by an attestation that succeeded for another stream.
    pub(super) fn find(&self, process: &Process, news: News) -> Option<Found> {
        let found = {
            let state = self.lock();
            let last = state.succeeded.get(&process.pid())?;
            let is_good = last.begun.is_good_for(process, news) && last.ended.elapsed() < GOOD_FOR;
            Found {
                selectors: last.selectors.upgrade().filter(|_| is_good)?,
                begun: last.begun.at,
            }
        };
        // A process that was held before the attestation and is alive after it is the one that had the pid meanwhile.
        process.is_alive().then_some(found)
    }

    /// Closed when an attestation has ended that is under way for another stream and would do for this one.
    pub(super) fn under_way(&self, process: &Process, news: News) -> Option<watch::Receiver<()>> {
        let state = self.lock();
        let other = state.under_way.get(&process.pid())?;
        let is_good = other.begun.is_good_for(process, news);
        is_good.then(|| other.end.clone())
    }

    /// To be called before the process is attested.
    pub(super) fn begin(&self, process: &Process, news: News) -> Turn<'_> {
        let begun = Begun {
            subject: Subject::of(process),
            at: Instant::now(),
            version: news.version,
        };
        let (sender, end) = watch::channel(());
        self.lock()
            .under_way
            .insert(process.pid(), UnderWay { begun, end });
        Turn {
            recent: self,
            pid: process.pid(),
            begun,
            _end: sender,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each entry is right on its own, so a panic leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Turn<'_> {
    /// Keeps what was found out about a process that has lived through it, unless something later is known.
    pub(super) fn succeeded(self, selectors: Arc<Selectors>) -> Found {
        let begun = self.begun;
        let last = Succeeded {
            begun,
            ended: Instant::now(),
            selectors: Arc::downgrade(&selectors),
        };
        let mut state = self.recent.lock();
        if state.succeeded.len() >= MOST {
            state
                .succeeded
                .retain(|_pid, last| last.ended.elapsed() < GOOD_FOR);
        }
        if state.succeeded.len() >= MOST {
            state.succeeded.clear();
        }
        let known = state.succeeded.get(&self.pid);
        if known.is_none_or(|known| known.begun.at <= begun.at) {
            state.succeeded.insert(self.pid, last);
        }
        drop(state);
        Found {
            selectors,
            begun: begun.at,
        }
    }

    /// What was found out before may no longer hold.
    pub(super) fn failed(self) {
        self.recent.lock().succeeded.remove(&self.pid);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut state = self.recent.lock();
        let is_this = |other: &UnderWay| other.begun == self.begun;
        if state.under_way.get(&self.pid).is_some_and(is_this) {
            state.under_way.remove(&self.pid);
        }
    }
}

impl Begun {
    fn is_good_for(&self, process: &Process, news: News) -> bool {
        self.at >= news.since && self.version >= news.version && self.subject == Subject::of(process)
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
    use futures_util::future::join_all;
    use tonic::{Code, Request};

    use super::*;
    use crate::endpoints::limits::Admission;
    use crate::endpoints::listener::Caller;
    use crate::endpoints::peer::Peer;
    use crate::endpoints::session::{Access, Session, Sessions};
    use crate::endpoints::testing::{Workload, World, selectors};
    use crate::workload::{AttestorError, ProcFs, WorkloadAttestation, WorkloadAttestor};

    const NEWS: u64 = 7;
    const SLOW: Duration = Duration::from_millis(250);

    /// Knows the user of everybody after a while, and how often it was asked.
    #[derive(Debug, Default)]
    struct Counting {
        asked: AtomicUsize,
        takes: Duration,
        /// From this question on it fails.
        fails_from: Option<usize>,
    }

    #[async_trait]
    impl WorkloadAttestor for Counting {
        fn name(&self) -> &'static str {
            "counting"
        }

        async fn attest(&self, _process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
            let before = self.asked.fetch_add(1, Ordering::Relaxed);
            if !self.takes.is_zero() {
                tokio::time::sleep(self.takes).await;
            }
            match self.fails_from {
                Some(first) if before >= first => Err(AttestorError::CutOff),
                _ => Ok(vec![Selector::parse("unix:uid:1000").unwrap()]),
            }
        }
    }

    /// Streams of these processes, which have had their first answer.
    async fn streams(world: &World, counting: &Arc<Counting>, workloads: &[&Workload]) -> Vec<Session> {
        world.publish_entries(vec![world.entry("a")]);
        let mut parts = world.parts();
        parts.attestation = WorkloadAttestation::new(vec![counting.clone()], Duration::from_secs(1));
        let sessions = Sessions::new(parts);
        let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
        let mut streams = Vec::new();
        for workload in workloads {
            let mut request = Request::new(());
            let (peer, admitted) = (Peer::of_process(open(workload)), Arc::clone(&admitted));
            request.extensions_mut().insert(Caller { peer, admitted });
            let mut session = Session::open(&sessions, &request, Access::X509Svids)
                .await
                .unwrap();
            session.view().await.unwrap();
            streams.push(session);
        }
        let asked = counting.asked.swap(0, Ordering::Relaxed);
        assert_eq!(asked, workloads.len(), "a new stream is always attested");
        streams
    }

    /// What each stream finds when there is something new for all of them.
    async fn tell(world: &World, streams: &mut [Session]) -> Vec<Result<bool, Code>> {
        world.publish_entries(vec![world.entry("a")]);
        let told = streams.iter_mut().map(|session| async {
            session.changed().await.unwrap();
            session.view().await.unwrap();
            session.attest_again().await.map_err(|status| status.code())
        });
        join_all(told).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_is_attested_once_for_news_to_all_its_streams() {
        for takes in [Duration::ZERO, SLOW] {
            let (one, other) = (Workload::start(), Workload::start());
            let counting = Arc::new(Counting {
                takes,
                ..Counting::default()
            });
            let world = World::new();
            let mut streams = streams(&world, &counting, &[&one, &one, &other, &one]).await;
            for round in 1..3 {
                assert_eq!(tell(&world, &mut streams).await, [Ok(true); 4]);
                let asked = counting.asked.load(Ordering::Relaxed);
                assert_eq!(asked, 2 * round, "once for each process");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_that_of_each_stream_and_they_do_not_queue_for_it() {
        let workload = Workload::start();
        let counting = Arc::new(Counting {
            takes: SLOW,
            fails_from: Some(4),
            ..Counting::default()
        });
        let world = World::new();
        let mut streams = streams(&world, &counting, &[&workload; 4]).await;
        counting.asked.store(4, Ordering::Relaxed);
        let begun = Instant::now();
        assert_eq!(tell(&world, &mut streams).await, [Err(Code::Unavailable); 4]);
        assert_eq!(counting.asked.load(Ordering::Relaxed), 4 + 4);
        assert_eq!(
            begun.elapsed(),
            2 * SLOW,
            "the first alone, then the others together"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_client_asks_for_anew_is_not_answered_by_an_earlier_attestation() {
        let workload = Workload::start();
        let (counting, world) = (Arc::new(Counting::default()), World::new());
        let mut streams = streams(&world, &counting, &[&workload; 2]).await;
        tell(&world, &mut streams).await;
        assert_eq!(counting.asked.load(Ordering::Relaxed), 1);
        tokio::time::advance(GOOD_FOR / 2).await;
        streams[1].mark_new();
        assert!(streams[1].attest_again().await.unwrap());
        assert_eq!(counting.asked.load(Ordering::Relaxed), 2);
    }

    fn open(workload: &Workload) -> Process {
        Process::open(workload.pid().into(), &ProcFs::default()).unwrap()
    }

    fn news(version: u64) -> News {
        News {
            since: Instant::now(),
            version,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestation_is_good_for_other_streams_of_the_process_for_a_moment() {
        let (mut workload, another) = (Workload::start(), Workload::start());
        let (one, other, stranger) = (open(&workload), open(&workload), open(&another));
        let recent = RecentAttestations::default();
        let facts = Arc::new(selectors(&["unix:uid:1"]));
        let asks = news(NEWS);
        assert!(recent.find(&one, asks).is_none());
        recent.begin(&one, asks).succeeded(Arc::clone(&facts));
        let found = recent.find(&other, asks).unwrap();
        assert!(Arc::ptr_eq(&found.selectors, &facts));
        assert!(recent.find(&stranger, asks).is_none());

        tokio::time::advance(GOOD_FOR).await;
        assert!(recent.find(&other, asks).is_none(), "too old");
        recent.begin(&other, asks).succeeded(Arc::clone(&facts));
        assert!(recent.find(&one, asks).is_some());
        drop(recent.begin(&other, asks));
        assert!(recent.find(&one, asks).is_some());
        recent.begin(&other, asks).failed();
        assert!(recent.find(&one, asks).is_none(), "it may no longer hold");
        recent.begin(&other, asks).succeeded(Arc::clone(&facts));
        workload.end();
        assert!(recent.find(&one, asks).is_none(), "the process has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attestation_before_the_news_or_before_the_stream_proves_nothing() {
        let (workload, facts) = (Workload::start(), Arc::default());
        let (recent, process) = (RecentAttestations::default(), open(&workload));
        let asks = news(NEWS);
        for (version, is_good) in [(NEWS - 1, false), (NEWS, true), (NEWS + 1, true)] {
            let turn = recent.begin(&process, news(version));
            assert_eq!(recent.under_way(&process, asks).is_some(), is_good, "{version}");
            turn.succeeded(Arc::clone(&facts));
            assert_eq!(recent.find(&process, asks).is_some(), is_good, "{version}");
            assert!(recent.under_way(&process, asks).is_none());
        }
        let turn = recent.begin(&process, asks);
        tokio::time::advance(GOOD_FOR / 2).await;
        let later = news(NEWS);
        assert!(recent.under_way(&process, later).is_none());
        turn.succeeded(facts);
        assert!(
            recent.find(&process, later).is_none(),
            "the pid may have been another process's"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_begun_earlier_does_not_replace_what_was_begun_later() {
        let (workload, recent) = (Workload::start(), RecentAttestations::default());
        let (process, asks) = (open(&workload), news(NEWS));
        let (before, after) = (Arc::default(), Arc::new(selectors(&["unix:uid:1"])));
        let slow = recent.begin(&process, asks);
        tokio::time::advance(Duration::from_millis(1)).await;
        recent.begin(&process, asks).succeeded(Arc::clone(&after));
        slow.succeeded(before);
        let found = recent.find(&process, asks).unwrap();
        assert!(Arc::ptr_eq(&found.selectors, &after));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_other_users_or_programs_do_not_share() {
        let (workload, facts) = (Workload::start(), Arc::default());
        let recent = RecentAttestations::default();
        let as_user = |uid| open(&workload).connected_as(ConnectedAs { uid, gid: 1 });
        let asks = news(NEWS);
        recent.begin(&as_user(1), asks).succeeded(Arc::clone(&facts));
        for other in [as_user(0), open(&workload), as_user(1).that_executes(None)] {
            assert!(recent.find(&other, asks).is_none(), "{other:?}");
        }
        assert!(recent.find(&as_user(1), asks).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn processes_that_come_and_go_do_not_fill_the_memory() {
        let (workload, facts) = (Workload::start(), Arc::default());
        let (recent, process) = (RecentAttestations::default(), open(&workload));
        let begun = recent.begin(&process, news(NEWS)).begun;
        let many = |first: u32, count| {
            let one = |pid| {
                let (ended, selectors) = (Instant::now(), Arc::downgrade(&facts));
                (
                    pid,
                    Succeeded {
                        begun,
                        ended,
                        selectors,
                    },
                )
            };
            recent.lock().succeeded.extend((first..).take(count).map(one));
        };
        many(1_000_000, MOST - 1);
        tokio::time::advance(GOOD_FOR).await;
        many(2_000_000, 1);
        recent.begin(&process, news(NEWS)).succeeded(Arc::clone(&facts));
        assert_eq!(recent.lock().succeeded.len(), 2, "the old ones go first");
        many(1_000_000, MOST);
        recent.begin(&process, news(NEWS)).succeeded(Arc::clone(&facts));
        assert_eq!(recent.lock().succeeded.len(), 1);

        drop(facts);
        assert!(
            recent.find(&process, news(NEWS)).is_none(),
            "nobody holds the facts any more"
        );
    }
}
