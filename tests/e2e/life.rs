//! What ends an agent, and what does not: bans, evictions, and data directories from a snapshot.

use std::path::Path;
use std::time::Duration;

use finial_tests::{Entry, Stack, StackOptions, wait_until};
use tonic::Code;

use crate::wire::x509_stream;

const LIMIT: Duration = Duration::from_secs(120);

#[tokio::test(flavor = "multi_thread")]
async fn a_ban_ends_streams_with_a_denial_and_the_process_with_a_failure() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let mut open = x509_stream(stack.agent_socket()).await;
    let first = open.next().await.expect("an identity");
    assert_eq!(first.svids[0].spiffe_id, stack.id("/me"));
    let id = stack.agent_id();
    stack.server_cli_ok(&["agent", "ban", "-spiffeID", &id]);
    let ended = loop {
        if let Err(status) = open.next().await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied, "{ended:?}");
    let status = stack.agent().wait_exit(LIMIT);
    assert!(!status.success(), "{status}");
    let said = stack.agent_lines();
    let is_told = |line: &String| line.contains("the server banned this agent");
    assert!(said.iter().any(is_told), "{}", said.join("\n"));
    // Another start does not bring it back.
    stack.start_agent(&[]);
    assert!(!stack.agent().wait_exit(LIMIT).success());
}

#[test]
fn an_evicted_agent_serves_what_it_has_and_comes_back_with_a_new_token() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let id = stack.agent_id();
    stack.server_cli_ok(&["agent", "evict", "-spiffeID", &id]);
    let said = stack
        .agent()
        .wait_for_line("cannot attest again by itself", LIMIT);
    assert!(said.contains("such as a new join token"), "{said}");
    stack.wait_identity("/me");
    assert!(stack.agent().is_running());
    stack.attest_anew();
}

#[test]
fn an_agent_from_a_snapshot_says_that_its_svid_is_not_the_last_one() {
    let mut stack = Stack::start(StackOptions {
        server: "agent_ttl = \"60s\"".into(),
        ..StackOptions::default()
    });
    let data = stack.dir().join("agent");
    let snapshot = stack.dir().join("snapshot");
    copy(&data, &snapshot);
    let first = stack.agent_serial();
    wait_until("the agent's SVID to be renewed and used", LIMIT, || {
        stack.agent_serial() != first
    });
    stack.agent().kill_hard();
    copy(&snapshot, &data);
    stack.start_agent(&[]);
    let said = stack
        .agent()
        .wait_for_line("cannot attest again by itself", LIMIT);
    assert!(said.contains("agent SVID is not the active one"), "{said}");
    assert!(stack.agent().is_running());
}

fn copy(from: &Path, to: &Path) {
    let _ = std::fs::create_dir(to);
    for name in ["agent-data.json", "keys.json"] {
        std::fs::copy(from.join(name), to.join(name)).expect("a file of the agent");
    }
}
