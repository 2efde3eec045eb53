//! The objects of the cluster that is measured.

use finial_tests::StackOptions;
use finial_tests::kubernetes::FakeCluster;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const NODES: usize = 100;
pub const NAMESPACES: usize = 20;
pub const APPS: usize = 20;
/// A namespace behind all others.
pub const LAST_NAMESPACE: &str = "team-last";

/// A server whose agents have join tokens, which are their nodes' uids.
pub fn options(cluster: &FakeCluster, directory: &TempDir) -> StackOptions {
    StackOptions {
        server: format!(
            r#"kubernetes {{ clusters {{ "demo" = {{
                kube_config_file = "{}"
                parent_id_template = "spiffe://{{{{ .TrustDomain }}}}/spire/agent/join_token/{{{{ .NodeMeta.UID }}}}"
            }} }} }}"#,
            cluster.kubeconfig(directory.path()).display()
        ),
        ..StackOptions::default()
    }
}

/// Namespaces and rules: one for each app, and one for the rest.
pub fn rules(cluster: &FakeCluster) {
    let names = (0..NAMESPACES).map(|n| format!("team-{n}"));
    for name in names.chain([LAST_NAMESPACE.to_owned()]) {
        let labels = json!({"kubernetes.io/metadata.name": name, "tier": "apps"});
        cluster.put(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        );
    }
    let rule = |name: String, spec: Value| {
        cluster.put(json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": {"name": name}, "spec": spec
        }));
    };
    for n in 0..APPS {
        let id = format!("spiffe://{{{{ .TrustDomain }}}}/app-{n}/{{{{ .PodSpec.ServiceAccountName }}}}");
        rule(
            format!("app-{n}"),
            json!({
                "spiffeIDTemplate": id,
                "podSelector": {"matchLabels": {"app": format!("app-{n}")}},
                "namespaceSelector": {"matchLabels": {"tier": "apps"}},
                "dnsNameTemplates": ["{{ .PodMeta.Name }}.{{ .PodMeta.Namespace }}.svc.cluster.local"]
            }),
        );
    }
    rule(
        "default".to_owned(),
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/ns/{{ .PodMeta.Namespace }}/sa/{{ .PodSpec.ServiceAccountName }}",
            "fallback": true
        }),
    );
}

/// The uid of a pod.
pub fn uid(n: usize) -> String {
    format!("72f7f152-440c-66ac-9084-{n:012}")
}

/// The selector of the entry that is derived for a pod.
pub fn selector(n: usize) -> String {
    format!("k8s:pod-uid:{}", uid(n))
}

/// The path of the SPIFFE ID of a pod of the app that its number gives.
pub fn path(n: usize) -> String {
    let app = n % APPS;
    format!("/app-{app}/app-{app}")
}

/// A pod about as large as those of a Deployment are: 4 KiB.
pub fn pod(n: usize, app: usize, is_bound: bool) -> Value {
    let mount = json!({"name": "kube-api-access", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
    let env: Vec<Value> = (0..8)
        .map(|n| json!({"name": format!("SETTING_{n}"), "value": format!("https://backend-{n}.example.org:8443/v1")}))
        .collect();
    let container = |name: &str| {
        json!({
            "name": name, "image": format!("registry.example.org/team/{name}:1.42.0"), "env": env,
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
            "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10},
            "volumeMounts": [mount], "imagePullPolicy": "IfNotPresent",
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"
        })
    };
    let node = is_bound.then(|| format!("n{}", n % NODES));
    let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .map(|kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:01Z"}))
        .into();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("backend-5c9f7d6b8-{n:06}"), "generateName": "backend-5c9f7d6b8-",
            "namespace": format!("team-{}", n / APPS % NAMESPACES), "uid": uid(n),
            "labels": {
                "app": format!("app-{app}"), "pod-template-hash": "5c9f7d6b8",
                "app.kubernetes.io/name": format!("app-{app}"), "app.kubernetes.io/part-of": "shop"
            },
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("app-{app}-5c9f7d6b8"),
                "uid": "11111111-2222-3333-4444-555555555555", "controller": true, "blockOwnerDeletion": true
            }]
        },
        "spec": {
            "serviceAccountName": format!("app-{}", n % APPS), "nodeName": node, "schedulerName": "default-scheduler",
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "containers": [container("app"), container("proxy")],
            "tolerations": [{"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "volumes": [
                {"name": "spiffe", "csi": {"driver": "csi.spiffe.io", "readOnly": true}},
                {"name": "kube-api-access", "projected": {"sources": [{"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}}]}}
            ]
        },
        "status": {"phase": if is_bound { "Running" } else { "Pending" }, "conditions": if is_bound { conditions } else { Vec::new() }}
    })
}
