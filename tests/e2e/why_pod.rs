//! `finial why <namespace>/<pod>`: an operator finds out why a pod has no identity.

use std::time::Duration;

use finial_tests::{Entry, Output, Stack, run, wait_until};
use serde_json::{Value, json};

use crate::kubernetes::World;

const SOON: Duration = Duration::from_secs(60);
/// What the command exits with when the pod has no identity.
const NO_IDENTITY: i32 = 3;

fn why(stack: &Stack, args: &[&str]) -> Output {
    let socket = stack.server_socket().display().to_string();
    let all: Vec<&str> = ["why", "-socketPath", &socket]
        .iter()
        .chain(args)
        .copied()
        .collect();
    run(&all)
}

/// The answer about a pod of namespace `shop`.
fn asked(stack: &Stack, pod: &str) -> Value {
    let pod = format!("shop/{pod}");
    let output = why(stack, &[&pod, "-output", "json"]);
    assert!(!output.stdout.is_empty(), "{pod}: {}", output.stderr);
    let answer = output.json();
    let expected = match answer["verdict"].as_str() {
        Some("HAS_IDENTITY") => 0,
        _ => NO_IDENTITY,
    };
    assert_eq!(output.status.code(), Some(expected), "{answer}");
    answer
}

/// Waits for a verdict, and gives the answer.
fn until(stack: &Stack, pod: &str, verdict: &str) -> Value {
    let mut last = Value::Null;
    wait_until(&format!("{verdict} for {pod}"), SOON, || {
        last = asked(stack, pod);
        last["verdict"] == verdict
    });
    last
}

fn rule<'a>(answer: &'a Value, name: &str) -> &'a Value {
    let rules = answer["rules"].as_array().expect("rules");
    let found = rules.iter().find(|rule| rule["name"] == name);
    found.unwrap_or_else(|| panic!("no rule {name} in {answer}"))
}

fn number(value: &Value) -> i64 {
    value
        .as_str()
        .and_then(|text| text.parse().ok())
        .or_else(|| value.as_i64())
        .unwrap_or_default()
}

fn put_rule(world: &World, name: &str, spec: Value) {
    world.cluster.put(json!({
        "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": {"name": name}, "spec": spec
    }));
}

const TEMPLATE: &str =
    "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}";

#[test]
fn a_pod_with_an_identity_is_told_with_each_hop_and_after_a_restart_too() {
    let world = World::new();
    let mut stack = Stack::start(world.options());
    // The agent is the node `n1`.
    stack.create_entry(&Entry {
        path: "/node/n1",
        selectors: vec!["k8s:node:n1".to_owned()],
        extra: Vec::new(),
    });
    // Another object that declares the same, and is younger.
    put_rule(
        &world,
        "twin",
        json!({"spiffeIDTemplate": TEMPLATE, "podSelector": {"matchLabels": {"app": "web"}}}),
    );
    put_rule(
        &world,
        "default",
        json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/default", "fallback": true}),
    );
    world.cluster.put(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "a", "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"serviceAccountName": "sa", "nodeName": "n1", "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}
        ]}
    }));
    let answer = until(&stack, "a", "HAS_IDENTITY");
    let id = stack.id("/ns/shop/sa/sa");
    assert_eq!(rule(&answer, "web")["verdict"], "MATCHES");
    assert_eq!(rule(&answer, "web")["spiffe_id"], id.as_str());
    let twin = rule(&answer, "twin");
    assert_eq!(twin["verdict"], "MASKED");
    let detail = twin["detail"].as_str().expect("a detail");
    assert!(detail.contains("ClusterSPIFFEID web of cluster demo"), "{detail}");
    assert_eq!(rule(&answer, "default")["verdict"], "FALLBACK_NOT_USED");
    assert_eq!(answer["pod"]["phase"], "Running");
    assert_eq!(answer["pod"]["service_account"], "sa");
    assert_eq!(answer["pod"]["labels"]["app"], "web");
    assert_eq!(
        answer["node"]["agents"][0]["spiffe_id"],
        stack.agent_id().as_str()
    );
    assert_eq!(answer["node"]["agents"][0]["is_watching"], true);
    assert_eq!(answer["watch"]["is_settled"], true);
    let entry = &answer["entries"][0];
    assert_eq!(
        (&entry["spiffe_id"], &entry["is_at_agent"]),
        (&json!(id), &json!(true))
    );
    let hops = [
        &answer["pod"]["seen_bound_at_ms"],
        &entry["derived_at_ms"],
        &entry["sent_at_ms"],
        &entry["signed_at_ms"],
        &answer["now_ms"],
    ]
    .map(number);
    assert!(hops[0] > 0 && hops.is_sorted(), "{answer}");
    assert_eq!(number(&answer["pod"]["scheduled_at_ms"]), 1_767_225_601_000);

    let text = why(&stack, &["shop/a"]).stdout;
    assert!(
        text.starts_with(&format!("Verdict    : the pod has {id}")),
        "{text}"
    );
    for part in [
        "Rule       : matches     web: ",
        "Time       : ",
        "entry sent to the agent",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }

    // What the new process has not seen it does not claim to have, and the pod still has its identity.
    stack.server().terminate();
    stack.start_server();
    stack.wait_server();
    let answer = until(&stack, "a", "HAS_IDENTITY");
    assert_eq!(answer["entries"][0]["is_from_before"], true, "{answer}");

    // A stored entry that gives the same identity takes the place of what the rules declare.
    let selector = answer["entries"][0]["selectors"][0].as_str().expect("a selector");
    stack.server_cli_ok(&[
        "entry",
        "create",
        "-entryID",
        "byhand",
        "-spiffeID",
        &stack.id("/other"),
        "-parentID",
        &stack.id("/node/n1"),
        "-selector",
        selector,
    ]);
    wait_until("the stored entry among the pod's", SOON, || {
        let answer = asked(&stack, "a");
        let entries = answer["entries"].as_array().cloned().unwrap_or_default();
        entries
            .iter()
            .any(|entry| entry["id"] == "byhand" && entry["origin"] == "")
    });
    stack.agent().terminate();
    stack.server_cli_ok(&["agent", "ban", "-spiffeID", &stack.agent_id()]);
    let answer = until(&stack, "a", "AGENT_BANNED");
    assert_eq!(answer["node"]["agents"][0]["state"], "BANNED");
}

