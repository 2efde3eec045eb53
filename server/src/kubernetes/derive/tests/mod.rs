//! Entries derived from objects that the tests write. The functions that make the objects serve the other tests of
//! `kubernetes` too.

mod entries;
mod explain;
mod histories;
mod passes;
mod precedence;
mod problems;
mod samples;
mod statuses;

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
