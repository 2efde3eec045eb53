//! One running cluster and what tests do with it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use finial_tests::{Output, Peer, absent, wait_until};
use serde_json::{Value, json};
use tempfile::TempDir;

/// How long a pod may take to run, on a machine that is busy.
pub const READY: Duration = Duration::from_secs(120);

/// A cluster in namespaces of its own. Dropping it ends it; so does the end of this process, which takes its directory
/// along too.
#[derive(Debug)]
pub struct Cluster {
    dir: TempDir,
    programs: PathBuf,
}

impl Cluster {
    /// The one with two nodes that all tests of this program share, started by the first that asks.
    pub fn shared() -> Option<&'static Self> {
        static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
        SHARED.get_or_init(|| Cluster::start(2)).as_ref()
    }

    /// Starts one with `nodes` nodes: `node-a`, `node-b` and so on. `None` with a printed reason where there can be none.
    pub fn start(nodes: usize) -> Option<Self> {
        let programs = programs()?;
        let dir = TempDir::with_prefix("finial-cluster-").expect("a temporary directory");
        let cluster = Cluster { dir, programs };
        let owner = std::process::id().to_string();
        let up = Output::of(cluster.script("up").arg(cluster.dir()).args([
            "--nodes",
            &nodes.to_string(),
            "--owner",
            &owner,
        ]));
        assert!(
            up.status.success(),
            "no cluster came up:\n{}{}",
            up.stdout,
            up.stderr
        );
        eprintln!("{}", up.stdout.trim_end());
        Some(cluster)
    }

    /// What every part logs to, and a place that pods' nodes see under the same path.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A new Kubernetes namespace; a test works in its own. Gives the name back once pods can be made in it. It has the
    /// label with its name, which Kubernetes gives from 1.21 on.
    pub fn namespace(&self, name: &str) -> String {
        self.create(&json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
        }));
        wait_until("the namespace's service account", READY, || {
            let account = [
                "-n",
                name,
                "get",
                "serviceaccount",
                "default",
                "-o",
                "jsonpath={.secrets}",
            ];
            self.kubectl(&account).stdout.contains("name")
        });
        name.to_owned()
    }

    /// `kubectl` with the rights of `system:masters`.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        Output::of(self.enter("kubectl").args(args))
    }

    /// [`Cluster::kubectl`], which must exit 0; its standard output.
    pub fn kubectl_ok(&self, args: &[&str]) -> String {
        self.kubectl(args).ok(format!("kubectl {args:?}")).stdout
    }

    /// One object, or a list of them, by `kubectl get`.
    pub fn get(&self, args: &[&str]) -> Value {
        let mut all = vec!["get", "-o", "json"];
        all.extend(args);
        serde_json::from_str(&self.kubectl_ok(&all)).expect("kubectl prints JSON")
    }

    /// Creates or changes what `yaml` says.
    pub fn apply(&self, yaml: &str) {
        self.kubectl_with_input(&["apply", "-f", "-"], yaml);
    }

    /// Creates what `json` says and gives what the apiserver made of it: the way to ask for a review.
    pub fn create(&self, json: &Value) -> Value {
        let printed = self.kubectl_with_input(&["create", "-o", "json", "-f", "-"], &json.to_string());
        serde_json::from_str(&printed).expect("kubectl prints JSON")
    }

    /// `tests/cluster/helm.py` with Helm's own engine. `None` with a printed reason where that is not installed.
    pub fn helm(&self, args: &[&str]) -> Option<Output> {
        self.helm_elsewhere(&self.dir().join("kubeconfig"), args)
    }

    /// [`Cluster::helm`] for another cluster, which is reached from where the control plane runs.
    pub fn helm_elsewhere(&self, kubeconfig: &Path, args: &[&str]) -> Option<Output> {
        let peer = Peer::find(
            "FINIAL_TEST_HELM_PYTHON",
            "python3",
            &["-c", "import helm_python"],
        )?;
        Some(Output::of(
            self.enter("env")
                .arg(format!("KUBECONFIG={}", kubeconfig.display()))
                .arg(peer.program())
                .arg(folder().join("helm.py"))
                .args(args),
        ))
    }

    /// Waits until the pod's containers are all ready.
    pub fn wait_pod(&self, namespace: &str, pod: &str) {
        let limit = format!("--timeout={}s", READY.as_secs());
        let output = self.kubectl(&[
            "-n",
            namespace,
            "wait",
            "--for=condition=Ready",
            &limit,
            &format!("pod/{pod}"),
        ]);
        if !output.status.success() {
            let described = self.kubectl(&["-n", namespace, "describe", "pod", pod]).stdout;
            panic!("pod {pod} is not ready: {}\n{described}", output.stderr);
        }
    }

    /// What a shell in the pod's first container prints; it must exit 0.
    pub fn shell(&self, namespace: &str, pod: &str, script: &str) -> String {
        self.kubectl_ok(&["-n", namespace, "exec", pod, "--", "sh", "-c", script])
    }

    /// A command where the control plane runs: its network, its processes.
    pub fn enter(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.script("enter");
        command.arg(self.dir()).arg(program);
        command
    }

    /// A command on a node, outside any pod.
    pub fn enter_node(&self, node: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.script("enter");
        command.args(["--node", node]).arg(self.dir()).arg(program);
        command
    }

    /// Makes an image with `tests/cluster/image.py` (its options are `content`) and brings it to each node. Pods name
    /// it with `imagePullPolicy: Never`. Gives the digest that pods' statuses show.
    pub fn import_image(&self, name: &str, content: &[&str]) -> String {
        let archive = self.dir().join(format!("{}.tar", name.replace(['/', ':'], "_")));
        let made = Output::of(self.script("image.py").arg(&archive).arg(name).args(content));
        assert!(made.status.success(), "no image {name}: {}", made.stderr);
        std::thread::scope(|scope| {
            for node in self.nodes() {
                let mut import = self.enter_node(&node, "ctr");
                import.args(["image", "import"]).arg(&archive);
                scope.spawn(move || {
                    let import = Output::of(&mut import);
                    assert!(
                        import.status.success(),
                        "{node} takes no image {name}: {}",
                        import.stderr
                    );
                });
            }
        });
        std::fs::remove_file(&archive).expect("the archive was made");
        made.stdout.trim().to_owned()
    }

    /// The nodes' names in order.
    pub fn nodes(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir().join("nodes")).expect("a cluster has nodes");
        let mut names: Vec<_> = entries
            .map(|entry| {
                entry
                    .expect("a folder entry")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        names.sort();
        names
    }

    /// The statically linked busybox that the images are made of.
    pub fn busybox(&self) -> PathBuf {
        self.programs.join("root/bin/busybox")
    }

    /// [`Cluster::kubectl_ok`] with something to read.
    pub fn kubectl_with_input(&self, args: &[&str], input: &str) -> String {
        let output = Output::with_input(self.enter("kubectl").args(args), input);
        output.ok(format!("kubectl {args:?} with {input}\n")).stdout
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(folder().join(name));
        command.env("FINIAL_TEST_CLUSTER", &self.programs);
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let down = Output::of(self.script("down").arg(self.dir()));
        if !down.status.success() {
            eprintln!("{}", down.stderr);
        }
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.dir().join("log/cluster")).unwrap_or_default();
            eprintln!("---- the cluster logged:\n{log}");
        }
    }
}

/// The folder of this suite.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster")
}

/// The folder of the programs, where a cluster can run here at all.
fn programs() -> Option<PathBuf> {
    let Some(programs) = std::env::var_os("FINIAL_TEST_CLUSTER").map(PathBuf::from) else {
        absent("a cluster: FINIAL_TEST_CLUSTER names no folder that tests/cluster/build has made");
        return None;
    };
    if !programs.join("ready").is_file() {
        absent(&format!("a cluster: {} is not built", programs.display()));
        return None;
    }
    if !rustix::process::geteuid().is_root() {
        absent("a cluster: it needs root");
        return None;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    if !mounts.lines().any(|line| line.contains(" - cgroup cgroup ")) {
        absent("a cluster: no cgroup hierarchy of version 1 is mounted here");
        return None;
    }
    Some(programs)
}
