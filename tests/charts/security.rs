//! Pod Security of each pod against the level of its namespace, the agents' few privileges, and rights at the API.

use serde_json::{Value, json};

use crate::engine::{Rendered, engine, merge};
use crate::pod_security::{containers, restricted};
use crate::sets::{VERSIONS, required, sets};

/// Each pod, or template of pods, with its namespace.
fn pods(rendered: &Rendered) -> Vec<(String, Value, Value)> {
    let of_objects = ["StatefulSet", "DaemonSet", "Deployment", "Job"]
        .into_iter()
        .flat_map(|kind| rendered.of_kind(kind))
        .map(|object| (object, &object["spec"]["template"]["spec"]));
    let bare = rendered.of_kind("Pod").map(|pod| (pod, &pod["spec"]));
    of_objects
        .chain(bare)
        .map(|(object, spec)| {
            let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
            (name, object["metadata"]["namespace"].clone(), spec.clone())
        })
        .collect()
}

#[test]
fn every_pod_is_admitted_by_its_namespace_and_all_but_the_agents_are_restricted() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        for version in VERSIONS {
            let rendered = engine.render_for(version, &values).expect("renders");
            for (name, namespace, pod) in pods(&rendered) {
                let agents = name.starts_with("\"DaemonSet\"");
                // Without the driver the pod of `helm test` mounts the agents' folder, and needs nothing else.
                let by_folder = name.starts_with("\"Pod\"") && pod["volumes"][0].get("hostPath").is_some();
                if by_folder {
                    assert_eq!(restricted(&pod), ["volume of type hostPath"], "{set}: {name}");
                    assert_eq!(namespace, "spire-system", "{set}: {name}");
                    continue;
                }
                let level = rendered
                    .of_kind("Namespace")
                    .find(|object| object["metadata"]["name"] == namespace)
                    .map(|object| &object["metadata"]["labels"]["pod-security.kubernetes.io/enforce"]);
                if let Some(level) = level {
                    assert_eq!(
                        level,
                        if agents { "privileged" } else { "restricted" },
                        "{set}: {name}"
                    );
                }
                assert_eq!(
                    restricted(&pod).is_empty(),
                    !agents,
                    "{set}: {name}: {:?}",
                    restricted(&pod)
                );
            }
        }
    }
}

#[test]
fn every_container_has_a_read_only_root_and_no_shell_as_its_command() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        for (name, _, pod) in pods(&rendered) {
            for container in containers(&pod) {
                assert_eq!(
                    container["securityContext"]["readOnlyRootFilesystem"], true,
                    "{set}: {name}"
                );
                assert!(
                    container["command"].is_null(),
                    "{set}: {name}: the image's own entry point runs"
                );
            }
        }
    }
}

/// The table of privileges in docs/kubernetes.md, in other words.
#[test]
fn agents_have_the_privileges_that_are_documented_and_no_other() {
    let Some(engine) = engine() else { return };
    let rendered = engine.render(&required()).expect("renders");
    let pod = &rendered.named("DaemonSet", "finial-agent")["spec"]["template"]["spec"];
    assert_eq!(pod["hostPID"], true);
    assert!(pod["hostNetwork"].is_null() && pod["hostIPC"].is_null());
    let by_name = |name: &str| {
        let found = containers(pod).find(|container| container["name"] == name);
        found.unwrap_or_else(|| panic!("no container {name}")).clone()
    };
    let agent = by_name("agent");
    assert_eq!(agent["securityContext"]["capabilities"], json!({"drop": ["ALL"]}));
    assert_eq!(agent["securityContext"]["allowPrivilegeEscalation"], false);
    assert!(agent["securityContext"]["privileged"].is_null());
    let csi = by_name("csi");
    assert_eq!(csi["securityContext"]["privileged"], true);
    // The privileged container has no token to call anybody with, nor the agent's keys.
    let mounted = |container: &Value| -> Vec<String> {
        let mounts = container["volumeMounts"].as_array().expect("mounts");
        mounts
            .iter()
            .map(|mount| mount["name"].as_str().expect("a name").to_owned())
            .collect()
    };
    assert_eq!(
        mounted(&csi),
        [
            "config",
            "csi-sockets",
            "kubelet-plugin",
            "kubelet-pki",
            "kubelet-registry",
            "kubelet-pods"
        ]
    );
    assert_eq!(pod["automountServiceAccountToken"], false);
    // The agent sees nothing of the node but its folders of sockets.
    let volumes = pod["volumes"].as_array().expect("volumes");
    let on_node: Vec<_> = volumes
        .iter()
        .filter(|volume| volume.get("hostPath").is_some())
        .filter(|volume| mounted(&agent).iter().any(|name| volume["name"] == **name))
        .map(|volume| volume["hostPath"]["path"].as_str().expect("a path"))
        .collect();
    assert_eq!(on_node, ["/run/finial/agent-sockets", "/run/finial/csi"]);
}

