//! What is left of a pod that was deleted.

use finial_tests::{Output, Program, wait_until};
use serde_json::json;

use super::{NODE_FOLDER, NODE_SOCKET, Scene, denied, privileged, text};
use crate::cluster::READY;
use crate::door::PUMP;
use crate::workload::{SOCKET, Workload};

/// Connects to the Workload API and gives the connection away, then lives on.
const GIVER: &str = "
import socket, sys, time
to_agent = socket.socket(socket.AF_UNIX)
to_agent.connect(sys.argv[1])
to_taker = socket.socket(socket.AF_UNIX)
to_taker.connect(sys.argv[2])
socket.send_fds(to_taker, [b'x'], [to_agent.fileno()])
print('given', flush=True)
time.sleep(86400)
";
/// Takes a connection and lets one client use it.
const TAKER: &str = "
import os, sys
def listen(path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    os.chmod(path, 0o777)
    listener.listen()
    return listener
hand, client = listen(sys.argv[1]), listen(sys.argv[2])
print('ready', flush=True)
_, descriptors, _, _ = socket.recv_fds(hand.accept()[0], 1, 1)
agent = socket.socket(fileno=descriptors[0])
# The agent closes a connection that says nothing, so a client comes first.
print('taken', flush=True)
user = client.accept()[0]
pump_both(agent, user)
";

/// A connection is the process's that opened it, wherever it went since: with the pod end its socket, its entry, its
/// streams, and what its connections are good for.
#[test]
fn of_a_deleted_pod_neither_socket_nor_identity_nor_a_copied_connection_is_left() {
    let Some(scene) = Scene::set("attack-remains") else {
        return;
    };
    let (cluster, space) = (scene.cluster(), scene.space.as_str());
    // Both see a folder of the node, as careless neighbours might.
    let meeting = |pod: Workload| {
        let mount = json!({"name": "meeting", "mountPath": "/meeting"});
        let volume =
            json!({"name": "spiffe-workload-api", "mountPath": "/spiffe-workload-api", "readOnly": true});
        let place = json!({"path": "/var/lib/meeting", "type": "DirectoryOrCreate"});
        pod.main("volumeMounts", json!([mount, volume]))
            .volume(json!({"name": "meeting", "hostPath": place}))
    };
    cluster.apply(&meeting(scene.pod("taker")).manifest());
    let giver = scene.start("giver", &meeting(scene.pod("giver")));
    cluster.wait_pod(space, "taker");
    let python = |pod: &str, script: &str, arguments: &[&str]| {
        let mut command = cluster.enter("kubectl");
        command.args([
            "-n",
            space,
            "exec",
            pod,
            "--",
            scene.clients.python(),
            "-c",
            script,
        ]);
        command.args(arguments);
        Program::start(pod, &mut command)
    };
    let (hand, client) = ("/meeting/hand", "/meeting/client");
    let mut taking = python("taker", &[PUMP, TAKER].concat(), &[hand, client]);
    taking.wait_for_line("ready", READY);
    let mut giving = python("giver", GIVER, &[SOCKET, hand]);
    giving.wait_for_line("given", READY);
    taking.wait_for_line("taken", READY);

    // A pod may give away what it has: the agent answers whoever opened the connection.
    let mut thief = scene.client("taker", &[], client);
    assert_eq!(thief.ask_ok(&["x509"])["ids"], json!([scene.id("giver")]));
    let opened = thief.mark();
    thief.ask_ok(&["watch"]);
    thief.update(opened, "the giver's identity", |update| {
        update["ids"] == json!([scene.id("giver")])
    });

    cluster.kubectl_ok(&["-n", space, "delete", "pod", "giver", "--wait"]);
    assert_eq!(thief.end(opened).code, "unavailable");
    thief.ask(&["x509"]).expect_err("the giver is gone");
    thief.ask(&["jwt", "audience"]).expect_err("the giver is gone");

    let uid = text(&giver["metadata"]["uid"]);
    let folder = format!("{NODE_FOLDER}/csi/pods/{uid}");
    wait_until("the pod's folder to go", READY, || {
        !Output::of(cluster.enter_node("node-a", "test").args(["-e", &folder]))
            .status
            .success()
    });
    let selector = format!("k8s:pod-uid:{uid}");
    let entries = || {
        scene
            .installation
            .server_json(&["entry", "show", "-selector", &selector])
    };
    wait_until("the pod's entry to go", READY, || {
        entries()["entries"].as_array().is_none_or(Vec::is_empty)
    });
}

/// Without its pod's control groups a process is in no pod.
#[test]
fn a_process_that_left_its_pods_control_groups_has_no_identity() {
    let Some(scene) = Scene::set("attack-escape") else {
        return;
    };
    scene.start("fugitive", &privileged(scene.pod("fugitive")));
    let own = scene.client("fugitive", &[], NODE_SOCKET).ask_ok(&["x509"]);
    assert_eq!(own["ids"], json!([scene.id("fugitive")]));
    let leave = "for controller in cpu memory pids devices freezer blkio cpuset cpuacct; do
        mkdir -p /tmp/$controller
        mount -t cgroup -o $controller cgroup /tmp/$controller 2>/dev/null && echo $$ >/tmp/$controller/cgroup.procs
      done
      mkdir -p /tmp/named && mount -t cgroup -o none,name=systemd cgroup /tmp/named && echo $$ >/tmp/named/cgroup.procs
      exec \"$@\"";
    let before = ["sh", "-c", leave, "sh"];
    let mut client = scene.client("fugitive", &before, NODE_SOCKET);
    assert_eq!(client.ask(&["x509"]), Err(denied()));
}
