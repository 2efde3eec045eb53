//! One server for two clusters, by the commands and values of docs/kubernetes.md: agents and pods of the other one get
//! identities, and while its API server is away the server's own cluster goes on.

use std::path::Path;

use finial_tests::{Output, Program, finial, wait_for, wait_until};
use serde_json::{Value, json};
use tonic::Code;

use crate::cluster::{Cluster, READY};
use crate::door::{self, AUDIENCE, Door};
use crate::installation::{
    CHART, CLASS, CLUSTER_NAME, Installation, RELEASE_NAMESPACE, SERVER_NAMESPACE, SYSTEM_NAMESPACE,
    TRUST_DOMAIN,
};
use crate::member::Member;
use crate::turns::{Turn, end};
use crate::workload::Workload;

/// What the page calls the other cluster.
const EAST: &str = "east";
/// A node of it, which is an object alone.
const NODE: &str = "east-node";
/// What the page calls the address of its API server.
const PAGES_ADDRESS: &str = "https://api.east.example.org:6443";

#[tokio::test]
async fn a_server_gives_identities_in_a_second_cluster_and_goes_on_in_its_own_without_it() {
    let page = Page::read();
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let mut east = Member::start(cluster);
    let configured = |values: &str, name: &str| {
        let file = east.dir().join(name);
        std::fs::write(&file, values).expect("values are written");
        file.display().to_string()
    };

    // As the page says: the chart without a server, a kubeconfig with a token of its account, the server's new values.
    let values = configured(&page.values_there, "there.yaml");
    install_there(installation, &east, &values);
    east.apply(&page.secret);
    wait_until("the token of the server's account", READY, || {
        let secret = ["-n", SERVER_NAMESPACE, "secret", "finial-server-token"];
        east.get(&secret)["data"]["token"].is_string()
    });
    let (host, port) = east.address();
    let commands = page
        .commands_there
        .replace(PAGES_ADDRESS, &format!("https://{host}:{port}"));
    type_in(cluster, east.dir(), Some(east.kubeconfig()), &commands);
    type_in(cluster, east.dir(), None, &page.commands_here);
    let values = configured(&page.values_here, "here.yaml");
    let upgrade = installation.with_values(&["upgrade", "finial"]);
    let upgraded = installation.helm(&[&upgrade[..], &["--values", &values]].concat());
    upgraded
        .expect("the engine was there for the installation")
        .ok("upgrade with the values of the page");
    installation.wait_ready();

    published(installation, &east);
    let agent = Agent::start(installation, &east);
    agent.wait_attested();
    only_by_its_own_name(cluster, &east, &agent).await;

    rules_there(&east);
    let web = pod(&east, "shop", "web", json!({"app": "backend"}));
    let stays = pod(&east, "shop", "stays", json!({"app": "backend"}));
    for (name, pod) in [("web", &web), ("stays", &stays)] {
        let id = identity(name);
        wait_for(&format!("the entry of {name}"), READY, || {
            let entries = entries_of(installation, pod);
            let said: Vec<_> = entries
                .iter()
                .map(|entry| (path(&entry["spiffe_id"]), path(&entry["parent_id"])))
                .collect();
            anyhow::ensure!(said == [(id.clone(), agent.id.clone())], "{entries:?}");
            Ok(())
        });
        agent.wait_issued(&id);
    }
    let why = why(installation, "shop/web");
    assert_eq!(why["verdict"], "HAS_IDENTITY", "{why}");
    assert_eq!(why["node"]["agents"][0]["spiffe_id"], agent.id.as_str(), "{why}");
    let gone = [
        "-n",
        "shop",
        "delete",
        "pod",
        "web",
        "--force",
        "--grace-period=0",
    ];
    east.kubectl_ok(&gone);
    wait_until("the entry to go with its pod", READY, || {
        entries_of(installation, &web).is_empty()
    });

    // Without that API server: the server's own cluster, also after a restart of the server.
    east.kill_api_server();
    let space = cluster.namespace("meanwhile");
    let started = |name: &str| {
        cluster.apply(&Workload::new(&space, name).manifest());
        let id = format!("spiffe://{TRUST_DOMAIN}/ns/{space}/sa/default");
        installation.wait_for_identity(&space, name, &id);
    };
    started("before");
    cluster.kubectl_ok(&["-n", &space, "delete", "pod", "before", "--wait=false"]);
    assert_eq!(entries_of(installation, &stays).len(), 1, "what was known stays");
    cluster.kubectl_ok(&["-n", SERVER_NAMESPACE, "delete", "pod", "finial-server-0"]);
    installation.wait_ready();
    started("after");
    east.start_api_server();
    wait_until("the other cluster's pods", READY, || {
        entries_of(installation, &stays).len() == 1
    });

    // Agents log what they have; those of the server's own cluster never had anything of the other one.
    let log = cluster.kubectl_ok(&[
        "-n",
        SYSTEM_NAMESPACE,
        "logs",
        "-c",
        "agent",
        "--tail=-1",
        "-l",
        "app.kubernetes.io/component=agent",
    ]);
    assert!(log.contains(&format!("/ns/{space}/sa/default")), "{log}");
    for name in ["web", "stays"] {
        assert!(!log.contains(&identity(name)), "{log}");
    }
    drop(agent);
    cluster.kubectl_ok(&["-n", SERVER_NAMESPACE, "delete", "secret", "clusters"]);
    end(cluster, &space);
}