/// What labels do on a node with SELinux is nothing that these tests could see.
#[test]
fn openshift_gets_its_labels_of_selinux_and_no_fixed_user_of_the_server() {
    let Some(engine) = engine() else { return };
    for openshift in [true, false] {
        for csi in [true, false] {
            let mut values = required();
            let given = json!({"global": {"openshift": openshift}, "spiffe-csi-driver": {"enabled": csi}});
            merge(&mut values, &given);
            let rendered = engine.render(&values).expect("renders");
            let pod = &rendered.named("DaemonSet", "finial-agent")["spec"]["template"]["spec"];
            let expected = if openshift {
                json!({"type": "spc_t"})
            } else {
                Value::Null
            };
            for container in containers(pod) {
                let options = &container["securityContext"]["seLinuxOptions"];
                assert_eq!(*options, expected, "{}", container["name"]);
            }
            assert_eq!(containers(pod).count(), 1 + usize::from(csi));
            let text = rendered.named("ConfigMap", "finial-agent")["data"]["agent.yaml"].as_str();
            let config = engine.yaml(text.expect("a file"));
            let expected = if openshift {
                json!({"socket_type": "container_file_t"})
            } else {
                Value::Null
            };
            assert_eq!(config["agent"]["selinux"], expected);
            let server = &rendered.named("StatefulSet", "finial-server")["spec"]["template"]["spec"];
            for key in ["runAsUser", "runAsGroup", "fsGroup"] {
                assert_eq!(server["securityContext"][key].is_null(), openshift, "{key}");
            }
        }
    }
}

/// The kubelet asks where the driver answers, as its configuration says.
#[test]
fn the_driver_is_probed_at_its_own_port() {
    let Some(engine) = engine() else { return };
    for (mode, host) in [("hostip", Value::Null), ("localhost", json!("127.0.0.1"))] {
        let mut values = required();
        let given = json!({
            "spire-agent": {"kubeletAddress": {"mode": mode}},
            "spiffe-csi-driver": {"healthChecks": {"port": 9999}, "livenessProbe": {"timeoutSeconds": 9}},
        });
        merge(&mut values, &given);
        let rendered = engine.render(&values).expect("renders");
        let pod = &rendered.named("DaemonSet", "finial-agent")["spec"]["template"]["spec"];
        let driver = containers(pod)
            .find(|one| one["name"] == "csi")
            .expect("the driver");
        let mut probe = json!({"path": "/healthz", "port": "csi-health"});
        if !host.is_null() {
            probe["host"] = host.clone();
        }
        assert_eq!(driver["livenessProbe"]["httpGet"], probe);
        assert_eq!(driver["livenessProbe"]["timeoutSeconds"], 9);
        assert_eq!(
            driver["ports"],
            json!([{"name": "csi-health", "containerPort": 9999}])
        );
        let text = rendered.named("ConfigMap", "finial-agent")["data"]["agent.yaml"].as_str();
        let config = engine.yaml(text.expect("a file"));
        let address = host.as_str().unwrap_or("0.0.0.0");
        assert_eq!(
            config["agent"]["csi"]["health"],
            json!({"bind_address": address, "port": 9999})
        );
    }
}

