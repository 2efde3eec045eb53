//! What the schema and the templates refuse, and that each value does something.

use std::fs;

use serde_json::{Value, json};

use crate::alternatives::{alternative, context, together};
use crate::engine::{Engine, at, chart, engine, merge};
use crate::reference::documented;
use crate::sets::required;

/// `values.schema.json`.
pub fn schema() -> Value {
    let text = fs::read_to_string(chart().join("values.schema.json")).expect("the schema is text");
    serde_json::from_str(&text).expect("the schema is JSON")
}

/// Old names that the schema knows, with what it says about each.
pub fn renamed() -> Vec<(String, String)> {
    let mut found = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        if node["deprecated"] == true {
            let says = node["const"].as_str().expect("a sentence");
            found.push((path.to_owned(), says.to_owned()));
        }
    });
    found
}

fn with(path: &str, value: Value) -> Value {
    let mut values = required();
    merge(&mut values, &at(path, value));
    values
}

/// A bundle endpoint, with these values of its own.
fn federation(mut given: Value) -> Value {
    given["enabled"] = json!(true);
    at("spire-server.federation", given)
}

fn refusal(engine: &Engine, values: &Value) -> String {
    match engine.render(values) {
        Ok(_) => panic!("was not refused: {values}"),
        Err(refusal) => refusal,
    }
}

#[test]
fn refuses_without_trust_domain_or_cluster_name_in_one_sentence() {
    let Some(engine) = engine() else { return };
    for given in [
        json!({}),
        json!({"global": {"spire": {"trustDomain": "example.org"}}}),
        json!({"global": {"spire": {"clusterName": "production"}}}),
    ] {
        let refusal = refusal(engine, &given);
        let sentence = "finial needs global.spire.trustDomain (such as example.org) and global.spire.clusterName \
                        (a name for this cluster): set both";
        assert!(refusal.trim_end().ends_with(sentence), "{refusal}");
        assert_eq!(refusal.trim().lines().count(), 1, "{refusal}");
    }
}

#[test]
fn refuses_what_excludes_each_other_in_one_sentence() {
    let Some(engine) = engine() else { return };
    let cases = [
        (
            at("spire-server.replicaCount", json!(2)),
            "sqlite3 serves one server only",
        ),
        (
            at("spire-server.dataStore.sql.databaseType", json!("postgres")),
            "postgres is not served by this version",
        ),
        (
            at("spire-server.keyManager.memory.enabled", json!(true)),
            "exactly one of spire-server.keyManager.disk.enabled",
        ),
        (
            at("global.spire.namespaces.system.name", json!("spire-server")),
            "must differ",
        ),
        (
            federation(json!({"tls": {"spire": {"enabled": false}}})),
            "exactly one of spire-server.federation.tls.spire.enabled",
        ),
        (
            federation(json!({"tls": {"externalSecret": {"enabled": true, "secretName": "bundles"}}})),
            "exactly one of spire-server.federation.tls.spire.enabled",
        ),
        (
            federation(json!({"tls": {"spire": {"enabled": false}, "externalSecret": {"enabled": true}}})),
            "secretName is needed",
        ),
        (
            federation(json!({"bundleEndpoint": {"port": 8081}})),
            "8081 is another port of the server",
        ),
        (
            json!({"spire-server": {
                "service": {"port": 8443}, "federation": {"enabled": true},
            }}),
            "8443 is another port of the server or its Service",
        ),
        (
            json!({"spire-agent": {"kubeletAddress": {"mode": "localhost"}, "hostNetwork": false}}),
            "needs spire-agent.hostNetwork",
        ),
        (
            json!({"spire-agent": {"hostPID": false}, "spiffe-csi-driver": {"enabled": false}}),
            "need spire-agent.hostPID",
        ),
        (
            json!({"spire-agent": {"runAsUser": 1000}}),
            "needs spiffe-csi-driver.enabled false",
        ),
        (
            at("spire-agent.kubeletAddress.mode", json!("custom")),
            "needs a variable KUBELET_ADDR in spire-agent.extraEnvVars",
        ),
        (
            at(
                "spire-agent.authorizedDelegates",
                json!(["spiffe://example.org/a"]),
            ),
            "needs spire-agent.sockets.admin.enabled",
        ),
        (
            at("spire-agent.sockets.admin.mountOnHost", json!(true)),
            "needs spire-agent.sockets.admin.enabled",
        ),
        (
            at("spire-agent.sockets.admin.enabled", json!(true)),
            "needs spire-agent.sockets.admin.mountOnHost",
        ),
        (
            at("spire-agent.sockets.broker.enabled", json!(true)),
            "spire-agent.brokerAPI.brokers need each other",
        ),
        (
            json!({"spire-agent": {"socketAlternate": {"names": ["api.sock"]}}, "spiffe-csi-driver": {"enabled": false}}),
            "spire-agent.socketAlternate.names needs spiffe-csi-driver.enabled",
        ),
        (
            at("spire-server.externalServer", json!(true)),
            "needs spire-agent.server.address",
        ),
        (
            at(
                "spire-server.bundlePublisher.externalK8sConfigMap.clusters",
                json!({"east": {}}),
            ),
            "cluster east needs a way to it: spire-server.kubeConfigs.east",
        ),
        (
            at(
                "spire-server.kubeConfigs",
                json!({"production": {"kubeConfig": "a"}}),
            ),
            "cluster production is this one",
        ),
    ];
    for (given, says) in cases {
        let mut values = required();
        merge(&mut values, &given);
        let refusal = refusal(engine, &values);
        assert!(refusal.contains(says), "{refusal}");
        assert_eq!(refusal.trim().lines().count(), 1, "{refusal}");
    }
}

