//! Rules of Kubernetes with the real programs and a fake API server.

use std::time::Duration;

use finial_tests::kubernetes::FakeCluster;
use finial_tests::{Entry, Stack, StackOptions, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

const SOON: Duration = Duration::from_secs(60);

/// A cluster with a node, a namespace and a rule for pods that are labelled `app: web`.
pub struct World {
    pub cluster: FakeCluster,
    directory: TempDir,
}

impl World {
    pub fn new() -> Self {
        let cluster = FakeCluster::start();
        cluster.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}}));
        cluster.put(json!({
            "apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": "shop", "labels": {"kubernetes.io/metadata.name": "shop"}}
        }));
        cluster.put(json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": {"name": "web"},
            "spec": {
                "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
                "podSelector": {"matchLabels": {"app": "web"}}
            }
        }));
        World {
            cluster,
            directory: TempDir::with_prefix("finial-").expect("a temporary directory"),
        }
    }

    pub fn options(&self) -> StackOptions {
        let kubeconfig = self.cluster.kubeconfig(self.directory.path());
        let kubeconfig = kubeconfig.display();
        StackOptions {
            server: format!(
                r#"kubernetes {{ clusters {{ "demo" = {{
                    kube_config_file = "{kubeconfig}"
                    parent_id_template = "spiffe://{{{{ .TrustDomain }}}}/node/{{{{ .NodeMeta.Name }}}}"
                }} }} }}"#
            ),
            ..StackOptions::default()
        }
    }

    pub fn pod(&self, name: &str, app: &str, node: Option<&str>) {
        self.cluster.put(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": app}},
            "spec": {"serviceAccountName": "sa", "nodeName": node, "containers": [{"name": "c", "image": "i"}]}
        }));
    }

    fn static_entry(&self) {
        let uid = rustix::process::getuid().as_raw();
        self.cluster.put(json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterStaticEntry", "metadata": {"name": "me"},
            "spec": {
                "spiffeID": "spiffe://example.org/me", "parentID": "spiffe://example.org/node/n1",
                "selectors": [format!("unix:uid:{uid}")]
            }
        }));
    }
}

/// The entries that are derived, as the server lists them.
pub fn derived(stack: &Stack) -> Vec<Value> {
    let listed = stack.server_cli_ok(&["entry", "show", "-output", "json"]).json();
    let entries = listed["entries"].as_array().cloned().unwrap_or_default();
    let is_derived = |entry: &Value| entry["id"].as_str().is_some_and(|id| id.starts_with("k8s.demo."));
    entries.into_iter().filter(is_derived).collect()
}

pub fn pods_of(entries: &[Value]) -> usize {
    entries
        .iter()
        .filter(|entry| {
            entry["parent_id"]["path"] == "/node/n1" && entry["spiffe_id"]["path"] == "/ns/shop/sa/sa"
        })
        .count()
}

#[test]
fn a_pod_has_its_entry_when_it_is_bound_and_loses_it_with_its_label() {
    let world = World::new();
    let stack = Stack::server_only(world.options());
    world.pod("a", "web", None);
    world.pod("b", "web", Some("n1"));
    wait_until("the entry of the bound pod", SOON, || {
        pods_of(&derived(&stack)) == 1
    });
    world.pod("a", "web", Some("n1"));
    wait_until("the entry of the pod that was bound", SOON, || {
        pods_of(&derived(&stack)) == 2
    });

    let entry = derived(&stack).remove(0);
    let id = entry["id"].as_str().expect("an entry has an id").to_owned();
    let refused = stack.server_cli(&["entry", "delete", "-entryID", &id]);
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(
        !refused.status.success() && text.contains("ClusterSPIFFEID web of cluster demo"),
        "{text}"
    );
    let selector = &entry["selectors"][0];
    let selector = format!(
        "{}:{}",
        selector["type"].as_str().expect("a type"),
        selector["value"].as_str().expect("a value")
    );
    let same = [
        "entry",
        "create",
        "-spiffeID",
        "spiffe://example.org/ns/shop/sa/sa",
        "-parentID",
        "spiffe://example.org/node/n1",
        "-selector",
        &selector,
    ];
    let refused = stack.server_cli(&same);
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(
        !refused.status.success() && text.contains("similar entry already exists"),
        "{text}"
    );
    let other = [
        "entry",
        "create",
        "-entryID",
        "k8s.demo.x",
        "-spiffeID",
        "spiffe://example.org/x",
        "-parentID",
        "spiffe://example.org/node/n1",
        "-selector",
        "a:b",
    ];
    let refused = stack.server_cli(&other);
    let text = format!("{}{}", refused.stdout, refused.stderr);
    assert!(!refused.status.success() && text.contains("derived"), "{text}");

    world.pod("b", "other", Some("n1"));
    wait_until("the entry of the relabelled pod to go", SOON, || {
        pods_of(&derived(&stack)) == 1
    });
    wait_until("the status of the rule", SOON, || {
        let rule = world
            .cluster
            .get("clusterspiffeids", "", "web")
            .unwrap_or_default();
        rule["status"]["stats"]["podsSelected"] == 1 && rule["status"]["conditions"][0]["status"] == "True"
    });
    world.cluster.delete("pods", "shop", "a");
    wait_until("the entry of the deleted pod to go", SOON, || {
        derived(&stack).is_empty()
    });
    wait_until("the definitions", SOON, || {
        world.cluster.list("customresourcedefinitions").len() == 3
    });
}

