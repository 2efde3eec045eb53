//! Malicious callers and environments, one test for each attack; its name says what must happen.

mod callers;
mod flood;
mod greedy;
mod http2;
mod namespaces;
mod pid_reuse;
mod state_files;
mod unfinished;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use finial_tests::{Entry, Output, Peer, Stack, StackOptions, absent, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
/// Held by tests that keep all processors busy or measure time.
static PROCESSORS: Mutex<()> = Mutex::new(());

/// A mount namespace of its own too, so that no mount of a test is ever seen outside.
const PID_NAMESPACE: [&str; 8] = [
    "unshare",
    "--pid",
    "--fork",
    "--kill-child",
    "--mount",
    "--propagation",
    "private",
    "--mount-proc",
];

/// Users that need no name on this machine.
const ONE: u32 = 64_001;
const TWO: u32 = 64_002;

/// A stack whose socket every user reaches, with identities for two users, `/one` and `/two`.
fn open_to_users(options: StackOptions) -> Option<(Stack, Peer)> {
    if !rustix::process::geteuid().is_root() {
        absent("only root can be several users");
        return None;
    }
    let python = Peer::find(
        "FINIAL_TEST_PYTHON",
        "python3",
        &["-c", "import socket; socket.send_fds"],
    )?;
    let stack = Stack::start(options);
    std::fs::set_permissions(stack.dir(), std::fs::Permissions::from_mode(0o755)).expect("a mode is set");
    stack.create_entry(&Entry::for_me("/me"));
    for (uid, path) in [(ONE, "/one"), (TWO, "/two")] {
        let entry = Entry {
            selectors: vec![format!("unix:uid:{uid}")],
            ..Entry::for_me(path)
        };
        stack.create_entry(&entry);
    }
    stack.wait_identity("/me");
    let scenario = format!("os.setuid({TWO})\nsay(call(connect(path)))");
    wait_until("the identities of all users", LIMIT, || {
        play(&stack, &python, &[], &scenario) == [stack.id("/two")]
    });
    Some((stack, python))
}

/// Lines that a scenario in Python says; `before` is the program that starts it, with its arguments.
fn play(stack: &Stack, python: &Peer, before: &[&str], scenario: &str) -> Vec<String> {
    let output = Output::of(&mut scene(stack, python, before, scenario)).ok("the scenario");
    output.stdout.lines().map(str::to_owned).collect()
}

fn scene(stack: &Stack, python: &Peer, before: &[&str], scenario: &str) -> Command {
    let mut command = match before {
        [] => python.command(),
        [program, args @ ..] => {
            let mut command = Command::new(program);
            command.args(args).arg(python.program());
            command
        }
    };
    let text = format!("{}{scenario}\n", include_str!("caller.py"));
    command.arg("-c").arg(text).arg(stack.agent_socket());
    command
}

/// Whether a program with these arguments runs, as where namespaces may be made; says that it is absent if not.
fn permitted(program: &[&str], what: &str) -> bool {
    let runs = Command::new(program[0])
        .args(&program[1..])
        .arg("true")
        .output()
        .is_ok_and(|output| output.status.success());
    if !runs {
        absent(&format!("{what} is not permitted here"));
    }
    runs
}

fn processors() -> MutexGuard<'static, ()> {
    PROCESSORS.lock().unwrap_or_else(PoisonError::into_inner)
}
