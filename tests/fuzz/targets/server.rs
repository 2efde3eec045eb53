//! Entry points of the fuzzer into `finial-server`.

use std::path::Path;

use finial_server::config::{Config, Flags};
use finial_server::kubernetes::template::{Facts, MAX_OUTPUT, Scope, Template};

/// A target's name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this part.
pub const TARGETS: &[Target] = &[("pod_template", run_pod_template), ("server_config", run_config)];

/// A template of a rule, which anybody who may write rules supplies.
fn run_pod_template(data: &[u8]) {
    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(template) = Template::parse(source, Scope::Pod) else {
        return;
    };
    let meta = serde_json::json!({
        "name": "p", "namespace": "ns", "uid": "u", "labels": {"a": "b", "c/d": "e"},
        "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": true}]
    });
    let spec = serde_json::json!({"serviceAccountName": "sa", "containers": [{"name": "x", "image": "i"}]});
    let facts = Facts {
        trust_domain: "example.org",
        cluster_name: "demo",
        cluster_domain: "cluster.local",
        pod: Some((&meta, &spec)),
        node_meta: &meta,
        node_spec: &serde_json::json!({}),
    };
    if let Ok(text) = template.render(&facts) {
        assert!(text.len() <= MAX_OUTPUT);
        assert!(
            source.contains("{{") || text == source,
            "text changed without an action"
        );
    }
}

/// The configuration file, in the format that its first word fits.
fn run_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let name = if text.starts_with("server:") {
        "server.yaml"
    } else {
        "server.conf"
    };
    match Config::parse(text, Path::new(name), &Flags::default()) {
        Ok(config) => assert!(config.trust_domain().as_str().len() <= 255),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