#[test]
fn an_api_server_on_a_bad_day_takes_no_identity_away() {
    let world = World::new();
    world.pod("a", "web", Some("n1"));
    let mut stack = Stack::server_only(world.options());
    wait_until("the entry of the pod", SOON, || pods_of(&derived(&stack)) == 1);

    // A new list that lacks the pod, although it is there: the server asks for it.
    world.cluster.hide_from_lists("pods", true);
    world.cluster.forget_history();
    world.pod("b", "web", Some("n1"));
    wait_until("the watch to go on", SOON, || {
        pods_of(&derived(&stack)) >= 2 || {
            // Pod `b` came with the history that was forgotten: any change tells of it.
            world.pod("b", "web", Some("n1"));
            false
        }
    });
    assert_eq!(pods_of(&derived(&stack)), 2);
    world.cluster.hide_from_lists("pods", false);

    // While it is out of order everything stays.
    world.cluster.outage(true);
    stack.server().wait_for_line("out of order", SOON);
    assert_eq!(pods_of(&derived(&stack)), 2);
    // What happened meanwhile is found afterwards.
    world.cluster.delete("pods", "shop", "b");
    world.cluster.forget_history();
    world.cluster.outage(false);
    wait_until(
        "the entry of the pod that was deleted meanwhile to go",
        SOON,
        || pods_of(&derived(&stack)) == 1,
    );

    let before = derived(&stack);
    stack.server().terminate();
    stack.start_server();
    stack.wait_server();
    wait_until("the same entry from the same objects", SOON, || {
        derived(&stack) == before
    });
}

#[test]
fn a_server_that_starts_without_an_api_server_has_agents_come_again_in_place_of_an_empty_set() {
    let world = World::new();
    let mut stack = Stack::start(world.options());
    let node = Entry {
        path: "/node/n1",
        selectors: vec!["k8s:node:n1".to_owned()],
        extra: Vec::new(),
    };
    stack.create_entry(&node);
    world.static_entry();
    stack.wait_identity("/me");
    world.cluster.outage(true);
    stack.server().terminate();
    stack.start_server();
    stack.wait_server();
    stack
        .agent()
        .wait_for_line("rules of demo are not known yet", SOON);
    assert!(derived(&stack).is_empty(), "no object is known");
    let fetched = stack.agent_cli_ok(&["api", "fetch", "x509"]);
    assert!(fetched.stdout.contains("/me"), "{}", fetched.stdout);
    world.cluster.outage(false);
    wait_until("the objects to be taken in", SOON, || derived(&stack).len() == 1);
    stack.wait_identity("/me");
}

#[test]
fn a_workload_gets_what_an_object_declares_and_loses_it_with_the_object() {
    let world = World::new();
    let stack = Stack::start(world.options());
    // The agent is the node `n1`.
    let node = Entry {
        path: "/node/n1",
        selectors: vec!["k8s:node:n1".to_owned()],
        extra: Vec::new(),
    };
    stack.create_entry(&node);
    world.static_entry();
    stack.wait_identity("/me");
    wait_until("the status of the object", SOON, || {
        let object = world
            .cluster
            .get("clusterstaticentries", "", "me")
            .unwrap_or_default();
        object["status"]["set"] == true
    });
    world.cluster.delete("clusterstaticentries", "", "me");
    wait_until("the identity to go", SOON, || {
        let fetched = stack.agent_cli(&["api", "fetch", "x509"]);
        !fetched.stdout.contains("/me")
    });
}

#[test]
fn the_bundle_is_published_in_a_config_map() {
    let world = World::new();
    let kubeconfig = world.cluster.kubeconfig(world.directory.path());
    let stack = Stack::server_only(StackOptions {
        server_blocks: format!(
            r#"plugins {{ BundlePublisher "k8s_configmap" {{ plugin_data {{ clusters = {{ "demo" = {{
                namespace = "spire" configmap_name = "bundle" configmap_key = "bundle.crt" format = "pem"
                kubeconfig_path = "{}"
            }} }} }} }} }}"#,
            kubeconfig.display()
        ),
        ..StackOptions::default()
    });
    let bundle = stack.server_cli_ok(&["bundle", "show", "-format", "pem"]).stdout;
    wait_until("the bundle in the ConfigMap", SOON, || {
        let map = world
            .cluster
            .get("configmaps", "spire", "bundle")
            .unwrap_or_default();
        map["data"]["bundle.crt"].as_str().map(str::trim) == Some(bundle.trim())
    });
}
