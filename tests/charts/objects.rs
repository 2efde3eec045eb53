//! Every rendered object is valid for Kubernetes: it is read by its type, and no field is unknown.

use k8s_openapi::api::apps::v1::{DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::api::storage::v1::CSIDriver;
use k8s_openapi::serde::Serialize;
use k8s_openapi::serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::engine::{engine, merge};
use crate::sets::{VERSIONS, required, sets};

/// Kinds of other people's, of which the crate has no types.
const FOREIGN: &[(&str, &str)] = &[
    ("monitoring.coreos.com/v1", "ServiceMonitor"),
    ("monitoring.coreos.com/v1", "PodMonitor"),
    ("security.openshift.io/v1", "SecurityContextConstraints"),
];

#[test]
fn every_object_is_read_strictly() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        for version in VERSIONS {
            let rendered = engine.render_for(version, &values).expect("renders");
            for object in rendered.objects() {
                read(object).unwrap_or_else(|error| panic!("{set} for {version}: {error}: {object}"));
            }
        }
    }
}

#[test]
fn every_namespaced_object_says_where_and_every_reference_leads_somewhere() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        for object in rendered.objects() {
            let everywhere = [
                "Namespace",
                "ClusterRole",
                "ClusterRoleBinding",
                "CSIDriver",
                "SecurityContextConstraints",
                "ClusterSPIFFEID",
                "ClusterStaticEntry",
                "ClusterFederatedTrustDomain",
            ];
            let namespaced = !everywhere.iter().any(|kind| object["kind"] == *kind);
            assert_eq!(
                object["metadata"]["namespace"].is_string(),
                namespaced,
                "{set}: {object}"
            );
            let chart = &object["metadata"]["labels"]["app.kubernetes.io/instance"];
            assert_eq!(chart, "finial", "{set}: {object}");
        }
        let exists = |kind: &str, namespace: &Value, name: &Value| {
            rendered.of_kind(kind).any(|object| {
                object["metadata"]["name"] == *name && object["metadata"]["namespace"] == *namespace
            })
        };
        for kind in ["StatefulSet", "DaemonSet"] {
            for object in rendered.of_kind(kind) {
                let namespace = &object["metadata"]["namespace"];
                let pod = &object["spec"]["template"]["spec"];
                assert!(
                    exists("ServiceAccount", namespace, &pod["serviceAccountName"]),
                    "{set}: {object}"
                );
                let volumes = pod["volumes"].as_array().expect("volumes");
                let config = volumes
                    .iter()
                    .find(|volume| volume["name"] == "config")
                    .expect("a config");
                assert!(
                    exists("ConfigMap", namespace, &config["configMap"]["name"]),
                    "{set}"
                );
                // What is mounted is declared.
                let claims = object["spec"]["volumeClaimTemplates"]
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                let mut declared: Vec<_> = volumes.iter().map(|volume| &volume["name"]).collect();
                declared.extend(claims.iter().map(|claim| &claim["metadata"]["name"]));
                for container in pod["containers"].as_array().expect("containers") {
                    for mount in container["volumeMounts"].as_array().expect("mounts") {
                        assert!(declared.contains(&&mount["name"]), "{set}: {mount}");
                    }
                }
                // The pods are those that the object looks for.
                let labels = &object["spec"]["template"]["metadata"]["labels"];
                let wanted = object["spec"]["selector"]["matchLabels"]
                    .as_object()
                    .expect("labels");
                assert!(
                    wanted.iter().all(|(key, value)| labels[key] == *value),
                    "{set}: {object}"
                );
            }
        }
        for kind in ["ClusterRoleBinding", "RoleBinding"] {
            for object in rendered.of_kind(kind) {
                let role = &object["roleRef"];
                let role_kind = role["kind"].as_str().expect("a kind");
                assert!(
                    exists(role_kind, &object["metadata"]["namespace"], &role["name"]),
                    "{set}: {object}"
                );
                for subject in object["subjects"].as_array().expect("subjects") {
                    assert!(
                        exists("ServiceAccount", &subject["namespace"], &subject["name"]),
                        "{set}: {object}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_changed_setting_restarts_the_pods_that_read_it() {
    let Some(engine) = engine() else { return };
    let sum = |values: &Value, kind, name| {
        let rendered = engine.render(values).expect("renders");
        rendered.named(kind, name)["spec"]["template"]["metadata"]["annotations"]["checksum/config"].clone()
    };
    let before = crate::sets::required();
    let mut after = before.clone();
    crate::engine::merge(&mut after, &crate::engine::at("spire-server.caTTL", "48h".into()));
    let server = |values| sum(values, "StatefulSet", "finial-server");
    let agent = |values| sum(values, "DaemonSet", "finial-agent");
    assert_ne!(server(&before), server(&after));
    assert_eq!(agent(&before), agent(&after));
}

#[test]
fn the_chart_has_no_hook_but_its_test() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        for object in rendered.objects() {
            let hook = &object["metadata"]["annotations"]["helm.sh/hook"];
            assert!(hook.is_null() || hook == "test", "{set}: {object}");
            let kind = object["kind"].as_str().expect("a kind");
            assert!(!kind.contains("Webhook") && kind != "Job", "{set}: {object}");
        }
    }
}

/// Deleting the server's namespace would delete the volume with the CA.
#[test]
fn uninstalling_keeps_the_authority() {
    let Some(engine) = engine() else { return };
    let rendered = engine.render(&crate::sets::required()).expect("renders");
    assert_eq!(rendered.of_kind("Namespace").count(), 2);
    for namespace in rendered.of_kind("Namespace") {
        assert_eq!(
            namespace["metadata"]["annotations"]["helm.sh/resource-policy"],
            "keep"
        );
    }
    let server = rendered.named("StatefulSet", "finial-server");
    assert_eq!(
        server["spec"]["volumeClaimTemplates"][0]["metadata"]["name"],
        "data"
    );
    assert_eq!(rendered.of_kind("PersistentVolumeClaim").count(), 0);
}

fn read(object: &Value) -> Result<(), String> {
    let api = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default();
    match (api, kind) {
        ("v1", "ConfigMap") => same::<ConfigMap>(object),
        ("v1", "Namespace") => same::<Namespace>(object),
        ("v1", "Pod") => same::<Pod>(object),
        ("v1", "Secret") => same::<Secret>(object),
        ("v1", "Service") => same::<Service>(object),
        ("v1", "ServiceAccount") => same::<ServiceAccount>(object),
        ("apps/v1", "DaemonSet") => same::<DaemonSet>(object),
        ("apps/v1", "StatefulSet") => same::<StatefulSet>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => same::<NetworkPolicy>(object),
        ("policy/v1", "PodDisruptionBudget") => same::<PodDisruptionBudget>(object),
        // Of the same form as its successor, as far as the chart uses it.
        ("policy/v1beta1", "PodDisruptionBudget") => {
            let mut object = object.clone();
            object["apiVersion"] = "policy/v1".into();
            same::<PodDisruptionBudget>(&object)
        }
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => same::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => same::<ClusterRoleBinding>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => same::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => same::<RoleBinding>(object),
        ("storage.k8s.io/v1", "CSIDriver") => same::<CSIDriver>(object),
        // See custom_resources.rs.
        ("spire.spiffe.io/v1alpha1", _) => Ok(()),
        foreign if FOREIGN.contains(&foreign) => Ok(()),
        _ => Err(format!("no type is known for {api} {kind}")),
    }
}

fn same<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let read: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let written = serde_json::to_value(read).map_err(|error| error.to_string())?;
    lost(object, &written, "").map_or(Ok(()), |path| Err(format!("unknown to Kubernetes: {path}")))
}

