//! Fetch, validate and watch, with each client.

use std::collections::BTreeSet;

use finial_tests::{Entry, Stack, StackOptions};

use crate::clients::{Client, after};

#[test]
fn rust_fetches_validates_and_watches() {
    scenario(&Client::rust());
}

#[test]
fn python_fetches_validates_and_watches() {
    if let Some(client) = Client::python() {
        scenario(&client);
    }
}

#[test]
fn go_fetches_validates_and_watches() {
    if let Some(client) = Client::go() {
        scenario(&client);
    }
}

#[test]
fn java_fetches_validates_and_watches() {
    if let Some(client) = Client::java() {
        scenario(&client);
    }
}

fn scenario(client: &Client) {
    let stack = Stack::start(StackOptions {
        x509_svid_ttl: "20s".into(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/workload"));
    stack.wait_identity("/workload");
    let id = stack.id("/workload");
    let audience = "spiffe://example.org/api";

    assert_eq!(after(&client.run_ok(&stack, &["x509"]), "id"), id);
    let lines = client.run_ok(&stack, &["jwt", audience]);
    assert_eq!(
        after(&lines, "id"),
        id,
        "the library accepts our token and bundle"
    );
    assert_eq!(after(&lines, "validated"), id, "our ValidateJWTSVID accepts it");
    let token = after(&lines, "token");
    client
        .run(&stack, &["validate", token, "another-audience"])
        .expect_err("a foreign audience is refused");
    let mutant = format!("{}A{}", &token[..token.len() - 8], &token[token.len() - 7..]);
    if mutant != token {
        client
            .run(&stack, &["validate", &mutant, audience])
            .expect_err("a changed signature is refused");
    }

    let updates = client.run_ok(&stack, &["watch", "3"]);
    let updates: Vec<_> = updates.iter().filter(|line| line.starts_with("update")).collect();
    assert!(updates.iter().all(|line| line.contains(&id)), "{updates:?}");
    let certificates: BTreeSet<_> = updates
        .iter()
        .filter_map(|line| line.split_whitespace().nth(3))
        .collect();
    assert!(certificates.len() >= 2, "the watch saw a renewal: {updates:?}");
}
