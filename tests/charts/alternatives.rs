//! A value other than the default, for each documented value.

use serde_json::{Value, json};

use crate::engine::{at, merge};

/// What to set instead of `default`. What is not named here follows from the default.
pub fn alternative(path: &str, default: &Value) -> Value {
    let name = path.rsplit('.').next().expect("a path has a last part");
    match (path, name) {
        ("global.spire.trustDomain", _) => json!("other.example.org"),
        ("spire-server.replicaCount", _) => json!(0),
        ("spire-server.persistence.type", _) => json!("emptyDir"),
        ("spire-server.persistence.accessMode", _) => json!("ReadWriteOncePod"),
        ("spire-server.service.type", _) => json!("LoadBalancer"),
        ("spire-server.service.clusterIP", _) => json!("10.82.0.50"),
        ("spire-server.caKeyType", _) => json!("ec-p384"),
        ("spire-server.adminIDs" | "spire-agent.authorizedDelegates", _) => {
            json!(["spiffe://example.org/operator"])
        }
        (_, "serviceAccountAllowList") => json!(["nodes:agent"]),
        (_, "kubeConfigs") => json!({"east": {"kubeConfig": "apiVersion: v1"}}),
        (_, "clusters") => json!({"east": {}}),
        (_, "brokers") => broker("other"),
        ("spire-agent.sockets.hostBasePath", _) => json!("/run/other"),
        ("spire-agent.kubeletAddress.mode", _) => json!("hostname"),
        ("global.k8s.ipFamily", _) => json!("IPv6"),
        ("spire-agent.kubeletAuthorization", _) => json!("nodesProxy"),
        ("spire-agent.hostNetwork", _) => json!(true),
        ("spire-agent.runAsUser", _) => json!(1000),
        ("spire-agent.rebootstrapMode", _) => json!("auto"),
        ("spire-agent.trustBundleURL", _) => json!("https://bundle.example.org"),
        ("spire-agent.workloadAttestors.k8s.verification.type", _) => json!("skip"),
        ("spire-agent.workloadAttestors.k8s.verification.hostCert.basePath", _) => json!("/etc/kubelet"),
        ("spire-agent.socketPath", _) => json!("/run/other/agent.sock"),
        ("spire-agent.updateStrategy", _) => json!({"type": "OnDelete"}),
        ("spire-agent.agents", _) => json!({"gpu": {"nodeSelector": {"gpu": "true"}}}),
        ("spiffe-csi-driver.kubeletPath" | "spiffe-csi-driver.socketsPath", _) => json!("/var/data/kubelet"),
        ("spire-server.federation.bundleEndpoint.address", _) => json!("127.0.0.1"),
        ("networkPolicy.serverFrom" | "networkPolicy.federationFrom", _) => {
            json!([{"ipBlock": {"cidr": "10.20.0.0/16"}}])
        }
        ("image.digest", _) => json!(format!("sha256:{:064}", 1)),
        ("image.pullPolicy", _) => json!("Always"),
        (_, "clusterSPIFFEIDs") => json!({"a": {"spiffeIDTemplate": "spiffe://example.org/a"}}),
        (_, "clusterStaticEntries") => json!({"a": {
            "spiffeID": "spiffe://example.org/a",
            "parentID": "spiffe://example.org/spire/agent/x509pop/a",
            "selectors": ["unix:uid:1"],
        }}),
        (_, "clusterFederatedTrustDomains") => json!({"a": {
            "trustDomain": "a.example",
            "bundleEndpointURL": "https://a.example",
            "bundleEndpointProfile": {"type": "https_web"},
        }}),
        (_, "format" | "trustBundleFormat") => json!("pem"),
        (_, "logLevel") => json!("warn"),
        (_, "logFormat") => json!("json"),
        (_, "minAvailable") => json!(1),
        (_, "imagePullSecrets") => json!([{"name": "mirror"}]),
        (_, "audience" | "names" | "ignoreNamespaces" | "allowedNodeLabelKeys" | "allowedPodLabelKeys") => {
            json!(["other"])
        }
        (_, "tolerations") => json!([{"key": "other", "operator": "Exists"}]),
        (_, "affinity") => json!({"podAntiAffinity": {}}),
        (_, "topologySpreadConstraints") => json!([{
            "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": {},
        }]),
        (_, "resources") => json!({"requests": {"cpu": "10m"}}),
        (_, "livenessProbe" | "readinessProbe") => json!({"periodSeconds": 7}),
        (_, "hostAliases") => json!([{"ip": "10.0.0.1", "hostnames": ["server"]}]),
        (_, "extraEnv" | "extraEnvVars") => json!([{"name": "A", "value": "b"}]),
        (_, "extraVolumes") => json!([{"name": "extra", "emptyDir": {}}]),
        (_, "extraVolumeMounts") => json!([{"name": "extra", "mountPath": "/extra"}]),
        (_, "extraContainers" | "initContainers") => json!([{"name": "extra", "image": "extra"}]),
        (_, "storageClass") => json!("fast"),
        (_, "size") => json!("2Gi"),
        (_, other) if other.ends_with("TTL") || other.ends_with("For") || other.ends_with("Target") => {
            json!("36h")
        }
        (_, "rebootstrapDelay" | "syncInterval" | "caTTL" | "refreshHint" | "fileSyncInterval") => {
            json!("36h")
        }
        _ => by_form(default),
    }
}

