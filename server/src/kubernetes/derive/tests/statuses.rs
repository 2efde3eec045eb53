//! Which objects are used, and the results in their statuses.

use super::*;

#[test]
fn ignored_namespaces_are_counted_and_give_nothing() {
    let derivation = derived(
        settings(),
        vec![
            rule("r", 0, &json!({})),
            namespace("my-kube-system-2", &[]),
            pod("my-kube-system-2", "a", &json!({})),
            pod("shop", "b", &json!({})),
        ],
    );
    assert_eq!(ids(&derivation), ["/ns/shop/sa/sa"]);
    let stats = status(&derivation, "r").stats;
    assert_eq!(
        (
            stats.namespaces_selected,
            stats.namespaces_ignored,
            stats.pods_selected
        ),
        (2, 1, 1)
    );
}

#[test]
fn objects_of_another_class_are_nobodys_business() {
    let facts = || {
        vec![
            rule(
                "none",
                0,
                &json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/none"}),
            ),
            rule(
                "ours",
                0,
                &json!({"className": "c", "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/ours"}),
            ),
            rule(
                "other",
                0,
                &json!({"className": "d", "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/other"}),
            ),
            fixed("other", 0, &json!({"className": "d"})),
            pod("shop", "a", &json!({})),
        ]
    };
    let of = |class_name: Option<&str>, watches_classless| Settings {
        class_name: class_name.map(str::to_owned),
        watches_classless,
        ..settings()
    };
    for (class, classless, expected) in [
        (None, false, vec!["/none"]),
        (None, true, vec!["/none"]),
        (Some("c"), false, vec!["/ours"]),
        (Some("c"), true, vec!["/none", "/ours"]),
    ] {
        let derivation = derived(of(class, classless), facts());
        assert_eq!(ids(&derivation), expected, "{class:?} {classless}");
        assert_eq!(derivation.rules.len(), expected.len());
        assert!(derivation.statics.is_empty());
    }
}

#[test]
fn a_pod_waits_silently_for_its_node_and_an_unknown_node_is_a_failure() {
    let derivation = derived(
        settings(),
        vec![
            rule("r", 0, &json!({})),
            pod("shop", "pending", &json!({"spec": {"nodeName": null}})),
            pod("shop", "lost", &json!({"spec": {"nodeName": "n9"}})),
        ],
    );
    assert!(derivation.entries.is_empty());
    let stats = status(&derivation, "r").stats;
    assert_eq!((stats.pods_selected, stats.pod_entry_render_failures), (2, 1));
    assert!(
        derivation
            .problems
            .contains_key(&NamespacedName::new("shop", "lost"))
    );
    assert!(
        !derivation
            .problems
            .contains_key(&NamespacedName::new("shop", "pending"))
    );
}

#[test]
fn what_cannot_be_an_entry_is_counted_with_its_reason() {
    for (spec, failures, refused, part) in [
        (
            json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Labels.no }}"}),
            1,
            0,
            "SPIFFE ID",
        ),
        (
            json!({"spiffeIDTemplate": "spiffe://other.test/a"}),
            1,
            0,
            "not of trust domain",
        ),
        (
            json!({"spiffeIDTemplate": "{{ (index .PodMeta.OwnerReferences 0).Name }}"}),
            1,
            0,
            "out of range",
        ),
        (
            json!({"workloadSelectorTemplates": ["k8s:{{ index .PodMeta.Labels \"no\" }}"]}),
            1,
            0,
            "selector value is empty",
        ),
        (json!({"dnsNameTemplates": ["-not-a-name-"]}), 0, 1, "dns_names"),
        (
            json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/spire/agent/x"}),
            0,
            1,
            "reserved",
        ),
    ] {
        let derivation = derived(
            settings(),
            vec![rule("r", 0, &spec), pod("shop", "a", &json!({}))],
        );
        assert!(derivation.entries.is_empty(), "{spec}");
        let status = status(&derivation, "r");
        let stats = status.stats;
        assert_eq!(
            (stats.pod_entry_render_failures, stats.entry_failures),
            (failures, refused),
            "{spec}"
        );
        let text = &status.ready.as_ref().unwrap_err().1;
        assert!(text.contains(part), "{spec}: {text}");
    }
    let derivation = derived(
        settings(),
        vec![
            rule("r", 0, &json!({"spiffeIDTemplate": "{{ .Nope }}"})),
            pod("shop", "a", &json!({})),
        ],
    );
    assert_eq!(status(&derivation, "r").ready.as_ref().unwrap_err().0, "Invalid");
    assert_eq!(status(&derivation, "r").stats.pods_selected, 0);
}

