//! Sets of values that users have, each for old and new clusters.

use std::fs;

use serde_json::Value;

use crate::engine::{Engine, engine, repository};

/// The oldest version that the chart takes, one with `policy/v1`, and one with `nodes/pods`.
pub const VERSIONS: [&str; 3] = ["1.20.0", "1.25.0", "1.33.0"];

/// Each set by its name.
pub fn sets(engine: &Engine) -> Vec<(String, Value)> {
    let folder = repository().join("tests/charts/sets");
    let mut sets: Vec<_> = fs::read_dir(folder)
        .expect("the folder of the sets")
        .map(|entry| {
            let path = entry.expect("an entry of the folder").path();
            let text = fs::read_to_string(&path).expect("a set is text");
            let name = path.file_stem().expect("a set has a name");
            (name.to_string_lossy().into_owned(), engine.yaml(&text))
        })
        .collect();
    sets.sort_by(|(one, _), (other, _)| one.cmp(other));
    assert!(sets.len() >= 5, "sets are missing");
    sets
}

/// The least that must be said.
pub fn required() -> Value {
    serde_json::json!({"global": {"spire": {"trustDomain": "example.org", "clusterName": "production"}}})
}

#[test]
fn every_set_renders_and_lints_strictly_for_old_and_new_clusters() {
    let Some(engine) = engine() else { return };
    for (name, values) in sets(engine) {
        for version in VERSIONS {
            let rendered = engine.render_for(version, &values);
            let rendered = rendered.unwrap_or_else(|error| panic!("{name} for {version}: {error}"));
            assert!(rendered.objects().count() > 10, "{name} for {version}");
            let findings = engine.lint(version, &values);
            assert_eq!(findings, Ok(Vec::new()), "{name} for {version}");
        }
    }
}

#[test]
fn old_clusters_get_only_what_they_have() {
    let Some(engine) = engine() else { return };
    let api_of_budget = |version| {
        let rendered = engine.render_for(version, &required()).expect("renders");
        rendered.named("PodDisruptionBudget", "finial-server")["apiVersion"].clone()
    };
    assert_eq!(api_of_budget("1.20.0"), "policy/v1beta1");
    assert_eq!(api_of_budget("1.25.0"), "policy/v1");
    let right_at_kubelet = |version| {
        let rendered = engine.render_for(version, &required()).expect("renders");
        rendered.named("ClusterRole", "finial-finial-agent")["rules"][0]["resources"].clone()
    };
    assert_eq!(right_at_kubelet("1.32.9"), serde_json::json!(["nodes/proxy"]));
    assert_eq!(right_at_kubelet("1.33.0"), serde_json::json!(["nodes/pods"]));
}

#[test]
fn each_pool_is_a_daemon_set_with_settings_of_its_own() {
    let Some(engine) = engine() else { return };
    let sets = sets(engine);
    let (_, pools) = sets.iter().find(|(name, _)| name == "pools").expect("the set");
    let rendered = engine.render(pools).expect("renders");
    let spec = |name| &rendered.named("DaemonSet", name)["spec"];
    let accelerator = |name| &spec(name)["template"]["spec"]["nodeSelector"]["example.org/accelerator"];
    assert_eq!(accelerator("finial-agent"), "false");
    assert_eq!(accelerator("finial-agent-gpu"), "true");
    assert_eq!(spec("finial-agent-edge")["template"]["spec"]["hostPID"], false);
    assert_eq!(spec("finial-agent-gpu")["template"]["spec"]["hostPID"], true);
    let config = |name| rendered.named("ConfigMap", name)["data"]["agent.yaml"].as_str();
    assert!(config("finial-agent-gpu").is_some_and(|text| text.contains("log_level: DEBUG")));
    assert!(config("finial-agent").is_some_and(|text| text.contains("log_level: INFO")));
    // Each finds its own pods alone.
    let selectors: Vec<_> = rendered
        .of_kind("DaemonSet")
        .map(|set| &set["spec"]["selector"])
        .collect();
    assert!(
        selectors
            .iter()
            .enumerate()
            .all(|(at, one)| !selectors[..at].contains(one))
    );
}

/// A text of the values that looks like the text around it stays a value.
#[test]
fn values_stay_values_whatever_they_hold() {
    let Some(engine) = engine() else { return };
    let hostile = "a\"\n  insecure_bootstrap: true\n${HOME}: |";
    let mut values = required();
    crate::engine::merge(
        &mut values,
        &serde_json::json!({
            "global": {"spire": {"caSubject": {"commonName": hostile}}},
            "spire-agent": {"sds": {"defaultBundleName": hostile}},
        }),
    );
    let rendered = engine.render(&values).expect("renders");
    let read = |name, key: &str| {
        let text = rendered.named("ConfigMap", name)["data"][key]
            .as_str()
            .expect("a file");
        engine.yaml(text)
    };
    let server = read("finial-server", "server.yaml");
    assert_eq!(server["server"]["ca_subject"]["common_name"], hostile);
    let agent = read("finial-agent", "agent.yaml");
    assert_eq!(agent["agent"]["sds"]["default_bundle_name"], hostile);
    assert_eq!(agent["agent"]["insecure_bootstrap"], Value::Null);
}
