//! The result of each rule for one pod, as `finial why` reports it.

use serde_json::{Value as Json, json};

use super::super::*;
use super::{fixed, namespace, node, pod, rule, settings};
use crate::registry::{LabelDifference, RuleOutcome};

/// What is said of pod `shop/a`, with these facts beside a node and a namespace.
fn explained(facts: Vec<Fact>, is_stored: bool) -> Explained {
    let mut deriver = Deriver::new(settings());
    for fact in [node("n1", "node-1"), namespace("shop", &[("team", "a")])]
        .into_iter()
        .chain(facts)
    {
        deriver.apply(fact);
    }
    deriver.pass(&|_| is_stored);
    deriver.explain(&NamespacedName::new("shop", "a"), &|_| {
        Some("stored entry e1".to_owned())
    })
}

fn outcomes(facts: Vec<Fact>) -> Vec<(String, RuleOutcome)> {
    let rules = explained(facts, false).rules;
    rules
        .into_iter()
        .map(|report| (report.name.to_string(), report.outcome))
        .collect()
}

fn only(facts: Vec<Fact>) -> RuleOutcome {
    let mut outcomes = outcomes(facts);
    assert_eq!(outcomes.len(), 1, "{outcomes:?}");
    outcomes.remove(0).1
}

fn pods(spec: Json) -> Json {
    json!({"podSelector": spec})
}

#[test]
fn a_pod_that_is_not_known_has_nothing_said_of_it() {
    assert_eq!(
        explained(vec![rule("r", 0, &json!({}))], false),
        Explained::default()
    );
}

#[test]
fn a_rule_that_matches_names_its_entry() {
    let RuleOutcome::Matches(entry) = only(vec![pod("shop", "a", &json!({})), rule("r", 0, &json!({}))])
    else {
        panic!()
    };
    assert_eq!(entry.spiffe_id.path(), "/ns/shop/sa/sa");
    assert!(entry.id.starts_with("k8s.demo."));
}

#[test]
fn one_label_that_differs_is_named_with_both_values() {
    let a = || pod("shop", "a", &json!({}));
    let wants = |spec: Json| rule("r", 0, &spec);
    let other = only(vec![a(), wants(pods(json!({"matchLabels": {"app": "db"}})))]);
    assert_eq!(
        other,
        RuleOutcome::NearlyMatches(LabelDifference {
            of_namespace: false,
            key: "app".to_owned(),
            wanted: "\"db\"".to_owned(),
            found: Some("web".to_owned()),
        })
    );
    let absent = only(vec![
        a(),
        wants(pods(json!({"matchLabels": {"app": "web", "tier": "front"}}))),
    ]);
    let RuleOutcome::NearlyMatches(difference) = absent else {
        panic!()
    };
    assert_eq!(
        difference.to_string(),
        "label tier is not there, wanted \"front\""
    );
    let of_namespace = only(vec![
        a(),
        wants(
            json!({"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {"matchLabels": {"app": "web"}}}),
        ),
    ]);
    let RuleOutcome::NearlyMatches(difference) = of_namespace else {
        panic!()
    };
    assert_eq!(
        difference.to_string(),
        "namespace's label team is \"a\", wanted \"b\""
    );
}

#[test]
fn the_near_miss_that_looks_like_a_slip_comes_first() {
    let found = outcomes(vec![
        pod(
            "shop",
            "a",
            &json!({"metadata": {"labels": {"app": "wep-server"}}}),
        ),
        rule("absent", 9, &pods(json!({"matchLabels": {"tier": "front"}}))),
        rule("broken", 0, &pods(json!({"matchLabels": {"app": "broken"}}))),
        rule("web", 0, &pods(json!({"matchLabels": {"app": "web-server"}}))),
    ]);
    let names: Vec<&str> = found.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["web", "broken", "absent"]);
}

#[test]
fn two_labels_that_differ_are_no_near_miss() {
    let spec = json!({"namespaceSelector": {"matchLabels": {"team": "b"}}, "podSelector": {"matchLabels": {"app": "db"}}});
    let outcome = only(vec![pod("shop", "a", &json!({})), rule("r", 0, &spec)]);
    assert_eq!(
        outcome,
        RuleOutcome::DoesNotMatch("namespace's label team is \"a\", wanted \"b\"".to_owned()),
        "the first reason"
    );
}

#[test]
fn whoever_declares_the_same_is_named() {
    let facts = vec![
        pod("shop", "a", &json!({})),
        rule("younger", 0, &json!({})),
        rule("older", 9, &json!({})),
    ];
    let found = outcomes(facts.clone());
    assert!(
        matches!(&found[0], (name, RuleOutcome::Matches(_)) if name == "older"),
        "{found:?}"
    );
    let (name, RuleOutcome::Masked { by, .. }) = &found[1] else {
        panic!("{found:?}")
    };
    assert_eq!(
        (name.as_str(), by.as_str()),
        ("younger", "ClusterSPIFFEID older of cluster demo, which is older")
    );

    let stored = explained(facts, true).rules;
    for report in &stored {
        assert!(
            matches!(&report.outcome, RuleOutcome::Masked { by, .. } if by == "stored entry e1"),
            "{report:?}"
        );
    }
}

#[test]
fn a_fallback_that_is_not_used_names_the_rule_that_is() {
    let found = outcomes(vec![
        pod("shop", "a", &json!({})),
        rule("default", 9, &json!({"fallback": true})),
        rule(
            "web",
            0,
            &json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/web"}),
        ),
    ]);
    assert!(matches!(&found[0], (name, RuleOutcome::Matches(_)) if name == "web"));
    assert_eq!(
        found[1],
        (
            "default".to_owned(),
            RuleOutcome::FallbackNotUsed(vec!["web".into()])
        )
    );
}

#[test]
fn a_pod_without_a_node_waits_for_it() {
    let pending = pod("shop", "a", &json!({"spec": {"nodeName": null}}));
    let told = explained(vec![pending, rule("r", 0, &json!({}))], false);
    assert_eq!(told.rules[0].outcome, RuleOutcome::WaitsForNode);
    assert_eq!(told.node, None);
    let elsewhere = pod("shop", "a", &json!({"spec": {"nodeName": "n9"}}));
    let told = explained(vec![elsewhere, rule("r", 0, &json!({}))], false);
    assert_eq!(
        told.rules[0].outcome,
        RuleOutcome::Broken("node \"n9\" is not known".to_owned())
    );
    let unknown = told.node.unwrap();
    assert!(!unknown.is_known && unknown.parent_id.is_err());
}

#[test]
fn a_broken_rule_says_what_is_broken_only_where_it_selects() {
    let broken = |label: &str| {
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .Nothing }}",
            "podSelector": {"matchLabels": {"app": label}}
        })
    };
    let a = || pod("shop", "a", &json!({}));
    assert!(matches!(
        only(vec![a(), rule("r", 0, &broken("web"))]),
        RuleOutcome::Broken(text) if text.contains("spiffeIDTemplate")
    ));
    assert!(matches!(
        only(vec![a(), rule("r", 0, &broken("db"))]),
        RuleOutcome::NearlyMatches(_)
    ));
    let failing =
        json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/app/{{ .PodMeta.Labels.nothing }}"});
    assert!(matches!(
        only(vec![a(), rule("r", 0, &failing)]),
        RuleOutcome::Broken(text) if text.contains("SPIFFE ID")
    ));
    let malformed = pods(json!({"matchExpressions": [{"key": "a", "operator": "Like"}]}));
    assert!(matches!(
        only(vec![a(), rule("r", 0, &malformed)]),
        RuleOutcome::Broken(text) if text.contains("podSelector")
    ));
}

