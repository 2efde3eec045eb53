//! Parts that end and come back: what must recover recovers, and what must end ends.

use finial_tests::{Output, wait_for, wait_until};
use serde_json::{Value, json};

use crate::cluster::READY;
use crate::installation::{Installation, SERVER_NAMESPACE, SYSTEM_NAMESPACE, TRUST_DOMAIN};
use crate::turns::{Turn, bundle, end, restart_kubelet, server_uid, uid};
use crate::workload::Workload;

const NODE: &str = "node-b";

#[test]
fn a_workload_has_its_identity_again_when_the_agents_pod_was_deleted() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = workload(installation, "agent-deleted");
    let before = serial(installation);
    let pod = installation.agent_pod(NODE);
    let mut watch = installation.watch(&space, "web");
    watch.wait_for_line("SPIFFE ID:", READY);

    cluster.kubectl_ok(&["-n", SYSTEM_NAMESPACE, "delete", "pod", &pod]);
    watch.wait_exit(READY);
    // The pod is another one, the folder that it serves the same.
    assert_ne!(installation.agent_pod(NODE), pod);
    installation.wait_for_identity(&space, "web", &id(&space));
    assert_ne!(serial(installation), before, "the agent has not attested anew");
    assert_eq!(installation.agents().len(), 2);
    end(cluster, &space);
}

#[test]
fn workloads_keep_what_they_have_while_the_server_is_away_and_its_authority_is_the_same_afterwards() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = workload(installation, "server-deleted");
    let authority = bundle(installation);
    let pod = server_uid(cluster);
    let mut watch = installation.watch(&space, "web");
    watch.wait_for_line("SPIFFE ID:", READY);

    cluster.kubectl_ok(&["-n", SERVER_NAMESPACE, "delete", "pod", "finial-server-0"]);
    assert_eq!(installation.identities(&space, "web"), [id(&space)]);
    wait_until("a new pod of the server", READY, || {
        let found = cluster.kubectl(&["-n", SERVER_NAMESPACE, "get", "pod", "finial-server-0"]);
        found.status.success() && server_uid(cluster) != pod
    });
    installation.wait_ready();
    assert_eq!(bundle(installation), authority);
    assert_eq!(installation.agents().len(), 2);
    // What is new gets an identity, and what was open has stayed so.
    cluster.apply(&Workload::new(&space, "late").node(NODE).manifest());
    installation.wait_for_identity(&space, "late", &id(&space));
    assert!(watch.is_running(), "{}", watch.lines().join("\n"));
    end(cluster, &space);
}

#[test]
fn a_kubelet_that_was_restarted_mounts_volumes_again_and_ends_no_watch() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = workload(installation, "kubelet-restarted");
    let mut watch = installation.watch(&space, "web");
    watch.wait_for_line("SPIFFE ID:", READY);
    let agent = installation.agent_pod(NODE);

    restart_kubelet(cluster, NODE);
    cluster.apply(&Workload::new(&space, "late").node(NODE).manifest());
    installation.wait_for_identity(&space, "late", &id(&space));
    assert!(installation.identities(&space, "web") == [id(&space)]);
    assert_eq!(installation.agent_pod(NODE), agent, "the agent was not restarted");
    end(cluster, &space);
}

