//! Pods, services and objects of all three kinds, and the entries that must come of them: written down by reading what
//! the original does with each.

use finial_tests::wait_until;
use serde_json::Value;

use super::seen::Seen;
use super::{NAME, TRUST_DOMAIN};
use crate::cluster::{Cluster, READY};

pub(super) const SHOP: &str = "originals-shop";
pub(super) const LEGACY: &str = "originals-legacy";
pub(super) const IGNORED: &str = "originals-ignored";

/// The three namespaces with their pods and services.
pub(super) fn pods(cluster: &Cluster) {
    for namespace in [SHOP, LEGACY, IGNORED] {
        cluster.namespace(namespace);
        // The second is set by Kubernetes itself from 1.21 on.
        let name = format!("kubernetes.io/metadata.name={namespace}");
        cluster.kubectl_ok(&[
            "label",
            "--overwrite",
            "namespace",
            namespace,
            "originals=yes",
            &name,
        ]);
    }
    let identity = "spiffe.example.org/identity: 'true'";
    let web = format!(
        "metadata: {{name: web, namespace: {SHOP}, labels: {{app: web, {identity}}}, annotations: \
         {{example.org/identity: billing/web, example.org/selector: 'k8s:container-name:main'}}}}"
    );
    let sleep = "image: 'local.test/busybox:1', imagePullPolicy: Never, command: [sleep, '3600']";
    let unready = "readinessProbe: {exec: {command: ['false']}}";
    let pods = [
        (
            web,
            format!(
                "serviceAccountName: backend, nodeName: node-a, hostname: web-0, \
                 containers: [{{name: main, {sleep}}}, {{name: proxy, {sleep}}}]"
            ),
        ),
        (
            format!("metadata: {{name: db, namespace: {SHOP}, labels: {{app: db, {identity}}}}}"),
            format!("nodeName: node-b, containers: [{{name: main, {sleep}, {unready}}}]"),
        ),
        (
            format!("metadata: {{name: job, namespace: {SHOP}, labels: {{app: job}}}}"),
            format!(
                "nodeName: node-a, restartPolicy: Never, containers: [{{name: main, {}}}]",
                sleep.replace("[sleep, '3600']", "['true']")
            ),
        ),
        (
            format!("metadata: {{name: late, namespace: {SHOP}, labels: {{app: late}}}}"),
            format!("nodeSelector: {{originals: never}}, containers: [{{name: main, {sleep}}}]"),
        ),
        (
            format!("metadata: {{name: plain, namespace: {SHOP}, labels: {{app: plain}}}}"),
            format!("nodeName: node-b, containers: [{{name: main, {sleep}}}]"),
        ),
        (
            format!("metadata: {{name: old, namespace: {LEGACY}, labels: {{app: old, {identity}}}}}"),
            format!("nodeName: node-a, containers: [{{name: main, {sleep}}}]"),
        ),
        (
            format!("metadata: {{name: hidden, namespace: {IGNORED}, labels: {{app: web, {identity}}}}}"),
            format!("nodeName: node-a, containers: [{{name: main, {sleep}}}]"),
        ),
    ];
    cluster.apply(&format!(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {{name: backend, namespace: {SHOP}}}\n"
    ));
    let pods = pods.map(|(metadata, spec)| {
        format!(
            "---\napiVersion: v1\nkind: Pod\n{metadata}\nspec: {{terminationGracePeriodSeconds: 1, {spec}}}\n"
        )
    });
    cluster.apply(&pods.concat());
    let services = [("web", "app: web"), ("db", "app: db"), ("alias", identity)];
    let services = services.map(|(name, selector)| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {SHOP}}}\n\
             spec: {{selector: {{{selector}}}, ports: [{{port: 80}}]}}\n"
        )
    });
    cluster.apply(&services.concat());
    for (namespace, pod, phase) in [
        (SHOP, "web", "Running"),
        (SHOP, "db", "Running"),
        (SHOP, "plain", "Running"),
        (SHOP, "job", "Succeeded"),
        (LEGACY, "old", "Running"),
        (IGNORED, "hidden", "Running"),
    ] {
        wait_until(&format!("the pod {pod} to be {phase}"), READY, || {
            cluster.get(&["-n", namespace, "pod", pod])["status"]["phase"] == phase
        });
    }
}

