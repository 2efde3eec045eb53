//! Who may connect to whom, what is scraped, and what OpenShift allows agents: the objects' meaning, for each set of values.

use serde_json::{Value, json};

use crate::engine::{Engine, NEW, Rendered, engine, merge};
use crate::sets::{VERSIONS, required, sets};

const SERVER: &str = "finial-server";
const AGENT: &str = "finial-agent";

fn rendered(engine: &Engine, version: &str, change: Value) -> Rendered {
    let mut values = required();
    merge(&mut values, &change);
    engine.render_for(version, &values).expect("renders")
}

/// The labels by which a policy or a monitor chooses, and those of the pods' template.
fn chooses(selector: &Value, labels: &Value) -> bool {
    let wanted = selector["matchLabels"].as_object().expect("labels");
    wanted.len() >= 3 && wanted.iter().all(|(key, value)| labels[key] == *value)
}

fn pod_labels<'r>(rendered: &'r Rendered, kind: &str, name: &str) -> &'r Value {
    &rendered.named(kind, name)["spec"]["template"]["metadata"]["labels"]
}

/// The ports of a pod by their names, for rules name them.
fn port(rendered: &Rendered, kind: &str, name: &str, port: &str) -> Option<Value> {
    let containers = &rendered.named(kind, name)["spec"]["template"]["spec"]["containers"];
    let mut ports = containers
        .as_array()
        .expect("containers")
        .iter()
        .flat_map(|container| container["ports"].as_array().into_iter().flatten());
    let found = ports.find(|found| found["name"] == port)?;
    Some(found["containerPort"].clone())
}

fn agents_of(namespace: &str) -> Value {
    json!({
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": {
            "app.kubernetes.io/name": "finial",
            "app.kubernetes.io/instance": "finial",
            "app.kubernetes.io/component": "agent",
        }},
    })
}

#[test]
fn only_agents_reach_the_server_and_nobody_reaches_agents() {
    let Some(engine) = engine() else { return };
    let rendered = rendered(engine, NEW, json!({}));
    assert_eq!(rendered.of_kind("NetworkPolicy").count(), 2);
    let server = &rendered.named("NetworkPolicy", SERVER)["spec"];
    assert!(chooses(
        &server["podSelector"],
        pod_labels(&rendered, "StatefulSet", SERVER)
    ));
    assert!(!chooses(
        &server["podSelector"],
        pod_labels(&rendered, "DaemonSet", AGENT)
    ));
    assert_eq!(server["policyTypes"], json!(["Ingress"]));
    assert_eq!(
        server["ingress"],
        json!([{"ports": [{"port": "grpc", "protocol": "TCP"}], "from": [agents_of("spire-system")]}])
    );
    assert_eq!(port(&rendered, "StatefulSet", SERVER, "grpc"), Some(json!(8081)));
    // Whom the rule lets in is who is there.
    assert!(chooses(
        &agents_of("")["podSelector"],
        pod_labels(&rendered, "DaemonSet", AGENT)
    ));
    let agent = &rendered.named("NetworkPolicy", AGENT);
    assert_eq!(agent["metadata"]["namespace"], "spire-system");
    assert!(chooses(
        &agent["spec"]["podSelector"],
        pod_labels(&rendered, "DaemonSet", AGENT)
    ));
    assert_eq!(agent["spec"]["policyTypes"], json!(["Ingress"]));
    assert_eq!(agent["spec"]["ingress"], Value::Null);
}

#[test]
fn others_reach_the_server_where_values_name_them_or_agents_have_the_nodes_address() {
    let Some(engine) = engine() else { return };
    let ingress = |change: Value| {
        let rendered = rendered(engine, NEW, change);
        rendered.named("NetworkPolicy", SERVER)["spec"]["ingress"].clone()
    };
    let block = json!({"ipBlock": {"cidr": "10.20.0.0/16"}});
    let from = ingress(json!({"networkPolicy": {"serverFrom": [block]}}))[0]["from"].clone();
    assert_eq!(from, json!([agents_of("spire-system"), block]));
    // A policy cannot choose the node: everybody may connect, by that port.
    let on_host = json!([{"ports": [{"port": "grpc", "protocol": "TCP"}]}]);
    assert_eq!(ingress(json!({"spire-agent": {"hostNetwork": true}})), on_host);
    let one_pool = json!({"spire-agent": {"agents": {"edge": {"kubeletAddress": {"mode": "localhost"}}}}});
    assert_eq!(ingress(one_pool), on_host);
    let off = rendered(engine, NEW, json!({"networkPolicy": {"enabled": false}}));
    assert_eq!(off.of_kind("NetworkPolicy").count(), 0);
}

