//! A pid that comes to mean another process, in a pid namespace in which pids are scarce.

use finial_tests::{Entry, Peer, Program, Stack, StackOptions, absent, finial, wait_until};

use super::{LIMIT, PID_NAMESPACE, permitted, scene};

/// Pids below 300 are not given twice, so a first process has to come after those.
const SCENARIO: &str = "
import subprocess, time
try:
    with open('/proc/sys/kernel/pid_max', 'w') as file:
        file.write('500')
except OSError as error:
    say('not permitted:', error)
    sys.exit()
agent = subprocess.Popen(sys.argv[2:])
def identity():
    try:
        return call(connect(path))
    except OSError:
        return 'no socket'
while not identity().startswith('spiffe://'):
    time.sleep(0.05)
say('ready')
while not os.path.exists(path + '.go'):
    time.sleep(0.05)
def fork(work):
    pid = os.fork()
    if pid == 0:
        work(os.getpid())
        os._exit(0)
    return pid
burnt = 0
while burnt < 320:
    burnt = fork(lambda pid: None)
    os.waitpid(burnt, 0)
ours, theirs = socket.socketpair()
for attempt in range(5):
    def first(pid):
        sock = accepted(connect(path))
        socket.send_fds(theirs, [b'x'], [sock.fileno()])
    pid = fork(first)
    _, files, _, _ = socket.recv_fds(ours, 1, 1)
    os.waitpid(pid, 0)
    old = socket.socket(fileno=files[0])
    old.settimeout(30)
    def successor(mine):
        if mine == pid:
            say('successor', call(connect(path)))
            theirs.send(b'y')
            theirs.recv(1)
    for _ in range(2000):
        now = fork(successor)
        if now == pid:
            ours.recv(1)
            say('predecessor', call(old))
            ours.send(b'z')
            os.waitpid(now, 0)
            break
        os.waitpid(now, 0)
    else:
        continue
    break
say('done')
agent.terminate()
agent.wait()
";

#[test]
fn a_process_that_got_the_pid_of_a_caller_that_ended_is_not_taken_for_it() {
    let Some(python) = Peer::find(
        "FINIAL_TEST_PYTHON",
        "python3",
        &["-c", "import socket; socket.send_fds"],
    ) else {
        return;
    };
    let stack = Stack::server_only(StackOptions::default());
    stack.write_bundle();
    let token = stack.join_token();
    if !permitted(&PID_NAMESPACE, "a pid namespace") {
        return;
    }
    let mut command = scene(&stack, &python, &PID_NAMESPACE, SCENARIO);
    command.arg(finial()).args(["agent", "run", "-config"]);
    command
        .arg(stack.dir().join("agent.conf"))
        .args(["-joinToken", &token]);
    let mut program = Program::start("namespace", &mut command);
    let mut refused = false;
    wait_until("the agent to attest", LIMIT, || {
        refused = program
            .lines()
            .iter()
            .any(|line| line.starts_with("not permitted"));
        refused
            || stack
                .server_cli_ok(&["agent", "count"])
                .stdout
                .contains("1 attested agent")
    });
    if refused {
        absent("pids of a namespace cannot be made scarce here");
        return;
    }
    stack.create_entry(&Entry::for_me("/me"));
    program.wait_for_line("ready", LIMIT);

    // The other way round: a caller outside of the agent's namespace has no pid there.
    let outside = stack.agent_cli(&["api", "fetch", "x509", "-timeout", "2s"]);
    assert!(!outside.status.success(), "{}", outside.stdout);
    program.wait_for_line("pid is not visible to the agent", LIMIT);

    std::fs::write(stack.agent_socket().with_extension("sock.go"), "").expect("a file is written");
    program.wait_for_line("done", LIMIT);
    let said = program.lines();
    let said: Vec<&str> = said
        .iter()
        .filter_map(|line| {
            line.strip_prefix("successor ")
                .or(line.strip_prefix("predecessor "))
        })
        .collect();
    assert_eq!(said, [stack.id("/me").as_str(), "refused"]);
}