/// The chart in the other cluster. Nothing of it runs there, so nothing is waited for.
fn install_there(installation: &Installation<'_>, east: &Member<'_>, values: &str) {
    let service = ["-n", SERVER_NAMESPACE, "service", "finial-server"];
    let service = installation.cluster().get(&service);
    let server = format!(
        "spire-agent.server.address={}",
        text(&service["spec"]["clusterIP"])
    );
    let port = format!("spire-agent.healthChecks.port={}", east.free_port());
    let mut args = vec!["upgrade", "--install", "finial", CHART, "--no-wait"];
    args.extend(["--namespace", RELEASE_NAMESPACE, "--values", values]);
    for set in [server.as_str(), &port, "spire-agent.logLevel=debug"] {
        args.extend(["--set", set]);
    }
    let installed = east.helm(&args);
    installed
        .expect("the engine was there for the installation")
        .ok("install the chart in the other cluster");
}

/// The ConfigMap for the other cluster's agents has the server's bundle.
fn published(installation: &Installation<'_>, east: &Member<'_>) {
    let own = installation.server(&["bundle", "show", "-format", "spiffe"]);
    let own: Value = serde_json::from_str(&own.stdout).expect("a bundle");
    wait_for("the bundle in the other cluster", READY, || {
        let map = east.kubectl(&[
            "-n",
            SYSTEM_NAMESPACE,
            "get",
            "configmap",
            "spire-bundle",
            "-o",
            r"jsonpath={.data.bundle\.spiffe}",
        ]);
        anyhow::ensure!(map.status.success(), "{}", map.stderr);
        let published: Value = serde_json::from_str(&map.stdout)?;
        anyhow::ensure!(published["keys"] == own["keys"], "{published}, not {own}");
        anyhow::ensure!(!own["keys"].as_array().is_none_or(Vec::is_empty), "{own}");
        Ok(())
    });
}

/// A token says of which cluster it is, whatever an agent says.
async fn only_by_its_own_name(cluster: &Cluster, east: &Member<'_>, agent: &Agent<'_>) {
    let account = (SYSTEM_NAMESPACE, "finial-agent");
    let theirs = east.token(account, Some(AUDIENCE), &agent.pod);
    let pods = cluster.get(&[
        "-n",
        SYSTEM_NAMESPACE,
        "pods",
        "-l",
        "app.kubernetes.io/component=agent",
    ]);
    let ours = door::token(
        |args| cluster.kubectl_ok(args),
        account,
        Some(AUDIENCE),
        Some(&pods["items"][0]),
    );
    let door = Door::open(cluster, "door-several");
    for (name, token) in [(CLUSTER_NAME, &theirs), (EAST, &ours)] {
        let refused = door.attest(name, token).await.expect_err(name);
        assert_eq!(refused.code(), Code::PermissionDenied, "{name}: {refused:?}");
        let reason = "token is not good for this cluster and audience";
        assert!(refused.message().contains(reason), "{name}: {refused:?}");
    }
}

