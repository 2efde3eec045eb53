//! What the entry of a pod holds.

use super::*;

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
