//! An agent that is a pod of a Kubernetes cluster, as far as server and agent can tell: an API server that knows its
//! token, and what the kubelet does for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::kubernetes::FakeCluster;
use crate::stack::StackOptions;
use crate::wait::wait_until;

/// See the module's text.
#[derive(Debug)]
pub struct AgentPod {
    cluster: Arc<FakeCluster>,
    directory: TempDir,
}

/// Keeps a file of the agent's pod as the ConfigMap that it is mounted from, until it is dropped.
#[derive(Debug)]
pub struct MountedBundle {
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl AgentPod {
    pub fn new() -> Self {
        let cluster = FakeCluster::start();
        cluster.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
        let pod = cluster.put(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "agent-1", "namespace": "spire"},
            "spec": {"serviceAccountName": "agent", "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
            "status": {"phase": "Running"}
        }));
        let uid = pod["metadata"]["uid"].clone();
        cluster.on_create("tokenreviews", move |mut review: Value| {
            let is_ours = review["spec"]["token"] == TOKEN;
            review["status"] = match is_ours {
                true => json!({
                    "authenticated": true, "audiences": ["spire-server"],
                    "user": {
                        "username": "system:serviceaccount:spire:agent",
                        "extra": {
                            "authentication.kubernetes.io/pod-name": ["agent-1"],
                            "authentication.kubernetes.io/pod-uid": [uid]
                        }
                    }
                }),
                false => json!({"authenticated": false}),
            };
            review
        });
        let directory = TempDir::with_prefix("finial-").expect("a temporary directory");
        std::fs::write(directory.path().join("token"), TOKEN).expect("the token is written");
        AgentPod {
            cluster: Arc::new(cluster),
            directory,
        }
    }

    /// Adds what the server and the agent need for it. The server publishes its bundle in a ConfigMap.
    pub fn options(&self, options: StackOptions) -> StackOptions {
        let kubeconfig = self.cluster.kubeconfig(self.directory.path());
        let kubeconfig = kubeconfig.display();
        StackOptions {
            server_blocks: format!(
                r#"plugins {{
  NodeAttestor "k8s_psat" {{ plugin_data {{ clusters = {{ "demo" = {{
    service_account_allow_list = ["spire:agent"] kube_config_file = "{kubeconfig}"
  }} }} }} }}
  BundlePublisher "k8s_configmap" {{ plugin_data {{ clusters = {{ "demo" = {{
    namespace = "spire" configmap_name = "bundle" configmap_key = "bundle.crt" format = "pem"
    kubeconfig_path = "{kubeconfig}"
  }} }} }} }}
}}
{}"#,
                options.server_blocks
            ),
            node_attestor: format!(
                r#"NodeAttestor "k8s_psat" {{ plugin_data {{ cluster = "demo" token_path = "{}" }} }}"#,
                self.directory.path().join("token").display()
            ),
            ..options
        }
    }

    /// Mounts the ConfigMap as this file, where the agent looks for its bundle, and waits until there is one.
    pub fn mount_bundle(&self, file: PathBuf) -> MountedBundle {
        let stops = Arc::new(AtomicBool::new(false));
        let (cluster, stopped, target) = (Arc::clone(&self.cluster), Arc::clone(&stops), file.clone());
        let thread = std::thread::spawn(move || {
            wait_until("the mount to end", FOREVER, || {
                mount(&cluster, &target);
                stopped.load(Ordering::Relaxed)
            });
        });
        wait_until("the bundle in the ConfigMap", SOON, || file.exists());
        MountedBundle {
            stops,
            thread: Some(thread),
        }
    }
}

/// Replaces the file as the kubelet does: whole.
fn mount(cluster: &FakeCluster, file: &Path) {
    let map = cluster.get("configmaps", "spire", "bundle").unwrap_or_default();
    if let Some(bundle) = map["data"]["bundle.crt"].as_str() {
        let next = file.with_extension("next");
        std::fs::write(&next, bundle).expect("the bundle is written");
        std::fs::rename(&next, file).expect("the bundle is replaced");
    }
}

impl Drop for MountedBundle {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Looks like a JWT, and that is all anybody but the API server knows of it.
const TOKEN: &str = "aaaa.bbbb.cccc";
const SOON: Duration = Duration::from_secs(60);
/// Longer than any test.
const FOREVER: Duration = Duration::from_secs(3600);
