//! What an operator tells a running process by signals: SIGINT to end it, SIGUSR2 after the log was rotated, SIGUSR1 after
//! a file with a plugin's data was changed.

use std::path::Path;
use std::time::Duration;

use finial_tests::{Entry, Program, Stack, StackOptions, finial, wait_until};
use rustix::process::Signal;
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn an_interrupted_process_ends_in_order() {
    let mut stack = Stack::start(StackOptions::default());
    for program in [Stack::agent, Stack::server] {
        let program = program(&mut stack);
        program.signal(Signal::INT);
        let ended = program.wait_exit(LIMIT);
        assert_eq!(ended.code(), Some(0), "{}", program.lines().join("\n"));
    }
    let left = [stack.agent_socket(), stack.server_socket()].map(|socket| socket.exists());
    assert_eq!(left, [false, false], "sockets are removed");
}

#[test]
fn a_rotated_log_goes_on_in_a_new_file_and_reading_plugin_data_again_ends_nothing() {
    let logs = TempDir::with_prefix("finial-").expect("a temporary directory");
    let file = |name: &str| logs.path().join(name);
    let setting = |name: &str| format!("log_file = \"{}\"", file(name).display());
    let mut stack = Stack::start(StackOptions {
        server: setting("server.log"),
        agent: setting("agent.log"),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/me"));
    rotate(stack.server(), &file("server.log"), "read at start");
    rotate(
        stack.agent(),
        &file("agent.log"),
        "no plugin reads its data from a file",
    );
    stack.wait_identity("/me");
    assert!(stack.server().is_running() && stack.agent().is_running());
    assert!(stack.agent().terminate().success() && stack.server().terminate().success());
}

/// Renames the log as logrotate does, has it opened again, and has plugins' data read again.
fn rotate(program: &mut Program, log: &Path, says: &str) {
    let old = log.with_extension("log.1");
    wait_until("the log", LIMIT, || log.exists());
    std::fs::rename(log, &old).expect("the log is renamed");
    program.signal(Signal::USR2);
    let has = |what: &str| std::fs::read_to_string(log).is_ok_and(|text| text.contains(what));
    wait_until("a new log", LIMIT, || has("log file reopened"));
    program.signal(Signal::USR1);
    wait_until("the other signal", LIMIT, || has(says));
    assert!(program.is_running());
    let former = std::fs::read_to_string(old).expect("the former log");
    assert!(!former.contains(says), "{former}");
}

#[test]
fn an_attestors_data_is_read_again_when_the_agent_is_told_to_and_a_bad_file_changes_nothing() {
    let dir = TempDir::with_prefix("finial-").expect("a temporary directory");
    let data = dir.path().join("unix.conf");
    let write = |text: &str| std::fs::write(&data, text).expect("the file is written");
    write("discover_workload_path = false");
    let mut stack = Stack::start(StackOptions {
        unix_attestor_file: Some(data.clone()),
        ..StackOptions::default()
    });
    let program = std::fs::canonicalize(finial()).expect("the program");
    stack.create_entry(&Entry::for_me("/me"));
    stack.create_entry(&Entry {
        path: "/by-path",
        selectors: vec![format!("unix:path:{}", program.display())],
        extra: Vec::new(),
    });
    stack.wait_identity("/me");
    let fetched = |stack: &Stack| stack.agent_cli(&["api", "fetch", "x509"]).stdout;
    write("discover_workload_path = true");
    assert!(!fetched(&stack).contains("/by-path"), "nobody told the agent");
    stack.agent().signal(Signal::USR1);
    stack
        .agent()
        .wait_for_line("workload attestor reconfigured", LIMIT);
    stack.wait_identity("/by-path");
    write("discover_workload_path = 7");
    stack.agent().signal(Signal::USR1);
    let said = stack.agent().wait_for_line("its former settings stay", LIMIT);
    assert!(
        said.contains("unix.conf") && said.contains("discover_workload_path"),
        "{said}"
    );
    assert!(fetched(&stack).contains("/by-path"));
    assert!(stack.agent().is_running());

    // A start is another matter: there are no former settings.
    assert!(stack.agent().terminate().success());
    stack.start_agent(&[]);
    assert_eq!(stack.agent().wait_exit(LIMIT).code(), Some(1));
    let said = stack.agent_lines().join("\n");
    assert!(
        said.contains("plugin_data_file") && said.contains("unix.conf"),
        "{said}"
    );
}
