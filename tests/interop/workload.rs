//! One scenario of a workload, the same for four libraries of other projects: it fetches, watches, sees a rotation,
//! loses its identity and regains it, and continues through restarts of its server and its agent, in one process.

use finial_tests::{Entry, Stack, StackOptions};
use serde_json::Value;

use crate::clients::Client;
use crate::session::{Mark, Refusal, Session};

/// What the libraries do by themselves, and how their programs learn of it where the library does not say.
///
/// - py-spiffe opens the stream again after 0.1 s, doubling to 5 s, and tells its caller of an end only when it gives
///   up; the program asks the gRPC call itself, which the library's handle of the watch shows.
/// - The `spiffe` crate's source opens it again after a second or more, at most 10 s, and withdraws what it had while
///   the identity is denied. It gives a denial its own words: that they are right means that it found SPIRE's words
///   in ours, not that there were no others.
/// - go-spiffe opens it again after 1 s, 2 s, … 30 s and hands over the status each time.
/// - java-spiffe opens it again after 1 s, doubling to a minute, and writes the status to its log alone, where the
///   program reads it. After 0.8.17 its watch ends for good with PermissionDenied: its user then has to watch again.
type Library = (&'static str, fn() -> Option<Client>);
const PYTHON: Library = ("py-spiffe", Client::python);
const RUST: Library = ("the spiffe crate", || Some(Client::rust()));
const GO: Library = ("go-spiffe", Client::go);
const JAVA: Library = ("java-spiffe", Client::java);

const AUDIENCE: &str = "spiffe://example.org/api";

#[test]
fn py_spiffe_lives_through_rotation_loss_and_restarts() {
    life(PYTHON);
}

#[test]
fn the_spiffe_crate_lives_through_rotation_loss_and_restarts() {
    life(RUST);
}

#[test]
fn go_spiffe_lives_through_rotation_loss_and_restarts() {
    life(GO);
}

#[test]
fn java_spiffe_lives_through_rotation_loss_and_restarts() {
    life(JAVA);
}

fn life((name, client): Library) {
    let Some(client) = client() else { return };
    let mut stack = Stack::start(StackOptions {
        x509_svid_ttl: "20s".into(),
        ..StackOptions::default()
    });
    let entry = stack.create_entry(&Entry::for_me("/workload"));
    stack.wait_identity("/workload");
    let id = stack.id("/workload");
    let mut workload = Session::start(name, &mut client.command(&stack, &[]));

    let fetched = workload.ask_ok(&["x509"]);
    assert_eq!(fetched["ids"], serde_json::json!([id]), "{name}");
    assert_eq!(fetched["authorities"], 1, "{name}");
    uses_tokens(name, &mut workload, &id);

    let opened = workload.mark();
    workload.ask_ok(&["watch"]);
    let first = workload.update(opened, "the first SVID", |_| true);
    workload.update(opened, "a renewed SVID", |update| {
        update["serial"] != first["serial"]
    });
    workload.assert_uninterrupted(opened);

    loses_and_regains_its_identity(name, &mut workload, &stack, &entry);
    outlives_its_server(name, &mut workload, &mut stack);
    outlives_its_agent(name, &mut workload, &mut stack);
}

fn uses_tokens(name: &str, workload: &mut Session, id: &str) {
    let svid = workload.ask_ok(&["jwt", AUDIENCE]);
    let token = svid["token"].as_str().expect("a token");
    // A letter in the middle of the signature; its last ones hold bits that are not looked at.
    let at = token.len() - 8;
    let other = if token[at..].starts_with('A') { "B" } else { "A" };
    let mutant = format!("{}{other}{}", &token[..at], &token[at + 1..]);
    for judge in ["verify", "validate"] {
        let accepted = workload.ask_ok(&[judge, token, AUDIENCE]);
        assert_eq!(accepted["ids"], serde_json::json!([id]), "{name}: {judge}");
        for (token, audience) in [(token, "another-audience"), (mutant.as_str(), AUDIENCE)] {
            let refusal = workload
                .ask(&[judge, token, audience])
                .expect_err("another audience and a changed signature are refused");
            if judge == "validate" {
                assert_eq!(refusal.code, "invalidargument", "{name}: {refusal:?}");
            }
        }
    }
}

fn loses_and_regains_its_identity(name: &str, workload: &mut Session, stack: &Stack, entry: &str) {
    let lost = workload.mark();
    stack.delete_entry(entry);
    let denied = Refusal {
        code: "permissiondenied".to_owned(),
        message: "no identity issued".to_owned(),
    };
    assert_eq!(workload.end(lost), denied, "{name}: the watch");
    assert_eq!(workload.ask(&["x509"]).as_ref(), Err(&denied), "{name}: a fetch");
    assert_eq!(workload.ask(&["jwt", AUDIENCE]), Err(denied), "{name}: a token");

    let regained = workload.mark();
    stack.create_entry(&Entry::for_me("/workload"));
    has(workload, regained, &stack.id("/workload"));
    workload.ask_ok(&["x509"]);
    workload.ask_ok(&["jwt", AUDIENCE]);
}

/// The stream to the agent stays open, and what the server says afterwards arrives on it.
fn outlives_its_server(name: &str, workload: &mut Session, stack: &mut Stack) {
    let before = workload.mark();
    stack.server().kill_hard();
    let meanwhile = workload.ask_ok(&["x509"]);
    assert_eq!(
        meanwhile["ids"],
        serde_json::json!([stack.id("/workload")]),
        "{name}"
    );
    workload.ask_ok(&["jwt", AUDIENCE]);
    stack.start_server();
    stack.wait_server();
    stack.create_entry(&Entry::for_me("/second"));
    has(workload, before, &stack.id("/second"));
    workload.assert_uninterrupted(before);
}

/// All four reconnect by themselves.
fn outlives_its_agent(name: &str, workload: &mut Session, stack: &mut Stack) {
    let before = workload.mark();
    stack.agent().kill_hard();
    stack.start_agent(&[]);
    stack.wait_agent();
    stack.create_entry(&Entry::for_me("/third"));
    has(workload, before, &stack.id("/third"));
    let fetched = workload.ask_ok(&["x509"]);
    assert_eq!(
        fetched["ids"].as_array().map(Vec::len),
        Some(3),
        "{name}: {fetched}"
    );
}

/// Waits for an update that has this identity.
fn has(workload: &mut Session, mark: Mark, id: &str) {
    workload.update(mark, id, |update| {
        let ids = update["ids"].as_array();
        ids.is_some_and(|ids| ids.contains(&Value::from(id)))
    });
}
