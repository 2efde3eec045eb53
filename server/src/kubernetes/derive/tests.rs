use serde_json::{Value as Json, json};

use super::*;
use crate::kubernetes::template::{Scope, Template};

pub(in crate::kubernetes) const PARENT: &str =
    "spiffe://{{ .TrustDomain }}/spire/agent/k8s_psat/{{ .ClusterName }}/{{ .NodeMeta.UID }}";
const ID: &str =
    "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}";

pub(in crate::kubernetes) fn settings() -> Settings {
    Settings {
        trust_domain: TrustDomain::parse("example.test").unwrap(),
        cluster_name: "demo".to_owned(),
        cluster_domain: "cluster.local".to_owned(),
        ignored_namespaces: RegexSet::new(["kube-system"]).unwrap(),
        class_name: None,
        watches_classless: false,
        parent_id: Arc::new(Template::parse(PARENT, Scope::Node).unwrap()),
        csi_driver: "csi.spiffe.io".to_owned(),
    }
}

pub(in crate::kubernetes) fn pod(namespace: &str, name: &str, more: &Json) -> Fact {
    let mut object = json!({
        "metadata": {
            "name": name, "namespace": namespace, "uid": format!("uid-{namespace}-{name}"),
            "creationTimestamp": "2026-01-01T00:00:10Z", "labels": {"app": "web"}
        },
        "spec": {"serviceAccountName": "sa", "nodeName": "n1", "containers": [{"name": "app"}]}
    });
    for part in ["metadata", "spec"] {
        for (key, value) in more[part].as_object().into_iter().flatten() {
            object[part][key] = value.clone();
        }
    }
    let pod: Pod = serde_json::from_value(object).unwrap();
    Fact::Pod(NamespacedName::new(namespace, name), Some(Arc::new(pod)))
}

pub(in crate::kubernetes) fn node(name: &str, uid: &str) -> Fact {
    let node: Node = serde_json::from_value(json!({"metadata": {"name": name, "uid": uid}})).unwrap();
    Fact::Node(name.into(), Some(Arc::new(node)))
}

pub(in crate::kubernetes) fn namespace(name: &str, labels: &[(&str, &str)]) -> Fact {
    let own = ("kubernetes.io/metadata.name", name);
    let labels = labels
        .iter()
        .chain([&own])
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    Fact::Namespace(name.into(), Some(Arc::new(labels.collect())))
}

pub(in crate::kubernetes) fn rule(name: &str, age: u8, spec: &Json) -> Fact {
    let mut spec = spec.clone();
    if spec.get("spiffeIDTemplate").is_none() {
        spec["spiffeIDTemplate"] = json!(ID);
    }
    let rule: ClusterSPIFFEID = serde_json::from_value(json!({
        "metadata": {
            "name": name, "uid": format!("rule-{name}"), "generation": 1,
            "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", 50 - age)
        },
        "spec": spec
    }))
    .unwrap();
    Fact::Rule(name.into(), Some(Arc::new(rule)))
}

pub(in crate::kubernetes) fn fixed(name: &str, age: u8, spec: &Json) -> Fact {
    let mut whole = json!({
        "spiffeID": "spiffe://example.test/db", "parentID": "spiffe://example.test/spire/agent/x509pop/1",
        "selectors": ["unix:uid:70"]
    });
    for (key, value) in spec.as_object().unwrap() {
        whole[key] = value.clone();
    }
    let object: ClusterStaticEntry = serde_json::from_value(json!({
        "metadata": {
            "name": name, "uid": format!("static-{name}"),
            "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", 50 - age)
        },
        "spec": whole
    }))
    .unwrap();
    Fact::Static(name.into(), Some(Arc::new(object)))
}

pub(in crate::kubernetes) fn service(name: &str, namespace: &str, service: &str, pods: &[&str]) -> Fact {
    let pods = pods
        .iter()
        .map(|pod| ((*pod).to_owned(), format!("uid-{namespace}-{pod}")));
    let endpoints = ServiceEndpoints {
        service: service.to_owned(),
        pods: pods.collect(),
    };
    Fact::Endpoints(NamespacedName::new(namespace, name), Some(Arc::new(endpoints)))
}

