//! One server for several clusters, agents without a server of their own, and sockets beside that of workloads.

use serde_json::{Value, json};

use crate::alternatives::{alternative, context, together};
use crate::engine::{Engine, Rendered, at, engine, merge, repository};
use crate::reference::documented;
use crate::sets::{required, sets};

fn set(engine: &Engine, name: &str) -> Rendered {
    let sets = sets(engine);
    let (_, values) = sets.iter().find(|(set, _)| set == name).expect("the set");
    engine.render(values).expect("renders")
}

fn config(engine: &Engine, rendered: &Rendered, name: &str, file: &str) -> Value {
    let text = rendered.named("ConfigMap", name)["data"][file].as_str();
    engine.yaml(text.expect("a file"))
}

#[test]
fn other_clusters_are_reached_by_the_kubeconfigs_that_values_name() {
    let Some(engine) = engine() else { return };
    let rendered = set(engine, "clusters");
    let config = config(engine, &rendered, "finial-server", "server.yaml");
    let (east, west) = ("/etc/finial/kubeconfigs/east", "/etc/finial/kubeconfigs/west-way");
    let psat = &config["plugins"]["NodeAttestor"]["k8s_psat"]["plugin_data"]["clusters"];
    assert_eq!(psat["production"]["kube_config_file"], Value::Null);
    assert_eq!(psat["production"]["verify_client_ip"], true);
    assert_eq!(psat["east"]["kube_config_file"], east);
    assert_eq!(
        psat["east"]["service_account_allow_list"],
        json!(["spire-system:finial-agent"])
    );
    // Nothing is known of the network in between.
    assert_eq!(psat["east"]["verify_client_ip"], false);
    assert_eq!(psat["west"]["kube_config_file"], west);
    assert_eq!(psat["west"]["service_account_allow_list"], json!(["nodes:agent"]));

    let rules = config["server"]["kubernetes"]["clusters"]
        .as_object()
        .expect("clusters");
    assert_eq!(rules.keys().collect::<Vec<_>>(), ["east", "production"]);
    assert_eq!(rules["production"]["kube_config_file"], Value::Null);
    assert_eq!(rules["east"]["kube_config_file"], east);
    assert_eq!(rules["east"]["ignore_namespaces"], json!(["^kube-.*$"]));
    assert_eq!(rules["east"]["class_name"], "finial-finial");
    assert_eq!(rules["east"]["watch_classless"], true);

    let maps = &config["plugins"]["BundlePublisher"]["k8s_configmap"]["plugin_data"]["clusters"];
    assert_eq!(
        maps["east"],
        json!({
            "kubeconfig_path": east, "namespace": "spire-system", "configmap_name": "spire-bundle",
            "configmap_key": "bundle.crt", "format": "pem",
        })
    );
    assert_eq!(
        maps["west"],
        json!({
            "kubeconfig_path": west, "namespace": "nodes", "configmap_name": "trust",
            "configmap_key": "root.json", "format": "spiffe",
        })
    );
    // Each file that is named is mounted from a Secret, the chart's own or another.
    let pod = &rendered.named("StatefulSet", "finial-server")["spec"]["template"]["spec"];
    let volumes = pod["volumes"].as_array().expect("volumes");
    let volume = volumes
        .iter()
        .find(|volume| volume["name"] == "kubeconfigs")
        .expect("a volume");
    assert_eq!(
        volume["projected"]["sources"],
        json!([
            {"secret": {"name": "finial-server-kubeconfigs", "items": [{"key": "east", "path": "east"}]}},
            {"secret": {"name": "ways", "items": [{"key": "west", "path": "west-way"}]}},
        ])
    );
    assert_eq!(volume["projected"]["defaultMode"], 0o440);
    let secret = rendered.named("Secret", "finial-server-kubeconfigs");
    assert_eq!(secret["data"].as_object().expect("files").len(), 1);
}

