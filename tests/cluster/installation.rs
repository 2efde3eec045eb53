//! Finial in a cluster, as its chart installs it, and what tests ask of it.

use std::process::Command;
use std::sync::OnceLock;
use std::time::Instant;

use finial_tests::{Output, Program, finial, image_like_dockerfile, wait_for};
use serde_json::{Value, json};

use crate::cluster::{Cluster, READY};
use crate::workload::SOCKET;

/// The trust domain of `values.yaml`.
pub const TRUST_DOMAIN: &str = "example.org";
/// The cluster's name in `values.yaml`, a part of its agents' IDs.
pub const CLUSTER_NAME: &str = "production";
/// Where the release is.
pub const RELEASE_NAMESPACE: &str = "finial";
/// Where the chart puts the server.
pub const SERVER_NAMESPACE: &str = "spire-server";
/// Where the chart puts the agents.
pub const SYSTEM_NAMESPACE: &str = "spire-system";
/// The class of rules that the server acts on: `<namespace>-<release>`.
pub const CLASS: &str = "finial-finial";
/// An image with the program and a shell, for pods of tests.
pub const WORKLOAD_IMAGE: &str = "local.test/workload:1";

/// The chart in one cluster.
#[derive(Debug)]
pub struct Installation<'a> {
    cluster: &'a Cluster,
    image: String,
}

impl Installation<'static> {
    /// The one in [`Cluster::shared`]. What a test does with it must not disturb the others: no restarts, no changed
    /// values, rules for labels that the test alone uses.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Installation<'static>>> = OnceLock::new();
        let found = SHARED.get_or_init(|| Installation::on(Cluster::shared()?));
        found.as_ref()
    }
}

impl<'a> Installation<'a> {
    /// Brings the program and what a bare cluster lacks, installs the chart and waits until everything is ready. `None`
    /// where Helm's engine is not.
    pub fn on(cluster: &'a Cluster) -> Option<Self> {
        let installation = Self::prepared(cluster);
        let start = Instant::now();
        installation.install()?;
        eprintln!(
            "server and agents were ready {:?} after helm began",
            start.elapsed()
        );
        Some(installation)
    }

    /// Installs the chart with the values of tests, or brings a release back to them, and waits until it is ready.
    /// `None` where Helm's engine is not.
    pub fn install(&self) -> Option<()> {
        volume(self.cluster);
        let done = self.helm(&self.with_values(&["upgrade", "--install", "finial"]))?;
        if !done.status.success() {
            panic!("{}\n{}", done.stderr, self.state());
        }
        Some(())
    }

    /// All that [`Installation::on`] does before the chart comes.
    pub fn prepared(cluster: &'a Cluster) -> Self {
        let image = format!("docker.io/finial/finial:{}", env!("CARGO_PKG_VERSION"));
        let content = image_like_dockerfile(finial());
        let content: Vec<&str> = content.iter().map(String::as_str).collect();
        cluster.import_image(&image, &content);
        let program = format!("{}:/usr/bin/finial", finial().display());
        let busybox = cluster.busybox().display().to_string();
        cluster.import_image(WORKLOAD_IMAGE, &["--program", &program, "--busybox", &busybox]);
        cluster.apply(
            &json!({
                "apiVersion": "v1",
                "kind": "Namespace",
                "metadata": {
                    "name": RELEASE_NAMESPACE,
                    "labels": {"kubernetes.io/metadata.name": RELEASE_NAMESPACE},
                },
            })
            .to_string(),
        );
        Self { cluster, image }
    }

