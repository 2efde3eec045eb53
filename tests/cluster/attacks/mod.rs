//! What an attacker in the cluster tries: one test an attack, on real nodes, with what such an attacker really has.

mod agents;
mod ephemeral;
mod labels;
mod neighbours;
mod remains;
mod static_pod;

use serde_json::{Value, json};

use crate::clients::{Clients, IMAGE, exec};
use crate::cluster::Cluster;
use crate::installation::{Installation, TRUST_DOMAIN};
use crate::session::{Refusal, Session};
use crate::workload::Workload;

/// Where every process of a node may ask, and where the pods' own sockets are, as a `hostPath` sees them.
const NODE_FOLDER: &str = "/run/finial";
const NODE_SOCKET: &str = "/run/finial/agent-sockets/spire-agent.sock";

/// A namespace in which pods have the identity that their label `role` names.
struct Scene {
    installation: &'static Installation<'static>,
    clients: &'static Clients,
    space: String,
}

impl Scene {
    fn set(name: &str) -> Option<Self> {
        let installation = Installation::shared()?;
        let clients = Clients::shared(installation.cluster())?;
        let space = installation.cluster().namespace(name);
        let scene = Scene {
            installation,
            clients,
            space,
        };
        let labelled = json!({"matchExpressions": [{"key": "role", "operator": "Exists"}]});
        scene.rule("role", "{{ .PodMeta.Labels.role }}", labelled);
        Some(scene)
    }

    fn cluster(&self) -> &'static Cluster {
        self.installation.cluster()
    }

    /// A rule for pods of this namespace alone.
    fn rule(&self, name: &str, path: &str, pods: Value) {
        let spec = json!({
            "spiffeIDTemplate": format!("spiffe://{TRUST_DOMAIN}/{}/{path}", self.space),
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": self.space}},
            "podSelector": pods,
        });
        self.installation.rule(&format!("{}-{name}", self.space), spec);
    }

    /// The identity of a role.
    fn id(&self, role: &str) -> String {
        format!("spiffe://{TRUST_DOMAIN}/{}/{role}", self.space)
    }

    /// A pod of this namespace with the client programs and the CSI volume.
    fn pod(&self, role: &str) -> Workload {
        Workload::new(&self.space, role)
            .label("role", role)
            .node("node-a")
            .main("image", json!(IMAGE))
    }

    /// Starts it; what the API server has when it is ready.
    fn start(&self, name: &str, pod: &Workload) -> Value {
        self.cluster().apply(&pod.manifest());
        self.cluster().wait_pod(&self.space, name);
        self.cluster().get(&["-n", &self.space, "pod", name])
    }

    /// The Python client in a pod, which asks on this socket. `before` are words before its command.
    fn client(&self, pod: &str, before: &[&str], socket: &str) -> Session {
        self.client_in(pod, "main", before, socket)
    }

    /// [`Scene::client`] in a container that is not the first.
    fn client_in(&self, pod: &str, container: &str, before: &[&str], socket: &str) -> Session {
        let variable = format!("SPIFFE_ENDPOINT_SOCKET=unix://{socket}");
        let mut words = before.to_vec();
        words.extend(["env", &variable]);
        words.extend(self.clients.py_spiffe());
        let mut command = exec(self.cluster(), &self.space, pod, container, &words);
        Session::start("the client", &mut command)
    }
}

fn denied() -> Refusal {
    Refusal {
        code: "permissiondenied".to_owned(),
        message: "no identity issued".to_owned(),
    }
}

/// More than anybody should have: the node's processes, its sockets, all capabilities.
fn privileged(pod: Workload) -> Workload {
    on_node(pod)
        .spec("hostPID", json!(true))
        .main("securityContext", json!({"privileged": true}))
}

/// With the agent's folders of the node in place of the CSI volume.
fn on_node(pod: Workload) -> Workload {
    let mount = json!({"name": "node", "mountPath": NODE_FOLDER});
    pod.main("volumeMounts", json!([mount]))
        .volume(json!({"name": "node", "hostPath": {"path": NODE_FOLDER}}))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}
