//! Rules over thousands of pods: how long from a pod's node to the entry in its agent's stream, what a pod costs in
//! memory, how long a list of all takes, and how long until 500 relabelled pods have their new identities.
//!
//! The server is the real program; the API server is the fake one, and the agents are Sync streams of this process, so
//! their work is on the same cores. Prints numbers and does not rate them:
//!
//!     FINIAL_BIN=target/release/finial FINIAL_TEST_PODS=10000 cargo test --release -p finial-tests --test e2e scale -- --ignored --nocapture

mod objects;
mod process;
mod streams;

use std::sync::Arc;
use std::time::{Duration, Instant};

use finial_proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_tests::kubernetes::FakeCluster;
use finial_tests::{Entry, Stack};
use serde_json::{Value, json};
use tempfile::TempDir;
use tonic::transport::Channel;

use crate::wire::unix;
use objects::{APPS, NAMESPACES, NODES, pod, uid};
use process::{cpu_time, memory};
use streams::{Seen, attest, follow};

/// Pods that are bound one by one while the rest is there.
const BOUND: usize = 1_000;
const RELABELLED: usize = 500;
/// Pods whose entries are stored too, at first.
const MASKED: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, and takes minutes; see docs/benchmarks.md"]
async fn measures_rules_over_many_pods() {
    let pods = variable("FINIAL_TEST_PODS", 10_000);
    let rate = variable("FINIAL_TEST_RATE", 100);
    let directory = TempDir::with_prefix("finial-").expect("a temporary directory");
    let cluster = FakeCluster::start();
    let mut stack = Stack::server_only(objects::options(&cluster, &directory));
    let private = unix(stack.server_socket()).await.expect("the private socket");

    let tokens = tokens(&private).await;
    for (node, token) in tokens.iter().enumerate() {
        cluster.put(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}"), "uid": token}
        }));
    }
    objects::rules(&cluster);
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
    let all: Vec<Value> = (0..pods).map(|n| pod(n, n % APPS, true)).collect();
    println!(
        "a pod is {} bytes of JSON",
        all.first().map_or(0, |pod| pod.to_string().len())
    );
    let cpu = cpu_time(stack.server().pid());
    // Nobody sees them before all are there.
    cluster.put_all(all);
    let began = Instant::now();
    seen.wait(0..pods).await;
    println!(
        "all pods at once: the last entry pushed after {:.2?}, {:.2?} of the server's CPU time",
        began.elapsed(),
        cpu_time(stack.server().pid()) - cpu
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
    let mut pace = tokio::time::interval(Duration::from_secs_f64(1.0 / rate as f64));
    let cpu = cpu_time(stack.server().pid());
    for n in 0..bound {
        pace.tick().await;
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

    // A change of the store makes the server look at the masking of every pod. When it has looked, a pod whose entry
    // was masked by the stored one that went has its own.
    let masked = pods + bound..pods + bound + MASKED;
    let stored: Vec<String> = masked
        .clone()
        .map(|n| {
            let parent = stack.id(&format!("/spire/agent/join_token/{}", tokens[n % NODES]));
            let entry = Entry {
                path: &objects::path(n),
                selectors: vec![objects::selector(n)],
                extra: Vec::new(),
            };
            stack.create_entry_below(&parent, &entry)
        })
        .collect();
    cluster.put_all(masked.map(|n| pod(n, n % APPS, true)).collect());
    last.comes().await;
    let cpu = cpu_time(stack.server().pid());
    for id in &stored {
        let before = seen.count();
        stack.delete_entry(id);
        seen.wait_for_changes(before, 1).await;
    }
    println!(
        "a stored entry is deleted: {:.1?} of the server's CPU time",
        (cpu_time(stack.server().pid()) - cpu) / u32::try_from(MASKED).expect("few")
    );

    // 500 pods change sides: another rule, another identity.
    let moved: Vec<usize> = (0..pods + bound)
        .filter(|n| n % APPS == 3)
        .take(RELABELLED)
        .collect();
    let before = seen.count();
    let relabelled = moved.iter().map(|n| pod(*n, 4, true)).collect();
    let cpu = cpu_time(stack.server().pid());
    cluster.put_all(relabelled);
    let began = Instant::now();
    seen.wait_for_changes(before, moved.len()).await;
    let latencies = moved.iter().map(|n| seen.last(&uid(*n)) - began);
    print_times(
        &format!(
            "{} pods relabelled at once -> withdrawn and replaced",
            moved.len()
        ),
        latencies.collect(),
    );
    println!(
        "  server's CPU time for all: {:.0?}",
        cpu_time(stack.server().pid()) - cpu
    );
    seen.check(&moved, "/app-4/");

    // The whole list again, which ends with a pod that is new in it.
    for _ in 0..3 {
        let cpu = cpu_time(stack.server().pid());
        cluster.forget_history();
        let took = last.comes().await;
        println!(
            "all watches broken and all listed anew: {took:.2?} until the last pod's entry, {:.2?} of the server's CPU time",
            cpu_time(stack.server().pid()) - cpu
        );
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
        "server started anew: {took:.2?} until the agents had all entries, {:.2?} of the server's CPU time; {} KiB, peak {} KiB: {} bytes a pod",
        cpu_time(stack.server().pid()),
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
    const FIRST: usize = 900_000_000;

    /// How long it takes for a new one.
    async fn comes(&mut self) -> Duration {
        let n = Self::FIRST + self.number;
        self.number += 1;
        let mut pod = pod(n, 0, true);
        pod["metadata"]["namespace"] = json!(objects::LAST_NAMESPACE);
        let began = Instant::now();
        self.cluster.put(pod);
        self.seen.wait(n..n + 1).await;
        began.elapsed()
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
