//! Processes that pretend to be others.

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use finial_tests::{Entry, Output, Peer, Stack, StackOptions, wait_until};

use super::{LIMIT, ONE, PID_NAMESPACE, TWO, open_to_users, permitted, play, scene};
use crate::raw_http2::{FETCH, SECURITY, Split, connect, exchange};

const BUNDLES: &str = "/SpiffeWorkloadAPI/FetchX509Bundles";

#[test]
fn a_connection_that_is_passed_on_speaks_for_the_process_that_connected_while_that_lives() {
    let Some((stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    let said = play(
        &stack,
        &python,
        &[],
        &format!(
            "
ours, theirs = socket.socketpair()
if os.fork() == 0:
    os.setuid({ONE})
    sock = connect(path)
    socket.send_fds(theirs, [b'x'], [sock.fileno()])
    theirs.recv(1)
    os._exit(0)
os.setuid({TWO})
_, files, _, _ = socket.recv_fds(ours, 1, 1)
sock = socket.socket(fileno=files[0])
sock.settimeout(30)
say(call(sock, 1))
say(call(connect(path)))
ours.send(b'x')
os.wait()
say(call(sock, 3))
"
        ),
    );
    assert_eq!(said, [stack.id("/one"), stack.id("/two"), "refused".to_owned()]);
}

#[test]
fn a_child_that_keeps_the_connection_of_a_process_that_ended_gets_nothing() {
    let Some((mut stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    for accepted in ["accepted(sock)", "pass"] {
        let said = play(
            &stack,
            &python,
            &[],
            &format!(
                "
gone, told = os.pipe()
if os.fork() == 0:
    os.setuid({ONE})
    sock = connect(path)
    {accepted}
    if os.fork() == 0:
        os.read(gone, 1)
        say(call(sock))
    os._exit(0)
os.wait()
os.write(told, b'x')
"
            ),
        );
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(matches!(said[0].as_str(), "refused" | "closed"), "{said:?}");
    }
    stack
        .agent()
        .wait_for_line("process ended during attestation", LIMIT);
}

#[test]
fn a_process_that_executes_another_program_after_it_connected_gets_nothing() {
    let Some((mut stack, python)) = open_to_users(StackOptions {
        unix_attestor: "discover_workload_path = true".into(),
        ..StackOptions::default()
    }) else {
        return;
    };
    let said = play(
        &stack,
        &python,
        &[],
        &format!(
            "
import shutil
program = shutil.which('sleep')
if os.fork():
    _, status = os.wait()
    assert os.WIFSIGNALED(status), 'it ended by itself'
    sys.exit()
os.setuid({ONE})
executed, before = os.pipe()
sock = accepted(connect(path))
caller = os.getpid()
if os.fork() == 0:
    os.close(before)
    os.read(executed, 1)
    say(call(sock))
    os.kill(caller, 9)
    os._exit(0)
# Nothing is looked for after setuid: the interpreter may lie where that user reads nothing.
os.execv(program, ['sleep', '60'])
"
        ),
    );
    assert_eq!(said, ["refused"]);
    stack
        .agent()
        .wait_for_line("process executes another program than when it connected", LIMIT);
}

#[test]
fn a_caller_in_a_pid_namespace_of_its_own_is_attested_by_the_pid_that_the_agent_sees() {
    if !permitted(&PID_NAMESPACE, "a pid namespace") {
        return;
    }
    let Some((stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    let scenario = format!("os.setuid({ONE})\nsay(os.getpid())\nsay(call(connect(path)))");
    let said = play(&stack, &python, &PID_NAMESPACE, &scenario);
    assert_eq!(said, ["1".to_owned(), stack.id("/one")]);
}

#[test]
fn root_of_a_user_namespace_is_the_user_that_the_agent_sees() {
    if !permitted(&["unshare", "--user", "--map-root-user"], "a user namespace") {
        return;
    }
    let Some((stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    // Only one process of the user namespace: its parent, which is root outside, says who is root within.
    let said = play(
        &stack,
        &python,
        &[],
        &format!(
            "
import ctypes
CLONE_NEWUSER = 0x10000000
ours, theirs = socket.socketpair()
child = os.fork()
if child == 0:
    os.setuid({ONE})
    assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
    theirs.send(b'x')
    theirs.recv(1)
    say(os.getuid())
    say(call(connect(path)))
    os._exit(0)
ours.recv(1)
with open(f'/proc/{{child}}/uid_map', 'w') as file:
    file.write('0 {ONE} 1')
ours.send(b'y')
os.wait()
"
        ),
    );
    assert_eq!(
        said,
        ["0".to_owned(), stack.id("/one")],
        "not /me, which is root's"
    );
}

/// Each on a connection of its own.
const FAILING: usize = 100_000;
/// Those of them that are processes of their own, and end before they are answered.
const ENDED: usize = 2_000;

const END_BEFORE_THE_ANSWER: &str = "
for _ in range(int(sys.argv[2])):
    if os.fork() == 0:
        connect(path).sendall(request(1))
        os._exit(0)
    os.wait()
";

/// Each of them fails in one of six ways.
#[test]
fn a_hundred_thousand_failing_callers_leave_no_descriptor_behind() {
    let Some(python) = Peer::find("FINIAL_TEST_PYTHON", "python3", &["-c", "import socket"]) else {
        return;
    };
    let _busy = super::processors();
    // Also for root.
    let mut stack = Stack::start(StackOptions {
        agent: "experimental { ratelimit { fetch_x509_bundles = 1 } }".into(),
        ..StackOptions::default()
    });
    let agent = stack.agent().pid();
    let socket = stack.agent_socket();
    let open = || {
        std::fs::read_dir(format!("/proc/{agent}/fd"))
            .expect("the agent's files")
            .count()
    };
    let refused = |path: &str, headers: &[(&str, &str)]| {
        let answer = exchange(&socket, Some("localhost"), path, headers, Split::Whole);
        assert_eq!(answer.data_bytes, 0, "{answer:?}");
        answer
    };
    refused(FETCH, &[SECURITY]);
    let at_first = open();
    let (begun, made, over_limit) = (Instant::now(), AtomicUsize::new(0), AtomicUsize::new(0));
    let mut ending = scene(&stack, &python, &[], END_BEFORE_THE_ANSWER);
    ending.arg(ENDED.to_string());
    std::thread::scope(|scope| {
        scope.spawn(|| Output::of(&mut ending).ok("callers that end"));
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let number = made.fetch_add(1, Ordering::Relaxed);
                    if number >= FAILING - ENDED {
                        return;
                    }
                    match number % 5 {
                        0 => drop(refused(FETCH, &[SECURITY])),
                        1 => drop(refused(FETCH, &[])),
                        2 => {
                            let answer = refused(BUNDLES, &[SECURITY]);
                            over_limit.fetch_add(usize::from(answer.trailer_is("14")), Ordering::Relaxed);
                        }
                        3 => drop(connect(&socket)),
                        _ => drop(connect(&socket).write_all(b"PRI * HTTP/2.0\r\n")),
                    }
                }
            });
        }
    });
    let (took, over_limit) = (begun.elapsed(), over_limit.into_inner());
    println!("{FAILING} failing callers in {took:?}, {over_limit} of them over their limit");
    // One a second is within it.
    let within_limit = usize::try_from(took.as_secs()).expect("seconds") + 2;
    assert!(over_limit + within_limit >= (FAILING - ENDED) / 5);
    let gone =
        |line: &String| line.contains("process ended during attestation") || line.contains("process is gone");
    assert!(stack.agent_lines().iter().any(gone), "no caller was seen to end");
    wait_until("the agent to close what it opened", LIMIT, || {
        open() <= at_first + 2
    });
    stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");
}