/// Kubernetes labels namespaces with their names from 1.21 on, and the chart where it makes them. Else a policy by that
/// label would let nobody in.
#[test]
fn agents_are_let_in_where_namespaces_have_no_label_of_their_name() {
    let Some(engine) = engine() else { return };
    let given = json!({"global": {"spire": {"namespaces": {"create": false, "system": {"name": "nodes"}}}}});
    let of = |version| {
        let rendered = rendered(engine, version, given.clone());
        let from = &rendered.named("NetworkPolicy", SERVER)["spec"]["ingress"][0]["from"];
        (
            from.clone(),
            rendered.notes.contains("kubectl label namespace nodes"),
        )
    };
    let mut any = agents_of("nodes");
    any["namespaceSelector"] = json!({});
    assert_eq!(of("1.20.0"), (json!([any]), true));
    assert_eq!(of("1.21.0"), (json!([agents_of("nodes")]), false));
    let made = rendered(engine, "1.20.0", json!({}));
    let from = &made.named("NetworkPolicy", SERVER)["spec"]["ingress"][0]["from"];
    assert_eq!(*from, json!([agents_of("spire-system")]));
    assert!(!made.notes.contains("kubectl label"));
    for namespace in made.of_kind("Namespace") {
        let name = &namespace["metadata"]["name"];
        assert_eq!(
            namespace["metadata"]["labels"]["kubernetes.io/metadata.name"],
            *name
        );
    }
}

#[test]
fn metrics_are_open_to_the_namespaces_that_values_name_and_only_when_they_are_served() {
    let Some(engine) = engine() else { return };
    let metrics = |policy: Value| {
        let on = json!({"global": {"telemetry": {"prometheus": {"enabled": true}}}, "networkPolicy": policy});
        let rendered = rendered(engine, NEW, on);
        for (kind, name) in [("StatefulSet", SERVER), ("DaemonSet", AGENT)] {
            assert_eq!(port(&rendered, kind, name, "metrics"), Some(json!(9988)));
        }
        let server = rendered.named("NetworkPolicy", SERVER)["spec"]["ingress"][1].clone();
        let agent = rendered.named("NetworkPolicy", AGENT)["spec"]["ingress"].clone();
        assert_eq!(agent, json!([server]));
        server
    };
    let ports = json!([{"port": "metrics", "protocol": "TCP"}]);
    assert_eq!(metrics(json!({})), json!({"ports": ports}));
    assert_eq!(
        metrics(json!({"metricsNamespaceLabels": {"team": "watch"}})),
        json!({"ports": ports, "from": [{"namespaceSelector": {"matchLabels": {"team": "watch"}}}]})
    );
    let off = rendered(engine, NEW, json!({}));
    assert_eq!(port(&off, "StatefulSet", SERVER, "metrics"), None);
}

