//! Server, agent and workload while the clock of all jumps by two days, as that of a machine that was suspended does.
//!
//! Server and agent run in this process, whose clock is the test's; the workload and the operator are programs.
#![allow(
    clippy::disallowed_methods,
    clippy::panic,
    clippy::unwrap_used,
    reason = "server and agent run beside the test that watches them, and a failure ends it"
)]

use std::path::PathBuf;
use std::time::Duration;

use finial_agent::node::NodeState;
use finial_identity::process::log::LogSettings;
use finial_identity::process::{Clock, TaskError};
use finial_identity::x509::Certificate;
use finial_tests::{
    AgentPod, Entry, MountedBundle, Program, Stack, StackOptions, finial, wait_for, wait_until,
};
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const TWO_DAYS: time::Duration = time::Duration::days(2);
/// For everything to be in order again.
const LIMIT: Duration = Duration::from_secs(60);
const AUDIENCE: &str = "two-days";

/// A server and an agent on one clock.
struct Machine {
    clock: Clock,
    stack: Stack,
    state: watch::Receiver<NodeState>,
    stop: CancellationToken,
    server: JoinHandle<Result<(), TaskError>>,
    agent: JoinHandle<Result<(), TaskError>>,
    _mounted: Option<MountedBundle>,
}

/// A workload with an open stream, and what it had before the machine slept.
struct Workload {
    program: Program,
    svid: Certificate,
    token: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_that_slept_past_every_certificate_serves_again_by_itself() {
    let pod = AgentPod::start();
    let options = pod.options(StackOptions {
        agent: "rebootstrap_mode = \"auto\" rebootstrap_delay = \"2s\"".to_owned(),
        ..StackOptions::default()
    });
    let machine = Machine::start(options, Some(&pod)).await;
    let workload = machine.workload("/before");
    let (agent, authority) = (machine.stack.agent_id(), machine.stack.authority_id("active"));

    machine.sleep_and_recover(&workload);
    let next = machine.stack.authority_id("active");
    assert_ne!(next, authority, "the former authority has expired");
    assert_eq!(machine.stack.agent_id(), agent);
    machine.assert_serves(&workload);
    machine.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_whose_authority_outlived_the_sleep_serves_again_as_the_same_agent() {
    let options = StackOptions {
        ca_ttl: "720h".to_owned(),
        server: "agent_ttl = \"200h\"".to_owned(),
        ..StackOptions::default()
    };
    let machine = Machine::start(options, None).await;
    let workload = machine.workload("/before");
    let serial = machine.stack.agent_serial();
    let authority = machine.stack.authority_id("active");

    machine.sleep_and_recover(&workload);
    assert_eq!(
        machine.stack.authority_id("active"),
        authority,
        "it is still good"
    );
    assert_eq!(
        machine.stack.agent_serial(),
        serial,
        "its own SVID is good for longer"
    );
    machine.assert_serves(&workload);
    machine.end().await;
}

impl Machine {
    /// The agent joins as the pod, or else with a token.
    async fn start(options: StackOptions, pod: Option<&AgentPod>) -> Self {
        let stack = Stack::configured(options);
        let (clock, stop) = (Clock::offset(time::Duration::ZERO), CancellationToken::new());
        let (_not_global, log) = LogSettings::default().build(clock.clone()).unwrap();
        let file = |name: &str| Some(stack.dir().join(name));

        let flags = finial_server::config::Flags {
            config: file("server.conf"),
            ..Default::default()
        };
        let config = finial_server::config::Config::load(&flags, &|_| None).unwrap();
        let server = finial_server::app::build(config, clock.clone(), log.clone()).await;
        let server = tokio::spawn(server.unwrap().run(stop.clone().cancelled_owned()));

        let mut flags = finial_agent::config::Flags {
            config: file("agent.conf"),
            ..Default::default()
        };
        let mounted = pod.map(|pod| pod.mount_bundle(stack.dir().join("bundle.pem")));
        if pod.is_none() {
            stack.write_bundle();
            let token = stack.join_token();
            flags.join_token = Some(finial_agent::config::JoinToken::Given(token.into()));
        }
        let config = finial_agent::config::Config::load(&flags, &|_| None).unwrap();
        let agent = finial_agent::app::build(config, clock.clone(), log)
            .await
            .unwrap();
        let mut state = agent.state();
        let agent = tokio::spawn(agent.run(stop.clone().cancelled_owned()));
        let serving = tokio::time::timeout(LIMIT, state.wait_for(NodeState::is_serving)).await;
        assert!(serving.is_ok_and(|state| state.is_ok()), "the agent attests");
        Self {
            clock,
            stack,
            state,
            stop,
            server,
            agent,
            _mounted: mounted,
        }
    }

    /// A process with an identity, which watches it.
    fn workload(&self, path: &str) -> Workload {
        self.stack.create_entry(&Entry::for_me(path));
        self.stack.wait_identity(path);
        let mut watch = std::process::Command::new(finial());
        watch
            .args(["agent", "api", "watch", "-socketPath"])
            .arg(self.stack.agent_socket());
        let mut program = Program::start("workload", &mut watch);
        program.wait_for_line(&self.stack.id(path), LIMIT);
        let now = self.clock.now();
        assert!(ends_of_svids(&program).iter().all(|end| *end > now));
        Workload {
            program,
            svid: self.fetch("before"),
            token: self.token(),
        }
    }

    /// Two days pass for all at once, and nobody does anything meanwhile. Then the stream that was open brings an SVID
    /// again, and none that has expired, and the agent is in order.
    fn sleep_and_recover(&self, workload: &Workload) {
        let seen = ends_of_svids(&workload.program).len();
        assert!(self.clock.shift(TWO_DAYS));
        let slept_until = self.clock.now();
        assert!(workload.svid.not_after() < slept_until);
        wait_for(
            "the open stream to bring a new SVID and the agent to be in order",
            LIMIT,
            || {
                let ends = ends_of_svids(&workload.program);
                let new = ends.get(seen..).unwrap_or_default();
                assert!(new.iter().all(|end| *end > slept_until), "expired: {new:?}");
                let state = self.state.borrow().clone();
                anyhow::ensure!(
                    !new.is_empty() && state.is_serving(),
                    "{} SVIDs; agent: {state}",
                    new.len()
                );
                Ok(())
            },
        );
    }

    /// Everything that a workload asks for is there, new, and good by the present time.
    fn assert_serves(&self, workload: &Workload) {
        let svid = self.fetch("after");
        assert!(svid.not_before() > workload.svid.not_after());
        let token = self.token();
        assert_ne!(token, workload.token);
        assert!(!self.is_valid(&workload.token), "it has expired");

        let id = self.stack.id("/after");
        self.stack.create_entry(&Entry::for_me("/after"));
        wait_until("a change to reach the open stream", LIMIT, || {
            workload.program.lines().iter().any(|line| line.contains(&id))
        });
    }

    /// An SVID that is valid now, by an authority beside it that is valid too.
    fn fetch(&self, folder: &str) -> Certificate {
        let folder = self.stack.dir().join(folder);
        std::fs::create_dir(&folder).unwrap();
        let shown = folder.display().to_string();
        self.stack
            .agent_cli_ok(&["api", "fetch", "x509", "-write", &shown]);
        let read = |name: &str| certificates(folder.join(name));
        let (now, leaf) = (self.clock.now(), read("svid.0.pem").remove(0));
        assert!(leaf.not_before() <= now && now < leaf.not_after());
        let authorities = read("bundle.0.pem");
        let signer = authorities
            .iter()
            .find(|authority| authority.subject_key_id() == leaf.authority_key_id());
        assert!(now < signer.expect("who signed is in the bundle").not_after());
        leaf
    }

    /// A token that the agent itself finds valid.
    fn token(&self) -> String {
        let answers =
            self.stack
                .agent_cli_ok(&["api", "fetch", "jwt", "-audience", AUDIENCE, "-output", "json"]);
        let Value::String(token) = &answers.json()[0]["svids"][0]["svid"] else {
            panic!("no token: {}", answers.stdout)
        };
        assert!(self.is_valid(token));
        token.clone()
    }

    fn is_valid(&self, token: &str) -> bool {
        let args = ["api", "validate", "jwt", "-audience", AUDIENCE, "-svid", token];
        self.stack.agent_cli(&args).status.success()
    }

    async fn end(self) {
        assert!(!self.server.is_finished() && !self.agent.is_finished());
        self.stop.cancel();
        for task in [self.agent, self.server] {
            let ended = tokio::time::timeout(LIMIT, task).await;
            ended.expect("it stops").unwrap().unwrap();
        }
    }
}

fn certificates(file: PathBuf) -> Vec<Certificate> {
    Certificate::from_pem(&std::fs::read_to_string(file).unwrap()).unwrap()
}

/// When the SVIDs that a workload got expire, in the order in which they came.
fn ends_of_svids(workload: &Program) -> Vec<OffsetDateTime> {
    let format = format_description!("[year]-[month]-[day] [hour]:[minute]:[second] +0000 UTC");
    let lines = workload.lines();
    let ends = lines
        .iter()
        .filter_map(|line| line.strip_prefix("SVID Valid Until:"));
    let parse = |end: &str| {
        time::PrimitiveDateTime::parse(end.trim(), format).map(time::PrimitiveDateTime::assume_utc)
    };
    ends.map(|end| parse(end).unwrap_or_else(|error| panic!("{end:?}: {error}")))
        .collect()
}