#[test]
fn the_schema_refuses_values_of_a_wrong_form() {
    let Some(engine) = engine() else { return };
    for (path, value) in [
        ("global.spire.trustDomain", json!("Example.ORG")),
        ("global.spire.clusterName", json!("a/b")),
        ("image.digest", json!("latest")),
        ("spire-server.caTTL", json!("1 day")),
        ("spire-server.caKeyType", json!("rsa-1024")),
        ("spire-server.logLevel", json!("loud")),
        ("spire-server.persistence.type", json!("hostPath")),
        ("spire-server.adminIDs", json!(["operator"])),
        ("spire-server.federation.bundleEndpoint.port", json!(443)),
        (
            "spire-server.federation.bundleEndpoint.address",
            json!("server.example.org"),
        ),
        (
            "spire-server.federation.bundleEndpoint.refreshHint",
            json!("often"),
        ),
        ("spire-server.service.port", json!(70000)),
        ("spire-agent.hostNetwork", json!("perhaps")),
        ("spire-agent.runAsUser", json!("root")),
        ("spire-agent.trustBundleURL", json!("http://example.org")),
        ("spire-agent.socketPath", json!("relative.sock")),
        ("spire-agent.socketAlternate.names", json!(["../api.sock"])),
        ("spire-agent.kubeletAuthorization", json!("clusterAdmin")),
        ("spire-server.kubeConfigs", json!({"east": {}})),
        (
            "spire-server.kubeConfigs",
            json!({"east": {"kubeConfig": "a", "kubeConfigBase64": "YQ=="}}),
        ),
        ("spire-agent.sockets.hostBasePath", json!("run")),
        (
            "spire-agent.brokerAPI.brokers",
            json!({"a": {"idTemplate": "spiffe://example.org/a", "allowedReferenceTypes": []}}),
        ),
        (
            "spire-agent.agents",
            json!({"gpu": {"serviceAccount": {"name": "other"}}}),
        ),
        (
            "spire-server.controllerManager.identities.clusterSPIFFEIDs",
            json!({"a": {}}),
        ),
        (
            "spire-server.controllerManager.identities.clusterSPIFFEIDs",
            json!({"a": {"spiffeIDTemplate": "spiffe://a/b", "jwtTtl": "5m"}}),
        ),
    ] {
        let refusal = refusal(engine, &with(path, value));
        let place = format!("at '/{}", path.replace('.', "/"));
        assert!(refusal.contains(&place), "{path}: {refusal}");
    }
}

#[test]
fn unknown_values_are_refused_at_every_level() {
    let Some(engine) = engine() else { return };
    let mut levels = Vec::new();
    walk(&schema(), "", &mut |path, node| {
        if node.get("properties").is_some() {
            levels.push(path.to_owned());
        }
    });
    assert!(levels.len() > 30, "{levels:?}");
    for level in levels {
        let path = format!("{level}.bogus");
        let refusal = refusal(engine, &with(path.trim_start_matches('.'), json!("x")));
        assert!(refusal.contains("'bogus' not allowed"), "{path}: {refusal}");
    }
}

/// Also in definitions, which the walk above does not reach: an object says what it may hold.
#[test]
fn no_object_of_the_schema_is_open() {
    fn look(node: &Value) {
        if let Some(object) = node.as_object() {
            if object.contains_key("properties") && object.contains_key("type") {
                assert_eq!(object.get("additionalProperties"), Some(&json!(false)), "{node}");
            }
            object.values().for_each(look);
        } else if let Some(list) = node.as_array() {
            list.iter().for_each(look);
        }
    }
    look(&schema());
}

#[test]
fn old_names_are_refused_with_the_new_one() {
    let Some(engine) = engine() else { return };
    let renamed = renamed();
    assert!(renamed.len() > 80, "{}", renamed.len());
    for (path, says) in renamed {
        assert!(says.starts_with(&format!("{path} is ")), "{path}: {says}");
        let refusal = refusal(engine, &with(&path, json!({"enabled": true})));
        assert!(refusal.contains(&says), "{path}: {refusal}");
        // Where it names another value, there is one.
        if let Some(new) = says.strip_prefix(&format!("{path} is now ")) {
            let new = new.split([':', ' ']).next().expect("a first word");
            let is_value = |(documented, _): &(String, _)| {
                documented == new || documented.starts_with(&format!("{new}."))
            };
            assert!(documented().iter().any(is_value), "{path}: {new} is no value");
        }
    }
}

#[test]
fn every_documented_value_changes_what_is_rendered() {
    let Some(engine) = engine() else { return };
    let defaults = engine.defaults();
    for (path, _) in documented() {
        let default = defaults
            .pointer(&format!("/{}", path.replace('.', "/")))
            .unwrap_or(&Value::Null);
        if path == "spire-server.dataStore.sql.databaseType" {
            // There is one database so far; another name is refused, as a test above says.
            continue;
        }
        let mut before = required();
        merge(&mut before, &context(&path));
        let mut after = before.clone();
        merge(&mut after, &at(&path, alternative(&path, default)));
        merge(&mut after, &together(&path));
        let one = engine
            .render(&before)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        let other = engine
            .render(&after)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_ne!(one.files, other.files, "{path} changes nothing");
    }
}

/// Calls `visit` for every property of the schema, with its path; the root has the empty one.
pub fn walk(node: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, node);
    let properties = node.get("properties").and_then(Value::as_object);
    for (key, inner) in properties.into_iter().flatten() {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        walk(inner, &path, visit);
    }
}
