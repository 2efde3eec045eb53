//! A static pod: whoever has a node's file system can start pods there that no API server has allowed, under names and
//! labels as one likes.

use std::path::PathBuf;

use finial_tests::{Output, wait_until};
use serde_json::json;

use super::{NODE_FOLDER, NODE_SOCKET, Scene, denied, text};
use crate::cluster::{Cluster, READY};
use crate::workload::Workload;

/// Where the kubelet of a node looks for them.
const MANIFESTS: &str = "/var/lib/kubelet/manifests";

/// The manifest, which goes when it is dropped, and the pod with it.
struct Manifest {
    cluster: &'static Cluster,
    file: String,
}

impl Manifest {
    fn put(cluster: &'static Cluster, pod: &Workload) -> Self {
        let here: PathBuf = cluster.dir().join("static.json");
        std::fs::write(&here, pod.manifest()).expect("the manifest is written");
        let file = format!("{MANIFESTS}/stolen.json");
        let copied = Output::of(cluster.enter_node("node-b", "cp").arg(&here).arg(&file));
        assert!(copied.status.success(), "{}", copied.stderr);
        Manifest { cluster, file }
    }
}

impl Drop for Manifest {
    fn drop(&mut self) {
        let _ = Output::of(self.cluster.enter_node("node-b", "rm").args(["-f", &self.file]));
    }
}

/// The server goes by what the API server says of pods it gave UIDs to: what a kubelet says of a static pod's name,
/// namespace, labels and UID gives it nothing that another node's pod has.
#[test]
fn a_static_pod_with_the_name_labels_and_uid_of_another_gets_nothing() {
    let Some(scene) = Scene::set("attack-static") else {
        return;
    };
    let (cluster, space) = (scene.cluster(), scene.space.as_str());
    let victim = scene.start("victim", &scene.pod("victim"));
    let uid = text(&victim["metadata"]["uid"]);
    let mount = json!({"name": "node", "mountPath": NODE_FOLDER});
    let stolen = Workload::new(space, "victim")
        .label("role", "victim")
        .main("image", json!(crate::clients::IMAGE))
        .main("volumeMounts", json!([mount]))
        .spec(
            "volumes",
            json!([{"name": "node", "hostPath": {"path": NODE_FOLDER}}]),
        )
        .metadata("uid", json!(uid));
    let _manifest = Manifest::put(cluster, &stolen);
    // Its likeness at the API server, with the node's name after its own.
    let mirror = "victim-node-b";
    wait_until("the static pod", READY, || {
        cluster
            .kubectl(&["-n", space, "get", "pod", mirror])
            .status
            .success()
    });
    cluster.wait_pod(space, mirror);
    let likeness = cluster.get(&["-n", space, "pod", mirror]);
    let selector = format!("k8s:pod-uid:{}", text(&likeness["metadata"]["uid"]));
    wait_until("the rule to see the likeness", READY, || {
        let shown = scene
            .installation
            .server_json(&["entry", "show", "-selector", &selector]);
        shown["entries"]
            .as_array()
            .is_some_and(|entries| !entries.is_empty())
    });
    let mut thief = scene.client(mirror, &[], NODE_SOCKET);
    assert_eq!(thief.ask(&["x509"]), Err(denied()));
    assert_eq!(thief.ask(&["jwt", "audience"]), Err(denied()));
    let own = scene
        .client("victim", &[], crate::workload::SOCKET)
        .ask_ok(&["x509"]);
    assert_eq!(own["ids"], json!([scene.id("victim")]));
}