#[test]
fn a_rule_of_another_class_is_known_and_does_nothing() {
    let theirs = json!({"className": "theirs"});
    let facts = vec![pod("shop", "a", &json!({})), rule("r", 0, &theirs)];
    assert_eq!(only(facts.clone()), RuleOutcome::OtherClass("theirs".to_owned()));
    let mut deriver = Deriver::new(settings());
    for fact in [node("n1", "node-1"), namespace("shop", &[])]
        .into_iter()
        .chain(facts)
    {
        deriver.apply(fact);
    }
    let pass = deriver.pass(&|_| false);
    assert!(pass.upserts.is_empty() && pass.rules.is_empty());
    // It becomes ours, and theirs again.
    deriver.apply(rule("r", 0, &json!({})));
    assert_eq!(deriver.pass(&|_| false).upserts.len(), 1);
    deriver.apply(rule("r", 0, &theirs));
    assert_eq!(deriver.pass(&|_| false).removals.len(), 1);
    assert_eq!(
        deriver.derivation(),
        derive(deriver.objects(), &settings(), &|_| false)
    );
}

#[test]
fn rules_pass_over_an_ignored_namespace_and_say_so() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("kube-system", &[]),
        pod("kube-system", "a", &json!({})),
        rule("r", 0, &json!({})),
        fixed("db", 0, &json!({})),
    ] {
        deriver.apply(fact);
    }
    deriver.pass(&|_| false);
    let told = deriver.explain(&NamespacedName::new("kube-system", "a"), &|_| None);
    assert!(told.pod.unwrap().is_namespace_ignored);
    assert_eq!(
        told.rules[0].outcome,
        RuleOutcome::DoesNotMatch("the pod's namespace is ignored".to_owned())
    );
}

#[test]
fn the_facts_of_a_pod_are_told_and_its_status_changes_no_entry() {
    let with_status = |phase: &str| {
        let Fact::Pod(name, Some(pod)) = pod(
            "shop",
            "a",
            &json!({"metadata": {"ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u1"}]}}),
        ) else {
            panic!()
        };
        let mut pod = (*pod).clone();
        pod.status = serde_json::from_value(json!({
            "phase": phase,
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:12Z"}]
        }))
        .unwrap();
        Fact::Pod(name, Some(Arc::new(pod)))
    };
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("shop", &[]),
        rule("r", 0, &json!({})),
        with_status("Pending"),
    ] {
        deriver.apply(fact);
    }
    assert_eq!(deriver.pass(&|_| false).upserts.len(), 1);
    deriver.apply(with_status("Running"));
    assert_eq!(deriver.pass(&|_| false), Pass::default());
    let told = deriver.explain(&NamespacedName::new("shop", "a"), &|_| None);
    let facts = told.pod.unwrap();
    assert_eq!(
        (facts.phase.as_str(), facts.service_account.as_str()),
        ("Running", "sa")
    );
    let second = |at: Option<time::OffsetDateTime>| at.unwrap().second();
    assert_eq!((second(facts.created_at), second(facts.scheduled_at)), (10, 12));
    for selector in [
        "k8s:ns:shop",
        "k8s:sa:sa",
        "k8s:pod-name:a",
        "k8s:pod-uid:uid-shop-a",
        "k8s:node-name:n1",
        "k8s:pod-label:app:web",
        "k8s:pod-owner:ReplicaSet:web",
    ] {
        assert!(facts.selectors.iter().any(|held| held == selector), "{selector}");
    }
    // Which container asks, the agent finds out.
    assert!(!facts.selectors.iter().any(|held| held.contains("container")));
    assert_eq!(
        told.node.unwrap().parent_id.unwrap().path(),
        "/spire/agent/k8s_psat/demo/node-1"
    );
}
