//! The chart's own custom resources against the definitions beside them, and against what rules of SPIRE's
//! controller-manager say.

use std::fs;

use serde_json::{Value, json};

use crate::engine::{Engine, at, chart, engine, merge};
use crate::sets::{required, sets};

#[test]
fn rules_have_the_class_that_the_server_acts_on() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        if values["spire-server"]["externalServer"] == true {
            continue;
        }
        let rendered = engine.render(&values).expect("renders");
        let text = rendered.named("ConfigMap", "finial-server")["data"]["server.yaml"].as_str();
        let config = engine.yaml(text.expect("a file"));
        let class = &config["server"]["kubernetes"]["clusters"]["production"]["class_name"];
        assert_eq!(class, "finial-finial", "{set}");
        let mut rules = 0;
        for object in rendered
            .objects()
            .filter(|object| object["apiVersion"] == "spire.spiffe.io/v1alpha1")
        {
            assert_eq!(object["spec"]["className"], *class, "{set}: {object}");
            rules += 1;
        }
        assert!(rules > 0, "{set}");
    }
}

#[test]
fn the_server_looks_for_volumes_of_the_driver_that_is_installed() {
    let Some(engine) = engine() else { return };
    let mut values = required();
    values["spiffe-csi-driver"] = json!({"pluginName": "csi.example.org"});
    let rendered = engine.render(&values).expect("renders");
    let text = rendered.named("ConfigMap", "finial-server")["data"]["server.yaml"].as_str();
    let config = engine.yaml(text.expect("a file"));
    let cluster = &config["server"]["kubernetes"]["clusters"]["production"];
    assert_eq!(cluster["csi_driver"], "csi.example.org");
    assert!(
        rendered.objects().any(
            |object| object["kind"] == "CSIDriver" && object["metadata"]["name"] == cluster["csi_driver"]
        )
    );
}

#[test]
fn a_fresh_installation_gives_every_pod_an_identity() {
    let Some(engine) = engine() else { return };
    let rendered = engine.render(&required()).expect("renders");
    let rule = rendered.named("ClusterSPIFFEID", "finial-finial-default");
    assert_eq!(
        rule["spec"],
        json!({
            "className": "finial-finial",
            "fallback": true,
            "spiffeIDTemplate":
                "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
            "namespaceSelector": {"matchExpressions": [{
                "key": "kubernetes.io/metadata.name",
                "operator": "NotIn",
                "values": ["spire-server", "spire-system"],
            }]},
        })
    );
}

#[test]
fn users_rules_keep_their_fields_and_templates() {
    let Some(engine) = engine() else { return };
    let sets = sets(engine);
    let (_, pools) = sets.iter().find(|(name, _)| name == "pools").expect("the set");
    let rendered = engine.render(pools).expect("renders");
    let rule = rendered.named("ClusterSPIFFEID", "finial-finial-backend");
    assert_eq!(rule["metadata"]["labels"]["team"], "payments");
    assert_eq!(rule["spec"]["ttl"], "1h");
    // SPIRE's charts call it jwtTTL, the resource jwtTtl.
    assert_eq!(rule["spec"]["jwtTtl"], "5m");
    assert_eq!(rule["spec"]["jwtTTL"], Value::Null);
    assert_eq!(
        rule["spec"]["spiffeIDTemplate"],
        "spiffe://{{ .TrustDomain }}/backend/{{ .PodMeta.Name }}"
    );
    let entry = rendered.named("ClusterStaticEntry", "finial-finial-database");
    assert_eq!(entry["spec"]["selectors"], json!(["unix:uid:70"]));
    let partner = rendered.named("ClusterFederatedTrustDomain", "finial-finial-partner");
    assert_eq!(partner["spec"]["bundleEndpointProfile"]["type"], "https_spiffe");
}

#[test]
fn a_rule_can_be_switched_off() {
    let Some(engine) = engine() else { return };
    let mut values = required();
    let off = json!({"clusterSPIFFEIDs": {"default": {"enabled": false}}});
    crate::engine::merge(
        &mut values,
        &crate::engine::at("spire-server.controllerManager.identities", off),
    );
    let rendered = engine.render(&values).expect("renders");
    let names: Vec<_> = rendered
        .of_kind("ClusterSPIFFEID")
        .map(|rule| &rule["metadata"]["name"])
        .collect();
    assert_eq!(names, ["finial-finial-helm-test"]);
}

