//! Who gets which identity in a cluster, as a workload in a pod sees it.

use std::time::Instant;

use finial_tests::{Program, wait_for};
use serde_json::{Value, json};

use crate::cluster::READY;
use crate::installation::{Installation, SYSTEM_NAMESPACE, TRUST_DOMAIN, ids};
use crate::workload::Workload;

#[test]
fn every_node_is_attested_and_a_pod_on_each_gets_its_svid() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let mut attested: Vec<String> = installation.agents().iter().map(agent_id).collect();
    attested.sort();
    let mut expected: Vec<String> = cluster
        .nodes()
        .iter()
        .map(|node| installation.agent_id(node))
        .collect();
    expected.sort();
    assert_eq!(attested, expected);

    for node in cluster.nodes() {
        let pod = cluster.get(&["-n", SYSTEM_NAMESPACE, "pod", &installation.agent_pod(&node)]);
        for container in pod["status"]["containerStatuses"].as_array().expect("statuses") {
            assert_eq!(container["image"], installation.image(), "{container}");
        }
    }

    let space = cluster.namespace("attested");
    for node in cluster.nodes() {
        let name = format!("on-{node}");
        let start = Instant::now();
        cluster.apply(&Workload::new(&space, &name).node(&node).manifest());
        installation.wait_for_identity(&space, &name, &id("ns/attested/sa/default"));
        eprintln!(
            "a pod on {node} had its SVID {:?} after it was created",
            start.elapsed()
        );
    }
}

#[test]
fn pods_with_different_labels_get_different_identities_and_one_without_the_fallback() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let space = cluster.namespace("labels");
    by_label(installation, &space, "team");
    cluster.apply(&Workload::new(&space, "red").label("team", "red").manifest());
    cluster.apply(&Workload::new(&space, "blue").label("team", "blue").manifest());
    cluster.apply(&Workload::new(&space, "none").label("app", "red").manifest());
    cluster.kubectl_ok(&["-n", &space, "create", "serviceaccount", "db"]);
    cluster.apply(&Workload::new(&space, "db").service_account("db").manifest());
    for (pod, path) in [
        ("red", "team/red"),
        ("blue", "team/blue"),
        ("none", "ns/labels/sa/default"),
        ("db", "ns/labels/sa/db"),
    ] {
        installation.wait_for_identity(&space, pod, &id(path));
        let uid = pod_uid(installation, &space, pod);
        let entries = installation.entries();
        let own = entries
            .iter()
            .filter(|entry| entry["selectors"].to_string().contains(&uid));
        let own: Vec<_> = own.map(|entry| &entry["spiffe_id"]["path"]).collect();
        assert_eq!(own, [&json!(format!("/{path}"))], "{pod}");
    }
}

/// One in a namespace that rules pass over, one in a namespace that no rule selects.
#[test]
fn a_pod_that_no_rule_covers_is_refused_and_told_why() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    for space in ["kube-system", SYSTEM_NAMESPACE] {
        cluster.apply(&Workload::new(space, "foreign").manifest());
        installation.wait_for_refusal(space, "foreign");
        let uid = pod_uid(installation, space, "foreign");
        let entries =
            installation.server_json(&["entry", "show", "-selector", &format!("k8s:pod-uid:{uid}")]);
        assert_eq!(entries["entries"].as_array().map_or(0, Vec::len), 0, "{entries}");
    }
    wait_for("an event at the pod that nothing covers", READY, || {
        let described = cluster.kubectl_ok(&["-n", SYSTEM_NAMESPACE, "describe", "pod", "foreign"]);
        anyhow::ensure!(described.contains("no ClusterSPIFFEID"), "{described}");
        Ok(())
    });
    for space in ["kube-system", SYSTEM_NAMESPACE] {
        cluster.kubectl_ok(&["-n", space, "delete", "pod", "foreign"]);
    }
}