#[test]
fn capabilities_are_added_for_the_files_of_programs_alone() {
    let Some(engine) = engine() else { return };
    let added = |unix: Value| {
        let mut values = required();
        merge(
            &mut values,
            &json!({"spire-agent": {"workloadAttestors": {"unix": unix}}}),
        );
        let rendered = engine.render(&values).expect("renders");
        let pod = &rendered.named("DaemonSet", "finial-agent")["spec"]["template"]["spec"];
        pod["containers"][0]["securityContext"]["capabilities"]["add"].clone()
    };
    assert_eq!(added(json!({"enabled": true})), Value::Null);
    assert_eq!(added(json!({"discoverWorkloadPath": true})), Value::Null);
    assert_eq!(
        added(json!({"enabled": true, "discoverWorkloadPath": true})),
        json!(["SYS_PTRACE", "DAC_READ_SEARCH"])
    );
}

#[test]
fn no_right_is_given_by_a_star_or_for_secrets() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        for version in VERSIONS {
            let rendered = engine.render_for(version, &values).expect("renders");
            for role in ["ClusterRole", "Role"]
                .into_iter()
                .flat_map(|kind| rendered.of_kind(kind))
            {
                for rule in role["rules"].as_array().expect("rules") {
                    let text = rule.to_string();
                    assert!(!text.contains('*'), "{set}: {rule}");
                    for forbidden in [
                        "secrets",
                        "escalate",
                        "bind\"",
                        "impersonate",
                        "pods/exec",
                        "delete",
                    ] {
                        assert!(!text.contains(forbidden), "{set}: {rule}");
                    }
                }
            }
        }
    }
}

#[test]
fn agents_get_the_pods_of_their_kubelet_and_the_first_trust_bundle_by_name() {
    let Some(engine) = engine() else { return };
    let rights = |given: Value| -> Vec<Value> {
        let mut values = required();
        merge(&mut values, &given);
        let rendered = engine.render(&values).expect("renders");
        let roles = ["ClusterRole", "Role"].into_iter();
        roles
            .flat_map(|kind| rendered.of_kind(kind))
            .filter(|role| role["metadata"]["labels"]["app.kubernetes.io/component"] == "agent")
            .map(|role| json!([role["metadata"]["namespace"], role["rules"]]))
            .collect()
    };
    let pods = json!([null, [{"apiGroups": [""], "resources": ["nodes/pods"], "verbs": ["get"]}]]);
    let bundle = json!(["spire-system", [{
        "apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["spire-bundle"], "verbs": ["get"],
    }]]);
    assert_eq!(rights(json!({})), [pods.clone(), bundle]);
    let elsewhere = json!({"spire-agent": {"trustBundleURL": "https://bundle.example.org"}});
    assert_eq!(rights(elsewhere), [pods]);
}

/// A kubelet looks for changes of what it has mounted about once a minute; the first bundle is a change.
#[test]
fn agents_ask_for_the_first_trust_bundle_where_the_server_writes_it() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        if values["spire-server"]["externalServer"] == true {
            continue;
        }
        let rendered = engine.render(&values).expect("renders");
        let file = |name: &str, file: &str| {
            let text = rendered.named("ConfigMap", name)["data"][file].clone();
            engine.yaml(text.as_str().expect("a file"))
        };
        let publishers = &file("finial-server", "server.yaml")["plugins"]["BundlePublisher"];
        let clusters = &publishers["k8s_configmap"]["plugin_data"]["clusters"];
        let cluster = values["global"]["spire"]["clusterName"].as_str().expect("a name");
        let written = &clusters[cluster];
        for pool in rendered.of_kind("DaemonSet") {
            let name = pool["metadata"]["name"].as_str().expect("a name");
            let agent = &file(name, "agent.yaml")["agent"];
            let asked = &agent["trust_bundle_config_map"];
            assert_eq!(
                (
                    &asked["namespace"],
                    &asked["name"],
                    &asked["key"],
                    &agent["trust_bundle_format"]
                ),
                (
                    &written["namespace"],
                    &written["configmap_name"],
                    &written["configmap_key"],
                    &written["format"]
                ),
                "{set}: {name}"
            );
            let volumes = pool["spec"]["template"]["spec"]["volumes"].to_string();
            let bundle = written["configmap_name"].as_str().expect("a name");
            assert!(!volumes.contains(bundle), "{set}: {volumes}");
        }
    }
}

