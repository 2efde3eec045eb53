//! Files of the agent that were damaged. The agent continues to serve, shows the reason, and does not overwrite a file
//! with less content.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use finial_tests::{AgentPod, Entry, Stack, StackOptions, wait_until};

use super::LIMIT;
use crate::helper::get;

const FILES: [&str; 2] = ["agent/keys.json", "agent/agent-data.json"];

#[test]
fn a_running_agent_serves_on_when_its_files_are_emptied_or_taken_away() {
    let mut stack = Stack::start(StackOptions::default());
    stack.create_entry(&Entry::for_me("/before"));
    stack.wait_identity("/before");
    for file in FILES {
        std::fs::write(stack.dir().join(file), "").expect("the file is emptied");
    }
    stack.create_entry(&Entry::for_me("/emptied"));
    stack.wait_identity("/emptied");
    for file in FILES {
        std::fs::remove_file(stack.dir().join(file)).expect("the file is removed");
    }
    stack.create_entry(&Entry::for_me("/gone"));
    stack.wait_identity("/gone");
    assert!(stack.agent().is_running());
}

/// A running agent does not read its files, so what is wrong with them is not noticed. What it writes next is whole.
#[test]
fn files_that_are_emptied_or_cut_off_under_a_running_agent_are_whole_after_its_next_renewal() {
    let mut stack = Stack::start(StackOptions {
        server: "agent_ttl = \"40s\"".into(),
        ..StackOptions::default()
    });
    let id = stack.agent_id();
    let paths = FILES.map(|file| stack.dir().join(file));
    for (path, halves_left) in [("/emptied", 0), ("/cut-off", 1)] {
        let serial = stack.agent_serial();
        for file in &paths {
            let good = std::fs::read(file).expect("the file");
            std::fs::write(file, &good[..good.len() * halves_left / 2]).expect("the file is damaged");
        }
        stack.create_entry(&Entry::for_me(path));
        stack.wait_identity(path);
        wait_until("a renewal", LIMIT, || stack.agent_serial() != serial);
        wait_until("both files to be whole", LIMIT, || {
            let is_json = |file| {
                let text = std::fs::read(file).expect("the file");
                serde_json::from_slice::<serde_json::Value>(&text).is_ok()
            };
            paths.iter().all(is_json)
        });
    }
    // A start needs all of both: the key of the SVID, the SVID and the bundle.
    stack.agent().kill_hard();
    serves_again(&mut stack);
    assert_eq!(stack.agent_id(), id);
    let said = stack.agent_lines().join("\n");
    assert!(
        !said.contains("corrupted") && !said.contains("agent attested"),
        "{said}"
    );
}

#[test]
fn a_file_that_is_empty_or_longer_than_it_was_written_is_named_and_left_alone() {
    let mut stack = Stack::start(StackOptions::default());
    stack.agent().terminate();
    for file in FILES {
        let path = stack.dir().join(file);
        let good = std::fs::read(&path).expect("the file");
        for broken in [Vec::new(), [&good[..], b"{"].concat(), b"[]".to_vec()] {
            std::fs::write(&path, &broken).expect("the file is broken");
            stack.start_agent(&[]);
            let name = Path::new(file)
                .file_name()
                .expect("a name")
                .to_string_lossy()
                .into_owned();
            stack.agent().wait_for_line(&name, LIMIT);
            assert_eq!(stack.agent().wait_exit(LIMIT).code(), Some(1), "{file}");
            assert_eq!(
                std::fs::read(&path).expect("the file"),
                broken,
                "{file} was overwritten"
            );
        }
        std::fs::write(&path, good).expect("the file is restored");
    }
    serves_again(&mut stack);
}

