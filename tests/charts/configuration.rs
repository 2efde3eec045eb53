//! The configuration files in the ConfigMaps are what the program reads.

use std::fs;

use finial_tests::run;
use serde_json::Value;

use crate::engine::engine;
use crate::sets::sets;

#[test]
fn the_program_accepts_every_rendered_configuration() {
    let Some(engine) = engine() else { return };
    let folder = tempfile::tempdir().expect("a temporary folder");
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        for map in rendered.of_kind("ConfigMap") {
            for (file, text) in map["data"].as_object().expect("a ConfigMap has files") {
                let program = file.trim_end_matches(".yaml");
                let path = folder.path().join(file);
                fs::write(&path, text.as_str().expect("a file is text")).expect("write it");
                let output = run([program, "validate", "-config", &path.to_string_lossy()]);
                assert!(output.status.success(), "{set}: {file}: {}", output.stderr);
            }
        }
    }
}

/// Names of sockets and folders that are in the pod and in its configuration.
#[test]
fn pods_mount_what_their_configuration_names() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let rendered = engine.render(&values).expect("renders");
        for (kind, program) in [("StatefulSet", "server"), ("DaemonSet", "agent")] {
            for object in rendered.of_kind(kind) {
                let name = object["metadata"]["name"].as_str().expect("a name");
                let file = format!("{program}.yaml");
                let text = rendered.named("ConfigMap", name)["data"][&file]
                    .as_str()
                    .expect("a file");
                let config = engine.yaml(text);
                let containers = &object["spec"]["template"]["spec"]["containers"];
                let mounts: Vec<_> = mounts_of(&containers[0]).collect();
                let block = &config[program];
                for path in absolute_paths(&config) {
                    // Of the pod itself: its own shared memory, and folders of other containers.
                    let of_driver = block["csi"]["kubelet_certificates"]
                        .as_array()
                        .is_some_and(|paths| paths.iter().any(|own| own == path));
                    assert!(!of_driver || mounts_of(&containers[1]).any(|mount| path.starts_with(mount)));
                    let elsewhere =
                        path.starts_with("/dev/shm/") || block["csi"]["kubelet_path"] == *path || of_driver;
                    let probe = ["/live", "/ready"].contains(&path);
                    let mounted = mounts.iter().any(|mount| path.starts_with(mount));
                    assert!(
                        mounted || elsewhere || probe,
                        "{set}: {name} has no {path}: {mounts:?}"
                    );
                }
                assert!(
                    containers[0]["args"]
                        .to_string()
                        .contains(&format!("/etc/finial/{program}/{file}"))
                );
                let ports = containers[0]["ports"].as_array().expect("ports");
                let health = ports
                    .iter()
                    .find(|port| port["name"] == "health")
                    .expect("a port of health");
                assert_eq!(
                    health["containerPort"].to_string(),
                    config["health_checks"]["bind_port"].as_str().expect("a port")
                );
            }
        }
    }
}

/// In an IPv6-only cluster nothing listens on an IPv4 address of a pod, and nothing is asked of one.
#[test]
fn a_cluster_of_ipv6_alone_is_served_on_every_ipv6_address() {
    let Some(engine) = engine() else { return };
    for (set, values) in sets(engine) {
        let mut values = values.clone();
        values["global"]["k8s"]["ipFamily"] = "IPv6".into();
        let rendered = engine.render(&values).expect("renders");
        for map in rendered.of_kind("ConfigMap") {
            let text = map["data"].to_string();
            assert!(!text.contains("0.0.0.0"), "{set}: {text}");
            let own = text.contains("bind_address: '::'") || text.contains(r#"bind_address: \"::\""#);
            assert!(own || text.contains("127.0.0.1"), "{set}: {text}");
        }
    }
}

fn mounts_of(container: &Value) -> impl Iterator<Item = &str> {
    let mounts = container["volumeMounts"].as_array().expect("mounts").iter();
    mounts.map(|mount| mount["mountPath"].as_str().expect("a path"))
}

fn absolute_paths(value: &Value) -> Vec<&str> {
    match value {
        Value::String(text) if text.starts_with('/') => vec![text],
        Value::Array(list) => list.iter().flat_map(absolute_paths).collect(),
        Value::Object(object) => object.values().flat_map(absolute_paths).collect(),
        _ => Vec::new(),
    }
}
