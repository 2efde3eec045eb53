//! Callers and agents in namespaces within namespaces: a pid is what the agent's own namespace calls it, a uid what the
//! agent's own namespace calls it, and who has neither there is refused.

use finial_tests::{Entry, Peer, Program, Stack, StackOptions, finial, wait_until};

use super::{LIMIT, ONE, PID_NAMESPACE, TWO, open_to_users, permitted, play, scene};

/// Runs the scenario, which comes first, once more in a namespace below: there `below` holds.
const BELOW: &str = "
import subprocess
with open('/proc/self/cmdline') as file:
    scenario = file.read().split('\\0')[2]
below = sys.argv[2:] == ['below']
def descend():
    unshare = 'unshare --pid --fork --kill-child --mount --propagation private --mount-proc'.split()
    subprocess.run([*unshare, sys.executable, '-c', scenario, path, 'below'], check=True)
";

#[test]
fn callers_of_several_levels_of_pid_namespaces_are_attested_by_the_pids_that_the_agent_sees() {
    let twice = [PID_NAMESPACE, PID_NAMESPACE].concat();
    if !permitted(&twice, "a pid namespace in a pid namespace") {
        return;
    }
    let Some((stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    // At each level the caller has the pid 1, which to the agent is a process of root.
    let said = play(
        &stack,
        &python,
        &PID_NAMESPACE,
        &format!(
            "{BELOW}
if not below:
    descend()
os.setuid({ONE} if below else {TWO})
say(os.getpid(), call(connect(path)))
"
        ),
    );
    assert_eq!(
        said,
        [
            format!("1 {}", stack.id("/one")),
            format!("1 {}", stack.id("/two"))
        ]
    );
}

#[test]
fn a_user_namespace_in_a_pid_namespace_makes_nobody_root() {
    let both = [&PID_NAMESPACE[..], &["unshare", "--user", "--map-root-user"]].concat();
    if !permitted(&both, "a user namespace in a pid namespace") {
        return;
    }
    let Some((stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    // With a pid namespace of its own again it is what rootless containers are.
    let user_namespace = within_user_namespace("0x10000000");
    let rootless_container = within_user_namespace("0x30000000");
    let said = play(
        &stack,
        &python,
        &PID_NAMESPACE,
        &format!("{user_namespace}{rootless_container}"),
    );
    let one = stack.id("/one");
    assert_eq!(
        said,
        [format!("uid 0, {one}"), format!("uid 0, {one}")],
        "not /me, which is root's"
    );
}

/// A process of the first user makes these namespaces and calls from them as their root. Its parent, which is root
/// outside, says who is root within.
fn within_user_namespace(flags: &str) -> String {
    format!(
        "
import ctypes
ours, theirs = socket.socketpair()
child = os.fork()
if child == 0:
    os.setuid({ONE})
    assert ctypes.CDLL(None).unshare({flags}) == 0
    theirs.send(b'x')
    theirs.recv(1)
    # Only children are in a pid namespace that was made.
    if os.fork() == 0:
        say(f'uid {{os.getuid()}},', call(connect(path)))
    else:
        os.wait()
    os._exit(0)
ours.recv(1)
with open(f'/proc/{{child}}/uid_map', 'w') as file:
    file.write('0 {ONE} 1')
ours.send(b'y')
os.wait()
"
    )
}

/// The agent runs in a namespace; beside it a caller, and one in a namespace below.
const WITH_AGENT: &str = "
import signal, time
agent = None if below else subprocess.Popen(sys.argv[2:])
def identity():
    try:
        return call(connect(path))
    except OSError:
        return 'no socket'
while not below and not identity().startswith('spiffe://'):
    time.sleep(0.05)
say('below' if below else 'beside', os.getpid(), identity())
if not below:
    descend()
    say('ready')
    signal.pause()
";

#[test]
fn an_agent_in_a_pid_namespace_refuses_callers_that_have_no_pid_there() {
    let twice = [PID_NAMESPACE, PID_NAMESPACE].concat();
    if !permitted(&twice, "a pid namespace in a pid namespace") {
        return;
    }
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
    let mut command = scene(&stack, &python, &PID_NAMESPACE, &format!("{BELOW}{WITH_AGENT}"));
    command.arg(finial()).args(["agent", "run", "-config"]);
    command
        .arg(stack.dir().join("agent.conf"))
        .args(["-joinToken", &token]);
    let mut namespace = Program::start("namespace", &mut command);
    wait_until("the agent to attest", LIMIT, || {
        let count = stack.server_cli_ok(&["agent", "count"]);
        count.stdout.contains("1 attested agent")
    });
    // For every process that has the agent's own user.
    stack.create_entry(&Entry::for_me("/me"));
    namespace.wait_for_line("ready", LIMIT);
    let me = stack.id("/me");
    let served = |line: &String| line == &format!("beside 1 {me}") || line == &format!("below 1 {me}");
    let lines = namespace.lines();
    assert_eq!(lines.iter().filter(|line| served(line)).count(), 2, "{lines:?}");

    let scenario = "say(call(connect(path)))";
    let outside: [&[&str]; 2] = [&[], &PID_NAMESPACE];
    for of_caller in outside {
        let said = play(&stack, &python, of_caller, scenario);
        assert_eq!(said, ["refused"], "{of_caller:?}");
    }
    namespace.wait_for_line("pid is not visible to the agent", LIMIT);
    let command = stack.agent_cli(&["api", "fetch", "x509", "-timeout", "5s"]);
    assert!(
        !command.status.success() && !command.stdout.contains("spiffe://"),
        "{}",
        command.stdout
    );
}
