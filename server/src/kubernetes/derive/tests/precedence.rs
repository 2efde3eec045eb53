//! Which of several objects, and of stored entries, gives an identity that all of them declare.

use super::*;

#[test]
fn a_pod_under_two_rules_has_two_entries_unless_they_are_the_same() {
    let derivation = derived(
        settings(),
        vec![
            rule("one", 1, &json!({})),
            rule(
                "two",
                0,
                &json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/two"}),
            ),
            pod("shop", "a", &json!({})),
        ],
    );
    assert_eq!(ids(&derivation), ["/ns/shop/sa/sa", "/two"]);
    let derivation = derived(
        settings(),
        vec![
            rule("younger", 1, &json!({"hint": "younger"})),
            rule("older", 2, &json!({"hint": "older"})),
            pod("shop", "a", &json!({})),
        ],
    );
    assert_eq!(only(&derivation).hint, "older");
    let origin = &derivation.entries.values().next().unwrap().origin;
    assert_eq!(&**origin, "ClusterSPIFFEID older of cluster demo");
    let stats = |name| status(&derivation, name).stats;
    assert_eq!(
        (stats("older").entries_to_set, stats("older").entries_masked),
        (1, 0)
    );
    assert_eq!(
        (stats("younger").entries_to_set, stats("younger").entries_masked),
        (0, 1)
    );
}

#[test]
fn of_two_objects_of_one_age_the_one_that_stays_wins_and_then_the_smaller_uid() {
    let same = |name: &str| rule(name, 1, &json!({"hint": name}));
    let derivation = derived(
        settings(),
        vec![same("b"), same("a"), pod("shop", "p", &json!({}))],
    );
    assert_eq!(only(&derivation).hint, "a");
    let Fact::Rule(name, Some(leaving)) = same("a") else {
        unreachable!("a rule was made")
    };
    let mut leaving = ClusterSPIFFEID::clone(&leaving);
    leaving.metadata.deletion_timestamp = leaving.metadata.creation_timestamp.clone();
    let leaving = Fact::Rule(name, Some(Arc::new(leaving)));
    let derivation = derived(settings(), vec![same("b"), leaving, pod("shop", "p", &json!({}))]);
    assert_eq!(only(&derivation).hint, "b");
}

#[test]
fn static_entries_and_rules_compete_in_one_list_and_stored_ones_win() {
    let pod_entry = json!({
        "spiffeID": "spiffe://example.test/ns/shop/sa/sa",
        "parentID": "spiffe://example.test/spire/agent/k8s_psat/demo/node-1",
        "selectors": ["k8s:pod-uid:uid-shop-a"], "hint": "static"
    });
    let facts = |age| {
        vec![
            rule("r", 5, &json!({"hint": "rule"})),
            fixed("s", age, &pod_entry),
            pod("shop", "a", &json!({})),
        ]
    };
    let older = derived(settings(), facts(9));
    assert_eq!(only(&older).hint, "static");
    assert!(older.statics["s"].is_set && !older.statics["s"].is_masked);
    assert_eq!(status(&older, "r").stats.entries_masked, 1);
    let younger = derived(settings(), facts(1));
    assert_eq!(only(&younger).hint, "rule");
    let masked = &younger.statics["s"];
    assert!(masked.is_rendered && masked.is_masked && !masked.is_set);
    let stored = derived_beside(settings(), facts(1), &|_| true);
    assert_eq!(stored.entries.len(), 0);
    assert!(stored.statics["s"].is_masked);
    let stats = status(&stored, "r").stats;
    assert_eq!((stats.entries_to_set, stats.entries_masked), (0, 1));
}

#[test]
fn a_fallback_is_for_pods_without_another_entry() {
    let fallback = json!({"fallback": true, "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/default"});
    let broken = json!({
        "podSelector": {"matchLabels": {"app": "broken"}}, "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Labels.no }}"
    });
    let derivation = derived(
        settings(),
        vec![
            rule("fallback", 9, &fallback),
            rule("web", 0, &json!({"podSelector": {"matchLabels": {"app": "web"}}})),
            rule("broken", 0, &broken),
            pod("shop", "web", &json!({})),
            pod("shop", "other", &json!({"metadata": {"labels": {}}})),
            pod(
                "shop",
                "broken",
                &json!({"metadata": {"labels": {"app": "broken"}}}),
            ),
        ],
    );
    assert_eq!(ids(&derivation), ["/default", "/default", "/ns/shop/sa/sa"]);
    let stats = status(&derivation, "fallback").stats;
    assert_eq!((stats.pods_selected, stats.entries_to_set), (3, 2));
    let broken = status(&derivation, "broken");
    assert_eq!(
        (
            broken.stats.pod_entry_render_failures,
            broken.stats.entries_to_set
        ),
        (1, 0)
    );
    let (reason, text) = broken.ready.clone().unwrap_err();
    assert_eq!(reason, "RenderFailed");
    assert!(text.contains("shop/broken"), "{text}");
    let problem = &derivation.problems[&NamespacedName::new("shop", "broken")];
    assert_eq!(problem.kind, ProblemKind::RuleFailed);
}

#[test]
fn an_object_that_comes_to_declare_what_an_older_one_does_is_masked_from_then_on() {
    // Often, because the order in which keys are settled is not fixed.
    for n in 0..32 {
        let mut deriver = Deriver::new(settings());
        deriver.apply(fixed("older", 9, &json!({})));
        deriver.apply(fixed(
            "younger",
            1,
            &json!({"selectors": [format!("unix:uid:{n}")]}),
        ));
        deriver.pass(&|_| false);
        assert!(deriver.derivation().statics["younger"].is_set);
        deriver.apply(fixed("younger", 1, &json!({})));
        deriver.apply(fixed("older", 9, &json!({"hint": "h"})));
        deriver.pass(&|_| false);
        assert!(deriver.derivation().statics["younger"].is_masked);
        deriver.apply(fixed("younger", 1, &json!({"selectors": ["unix:uid:1000"]})));
        deriver.pass(&|_| false);
        assert!(deriver.derivation().statics["younger"].is_set);
    }
}

#[test]
fn a_change_in_the_store_masks_and_unmasks() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "u"),
        namespace("shop", &[]),
        rule("r", 0, &json!({})),
        pod("shop", "a", &json!({})),
    ] {
        deriver.apply(fact);
    }
    deriver.pass(&|_| false);
    deriver.others_changed();
    let masked = deriver.pass(&|_| true);
    assert_eq!(
        (masked.removals.len(), masked.rules["r"].stats.entries_masked),
        (1, 1)
    );
    deriver.others_changed();
    assert_eq!(deriver.pass(&|_| false).upserts.len(), 1);
}
