#![allow(clippy::disallowed_methods)] // tests write the chart's files

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../charts/finial/crds")
}

#[test]
fn the_charts_definitions_are_those_of_the_types() {
    for (name, text) in manifests() {
        let path = folder().join(&name);
        let written = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(
            written, text,
            "{name} is not what the types say; write it anew with: cargo test -p finial-server --lib writes_the_charts_definitions -- --ignored"
        );
    }
}

#[test]
#[ignore = "writes the chart's files"]
fn writes_the_charts_definitions() {
    std::fs::create_dir_all(folder()).unwrap();
    for (name, text) in manifests() {
        std::fs::write(folder().join(name), text).unwrap();
    }
}

fn schema(plural: &str) -> Value {
    let all = definitions();
    let found = all.iter().find(|crd| crd.spec.names.plural == plural).unwrap();
    serde_json::to_value(found).unwrap()
}

fn version(plural: &str) -> Value {
    schema(plural)["spec"]["versions"][0].clone()
}

fn spec_of(plural: &str) -> Value {
    version(plural)["schema"]["openAPIV3Schema"]["properties"]["spec"].clone()
}

#[test]
fn names_scope_and_status_are_those_of_the_known_kinds() {
    for (plural, kind) in [
        ("clusterspiffeids", "ClusterSPIFFEID"),
        ("clusterstaticentries", "ClusterStaticEntry"),
        ("clusterfederatedtrustdomains", "ClusterFederatedTrustDomain"),
    ] {
        let crd = schema(plural);
        assert_eq!(crd["metadata"]["name"], format!("{plural}.spire.spiffe.io"));
        assert_eq!(crd["spec"]["scope"], "Cluster");
        assert_eq!(crd["spec"]["names"]["kind"], kind);
        let version = version(plural);
        assert_eq!(version["name"], "v1alpha1");
        assert_eq!(version["subresources"], json!({"status": {}}));
        let required = version["schema"]["openAPIV3Schema"]["required"].to_string();
        assert!(required.contains("spec"), "{required}");
    }
}

#[test]
fn fields_have_the_known_spellings() {
    let properties = |plural| {
        let spec = spec_of(plural);
        let names: Vec<String> = spec["properties"].as_object().unwrap().keys().cloned().collect();
        names
    };
    let mut expected = vec![
        "spiffeIDTemplate",
        "ttl",
        "jwtTtl",
        "dnsNameTemplates",
        "workloadSelectorTemplates",
        "federatesWith",
        "namespaceSelector",
        "podSelector",
        "admin",
        "downstream",
        "autoPopulateDNSNames",
        "className",
        "fallback",
        "hint",
    ];
    expected.sort_unstable();
    let mut found = properties("clusterspiffeids");
    found.sort_unstable();
    assert_eq!(found, expected);
    let mut expected = vec![
        "spiffeID",
        "parentID",
        "selectors",
        "federatesWith",
        "x509SVIDTTL",
        "jwtSVIDTTL",
        "dnsNames",
        "hint",
        "admin",
        "downstream",
        "storeSVID",
        "className",
    ];
    expected.sort_unstable();
    let mut found = properties("clusterstaticentries");
    found.sort_unstable();
    assert_eq!(found, expected);
    assert_eq!(
        spec_of("clusterspiffeids")["required"],
        json!(["spiffeIDTemplate"])
    );
    assert_eq!(
        spec_of("clusterstaticentries")["required"],
        json!(["parentID", "selectors", "spiffeID"])
    );
    assert_eq!(
        spec_of("clusterfederatedtrustdomains")["required"],
        json!(["bundleEndpointProfile", "bundleEndpointURL", "trustDomain"])
    );
}

#[test]
fn a_status_needs_all_seven_counts() {
    let version = version("clusterspiffeids");
    let status = &version["schema"]["openAPIV3Schema"]["properties"]["status"];
    assert_eq!(status["required"], json!(["stats"]));
    let required = status["properties"]["stats"]["required"].as_array().unwrap();
    assert_eq!(required.len(), 7, "{required:?}");
}

#[test]
fn rules_in_cel_stand_in_the_definitions() {
    let rules = |value: &Value| value["x-kubernetes-validations"][0]["rule"].to_string();
    let entry = spec_of("clusterstaticentries");
    assert!(rules(&entry["properties"]["selectors"]).contains("matches"));
    assert!(rules(&entry["properties"]["spiffeID"]).contains("spiffe://"));
    let federation = spec_of("clusterfederatedtrustdomains");
    assert!(rules(&federation["properties"]["bundleEndpointURL"]).contains("https://"));
    assert!(rules(&federation["properties"]["bundleEndpointProfile"]).contains("https_spiffe"));
    let profile = &federation["properties"]["bundleEndpointProfile"]["properties"]["type"];
    assert_eq!(profile["enum"], json!(["https_web", "https_spiffe"]));
}

/// An API server refuses a definition whose rules could cost too much, and takes any length that is not bounded
/// for the longest that there can be.
#[test]
fn texts_that_rules_run_over_are_bounded() {
    let rule = spec_of("clusterspiffeids");
    let entry = spec_of("clusterstaticentries");
    for bounded in [
        &rule["properties"]["workloadSelectorTemplates"],
        &entry["properties"]["selectors"],
    ] {
        assert_eq!(bounded["maxItems"], 256);
        assert_eq!(bounded["items"]["maxLength"], 4096, "{bounded}");
    }
    assert_eq!(entry["properties"]["parentID"]["maxLength"], 2048);
}

#[test]
fn objects_written_for_the_known_controller_are_read() {
    let rule: ClusterSPIFFEID = serde_json::from_value(json!({
        "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": {"name": "backend"},
        "spec": {
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/x", "ttl": "1h", "jwtTtl": "5m",
            "namespaceSelector": {"matchExpressions": [{"key": "k", "operator": "NotIn", "values": ["legacy"]}]},
            "autoPopulateDNSNames": true, "hint": "internal"
        },
        "status": {"stats": {
            "namespacesSelected": 1, "namespacesIgnored": 0, "podsSelected": 2, "podEntryRenderFailures": 0,
            "entriesMasked": 0, "entriesToSet": 2, "entryFailures": 0
        }}
    }))
    .unwrap();
    assert_eq!(rule.spec.jwt_ttl.as_deref(), Some("5m"));
    assert_eq!(rule.spec.auto_populate_dns_names, Some(true));
    assert_eq!(rule.status.unwrap().stats.pods_selected, 2);
    let federation: ClusterFederatedTrustDomain = serde_json::from_value(json!({
        "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterFederatedTrustDomain",
        "metadata": {"name": "partner"},
        "spec": {
            "trustDomain": "partner.example.com", "bundleEndpointURL": "https://partner.example.com",
            "bundleEndpointProfile": {"type": "https_spiffe", "endpointSPIFFEID": "spiffe://partner.example.com/s"}
        },
        "status": {}
    }))
    .unwrap();
    assert_eq!(
        federation.spec.bundle_endpoint_profile.kind,
        ProfileType::HttpsSpiffe
    );
}
