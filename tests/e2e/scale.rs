//! Rules over thousands of pods: how long from a pod's node to the entry in its agent's stream, what a pod costs in
//! memory, how long a list of all takes, and how long until 500 relabelled pods have their new identities.
//!
//! The server is the real program; the API server is the fake one, and the agents are Sync streams of this process, so
//! their work is on the same cores. Prints numbers and judges none:
//!
//!     FINIAL_BIN=target/release/finial FINIAL_TEST_PODS=10000 cargo test --release -p finial-tests --test e2e scale -- --ignored --nocapture

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::x509::{Csr, CsrSubject};
use finial_proto::finial::server::sync::v1::sync_client::SyncClient;
use finial_proto::finial::server::sync::v1::watch_response::Event;
use finial_proto::finial::server::sync::v1::{WatchRequest, WatchResponse};
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::attest_agent_request::{Params, Step};
use finial_proto::spire::api::server::agent::v1::{
    AgentX509svidParams, AttestAgentRequest, CreateJoinTokenRequest, attest_agent_response,
};
use finial_proto::spire::api::types::{AttestationData, Entry};
use finial_tests::kubernetes::FakeCluster;
use finial_tests::{Stack, StackOptions};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::wire::{Identity, tls, unix};

const NODES: usize = 100;
const NAMESPACES: usize = 20;
const APPS: usize = 20;
/// Pods that are bound one by one while the rest is there.
const BOUND: usize = 1_000;
const RELABELLED: usize = 500;
const LIMIT: Duration = Duration::from_secs(600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and takes minutes; see docs/benchmarks.md"]
async fn measures_rules_over_many_pods() {
    let pods = variable("FINIAL_TEST_PODS", 10_000);
    let rate = variable("FINIAL_TEST_RATE", 100);
    let directory = TempDir::with_prefix("finial-").expect("a temporary directory");
    let cluster = FakeCluster::start();
    let mut stack = Stack::server_only(options(&cluster, &directory));
    let private = unix(stack.server_socket()).await.expect("the private socket");

    let tokens = tokens(&private).await;
    for (node, token) in tokens.iter().enumerate() {
        cluster.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}"), "uid": token}
        }));
    }
    objects(&cluster);
    println!(
        "{pods} pods, {NODES} nodes, {NAMESPACES} namespaces, {} rules",
        APPS + 1
    );

    // Agents, each with a stream.
    let seen = Arc::new(Seen::default());
    let mut agents = Vec::new();
    for token in &tokens {
        let identity = attest(stack.port(), token).await;
        agents.push(identity.clone());
        follow(stack.port(), identity, Arc::clone(&seen));
    }
    let mut last = Last {
        cluster: &cluster,
        seen: &seen,
        number: 0,
    };
    last.comes().await;
    let empty = memory(stack.server().pid());

    // All pods but some appear as fast as they come.
    let objects: Vec<Value> = (0..pods).map(|n| pod(n, n % APPS, true)).collect();
    println!(
        "a pod is {} bytes of JSON",
        objects.first().map_or(0, |pod| pod.to_string().len())
    );
    let began = Instant::now();
    objects.into_iter().for_each(|pod| {
        cluster.put(pod);
    });
    let put = began.elapsed();
    seen.wait(0..pods).await;
    println!(
        "all pods at once: put in {put:.2?}, the last entry pushed after {:.2?}",
        began.elapsed()
    );
    let full = memory(stack.server().pid());
    println!(
        "memory: {} KiB without pods, {} KiB with, peak {} KiB: {} bytes a pod",
        empty.rss / 1024,
        full.rss / 1024,
        full.peak / 1024,
        full.rss.saturating_sub(empty.rss) / pods.max(1) as u64,
    );

    // Pods that get their node, one by one.
    let bound = BOUND.min(pods);
    for n in pods..pods + bound {
        cluster.put(pod(n, n % APPS, false));
    }
    // What was told before is taken in when what is told last is.
    last.comes().await;
    let mut times = Vec::new();
    let pace = Duration::from_secs_f64(1.0 / rate as f64);
    let cpu = cpu_time(stack.server().pid());
    let start = Instant::now();
    for n in 0..bound {
        tokio::time::sleep_until((start + pace * u32::try_from(n).expect("few")).into()).await;
        let began = Instant::now();
        cluster.put(pod(pods + n, (pods + n) % APPS, true));
        times.push((uid(pods + n), began));
    }
    seen.wait(pods..pods + bound).await;
    let spent = cpu_time(stack.server().pid()) - cpu;
    let latencies = times.iter().map(|(uid, began)| seen.last(uid) - *began);
    print_times(
        &format!("bound -> pushed, {bound} pods at {rate}/s"),
        latencies.collect(),
    );
    println!(
        "  server's CPU time for each: {:.0?}",
        spent / u32::try_from(bound).expect("few")
    );

    // A change of the store makes the server look at the masking of every pod.
    let cpu = cpu_time(stack.server().pid());
    for n in 0..5 {
        stack.server_cli_ok(&[
            "entry",
            "create",
            "-spiffeID",
            &stack.id(&format!("/stored/{n}")),
            "-parentID",
            &stack.id("/stored"),
            "-selector",
            "a:b",
        ]);
        // Longer than the server collects such changes.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!(
        "a stored entry is created: {:.1?} of the server's CPU time",
        (cpu_time(stack.server().pid()) - cpu) / 5
    );

    // 500 pods change sides: another rule, another identity.
    let moved: Vec<usize> = (0..pods + bound)
        .filter(|n| n % APPS == 3)
        .take(RELABELLED)
        .collect();
    let before: usize = seen.count();
    let began = Instant::now();
    for n in &moved {
        cluster.put(pod(*n, 4, true));
    }
    let put = began.elapsed();
    seen.wait_for_changes(before, moved.len()).await;
    let latencies = moved.iter().map(|n| seen.last(&uid(*n)) - began);
    print_times(
        &format!(
            "{} pods relabelled (put in {put:.0?}) -> withdrawn and replaced",
            moved.len()
        ),
        latencies.collect(),
    );
    seen.check(&moved, "/app-4/");

    // The whole list again, which ends with a pod that is new in it.
    for _ in 0..3 {
        cluster.forget_history();
        let took = last.comes().await;
        println!("all watches broken and all listed anew: {took:.2?} until the last pod's entry");
    }

    // A server that starts with all of it.
    stack.server().terminate();
    seen.forget();
    let began = Instant::now();
    stack.start_server();
    for identity in agents {
        follow(stack.port(), identity, Arc::clone(&seen));
    }
    seen.wait(0..pods + bound).await;
    let took = began.elapsed();
    let started = memory(stack.server().pid());
    println!(
        "server started anew: {took:.2?} until the agents had all entries; {} KiB, peak {} KiB: {} bytes a pod",
        started.rss / 1024,
        started.peak / 1024,
        started.rss.saturating_sub(empty.rss) / (pods + bound) as u64
    );
}