#[test]
fn static_entries_say_what_became_of_them() {
    let derivation = derived(
        settings(),
        vec![
            fixed(
                "good",
                0,
                &json!({"x509SVIDTTL": "12h", "dnsNames": ["db.example.org"]}),
            ),
            fixed("foreign", 0, &json!({"spiffeID": "spiffe://other.test/db"})),
            fixed("broken", 0, &json!({"selectors": ["nocolon"]})),
        ],
    );
    let entry = only(&derivation);
    assert_eq!((entry.x509_svid_ttl, entry.spiffe_id.path()), (43_200, "/db"));
    let told = |name: &str| {
        let status = &derivation.statics[name];
        (
            status.is_rendered,
            status.is_set,
            status.ready.as_ref().err().map(|error| error.0),
        )
    };
    assert_eq!(told("good"), (true, true, None));
    assert_eq!(told("foreign"), (true, false, Some("Refused")));
    assert_eq!(told("broken"), (false, false, Some("Invalid")));
}

#[test]
fn a_pod_that_asks_for_an_identity_and_has_no_rule_is_told() {
    let volume = json!({"spec": {"volumes": [{"name": "s", "csi": {"driver": "csi.spiffe.io"}}]}});
    let derivation = derived(
        settings(),
        vec![
            rule("r", 0, &json!({"podSelector": {"matchLabels": {"app": "other"}}})),
            pod("shop", "asks", &volume),
            pod("shop", "quiet", &json!({})),
        ],
    );
    let names: Vec<String> = derivation.problems.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["shop/asks"]);
    assert_eq!(
        derivation.problems.values().next().unwrap().kind,
        ProblemKind::NoRule
    );
}

#[test]
fn an_object_that_is_made_again_at_once_is_told_its_status() {
    for is_seen_to_go in [true, false] {
        let (made, entry) = (rule("r", 0, &json!({})), fixed("s", 0, &json!({})));
        let (Fact::Rule(rule_name, Some(made_rule)), Fact::Static(entry_name, Some(made_entry))) =
            (&made, &entry)
        else {
            unreachable!("both were made")
        };
        let mut deriver = Deriver::new(settings());
        let mut told = |facts: Vec<Fact>| {
            facts.into_iter().for_each(|fact| deriver.apply(fact));
            let pass = deriver.pass(&|_| false);
            (pass.rules.len(), pass.statics.len())
        };
        assert_eq!(told(vec![made.clone(), entry.clone()]), (1, 1));
        assert_eq!(told(vec![made.clone(), entry.clone()]), (0, 0));
        let (mut new_rule, mut new_entry) = (
            ClusterSPIFFEID::clone(made_rule),
            ClusterStaticEntry::clone(made_entry),
        );
        new_rule.metadata.uid = Some("another".to_owned());
        new_entry.metadata.uid = Some("another".to_owned());
        let mut facts = Vec::new();
        if is_seen_to_go {
            facts.push(Fact::Rule(rule_name.clone(), None));
            facts.push(Fact::Static(entry_name.clone(), None));
        }
        facts.push(Fact::Rule(rule_name.clone(), Some(Arc::new(new_rule))));
        facts.push(Fact::Static(entry_name.clone(), Some(Arc::new(new_entry))));
        assert_eq!(told(facts), (1, 1));
    }
}
