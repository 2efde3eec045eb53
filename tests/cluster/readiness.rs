//! How long after a pod is bound to a node its identity is at the node's agent, measured. To be run manually, on a
//! machine without other load:
//!
//!     cargo test --release -p finial-tests --test cluster readiness -- --ignored --nocapture

use std::collections::BTreeMap;

use finial_tests::{Output, wait_until};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::cluster::{Cluster, READY};
use crate::installation::{Installation, SYSTEM_NAMESPACE, TRUST_DOMAIN};
use crate::workload::Workload;

const BATCHES: usize = 2;
const PODS: usize = 100;
/// When each process of a container was started: the container's id and Unix time in seconds, exact to a hundredth.
const STARTS: &str = r"
import os, re, time
tick = os.sysconf('SC_CLK_TCK')
booted = time.time() - float(open('/proc/uptime').read().split()[0])
for pid in filter(str.isdigit, os.listdir('/proc')):
    try:
        cgroup = open(f'/proc/{pid}/cgroup').read()
        stat = open(f'/proc/{pid}/stat').read()
    except OSError:
        continue
    if found := re.search('/([0-9a-f]{64})', cgroup):
        print(found[1], booted + int(stat.rpartition(')')[2].split()[19]) / tick)
";

/// What is known of a pod; times in seconds of Unix time.
#[derive(Debug, Default)]
struct Times {
    bound: Option<f64>,
    ready: Option<f64>,
    started: Option<f64>,
}

#[test]
#[ignore = "a measurement: it needs minutes, and a machine of its own"]
fn identities_are_ready_before_containers_start() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let space = cluster.namespace("readiness");
    installation.rule(
        &space,
        json!({
            "spiffeIDTemplate": format!("spiffe://{TRUST_DOMAIN}/readiness/{{{{ .PodMeta.Name }}}}"),
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}},
        }),
    );
    let mut times = BTreeMap::new();
    for batch in 0..BATCHES {
        let names: Vec<String> = (0..PODS).map(|number| format!("pod-{batch}-{number}")).collect();
        let pods: Vec<String> = names
            .iter()
            .map(|name| {
                let pod = Workload::new(&space, name)
                    .main("image", json!("local.test/pause:1"))
                    .main("command", Value::Null);
                pod.manifest()
            })
            .collect();
        let pods = format!(
            r#"{{"apiVersion": "v1", "kind": "List", "items": [{}]}}"#,
            pods.join(",")
        );
        cluster.apply(&pods);
        wait_until("all pods to run", 10 * READY, || {
            let running = [
                "-n",
                &space,
                "get",
                "pods",
                "--field-selector",
                "status.phase=Running",
                "-o",
                "name",
            ];
            cluster.kubectl_ok(&running).lines().count() == PODS
        });
        observe(cluster, &space, &mut times);
        let delete = [
            "-n",
            &space,
            "delete",
            "pods",
            "--all",
            "--wait",
            "--grace-period=1",
        ];
        cluster.kubectl_ok(&delete);
    }
    issued(installation, &mut times);
    report(&times);
}

/// When the scheduler bound each pod, and when its container was started.
fn observe(cluster: &Cluster, space: &str, times: &mut BTreeMap<String, Times>) {
    let scheduled = ["-n", space, "events", "--field-selector", "reason=Scheduled"];
    for event in cluster.get(&scheduled)["items"].as_array().expect("events") {
        let name = event["involvedObject"]["name"].as_str().expect("a name");
        let at = event["eventTime"].as_str().expect("a time");
        times.entry(name.to_owned()).or_default().bound = Some(unix(at));
    }
    let mut starts = BTreeMap::new();
    for node in cluster.nodes() {
        let found = Output::of(cluster.enter_node(&node, "python3").args(["-c", STARTS])).stdout;
        for line in found.lines() {
            let (id, at) = line.split_once(' ').expect("two words");
            let at: f64 = at.parse().expect("a number");
            let first = starts.entry(id.to_owned()).or_insert(at);
            *first = first.min(at);
        }
    }
    for pod in cluster.get(&["-n", space, "pods"])["items"]
        .as_array()
        .expect("pods")
    {
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let id = pod["status"]["containerStatuses"][0]["containerID"]
            .as_str()
            .unwrap_or_default();
        let started = starts.get(id.trim_start_matches("containerd://"));
        times.entry(name.to_owned()).or_default().started = started.copied();
    }
}

/// When each agent had the first X509-SVID of each pod, by its log.
fn issued(installation: &Installation<'_>, times: &mut BTreeMap<String, Times>) {
    let cluster = installation.cluster();
    for node in cluster.nodes() {
        let pod = installation.agent_pod(&node);
        let log = cluster.kubectl_ok(&[
            "-n",
            SYSTEM_NAMESPACE,
            "logs",
            &pod,
            "-c",
            "agent",
            "--timestamps",
        ]);
        for line in log.lines().filter(|line| line.contains("X509-SVID issued")) {
            let at = line.split_whitespace().next().unwrap_or_default();
            let name = line
                .split_once("/readiness/")
                .and_then(|(_before, rest)| rest.split([' ', '"']).next());
            if let Some(times) = name.and_then(|name| times.get_mut(name)) {
                times.ready.get_or_insert(unix(at));
            }
        }
    }
}

fn report(times: &BTreeMap<String, Times>) {
    let mut to_ready = Vec::new();
    let mut to_start = Vec::new();
    let mut late = 0;
    for (name, times) in times {
        let (Some(bound), Some(ready), Some(started)) = (times.bound, times.ready, times.started) else {
            panic!("not everything is known of {name}: {times:?}");
        };
        to_ready.push(ready - bound);
        to_start.push(started - bound);
        late += usize::from(ready > started);
    }
    for (what, mut seconds) in [("identity ready", to_ready), ("container started", to_start)] {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| 1e3 * seconds[((seconds.len() - 1) as f64 * share).round() as usize];
        eprintln!(
            "{what} after the pod was bound: p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms, of {}",
            at(0.50),
            at(0.99),
            at(1.0),
            seconds.len()
        );
    }
    eprintln!("identities that were ready after the container started: {late}");
}

fn unix(text: &str) -> f64 {
    let time = OffsetDateTime::parse(text, &Rfc3339).unwrap_or_else(|error| panic!("{error}: {text}"));
    time.unix_timestamp_nanos() as f64 / 1e9
}