/// The driver that unmounts is another process than the one that mounted.
#[test]
fn a_pod_ends_whose_volume_was_mounted_by_an_earlier_driver() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = workload(installation, "driver-restarted");
    let pod = uid(cluster, &["-n", &space, "pod", "web"]);
    let sockets = format!("/run/finial/csi/pods/{pod}/sockets");
    let exists = |path: &str| {
        Output::of(cluster.enter_node(NODE, "test").args(["-e", path]))
            .status
            .success()
    };
    assert!(exists(&sockets), "{sockets} is not on {NODE}");
    // Only the driver's container ends; the kubelet starts it again.
    let agent = installation.agent_pod(NODE);
    let restarts = || {
        let pod = cluster.get(&["-n", SYSTEM_NAMESPACE, "pod", &agent]);
        let statuses = pod["status"]["containerStatuses"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let csi = statuses
            .into_iter()
            .find(|status| status["name"] == "csi")
            .expect("a container csi");
        (
            csi["restartCount"].as_i64().unwrap_or(0),
            csi["ready"] == true,
            csi["containerID"].clone(),
        )
    };
    let (count, _, container) = restarts();
    let container = container.as_str().expect("it runs").replace("containerd://", "");
    let killed = Output::of(
        cluster
            .enter_node(NODE, "ctr")
            .args(["task", "kill", "--signal", "SIGKILL", &container]),
    );
    assert!(killed.status.success(), "{}", killed.stderr);
    wait_until("the driver to run again", READY, || {
        let (now, ready, _) = restarts();
        now > count && ready
    });
    assert_eq!(installation.identities(&space, "web"), [id(&space)]);

    cluster.kubectl_ok(&["-n", &space, "delete", "pod", "web", "--timeout=60s"]);
    wait_until("the pod's sockets to be gone", READY, || !exists(&sockets));
    let mounts = Output::of(cluster.enter_node(NODE, "cat").args(["/proc/self/mountinfo"])).stdout;
    assert!(!mounts.contains(&pod), "{mounts}");
    end(cluster, &space);
}

#[test]
fn pods_of_a_node_object_that_was_deleted_lose_their_identity_and_a_node_made_anew_is_attested() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = workload(installation, "node-deleted");
    let (old, pod) = (
        installation.agent_id(NODE),
        uid(cluster, &["-n", &space, "pod", "web"]),
    );
    let mut watch = installation.watch(&space, "web");
    watch.wait_for_line("SPIFFE ID:", READY);

    cluster.kubectl_ok(&["delete", "node", NODE, "--wait=false"]);
    watch.wait_for_line("PermissionDenied", READY);
    let left = entries_of(installation, &pod);
    assert!(left.is_empty(), "{left:?}");

    restart_kubelet(cluster, NODE);
    wait_until("the node's new object", READY, || {
        let found = cluster.kubectl(&["get", "node", NODE]);
        found.status.success() && installation.agent_id(NODE) != old
    });
    let new = installation.agent_id(NODE);
    wait_for("the new node's agent", READY, || {
        let agents = installation.agents();
        let path = json!(new.trim_start_matches(&format!("spiffe://{TRUST_DOMAIN}")));
        anyhow::ensure!(
            agents.iter().any(|agent| agent["id"]["path"] == path),
            "{agents:?}"
        );
        Ok(())
    });
    cluster.apply(&Workload::new(&space, "late").node(NODE).manifest());
    installation.wait_for_identity(&space, "late", &id(&space));
    let parents: Vec<Value> = entries_of(installation, &uid(cluster, &["-n", &space, "pod", "late"]))
        .into_iter()
        .map(|entry| entry["parent_id"]["path"].clone())
        .collect();
    assert_eq!(
        parents,
        [json!(new.trim_start_matches(&format!("spiffe://{TRUST_DOMAIN}")))]
    );
    end(cluster, &space);
}

/// A namespace with the pod `web` on [`NODE`], which has its identity.
fn workload(installation: &Installation<'_>, space: &str) -> String {
    let space = installation.cluster().namespace(space);
    installation
        .cluster()
        .apply(&Workload::new(&space, "web").node(NODE).manifest());
    installation.wait_for_identity(&space, "web", &id(&space));
    space
}

fn entries_of(installation: &Installation<'_>, pod: &str) -> Vec<Value> {
    let found = installation.server_json(&["entry", "show", "-selector", &format!("k8s:pod-uid:{pod}")]);
    found["entries"].as_array().cloned().unwrap_or_default()
}

/// The serial number of the SVID of the node's agent.
fn serial(installation: &Installation<'_>) -> Value {
    let id = installation.agent_id(NODE);
    installation.server_json(&["agent", "show", "-spiffeID", &id])["x509svid_serial_number"].clone()
}

fn id(space: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{space}/sa/default")
}
