//! Client libraries of other projects, unchanged, in pods of Pod Security level `restricted`: what they need of
//! the cluster is the CSI volume and nothing else.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use finial_tests::{Peer, absent};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::installation::{Installation, TRUST_DOMAIN};
use crate::session::Session;
use crate::workload::{FOLDER, SOCKET, Workload};

/// An image with the programs of the interop suite and a shell.
pub const IMAGE: &str = "local.test/clients:1";
const AUDIENCE: &str = "spiffe://example.org/api";

/// The client programs in [`IMAGE`].
#[derive(Debug)]
pub struct Clients {
    python: String,
}

impl Clients {
    /// Those on the nodes of [`Cluster::shared`]; brought there by the first that asks. `None` with a printed reason
    /// where they are not.
    pub fn shared(cluster: &Cluster) -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Clients>> = OnceLock::new();
        SHARED.get_or_init(|| Clients::bring(cluster)).as_ref()
    }

    fn bring(cluster: &Cluster) -> Option<Self> {
        let variable = "FINIAL_TEST_PYTHON";
        let python = Peer::find(variable, "python3", &["-c", "import spiffe, spiffetls, jwt"])?.program();
        let Some(go) = std::env::var_os("FINIAL_TEST_GO_CLIENT").map(PathBuf::from) else {
            absent("go-spiffe: FINIAL_TEST_GO_CLIENT does not name the program built from tests/interop/go");
            return None;
        };
        let python = python.display().to_string();
        let busybox = cluster.busybox().display().to_string();
        let go = format!("{}:/go-client", go.display());
        let client = concat!(env!("CARGO_MANIFEST_DIR"), "/interop/python/client.py:/client.py");
        cluster.import_image(
            IMAGE,
            &[
                "--python",
                &python,
                "--without",
                "envoy",
                "--file",
                client,
                "--program",
                &go,
                "--busybox",
                &busybox,
            ],
        );
        Some(Clients { python })
    }

    /// The interpreter in the image.
    pub fn python(&self) -> &str {
        &self.python
    }

    /// The words that start the Python program.
    pub fn py_spiffe(&self) -> Vec<&str> {
        vec![&self.python, "/client.py"]
    }
}

/// `kubectl exec` with an open standard input, in a container of a pod.
pub fn exec(cluster: &Cluster, namespace: &str, pod: &str, container: &str, words: &[&str]) -> Command {
    let mut command = cluster.enter("kubectl");
    command
        .args(["-n", namespace, "exec", "-i", pod, "-c", container, "--"])
        .args(words);
    command
}

#[test]
fn py_spiffe_works_in_a_restricted_pod_and_sees_rotation_and_a_change_of_labels() {
    life("py-spiffe", Clients::py_spiffe);
}

#[test]
fn go_spiffe_works_in_a_restricted_pod_and_sees_rotation_and_a_change_of_labels() {
    life("go-spiffe", |_clients| vec!["/go-client"]);
}

fn life(name: &'static str, words: for<'a> fn(&'a Clients) -> Vec<&'a str>) {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let Some(clients) = Clients::shared(cluster) else {
        return;
    };
    let space = cluster.namespace(name);
    // What a newer cluster than ours refuses pods by.
    let level = "pod-security.kubernetes.io/enforce=restricted";
    cluster.kubectl_ok(&["label", "namespace", &space, level]);
    installation.rule(
        &space,
        json!({
            "spiffeIDTemplate": format!("spiffe://{TRUST_DOMAIN}/{space}/{{{{ index .PodMeta.Labels \"role\" }}}}"),
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}},
            "ttl": "20s",
        }),
    );
    let id = |role: &str| format!("spiffe://{TRUST_DOMAIN}/{space}/{role}");
    let pod = Workload::new(&space, "web")
        .label("role", "web")
        .main("image", json!(IMAGE))
        .restricted();
    cluster.apply(&pod.manifest());
    cluster.wait_pod(&space, "web");
    assert_unprivileged(&cluster.get(&["-n", &space, "pod", "web"])["spec"]);

    // Nothing is waited for: a pod that runs has its identity.
    let mut workload = Session::start(name, &mut exec(cluster, &space, "web", "main", &words(clients)));
    assert_eq!(workload.ask_ok(&["x509"])["ids"], json!([id("web")]), "{name}");
    let svid = workload.ask_ok(&["jwt", AUDIENCE]);
    assert_eq!(svid["ids"], json!([id("web")]), "{name}");
    let token = svid["token"].as_str().expect("a token");
    for judge in ["verify", "validate"] {
        let accepted = workload.ask_ok(&[judge, token, AUDIENCE]);
        assert_eq!(accepted["ids"], json!([id("web")]), "{name}: {judge}");
        let refused = workload.ask(&[judge, token, "another-audience"]);
        assert!(
            refused.is_err(),
            "{name}: {judge} for another audience: {refused:?}"
        );
    }

    let opened = workload.mark();
    workload.ask_ok(&["watch"]);
    let first = workload.update(opened, "the first SVID", |_| true);
    workload.update(opened, "a renewed SVID", |update| {
        update["serial"] != first["serial"]
    });
    cluster.kubectl_ok(&["-n", &space, "label", "pod", "web", "role=db", "--overwrite"]);
    let changed = workload.update(opened, "another identity", |update| {
        update["ids"]
            .as_array()
            .is_some_and(|ids| ids.contains(&id("db").into()))
    });
    if changed["ids"] != json!([id("db")]) {
        let only = |update: &Value| update["ids"] == json!([id("db")]);
        workload.update(opened, "the other identity alone", only);
    }
    workload.assert_uninterrupted(opened);
}

/// What the API server has is what was asked for, and the volume is the pod's one way to the node.
fn assert_unprivileged(spec: &Value) {
    assert_ne!(spec["hostPID"], true, "{spec}");
    assert_ne!(spec["hostNetwork"], true, "{spec}");
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true, "{spec}");
    let kinds: Vec<_> = spec["volumes"]
        .as_array()
        .expect("volumes")
        .iter()
        .map(|volume| volume["csi"]["driver"].as_str())
        .collect();
    assert_eq!(kinds, [Some("csi.spiffe.io")], "{spec}");
    let container = &spec["containers"][0]["securityContext"];
    assert_eq!(container["capabilities"]["drop"], json!(["ALL"]), "{spec}");
    assert_eq!(container["readOnlyRootFilesystem"], true, "{spec}");
}

/// One node, two pods, two sockets: neither pod sees the other's, and neither can put anything beside its own.
#[test]
fn each_pod_has_a_socket_of_its_own_and_cannot_write_beside_it() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let space = cluster.namespace("own-sockets");
    for name in ["one", "two"] {
        cluster.apply(&Workload::new(&space, name).node("node-a").restricted().manifest());
    }
    let inode = |pod: &str| {
        cluster.wait_pod(&space, pod);
        let listed = cluster.shell(&space, pod, &format!("ls {FOLDER}"));
        let names: Vec<_> = listed.lines().collect();
        assert_eq!(names, ["api.sock", "socket", "spire-agent.sock"], "{pod}");
        let refused = cluster.shell(&space, pod, &format!("touch {FOLDER}/x 2>&1 || true"));
        assert!(refused.contains("Read-only file system"), "{pod}: {refused}");
        cluster.shell(&space, pod, &format!("stat -c %i {SOCKET}"))
    };
    assert_ne!(inode("one"), inode("two"));
}
