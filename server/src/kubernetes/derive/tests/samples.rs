//! Objects as operators write them, and the entries that SPIRE's controller manager makes of them.

use serde_json::{Value as Json, json};

use super::super::*;
use super::{PARENT, fixed, namespace, rule, service, settings};
use crate::kubernetes::template::Scope;

const NODE_ID: &str = "spiffe://example.test/spire/agent/k8s_psat/demo/node-1";
const ACCOUNT: &str =
    "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}";

/// The pod of all rules here: `shop/web-0` of service account `web`, on node `n1`.
fn web() -> Fact {
    let pod = json!({
        "metadata": {
            "name": "web-0", "namespace": "shop", "uid": "uid-web",
            "creationTimestamp": "2026-01-01T00:00:10Z", "generateName": "web-",
            "labels": {"app": "web", "app.kubernetes.io/name": "frontend", "spiffe.example.org/identity": "true"},
            "annotations": {"example.org/identity": "special"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-7", "uid": "rs", "controller": true}]
        },
        "spec": {
            "serviceAccountName": "web", "nodeName": "n1", "hostname": "h", "priorityClassName": "high",
            "containers": [{"name": "app", "image": "r/app:1"}, {"name": "envoy", "image": "r/envoy:2"}]
        }
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    Fact::Pod(NamespacedName::new("shop", "web-0"), Some(Arc::new(pod)))
}

fn node() -> Fact {
    let node = json!({
        "metadata": {"name": "n1", "uid": "node-1", "labels": {"zone": "z1"}},
        "spec": {"providerID": "aws:///i-1", "podCIDR": "10.1.0.0/24"}
    });
    let node: Node = serde_json::from_value(node).unwrap();
    Fact::Node("n1".into(), Some(Arc::new(node)))
}

/// What an entry has that is not as usual, in the words of SPIRE's API.
fn shown(entry: &Entry) -> Json {
    let mut selectors: Vec<String> = entry.selectors.iter().map(ToString::to_string).collect();
    selectors.retain(|selector| selector != "k8s:pod-uid:uid-web");
    let mut shown = json!({"spiffe_id": entry.spiffe_id.as_str()});
    let federates_with = entry.federates_with.iter().map(TrustDomain::as_str);
    for (field, value) in [
        ("parent_id", json!(entry.parent_id.as_str())),
        ("selectors", json!(selectors)),
        ("dns_names", json!(entry.dns_names)),
        ("x509_svid_ttl", json!(entry.x509_svid_ttl)),
        ("jwt_svid_ttl", json!(entry.jwt_svid_ttl)),
        ("federates_with", json!(federates_with.collect::<Vec<_>>())),
        ("admin", json!(entry.admin)),
        ("downstream", json!(entry.downstream)),
        ("store_svid", json!(entry.store_svid)),
        ("hint", json!(entry.hint)),
    ] {
        let usual = [json!([]), json!(0), json!(false), json!(""), json!(NODE_ID)];
        if !usual.contains(&value) {
            shown[field] = value;
        }
    }
    shown
}

fn entries(facts: Vec<Fact>) -> (Vec<Json>, Derivation) {
    let mut deriver = Deriver::new(settings());
    let around = [node(), namespace("shop", &[("team", "a")])];
    around
        .into_iter()
        .chain(facts)
        .for_each(|fact| deriver.apply(fact));
    deriver.pass(&|_| false);
    let derivation = deriver.derivation();
    let entries = derivation.entries.values();
    (entries.map(|derived| shown(&derived.entry)).collect(), derivation)
}

/// A rule's spec, and the entry for the pod; `null` where the known controller counts a failure to render.
fn rules() -> Vec<(Json, Json)> {
    let of_account = "spiffe://example.test/ns/shop/sa/web";
    let id = |template: &str| json!({"spiffeIDTemplate": template});
    let only = |id: &str| json!({"spiffe_id": format!("spiffe://example.test/{id}")});
    vec![
        // The whole of the kind.
        (
            json!({
                "spiffeIDTemplate": ACCOUNT,
                "podSelector": {"matchLabels": {"spiffe.example.org/identity": "true"}},
                "namespaceSelector": {"matchExpressions": [
                    {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["legacy"]}
                ]},
                "dnsNameTemplates": ["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.svc.{{ .ClusterDomain }}"],
                "workloadSelectorTemplates": ["k8s:container-name:app"],
                "autoPopulateDNSNames": true, "federatesWith": ["partner.example.com"],
                "ttl": "1h", "jwtTtl": "5m", "hint": "internal"
            }),
            json!({
                "spiffe_id": of_account, "selectors": ["k8s:container-name:app"],
                "dns_names": ["web-0.shop.svc.cluster.local", "web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"],
                "federates_with": ["partner.example.com"], "x509_svid_ttl": 3600, "jwt_svid_ttl": 300,
                "hint": "internal"
            }),
        ),
        // What the known chart installs for every pod.
        (
            json!({"spiffeIDTemplate": ACCOUNT, "fallback": true, "namespaceSelector": {"matchExpressions": [
                {"key": "kubernetes.io/metadata.name", "operator": "NotIn", "values": ["spire-server", "spire-system"]}
            ]}}),
            json!({"spiffe_id": of_account}),
        ),
        (
            id(
                "spiffe://{{ .TrustDomain }}/{{ .ClusterName }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
            ),
            only("demo/ns/shop/sa/web"),
        ),
        (
            id("spiffe://{{ .TrustDomain }}/{{ index .PodMeta.Annotations \"example.org/identity\" }}"),
            only("special"),
        ),
        (
            id(
                "spiffe://{{ .TrustDomain }}/{{ index .PodMeta.Labels \"app.kubernetes.io/name\" }}/{{ .PodMeta.Labels.app }}",
            ),
            only("frontend/web"),
        ),
        // A label that is not there is `<no value>`, as in Go, which no ID may have.
        (
            id("spiffe://{{ .TrustDomain }}/{{ .PodMeta.Labels.missing }}"),
            json!(null),
        ),
        (id("spiffe://other.test/{{ .PodMeta.Name }}"), json!(null)),
        (
            id(
                "spiffe://{{ .TrustDomain }}/{{ range .PodMeta.OwnerReferences }}{{ .Kind }}/{{ .Name }}{{ end }}",
            ),
            only("ReplicaSet/web-7"),
        ),
        (
            id(
                "spiffe://{{ .TrustDomain }}/{{ if eq .PodSpec.PriorityClassName \"high\" }}vip{{ else }}all{{ end }}/{{ .PodSpec.Hostname }}",
            ),
            only("vip/h"),
        ),
        (
            id(
                "spiffe://{{ .TrustDomain }}/{{ range $i, $c := .PodSpec.Containers }}{{ if $i }}/{{ end }}{{ $c.Name }}{{ end }}",
            ),
            only("app/envoy"),
        ),
        (
            id(
                "spiffe://{{ .TrustDomain }}/{{ printf \"%s-%s\" .NodeMeta.Name .NodeMeta.Labels.zone }}/{{ .NodeMeta.UID }}/{{ .PodMeta.UID }}",
            ),
            only("n1-z1/node-1/uid-web"),
        ),
        (
            json!({"spiffeIDTemplate": ACCOUNT, "workloadSelectorTemplates": [
                "k8s:ns:{{ .PodMeta.Namespace }}", "k8s:container-name:app", "unix:uid:1000"
            ]}),
            json!({"spiffe_id": of_account, "selectors": ["k8s:container-name:app", "k8s:ns:shop", "unix:uid:1000"]}),
        ),
        // In the order of the templates, each once; the first is the common name.
        (
            json!({"spiffeIDTemplate": ACCOUNT, "dnsNameTemplates": ["z.test", "{{ .PodMeta.Name }}.test", "z.test", "a.test"]}),
            json!({"spiffe_id": of_account, "dns_names": ["z.test", "web-0.test", "a.test"]}),
        ),
        // A name of the templates stands where they put it, and not once more among those of the services.
        (
            json!({"spiffeIDTemplate": ACCOUNT, "dnsNameTemplates": ["web.shop"], "autoPopulateDNSNames": true}),
            json!({"spiffe_id": of_account, "dns_names": ["web.shop", "web", "web.shop.svc", "web.shop.svc.cluster.local"]}),
        ),
        (
            json!({"spiffeIDTemplate": ACCOUNT, "ttl": "1.5h", "jwtTtl": "0"}),
            json!({"spiffe_id": of_account, "x509_svid_ttl": 5400}),
        ),
        (
            json!({"spiffeIDTemplate": ACCOUNT, "federatesWith": ["spiffe://partner.example.com"], "admin": true, "downstream": true}),
            json!({"spiffe_id": of_account, "federates_with": ["partner.example.com"], "admin": true, "downstream": true}),
        ),
        // Every pod of every namespace.
        (
            json!({"spiffeIDTemplate": ACCOUNT, "podSelector": {}, "namespaceSelector": {}}),
            json!({"spiffe_id": of_account}),
        ),
        (
            json!({"spiffeIDTemplate": ACCOUNT, "dnsNameTemplates": ["{{ .PodMeta.Nonsense }}"]}),
            json!(null),
        ),
    ]
}

#[test]
fn each_rule_makes_the_entry_of_the_known_controller() {
    for (spec, expected) in rules() {
        let facts = vec![
            rule("sample", 0, &spec),
            web(),
            service("web-x", "shop", "web", &[]),
            teller(),
        ];
        let (entries, derivation) = entries(facts);
        let stats = derivation.rules["sample"].stats;
        match expected {
            Json::Null => {
                assert_eq!(entries, [] as [Json; 0], "{spec}");
                assert!(derivation.rules["sample"].ready.is_err(), "{spec}");
            }
            expected => {
                assert_eq!(entries, [expected], "{spec}");
                assert_eq!((stats.pods_selected, stats.entries_to_set), (1, 1), "{spec}");
                assert_eq!(stats.pod_entry_render_failures, 0, "{spec}");
            }
        }
    }
}

/// The service `web`, which has the pod behind it.
fn teller() -> Fact {
    let endpoints = ServiceEndpoints {
        service: "web".to_owned(),
        pods: [("web-0".to_owned(), "uid-web".to_owned())].into_iter().collect(),
    };
    Fact::Endpoints(NamespacedName::new("shop", "web-y"), Some(Arc::new(endpoints)))
}

#[test]
fn each_static_entry_is_the_entry_of_the_known_controller() {
    let vm = "spiffe://example.test/spire/agent/x509pop/0f3a6d";
    for (spec, expected) in [
        (
            json!({
                "spiffeID": "spiffe://example.test/database", "parentID": vm,
                "selectors": ["unix:uid:70", "unix:path:/usr/lib/postgresql/17/bin/postgres"],
                "x509SVIDTTL": "12h", "dnsNames": ["db.example.test"]
            }),
            json!({
                "spiffe_id": "spiffe://example.test/database", "parent_id": vm,
                "selectors": ["unix:path:/usr/lib/postgresql/17/bin/postgres", "unix:uid:70"],
                "x509_svid_ttl": 43200, "dns_names": ["db.example.test"]
            }),
        ),
        // A group of nodes.
        (
            json!({
                "spiffeID": "spiffe://example.test/nodes", "parentID": "spiffe://example.test/spire/server",
                "selectors": ["k8s_psat:cluster:demo", "k8s_psat:agent_node_label:zone:z1"]
            }),
            json!({
                "spiffe_id": "spiffe://example.test/nodes", "parent_id": "spiffe://example.test/spire/server",
                "selectors": ["k8s_psat:agent_node_label:zone:z1", "k8s_psat:cluster:demo"]
            }),
        ),
        (
            json!({
                "spiffeID": "spiffe://example.test/all", "parentID": vm, "selectors": ["a:b:c"],
                "federatesWith": ["partner.example.com"], "jwtSVIDTTL": "90s", "hint": "h",
                "admin": true, "downstream": true, "storeSVID": true, "dnsNames": ["b.test", "a.test"]
            }),
            json!({
                "spiffe_id": "spiffe://example.test/all", "parent_id": vm, "selectors": ["a:b:c"],
                "federates_with": ["partner.example.com"], "jwt_svid_ttl": 90, "hint": "h",
                "admin": true, "downstream": true, "store_svid": true, "dns_names": ["b.test", "a.test"]
            }),
        ),
    ] {
        let (entries, derivation) = entries(vec![fixed("sample", 0, &spec)]);
        assert_eq!(entries, [expected], "{spec}");
        let status = &derivation.statics["sample"];
        assert!(
            status.is_rendered && status.is_set && !status.is_masked,
            "{spec}: {status:?}"
        );
    }
}

#[test]
fn the_parent_is_the_agent_of_the_pods_node_however_agents_are_named() {
    for (template, expected) in [
        (PARENT, NODE_ID),
        (
            "spiffe://{{ .TrustDomain }}/{{ .ClusterName }}/{{ .NodeMeta.Name }}",
            "spiffe://example.test/demo/n1",
        ),
        (
            "spiffe://{{ .TrustDomain }}/pool/{{ .NodeMeta.Labels.zone }}/{{ slice .NodeSpec.ProviderID 7 }}",
            "spiffe://example.test/pool/z1/i-1",
        ),
    ] {
        let settings = Settings {
            parent_id: Arc::new(Template::parse(template, Scope::Node).unwrap()),
            ..settings()
        };
        let mut deriver = Deriver::new(settings);
        for fact in [
            node(),
            namespace("shop", &[]),
            rule("r", 0, &json!({"spiffeIDTemplate": ACCOUNT})),
            web(),
        ] {
            deriver.apply(fact);
        }
        deriver.pass(&|_| false);
        let derivation = deriver.derivation();
        let parents: Vec<&str> = derivation
            .entries
            .values()
            .map(|derived| derived.entry.parent_id.as_str())
            .collect();
        assert_eq!(parents, [expected], "{template}");
    }
}