#[test]
fn monitors_find_the_pods_and_the_service_by_ports_that_exist() {
    let Some(engine) = engine() else { return };
    let mut seen = 0;
    for (set, values) in sets(engine) {
        for version in VERSIONS {
            let rendered = engine.render_for(version, &values).expect("renders");
            let asked = &values["global"]["telemetry"]["prometheus"]["podMonitor"]["enabled"] == true;
            for kind in ["ServiceMonitor", "PodMonitor"] {
                assert_eq!(
                    rendered.of_kind(kind).count(),
                    usize::from(asked),
                    "{set}: {kind}"
                );
            }
            if !asked {
                continue;
            }
            seen += 1;
            let monitor = rendered.named("ServiceMonitor", SERVER);
            let service = rendered.named("Service", SERVER);
            assert!(chooses(
                &monitor["spec"]["selector"],
                &service["metadata"]["labels"]
            ));
            let namespace = &service["metadata"]["namespace"];
            assert_eq!(
                monitor["spec"]["namespaceSelector"],
                json!({ "matchNames": [namespace] })
            );
            assert_eq!(monitor["spec"]["endpoints"], json!([{"port": "metrics"}]));
            let ports = service["spec"]["ports"].as_array().expect("ports");
            let of_service = ports.iter().find(|port| port["name"] == "metrics");
            assert_eq!(of_service.expect("the port of metrics")["targetPort"], "metrics");

            let monitor = rendered.named("PodMonitor", AGENT);
            for pool in rendered.of_kind("DaemonSet") {
                let name = pool["metadata"]["name"].as_str().expect("a name");
                assert!(
                    chooses(
                        &monitor["spec"]["selector"],
                        pod_labels(&rendered, "DaemonSet", name)
                    ),
                    "{name}"
                );
                assert_eq!(port(&rendered, "DaemonSet", name, "metrics"), Some(json!(9988)));
                let namespace = &pool["metadata"]["namespace"];
                assert_eq!(
                    monitor["spec"]["namespaceSelector"],
                    json!({ "matchNames": [namespace] })
                );
            }
            assert_eq!(
                monitor["spec"]["podMetricsEndpoints"],
                json!([{"port": "metrics"}])
            );
            for kind in ["ServiceMonitor", "PodMonitor"] {
                let monitor = rendered.of_kind(kind).next().expect("counted above");
                assert_eq!(monitor["metadata"]["labels"]["release"], "prometheus");
            }
        }
    }
    assert!(seen > 0, "no set has monitors");
}

/// What OpenShift lets agents do is what their pods ask for, and no more.
#[test]
fn the_constraints_of_openshift_allow_what_agents_have_and_no_more() {
    let Some(engine) = engine() else { return };
    let constraints = |change: Value| {
        let mut values = json!({"global": {"openshift": true}});
        merge(&mut values, &change);
        let rendered = rendered(engine, NEW, values);
        let found = rendered
            .named("SecurityContextConstraints", "finial-finial-agent")
            .clone();
        let pod = &rendered.named("DaemonSet", AGENT)["spec"]["template"]["spec"];
        for key in ["hostPID", "hostNetwork"] {
            let allowed = format!("allowHost{}", &key[4..]);
            assert_eq!(found[&allowed] == true, pod[key] == true, "{key}");
        }
        assert_eq!(found["allowHostPorts"], found["allowHostNetwork"]);
        let containers = pod["containers"].as_array().expect("containers");
        let privileged = containers
            .iter()
            .any(|one| one["securityContext"]["privileged"] == true);
        assert_eq!(found["allowPrivilegedContainer"], privileged);
        assert_eq!(found["allowPrivilegeEscalation"], privileged);
        let mut added: Vec<_> = containers
            .iter()
            .flat_map(|one| {
                one["securityContext"]["capabilities"]["add"]
                    .as_array()
                    .into_iter()
                    .flatten()
            })
            .cloned()
            .collect();
        added.dedup();
        assert_eq!(found["allowedCapabilities"], json!(added));
        for volume in pod["volumes"].as_array().expect("volumes") {
            let kind = volume
                .as_object()
                .expect("an object")
                .keys()
                .find(|key| *key != "name");
            let allowed = found["volumes"].as_array().expect("kinds of volumes");
            assert!(allowed.contains(&json!(kind)), "{volume}");
        }
        assert_eq!(
            found["users"],
            json!(["system:serviceaccount:spire-system:finial-agent"])
        );
        assert_eq!(
            (&found["groups"], &found["allowHostIPC"]),
            (&json!([]), &json!(false))
        );
        assert_eq!(found["readOnlyRootFilesystem"], true);
        found
    };
    let usual = constraints(json!({}));
    assert_eq!(
        (&usual["allowHostPID"], &usual["allowHostNetwork"]),
        (&json!(true), &json!(false))
    );
    constraints(json!({"spiffe-csi-driver": {"enabled": false}}));
    constraints(json!({"spire-agent": {"hostPID": false}}));
    constraints(json!({"spire-agent": {"kubeletAddress": {"mode": "localhost"}}}));
    let unix = json!({"unix": {"enabled": true, "discoverWorkloadPath": true}});
    constraints(json!({ "spire-agent": { "workloadAttestors": unix } }));
    let elsewhere = rendered(engine, NEW, json!({}));
    assert_eq!(elsewhere.of_kind("SecurityContextConstraints").count(), 0);
}
