//! Another trust domain, of a server in a pod that no chart installed: each side fetches the other's bundle from the
//! endpoint behind the other's Service, and pods are given the foreign one.

use finial_tests::{Output, wait_for};
use serde_json::{Value, json};

use crate::cluster::{Cluster, READY};
use crate::installation::{CLASS, Installation, SERVER_NAMESPACE, TRUST_DOMAIN, WORKLOAD_IMAGE};
use crate::workload::{SOCKET, Workload};

const PARTNER: &str = "partner.example.com";
const PORT: u16 = 8443;

/// The other trust domain.
struct Partner {
    cluster: &'static Cluster,
    space: String,
}

impl Partner {
    fn start(cluster: &'static Cluster) -> Self {
        let space = cluster.namespace("partner");
        let config = json!({
            "server": {
                "trust_domain": PARTNER,
                "data_dir": "/run/partner/data",
                "socket_path": "/run/partner/api.sock",
                "federation": {"bundle_endpoint": {"port": PORT, "profile": {"https_spiffe": {}}}},
            },
            "plugins": {
                "DataStore": {"sql": {"plugin_data": {
                    "database_type": "sqlite3", "connection_string": "/run/partner/data/datastore.sqlite3",
                }}},
                "KeyManager": {"memory": {"plugin_data": {}}},
            },
        });
        let metadata = json!({"name": "server", "namespace": space, "labels": {"app": "server"}});
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata,
                "data": {"server.json": config.to_string()},
            },
            {
                "apiVersion": "v1", "kind": "Service", "metadata": metadata,
                "spec": {"selector": {"app": "server"}, "ports": [{"port": PORT}]},
            },
            {
                "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "automountServiceAccountToken": false,
                    "containers": [{
                        "name": "server",
                        "image": WORKLOAD_IMAGE,
                        "imagePullPolicy": "Never",
                        "command": ["sh", "-c", "mkdir -p /run/partner/data && exec finial server run -config /config/server.json"],
                        "volumeMounts": [{"name": "config", "mountPath": "/config"}],
                    }],
                    "volumes": [{"name": "config", "configMap": {"name": "server"}}],
                },
            },
        ]});
        cluster.apply(&list.to_string());
        cluster.wait_pod(&space, "server");
        Self { cluster, space }
    }

    fn server(&self, args: &[&str]) -> Output {
        let exec = ["-n", &self.space, "exec", "server", "--", "finial", "server"];
        let socket = ["-socketPath", "/run/partner/api.sock"];
        self.cluster.kubectl(&[&exec[..], args, &socket].concat())
    }

    /// What `finial server` prints, as soon as it succeeds.
    fn server_ok(&self, args: &[&str]) -> String {
        wait_for(&format!("finial server {args:?} of the partner"), READY, || {
            let output = self.server(args);
            anyhow::ensure!(output.status.success(), "{}{}", output.stdout, output.stderr);
            Ok(output.stdout)
        })
    }
}

#[test]
fn two_trust_domains_know_each_other_by_their_services_and_a_pod_is_given_the_foreign_bundle() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let partner = Partner::start(cluster);

    // The partner follows the chart's server.
    let own = installation
        .server(&["bundle", "show", "-format", "spiffe"])
        .stdout;
    cluster.shell(
        &partner.space,
        "server",
        &format!("cat >/run/partner/own.json <<'END'\n{own}\nEND"),
    );
    let url = format!("https://finial-server.{SERVER_NAMESPACE}.svc.cluster.local:{PORT}");
    partner.server_ok(&[
        "federation",
        "create",
        "-trustDomain",
        TRUST_DOMAIN,
        "-bundleEndpointURL",
        &url,
        "-bundleEndpointProfile",
        "https_spiffe",
        "-endpointSpiffeID",
        &format!("spiffe://{TRUST_DOMAIN}/spire/server"),
        "-trustDomainBundlePath",
        "/run/partner/own.json",
        "-trustDomainBundleFormat",
        "spiffe",
    ]);
    let refreshed = partner.server_ok(&["federation", "refresh", "-id", TRUST_DOMAIN]);
    assert_eq!(refreshed, "Bundle refreshed\n");
    let held: Value = serde_json::from_str(&partner.server_ok(&[
        "bundle",
        "list",
        "-id",
        TRUST_DOMAIN,
        "-format",
        "spiffe",
    ]))
    .expect("a bundle");
    let own: Value = serde_json::from_str(&own).expect("a bundle");
    assert_eq!(held["keys"], own["keys"]);
    // As the endpoint says and the command does not: it was fetched.
    assert_eq!(held["spiffe_refresh_hint"], 300, "{held}");

    // The chart's server follows the partner.
    let theirs = partner.server_ok(&["bundle", "show", "-format", "spiffe"]);
    let object = json!({
        "apiVersion": "spire.spiffe.io/v1alpha1",
        "kind": "ClusterFederatedTrustDomain",
        "metadata": {"name": "partner"},
        "spec": {
            "className": CLASS,
            "trustDomain": PARTNER,
            "bundleEndpointURL": format!("https://server.{}.svc.cluster.local:{PORT}", partner.space),
            "bundleEndpointProfile": {
                "type": "https_spiffe", "endpointSPIFFEID": format!("spiffe://{PARTNER}/spire/server"),
            },
            "trustDomainBundle": theirs,
        },
    });
    cluster.apply(&object.to_string());
    wait_for("the partner's bundle to be fetched", READY, || {
        let object = cluster.get(&["clusterfederatedtrustdomain", "partner"]);
        let status = &object["status"];
        anyhow::ensure!(status["conditions"][0]["reason"] == "Applied", "{status}");
        anyhow::ensure!(status["lastFetchTime"].is_string(), "{status}");
        Ok(())
    });

    // Only pods of the rule that says so are given it.
    let space = cluster.namespace("federated");
    installation.rule(
        "federated",
        json!({
            "spiffeIDTemplate": format!("spiffe://{TRUST_DOMAIN}/federated"),
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}},
            "podSelector": {"matchLabels": {"partner": "yes"}},
            "federatesWith": [PARTNER],
        }),
    );
    cluster.apply(&Workload::new(&space, "with").label("partner", "yes").manifest());
    cluster.apply(&Workload::new(&space, "without").manifest());
    installation.wait_for_identity(&space, "with", &format!("spiffe://{TRUST_DOMAIN}/federated"));
    installation.wait_for_identity(
        &space,
        "without",
        &format!("spiffe://{TRUST_DOMAIN}/ns/{space}/sa/default"),
    );
    let pem = partner.server_ok(&["bundle", "show", "-format", "pem"]);
    let foreign = |pod: &str| {
        let fetch = format!("finial agent api fetch x509 -socketPath {SOCKET} -timeout 5s -write /tmp");
        cluster.shell(
            &space,
            pod,
            &format!("rm -f /tmp/*.pem && {fetch} >/dev/null && cat /tmp/federated_bundle.0.0.pem 2>/dev/null || true"),
        )
    };
    wait_for("the foreign bundle in the pod", READY, || {
        let found = foreign("with");
        anyhow::ensure!(found.trim() == pem.trim(), "{found}, not\n{pem}");
        Ok(())
    });
    assert_eq!(foreign("without"), "");

    // The relationship ends with its object.
    cluster.kubectl_ok(&["delete", "clusterfederatedtrustdomain", "partner"]);
    wait_for("the relationship to end", READY, || {
        let listed = installation.server(&["federation", "list"]).stdout;
        anyhow::ensure!(!listed.contains(PARTNER), "{listed}");
        Ok(())
    });
}
