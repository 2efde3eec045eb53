//! The original controller-manager: what the cluster must have for it, and the test of what it makes.

use finial_tests::{wait_for, wait_until};

use super::installation::{Installation, SERVER};
use super::objects::{self, LEGACY, SHOP, World};
use super::ours::{self, Ours};
use super::seen::{Seen, difference};
use super::{NAME, TRUST_DOMAIN};
use crate::cluster::{Cluster, READY};

const KINDS: [&str; 3] = [
    "clusterspiffeids",
    "clusterstaticentries",
    "clusterfederatedtrustdomains",
];

/// Its configuration, its rights and its webhook, which is asked for the objects of these tests alone.
pub(super) fn objects() -> String {
    let webhook = |kind: &str| {
        format!(
            r#"
- name: v{kind}.kb.io
  admissionReviewVersions: [v1]
  sideEffects: None
  failurePolicy: Fail
  objectSelector: {{matchLabels: {{originals: "yes"}}}}
  clientConfig: {{service: {{name: originals-webhook, namespace: {SERVER}, path: /validate-spire-spiffe-io-v1alpha1-{kind}}}}}
  rules: [{{apiGroups: [spire.spiffe.io], apiVersions: [v1alpha1], operations: [CREATE, UPDATE], resources: [{kind}s]}}]"#
        )
    };
    let webhooks = ["clusterspiffeid", "clusterfederatedtrustdomain"]
        .map(webhook)
        .concat();
    let kinds = KINDS.join(", ");
    let statuses = KINDS.map(|kind| format!("{kind}/status")).join(", ");
    format!(
        r#"apiVersion: v1
kind: ConfigMap
metadata: {{name: controller-manager, namespace: {SERVER}}}
data:
  config.yaml: |
    apiVersion: spire.spiffe.io/v1alpha1
    kind: ControllerManagerConfig
    metrics: {{bindAddress: "0"}}
    health: {{healthProbeBindAddress: "0.0.0.0:8083"}}
    leaderElection:
      leaderElect: true
      resourceName: originals
      resourceNamespace: {SERVER}
      # On a busy machine the usual ten seconds go by without anybody being gone.
      leaseDuration: 120s
      renewDeadline: 90s
      retryPeriod: 5s
    validatingWebhookConfigurationName: originals-webhook
    entryIDPrefix: {NAME}
    className: {NAME}
    clusterName: {NAME}
    clusterDomain: cluster.local
    trustDomain: {TRUST_DOMAIN}
    ignoreNamespaces: ["^originals-ignored$"]
    gcInterval: 2000000000
    spireServerSocketPath: /dev/shm/finial/server/api.sock
---
apiVersion: v1
kind: Service
metadata: {{name: originals-webhook, namespace: {SERVER}}}
spec:
  selector: {{app.kubernetes.io/instance: {NAME}, app.kubernetes.io/component: server}}
  ports: [{{port: 443, targetPort: 9443}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {{name: originals-webhook}}
webhooks:{webhooks}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: originals-controller-manager}}
rules:
- {{apiGroups: [""], resources: [endpoints, namespaces, nodes, pods], verbs: [get, list, watch]}}
- {{apiGroups: [admissionregistration.k8s.io], resources: [validatingwebhookconfigurations], verbs: [get, list, patch, watch]}}
- {{apiGroups: [spire.spiffe.io], resources: [{kinds}], verbs: [create, delete, get, list, patch, update, watch]}}
- {{apiGroups: [spire.spiffe.io], resources: [{statuses}], verbs: [get, patch, update]}}
- {{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create, get, list, update, patch, watch]}}
- {{apiGroups: ["", events.k8s.io], resources: [events], verbs: [create, patch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: originals-controller-manager}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: originals-controller-manager}}
subjects: [{{kind: ServiceAccount, name: originals-server, namespace: {SERVER}}}]
"#
    )
}

#[test]
fn objects_give_the_entries_that_the_original_controller_manager_makes() {
    let Some(cluster) = Cluster::shared() else { return };
    let theirs = Installation::shared(cluster);
    if theirs.is_none() {
        install_definitions(cluster);
    }
    objects::pods(cluster);
    if let Some(theirs) = theirs {
        wait_for_webhook(cluster);
        set_partner_bundle(theirs);
        keep_by_hand(theirs);
    }
    objects::declare(cluster);
    let ours = Ours::start(cluster, SHOP);
    let both = Both { ours, theirs };

    let expected = World::read(cluster).entries();
    both.agree("at first", |ours| {
        difference(("declared", &expected), ("ours", ours))
    });
    changes(cluster, &both);
    statuses(cluster, theirs.is_some());
    if let Some(theirs) = theirs {
        relationships(cluster, theirs);
        refusals(cluster);
        let shown = theirs.server(&[
            "entry",
            "show",
            "-spiffeID",
            &format!("spiffe://{TRUST_DOMAIN}/by-hand"),
        ]);
        assert!(shown.contains("Found 1 entry"), "{shown}");
    }
}

