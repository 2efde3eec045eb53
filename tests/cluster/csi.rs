//! The CSI volume where agents see nothing of their nodes' processes: pods are known by their sockets alone.

use serde_json::json;

use crate::installation::{Installation, TRUST_DOMAIN, fetch_at};
use crate::turns::Turn;
use crate::workload::Workload;

#[test]
fn without_host_pid_a_pod_is_known_by_its_volume_and_the_nodes_socket_knows_nobody() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let hidden = ["--set", "spire-agent.hostPID=false"];
    let upgraded = installation
        .helm(&[&installation.with_values(&["upgrade", "finial"])[..], &hidden].concat())
        .expect("it installed before");
    assert!(upgraded.status.success(), "{}", upgraded.stderr);
    installation.wait_ready();
    for node in cluster.nodes() {
        let pod = installation.agent_pod(&node);
        let pod = cluster.get(&["-n", "spire-system", "pod", &pod]);
        assert_ne!(pod["spec"]["hostPID"], true, "{pod}");
    }

    let space = cluster.namespace("csi-hidden");
    let pod = Workload::new(&space, "web").node("node-a").restricted();
    cluster.apply(&pod.manifest());
    let folder = "/run/finial/agent-sockets";
    let with_folder = Workload::new(&space, "without-volume")
        .node("node-a")
        .main("volumeMounts", json!([{"name": "node", "mountPath": folder}]))
        .spec("volumes", json!([{"name": "node", "hostPath": {"path": folder}}]));
    cluster.apply(&with_folder.manifest());
    installation.wait_for_identity(&space, "web", &id(&space));
    cluster.wait_pod(&space, "without-volume");
    let asked = ask(installation, &space, &format!("{folder}/spire-agent.sock"));
    assert!(
        asked.contains("Unavailable") && !asked.contains(&id(&space)),
        "{asked}"
    );
    cluster.kubectl_ok(&["delete", "namespace", &space, "--wait=false"]);
}

fn ask(installation: &Installation<'_>, space: &str, socket: &str) -> String {
    let exec = ["-n", space, "exec", "without-volume", "--"];
    let output = installation
        .cluster()
        .kubectl(&[&exec[..], &fetch_at(socket)].concat());
    format!("{}{}", output.stdout, output.stderr)
}

fn id(space: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{space}/sa/default")
}
