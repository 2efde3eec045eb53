//! Pods with the CSI volume, for tests to ask the Workload API from.

use serde_json::{Value, json};

use crate::installation::WORKLOAD_IMAGE;

/// Where the volume is in a pod's containers.
pub const FOLDER: &str = "/spiffe-workload-api";
/// The socket in it.
pub const SOCKET: &str = "/spiffe-workload-api/spire-agent.sock";

/// A pod that does nothing until a test runs a command in it. What is not said is as usual: no labels, any node, the
/// default service account, the CSI volume in its one container, which has a shell and the program.
#[derive(Clone, Debug)]
pub struct Workload {
    pod: Value,
}

impl Workload {
    pub fn new(namespace: &str, name: &str) -> Self {
        let bare = Self {
            pod: json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": namespace, "labels": {}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": false,
                    "containers": [],
                    "volumes": [],
                },
            }),
        };
        bare.volume(json!({
            "name": "spiffe-workload-api",
            "csi": {"driver": "csi.spiffe.io", "readOnly": true},
        }))
        .container(json!({"name": "main", "image": WORKLOAD_IMAGE, "command": ["sleep", "86400"]}))
    }

    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.pod["metadata"]["labels"][key] = json!(value);
        self
    }

    /// Past the scheduler, onto this node.
    pub fn node(self, node: &str) -> Self {
        self.spec("nodeName", json!(node))
    }

    pub fn service_account(self, name: &str) -> Self {
        self.spec("serviceAccountName", json!(name))
    }

    /// One more container, with the CSI volume and the variable that names the socket. What `container` says itself
    /// stays as it is.
    pub fn container(mut self, mut container: Value) -> Self {
        let defaults = json!({
            "imagePullPolicy": "Never",
            "env": [{"name": "SPIFFE_ENDPOINT_SOCKET", "value": format!("unix://{SOCKET}")}],
            "volumeMounts": [{"name": "spiffe-workload-api", "mountPath": FOLDER, "readOnly": true}],
        });
        for (key, value) in defaults.as_object().expect("an object") {
            if container[key].is_null() {
                container[key] = value.clone();
            }
        }
        self.list("containers").push(container);
        self
    }

    /// Anything else of the first container.
    pub fn main(mut self, key: &str, value: Value) -> Self {
        self.list("containers")[0][key] = value;
        self
    }

    /// What level `restricted` of Pod Security asks for, and a root file system that nobody can write to, for each
    /// container so far.
    pub fn restricted(mut self) -> Self {
        self.pod["spec"]["securityContext"] =
            json!({"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}});
        for container in self.list("containers") {
            container["securityContext"] = json!({
                "allowPrivilegeEscalation": false,
                "capabilities": {"drop": ["ALL"]},
                "readOnlyRootFilesystem": true,
            });
        }
        self
    }

    /// One more volume.
    pub fn volume(mut self, volume: Value) -> Self {
        self.list("volumes").push(volume);
        self
    }

    /// Anything else below `spec`.
    pub fn spec(mut self, key: &str, value: Value) -> Self {
        self.pod["spec"][key] = value;
        self
    }

    /// Anything else below `metadata`.
    pub fn metadata(mut self, key: &str, value: Value) -> Self {
        self.pod["metadata"][key] = value;
        self
    }

    /// The object, for `Cluster::apply`.
    pub fn manifest(&self) -> String {
        self.pod.to_string()
    }

    fn list(&mut self, key: &str) -> &mut Vec<Value> {
        self.pod["spec"][key]
            .as_array_mut()
            .expect("a list was made in the beginning")
    }
}