/// A rule of the other cluster, and a namespace for its pods.
fn rules_there(east: &Member<'_>) {
    east.create(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    east.apply(
        &json!({
            "apiVersion": "spire.spiffe.io/v1alpha1",
            "kind": "ClusterSPIFFEID",
            "metadata": {"name": "backend"},
            "spec": {
                "className": CLASS,
                "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .ClusterName }}/{{ .PodMeta.Name }}",
                "podSelector": {"matchLabels": {"app": "backend"}},
            },
        })
        .to_string(),
    );
    wait_until("the namespace's service account", READY, || {
        east.kubectl(&["-n", "shop", "get", "serviceaccount", "default"])
            .status
            .success()
    });
}

fn identity(pod: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{EAST}/{pod}")
}

/// A pod of the other cluster's node, which no kubelet runs; what its API server made of it.
fn pod(east: &Member<'_>, space: &str, name: &str, labels: Value) -> Value {
    let account = if space == SYSTEM_NAMESPACE {
        "finial-agent"
    } else {
        "default"
    };
    east.create(&json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": space, "labels": labels},
        "spec": {
            "nodeName": NODE,
            "serviceAccountName": account,
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "local.test/pause:1"}],
        },
    }))
}

/// An agent of the other cluster: the real one, with the configuration that the chart made for it there, and with what a
/// kubelet would have given it.
struct Agent<'a> {
    installation: &'a Installation<'a>,
    program: Program,
    pod: Value,
    id: String,
}

impl<'a> Agent<'a> {
    fn start(installation: &'a Installation<'a>, east: &Member<'_>) -> Self {
        let node = east.create(&json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}));
        let labels = json!({"app.kubernetes.io/component": "agent"});
        let pod = pod(east, SYSTEM_NAMESPACE, "agent", labels);
        let account = (SYSTEM_NAMESPACE, "finial-agent");
        let config = ["-n", SYSTEM_NAMESPACE, "configmap", "finial-agent"];
        let config = text(&east.get(&config)["data"]["agent.yaml"]).to_owned();
        let folder = east.dir().join("agent");
        std::fs::create_dir(&folder).expect("a folder for the agent");
        for (name, content) in [
            ("agent.yaml", config),
            ("token", east.token(account, None, &pod)),
            ("spire-agent", east.token(account, Some(AUDIENCE), &pod)),
        ] {
            std::fs::write(folder.join(name), content).expect("a file for the agent");
        }
        std::fs::copy(east.dir().join("pki/ca.crt"), folder.join("ca.crt")).expect("the authority");
        let (host, port) = east.address();
        let mut command = installation.cluster().enter("env");
        command.arg(format!("KUBERNETES_SERVICE_HOST={host}"));
        command.arg(format!("KUBERNETES_SERVICE_PORT={port}"));
        // Where its kubelet would be.
        command.arg("MY_NODE_NAME=192.0.2.1");
        command.args(["unshare", "--mount", "--propagation", "private"]);
        command
            .args(["sh", "-c", AS_IN_A_POD, "sh"])
            .arg(&folder)
            .arg(finial());
        let uid = text(&node["metadata"]["uid"]);
        Agent {
            installation,
            program: Program::start("the other cluster's agent", &mut command),
            pod,
            id: format!("spiffe://{TRUST_DOMAIN}/spire/agent/k8s_psat/{EAST}/{uid}"),
        }
    }

    fn wait_attested(&self) {
        wait_for("the other cluster's agent", READY, || {
            let agents = self.installation.agents();
            let own = agents.iter().find(|agent| path(&agent["id"]) == self.id);
            let own =
                own.ok_or_else(|| anyhow::anyhow!("{agents:?}\n{}", self.program.lines().join("\n")))?;
            let selectors = own["selectors"].to_string();
            for said in [format!("cluster:{EAST}"), format!("agent_node_name:{NODE}")] {
                assert!(selectors.contains(&said), "{selectors}");
            }
            Ok(())
        });
    }

    /// Waits until it has an SVID with this ID.
    fn wait_issued(&self, id: &str) {
        wait_for(&format!("an SVID for {id}"), READY, || {
            let lines = self.program.lines();
            let issued = |line: &String| line.contains("X509-SVID issued") && line.contains(id);
            anyhow::ensure!(lines.iter().any(issued), "{}", lines.join("\n"));
            Ok(())
        });
    }
}

