//! Mutual TLS between programs of different libraries, through six rotations of 20-second SVIDs.

use std::time::Duration;

use finial_tests::{Entry, Program, Stack, StackOptions, free_port};

use crate::clients::{Client, after};

/// Half of 20 s is the mean time between renewals; the rest is for the start.
const SECONDS: &str = "70";

#[test]
fn python_and_rust_talk_in_both_directions_through_six_rotations() {
    let Some(python) = Client::python() else { return };
    let rust = Client::rust();
    let stack = Stack::start(StackOptions {
        x509_svid_ttl: "20s".into(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/service"));
    stack.wait_identity("/service");
    std::thread::scope(|scope| {
        for (server, dialler) in [(&python, &rust), (&rust, &python)] {
            let stack = &stack;
            scope.spawn(move || {
                let port = free_port();
                let port = port.to_string();
                let mut listening =
                    Program::start(server.name, &mut server.command(stack, &["serve", &port]));
                listening.wait_for_line("listening", Duration::from_secs(60));
                let lines = dialler.run_ok(stack, &["dial", &port, &stack.id("/service"), SECONDS]);
                let words: Vec<_> = after(&lines, "handshakes")
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect();
                let (handshakes, certificates): (u32, u32) = (
                    words[0].parse().expect("a count"),
                    words[2].parse().expect("a count"),
                );
                assert!(
                    handshakes >= 100,
                    "{} dialled {}: {lines:?}",
                    dialler.name,
                    server.name
                );
                assert!(
                    certificates >= 7,
                    "six rotations need seven certificates: {lines:?}"
                );
                let failed: Vec<_> = listening
                    .lines()
                    .into_iter()
                    .filter(|line| line.contains("failed"))
                    .collect();
                assert!(failed.is_empty(), "{} saw {failed:?}", server.name);
            });
        }
    });
}

#[test]
fn a_peer_of_another_trust_domain_is_refused() {
    let Some(python) = Client::python() else { return };
    let rust = Client::rust();
    let here = Stack::start(StackOptions::default());
    here.create_entry(&Entry::for_me("/service"));
    here.wait_identity("/service");
    let there = Stack::start(StackOptions {
        trust_domain: "other.test".into(),
        ..StackOptions::default()
    });
    there.create_entry(&Entry::for_me("/service"));
    there.wait_identity("/service");
    for (server, dialler) in [(&python, &rust), (&rust, &python)] {
        let port = free_port();
        let port = port.to_string();
        let mut listening = Program::start(server.name, &mut server.command(&here, &["serve", &port]));
        listening.wait_for_line("listening", Duration::from_secs(60));
        dialler
            .run(&there, &["dial", &port, &here.id("/service"), "2"])
            .expect_err("a server of another trust domain is refused");
        dialler.run_ok(&here, &["dial", &port, &here.id("/service"), "1"]);
    }
}