/// The objects, the younger ones of two that declare the same after the older ones.
pub(super) fn declare(cluster: &Cluster) {
    let everywhere = "namespaceSelector: {matchLabels: {originals: 'yes'}}";
    let partner = "partner.example.com";
    let rules = [
        // The sample for operators.
        (
            "backend",
            format!(
                r#"
  className: {NAME}
  spiffeIDTemplate: "spiffe://{{{{ .TrustDomain }}}}/ns/{{{{ .PodMeta.Namespace }}}}/sa/{{{{ .PodSpec.ServiceAccountName }}}}"
  podSelector: {{matchLabels: {{spiffe.example.org/identity: "true"}}}}
  namespaceSelector:
    matchExpressions:
    - {{key: originals, operator: Exists}}
    - {{key: kubernetes.io/metadata.name, operator: NotIn, values: [{LEGACY}]}}
  dnsNameTemplates: ["{{{{ .PodMeta.Name }}}}.{{{{ .PodMeta.Namespace }}}}.svc.{{{{ .ClusterDomain }}}}"]
  workloadSelectorTemplates: ["k8s:container-name:app"]
  autoPopulateDNSNames: true
  federatesWith: [{partner}]
  ttl: 1h
  jwtTtl: 5m
  hint: internal"#
            ),
        ),
        (
            "rest",
            format!(
                r#"
  className: {NAME}
  fallback: true
  spiffeIDTemplate: "spiffe://{{{{ .TrustDomain }}}}/ns/{{{{ .PodMeta.Namespace }}}}/sa/{{{{ .PodSpec.ServiceAccountName }}}}"
  {everywhere}"#
            ),
        ),
        (
            "older",
            format!(
                "\n  className: {NAME}\n  spiffeIDTemplate: 'spiffe://{TRUST_DOMAIN}/masked'\n  ttl: 10m\n  {everywhere}\n  \
                 podSelector: {{matchLabels: {{app: job}}}}"
            ),
        ),
        (
            "templates",
            format!(
                r#"
  className: {NAME}
  spiffeIDTemplate: >-
    spiffe://{{{{ .TrustDomain }}}}/{{{{ .ClusterName }}}}/{{{{ .PodMeta.Labels.app }}}}{{{{ with .PodSpec.Hostname }}}}/host/{{{{ . }}}}{{{{ end }}}}{{{{/* each
    */}}}}{{{{ range $n, $c := .PodSpec.Containers }}}}/{{{{ $n }}}}-{{{{ $c.Name }}}}{{{{ end }}}}{{{{- if eq .NodeMeta.Name "node-a" }}}}/{{{{ printf "%s.%d" "on" (len .PodSpec.Containers) }}}}{{{{ else }}}}/elsewhere{{{{ end -}}}}
  {everywhere}
  podSelector: {{matchExpressions: [{{key: app, operator: In, values: [web]}}]}}
  dnsNameTemplates: ["{{{{ .PodMeta.Name }}}}.z", "{{{{ .PodMeta.Name }}}}.a.{{{{ .ClusterDomain }}}}", "web.z"]
  workloadSelectorTemplates:
  - "k8s:node-name:{{{{ .PodSpec.NodeName }}}}"
  - '{{{{ index .PodMeta.Annotations "example.org/selector" }}}}'
  - "unix:uid:1000"
  - "k8s:pod-label:team:{{{{ .PodMeta.Labels.team }}}}"
  federatesWith: ["spiffe://{partner}"]
  admin: true
  downstream: true
  ttl: 1h30m30s
  jwtTtl: 1.5h"#
            ),
        ),
        (
            "annotated",
            format!(
                r#"
  className: {NAME}
  spiffeIDTemplate: 'spiffe://{{{{ .TrustDomain }}}}/{{{{ index .PodMeta.Annotations "example.org/identity" }}}}'
  {everywhere}
  podSelector: {{matchExpressions: [{{key: app, operator: In, values: [web, plain]}}]}}"#
            ),
        ),
        (
            "no-label",
            format!(
                "\n  className: {NAME}\n  spiffeIDTemplate: 'spiffe://{TRUST_DOMAIN}/team-{{{{ .PodMeta.Labels.team }}}}'\n  \
                 {everywhere}\n  podSelector: {{matchLabels: {{app: job}}}}"
            ),
        ),
        (
            "foreign",
            format!(
                "\n  className: {NAME}\n  spiffeIDTemplate: 'spiffe://other.test/x'\n  {everywhere}\n  \
                 podSelector: {{matchLabels: {{app: job}}}}"
            ),
        ),
        (
            "late",
            format!(
                "\n  className: {NAME}\n  spiffeIDTemplate: 'spiffe://{TRUST_DOMAIN}/late'\n  {everywhere}\n  \
                 podSelector: {{matchLabels: {{app: late}}}}"
            ),
        ),
        (
            "other-class",
            format!(
                "\n  className: another\n  spiffeIDTemplate: 'spiffe://{TRUST_DOMAIN}/other-class'\n  {everywhere}"
            ),
        ),
        (
            "no-class",
            format!("\n  spiffeIDTemplate: 'spiffe://{TRUST_DOMAIN}/no-class'\n  {everywhere}"),
        ),
    ];
    let rules = rules.map(|(name, spec)| object("ClusterSPIFFEID", name, &spec));
    cluster.apply(&rules.concat());
    let entries = [
        (
            "vm-database",
            format!(
                r#"
  className: {NAME}
  spiffeID: spiffe://{TRUST_DOMAIN}/database
  parentID: spiffe://{TRUST_DOMAIN}/spire/agent/x509pop/0f3a6d
  selectors: ["unix:uid:70", "unix:path:/usr/lib/postgresql/17/bin/postgres"]
  x509SVIDTTL: 12h
  dnsNames: [db.example.org]"#
            ),
        ),
        (
            "stored",
            format!(
                r#"
  className: {NAME}
  spiffeID: spiffe://{TRUST_DOMAIN}/stored
  parentID: spiffe://{TRUST_DOMAIN}/spire/agent/x509pop/0f3a6d
  selectors: ["store:b:1", "store:a:1"]
  federatesWith: [{partner}]
  jwtSVIDTTL: 90s
  dnsNames: [b.example.org, a.example.org]
  hint: kept
  storeSVID: true"#
            ),
        ),
        (
            "powers",
            format!(
                "\n  className: {NAME}\n  spiffeID: spiffe://{TRUST_DOMAIN}/powers\n  \
                 parentID: spiffe://{TRUST_DOMAIN}/spire/server\n  selectors: ['spiffe_id:spiffe://{TRUST_DOMAIN}/x']\n  \
                 admin: true\n  downstream: true"
            ),
        ),
        (
            "no-colon",
            format!(
                "\n  className: {NAME}\n  spiffeID: spiffe://{TRUST_DOMAIN}/no-colon\n  \
                 parentID: spiffe://{TRUST_DOMAIN}/p\n  selectors: [nocolon]"
            ),
        ),
        (
            "foreign",
            format!(
                "\n  className: {NAME}\n  spiffeID: spiffe://other.test/x\n  \
                 parentID: spiffe://{TRUST_DOMAIN}/p\n  selectors: ['a:b']"
            ),
        ),
        (
            "other-class",
            format!(
                "\n  className: another\n  spiffeID: spiffe://{TRUST_DOMAIN}/other-class\n  \
                 parentID: spiffe://{TRUST_DOMAIN}/p\n  selectors: ['a:b']"
            ),
        ),
    ];
    let entries = entries.map(|(name, spec)| object("ClusterStaticEntry", name, &spec));
    cluster.apply(&entries.concat());
    cluster.apply(&object(
        "ClusterFederatedTrustDomain",
        "partner",
        &format!(
            r"
  className: {NAME}
  trustDomain: {partner}
  bundleEndpointURL: https://spire-bundle.{partner}
  bundleEndpointProfile: {{type: https_spiffe, endpointSPIFFEID: 'spiffe://{partner}/spire/server'}}"
        ),
    ));
    declare_younger(cluster, everywhere);
}

