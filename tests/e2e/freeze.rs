//! A machine, or a server, that is stopped for longer than the lifetime of certificates, like one that was suspended.

use std::time::{Duration, Instant};

use finial_identity::x509::Certificate;
use finial_proto::workload::X509svidResponse;
use finial_tests::{AgentPod, Entry, Stack, StackOptions, wait_until};
use rustix::process::Signal;

use crate::watcher::{MANY, watcher};
use crate::wire::x509_stream;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_machine_that_stood_still_serves_again_without_a_hand_on_it() {
    let mut stack = Stack::start(StackOptions {
        x509_svid_ttl: "10s".into(),
        server: "agent_ttl = \"30m\"".into(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let mut client = watcher(&stack, MANY);
    client.wait_for_line("update 1 ", LIMIT);
    let agent_id = stack.agent_id();

    stack.server().signal(Signal::STOP);
    stack.agent().signal(Signal::STOP);
    // The workload's SVID and the server's own expire.
    let seen = client.lines().len();
    pass(Duration::from_secs(15));
    stack.server().signal(Signal::CONT);
    stack.agent().signal(Signal::CONT);

    wait_until("the open stream to bring new SVIDs", LIMIT, || {
        client.lines().len() >= seen + 2
    });
    assert!(client.is_running(), "{}", client.lines().join("\n"));
    stack.wait_server();
    stack.wait_agent();
    assert_is_valid(&stack);
    // A change reaches the workload: the agent has its server again.
    stack.create_entry(&Entry::for_me("/later"));
    stack.wait_identity("/later");
    assert_eq!(stack.agent_id(), agent_id, "the agent is the same");
}

#[test]
fn an_agent_whose_own_svid_expired_in_its_sleep_runs_on_and_says_what_it_needs() {
    let mut stack = Stack::start(StackOptions {
        x509_svid_ttl: "10s".into(),
        server: "agent_ttl = \"15s\"".into(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    stack.server().signal(Signal::STOP);
    stack.agent().signal(Signal::STOP);
    pass(Duration::from_secs(20));
    stack.server().signal(Signal::CONT);
    stack.agent().signal(Signal::CONT);
    let said = stack
        .agent()
        .wait_for_line("start the agent with a new one", LIMIT);
    assert!(said.contains("join_token"), "{said}");
    let fetched = stack.agent_cli(&["api", "fetch", "x509"]);
    assert!(
        !fetched.status.success(),
        "nothing is left to serve: {}",
        fetched.stdout
    );
    assert!(stack.agent().is_running());

    stack.wait_server();
    stack.attest_anew();
}

#[test]
fn a_server_that_outlived_its_authority_makes_another_and_its_agents_say_what_they_need() {
    let mut stack = Stack::start(StackOptions {
        ca_ttl: "30s".into(),
        x509_svid_ttl: "20s".into(),
        ..StackOptions::default()
    });
    let before = stack.authority_id("active");
    stack.server().signal(Signal::STOP);
    pass(Duration::from_secs(35));
    stack.server().signal(Signal::CONT);
    stack.wait_server();
    wait_until("another authority", LIMIT, || {
        stack.authority_id("active") != before
    });

    // No SVID outlives its authority, the agent's own neither, and what it joined with worked once.
    stack
        .agent()
        .wait_for_line("start the agent with a new one", LIMIT);
    assert!(stack.agent().is_running());
    assert!(stack.agent().terminate().success());

    // A token alone does not help: nothing that the agent knows vouches for the server.
    let token = stack.join_token();
    stack.start_agent(&["-joinToken", &token]);
    let said = stack.agent().wait_for_line("the saved bundle is kept", LIMIT);
    assert!(
        said.contains("not trusted according to trust bundle saved in")
            && said.contains("agent-data.json away"),
        "{said}"
    );
    assert!(stack.agent().terminate().success());

    // What an operator does.
    let dir = stack.dir().join("agent");
    std::fs::rename(dir.join("agent-data.json"), dir.join("agent-data.old")).expect("it is moved");
    stack.write_bundle();
    stack.start_agent(&["-joinToken", &token]);
    stack.wait_agent();
    assert!(stack.agent().terminate().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stack_that_outlived_every_certificate_in_its_sleep_heals_without_a_hand_on_it() {
    let pod = AgentPod::new();
    let mut stack = Stack::server_only(pod.options(StackOptions {
        ca_ttl: "30s".into(),
        x509_svid_ttl: "20s".into(),
        server: "agent_ttl = \"20s\"".into(),
        agent: "rebootstrap_mode = \"auto\" rebootstrap_delay = \"2s\"".into(),
        ..StackOptions::default()
    }));
    let _mounted = pod.mount_bundle(stack.dir().join("bundle.pem"));
    stack.start_agent(&[]);
    stack.wait_agent();
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let (agent_id, agent_pid) = (stack.agent_id(), stack.agent().pid());
    let mut open = x509_stream(stack.agent_socket()).await;
    let first = open.next().await.expect("an identity");
    let former = authorities(&first);

    stack.server().signal(Signal::STOP);
    stack.agent().signal(Signal::STOP);
    // Every certificate expires: those of authorities, server, agent and workload.
    pass(Duration::from_secs(35));
    let now = time::OffsetDateTime::now_utc();
    assert!(former.iter().all(|authority| authority.not_after() < now));
    stack.server().signal(Signal::CONT);
    stack.agent().signal(Signal::CONT);

    let (leaf, next) = loop {
        let update = open.next().await.expect("the stream that was open stays open");
        let chain = Certificate::parse_many(&update.svids[0].x509_svid);
        let leaf = chain.expect("certificates").remove(0);
        if leaf.not_after() > time::OffsetDateTime::now_utc() {
            break (leaf, authorities(&update));
        }
    };
    let signer = next
        .iter()
        .find(|authority| authority.subject_key_id() == leaf.authority_key_id());
    let signer = signer.expect("who signed is in the bundle that came with it");
    assert!(!former.contains(signer), "it is a new authority");
    stack.wait_server();
    stack.wait_agent();
    assert_eq!((stack.agent_id(), stack.agent().pid()), (agent_id, agent_pid));
    let said = stack.agent_lines();
    let attested = said.iter().filter(|line| line.contains("agent attested"));
    assert!(attested.count() >= 2, "{}", said.join("\n"));
    // A change reaches the workload: the agent has its server again.
    stack.create_entry(&Entry::for_me("/later"));
    stack.wait_identity("/later");
}

fn authorities(update: &X509svidResponse) -> Vec<Certificate> {
    Certificate::parse_many(&update.svids[0].bundle).expect("certificates")
}

/// Waits although nothing is to be seen: certificates expire.
fn pass(time: Duration) {
    let start = Instant::now();
    wait_until("time to pass", LIMIT, || start.elapsed() >= time);
}

fn assert_is_valid(stack: &Stack) {
    let dir = stack.dir().join("fetched");
    std::fs::create_dir(&dir).expect("a directory");
    stack.agent_cli_ok(&["api", "fetch", "x509", "-write", &dir.display().to_string()]);
    let pem = std::fs::read_to_string(dir.join("svid.0.pem")).expect("an SVID was written");
    let leaf = Certificate::from_pem(&pem).expect("PEM").remove(0);
    assert!(leaf.not_after() > time::OffsetDateTime::now_utc());
}