/// The blocks of docs/kubernetes.md that are values and no objects.
#[test]
fn values_on_the_page_are_taken() {
    let Some(engine) = engine() else { return };
    let page = std::fs::read_to_string(repository().join("docs/kubernetes.md")).expect("the page is text");
    let blocks = page
        .split("```yaml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next());
    let blocks: Vec<_> = blocks
        .filter(|block| {
            ["global:", "spire-server:"]
                .iter()
                .any(|top| block.starts_with(top))
        })
        .collect();
    assert_eq!(blocks.len(), 2);
    for block in blocks {
        let mut values = required();
        merge(&mut values, &engine.yaml(block));
        let rendered = engine
            .render(&values)
            .unwrap_or_else(|error| panic!("{block}: {error}"));
        assert!(rendered.objects().count() > 10);
    }
}

#[test]
fn a_changed_kubeconfig_restarts_the_server_and_stands_in_no_config_map() {
    let Some(engine) = engine() else { return };
    let with = |token: &str| {
        let mut values = required();
        merge(
            &mut values,
            &json!({"spire-server": {"kubeConfigs": {"east": {"kubeConfig": token}}}}),
        );
        engine.render(&values).expect("renders")
    };
    let (one, other) = (with("secret-one"), with("secret-two"));
    let annotations = |rendered: &Rendered| {
        rendered.named("StatefulSet", "finial-server")["spec"]["template"]["metadata"]["annotations"].clone()
    };
    assert_ne!(annotations(&one), annotations(&other));
    for object in one.objects().filter(|object| object["kind"] != "Secret") {
        assert!(!object.to_string().contains("secret-one"), "{object}");
    }
    assert!(!one.notes.contains("secret-one"));
    // In base64 it is the same.
    let mut values = required();
    let given = json!({"east": {"kubeConfigBase64": "c2Vj\ncmV0LW9uZQ==\n"}});
    merge(&mut values, &json!({ "spire-server": { "kubeConfigs": given } }));
    let coded = engine.render(&values).expect("renders");
    let data = |rendered: &Rendered| rendered.named("Secret", "finial-server-kubeconfigs")["data"].clone();
    assert_eq!(data(&coded), data(&one));
}

/// What the other cluster's server needs there is rendered without it: its account, its rights, the agents, the rules.
#[test]
fn a_cluster_of_agents_alone_has_the_rights_of_its_server_and_no_server() {
    let Some(engine) = engine() else { return };
    let rendered = set(engine, "member");
    for kind in ["StatefulSet", "PodDisruptionBudget", "Service", "Secret"] {
        assert_eq!(rendered.of_kind(kind).count(), 0, "{kind}");
    }
    let maps: Vec<_> = rendered
        .of_kind("ConfigMap")
        .map(|map| &map["metadata"]["name"])
        .collect();
    assert_eq!(maps, ["finial-agent"]);
    let policies: Vec<_> = rendered
        .of_kind("NetworkPolicy")
        .map(|one| &one["metadata"]["name"])
        .collect();
    assert_eq!(policies, ["finial-agent"]);
    for (kind, name) in [
        ("ServiceAccount", "finial-server"),
        ("ClusterRole", "finial-finial-server"),
        ("Role", "finial-server-bundle"),
        ("DaemonSet", "finial-agent"),
        ("ClusterSPIFFEID", "finial-finial-default"),
    ] {
        rendered.named(kind, name);
    }
    let agent = config(engine, &rendered, "finial-agent", "agent.yaml");
    assert_eq!(agent["agent"]["server_address"], "identity.example.org");
    let notes = &rendered.notes;
    assert!(
        notes.contains("spire-server.kubeConfigs.east") && !notes.contains("kubectl exec"),
        "{notes}"
    );
}

/// Nobody is to believe that a server of another cluster took it. What has a default may be shared by several clusters.
#[test]
fn a_cluster_of_agents_alone_refuses_what_only_a_server_would_take() {
    let Some(engine) = engine() else { return };
    let defaults = engine.defaults();
    let sets = sets(engine);
    let (_, member) = sets.iter().find(|(name, _)| name == "member").expect("the set");
    let mut refused = Vec::new();
    for (path, _) in documented() {
        let default = defaults
            .pointer(&format!("/{}", path.replace('.', "/")))
            .unwrap_or(&Value::Null);
        let is_empty = matches!(default, Value::Null | Value::Bool(false))
            || *default == json!("")
            || *default == json!([])
            || *default == json!({});
        let is_servers = path.starts_with("spire-server.") || path.starts_with("networkPolicy.");
        if !is_empty || !is_servers || path == "spire-server.externalServer" {
            continue;
        }
        let mut before = member.clone();
        merge(&mut before, &context(&path));
        let mut after = before.clone();
        merge(&mut after, &at(&path, alternative(&path, default)));
        merge(&mut after, &together(&path));
        match (engine.render(&before), engine.render(&after)) {
            (Ok(before), Ok(after)) => assert_ne!(before.files, after.files, "{path} does nothing"),
            (_, Ok(_)) => panic!("{path} is taken although what it belongs to is refused"),
            (_, Err(refusal)) => {
                assert_eq!(refusal.trim().lines().count(), 1, "{path}: {refusal}");
                assert!(
                    refusal.contains(
                        "does nothing with spire-server.externalServer: write it into the values of"
                    ),
                    "{path}: {refusal}"
                );
                refused.push(path);
            }
        }
    }
    for path in [
        "kubeConfigs",
        "federation.enabled",
        "externalControllerManagers.enabled",
        "adminIDs",
    ] {
        let path = format!("spire-server.{path}");
        assert!(refused.contains(&path), "{path} is not refused: {refused:?}");
    }
}

/// `""` is no storage class at all, and 0 is a number of pods: neither is what the chart has when nothing is said.
#[test]
fn a_cluster_of_agents_alone_refuses_values_that_look_empty_and_are_not() {
    let Some(engine) = engine() else { return };
    let sets = sets(engine);
    let (_, member) = sets.iter().find(|(name, _)| name == "member").expect("the set");
    for (path, said, unsaid) in [
        ("spire-server.persistence.storageClass", json!(""), json!(null)),
        (
            "spire-server.podDisruptionBudget.minAvailable",
            json!(0),
            json!(""),
        ),
    ] {
        let mut values = member.clone();
        merge(&mut values, &at(path, unsaid));
        assert!(engine.render(&values).is_ok(), "{path}");
        merge(&mut values, &at(path, said));
        let refusal = engine
            .render(&values)
            .err()
            .unwrap_or_else(|| panic!("{path} is taken"));
        let expected = format!("{path} does nothing with spire-server.externalServer: write it into");
        assert!(refusal.contains(&expected), "{path}: {refusal}");
        assert_eq!(refusal.trim().lines().count(), 1, "{path}: {refusal}");
    }
}

#[test]
fn sockets_of_delegates_and_brokers_are_on_the_node_only_where_values_say_so() {
    let Some(engine) = engine() else { return };
    let rendered = |sockets: Value| {
        let mut values = required();
        merge(&mut values, &json!({ "spire-agent": sockets }));
        engine.render(&values).expect("renders")
    };
    let folders = |rendered: &Rendered| -> Vec<String> {
        let pod = &rendered.named("DaemonSet", "finial-agent")["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().expect("volumes");
        let of_node = volumes
            .iter()
            .filter_map(|volume| volume["hostPath"]["path"].as_str());
        let mounts = pod["containers"][0]["volumeMounts"].to_string();
        of_node
            .filter(|path| path.contains("/admin") || path.contains("/broker"))
            .inspect(|path| assert!(mounts.contains(path), "{path}"))
            .map(str::to_owned)
            .collect()
    };
    let usual = rendered(json!({}));
    assert_eq!(folders(&usual), Vec::<String>::new());
    let agent = config(engine, &usual, "finial-agent", "agent.yaml");
    assert_eq!(
        agent["agent"]["admin_socket_path"],
        "/dev/shm/finial/agent-admin/admin.sock"
    );
    assert_eq!(agent["agent"]["experimental"]["broker"], Value::Null);

    let on_node = rendered(json!({
        "sockets": {
            "hostBasePath": "/run/x",
            "admin": {"enabled": true, "mountOnHost": true},
            "broker": {"enabled": true, "mountOnHost": true},
        },
        "authorizedDelegates": ["spiffe://example.org/cni"],
        "brokerAPI": {"brokers": {
            "mesh": {
                "idTemplate": "spiffe://{{ .TrustDomain }}/mesh",
                "allowedReferenceTypes": [{"typeURL": "type.googleapis.com/spiffe.broker.WorkloadPIDReference"}],
            },
            "off": {"enabled": false, "idTemplate": "spiffe://a/b", "allowedReferenceTypes": [{"typeURL": "*"}]},
        }},
    }));
    let (admin, broker) = ("/run/x/csi.spiffe.io/admin", "/run/x/csi.spiffe.io/broker");
    assert_eq!(folders(&on_node), [admin, broker]);
    let agent = config(engine, &on_node, "finial-agent", "agent.yaml");
    assert_eq!(agent["agent"]["admin_socket_path"], format!("{admin}/admin.sock"));
    // Where commands in the agent's container find it, as the page says.
    let page = std::fs::read_to_string(repository().join("docs/kubernetes.md")).expect("the page is text");
    let with_default = rendered(json!({"sockets": {"admin": {"enabled": true, "mountOnHost": true}}}));
    for rendered in [&usual, &with_default] {
        let agent = config(engine, rendered, "finial-agent", "agent.yaml");
        let path = agent["agent"]["admin_socket_path"].as_str().expect("a path");
        assert!(page.contains(path), "{path} is not in docs/kubernetes.md");
    }
    assert_eq!(
        agent["agent"]["experimental"]["broker"],
        json!({"socket_path": format!("{broker}/broker.sock"), "brokers": [{
            "id": "spiffe://example.org/mesh",
            "allowed_reference_types": [{"type_url": "type.googleapis.com/spiffe.broker.WorkloadPIDReference"}],
        }]})
    );
}
