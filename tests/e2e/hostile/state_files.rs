//! Files of the agent that were damaged. The agent continues to serve, shows the reason, and does not overwrite a file
//! with less content.

use std::path::Path;

use finial_tests::{Entry, Stack, StackOptions};

use super::LIMIT;

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