#[test]
fn a_pod_without_an_identity_is_told_why() {
    let world = World::new();
    world
        .cluster
        .put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n2"}}));
    put_rule(
        &world,
        "team",
        json!({
            "spiffeIDTemplate": TEMPLATE,
            "podSelector": {"matchLabels": {"app": "team"}},
            "namespaceSelector": {"matchLabels": {"team": "a"}}
        }),
    );
    put_rule(
        &world,
        "broken",
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Annotations.nothing }}",
            "podSelector": {"matchLabels": {"app": "broken"}}
        }),
    );
    put_rule(
        &world,
        "theirs",
        json!({"spiffeIDTemplate": TEMPLATE, "className": "theirs"}),
    );
    let stack = Stack::server_only(world.options());
    world.pod("typo", "wep", Some("n1"));
    world.pod("team", "team", Some("n1"));
    world.pod("broken", "broken", Some("n1"));
    world.pod("agentless", "web", Some("n2"));
    world.pod("pending", "web", None);

    let answer = until(&stack, "typo", "NO_RULE");
    let near = rule(&answer, "web");
    assert_eq!(near["verdict"], "NEARLY_MATCHES");
    assert_eq!(
        near["difference"],
        json!({"of_namespace": false, "key": "app", "wanted": "\"web\"", "found": "wep"})
    );
    assert_eq!(rule(&answer, "team")["verdict"], "DOES_NOT_MATCH");
    assert_eq!(rule(&answer, "theirs")["verdict"], "OTHER_CLASS");
    let text = why(&stack, &["shop/typo"]).stdout;
    assert!(
        text.contains("ClusterSPIFFEID web nearly does: label app is \"wep\", wanted \"web\""),
        "{text}"
    );

    let answer = until(&stack, "team", "NO_RULE");
    let near = rule(&answer, "team");
    assert_eq!(near["verdict"], "NEARLY_MATCHES");
    assert_eq!(
        (&near["difference"]["of_namespace"], &near["difference"]["key"]),
        (&json!(true), &json!("team"))
    );

    let answer = until(&stack, "broken", "RULE_BROKEN");
    assert_eq!(rule(&answer, "broken")["verdict"], "BROKEN");
    let answer = until(&stack, "agentless", "NO_AGENT");
    let summary = answer["summary"].as_str().expect("a summary");
    assert!(
        summary.contains("node n2") && summary.contains("/node/n2"),
        "{summary}"
    );
    until(&stack, "pending", "NOT_BOUND");
    let answer = until(&stack, "nobody", "UNKNOWN_POD");
    assert!(answer.get("pod").is_none_or(Value::is_null), "{answer}");

    for (args, part) in [
        (&["shop/a", "-cluster", "other"][..], "no cluster of this name"),
        (&["backend"], "<namespace>/<pod>"),
        (&["a/b/c"], "<namespace>/<pod>"),
        (&["shop/a", "-pid", "1"], "cannot be used with"),
    ] {
        let output = why(&stack, args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        assert!(output.stderr.contains(part), "{args:?}: {}", output.stderr);
    }
}

#[test]
fn a_server_without_a_cluster_says_so() {
    let stack = Stack::server_only(finial_tests::StackOptions::default());
    let output = why(&stack, &["shop/a"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output.stderr.contains("no cluster is configured"),
        "{}",
        output.stderr
    );
}