/// Pods that come last in every list and every stream, one after the other.
struct Last<'a> {
    cluster: &'a FakeCluster,
    seen: &'a Seen,
    number: usize,
}

impl Last<'_> {
    const NAMESPACE: &'static str = "team-last";
    const FIRST: usize = 900_000_000;

    /// How long it takes for a new one.
    async fn comes(&mut self) -> Duration {
        let n = Self::FIRST + self.number;
        self.number += 1;
        let mut pod = pod(n, 0, true);
        pod["metadata"]["namespace"] = json!(Self::NAMESPACE);
        let began = Instant::now();
        self.cluster.put(pod);
        self.seen.wait(n..n + 1).await;
        began.elapsed()
    }
}

fn options(cluster: &FakeCluster, directory: &TempDir) -> StackOptions {
    StackOptions {
        server: format!(
            r#"kubernetes {{ clusters {{ "demo" = {{
                kube_config_file = "{}"
                parent_id_template = "spiffe://{{{{ .TrustDomain }}}}/spire/agent/join_token/{{{{ .NodeMeta.UID }}}}"
            }} }} }}"#,
            cluster.kubeconfig(directory.path()).display()
        ),
        ..StackOptions::default()
    }
}

/// Namespaces and rules: one for each app, and one for the rest.
fn objects(cluster: &FakeCluster) {
    let names = (0..NAMESPACES).map(|n| format!("team-{n}"));
    for name in names.chain([Last::NAMESPACE.to_owned()]) {
        let labels = json!({"kubernetes.io/metadata.name": name, "tier": "apps"});
        cluster.put(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    let rule = |name: String, spec: Value| {
        cluster.put(json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": {"name": name}, "spec": spec
        }));
    };
    for n in 0..APPS {
        let id = format!("spiffe://{{{{ .TrustDomain }}}}/app-{n}/{{{{ .PodSpec.ServiceAccountName }}}}");
        rule(
            format!("app-{n}"),
            json!({
                "spiffeIDTemplate": id,
                "podSelector": {"matchLabels": {"app": format!("app-{n}")}},
                "namespaceSelector": {"matchLabels": {"tier": "apps"}},
                "dnsNameTemplates": ["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.svc.cluster.local"]
            }),
        );
    }
    rule(
        "default".to_owned(),
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
            "fallback": true
        }),
    );
}