impl Drop for Agent<'_> {
    /// Other tests count agents.
    fn drop(&mut self) {
        self.program.kill_hard();
        let evicted = self
            .installation
            .server(&["agent", "evict", "-spiffeID", &self.id]);
        if !evicted.status.success() {
            eprintln!("{}", evicted.stderr);
        }
    }
}

/// Runs `$2` with the configuration and the tokens in the folder `$1`, in folders as the chart's DaemonSet has them.
const AS_IN_A_POD: &str = r#"set -e
for folder in /run /var/lib /dev/shm; do mount -t tmpfs -o mode=755 tmpfs $folder; done
mkdir -p /var/lib/finial/agent /run/finial/agent-sockets /run/finial/csi
mkdir -p /var/run/secrets/kubernetes.io/serviceaccount /var/run/secrets/tokens
cp "$1/token" "$1/ca.crt" /var/run/secrets/kubernetes.io/serviceaccount
cp "$1/spire-agent" /var/run/secrets/tokens
exec setpriv --pdeathsig KILL "$2" agent run -config "$1/agent.yaml""#;

fn entries_of(installation: &Installation<'_>, pod: &Value) -> Vec<Value> {
    let selector = format!("k8s:pod-uid:{}", text(&pod["metadata"]["uid"]));
    let shown = installation.server_json(&["entry", "show", "-selector", &selector]);
    shown["entries"].as_array().cloned().unwrap_or_default()
}

/// What the server says about a pod of the other cluster.
fn why(installation: &Installation<'_>, pod: &str) -> Value {
    let output = installation.why(&["-cluster", EAST, pod]);
    output.ok("finial why").json()
}

/// Types commands of the page in a folder, with `kubectl` for this cluster, or for that of the server.
fn type_in(cluster: &Cluster, folder: &Path, kubeconfig: Option<&Path>, commands: &str) {
    let mut command = cluster.enter("env");
    if let Some(kubeconfig) = kubeconfig {
        command.arg(format!("KUBECONFIG={}", kubeconfig.display()));
    }
    let script = format!("set -e; cd {}; {commands}", folder.display());
    Output::of(command.args(["bash", "-o", "pipefail", "-c", &script])).ok(commands);
}

/// What docs/kubernetes.md says about several clusters.
struct Page {
    values_there: String,
    secret: String,
    commands_there: String,
    commands_here: String,
    values_here: String,
}

impl Page {
    fn read() -> Self {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/kubernetes.md");
        let page = std::fs::read_to_string(page).expect("the page is text");
        let (_, section) = page.split_once("\n## Several clusters\n").expect("the section");
        let (section, _) = section.split_once("\n## ").expect("a section after it");
        let blocks = |kind: &str| {
            let marker = format!("```{kind}\n");
            let begun = section.split(&marker).skip(1);
            begun
                .filter_map(|rest| rest.split("```").next().map(str::to_owned))
                .collect::<Vec<_>>()
        };
        let [values_there, secret, values_here] =
            <[String; 3]>::try_from(blocks("yaml")).expect("three objects and values");
        let commands = blocks("console").into_iter().map(|block| {
            // What follows a command's line is what it reads.
            let lines = block.lines();
            let typed = lines.map(|line| line.strip_prefix("$ ").unwrap_or(line));
            typed.collect::<Vec<_>>().join("\n")
        });
        let [commands_there, commands_here] =
            <[String; 2]>::try_from(commands.collect::<Vec<_>>()).expect("commands in both clusters");
        assert!(commands_there.contains(PAGES_ADDRESS), "{commands_there}");
        Page {
            values_there,
            secret,
            commands_there,
            commands_here,
            values_here,
        }
    }
}

/// A SPIFFE ID as the commands' JSON has it.
fn path(id: &Value) -> String {
    format!("spiffe://{}{}", text(&id["trust_domain"]), text(&id["path"]))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}
