//! A container that somebody adds to a running pod, to look into it.

use finial_tests::{skipped, wait_until};
use serde_json::json;

use super::{NODE_FOLDER, NODE_SOCKET, Scene, on_node, text};
use crate::clients::IMAGE;
use crate::cluster::READY;

/// It is of the pod, so what belongs to the whole pod is its own too; what belongs to a container of another name is
/// not.
#[test]
fn an_ephemeral_container_gets_its_pods_identity_and_not_that_of_another_container() {
    let Some(scene) = Scene::set("attack-ephemeral") else {
        return;
    };
    let (cluster, space) = (scene.cluster(), scene.space.as_str());
    scene.start("web", &on_node(scene.pod("web")));
    let of_container = scene.id("container-main");
    let parent = scene.installation.agent_id("node-a");
    let created = scene.installation.server(&[
        "entry",
        "create",
        "-spiffeID",
        &of_container,
        "-parentID",
        &parent,
        "-selector",
        &format!("k8s:ns:{space}"),
        "-selector",
        "k8s:container-name:main",
    ]);
    assert!(created.status.success(), "{}", created.stderr);
    let mut main = scene.client("web", &[], NODE_SOCKET);
    wait_until("both identities of the main container", READY, || {
        let mut ids: Vec<_> = match main.ask(&["x509"]) {
            Ok(fetched) => fetched["ids"].as_array().cloned().unwrap_or_default(),
            Err(_not_yet) => Vec::new(),
        };
        ids.sort_by_key(ToString::to_string);
        ids == [json!(of_container), json!(scene.id("web"))]
    });

    if !add_container(&scene) {
        skipped("ephemeral containers could not be checked: the API server does not take them");
        return;
    }
    wait_until("the ephemeral container to run", READY, || {
        let pod = cluster.get(&["-n", space, "pod", "web"]);
        !pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"].is_null()
    });
    let mut debugger = scene.client_in("web", "debugger", &[], NODE_SOCKET);
    let fetched = debugger.ask_ok(&["x509"]);
    assert_eq!(fetched["ids"], json!([scene.id("web")]));
}

/// As `kubectl debug` does it, in the form of the server's release. `false` where there is no such thing.
fn add_container(scene: &Scene) -> bool {
    let (cluster, space) = (scene.cluster(), scene.space.as_str());
    let container = json!({
        "name": "debugger",
        "image": IMAGE,
        "imagePullPolicy": "Never",
        "command": ["sleep", "86400"],
        "volumeMounts": [{"name": "node", "mountPath": NODE_FOLDER}],
    });
    let path = format!("/api/v1/namespaces/{space}/pods/web/ephemeralcontainers");
    let file = cluster.dir().join("ephemeral.json");
    let mut pod = cluster.get(&["-n", space, "pod", "web"]);
    let old = json!({
        "apiVersion": "v1",
        "kind": "EphemeralContainers",
        "metadata": {"name": "web", "namespace": space, "resourceVersion": text(&pod["metadata"]["resourceVersion"])},
        "ephemeralContainers": [container],
    });
    pod["spec"]["ephemeralContainers"] = json!([container]);
    [pod, old].iter().any(|body| {
        std::fs::write(&file, body.to_string()).expect("the request is written");
        let file = file.display().to_string();
        cluster
            .kubectl(&["replace", "--raw", &path, "-f", &file])
            .status
            .success()
    })
}