/// The first key of `given` that `kept` has not, or has otherwise.
fn lost(given: &Value, kept: &Value, path: &str) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given
            .iter()
            .filter(|(_, value)| !value.is_null())
            .find_map(|(key, value)| {
                let path = format!("{path}.{key}");
                match kept.get(key) {
                    Some(kept) => lost(value, kept, &path),
                    None => Some(path),
                }
            }),
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(at, (given, kept))| lost(given, kept, &format!("{path}[{at}]"))),
        (given, kept) if given == kept => None,
        (Value::Number(given), Value::Number(kept)) if given.as_f64() == kept.as_f64() => None,
        _ => Some(format!("{path}: {given} became {kept}")),
    }
}

#[test]
fn names_that_look_like_numbers_stay_text() {
    let Some(engine) = engine() else { return };
    let mut values = required();
    merge(
        &mut values,
        &json!({
            "global": {"spire": {"namespaces": {"server": {"name": "123"}, "system": {"name": "1e3"}}}},
            "spire-server": {
                "controllerManager": {"className": "0777"},
                "serviceAccount": {"name": "12"},
                "priorityClassName": "5",
            },
            "spire-agent": {"serviceAccount": {"name": "13"}},
        }),
    );
    let rendered = engine.render(&values).expect("renders");
    let mut numbers = Vec::new();
    for object in rendered.objects() {
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        look_for_numbers(object, &name, &mut numbers);
    }
    assert_eq!(numbers, Vec::<String>::new());
}

/// Numbers where a name of somebody's choice belongs.
fn look_for_numbers(value: &Value, path: &str, found: &mut Vec<String>) {
    const NAMES: [&str; 7] = [
        "name",
        "namespace",
        "className",
        "serviceAccountName",
        "priorityClassName",
        "kubernetes.io/metadata.name",
        "matchNames",
    ];
    let Some(object) = value.as_object() else {
        for item in value.as_array().into_iter().flatten() {
            look_for_numbers(item, path, found);
        }
        return;
    };
    for (key, item) in object {
        let path = format!("{path} {key}");
        let texts = item.as_array().map_or(std::slice::from_ref(item), Vec::as_slice);
        if NAMES.contains(&key.as_str()) && texts.iter().any(|text| text.is_number() || text.is_boolean()) {
            found.push(path.clone());
        }
        look_for_numbers(item, &path, found);
    }
}

#[test]
fn an_agents_user_is_the_one_that_was_given_however_large() {
    let Some(engine) = engine() else { return };
    // OpenShift gives a namespace its users from a million on.
    for user in [1001_u32, 999_999, 1_000_000, 1_234_567, 1_000_660_000] {
        let mut values = required();
        merge(
            &mut values,
            &json!({
                "spiffe-csi-driver": {"enabled": false},
                "spire-agent": {"runAsUser": user, "hostPID": true},
            }),
        );
        let rendered = engine.render(&values).expect("renders");
        let agents = rendered.named("DaemonSet", "finial-agent");
        let context = &agents["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(
            (
                &context["runAsUser"],
                &context["runAsGroup"],
                &context["runAsNonRoot"]
            ),
            (&json!(user), &json!(user), &json!(true)),
        );
        merge(&mut values, &json!({"spiffe-csi-driver": {"enabled": true}}));
        let refusal = engine
            .render(&values)
            .expect_err("the driver's folders are root's");
        assert!(refusal.contains(&format!("runAsUser {user} needs")), "{refusal}");
    }
}