/// Objects that declare what the rule `older` declares already.
fn declare_younger(cluster: &Cluster, everywhere: &str) {
    let created = |kind: &str, name: &str| {
        let object = cluster.get(&[kind, &format!("{NAME}-{name}")]);
        object["metadata"]["creationTimestamp"].clone()
    };
    let older = created("clusterspiffeid", "older");
    let world = World::read(cluster);
    let younger = object(
        "ClusterSPIFFEID",
        "younger",
        &format!(
            "\n  className: {NAME}\n  spiffeIDTemplate: 'spiffe://{TRUST_DOMAIN}/masked'\n  ttl: 20m\n  {everywhere}\n  \
             podSelector: {{matchLabels: {{app: job}}}}"
        ),
    );
    let fixed = object(
        "ClusterStaticEntry",
        "younger",
        &format!(
            "\n  className: {NAME}\n  spiffeID: spiffe://{TRUST_DOMAIN}/masked\n  \
             parentID: spiffe://{TRUST_DOMAIN}{}\n  selectors: ['k8s:pod-uid:{}']",
            world.agent("node-a"),
            world.uid("job")
        ),
    );
    // Times of objects are whole seconds.
    wait_until("a second to go by", READY, || {
        cluster.apply(&younger);
        cluster.apply(&fixed);
        if created("clusterspiffeid", "younger") != older && created("clusterstaticentry", "younger") != older
        {
            return true;
        }
        cluster.kubectl_ok(&["delete", "clusterspiffeid", "originals-younger"]);
        cluster.kubectl_ok(&["delete", "clusterstaticentry", "originals-younger"]);
        false
    });
}

pub(super) fn object(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: spire.spiffe.io/v1alpha1\nkind: {kind}\nmetadata: {{name: {NAME}-{name}, labels: {{originals: 'yes'}}}}\n\
         spec:{spec}\n"
    )
}

/// What the cluster itself has named.
pub(super) struct World {
    nodes: Value,
    pods: Value,
}

