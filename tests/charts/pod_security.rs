//! The rules of a Pod Security level, as a cluster has them.

use serde_json::{Value, json};

use crate::engine::merge;

/// All containers of a pod.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .filter_map(|list| pod[list].as_array())
        .flatten()
}

/// What Pod Security level `restricted` (v1.33) has against a pod of Linux; empty when it is admitted.
pub fn restricted(pod: &Value) -> Vec<String> {
    let mut against = Vec::new();
    let mut demand = |holds: bool, rule: String| {
        if !holds {
            against.push(rule);
        }
    };
    for host in ["hostPID", "hostIPC", "hostNetwork"] {
        demand(pod[host].is_null() || pod[host] == false, host.to_owned());
    }
    let allowed = [
        "configMap",
        "csi",
        "downwardAPI",
        "emptyDir",
        "ephemeral",
        "persistentVolumeClaim",
        "projected",
        "secret",
    ];
    for volume in pod["volumes"].as_array().into_iter().flatten() {
        let kinds = volume.as_object().expect("a volume is an object").keys();
        for kind in kinds.filter(|key| *key != "name") {
            demand(allowed.contains(&kind.as_str()), format!("volume of type {kind}"));
        }
    }
    let of_pod = &pod["securityContext"];
    demand(of_pod["sysctls"].is_null(), "sysctls".to_owned());
    for container in containers(pod) {
        let name = &container["name"];
        let own = &container["securityContext"];
        let effective = |key: &str| {
            if own[key].is_null() {
                &of_pod[key]
            } else {
                &own[key]
            }
        };
        demand(effective("runAsNonRoot") == true, format!("{name}: runAsNonRoot"));
        demand(effective("runAsUser") != 0, format!("{name}: runAsUser"));
        let profile = &effective("seccompProfile")["type"];
        demand(
            profile == "RuntimeDefault" || profile == "Localhost",
            format!("{name}: seccompProfile"),
        );
        demand(
            own["allowPrivilegeEscalation"] == false,
            format!("{name}: allowPrivilegeEscalation"),
        );
        demand(own["privileged"] != true, format!("{name}: privileged"));
        demand(own["procMount"].is_null(), format!("{name}: procMount"));
        let dropped = own["capabilities"]["drop"].as_array();
        demand(
            dropped.is_some_and(|dropped| dropped.contains(&json!("ALL"))),
            format!("{name}: capabilities.drop"),
        );
        let added = own["capabilities"]["add"].as_array();
        let only_ports = added.is_none_or(|added| added.iter().all(|one| one == "NET_BIND_SERVICE"));
        demand(only_ports, format!("{name}: capabilities.add"));
        for port in container["ports"].as_array().into_iter().flatten() {
            demand(port["hostPort"].is_null(), format!("{name}: hostPort"));
        }
    }
    against
}

#[test]
fn the_check_of_the_restricted_level_refuses_what_is_not() {
    let good = json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "a", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]},
        }}],
        "volumes": [{"name": "v", "emptyDir": {}}],
    });
    assert_eq!(restricted(&good), Vec::<String>::new());
    for bad in [
        json!({"hostPID": true}),
        json!({"hostNetwork": true}),
        json!({"securityContext": {"runAsNonRoot": false}}),
        json!({"securityContext": {"runAsUser": 0}}),
        json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}),
        json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}),
        json!({"initContainers": [{"name": "b"}]}),
        json!({"containers": [{"name": "a", "securityContext": {"privileged": true}}]}),
    ] {
        let mut pod = good.clone();
        merge(&mut pod, &bad);
        assert!(!restricted(&pod).is_empty(), "{bad}");
    }
}
