//! `finial dev`.

use std::process::Command;
use std::time::Duration;

use finial_tests::{Program, finial, run_ok};
use rustix::process::Signal;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn once_prints_both_svids_and_exits_0() {
    let dir = TempDir::new().expect("a temporary directory");
    let printed = once(&dir);
    let id = format!("spiffe://example.org/user/{}", rustix::process::getuid().as_raw());
    assert!(printed.contains(&id), "{printed}");
    assert!(printed.contains("-----BEGIN CERTIFICATE-----"), "{printed}");
    assert!(
        !printed.contains("PRIVATE KEY"),
        "no private key is printed: {printed}"
    );
    assert_eq!(tokens(&printed).len(), 1, "one JWT-SVID: {printed}");
    assert!(printed.contains("\"aud\""), "the token is decoded: {printed}");
}

#[test]
fn a_second_start_carries_on_with_the_same_authority_and_agent() {
    let dir = TempDir::new().expect("a temporary directory");
    let first = once(&dir);
    let authority = |text: &str| {
        text.lines()
            .find(|line| line.contains("authority"))
            .map(str::to_owned)
    };
    let second = once(&dir);
    let agent = |text: &str| {
        let at = text
            .find("/spire/agent/join_token/")
            .unwrap_or_else(|| panic!("no agent ID in\n{text}"));
        text[at..]
            .chars()
            .take_while(|c| !c.is_whitespace())
            .collect::<String>()
    };
    assert_eq!(agent(&first), agent(&second), "the agent is the same");
    assert!(authority(&first).is_some(), "the authority is named: {first}");
    let kid = |text: &str| kid_of(&tokens(text)[0]);
    assert_eq!(kid(&first), kid(&second), "the JWT authority is the same");
}

#[test]
fn serves_until_it_is_interrupted_and_then_exits_0() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut dev = start(&dir);
    dev.wait_for_line("Stop with Ctrl-C", LIMIT);
    let line = dev.wait_for_line("export SPIFFE_ENDPOINT_SOCKET=unix://", LIMIT);
    let (_, named) = line
        .split_once("unix://")
        .expect("the line was found by this text");
    let socket = std::path::PathBuf::from(named.split_whitespace().next().expect("a path follows"));
    let fetched = run_ok([
        "agent",
        "api",
        "fetch",
        "x509",
        "-socketPath",
        &socket.display().to_string(),
    ]);
    assert!(fetched.stdout.contains("/user/"), "{}", fetched.stdout);
    dev.signal(Signal::INT);
    assert_eq!(dev.wait_exit(LIMIT).code(), Some(0));
}

#[test]
fn refuses_a_directory_that_another_instance_uses() {
    let dir = TempDir::new().expect("a temporary directory");
    let mut dev = start(&dir);
    dev.wait_for_line("-----BEGIN CERTIFICATE-----", LIMIT);
    let mut second = start(&dir);
    assert_eq!(second.wait_exit(LIMIT).code(), Some(1));
    let printed = second.lines().join("\n");
    assert!(printed.contains("in use"), "{printed}");
    assert!(dev.is_running());
}

fn start(dir: &TempDir) -> Program {
    Program::start(
        "finial dev",
        Command::new(finial())
            .args(["dev", "--dir"])
            .arg(dir.path().join("dev")),
    )
}

fn once(dir: &TempDir) -> String {
    let path = dir.path().join("dev").display().to_string();
    run_ok(["dev", "--once", "--dir", &path]).stdout
}

/// Words that look like a JWS in compact form.
fn tokens(text: &str) -> Vec<String> {
    let words = text
        .split_whitespace()
        .filter(|word| word.starts_with("eyJ") && word.matches('.').count() == 2);
    words.map(str::to_owned).collect()
}

fn kid_of(token: &str) -> String {
    let claims = finial_identity::jwt::parse_unverified(token).expect("a token that parses");
    claims.kid
}
