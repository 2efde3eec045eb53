//! Labels that a pod's owner changes.

use serde_json::{Value, json};

use super::Scene;
use crate::workload::SOCKET;

/// Who may change a pod chooses among the identities that rules allow its namespace, and among no others; what the
/// labels no longer fit is withdrawn from open streams.
#[test]
fn patched_labels_give_what_rules_allow_the_namespace_and_take_the_old_identity_away() {
    let Some(scene) = Scene::set("attack-labels") else {
        return;
    };
    // A label that means something in another namespace means nothing here.
    scene.installation.rule(
        "attack-labels-elsewhere",
        json!({
            "spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/administrator",
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "attack-labels-elsewhere"}},
            "podSelector": {"matchLabels": {"position": "administrator"}},
        }),
    );
    scene.start("web", &scene.pod("web"));
    let label = |change: &str| {
        let cluster = scene.cluster();
        cluster.kubectl_ok(&["-n", &scene.space, "label", "pod", "web", "--overwrite", change]);
    };

    let mut workload = scene.client("web", &[], SOCKET);
    let opened = workload.mark();
    workload.ask_ok(&["watch"]);
    let only = |id: String| move |update: &Value| update["ids"] == json!([id]);
    workload.update(opened, "its own identity", only(scene.id("web")));

    label("role=db");
    workload.update(opened, "the other identity alone", only(scene.id("db")));
    let fetched = workload.ask_ok(&["x509"]);
    assert_eq!(fetched["ids"], json!([scene.id("db")]));

    // The change that follows is seen, so the one before it was too.
    let before = workload.mark();
    label("position=administrator");
    label("role=cache");
    workload.update(before, "the third identity alone", only(scene.id("cache")));
    let fetched = workload.ask_ok(&["x509"]);
    assert_eq!(fetched["ids"], json!([scene.id("cache")]));

    // Without any label of the namespace's rule only the fallback of the installation is left.
    let before = workload.mark();
    label("role-");
    let fallback = format!("spiffe://example.org/ns/{}/sa/default", scene.space);
    workload.update(before, "the fallback alone", only(fallback));
}
