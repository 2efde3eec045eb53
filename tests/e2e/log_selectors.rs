//! Only the facts about callers that the operator allows are in the agent's log.

use std::time::Duration;

use finial_tests::{Stack, StackOptions};

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn facts_of_refused_callers_are_logged_once_and_only_those_that_are_allowed() {
    let mut stack = Stack::start(StackOptions {
        agent: "log_selectors = [\"unix:uid\"]".into(),
        ..StackOptions::default()
    });
    assert!(!stack.agent_cli(&["api", "fetch", "x509"]).status.success());
    let own = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    let line = stack.agent().wait_for_line("no identity issued", LIMIT);
    assert!(line.contains(&own) && line.contains("FetchX509SVID"), "{line}");
    let line = stack.agent().wait_for_line("workload was attested", LIMIT);
    assert!(line.contains(&own), "{line}");
    let all = stack.agent_lines().join("\n");
    assert!(!all.contains("unix:gid"), "{all}");
}

#[test]
fn without_leave_no_fact_of_a_caller_is_logged() {
    let mut stack = Stack::start(StackOptions::default());
    assert!(!stack.agent_cli(&["api", "fetch", "x509"]).status.success());
    stack.agent().wait_for_line("caller was refused", LIMIT);
    let all = stack.agent_lines().join("\n");
    assert!(!all.contains("unix:uid") && !all.contains("unix:gid"), "{all}");
}