fn derived(settings: Settings, facts: Vec<Fact>) -> Derivation {
    derived_beside(settings, facts, &|_| false)
}

fn derived_beside(settings: Settings, facts: Vec<Fact>, is_stored: IsTaken<'_>) -> Derivation {
    let mut deriver = Deriver::new(settings.clone());
    for fact in [node("n1", "node-1"), namespace("shop", &[("team", "a")])]
        .into_iter()
        .chain(facts)
    {
        deriver.apply(fact);
    }
    deriver.pass(is_stored);
    let derivation = deriver.derivation();
    assert_eq!(derivation, derive(deriver.objects(), &settings, is_stored));
    derivation
}

fn ids(derivation: &Derivation) -> Vec<&str> {
    let mut ids: Vec<&str> = derivation
        .entries
        .values()
        .map(|derived| derived.entry.spiffe_id.path())
        .collect();
    ids.sort_unstable();
    ids
}

fn only(derivation: &Derivation) -> &Entry {
    assert_eq!(derivation.entries.len(), 1, "{:?}", derivation.entries);
    &derivation.entries.values().next().unwrap().entry
}

fn status<'d>(derivation: &'d Derivation, rule: &str) -> &'d RuleStatus {
    &derivation.rules[rule]
}

#[test]
fn the_sample_rule_gives_the_known_controllers_entry() {
    let spec = json!({
        "spiffeIDTemplate": ID,
        "podSelector": {"matchLabels": {"spiffe.example.org/identity": "true"}},
        "namespaceSelector": {"matchExpressions": [
            {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["legacy"]}
        ]},
        "dnsNameTemplates": ["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.svc.{{ .ClusterDomain }}"],
        "workloadSelectorTemplates": ["k8s:container-name:app"],
        "autoPopulateDNSNames": true, "federatesWith": ["partner.example.com"],
        "ttl": "1h", "jwtTtl": "5m", "hint": "internal"
    });
    let labels = json!({"metadata": {"labels": {"spiffe.example.org/identity": "true"}}});
    let derivation = derived(
        settings(),
        vec![
            rule("backend", 0, &spec),
            pod("shop", "a", &labels),
            pod("shop", "unlabelled", &json!({})),
            namespace("legacy", &[]),
            pod("legacy", "b", &labels),
            service("web-xyz", "shop", "web", &["a"]),
        ],
    );
    let entry = only(&derivation);
    assert_eq!(entry.spiffe_id.as_str(), "spiffe://example.test/ns/shop/sa/sa");
    assert_eq!(
        entry.parent_id.as_str(),
        "spiffe://example.test/spire/agent/k8s_psat/demo/node-1"
    );
    let selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
    assert_eq!(selectors, ["k8s:container-name:app", "k8s:pod-uid:uid-shop-a"]);
    assert_eq!(
        entry.dns_names,
        [
            "a.shop.svc.cluster.local",
            "web",
            "web.shop",
            "web.shop.svc",
            "web.shop.svc.cluster.local"
        ]
    );
    assert_eq!((entry.x509_svid_ttl, entry.jwt_svid_ttl), (3600, 300));
    assert_eq!(entry.federates_with[0].as_str(), "partner.example.com");
    assert_eq!(entry.hint, "internal");
    let stats = status(&derivation, "backend").stats;
    assert_eq!(
        (
            stats.namespaces_selected,
            stats.pods_selected,
            stats.entries_to_set
        ),
        (1, 1, 1)
    );
    assert_eq!(status(&derivation, "backend").ready, Ok(()));
}