fn uid(n: usize) -> String {
    format!("72f7f152-440c-66ac-9084-{n:012}")
}

/// A pod about as large as those of a Deployment are: 4 KiB.
fn pod(n: usize, app: usize, is_bound: bool) -> Value {
    let mount = json!({"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    let env: Vec<Value> = (0..8)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("https://backend-{n}.example.org:8443/v1")}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.org/team/{name}:1.42.0"), "env": env,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10},
            "volumeMounts": [mount], "imagePullPolicy": "IfNotPresent",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"
        })
    };
    let node = is_bound.then(|| format!("n{}", n % NODES));
    let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}))
        .into();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("backend-5c9f7d6b8-{n:06}"), "generateName": "backend-5c9f7d6b8-",
            "namespace": format!("team-{}", n / APPS % NAMESPACES), "uid": uid(n),
            "labels": {
                "app": format!("app-{app}"), "pod-template-hash": "5c9f7d6b8",
                "app.kubernetes.io/name": format!("app-{app}"), "app.kubernetes.io/part-of": "shop"
            },
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{app}-5c9f7d6b8"),
                "uid": "11111111-2222-3333-4444-555555555555", "controller": true, "blockOwnerDeletion": true
            }]
        },
        "spec": {
            "serviceAccountName": format!("app-{}", n % APPS), "nodeName": node, "schedulerName": "default-scheduler",
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "containers": [container("app"), container("proxy")],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "volumes": [
                {"name": "spiffe", "csi": {"driver": "csi.spiffe.io", "readOnly": true}},
                {"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}
            ]
        },
        "status": {"phase": if is_bound { "Running" } else { "Pending" }, "conditions": if is_bound { conditions } else { Vec::new() }}
    })
}

/// What the streams told: when each pod's entry last came.
#[derive(Default)]
struct Seen {
    inner: Mutex<Inner>,
    news: tokio::sync::Notify,
}

#[derive(Default)]
struct Inner {
    /// By uid: when the entry came, and its path.
    pods: HashMap<String, (Instant, String)>,
    /// How many entries came, and how many were withdrawn.
    upserts: usize,
    removals: usize,
}

impl Seen {
    fn take(&self, upserts: &[Entry], removals: usize) {
        let now = Instant::now();
        let mut inner = self.inner.lock().expect("nobody panics while holding the lock");
        inner.removals += removals;
        for entry in upserts {
            let uid = entry
                .selectors
                .iter()
                .find_map(|selector| selector.value.strip_prefix("pod-uid:"));
            if let Some(uid) = uid {
                let path = entry
                    .spiffe_id
                    .as_ref()
                    .map(|id| id.path.clone())
                    .unwrap_or_default();
                inner.pods.insert(uid.to_owned(), (now, path));
                inner.upserts += 1;
            }
        }
        drop(inner);
        self.news.notify_waiters();
    }

    async fn until(&self, holds: impl Fn(&Inner) -> bool) {
        let waited = tokio::time::timeout(LIMIT, async {
            loop {
                let news = self.news.notified();
                if holds(&self.inner.lock().expect("nobody panics while holding the lock")) {
                    return;
                }
                let _ = tokio::time::timeout(Duration::from_millis(100), news).await;
            }
        });
        waited.await.expect("the entries come in time");
    }

    /// Waits for the entries of these pods.
    async fn wait(&self, pods: Range<usize>) {
        let next = AtomicUsize::new(pods.start);
        self.until(|inner| {
            let first = next.load(Ordering::Relaxed);
            let lacking = (first..pods.end).find(|n| !inner.pods.contains_key(&uid(*n)));
            next.store(lacking.unwrap_or(pods.end), Ordering::Relaxed);
            lacking.is_none()
        })
        .await;
    }

    fn forget(&self) {
        *self.inner.lock().expect("nobody panics while holding the lock") = Inner::default();
    }

    /// Waits until so many entries more came, and as many went.
    async fn wait_for_changes(&self, before: usize, more: usize) {
        self.until(|inner| inner.upserts >= before + more && inner.removals >= more)
            .await;
    }