    pub fn cluster(&self) -> &'a Cluster {
        self.cluster
    }

    /// The image that the chart runs: the program as its entrypoint and no shell. [`WORKLOAD_IMAGE`] has one.
    pub fn image(&self) -> &str {
        &self.image
    }

    /// Helm's engine, with the release's namespace. `None` where that is not.
    pub fn helm(&self, args: &[&str]) -> Option<Output> {
        self.cluster
            .helm(&[args, &["--namespace", RELEASE_NAMESPACE]].concat())
    }

    /// Arguments of [`Installation::helm`], with the chart and the values of tests after them.
    pub fn with_values<'s>(&self, args: &[&'s str]) -> Vec<&'s str> {
        let mut all = args.to_vec();
        all.extend([CHART, "--values", VALUES]);
        all
    }

    /// `finial …` where the server runs.
    fn finial(&self, args: &[&str]) -> Output {
        let exec = ["-n", SERVER_NAMESPACE, "exec", "finial-server-0", "--", "finial"];
        self.cluster.kubectl(&[&exec[..], args].concat())
    }

    /// `finial server …` where the server runs.
    pub fn server(&self, args: &[&str]) -> Output {
        self.finial(&[&["server"], args].concat())
    }

    /// `finial why …` where the server runs, with its answer in JSON.
    pub fn why(&self, args: &[&str]) -> Output {
        self.finial(&[&["why", "-output", "json"], args].concat())
    }

    /// [`Installation::server`] with `-output json`, which must exit 0.
    pub fn server_json(&self, args: &[&str]) -> Value {
        let output = self.server(&[args, &["-output", "json"]].concat());
        assert!(
            output.status.success(),
            "finial server {args:?}: {}",
            output.stderr
        );
        output.json()
    }

    /// All entries, those that rules declare too.
    pub fn entries(&self) -> Vec<Value> {
        list(&self.server_json(&["entry", "show"])["entries"])
    }

    /// Stores an entry for an agent's workloads with all of these selectors; gives its id.
    pub fn create_entry(&self, agent: &str, id: &str, selectors: &[&str]) -> String {
        let mut args = vec!["entry", "create", "-parentID", agent, "-spiffeID", id];
        args.extend(selectors.iter().flat_map(|selector| ["-selector", *selector]));
        let created = self.server_json(&args);
        text(&created["results"][0]["entry"]["id"])
    }

    /// Deletes entries that a test stored.
    pub fn delete_entries(&self, entries: &[String]) {
        for entry in entries {
            self.server_json(&["entry", "delete", "-entryID", entry]);
        }
    }

    /// The attested agents.
    pub fn agents(&self) -> Vec<Value> {
        list(&self.server_json(&["agent", "list"])["agents"])
    }

    /// The SPIFFE ID of the agent of a node, as `k8s_psat` gives it.
    pub fn agent_id(&self, node: &str) -> String {
        let node = self.cluster.get(&["node", node]);
        let uid = node["metadata"]["uid"].as_str().expect("a node has a UID");
        format!("spiffe://{TRUST_DOMAIN}/spire/agent/k8s_psat/{CLUSTER_NAME}/{uid}")
    }

    /// The name of the agent's pod on a node, as soon as there is one that is not about to end.
    pub fn agent_pod(&self, node: &str) -> String {
        wait_for("an agent on the node", READY, || {
            let pods = self.cluster.get(&[
                "-n",
                SYSTEM_NAMESPACE,
                "pods",
                "-l",
                "app.kubernetes.io/component=agent",
                "--field-selector",
                &format!("spec.nodeName={node}"),
            ]);
            let staying = list(&pods["items"])
                .into_iter()
                .find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            let pod = staying.ok_or_else(|| anyhow::anyhow!("{pods}"))?;
            Ok(text(&pod["metadata"]["name"]))
        })
    }

    /// Adds a rule: what `spec` says, of the class that the server acts on.
    pub fn rule(&self, name: &str, mut spec: Value) {
        spec["className"] = json!(CLASS);
        self.cluster.apply(
            &json!({
                "apiVersion": "spire.spiffe.io/v1alpha1",
                "kind": "ClusterSPIFFEID",
                "metadata": {"name": name},
                "spec": spec,
            })
            .to_string(),
        );
    }

    /// One try of a workload to get X.509-SVIDs, in the first container of a pod.
    pub fn fetch(&self, namespace: &str, pod: &str) -> Output {
        let exec = ["-n", namespace, "exec", pod, "--"];
        self.cluster.kubectl(&[&exec[..], &fetch_at(SOCKET)].concat())
    }

    /// The SPIFFE IDs that a pod has, in the agent's order; none when it is refused.
    pub fn identities(&self, namespace: &str, pod: &str) -> Vec<String> {
        ids(&self.fetch(namespace, pod).stdout)
    }

    /// Waits until the pod runs and has exactly this identity, as a workload in its first container sees it.
    pub fn wait_for_identity(&self, namespace: &str, pod: &str, id: &str) {
        self.cluster.wait_pod(namespace, pod);
        wait_for("the pod's identity", READY, || {
            let fetched = self.fetch(namespace, pod);
            let found = ids(&fetched.stdout);
            anyhow::ensure!(found == [id], "{found:?}, not {id}: {}", fetched.stderr);
            Ok(())
        });
    }

    /// Waits until a workload in the pod is refused because nothing covers the pod.
    pub fn wait_for_refusal(&self, namespace: &str, pod: &str) {
        self.cluster.wait_pod(namespace, pod);
        wait_for("the pod's refusal", READY, || {
            let fetched = self.fetch(namespace, pod);
            let said = &fetched.stderr;
            let refused = said.contains("PermissionDenied") && said.contains("no identity issued");
            anyhow::ensure!(refused, "{}{said}", fetched.stdout);
            Ok(())
        });
    }

    /// An open watch of X.509-SVIDs in the pod, as [`Program`] shows it: `SPIFFE ID:` lines for each update.
    pub fn watch(&self, namespace: &str, pod: &str) -> Program {
        let mut command: Command = self.cluster.enter("kubectl");
        command.args(["-n", namespace, "exec", pod, "--"]);
        command.args(["finial", "agent", "api", "watch", "-socketPath", SOCKET]);
        Program::start("watch", &mut command)
    }

    /// Waits until the server and one agent a node are ready.
    pub fn wait_ready(&self) {
        for (namespace, object) in [
            (SERVER_NAMESPACE, "statefulset/finial-server"),
            (SYSTEM_NAMESPACE, "daemonset/finial-agent"),
        ] {
            let limit = format!("--timeout={}s", READY.as_secs());
            let done = self
                .cluster
                .kubectl(&["-n", namespace, "rollout", "status", object, &limit]);
            if !done.status.success() {
                panic!("{object} is not ready: {}\n{}", done.stderr, self.state());
            }
        }
    }

    /// What one looks at when something is wrong: pods, events, logs.
    pub fn state(&self) -> String {
        let mut state = String::new();
        for namespace in [SERVER_NAMESPACE, SYSTEM_NAMESPACE] {
            let look = |args: &[&str]| {
                let output = self.cluster.kubectl(&[&["-n", namespace], args].concat());
                format!("---- {namespace}: {args:?}\n{}{}", output.stdout, output.stderr)
            };
            state += &look(&["get", "pods,pvc,configmaps", "-o", "wide"]);
            state += &look(&["get", "events", "--sort-by=.lastTimestamp"]);
            state += &look(&[
                "logs",
                "--all-containers",
                "--prefix",
                "--tail=50",
                "-l",
                "app.kubernetes.io/name=finial",
            ]);
        }
        state
    }
}

