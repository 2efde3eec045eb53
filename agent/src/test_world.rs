//! Days of an agent within a short test: a machine, a server on another one, and a clock for each.
#![allow(
    clippy::disallowed_methods,
    reason = "tests own their tasks and measure their own patience"
)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use finial_identity::process::Clock;
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::node::{NodeAttestor, NodeSettings};
use crate::test_agent::{self, TestAgent};
use crate::test_server::TestServer;

/// Must be made on a runtime whose time is paused. Timers move when the test says so and not otherwise, while sockets
/// and the server are real.
#[derive(Debug)]
pub(crate) struct World {
    /// The agent's clock.
    pub(crate) clock: Clock,
    server_clock: Clock,
    pub(crate) server: TestServer,
    pub(crate) dir: TempDir,
    /// As long as this lives, a blocking task runs, and tokio does not move its paused time by itself.
    _hold: std::sync::mpsc::Sender<()>,
}

impl World {
    pub(crate) fn new() -> Self {
        let (hold, released) = std::sync::mpsc::channel();
        tokio::task::spawn_blocking(move || released.recv().is_err());
        let server_clock = Clock::offset(time::Duration::ZERO);
        Self {
            clock: Clock::offset(time::Duration::ZERO),
            server: TestServer::start_at(server_clock.clone()),
            server_clock,
            dir: tempfile::tempdir().unwrap(),
            _hold: hold,
        }
    }

    pub(crate) fn settings(&self) -> NodeSettings {
        test_agent::settings(&self.server, self.dir.path())
    }

    pub(crate) fn start(&self, attestor: impl NodeAttestor + 'static) -> TestAgent {
        self.start_as(self.settings(), attestor)
    }

    pub(crate) fn start_as(
        &self,
        settings: NodeSettings,
        attestor: impl NodeAttestor + 'static,
    ) -> TestAgent {
        TestAgent::start_as(settings, Some(Arc::new(attestor)), self.clock.clone())
    }

    /// Waits for what sockets and disks bring. No time passes.
    pub(crate) async fn until(&self, what: &str, agent: &TestAgent, mut holds: impl FnMut() -> bool) {
        let started = Instant::now();
        while !holds() {
            let state = agent.node.state().borrow().to_string();
            assert!(
                started.elapsed() < PATIENCE,
                "gave up waiting for {what}: {state}; calls: {:?}",
                self.server.calls("")
            );
            tokio::task::yield_now().await;
            std::thread::sleep(Duration::from_micros(20));
        }
    }

    /// Time passes everywhere, at most `step` at once.
    pub(crate) async fn pass(&self, time: Duration, step: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(step);
            self.sleep(step);
            tokio::time::advance(step).await;
            self.settle().await;
            left -= step;
        }
    }

    /// Lets time pass, second by second, until something holds: for no more than `limit`, unless so little real time
    /// has passed that disks and threads may just be slow.
    pub(crate) async fn pass_until(
        &self,
        what: &str,
        agent: &TestAgent,
        limit: Duration,
        mut holds: impl FnMut() -> bool,
    ) {
        let second = Duration::from_secs(1);
        let mut passed = Duration::ZERO;
        let started = Instant::now();
        self.settle().await;
        while !holds() {
            let state = agent.node.state().borrow().to_string();
            let is_slow = started.elapsed() < PATIENCE / 3;
            assert!(passed < limit || is_slow, "no {what} after {passed:?}: {state}");
            self.pass(second, second).await;
            passed += second;
        }
    }

    /// Lets time pass for an agent whose stream is alive, until something holds.
    pub(crate) async fn pass_in_touch(&self, limit: Duration, holds: impl Fn() -> bool) {
        let (beat, step) = (Duration::from_secs(20), Duration::from_secs(5));
        let mut passed = Duration::ZERO;
        while passed < limit && !holds() {
            let digest = self.server.state().digest();
            self.server.heartbeat(digest);
            self.pass(beat, step).await;
            passed += beat;
        }
    }

    /// The machine is suspended: clocks continue, timers do not.
    pub(crate) fn sleep(&self, time: Duration) {
        let time = time::Duration::try_from(time).unwrap();
        assert!(self.clock.shift(time) && self.server_clock.shift(time));
    }

    /// Lets what is under way come to an end: agent and server have taken turns for a while, and nothing new came.
    async fn settle(&self) {
        let mut calls = self.server.calls("").len();
        let mut turns = 0;
        while turns < TURNS {
            let mut answer = self.server.take_turn();
            // A machine that is busy with other things may not have begun what went to the disk.
            let disk = tokio::task::spawn_blocking(|| ());
            let started = Instant::now();
            let mut looks = 0;
            while looks < LOOKS
                || started.elapsed() < TURN
                || !disk.is_finished()
                || !answer.as_mut().is_none_or(is_there)
            {
                tokio::task::yield_now().await;
                // Others need the processor for what is waited for.
                std::thread::sleep(Duration::from_micros(20));
                looks += 1;
            }
            let now = self.server.calls("").len();
            turns = if now == calls { turns + 1 } else { 0 };
            calls = now;
        }
    }
}

fn is_there(answer: &mut oneshot::Receiver<()>) -> bool {
    !matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
}

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// A handshake and a call take five or so.
const TURNS: u32 = 10;
/// At least so many looks at what is ready, each of which polls the sockets.
const LOOKS: u32 = 8;
/// At least so long, for disks.
const TURN: Duration = Duration::from_millis(1);
