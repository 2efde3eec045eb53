//! Another cluster, in the network of one of this suite: an API server and the controllers of service accounts. It has no
//! kubelet, so its nodes are objects alone, and its pods stay where they were put and run nothing.

use std::path::Path;
use std::process::Command;

use finial_tests::{Output, Program, wait_for, wait_until};
use serde_json::Value;
use tempfile::TempDir;

use crate::cluster::{Cluster, READY, folder};
use crate::door;

/// One of them. Dropping it ends all its parts.
#[derive(Debug)]
pub struct Member<'c> {
    cluster: &'c Cluster,
    kubeconfig: String,
    ports: Vec<String>,
    api_server: Option<Program>,
    others: Vec<Program>,
    // Goes after those who have it.
    dir: TempDir,
}

impl<'c> Member<'c> {
    /// Starts one in the network where the control plane of `cluster` is.
    pub fn start(cluster: &'c Cluster) -> Self {
        let dir = TempDir::with_prefix_in("member-", cluster.dir()).expect("a temporary directory");
        let mut member = Self {
            cluster,
            kubeconfig: dir.path().join("kubeconfig").display().to_string(),
            dir,
            ports: Vec::new(),
            api_server: None,
            others: Vec::new(),
        };
        Output::of(&mut member.part("prepare")).ok("prepare a member");
        let ports = std::fs::read_to_string(member.dir().join("ports")).expect("ports were chosen");
        member.ports = ports.split_whitespace().map(str::to_owned).collect();
        let etcd = Program::start("the member's etcd", &mut member.part("etcd"));
        member.start_api_server();
        let controllers = Program::start("the member's controllers", &mut member.part("controllers"));
        member.others = vec![controllers, etcd];
        member
    }

    /// Files of it, under the same path where the control plane runs.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Of `system:masters`.
    pub fn kubeconfig(&self) -> &Path {
        Path::new(&self.kubeconfig)
    }

    /// Where its API server is, for pods and nodes of the cluster too: host and port.
    pub fn address(&self) -> (&str, &str) {
        ("10.80.0.1", &self.ports[2])
    }

    /// A port that nobody uses there.
    pub fn free_port(&self) -> &str {
        &self.ports[3]
    }

    /// Starts the API server, and waits until it answers.
    pub fn start_api_server(&mut self) {
        let api_server = Program::start("the member's API server", &mut self.part("apiserver"));
        self.api_server = Some(api_server);
        wait_for("the member's API server", READY, || {
            let ready = self.kubectl(&["get", "--raw", "/readyz"]);
            anyhow::ensure!(ready.stdout == "ok", "{}{}", ready.stdout, ready.stderr);
            Ok(())
        });
    }

    /// Kills the API server; what it knew is there when it comes back.
    pub fn kill_api_server(&mut self) {
        self.api_server = None;
        wait_until("the member's API server to be gone", READY, || {
            self.kubectl(&["get", "--raw", "/livez"])
                .stderr
                .contains("refused")
        });
    }

    /// `kubectl` with the rights of `system:masters`.
    pub fn kubectl(&self, args: &[&str]) -> Output {
        self.cluster.kubectl(&self.with_kubeconfig(args))
    }

    /// [`Member::kubectl`], which must exit 0; its standard output.
    pub fn kubectl_ok(&self, args: &[&str]) -> String {
        self.cluster.kubectl_ok(&self.with_kubeconfig(args))
    }

    /// One object, or a list of them.
    pub fn get(&self, args: &[&str]) -> Value {
        self.cluster.get(&self.with_kubeconfig(args))
    }

    /// Creates or changes what `yaml` says.
    pub fn apply(&self, yaml: &str) {
        let args = self.with_kubeconfig(&["apply", "-f", "-"]);
        self.cluster.kubectl_with_input(&args, yaml);
    }

    /// Creates what `json` says and gives what the API server made of it.
    pub fn create(&self, json: &Value) -> Value {
        let args = self.with_kubeconfig(&["create", "-o", "json", "-f", "-"]);
        let printed = self.cluster.kubectl_with_input(&args, &json.to_string());
        serde_json::from_str(&printed).expect("kubectl prints JSON")
    }

    /// Helm's own engine. `None` with a printed reason where that is not installed.
    pub fn helm(&self, args: &[&str]) -> Option<Output> {
        self.cluster.helm_elsewhere(self.kubeconfig(), args)
    }

    /// A token as a kubelet would ask for it; no audience is the API server itself.
    pub fn token(&self, account: (&str, &str), audience: Option<&str>, pod: &Value) -> String {
        door::token(|args| self.kubectl_ok(args), account, audience, Some(pod))
    }

    fn with_kubeconfig<'a>(&'a self, args: &[&'a str]) -> Vec<&'a str> {
        [&["--kubeconfig", &self.kubeconfig], args].concat()
    }

    fn part(&self, name: &str) -> Command {
        let mut command = self.cluster.enter("bash");
        command
            .arg(folder().join("inside/member"))
            .arg(self.dir())
            .arg(name);
        command
    }
}
