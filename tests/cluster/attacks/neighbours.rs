//! Pods that see more of their node than they should: all processes, all sockets.

use std::sync::OnceLock;

use serde_json::{Value, json};

use super::{NODE_FOLDER, NODE_SOCKET, Scene, denied, privileged, text};
use crate::workload::SOCKET;

/// A pod and another one on its node that is privileged, sees all processes and has the node's folder of sockets.
struct Neighbours {
    scene: Scene,
    victim: Value,
}

impl Neighbours {
    fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Neighbours>> = OnceLock::new();
        let shared = SHARED.get_or_init(|| {
            let scene = Scene::set("attack-neighbours")?;
            scene.cluster().apply(&scene.pod("victim").manifest());
            scene.start("spy", &privileged(scene.pod("spy")));
            let victim = scene.start("victim", &scene.pod("victim"));
            Some(Neighbours { scene, victim })
        });
        shared.as_ref()
    }

    /// The first process of the victim's container, as the spy sees it.
    fn victims_pid(&self) -> String {
        let container = text(&self.victim["status"]["containerStatuses"][0]["containerID"]);
        let id = container.trim_start_matches("containerd://");
        let script = format!("grep -l {id} /proc/[0-9]*/cgroup | head -n 1 | cut -d / -f 3");
        let found = self.scene.cluster().shell(&self.scene.space, "spy", &script);
        let pid = found.trim();
        assert!(!pid.is_empty(), "the spy does not see the victim's process");
        pid.to_owned()
    }
}

/// `hostPID` shows a pod the processes of others; what the agent sees of the pod stays the same.
#[test]
fn a_pod_that_sees_all_processes_and_the_nodes_socket_gets_its_own_identity_alone() {
    let Some(neighbours) = Neighbours::shared() else {
        return;
    };
    let scene = &neighbours.scene;
    let fetched = scene.client("spy", &[], NODE_SOCKET).ask_ok(&["x509"]);
    assert_eq!(fetched["ids"], json!([scene.id("spy")]));
}

/// A process takes on the namespaces of another and stays in the control groups in which it was started, by which it
/// is known: on the victim's own socket, seen where the victim sees it, it is a stranger.
#[test]
fn a_process_that_enters_the_namespaces_of_another_pod_gets_nothing_of_it() {
    let Some(neighbours) = Neighbours::shared() else {
        return;
    };
    let pid = neighbours.victims_pid();
    let enter = ["nsenter", "-t", &pid, "-m", "-u", "-i", "-n", "-p"];
    let mut client = neighbours.scene.client("spy", &enter, SOCKET);
    assert_eq!(client.ask(&["x509"]), Err(denied()));
    assert_eq!(client.ask(&["jwt", "audience"]), Err(denied()));
    // The victim itself is served there.
    let own = neighbours.scene.client("victim", &[], SOCKET).ask_ok(&["x509"]);
    assert_eq!(own["ids"], json!([neighbours.scene.id("victim")]));
}

/// The folder says one pod and the process is of another: docs/security.md promises a refusal.
#[test]
fn the_socket_of_another_pod_is_of_no_use_to_a_privileged_neighbour() {
    let Some(neighbours) = Neighbours::shared() else {
        return;
    };
    let uid = text(&neighbours.victim["metadata"]["uid"]);
    let socket = format!("{NODE_FOLDER}/csi/pods/{uid}/sockets/spire-agent.sock");
    let mut client = neighbours.scene.client("spy", &[], &socket);
    assert_eq!(client.ask(&["x509"]), Err(denied()));
    assert_eq!(client.ask(&["jwt", "audience"]), Err(denied()));
}