#[test]
fn a_file_that_is_cut_off_is_kept_aside_by_an_agent_that_can_attest_again() {
    let pod = AgentPod::start();
    let port = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port();
    let mut stack = Stack::server_only(pod.options(StackOptions {
        agent_blocks: format!("health_checks {{ listener_enabled = true bind_port = \"{port}\" }}"),
        ..StackOptions::default()
    }));
    let _mounted = pod.mount_bundle(stack.dir().join("bundle.pem"));
    stack.start_agent(&[]);
    stack.wait_agent();
    for file in FILES {
        assert!(stack.agent().terminate().success());
        let path = stack.dir().join(file);
        let good = std::fs::read(&path).expect("the file");
        let broken = &good[..good.len() / 2];
        std::fs::write(&path, broken).expect("the file is cut off");
        // Until there is a server again the agent has nothing to serve, and says why.
        stack.server().terminate();
        stack.start_agent(&[]);
        let said = stack.agent().wait_for_line("was corrupted", LIMIT);
        assert!(said.contains("attests anew") && said.contains(file), "{said}");
        let ready = || get(port, "/ready").unwrap_or_default();
        wait_until("the listener to tell", LIMIT, || {
            ready().contains("was corrupted")
        });
        stack.start_server();
        stack.wait_agent();
        stack.agent().wait_for_line("agent attested", LIMIT);
        let told = ready();
        assert!(
            told.starts_with("HTTP/1.1 200") && told.contains(".corrupt-"),
            "{told}"
        );
        let beginning = format!("{}.corrupt-", path.file_name().expect("a name").to_string_lossy());
        let kept: Vec<_> = std::fs::read_dir(path.parent().expect("a folder"))
            .expect("the data directory")
            .map(|entry| entry.expect("a file").path())
            .filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&beginning))
            })
            .collect();
        let [kept] = kept.as_slice() else {
            panic!("one file is kept aside: {kept:?}")
        };
        assert_eq!(std::fs::read(kept).expect("what was kept"), broken);
        let mode = std::fs::metadata(kept)
            .expect("what was kept")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    // What was written anew is good.
    stack.create_entry(&Entry::for_me("/again"));
    stack.wait_identity("/again");
    assert!(stack.agent().terminate().success());
    stack.start_agent(&[]);
    stack.wait_agent();
    let said = stack.agent_lines().join("\n");
    assert!(
        !said.contains("corrupted") && !said.contains("agent attested"),
        "{said}"
    );
}

#[test]
fn keys_of_another_agent_are_not_used_and_both_files_are_kept() {
    let mut stack = Stack::start(StackOptions::default());
    let mut other = Stack::start(StackOptions::default());
    stack.agent().terminate();
    other.agent().terminate();
    let [keys, data] = FILES.map(|file| stack.dir().join(file));
    let good = std::fs::read(&keys).expect("the keys");
    let foreign = std::fs::read(other.dir().join(FILES[0])).expect("the other's keys");
    let saved = std::fs::read(&data).expect("the data");
    std::fs::write(&keys, &foreign).expect("the keys are swapped");
    stack.start_agent(&[]);
    stack.agent().wait_for_line("its key is gone", LIMIT);
    stack.agent().wait_for_line("no usable SVID was saved", LIMIT);
    // A join token works once, so there is nothing else to attest with: a wrong configuration.
    assert_eq!(stack.agent().wait_exit(LIMIT).code(), Some(1));
    assert_eq!(std::fs::read(&keys).expect("the keys"), foreign);
    assert_eq!(std::fs::read(&data).expect("the data"), saved);
    std::fs::write(&keys, good).expect("the keys are restored");
    serves_again(&mut stack);
}

#[test]
fn data_of_another_trust_domain_is_refused_with_both_names_and_kept() {
    let mut stack = Stack::start(StackOptions::default());
    let mut other = Stack::start(StackOptions {
        trust_domain: "other.example".into(),
        ..StackOptions::default()
    });
    stack.agent().terminate();
    other.agent().terminate();
    let good = FILES.map(|file| std::fs::read(stack.dir().join(file)).expect("the file"));
    let foreign = FILES.map(|file| std::fs::read(other.dir().join(file)).expect("the other's file"));
    for (file, bytes) in FILES.iter().zip(&foreign) {
        std::fs::write(stack.dir().join(file), bytes).expect("the file is swapped");
    }
    stack.start_agent(&[]);
    let line = stack.agent().wait_for_line("other.example", LIMIT);
    assert!(
        line.contains("example.org") && line.contains("agent-data.json"),
        "{line}"
    );
    assert_eq!(stack.agent().wait_exit(LIMIT).code(), Some(1));
    for (file, bytes) in FILES.iter().zip(&foreign) {
        assert_eq!(
            &std::fs::read(stack.dir().join(file)).expect("the file"),
            bytes,
            "{file}"
        );
    }
    for (file, bytes) in FILES.iter().zip(good) {
        std::fs::write(stack.dir().join(file), bytes).expect("the file is restored");
    }
    serves_again(&mut stack);
}

fn serves_again(stack: &mut Stack) {
    stack.start_agent(&[]);
    stack.wait_agent();
    stack.create_entry(&Entry::for_me("/again"));
    stack.wait_identity("/again");
}
