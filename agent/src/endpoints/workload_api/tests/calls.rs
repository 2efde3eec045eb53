//! Calls without a socket, where the time is paused or the process behind the call is another.

use std::process::{Child, Command, Stdio};

use finial_identity::process::Clock;
use tonic::Request;

use super::*;
use crate::endpoints::limits::Admission;
use crate::endpoints::listener::Caller;
use crate::endpoints::peer::Peer;
use crate::workload::{ProcFs, Process};

fn caller(process: Process) -> Caller {
    Caller {
        peer: Peer::of_process(process),
        admitted: Arc::new(Admission::new(1).admit(0).unwrap()),
    }
}

/// A workload that lives until it is dropped.
pub(super) struct Workload(Child);

impl Workload {
    pub(super) fn start() -> Self {
        Self(
            Command::new("cat")
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .spawn()
                .unwrap(),
        )
    }

    async fn call(&self, world: &World, content: Content) -> Result<Messages, Status> {
        Messages::open(&sessions(world), &self.request(), content).await
    }

    fn request(&self) -> Request<()> {
        self.request_of(())
    }

    pub(super) fn request_of<M>(&self, message: M) -> Request<M> {
        let process = Process::open(i64::from(self.0.id()), &ProcFs::default()).unwrap();
        let mut request = Request::new(message);
        request.extensions_mut().insert(caller(process));
        request
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        let _dead = self.0.kill();
        let _reaped = self.0.wait();
    }
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.err().map_or(Code::Ok, |status| status.code())
}

#[tokio::test]
async fn a_stream_ends_when_the_process_behind_it_does() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut workload = Workload::start();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    call.next().await.unwrap();
    workload.0.kill().unwrap();
    assert_eq!(code(in_time(call.next()).await), Code::Unavailable);
}

#[tokio::test]
async fn a_process_that_ended_before_its_call_gets_nothing() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut workload = Workload::start();
    let process = Process::open(i64::from(workload.0.id()), &ProcFs::default()).unwrap();
    workload.0.kill().unwrap();
    workload.0.wait().unwrap();
    let mut request = Request::new(());
    request.extensions_mut().insert(caller(process));
    let outcome = Messages::open(&sessions(&world), &request, Content::X509Svids).await;
    assert_eq!(code(outcome), Code::Unavailable);
}

/// An agent that synced before its callers were started, and syncs every five seconds.
fn young_callers() -> World {
    let mut world = World::at(Clock::paused_at(Clock::system().now()));
    world.policy.sync_interval = Duration::from_secs(5);
    let before = world.clock.now() - time::Duration::minutes(1);
    world.publish(|snapshot| snapshot.synced_at = Some(before));
    world
}