/// Each right with each of its verbs, beside what asks for it.
#[test]
fn server_and_agents_have_the_rights_that_their_code_uses_and_no_other() {
    let Some(engine) = engine() else { return };
    let rights = |version: &str, change: Value| {
        let mut values = required();
        merge(&mut values, &change);
        let rendered = engine.render_for(version, &values).expect("renders");
        let of = |kind: &str, name: &str| -> Vec<String> {
            let rules = rendered.named(kind, name)["rules"].as_array().expect("rules");
            rules.iter().map(right).collect()
        };
        [
            of("ClusterRole", "finial-finial-server"),
            of("Role", "finial-server-bundle"),
            of("ClusterRole", "finial-finial-agent"),
        ]
    };
    // attestation/k8s_psat makes one review of each token.
    let reviews = "create authentication.k8s.io/tokenreviews";
    // Server-side apply asks for `create` as well where there is none yet.
    let bundle = vec!["patch create /configmaps spire-bundle".to_owned()];
    let definitions = "get patch apiextensions.k8s.io/customresourcedefinitions clusterspiffeids.spire.spiffe.io \
                       clusterstaticentries.spire.spiffe.io clusterfederatedtrustdomains.spire.spiffe.io";
    let with_rules = |endpoints: &str| {
        [
            reviews,
            // kubernetes/watch lists, follows, and asks for single objects of which a list disagrees with the watch.
            "get list watch /pods,nodes,namespaces",
            endpoints,
            "get list watch spire.spiffe.io/clusterspiffeids,clusterstaticentries,clusterfederatedtrustdomains",
            // kubernetes/outbox: statuses by merge patches, events that are never changed.
            "patch spire.spiffe.io/clusterspiffeids/status,clusterstaticentries/status,clusterfederatedtrustdomains/status",
            "create /events",
            definitions,
        ]
        .map(str::to_owned)
        .to_vec()
    };
    let slices = "get list watch discovery.k8s.io/endpointslices";
    assert_eq!(
        rights("1.33.0", json!({})),
        [
            with_rules(slices),
            bundle.clone(),
            vec!["get /nodes/pods".to_owned()],
        ]
    );
    // The server asks the cluster which of the two it has, and the cluster may be upgraded before the release is.
    for version in ["1.20.2", "1.21.14"] {
        let [server, ..] = rights(version, json!({}));
        let mut both = with_rules(slices);
        both.insert(3, "get list watch /endpoints".to_owned());
        assert_eq!(server, both, "{version}");
    }
    let [server, ..] = rights("1.33.0", json!({"crds": {"manage": false}}));
    assert!(!server.contains(&definitions.to_owned()), "{server:?}");
    let [_, _, agent] = rights("1.32.0", json!({}));
    assert_eq!(agent, ["get /nodes/proxy"]);
    let labels = json!({"spire-agent": {"workloadAttestors": {"k8s": {"enableNamespaceLabels": true}}}});
    let [_, _, agent] = rights("1.33.0", labels);
    assert_eq!(agent, ["get /nodes/pods", "get /namespaces"]);
    let off = json!({"spire-server": {"controllerManager": {"enabled": false}}});
    let [server, map, _] = rights("1.33.0", off);
    assert_eq!(server, [reviews, "get /pods,nodes"]);
    assert_eq!(map, bundle);
}

/// `verbs group/resources names`
fn right(rule: &Value) -> String {
    let words = |key: &str, between: &str| {
        let list = rule[key].as_array().cloned().unwrap_or_default();
        let words: Vec<_> = list.iter().filter_map(Value::as_str).collect();
        words.join(between)
    };
    let text = format!(
        "{} {}/{} {}",
        words("verbs", " "),
        words("apiGroups", ","),
        words("resources", ","),
        words("resourceNames", " ")
    );
    text.trim_end().to_owned()
}
