//! The original agent in our server's cluster, as a DaemonSet.

use finial_tests::{wait_for, wait_until};
use serde_json::Value;

use super::installation::{IMAGE, Installation, SERVER, SYSTEM};
use super::objects::{World, object};
use super::{NAME, TRUST_DOMAIN};
use crate::cluster::{Cluster, READY};

/// What the paths of this test's SPIFFE IDs begin with.
pub(super) const PATH: &str = "/by-agent/";

const SPACE: &str = "originals-agents";
const SOCKETS: &str = "/run/originals/agent-sockets";
const AGENT: &str = "/opt/spire/bin/spire-agent";

#[test]
fn the_original_agent_attests_and_gives_pods_their_identities() {
    let Some(cluster) = Cluster::shared() else { return };
    let Some(server) = Installation::shared(cluster) else {
        return;
    };
    let agents = Agents { cluster, server };
    cluster.apply(&daemon_set());
    agents.wait_attested();

    cluster.namespace(SPACE);
    let own = format!("kubernetes.io/metadata.name={SPACE}");
    cluster.kubectl_ok(&["label", "--overwrite", "namespace", SPACE, &own]);
    agents.declare();
    for (name, label) in [("chosen", "yes"), ("other", "no")] {
        cluster.apply(&workload(name, label));
        cluster.wait_pod(SPACE, name);
    }
    let by_label = format!("spiffe://{TRUST_DOMAIN}{PATH}label");
    let by_rule = |pod: &str| format!("spiffe://{TRUST_DOMAIN}{PATH}pod/{pod}");

    // By what the kubelet says of the pod, and by what the original controller-manager made of a rule.
    agents.wait_identities("chosen", &[&by_label, &by_rule("chosen")]);
    agents.wait_identities("other", &[&by_rule("other")]);
    let token = agents.exec(
        "chosen",
        &["api", "fetch", "jwt", "-audience", "here", "-spiffeID", &by_label],
    );
    assert!(token.contains(&by_label), "{token}");

    // A label that goes takes its identity along; the pod keeps the other.
    cluster.kubectl_ok(&["-n", SPACE, "label", "--overwrite", "pod", "chosen", "chosen=no"]);
    agents.wait_identities("chosen", &[&by_rule("chosen")]);

    // Another pod of the DaemonSet is the same agent.
    let before = agents.attested();
    cluster.kubectl_ok(&[
        "-n",
        SYSTEM,
        "delete",
        "pod",
        "-l",
        "app=original-agent",
        "--wait",
    ]);
    agents.wait_ready();
    wait_until("the agents to attest again", READY, || {
        let now = agents.attested();
        let serial = |list: &[Value], id: &Value| {
            let found = list.iter().find(|agent| agent["id"] == *id);
            found.map(|agent| agent["x509svid_serial_number"].clone())
        };
        now.len() == before.len()
            && before.iter().all(|agent| {
                serial(&now, &agent["id"]).is_some_and(|now| now != agent["x509svid_serial_number"])
            })
    });
    agents.wait_identities("other", &[&by_rule("other")]);
}

struct Agents<'a> {
    cluster: &'a Cluster,
    server: &'a Installation,
}

impl Agents<'_> {
    /// One agent on each node, under the ID that its node gives it.
    fn wait_attested(&self) {
        self.wait_ready();
        let world = World::read(self.cluster);
        let mut expected: Vec<String> = self
            .cluster
            .nodes()
            .iter()
            .map(|node| world.agent(node))
            .collect();
        expected.sort();
        let attested = self.attested();
        let mut paths: Vec<&str> = attested
            .iter()
            .filter_map(|agent| agent["id"]["path"].as_str())
            .collect();
        paths.sort_unstable();
        assert_eq!(paths, expected);
        for agent in attested {
            assert_eq!(agent["attestation_type"], "k8s_psat", "{agent}");
            let selectors = agent["selectors"].to_string();
            assert!(selectors.contains(&format!("agent_ns:{SYSTEM}")), "{selectors}");
        }
    }

    fn wait_ready(&self) {
        let limit = format!("--timeout={}s", READY.as_secs());
        let rollout = [
            "-n",
            SYSTEM,
            "rollout",
            "status",
            "daemonset/original-agent",
            &limit,
        ];
        let output = self.cluster.kubectl(&rollout);
        if !output.status.success() {
            let logs = ["-n", SYSTEM, "logs", "--tail=60", "-l", "app=original-agent"];
            let pods = self
                .cluster
                .kubectl(&["-n", SYSTEM, "describe", "pods", "-l", "app=original-agent"]);
            panic!(
                "{}{}\n{}",
                output.stderr,
                pods.stdout,
                self.cluster.kubectl(&logs).stdout
            );
        }
    }

    fn attested(&self) -> Vec<Value> {
        let shown = self.server.server(&["agent", "list", "-output", "json"]);
        let shown: Value = serde_json::from_str(&shown).expect("agents are shown as JSON");
        shown["agents"].as_array().cloned().unwrap_or_default()
    }

    /// An entry by a pod's label below node-b's agent, and a rule for each pod of the namespace.
    fn declare(&self) {
        let agent = World::read(self.cluster).agent("node-b");
        let entry = format!(
            "\n  className: {NAME}\n  spiffeID: spiffe://{TRUST_DOMAIN}{PATH}label\n  parentID: spiffe://{TRUST_DOMAIN}{agent}\n  \
             selectors: ['k8s:ns:{SPACE}', 'k8s:pod-label:chosen:yes']"
        );
        let rule = format!(
            "\n  className: {NAME}\n  spiffeIDTemplate: 'spiffe://{{{{ .TrustDomain }}}}{PATH}pod/{{{{ .PodMeta.Name }}}}'\n  \
             namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {SPACE}}}}}"
        );
        let objects =
            object("ClusterStaticEntry", "by-label", &entry) + &object("ClusterSPIFFEID", "by-pod", &rule);
        // The webhook answers once its certificate is there.
        let file = self.cluster.dir().join("originals-agents.yaml");
        std::fs::write(&file, objects).expect("a file is written");
        let file = file.display().to_string();
        wait_for("the objects to be taken", READY, || {
            let applied = self.cluster.kubectl(&["apply", "-f", &file]);
            anyhow::ensure!(applied.status.success(), "{}", applied.stderr);
            Ok(())
        });
    }

    /// A command of the original agent in a workload's pod; what it prints.
    fn exec(&self, pod: &str, args: &[&str]) -> String {
        let socket = format!("{SOCKETS}/spire-agent.sock");
        let mut all = vec!["-n", SPACE, "exec", pod, "--", AGENT];
        all.extend(args);
        all.extend(["-socketPath", &socket]);
        self.cluster.kubectl(&all).stdout
    }

    /// Waits until the pod is given these X.509-SVIDs and no other.
    fn wait_identities(&self, pod: &str, expected: &[&str]) {
        let mut expected: Vec<String> = expected.iter().map(|id| (*id).to_owned()).collect();
        expected.sort();
        wait_for(&format!("the identities of the pod {pod}"), READY, || {
            let fetched = self.exec(pod, &["api", "fetch", "x509"]);
            let ids = fetched.lines().filter_map(|line| line.strip_prefix("SPIFFE ID:"));
            let mut ids: Vec<String> = ids.map(|id| id.trim().to_owned()).collect();
            ids.sort();
            anyhow::ensure!(ids == expected, "{ids:?}\n{fetched}");
            Ok(())
        });
    }
}