#[test]
fn a_selector_may_get_its_colon_from_what_it_renders() {
    let spec = json!({"workloadSelectorTemplates": ["{{ index .PodMeta.Annotations \"selector\" }}"]});
    let annotated = |selector: &str| json!({"metadata": {"annotations": {"selector": selector}, "labels": {"app": "web"}}});
    let derivation = derived(
        settings(),
        vec![
            rule("r", 0, &spec),
            pod("shop", "a", &annotated("k8s:container-name:app")),
            pod("shop", "b", &annotated("nocolon")),
        ],
    );
    let selectors: Vec<String> = only(&derivation)
        .selectors
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(selectors, ["k8s:container-name:app", "k8s:pod-uid:uid-shop-a"]);
    assert_eq!(status(&derivation, "r").stats.pod_entry_render_failures, 1);
}

#[test]
fn a_pod_without_the_label_of_a_template_gets_no_identity_that_others_without_it_share() {
    let spec = json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/team-{{ .PodMeta.Labels.team }}"});
    let derivation = derived(
        settings(),
        vec![
            rule("r", 0, &spec),
            pod("shop", "a", &json!({"metadata": {"labels": {"team": "a"}}})),
            pod("shop", "b", &json!({})),
        ],
    );
    assert_eq!(ids(&derivation), ["/team-a"]);
    assert_eq!(status(&derivation, "r").stats.pod_entry_render_failures, 1);
}

#[test]
fn ids_times_and_revisions_depend_on_the_objects_alone() {
    let facts = || vec![rule("r", 0, &json!({})), pod("shop", "a", &json!({}))];
    let one = derived(settings(), facts());
    let entry = only(&one);
    let id = entry.id.strip_prefix("k8s.demo.").unwrap();
    assert_eq!(Uuid::parse_str(id).unwrap().get_version_num(), 5);
    assert_eq!(entry.created_at, 1_767_225_610);
    assert!((1..=0x7fff_ffff).contains(&entry.revision_number));
    let mut backwards = facts();
    backwards.reverse();
    assert_eq!(derived(settings(), backwards), one);
    let hinted = derived(
        settings(),
        vec![rule("r", 0, &json!({"hint": "h"})), pod("shop", "a", &json!({}))],
    );
    assert_eq!(only(&hinted).id, entry.id);
    assert_ne!(only(&hinted).revision_number, entry.revision_number);
    let elsewhere = Settings {
        cluster_name: "other".to_owned(),
        ..settings()
    };
    assert_ne!(only(&derived(elsewhere, facts())).id, entry.id);
}

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
fn completed_and_terminating_pods_keep_their_entries() {
    let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:20Z"}});
    let derivation = derived(
        settings(),
        vec![rule("r", 0, &json!({})), pod("shop", "a", &going)],
    );
    assert_eq!(derivation.entries.len(), 1);
}

#[test]
fn an_agent_gets_only_pods_that_are_bound_to_its_node() {
    // Whatever labels, annotations or a host name a pod has: the parent is its node's agent.
    let liar = json!({
        "metadata": {"labels": {"app": "web", "node": "node-1"}, "annotations": {"node": "n1"}},
        "spec": {"nodeName": "n2", "hostname": "n1", "nodeSelector": {"kubernetes.io/hostname": "n1"}}
    });
    let derivation = derived(
        settings(),
        vec![
            node("n2", "node-2"),
            rule(
                "r",
                0,
                &json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/{{ .PodMeta.Name }}"}),
            ),
            pod("shop", "honest", &json!({})),
            pod("shop", "liar", &liar),
        ],
    );
    let parents: BTreeMap<&str, &str> = derivation
        .entries
        .values()
        .map(|derived| (derived.entry.spiffe_id.path(), derived.entry.parent_id.path()))
        .collect();
    assert_eq!(parents["/honest"], "/spire/agent/k8s_psat/demo/node-1");
    assert_eq!(parents["/liar"], "/spire/agent/k8s_psat/demo/node-2");
}