    fn count(&self) -> usize {
        self.inner
            .lock()
            .expect("nobody panics while holding the lock")
            .upserts
    }

    fn last(&self, uid: &str) -> Instant {
        self.inner
            .lock()
            .expect("nobody panics while holding the lock")
            .pods[uid]
            .0
    }

    fn check(&self, pods: &[usize], part: &str) {
        let inner = self.inner.lock().expect("nobody panics while holding the lock");
        for n in pods {
            let path = &inner.pods[&uid(*n)].1;
            assert!(path.contains(part), "pod {n} has {path}");
        }
    }
}

async fn tokens(private: &Channel) -> Vec<String> {
    let mut agents = AgentClient::new(private.clone());
    let mut tokens = Vec::new();
    for _ in 0..NODES {
        let request = CreateJoinTokenRequest {
            ttl: 3600,
            ..CreateJoinTokenRequest::default()
        };
        let token = agents.create_join_token(request).await.expect("a join token");
        tokens.push(token.into_inner().value);
    }
    tokens
}

async fn attest(port: u16, token: &str) -> Identity {
    let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
    let csr = Csr::build(&key, CsrSubject::spire(), None, &[]).expect("a CSR");
    let step = Step::Params(Params {
        data: Some(AttestationData {
            r#type: "join_token".into(),
            payload: token.as_bytes().to_vec(),
        }),
        params: Some(AgentX509svidParams { csr }),
    });
    let channel = tls(port, None).await.expect("TLS without a certificate");
    let requests = tokio_stream::iter([AttestAgentRequest { step: Some(step) }]);
    let mut answers = AgentClient::new(channel)
        .attest_agent(requests)
        .await
        .expect("attestation begins")
        .into_inner();
    let answer = answers.message().await.expect("attestation").expect("an answer");
    let Some(attest_agent_response::Step::Result(result)) = answer.step else {
        panic!("no result")
    };
    let chain = result.svid.expect("an SVID").cert_chain;
    Identity {
        chain: chain.into_iter().map(Into::into).collect(),
        key: rustls::pki_types::PrivatePkcs8KeyDer::from(key.pkcs8_der().to_vec()).into(),
    }
}

/// Opens a stream, as often as it takes, and reads it to its end in the background.
fn follow(port: u16, identity: Identity, seen: Arc<Seen>) {
    tokio::spawn(async move {
        let limit = Instant::now() + LIMIT;
        let mut stream = loop {
            match watch(port, identity.clone()).await {
                Ok(stream) => break stream,
                // A server that has just started asks agents to come again.
                Err(error) if Instant::now() > limit => panic!("no stream: {error:#}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        };
        while let Ok(Some(message)) = stream.message().await {
            match message.event {
                Some(Event::Snapshot(snapshot)) => seen.take(&snapshot.entries, 0),
                Some(Event::Delta(delta)) => seen.take(&delta.upserts, delta.removals.len()),
                _ => {}
            }
        }
    });
}

async fn watch(port: u16, identity: Identity) -> anyhow::Result<tonic::Streaming<WatchResponse>> {
    let channel = tls(port, Some(identity)).await?;
    let mut client = SyncClient::new(channel).max_decoding_message_size(16 << 20);
    Ok(client.watch(WatchRequest::default()).await?.into_inner())
}

struct Memory {
    rss: u64,
    peak: u64,
}

/// What a process uses, in bytes.
fn memory(pid: u32) -> Memory {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("the server runs");
    let field = |name: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with(name))
            .expect("the kernel tells it");
        let kibibytes = line
            .split_whitespace()
            .nth(1)
            .and_then(|text| text.parse::<u64>().ok());
        kibibytes.expect("a number") * 1024
    };
    Memory {
        rss: field("VmRSS:"),
        peak: field("VmHWM:"),
    }
}

/// User and system time of a process, as fine as the scheduler counts.
fn cpu_time(pid: u32) -> Duration {
    let mut total = Duration::ZERO;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the server runs");
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanoseconds = text.split_whitespace().next().and_then(|text| text.parse().ok());
        total += Duration::from_nanos(nanoseconds.unwrap_or_default());
    }
    total
}

fn print_times(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |share: usize| times[(times.len() - 1) * share / 100];
    println!(
        "{what}: p50 {:.1?}, p99 {:.1?}, last {:.1?}",
        at(50),
        at(99),
        at(100)
    );
}

fn variable(name: &str, default: usize) -> usize {
    match std::env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is no number: {text:?}")),
        Err(_) => default,
    }
}
