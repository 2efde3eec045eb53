//! Limits that the operator sets, and connections that nobody uses.

use std::process::Command;

use finial_tests::{Program, StackOptions, finial, wait_until};

use super::{LIMIT, ONE, TWO, open_to_users, play};

#[test]
fn a_caller_over_the_configured_rate_is_refused_and_another_is_served() {
    let Some((stack, python)) = open_to_users(StackOptions {
        agent: "experimental { ratelimit { fetch_x509_svid = 5 } }".into(),
        ..StackOptions::default()
    }) else {
        return;
    };
    let calls = |uid: u32| {
        let scenario = format!(
            "os.setuid({uid})\nsock = connect(path)\nsay(*[call(sock, 2 * n + 1) for n in range(40)])"
        );
        play(&stack, &python, &[], &scenario).join(" ")
    };
    let said = calls(ONE);
    let answers: Vec<&str> = said.split(' ').collect();
    assert!(
        answers[..5].iter().all(|answer| *answer == stack.id("/one")),
        "{said}"
    );
    assert!(answers.contains(&"refused"), "{said}");
    let other = calls(TWO);
    assert!(other.starts_with(&stack.id("/two")), "{other}");
}

#[test]
fn connections_of_one_user_beyond_its_share_are_closed_and_the_others_get_theirs() {
    let Some((mut stack, python)) = open_to_users(StackOptions::default()) else {
        return;
    };
    stack.agent().terminate();
    let mut few_files = Command::new("sh");
    few_files
        .args(["-c", "ulimit -n 600 && exec \"$0\" \"$@\""])
        .arg(finial());
    few_files
        .args(["agent", "run", "-config"])
        .arg(stack.dir().join("agent.conf"));
    let agent = Program::start("agent", &mut few_files);
    stack.wait_identity("/me");
    let open = || {
        std::fs::read_dir(format!("/proc/{}/fd", agent.pid()))
            .expect("the agent's files")
            .count()
    };
    let before = open();
    let said = play(
        &stack,
        &python,
        &[],
        &format!(
            "
ours, theirs = socket.socketpair()
if os.fork() == 0:
    os.setuid({ONE})
    socks = [connect(path) for _ in range(300)]
    say(*[call(sock) for sock in socks])
    theirs.send(b'x')
    theirs.recv(1)
    os._exit(0)
os.setuid({TWO})
ours.recv(1)
say(call(connect(path)))
ours.send(b'x')
os.wait()
"
        ),
    );
    let (one, two) = (stack.id("/one"), stack.id("/two"));
    let served = said[0].split(' ').filter(|answer| *answer == one).count();
    // Half of what is left of 600 files, two for each connection.
    assert_eq!(served, (600 - 128) / 2 / 2);
    assert_eq!(said[1..], [two]);
    wait_until("the agent to close what was left", LIMIT, || open() <= before + 2);
}
