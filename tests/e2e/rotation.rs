//! Rotation under short lifetimes, of SVIDs and of authorities.

use std::collections::BTreeSet;
use std::time::Duration;

use finial_tests::{Entry, Stack, StackOptions, wait_until};

use crate::watcher::watcher;

const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn svids_are_renewed_before_they_expire() {
    let stack = Stack::start(StackOptions {
        x509_svid_ttl: "20s".into(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let mut client = watcher(&stack, 4);
    assert!(client.wait_exit(LIMIT).success());
    let serials: BTreeSet<_> = client
        .lines()
        .iter()
        .filter(|line| line.starts_with("update"))
        .filter_map(|line| line.split_whitespace().nth(3).map(str::to_owned))
        .collect();
    assert_eq!(
        serials.len(),
        4,
        "each update brought another certificate: {:?}",
        client.lines()
    );
}

#[test]
fn an_authority_that_is_rotated_by_hand_moves_every_svid() {
    let stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let old = stack.authority_id("active");
    stack.server_cli_ok(&["localauthority", "x509", "prepare"]);
    let new = stack.authority_id("prepared");
    assert_ne!(old, new);
    assert_eq!(
        authorities_at_the_agent(&stack, 2),
        2,
        "both authorities are in the bundle before the new one signs"
    );

    stack.server_cli_ok(&["localauthority", "x509", "activate", "-authorityID", &new]);
    stack.server_cli_ok(&["localauthority", "x509", "taint", "-authorityID", &old]);
    let dir = stack.dir().join("fetched");
    std::fs::create_dir(&dir).expect("a directory");
    let dir_text = dir.display().to_string();
    wait_until("the workload's SVID to move to the new authority", LIMIT, || {
        stack.agent_cli_ok(&["api", "fetch", "x509", "-write", &dir_text]);
        let pem = std::fs::read_to_string(dir.join("svid.0.pem")).expect("an SVID was written");
        let leaf = finial_identity::x509::Certificate::from_pem(&pem)
            .expect("PEM")
            .remove(0);
        leaf.authority_key_id().map(hex) == Some(new.clone())
    });
    stack.server_cli_ok(&["localauthority", "x509", "revoke", "-authorityID", &old]);
    assert_eq!(
        authorities_at_the_agent(&stack, 1),
        1,
        "the revoked authority left the bundle"
    );
    let show = stack.server_cli_ok(&["localauthority", "x509", "show"]).stdout;
    assert!(show.contains(&new), "{show}");
}

/// Waits until the workload's bundle has `expected` authorities and gives the count.
fn authorities_at_the_agent(stack: &Stack, expected: usize) -> usize {
    let dir = stack.dir().join("bundle-check");
    let _ = std::fs::create_dir(&dir);
    let dir_text = dir.display().to_string();
    let count = || {
        stack.agent_cli_ok(&["api", "fetch", "x509", "-write", &dir_text]);
        let pem = std::fs::read_to_string(dir.join("bundle.0.pem")).expect("a bundle was written");
        pem.matches("BEGIN CERTIFICATE").count()
    };
    wait_until(
        &format!("{expected} authorities in the workload's bundle"),
        LIMIT,
        || count() == expected,
    );
    count()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
