//! `finial why`: an operator finds out why a process has no identity.

use std::process::Command;

use std::time::Duration;

use finial_tests::{Entry, Output, finial, run, wait_until};

use crate::admin::WithAdmin;

const LIMIT: Duration = Duration::from_secs(60);
/// What the command exits with when there is no identity.
const NO_IDENTITY: i32 = 3;

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
    let output = asked();
    assert_eq!(output.status.code(), Some(NO_IDENTITY));
    let answer = output.json();
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
    let own = why(&with, &[]);
    assert!(own.stdout.contains("Verdict    : has an identity"));
    assert_eq!(own.status.code(), Some(0));

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

#[test]
fn a_workload_without_the_admin_socket_is_told_no_more_than_its_identities_or_its_code() {
    let mut with = WithAdmin::start();
    let public = with.stack.agent_socket().display().to_string();
    // As workloads do, by the variable, or by naming the socket.
    let by_variable = |args: &[&str]| {
        let mut command = Command::new(finial());
        command.arg("why").args(args);
        Output::of(command.env("SPIRE_AGENT_PUBLIC_SOCKET", &public))
    };
    let by_flag = |args: &[&str]| run([&["why", "--socket-path", &public], args].concat());
    with.stack.create_entry(&Entry {
        path: "/almost",
        selectors: vec![
            "unix:uid:4711".to_owned(),
            format!("unix:gid:{}", rustix::process::getgid().as_raw()),
        ],
        extra: Vec::new(),
    });
    wait_until("the entry at the agent", LIMIT, || {
        why(&with, &["-output", "json"]).json()["state"]["entries"] == "1"
    });

    for output in [by_flag(&[]), by_variable(&[])] {
        let (text, error) = (&output.stdout, &output.stderr);
        assert_eq!(output.status.code(), Some(NO_IDENTITY), "{text}{error}");
        assert!(text.ends_with("\nVerdict    : no identity issued\n"), "{text}");
        let code = text.split("Reference  : ").nth(1).and_then(|rest| rest.get(..8));
        let code = code.expect("a code");
        assert!(text.contains("give this code to the operator"), "{text}");
        assert!(text.contains(&format!("-reference {code}\n")), "{text}");
        for secret in ["unix:", "spiffe://", "Process", "Attestor", "Nearly", "Last sync"] {
            assert!(!text.contains(secret), "{secret} in {text}");
        }
        let found = why(&with, &["-reference", code]);
        assert!(
            found.stdout.contains("unix:uid:4711"),
            "{}{}",
            found.stdout,
            found.stderr
        );
    }
    let refused = by_flag(&["-output", "json"]);
    assert_eq!(refused.status.code(), Some(NO_IDENTITY));
    let refused = refused.json();
    assert_eq!(refused["verdict"], "NO_IDENTITY");
    assert_eq!(refused["status"], "no identity issued");
    assert_eq!(refused["reference"].as_str().map(str::len), Some(8), "{refused}");
    assert_eq!(
        refused.as_object().map(serde_json::Map::len),
        Some(3),
        "{refused}"
    );

    // About others it is told nothing.
    for other in [["-pid", "1"], ["-reference", "aaaaaaaa"], ["-podUID", "a"]] {
        let output = by_flag(&other);
        assert_eq!(output.status.code(), Some(1), "{other:?}: {}", output.stdout);
        assert!(
            output.stderr.contains("admin socket"),
            "{other:?}: {}",
            output.stderr
        );
        assert_eq!(output.stdout, "", "{other:?}");
    }

    with.stack.create_entry(&Entry::for_me("/web"));
    with.stack.wait_identity("/web");
    for output in [by_flag(&[]), by_variable(&[])] {
        let text = &output.stdout;
        assert_eq!(output.status.code(), Some(0), "{text}{}", output.stderr);
        let id = format!("\nSPIFFE ID  : {}, X509-SVID until ", with.stack.id("/web"));
        assert!(text.contains(&id), "{text}");
        assert!(text.ends_with("\nVerdict    : has an identity\n"), "{text}");
        assert!(!text.contains("unix:") && !text.contains("Matches"), "{text}");
    }
    let served = by_flag(&["-output", "json"]).json();
    let expected = serde_json::json!({"verdict": "HAS_IDENTITY", "spiffe_ids": [with.stack.id("/web")]});
    assert_eq!(served, expected);

    with.stack.agent().terminate();
    for output in [by_flag(&[]), by_variable(&[])] {
        assert_eq!(output.status.code(), Some(1), "{}", output.stdout);
        assert!(output.stderr.contains(&public), "{}", output.stderr);
    }
}