#[test]
fn custom_resources_are_what_their_definitions_say() {
    let Some(engine) = engine() else { return };
    let Some(definitions) = definitions(engine) else {
        return;
    };
    assert_eq!(definitions.len(), 3);
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        for object in rendered
            .objects()
            .filter(|object| object["apiVersion"] == "spire.spiffe.io/v1alpha1")
        {
            let definition = definitions
                .iter()
                .find(|one| one["spec"]["names"]["kind"] == object["kind"]);
            let definition = definition.unwrap_or_else(|| panic!("no definition of {}", object["kind"]));
            let schema =
                &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
            check(&object["spec"], schema, "spec").unwrap_or_else(|error| panic!("{set}: {error}"));
        }
    }
}

/// The rules of the chart's values have every field of the resource, under the names that the charts use.
#[test]
fn values_can_say_all_that_a_resource_can() {
    let Some(engine) = engine() else { return };
    let Some(definitions) = definitions(engine) else {
        return;
    };
    let schema = crate::values::schema();
    for (kind, named) in [
        ("ClusterSPIFFEID", "clusterSPIFFEID"),
        ("ClusterStaticEntry", "clusterStaticEntry"),
        ("ClusterFederatedTrustDomain", "clusterFederatedTrustDomain"),
    ] {
        let definition = definitions
            .iter()
            .find(|one| one["spec"]["names"]["kind"] == kind);
        let definition = definition.unwrap_or_else(|| panic!("no definition of {kind}"));
        let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
        let sayable = &schema["$defs"][named]["properties"];
        for field in spec["properties"].as_object().expect("fields").keys() {
            let name = if field == "jwtTtl" { "jwtTTL" } else { field };
            assert!(
                field == "className" || sayable.get(name).is_some(),
                "{kind}: {field}"
            );
        }
    }
}

/// The definitions of the chart, or `None` after the reason was printed.
fn definitions(engine: &Engine) -> Option<Vec<Value>> {
    if fs::metadata(chart().join("crds")).is_err() {
        eprintln!("SKIPPED: charts/finial/crds is not there");
        return None;
    }
    Some(engine.crds())
}

/// Whether a value is of a structural schema, with no field that the API server would drop.
fn check(value: &Value, schema: &Value, path: &str) -> Result<(), String> {
    let wrong = || Err(format!("{path} is not {}: {value}", schema["type"]));
    match (value, schema["type"].as_str()) {
        (Value::Object(object), Some("object")) => {
            for field in schema["required"].as_array().into_iter().flatten() {
                let name = field.as_str().expect("a name");
                if !object.contains_key(name) {
                    return Err(format!("{path}.{name} is missing"));
                }
            }
            for (key, value) in object {
                let inner = schema["properties"]
                    .get(key)
                    .unwrap_or(&schema["additionalProperties"]);
                if inner.is_null() {
                    return Err(format!("{path}.{key} is unknown"));
                }
                check(value, inner, &format!("{path}.{key}"))?;
            }
            Ok(())
        }
        (Value::Array(list), Some("array")) => list
            .iter()
            .try_for_each(|value| check(value, &schema["items"], &format!("{path}[]"))),
        (Value::String(text), Some("string")) => match schema["enum"].as_array() {
            Some(choices) if !choices.contains(value) => Err(format!("{path} may not be {text}")),
            _ => Ok(()),
        },
        (Value::Bool(_), Some("boolean")) | (Value::Number(_), Some("integer" | "number")) => Ok(()),
        (Value::Null, _) => Ok(()),
        _ => wrong(),
    }
}

#[test]
fn a_rule_of_every_namespace_can_be_written() {
    let Some(engine) = engine() else { return };
    let mut values = required();
    merge(
        &mut values,
        &at(
            "spire-server.controllerManager.identities.clusterSPIFFEIDs.everywhere",
            json!({"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/all", "namespaceSelector": {}}),
        ),
    );
    let rendered = engine.render(&values).expect("renders");
    let rule = rendered.named("ClusterSPIFFEID", "finial-finial-everywhere");
    assert_eq!(rule["spec"]["namespaceSelector"], json!({}));
}