#[test]
fn dns_names_keep_their_order_without_repeats_and_services_come_sorted() {
    let spec = json!({
        "dnsNameTemplates": ["z.example", "{{ .PodMeta.Name }}", "z.example"], "autoPopulateDNSNames": true
    });
    let bare = Settings {
        cluster_domain: String::new(),
        ..settings()
    };
    let facts = || {
        vec![
            rule("r", 0, &spec),
            pod("shop", "a", &json!({})),
            service("s2-1", "shop", "s2", &["a"]),
            service("s2-2", "shop", "s2", &["a", "other"]),
            service("s1-1", "shop", "s1", &["a"]),
            service("no", "shop", "no", &["other"]),
            namespace("far", &[]),
            service("far", "far", "far", &["a"]),
        ]
    };
    let derivation = derived(bare, facts());
    assert_eq!(
        only(&derivation).dns_names,
        [
            "z.example",
            "a",
            "s1",
            "s1.shop",
            "s1.shop.svc",
            "s2",
            "s2.shop",
            "s2.shop.svc"
        ]
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
fn a_pass_tells_only_what_changed() {
    let mut deriver = Deriver::new(settings());
    for fact in [
        node("n1", "node-1"),
        namespace("shop", &[]),
        rule("r", 0, &json!({"podSelector": {"matchLabels": {"app": "web"}}})),
        pod("shop", "a", &json!({})),
        pod("shop", "b", &json!({})),
    ] {
        deriver.apply(fact);
    }
    let first = deriver.pass(&|_| false);
    assert_eq!(
        (first.upserts.len(), first.removals.len(), first.rules.len()),
        (2, 0, 1)
    );
    assert_eq!(deriver.pass(&|_| false), Pass::default());
    // The same again, and a heartbeat of the node, change nothing.
    deriver.apply(pod("shop", "a", &json!({"metadata": {"resourceVersion": "99"}})));
    deriver.apply(node("n1", "node-1"));
    assert_eq!(deriver.pass(&|_| false), Pass::default());
    deriver.apply(pod("shop", "a", &json!({"metadata": {"labels": {"app": "x"}}})));
    let relabelled = deriver.pass(&|_| false);
    assert_eq!((relabelled.upserts.len(), relabelled.removals.len()), (0, 1));
    assert_eq!(relabelled.rules["r"].stats.pods_selected, 1);
    // A new node object is a new agent.
    deriver.apply(node("n1", "node-9"));
    let moved = deriver.pass(&|_| false);
    assert_eq!((moved.upserts.len(), moved.removals.len()), (1, 1));
    deriver.apply(Fact::Pod(NamespacedName::new("shop", "b"), None));
    assert_eq!(deriver.pass(&|_| false).removals.len(), 1);
    assert!(deriver.derivation().entries.is_empty());
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

#[test]
fn a_look_at_what_others_took_asks_once_for_each_key_and_touches_what_turned_alone() {
    let mut deriver = Deriver::new(settings());
    for fact in [node("n1", "u"), namespace("shop", &[]), rule("r", 0, &json!({}))] {
        deriver.apply(fact);
    }
    for n in 0..1_000 {
        deriver.apply(pod("shop", &format!("p{n}"), &json!({})));
    }
    deriver.pass(&|_| false);
    let asked = std::cell::Cell::new(0);
    let taken = |entry: &Entry| {
        asked.set(asked.get() + 1);
        entry.selectors[0].to_string() == "k8s:pod-uid:uid-shop-p7"
    };
    deriver.others_changed();
    let pass = deriver.pass(&taken);
    assert_eq!((pass.removals.len(), pass.upserts.len()), (1, 0));
    assert_eq!(asked.get(), 1_001, "each key, and the one that turned once more");
    asked.set(0);
    deriver.others_changed();
    assert_eq!(deriver.pass(&taken), Pass::default());
    assert_eq!(asked.get(), 1_000);
    asked.set(0);
    deriver.apply(pod("shop", "p8", &json!({"metadata": {"labels": {"x": "y"}}})));
    deriver.pass(&taken);
    assert_eq!(asked.get(), 1, "a pod is its own affair");
}