/// What each change of the cluster makes of the entries.
fn changes(cluster: &Cluster, both: &Both<'_>) {
    let has = |entries: &[Seen], path: &str| {
        let id = format!("spiffe://{TRUST_DOMAIN}{path}");
        entries
            .iter()
            .filter(|seen| seen.spiffe_id == id)
            .cloned()
            .collect::<Vec<_>>()
    };
    let backend = "/ns/originals-shop/sa/backend";
    cluster.kubectl_ok(&[
        "-n",
        SHOP,
        "label",
        "--overwrite",
        "pod",
        "web",
        "app=none",
        "spiffe.example.org/identity=false",
    ]);
    both.agree("when labels go", |ours| {
        let gone = ["/billing/web", "/originals/web/host/web-0/0-main/1-proxy/on.2"];
        let left = has(ours, backend);
        // The fallback alone is left, without a lifetime of its own.
        let is_fallback = left.len() == 1 && left[0].x509_svid_ttl == 0 && left[0].dns_names.is_empty();
        why(
            is_fallback && gone.iter().all(|path| has(ours, path).is_empty()),
            ours,
        )
    });
    cluster.kubectl_ok(&["-n", SHOP, "delete", "service", "alias"]);
    both.agree("when a service goes", |ours| {
        why(
            !ours
                .iter()
                .any(|seen| seen.dns_names.contains(&"alias".to_owned())),
            ours,
        )
    });
    cluster.kubectl_ok(&["delete", "clusterspiffeid", "originals-older"]);
    both.agree("when the rule that won goes", |ours| {
        let left = has(ours, "/masked");
        why(
            left.len() == 1 && [0, 1200].contains(&left[0].x509_svid_ttl),
            ours,
        )
    });
    cluster.kubectl_ok(&[
        "patch", "clusterspiffeid", "originals-backend", "--type=merge", "-p",
        r#"{"spec": {"hint": "external", "ttl": "30m", "federatesWith": null, "dnsNameTemplates": ["{{ .PodMeta.Name }}.{{ .ClusterName }}"]}}"#,
    ]);
    both.agree("when a rule changes", |ours| {
        let changed = |seen: &&Seen| {
            seen.hint == "external"
                && seen.x509_svid_ttl == 1800
                && seen.federates_with.is_empty()
                && seen.dns_names.first().is_some_and(|name| name == "db.originals")
        };
        why(ours.iter().filter(changed).count() == 1, ours)
    });
    cluster.kubectl_ok(&["label", "namespace", LEGACY, "originals-"]);
    both.agree("when a namespace is relabelled", |ours| {
        why(has(ours, "/ns/originals-legacy/sa/default").is_empty(), ours)
    });
    cluster.kubectl_ok(&["-n", SHOP, "delete", "pod", "db", "--grace-period=0", "--force"]);
    both.agree("when a pod goes", |ours| {
        why(!ours.iter().any(|seen| seen.hint == "external"), ours)
    });
}

/// Our derivation, and what the original has made where it is.
struct Both<'a> {
    ours: Ours,
    theirs: Option<&'a Installation>,
}

impl Both<'_> {
    /// Waits until nothing is wrong with our entries, and the original's are the same.
    fn agree(&self, when: &str, wrong: impl Fn(&[Seen]) -> String) {
        wait_for(&format!("our entries {when}"), READY, || {
            let wrong = wrong(&self.ours.entries());
            anyhow::ensure!(wrong.is_empty(), "{wrong}");
            Ok(())
        });
        let Some(theirs) = self.theirs else { return };
        let count = wait_for(
            &format!("the original's entries {when} to be ours"),
            READY,
            || {
                let (ours, theirs) = (self.ours.entries(), theirs.entries());
                let difference = difference(("ours", &ours), ("theirs", &theirs));
                anyhow::ensure!(difference.is_empty(), "{difference}");
                Ok(theirs.len())
            },
        );
        eprintln!("{when}: {count} entries, the same of both");
    }
}

fn why(holds: bool, entries: &[Seen]) -> String {
    if holds {
        String::new()
    } else {
        format!("{entries:#?}")
    }
}

