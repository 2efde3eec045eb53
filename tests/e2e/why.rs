//! `finial why`: an operator finds out why a process has no identity.

use std::process::Command;

use std::time::Duration;

use finial_tests::{Entry, Output, run, wait_until};

use crate::admin::WithAdmin;

const LIMIT: Duration = Duration::from_secs(60);

fn why(with: &WithAdmin, args: &[&str]) -> Output {
    let socket = with.socket().display().to_string();
    let all: Vec<&str> = ["why", "-socketPath", &socket]
        .iter()
        .chain(args)
        .copied()
        .collect();
    run(&all)
}

#[test]
fn names_the_entry_that_matches_and_the_selector_that_differs() {
    let with = WithAdmin::start();
    let stack = &with.stack;
    stack.create_entry(&Entry {
        path: "/almost",
        selectors: vec![
            "unix:uid:4711".to_owned(),
            format!("unix:gid:{}", rustix::process::getgid().as_raw()),
        ],
        extra: Vec::new(),
    });
    let mut sleeper = Command::new("sleep").arg("600").spawn().expect("sleep starts");
    let pid = sleeper.id().to_string();
    let asked = || why(&with, &["-pid", &pid, "-output", "json"]);
    wait_until("the entry at the agent", LIMIT, || {
        asked().json()["state"]["entries"] == "1"
    });
    let answer = asked().json();
    assert_eq!(answer["verdict"], "NO_ENTRY_MATCHES");
    let miss = &answer["near_misses"][0];
    assert_eq!(miss["spiffe_id"], stack.id("/almost"));
    assert_eq!(miss["differences"][0]["wanted"], "unix:uid:4711");
    let own = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    assert_eq!(miss["differences"][0]["found"][0], own.as_str());
    let gid = format!("unix:gid:{}", rustix::process::getgid().as_raw());
    assert_eq!(miss["matched"][0], gid.as_str());
    assert_eq!(answer["attestors"][0]["name"], "unix");

    stack.create_entry(&Entry::for_me("/web"));
    wait_until("an identity", LIMIT, || {
        asked().json()["verdict"] == "HAS_IDENTITY"
    });
    let text = why(&with, &["-pid", &pid]).stdout;
    assert!(
        text.contains(&format!("Matches    : {}", stack.id("/web"))),
        "{text}"
    );
    assert!(text.contains("Verdict    : has an identity"), "{text}");
    // Without a pid it is about the process that asks.
    assert!(why(&with, &[]).stdout.contains("Verdict    : has an identity"));

    sleeper.kill().expect("the process is ours");
    sleeper.wait().expect("the process is ours");
    let gone = why(&with, &["-pid", &pid]);
    assert!(
        !gone.status.success() && gone.stderr.contains("gone"),
        "{}",
        gone.stderr
    );
}

#[test]
fn a_refused_caller_gets_a_code_that_an_operator_can_look_up() {
    let with = WithAdmin::start();
    let stack = &with.stack;
    let refused = stack.agent_cli(&["api", "fetch", "x509"]);
    assert!(
        refused.stderr.contains("no identity issued"),
        "{}",
        refused.stderr
    );
    let code = refused
        .stderr
        .split("reference ")
        .nth(1)
        .and_then(|rest| rest.get(..8))
        .expect("the command prints the code")
        .to_owned();
    let found = why(&with, &["-reference", &code]);
    assert!(found.status.success(), "{}", found.stderr);
    assert!(
        found.stdout.contains("Was told   : no identity issued"),
        "{}",
        found.stdout
    );
    assert!(
        found
            .stdout
            .contains("the server has no entries below this agent"),
        "{}",
        found.stdout
    );
    let unknown = why(&with, &["-reference", "aaaaaaaa"]);
    assert!(
        !unknown.status.success() && unknown.stderr.contains("no such reference"),
        "{}",
        unknown.stderr
    );
}