#[tokio::test(start_paused = true)]
async fn rule_5_a_young_caller_waits_for_its_registration_to_arrive() {
    let world = young_callers();
    let workload = Workload::start();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    let answer = call.next();
    tokio::pin!(answer);
    assert!(futures_util::poll!(&mut answer).is_pending());
    world.publish_entries(vec![world.entry("a")]);
    assert!(answer.await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn rule_5_waits_one_sync_interval_and_not_longer() {
    let world = young_callers();
    let workload = Workload::start();
    let started = tokio::time::Instant::now();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    assert_eq!(code(call.next().await), Code::PermissionDenied);
    let waited = started.elapsed();
    assert!(
        waited > Duration::from_secs(4) && waited <= Duration::from_secs(6),
        "{waited:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn rule_5_waits_less_when_changes_are_pushed_or_the_caller_has_less_time() {
    let mut world = young_callers();
    let workload = Workload::start();
    let process = || Process::open(i64::from(workload.0.id()), &ProcFs::default()).unwrap();
    for (timeout, longest) in [("1S", 750), ("400m", 300), ("9H", 5000), ("x", 5000)] {
        let mut request = Request::new(());
        request.extensions_mut().insert(caller(process()));
        request
            .metadata_mut()
            .insert("grpc-timeout", timeout.parse().unwrap());
        let started = tokio::time::Instant::now();
        let mut call = Messages::open(&sessions(&world), &request, Content::X509Svids)
            .await
            .unwrap();
        assert_eq!(code(call.next().await), Code::PermissionDenied);
        let waited = started.elapsed().as_millis();
        // Paused timers fire on the next millisecond.
        assert!(
            (longest - 5..longest + 5).contains(&waited),
            "{timeout}: {waited}"
        );
        world = young_callers();
    }
    world.is_pushed = true;
    let started = tokio::time::Instant::now();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    assert_eq!(code(call.next().await), Code::PermissionDenied);
    assert!(
        started.elapsed() <= Duration::from_millis(505),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(start_paused = true)]
async fn rule_5_a_caller_older_than_the_last_sync_hears_at_once() {
    let world = young_callers();
    let workload = Workload::start();
    let after = world.clock.now() + time::Duration::minutes(1);
    world.publish(|snapshot| snapshot.synced_at = Some(after));
    let started = tokio::time::Instant::now();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    assert_eq!(code(call.next().await), Code::PermissionDenied);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn before_the_first_sync_the_answer_waits_an_interval_and_is_unavailable() {
    let world = young_callers();
    world.publish(|snapshot| snapshot.synced_at = None);
    let workload = Workload::start();
    let started = tokio::time::Instant::now();
    for access in [
        Access::X509Svids,
        Access::X509Bundles,
        Access::JwtBundles,
        Access::WitBundles,
        Access::Validation,
    ] {
        let request = workload.request();
        let mut session = Session::open(&sessions(&world), &request, access).await.unwrap();
        assert_eq!(code(session.view().await), Code::Unavailable, "{access:?}");
    }
    assert_eq!(started.elapsed().as_secs(), 25);
}

#[tokio::test(start_paused = true)]
async fn the_agent_itself_is_never_made_to_wait() {
    let mut world = young_callers();
    let workload = Workload::start();
    world.own_pid = workload.0.id();
    let started = tokio::time::Instant::now();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    assert_eq!(code(call.next().await), Code::PermissionDenied);
    world.publish(|snapshot| snapshot.synced_at = None);
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    assert_eq!(code(call.next().await), Code::Unavailable);
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_agent_itself_waits_a_second_for_what_is_signed_when_it_is_wanted() {
    let mut world = World::at(Clock::paused_at(Clock::system().now()));
    let workload = Workload::start();
    world.own_pid = workload.0.id();
    world.publish_entries(vec![world.unissued("a")]);
    let (refused, waited) = first_answer(&world, &workload).await;
    assert_eq!((code(refused), waited.as_secs()), (Code::Unavailable, 1));
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    let next = async { call.next().await };
    let signed = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        world.publish_entries(vec![world.entry("a")]);
    };
    let (answer, ()) = tokio::join!(next, signed);
    assert!(answer.is_ok());
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_never_comes_holds_the_others_back_for_a_while_only() {
    let world = World::at(Clock::paused_at(Clock::system().now()));
    world.publish_entries(vec![world.entry("a"), world.unissued("b")]);
    let workload = Workload::start();
    let (first, waited) = first_answer(&world, &workload).await;
    assert_eq!((ids(&first.unwrap()), waited.as_secs()), (vec!["a"], 10));

    world.publish_entries(vec![world.unissued("b")]);
    let (refused, waited) = first_answer(&world, &workload).await;
    assert_eq!(
        code(refused),
        Code::Unavailable,
        "not a refusal: it has an identity"
    );
    assert_eq!(waited.as_secs(), 10);
}

/// The first answer to a new stream, and how long it took.
async fn first_answer(world: &World, workload: &Workload) -> (Result<X509svidResponse, Status>, Duration) {
    let asked = tokio::time::Instant::now();
    let mut call = workload.call(world, Content::X509Svids).await.unwrap();
    let first = call.next().await;
    let first = first.map(|first| prost::Message::decode(first.message()).unwrap());
    (first, asked.elapsed())
}

#[tokio::test(start_paused = true)]
async fn what_is_cached_waits_neither_for_what_could_not_be_signed_nor_for_a_server_that_is_gone() {
    let world = World::at(Clock::paused_at(Clock::system().now()));
    let workload = Workload::start();
    let failed = CachedEntry {
        signing_failed: true,
        ..world.unissued("b")
    };
    world.publish_entries(vec![world.entry("a"), failed.clone()]);
    let (first, waited) = first_answer(&world, &workload).await;
    assert_eq!((ids(&first.unwrap()), waited), (vec!["a"], Duration::ZERO));

    world.publish_entries(vec![world.entry("a"), world.unissued("b")]);
    world.svids.note_signing_trouble(true);
    let (first, waited) = first_answer(&world, &workload).await;
    assert_eq!((ids(&first.unwrap()), waited), (vec!["a"], Duration::ZERO));
    world.svids.note_signing_trouble(false);

    // Those who wait already hear of it.
    for is_of_link in [true, false] {
        let trouble = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            if is_of_link {
                world.svids.note_signing_trouble(true);
            } else {
                world.publish_entries(vec![world.entry("a"), failed.clone()]);
            }
        };
        let ((first, waited), ()) = tokio::join!(first_answer(&world, &workload), trouble);
        assert_eq!((ids(&first.unwrap()), waited.as_millis()), (vec!["a"], 300));
        world.svids.note_signing_trouble(false);
    }
    // One who has nothing waits for the next attempt.
    world.publish_entries(vec![failed]);
    let (refused, waited) = first_answer(&world, &workload).await;
    assert_eq!((code(refused), waited.as_secs()), (Code::Unavailable, 10));
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_svids_ran_out_stays_open_for_the_next_ones() {
    let world = World::at(Clock::paused_at(Clock::system().now()));
    world.publish_entries(vec![world.entry("a")]);
    let workload = Workload::start();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    call.next().await.unwrap();
    world.publish_entries(vec![world.unissued("a")]);
    let waiting = tokio::time::timeout(Duration::from_secs(1800), call.next()).await;
    assert!(waiting.is_err(), "half an hour later it is still open");
    world.publish_entries(vec![world.entry("a")]);
    assert!(call.next().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn what_expired_while_the_machine_slept_is_not_handed_out() {
    let clock = Clock::paused_at(Clock::system().now());
    let world = World::at(clock.clone());
    world.publish_entries(vec![world.entry("a")]);
    let workload = Workload::start();
    // The cache has not noticed yet.
    clock.shift(time::Duration::hours(2));
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    let waiting = tokio::time::timeout(Duration::from_secs(60), call.next()).await;
    assert!(waiting.is_err());
    clock.shift(time::Duration::hours(-2));
    assert!(call.next().await.is_ok());
}

#[tokio::test]
async fn identities_are_served_while_a_new_sync_is_awaited() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    world.publish(|snapshot| snapshot.synced_at = None);
    let workload = Workload::start();
    let mut call = workload.call(&world, Content::X509Svids).await.unwrap();
    assert!(call.next().await.is_ok());
}
