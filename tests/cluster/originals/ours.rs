//! Our own derivation: a server of ours that watches the cluster, as a process beside the control plane.

use std::path::PathBuf;
use std::process::Command;

use finial_tests::{Program, finial, free_port, wait_until};

use super::seen::{Seen, seen};
use super::{NAME, TRUST_DOMAIN};
use crate::cluster::{Cluster, READY};

const ROLE: &str = "originals-reader";

/// See the module's text. Dropping it ends the server.
pub(super) struct Ours {
    socket: PathBuf,
    _server: Program,
}

impl Ours {
    /// A server that reads all objects and may change none: statuses are the original's to write.
    pub(super) fn start(cluster: &Cluster, namespace: &str) -> Self {
        let dir = cluster.dir().join("originals");
        std::fs::create_dir_all(&dir).expect("a directory");
        let kubeconfig = reader(cluster, namespace, &dir.join("kubeconfig"));
        let port = free_port();
        let root = dir.display();
        let config = format!(
            r#"server {{
  trust_domain = "{TRUST_DOMAIN}"
  bind_address = "127.0.0.1"
  bind_port = {port}
  socket_path = "{root}/server.sock"
  data_dir = "{root}/server"
  log_level = "DEBUG"
  kubernetes {{ clusters {{ "{NAME}" = {{
    kube_config_file = "{kubeconfig}"
    class_name = "{NAME}"
    ignore_namespaces = ["^originals-ignored$"]
    cluster_domain = "cluster.local"
    crds {{ manage = false }}
  }} }} }}
}}
plugins {{
  DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "{root}/server/datastore.sqlite3" }} }}
  KeyManager "memory" {{ plugin_data {{}} }}
}}
"#,
            kubeconfig = kubeconfig.display(),
        );
        let file = dir.join("server.conf");
        std::fs::write(&file, config).expect("server.conf is written");
        // Only the network is the cluster's, so that the process ends when it is told to.
        let first = std::fs::read_to_string(cluster.dir().join("pid")).expect("a running cluster");
        let mut command = Command::new("nsenter");
        command
            .args(["--target", first.trim(), "--net"])
            .arg(finial())
            .args(["server", "run", "-config"])
            .arg(file);
        let ours = Ours {
            socket: dir.join("server.sock"),
            _server: Program::start("our own derivation", &mut command),
        };
        wait_until("our server to be healthy", READY, || {
            ours.cli(&["healthcheck"]).status.success()
        });
        ours
    }

    pub(super) fn entries(&self) -> Vec<Seen> {
        let shown = self.cli(&["entry", "show", "-output", "json"]);
        assert!(shown.status.success(), "{}", shown.stderr);
        seen(&shown.stdout, &format!("k8s.{NAME}."))
    }

    fn cli(&self, args: &[&str]) -> finial_tests::Output {
        let socket = self.socket.display().to_string();
        let all = std::iter::once("server")
            .chain(args.iter().copied())
            .chain(["-socketPath", &socket]);
        finial_tests::run(all)
    }
}

/// From now on our server may write what it thinks of the objects.
pub(super) fn let_write(cluster: &Cluster, namespace: &str) {
    cluster.apply(&format!(
        r"apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: originals-writer}}
rules:
- apiGroups: [spire.spiffe.io]
  resources: [clusterspiffeids/status, clusterstaticentries/status, clusterfederatedtrustdomains/status]
  verbs: [update, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: originals-writer}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: originals-writer}}
subjects: [{{kind: ServiceAccount, name: {ROLE}, namespace: {namespace}}}]
"
    ));
}

/// A kubeconfig with a token of an account that may read what rules depend on.
fn reader(cluster: &Cluster, namespace: &str, file: &std::path::Path) -> PathBuf {
    cluster.apply(&format!(
        r#"apiVersion: v1
kind: ServiceAccount
metadata: {{name: {ROLE}, namespace: {namespace}}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: {ROLE}}}
rules:
- {{apiGroups: [""], resources: [pods, nodes, namespaces, endpoints], verbs: [get, list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [get, list, watch]}}
- {{apiGroups: [spire.spiffe.io], resources: ["*"], verbs: [get, list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: {ROLE}}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {ROLE}}}
subjects: [{{kind: ServiceAccount, name: {ROLE}, namespace: {namespace}}}]
"#
    ));
    let request = cluster.dir().join("originals/token-request.json");
    std::fs::write(
        &request,
        r#"{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"audiences": []}}"#,
    )
    .expect("a file is written");
    let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{ROLE}/token");
    let request = request.display().to_string();
    let answer = cluster.kubectl_ok(&["create", "--raw", &path, "-f", &request]);
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("a token is given as JSON");
    let token = answer["status"]["token"].as_str().expect("a token");
    let admin = std::fs::read_to_string(cluster.dir().join("kubeconfig")).expect("a kubeconfig");
    let (before, _users) = admin.split_once("users:").expect("a kubeconfig has users");
    std::fs::write(
        file,
        format!("{before}users:\n- name: user\n  user: {{token: {token}}}\n"),
    )
    .expect("a kubeconfig is written");
    file.to_owned()
}