/// The counts in the statuses are the same, but for a pod that waits for its node, which is no failure here. The original
/// writes again at once what it sees otherwise, so where both differ only one of them is looked at.
fn statuses(cluster: &Cluster, has_original: bool) {
    let status = |kind: &str, name: &str| cluster.get(&[kind, &format!("{NAME}-{name}")])["status"].clone();
    let wait_ours = |kind: &str, name: &str| {
        wait_for(&format!("our status of {name}"), READY, || {
            let status = status(kind, name);
            // The original writes no conditions.
            anyhow::ensure!(status["conditions"].is_array(), "{status}");
            Ok(status)
        })
    };
    let same = [
        "backend",
        "younger",
        "templates",
        "annotated",
        "no-label",
        "foreign",
    ];
    let before = has_original.then(|| same.map(|name| status("clusterspiffeid", name)["stats"].clone()));
    let waiting = ["rest", "late"];
    let fixed = [
        ("vm-database", true),
        ("stored", true),
        ("powers", true),
        ("no-colon", false),
        ("foreign", true),
    ];
    if has_original {
        for name in waiting {
            let failures = &status("clusterspiffeid", name)["stats"]["podEntryRenderFailures"];
            assert_eq!(*failures, 1, "{name}");
        }
        for (name, is_rendered) in fixed {
            let status = status("clusterstaticentry", name);
            // What is false may be left out.
            assert_eq!(status["rendered"] == true, is_rendered, "{name}: {status}");
            assert!(status["masked"] != true, "{name}: {status}");
        }
    }
    ours::let_write(cluster, SHOP);
    for (n, name) in same.into_iter().enumerate() {
        let ours = wait_ours("clusterspiffeid", name);
        if let Some(before) = &before {
            assert_eq!(ours["stats"], before[n], "{name}");
        }
    }
    if !has_original {
        for name in waiting {
            let ours = wait_ours("clusterspiffeid", name);
            assert_eq!(ours["stats"]["podEntryRenderFailures"], 0, "{name}");
        }
        for (name, is_rendered) in fixed {
            let ours = wait_ours("clusterstaticentry", name);
            assert_eq!(ours["rendered"], is_rendered, "{name}: {ours}");
            assert_eq!(ours["masked"], false, "{name}: {ours}");
        }
    }
}

/// The relationship that is declared is made, and taken away again, by our `TrustDomain` service.
fn relationships(cluster: &Cluster, theirs: &Installation) {
    let listed = |what: &str, holds: &dyn Fn(&str) -> bool| {
        wait_for(what, READY, || {
            let listed = theirs.server(&["federation", "list"]);
            anyhow::ensure!(holds(&listed), "{listed}\n{}", theirs.manager_log());
            Ok(())
        });
    };
    let partner = "partner.example.com";
    listed("the relationship", &|listed| {
        listed.contains(partner)
            && listed.contains("https_spiffe")
            && listed.contains(&format!("https://spire-bundle.{partner}"))
    });
    cluster.kubectl_ok(&["delete", "clusterfederatedtrustdomain", "originals-partner"]);
    listed("the relationship to go", &|listed| !listed.contains(partner));
}

/// The original's webhook, whose certificate is of our server, refuses what it always refused.
fn refusals(cluster: &Cluster) {
    let refused = cluster.dir().join("refused.yaml");
    let file = refused.display().to_string();
    let bad = objects::object("ClusterSPIFFEID", "bad", "\n  spiffeIDTemplate: '{{'");
    std::fs::write(&refused, bad).expect("a file is written");
    let answer = cluster.kubectl(&["create", "-f", &file]);
    assert!(
        answer.stderr.contains("vclusterspiffeid.kb.io") && answer.stderr.contains("denied the request"),
        "{}{}",
        answer.stdout,
        answer.stderr
    );
}

/// Its certificate authority is our server's, which it asks for.
fn wait_for_webhook(cluster: &Cluster) {
    wait_until("the webhooks to know who vouches for them", READY, || {
        let webhooks =
            cluster.get(&["validatingwebhookconfiguration", "originals-webhook"])["webhooks"].clone();
        let webhooks = webhooks.as_array().cloned().unwrap_or_default();
        webhooks.len() == 2
            && webhooks.iter().all(|webhook| {
                webhook["clientConfig"]["caBundle"]
                    .as_str()
                    .is_some_and(|bundle| !bundle.is_empty())
            })
    });
}

/// A server takes no stored entry that federates with whom it does not know.
fn set_partner_bundle(theirs: &Installation) {
    let bundle = theirs.server(&["bundle", "show", "-format", "spiffe"]);
    let set = [
        "bundle",
        "set",
        "-format",
        "spiffe",
        "-id",
        "spiffe://partner.example.com",
    ];
    let answer = theirs.server_with_input(&set, &bundle);
    assert!(answer.status.success(), "{}{}", answer.stdout, answer.stderr);
}

/// An entry made by hand, which the original leaves alone.
fn keep_by_hand(theirs: &Installation) {
    let id = |path: &str| format!("spiffe://{TRUST_DOMAIN}/{path}");
    let (id, parent) = (id("by-hand"), id("p"));
    theirs.server(&[
        "entry",
        "create",
        "-spiffeID",
        &id,
        "-parentID",
        &parent,
        "-selector",
        "a:b",
    ]);
}

/// The definitions of the three kinds, which the chart brings else.
fn install_definitions(cluster: &Cluster) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/finial/crds");
    let folder = folder
        .canonicalize()
        .expect("the definitions")
        .display()
        .to_string();
    // Another test's chart may bring them in the same moment.
    wait_for("the definitions", READY, || {
        let applied = cluster.kubectl(&["apply", "-f", &folder]);
        anyhow::ensure!(applied.status.success(), "{}", applied.stderr);
        Ok(())
    });
    let names = KINDS.map(|kind| format!("crd/{kind}.spire.spiffe.io"));
    let mut wait = vec!["wait", "--for=condition=Established", "--timeout=60s"];
    wait.extend(names.iter().map(String::as_str));
    cluster.kubectl_ok(&wait);
}
