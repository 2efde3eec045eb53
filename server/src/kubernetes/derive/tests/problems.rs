//! Pods with problems, for Events.

use super::*;

/// The problems of pods in namespace `shop` with these rules and pods.
fn problems(settings: Settings, facts: Vec<Fact>) -> BTreeMap<String, (ProblemKind, String)> {
    let mut deriver = Deriver::new(settings);
    for fact in [node("n1", "node-1"), namespace("shop", &[])]
        .into_iter()
        .chain(facts)
    {
        deriver.apply(fact);
    }
    deriver.pass(&|_| false);
    let problems = deriver.derivation().problems.into_values();
    problems
        .map(|problem| (problem.pod.name.to_string(), (problem.kind, problem.text)))
        .collect()
}

fn asking(name: &str, app: &str, driver: &str) -> Fact {
    let volumes = json!([{"name": "s", "csi": {"driver": driver}}]);
    pod(
        "shop",
        name,
        &json!({"metadata": {"labels": {"app": app}}, "spec": {"volumes": volumes}}),
    )
}

fn invalid(app: &str) -> Fact {
    let spec = json!({"podSelector": {"matchLabels": {"app": app}}, "spiffeIDTemplate": "{{ .Nope }}"});
    rule("invalid", 5, &spec)
}

#[test]
fn a_pod_that_an_invalid_rule_selects_is_told_so_though_a_fallback_covers_it() {
    let fallback = json!({"fallback": true, "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/default"});
    for with_fallback in [true, false] {
        let mut facts = vec![
            invalid("web"),
            asking("meant", "web", "csi.spiffe.io"),
            pod("shop", "quiet", &json!({})),
            pod("shop", "unbound", &json!({"spec": {"nodeName": null}})),
            asking("other", "db", "csi.spiffe.io"),
        ];
        facts.extend(with_fallback.then(|| rule("fallback", 0, &fallback)));
        let found = problems(settings(), facts);
        let mut kinds = vec![
            ("meant", ProblemKind::RuleFailed),
            ("quiet", ProblemKind::RuleFailed),
        ];
        if !with_fallback {
            kinds.insert(1, ("other", ProblemKind::NoRule));
        }
        let told: Vec<(&str, ProblemKind)> = found
            .iter()
            .map(|(name, (kind, _))| (name.as_str(), *kind))
            .collect();
        assert_eq!(told, kinds, "{with_fallback}");
        let text = &found["meant"].1;
        assert!(
            text.starts_with("ClusterSPIFFEID invalid: spec.spiffeIDTemplate"),
            "{text}"
        );
    }
}

#[test]
fn an_invalid_fallback_is_no_trouble_of_pods_that_another_rule_covers() {
    let fallback = json!({"fallback": true, "spiffeIDTemplate": "{{ .Nope }}"});
    let facts = vec![
        rule("fallback", 0, &fallback),
        rule("web", 1, &json!({"podSelector": {"matchLabels": {"app": "web"}}})),
        asking("covered", "web", "csi.spiffe.io"),
        asking("meant", "db", "csi.spiffe.io"),
    ];
    let found = problems(settings(), facts);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["meant"]);
}

#[test]
fn a_rule_that_is_mended_is_no_longer_complained_of() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("shop", &[]),
        invalid("web"),
        pod("shop", "a", &json!({})),
    ] {
        deriver.apply(fact);
    }
    assert_eq!(deriver.pass(&|_| false).problems.len(), 1);
    deriver.apply(rule("invalid", 5, &json!({})));
    deriver.pass(&|_| false);
    assert!(deriver.derivation().problems.is_empty());
}

#[test]
fn the_driver_by_which_pods_ask_is_the_one_of_the_settings() {
    let ours = Settings {
        csi_driver: "csi.example.org".to_owned(),
        ..settings()
    };
    let facts = vec![
        asking("ours", "web", "csi.example.org"),
        asking("foreign", "web", "csi.spiffe.io"),
    ];
    let found = problems(ours, facts);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["ours"]);
}

#[test]
fn refused_entries_are_failures_and_not_declared_ones() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("shop", &[]),
        rule(
            "good",
            0,
            &json!({"podSelector": {"matchLabels": {"app": "web"}}}),
        ),
        rule(
            "refused",
            0,
            &json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/spire/agent/x"}),
        ),
        pod("shop", "a", &json!({})),
    ] {
        deriver.apply(fact);
    }
    deriver.pass(&|_| false);
    assert_eq!(deriver.totals().rules, [1, 0, 1]);
    let stats = deriver.derivation().rules["refused"].stats;
    assert_eq!(
        (stats.entries_to_set, stats.entry_failures),
        (1, 1),
        "it should exist"
    );
}

#[test]
fn a_problem_says_which_pod_it_is_and_since_when_that_is_there() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("shop", &[]),
        asking("web", "web", "csi.spiffe.io"),
    ] {
        deriver.apply(fact);
    }
    let problems = deriver.pass(&|_| false).problems;
    let [problem] = problems.as_slice() else {
        panic!("{problems:?}")
    };
    assert_eq!(problem.uid, "uid-shop-web");
    assert_eq!(problem.created_at, 1_767_225_610, "2026-01-01T00:00:10Z");
}