/// The chart's folder.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/finial");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cluster/values.yaml");

/// One try of a workload to get X.509-SVIDs from a socket.
pub fn fetch_at(socket: &str) -> [&str; 9] {
    [
        "finial",
        "agent",
        "api",
        "fetch",
        "x509",
        "-socketPath",
        socket,
        "-timeout",
        "5s",
    ]
}

/// The lines of `finial agent api fetch` and `watch` that name an identity.
pub fn ids(printed: &str) -> Vec<String> {
    let lines = printed.lines();
    lines
        .filter_map(|line| line.strip_prefix("SPIFFE ID:"))
        .map(|id| id.trim().to_owned())
        .collect()
}

/// A volume for the server, which Kubernetes gives to the group of the pod as it does with a disk. It outlives its
/// claim, and is of no use to another one until somebody has wiped it: that is done here.
fn volume(cluster: &Cluster) {
    const PLACE: &str = "/var/lib/finial-volume";
    let node = cluster.nodes().remove(0);
    let on_node = |program: &str, args: &[&str]| {
        let done = Output::of(cluster.enter_node(&node, program).args(args));
        assert!(done.status.success(), "{}", done.stderr);
    };
    let phase = [
        "get",
        "persistentvolume",
        "finial",
        "-o",
        "jsonpath={.status.phase}",
    ];
    let phase = cluster.kubectl(&phase).stdout;
    if phase == "Released" {
        cluster.kubectl_ok(&["delete", "persistentvolume", "finial", "--timeout=60s"]);
        on_node("rm", &["-r", PLACE]);
    }
    on_node("mkdir", &["-p", PLACE]);
    cluster.apply(
        &json!({
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": "finial"},
            "spec": {
                "capacity": {"storage": "1Gi"},
                "accessModes": ["ReadWriteOnce"],
                "persistentVolumeReclaimPolicy": "Retain",
                "local": {"path": PLACE},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                    {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
                ]}]}},
            },
        })
        .to_string(),
    );
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("no text: {value}"))
        .to_owned()
}