#[test]
fn a_label_changed_in_place_takes_the_identity_away_and_gives_the_new_one() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    let space = cluster.namespace("relabelled");
    by_label(installation, &space, "role");
    cluster.apply(&Workload::new(&space, "web").label("role", "old").manifest());
    installation.wait_for_identity(&space, "web", &id("role/old"));
    let watch = installation.watch(&space, "web");
    wait_for_last(&watch, &id("role/old"));

    for (change, expected) in [
        ("role=new", "role/new"),
        ("role-", "ns/relabelled/sa/default"),
        ("role=old", "role/old"),
    ] {
        let start = Instant::now();
        cluster.kubectl_ok(&["-n", &space, "label", "pod", "web", "--overwrite", change]);
        wait_for_last(&watch, &id(expected));
        eprintln!(
            "{change}: the open watch had {expected} after {:?}",
            start.elapsed()
        );
        // What it had before is not given any more.
        assert_eq!(installation.identities(&space, "web"), [id(expected)]);
    }
}

/// Where no fallback is, nothing is left, and an open watch ends.
#[test]
fn a_label_taken_away_leaves_nothing_where_no_other_rule_covers_the_pod() {
    let Some(installation) = Installation::shared() else {
        return;
    };
    let cluster = installation.cluster();
    by_label(installation, SYSTEM_NAMESPACE, "kept");
    cluster.apply(
        &Workload::new(SYSTEM_NAMESPACE, "labelled")
            .label("kept", "yes")
            .manifest(),
    );
    installation.wait_for_identity(SYSTEM_NAMESPACE, "labelled", &id("kept/yes"));
    let mut watch = installation.watch(SYSTEM_NAMESPACE, "labelled");
    wait_for_last(&watch, &id("kept/yes"));
    cluster.kubectl_ok(&["-n", SYSTEM_NAMESPACE, "label", "pod", "labelled", "kept-"]);
    let end = watch.wait_for_line("PermissionDenied", READY);
    assert!(end.contains("no identity issued"), "{end}");
    installation.wait_for_refusal(SYSTEM_NAMESPACE, "labelled");
    cluster.kubectl_ok(&["-n", SYSTEM_NAMESPACE, "delete", "pod", "labelled"]);
}

/// A rule for pods of one namespace that have `label`: `/<label>/<its value>`.
fn by_label(installation: &Installation<'_>, space: &str, label: &str) {
    let template =
        format!("spiffe://{{{{ .TrustDomain }}}}/{label}/{{{{ index .PodMeta.Labels \"{label}\" }}}}");
    installation.rule(
        &format!("{space}-{label}"),
        json!({
            "spiffeIDTemplate": template,
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": space}},
            "podSelector": {"matchExpressions": [{"key": label, "operator": "Exists"}]},
        }),
    );
}

/// Waits until the last identity that a watch printed is this one.
fn wait_for_last(watch: &Program, id: &str) {
    wait_for("an update of the watch", READY, || {
        let lines = watch.lines().join("\n");
        let last = ids(&lines).pop();
        anyhow::ensure!(last.as_deref() == Some(id), "{id} is not the last:\n{lines}");
        Ok(())
    });
}

fn pod_uid(installation: &Installation<'_>, space: &str, pod: &str) -> String {
    let pod = installation.cluster().get(&["-n", space, "pod", pod]);
    pod["metadata"]["uid"]
        .as_str()
        .expect("a pod has a UID")
        .to_owned()
}

/// The SPIFFE ID of an attested agent, which has proved its node.
fn agent_id(agent: &Value) -> String {
    assert_eq!(agent["attestation_type"], "k8s_psat", "{agent}");
    assert_ne!(agent["banned"], true, "{agent}");
    format!(
        "spiffe://{}{}",
        agent["id"]["trust_domain"].as_str().expect("a trust domain"),
        agent["id"]["path"].as_str().expect("a path")
    )
}

fn id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{path}")
}
