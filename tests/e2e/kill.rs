//! kill -9 at any moment: nothing acknowledged is lost, everything recovers by itself.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use finial_tests::{Entry, Stack, StackOptions, run, wait_until};

use crate::watcher::{MANY, watcher};

const KILLS: usize = 50;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn fifty_kills_lose_nothing_that_was_acknowledged() {
    let mut stack = Stack::start(StackOptions::default());
    let watched = stack.create_entry(&Entry::for_me("/watched"));
    stack.wait_identity("/watched");
    let agent_id = stack.agent_id();
    let authority = stack.authority_id("active");
    let serial = stack.agent_serial();
    let mut client = watcher(&stack, MANY);
    client.wait_for_line("update 1 ", LIMIT);

    let acknowledged = Arc::new(Mutex::new(BTreeSet::new()));
    let stop = Arc::new(AtomicBool::new(false));
    let writer = {
        let (acknowledged, stop) = (Arc::clone(&acknowledged), Arc::clone(&stop));
        let (socket, parent) = (stack.server_socket().display().to_string(), agent_id.clone());
        std::thread::spawn(move || {
            let mut number = 0;
            while !stop.load(Ordering::Relaxed) {
                number += 1;
                let id = format!("acknowledged-{number}");
                let created = run([
                    "server",
                    "entry",
                    "create",
                    "-socketPath",
                    &socket,
                    "-entryID",
                    &id,
                    "-parentID",
                    &parent,
                    "-spiffeID",
                    &format!("spiffe://example.org/w/{number}"),
                    "-selector",
                    "unix:uid:4294967",
                ]);
                if created.status.success() {
                    acknowledged.lock().expect("no holder panics").insert(id);
                }
            }
        })
    };

    // A fixed mix of victims and moments; what the processes are doing then differs in every run.
    for kill in 0..KILLS {
        let pause = Duration::from_millis(((kill * 37) % 110) as u64);
        let moment = std::time::Instant::now() + pause;
        wait_until("the moment of the kill", LIMIT, || {
            std::time::Instant::now() >= moment
        });
        if kill % 3 == 0 {
            stack.agent().kill_hard();
            stack.start_agent(&[]);
        } else {
            stack.server().kill_hard();
            stack.start_server();
        }
        if kill % 5 == 4 {
            stack.wait_server();
        }
    }
    stop.store(true, Ordering::Relaxed);
    stack.wait_server();
    stack.wait_agent();
    writer.join().expect("the writer ends");

    let stored = stack.server_cli_ok(&["entry", "show", "-output", "json"]).json();
    let stored: BTreeSet<String> = stored["entries"]
        .as_array()
        .expect("a list of entries")
        .iter()
        .filter_map(|entry| entry["id"].as_str().map(str::to_owned))
        .collect();
    let acknowledged = acknowledged.lock().expect("no holder panics").clone();
    assert!(
        acknowledged.len() >= 10,
        "only {} entries were created between the kills",
        acknowledged.len()
    );
    let lost: Vec<_> = acknowledged.difference(&stored).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");

    assert_eq!(stack.agent_id(), agent_id, "the agent is the same");
    assert_eq!(stack.agent_serial(), serial, "the agent did not attest again");
    assert_eq!(
        stack.authority_id("active"),
        authority,
        "the authority is the same"
    );

    // The workload's program was never restarted: a change must still reach it. Its last update says which
    // certificate it holds, and only a certificate with the new name counts.
    let parent = stack.agent_id();
    let selector = format!("unix:uid:{}", rustix::process::getuid().as_raw());
    stack.server_cli_ok(&[
        "entry",
        "update",
        "-entryID",
        &watched,
        "-parentID",
        &parent,
        "-spiffeID",
        &stack.id("/watched"),
        "-selector",
        &selector,
        "-dns",
        "changed.example.org",
    ]);
    wait_until("the open workload to hold the changed certificate", LIMIT, || {
        client
            .lines()
            .last()
            .is_some_and(|line| line.ends_with("changed.example.org"))
    });
}

#[test]
fn the_agent_serves_again_after_a_restart_while_the_server_is_away() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
    let agent_id = stack.agent_id();
    stack.agent().kill_hard();
    stack.server().kill_hard();
    stack.start_agent(&[]);
    // The saved SVID is reused: the agent waits for its server and does not exit.
    let socket = stack.agent_socket();
    wait_until("the agent's socket", LIMIT, || {
        std::os::unix::net::UnixStream::connect(&socket).is_ok()
    });
    assert!(stack.agent().is_running());
    stack.start_server();
    stack.wait_server();
    stack.wait_identity("/me");
    assert_eq!(stack.agent_id(), agent_id);
}