impl World {
    pub(super) fn read(cluster: &Cluster) -> Self {
        World {
            nodes: cluster.get(&["nodes"]),
            pods: cluster.get(&["pods", "--all-namespaces"]),
        }
    }

    /// The path of the agent's ID on a node.
    pub(super) fn agent(&self, node: &str) -> String {
        let uid = uid_of(&self.nodes, node, "");
        format!("/spire/agent/k8s_psat/{NAME}/{uid}")
    }

    fn uid(&self, pod: &str) -> String {
        uid_of(&self.pods, pod, "originals-")
    }

    /// The entries that the objects declare.
    pub(super) fn entries(&self) -> Vec<Seen> {
        let of_pod = |path: &str, node: &str, pod: &str, more: &[&str]| {
            let uid = format!("k8s:pod-uid:{}", self.uid(pod));
            let selectors: Vec<&str> = more.iter().copied().chain([uid.as_str()]).collect();
            Seen::new(path, &self.agent(node), &selectors)
        };
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let partner = || vec!["partner.example.com".to_owned()];
        let app = ["k8s:container-name:app"];
        let vm = "/spire/agent/x509pop/0f3a6d";
        let mut entries = vec![
            Seen {
                x509_svid_ttl: 3600,
                jwt_svid_ttl: 300,
                // The pod's name and its service's meet in one.
                dns_names: names(&[
                    "web.originals-shop.svc.cluster.local",
                    "alias",
                    "alias.originals-shop",
                    "alias.originals-shop.svc",
                    "alias.originals-shop.svc.cluster.local",
                    "web",
                    "web.originals-shop",
                    "web.originals-shop.svc",
                ]),
                federates_with: partner(),
                hint: "internal".to_owned(),
                ..of_pod("/ns/originals-shop/sa/backend", "node-a", "web", &app)
            },
            Seen {
                x509_svid_ttl: 3600,
                jwt_svid_ttl: 300,
                dns_names: names(&[
                    "db.originals-shop.svc.cluster.local",
                    "alias",
                    "alias.originals-shop",
                    "alias.originals-shop.svc",
                    "alias.originals-shop.svc.cluster.local",
                    "db",
                    "db.originals-shop",
                    "db.originals-shop.svc",
                ]),
                federates_with: partner(),
                hint: "internal".to_owned(),
                ..of_pod("/ns/originals-shop/sa/default", "node-b", "db", &app)
            },
            Seen {
                x509_svid_ttl: 600,
                ..of_pod("/masked", "node-a", "job", &[])
            },
            Seen {
                x509_svid_ttl: 5430,
                jwt_svid_ttl: 5400,
                dns_names: names(&["web.z", "web.a.cluster.local"]),
                federates_with: partner(),
                flags: vec!["admin", "downstream"],
                ..of_pod(
                    "/originals/web/host/web-0/0-main/1-proxy/on.2",
                    "node-a",
                    "web",
                    &[
                        "k8s:node-name:node-a",
                        "k8s:container-name:main",
                        "unix:uid:1000",
                        "k8s:pod-label:team:<no value>",
                    ],
                )
            },
            of_pod("/billing/web", "node-a", "web", &[]),
            // Its annotation is missing, so the rule fails and the fallback counts.
            of_pod("/ns/originals-shop/sa/default", "node-b", "plain", &[]),
            of_pod("/ns/originals-legacy/sa/default", "node-a", "old", &[]),
            Seen {
                x509_svid_ttl: 43_200,
                dns_names: names(&["db.example.org"]),
                ..Seen::new(
                    "/database",
                    vm,
                    &["unix:uid:70", "unix:path:/usr/lib/postgresql/17/bin/postgres"],
                )
            },
            Seen {
                jwt_svid_ttl: 90,
                dns_names: names(&["b.example.org", "a.example.org"]),
                federates_with: partner(),
                hint: "kept".to_owned(),
                flags: vec!["store_svid"],
                ..Seen::new("/stored", vm, &["store:a:1", "store:b:1"])
            },
            Seen {
                flags: vec!["admin", "downstream"],
                ..Seen::new(
                    "/powers",
                    "/spire/server",
                    &[&format!("spiffe_id:spiffe://{TRUST_DOMAIN}/x")],
                )
            },
        ];
        entries.sort();
        entries
    }
}

/// The uid of a named object of a list, in a namespace that begins so.
fn uid_of(list: &Value, name: &str, namespace: &str) -> String {
    let items = list["items"].as_array().expect("a list");
    let found = items.iter().map(|item| &item["metadata"]).find(|meta| {
        let inside = meta["namespace"].as_str().unwrap_or_default();
        meta["name"] == name && inside.starts_with(namespace)
    });
    let found = found.unwrap_or_else(|| panic!("there is no {name}"));
    found["uid"].as_str().expect("an object has a uid").to_owned()
}