/// As the original's users run it: in the node's network and pid namespace, with a token for the server.
fn daemon_set() -> String {
    format!(
        r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: original-agent, namespace: {SYSTEM}}}
data:
  agent.conf: |
    agent {{
      trust_domain = "{TRUST_DOMAIN}"
      server_address = "originals-server.{SERVER}.svc.cluster.local"
      server_port = "443"
      socket_path = "{SOCKETS}/spire-agent.sock"
      data_dir = "/run/spire/data"
      trust_bundle_path = "/run/spire/bundle/bundle.spiffe"
      trust_bundle_format = "spiffe"
      log_level = "DEBUG"
    }}
    plugins {{
      NodeAttestor "k8s_psat" {{ plugin_data {{ cluster = "{NAME}" }} }}
      KeyManager "memory" {{ plugin_data {{}} }}
      # The kubelet of node-b vouches for itself, and the original knows one authority for all.
      WorkloadAttestor "k8s" {{ plugin_data {{ skip_kubelet_verification = true }} }}
    }}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {{name: original-agent, namespace: {SYSTEM}}}
spec:
  selector: {{matchLabels: {{app: original-agent}}}}
  updateStrategy: {{type: RollingUpdate, rollingUpdate: {{maxUnavailable: 2}}}}
  template:
    metadata: {{labels: {{app: original-agent}}}}
    spec:
      serviceAccountName: originals-agent
      automountServiceAccountToken: true
      hostPID: true
      hostNetwork: true
      dnsPolicy: ClusterFirstWithHostNet
      terminationGracePeriodSeconds: 5
      containers:
      - name: agent
        image: {IMAGE}
        imagePullPolicy: Never
        command: [{AGENT}, run, -config, /etc/spire/agent.conf]
        readinessProbe:
          exec: {{command: [{AGENT}, healthcheck, -socketPath, {SOCKETS}/spire-agent.sock]}}
          periodSeconds: 2
          timeoutSeconds: 5
        volumeMounts:
        - {{name: config, mountPath: /etc/spire, readOnly: true}}
        - {{name: data, mountPath: /run/spire/data}}
        - {{name: bundle, mountPath: /run/spire/bundle, readOnly: true}}
        - {{name: token, mountPath: /var/run/secrets/tokens, readOnly: true}}
        - {{name: sockets, mountPath: {SOCKETS}}}
      volumes:
      - {{name: config, configMap: {{name: original-agent}}}}
      - {{name: data, emptyDir: {{}}}}
      - {{name: bundle, configMap: {{name: spire-bundle}}}}
      - {{name: sockets, hostPath: {{path: {SOCKETS}, type: DirectoryOrCreate}}}}
      - name: token
        projected: {{sources: [{{serviceAccountToken: {{path: spire-agent, expirationSeconds: 7200, audience: spire-server}}}}]}}
"#
    )
}

fn workload(name: &str, label: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {SPACE}, labels: {{chosen: '{label}'}}}}
spec:
  nodeName: node-b
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: {IMAGE}
    imagePullPolicy: Never
    command: [sleep, "3600"]
    volumeMounts: [{{name: sockets, mountPath: {SOCKETS}, readOnly: true}}]
  volumes: [{{name: sockets, hostPath: {{path: {SOCKETS}, type: Directory}}}}]
"#
    )
}