fn by_form(default: &Value) -> Value {
    match default {
        Value::Bool(on) => json!(!on),
        Value::Number(number) => json!(number.as_f64().map_or(1, |number| number as i64 + 1)),
        Value::String(_) => json!("other"),
        Value::Object(_) => json!({"example.org/other": "yes"}),
        other => panic!("no other value is known for {other}"),
    }
}

fn broker(name: &str) -> Value {
    json!({name: {
        "idTemplate": "spiffe://{{ .TrustDomain }}/broker",
        "allowedReferenceTypes": [{"typeURL": "type.googleapis.com/spiffe.broker.KubernetesObjectReference"}],
    }})
}

/// What must change with it.
pub fn together(path: &str) -> Value {
    match path {
        "spire-agent.sockets.admin.enabled" | "spire-agent.authorizedDelegates" => {
            return at(
                "spire-agent.sockets.admin",
                json!({"enabled": true, "mountOnHost": true}),
            );
        }
        "spire-agent.sockets.broker.enabled" => return at("spire-agent.brokerAPI.brokers", broker("a")),
        "spire-server.externalServer" => {
            return at("spire-agent.server.address", json!("server.example.org"));
        }
        _ => {}
    }
    if path.starts_with("spire-server.keyManager.") {
        return at(
            "spire-server.keyManager",
            json!({"disk": {"enabled": false}, "memory": {"enabled": true}}),
        );
    }
    match path {
        "spire-server.federation.tls.spire.enabled"
        | "spire-server.federation.tls.externalSecret.enabled" => of_the_web(),
        _ => json!({}),
    }
}

/// A bundle endpoint with a certificate of the web.
fn of_the_web() -> Value {
    at(
        "spire-server.federation",
        json!({
            "enabled": true,
            "tls": {"spire": {"enabled": false}, "externalSecret": {"enabled": true, "secretName": "bundles"}},
        }),
    )
}

/// What must be set besides, so that the value has something to act on.
pub fn context(path: &str) -> Value {
    let monitors =
        json!({"global": {"telemetry": {"prometheus": {"enabled": true, "podMonitor": {"enabled": true}}}}});
    let way = at(
        "spire-server.kubeConfigs",
        json!({"east": {"kubeConfig": "apiVersion: v1"}}),
    );
    match path {
        _ if path.starts_with("spire-agent.sockets.") || path == "spire-agent.brokerAPI.brokers" => {
            let mut values = at(
                "spire-agent.sockets.admin.enabled",
                json!(path.contains(".admin.")),
            );
            merge(
                &mut values,
                &at(
                    "spire-agent.extraContainers",
                    json!([{"name": "extra", "image": "extra"}]),
                ),
            );
            if !path.ends_with("admin.mountOnHost")
                && !path.ends_with("broker.enabled")
                && !path.contains(".admin.")
            {
                merge(
                    &mut values,
                    &at("spire-agent.sockets.broker", json!({"enabled": true})),
                );
                merge(&mut values, &at("spire-agent.brokerAPI.brokers", broker("a")));
            }
            if path.ends_with("hostBasePath") {
                merge(
                    &mut values,
                    &at("spire-agent.sockets.broker.mountOnHost", json!(true)),
                );
            }
            if path.ends_with("admin.enabled") {
                return json!({});
            }
            values
        }
        _ if path.contains("external") && path != "spire-server.externalServer" => {
            let mut values = way;
            let on = !path.ends_with("externalControllerManagers.enabled");
            merge(
                &mut values,
                &at("spire-server.externalControllerManagers.enabled", json!(on)),
            );
            if path.ends_with(".clusters") {
                let two = json!({"east": {"kubeConfig": "apiVersion: v1"}, "west": {"kubeConfig": "apiVersion: v1"}});
                merge(&mut values, &at("spire-server.kubeConfigs", two));
            }
            values
        }
        _ if path.starts_with("global.telemetry.prometheus.podMonitor.") && !path.ends_with("enabled") => {
            monitors
        }
        "global.telemetry.prometheus.podMonitor.enabled" => {
            json!({"global": {"telemetry": {"prometheus": {"enabled": true}}}})
        }
        "networkPolicy.metricsNamespaceLabels" => monitors,
        "spire-agent.trustBundleFormat" => {
            json!({"spire-agent": {"trustBundleURL": "https://bundle.example.org"}})
        }
        "spire-agent.workloadAttestors.unix.discoverWorkloadPath" => {
            json!({"spire-agent": {"workloadAttestors": {"unix": {"enabled": true}}}})
        }
        "spire-server.federation.tls.externalSecret.secretName"
        | "spire-server.federation.bundleEndpoint.profile.httpWeb.fileSyncInterval" => of_the_web(),
        _ if path.starts_with("spire-server.federation.") && path != "spire-server.federation.enabled"
            || path == "networkPolicy.federationFrom" =>
        {
            at("spire-server.federation.enabled", json!(true))
        }
        "spire-agent.runAsUser" => json!({"spiffe-csi-driver": {"enabled": false}}),
        _ if path.contains("verification.hostCert") => {
            json!({"spire-agent": {"workloadAttestors": {"k8s": {"verification": {"type": "hostCert"}}}}})
        }
        _ => json!({}),
    }
}
