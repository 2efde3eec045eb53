//! Selectors of the labels of a pod's namespace, which agents ask the API server for.

use std::time::Instant;

use finial_tests::{Program, wait_for};

use crate::cluster::READY;
use crate::installation::{Installation, TRUST_DOMAIN, ids};
use crate::turns::{Turn, end};
use crate::workload::Workload;

const NODE: &str = "node-a";

#[test]
fn a_pod_has_what_its_namespaces_labels_give_it_for_as_long_as_they_do() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let on = [
        "--set",
        "spire-agent.workloadAttestors.k8s.enableNamespaceLabels=true",
    ];
    let upgraded = installation
        .helm(&[&installation.with_values(&["upgrade", "finial"])[..], &on].concat())
        .expect("it installed before");
    assert!(upgraded.status.success(), "{}", upgraded.stderr);
    installation.wait_ready();

    let (space, other) = (cluster.namespace("ns-label"), cluster.namespace("ns-label-none"));
    let label = |change: &str| cluster.kubectl_ok(&["label", "namespace", &space, "--overwrite", change]);
    let agent = installation.agent_id(NODE);
    let entry = |path: &str, selectors: &[&str]| installation.create_entry(&agent, &id(path), selectors);
    let mut entries = vec![
        entry("ns-label/red", &["k8s:ns-label:team:red"]),
        entry("ns-label/blue", &["k8s:ns-label:team:blue"]),
    ];
    label("team=red");
    cluster.apply(&Workload::new(&space, "web").node(NODE).manifest());
    // The label of a pod is another thing.
    let labelled = Workload::new(&other, "web").node(NODE).label("team", "red");
    cluster.apply(&labelled.manifest());
    cluster.wait_pod(&space, "web");
    cluster.wait_pod(&other, "web");
    wait_for_team(installation, &space, &["red"]);
    wait_for_team(installation, &other, &[]);
    let watch = installation.watch(&space, "web");
    wait_for_update(&watch, &["ns-label/red"], &["ns-label/blue"]);

    // Who asks anew has what the label says now, a few seconds later at most.
    let start = Instant::now();
    label("team=blue");
    wait_for_team(installation, &space, &["blue"]);
    eprintln!("the namespace's new label counted after {:?}", start.elapsed());
    // Who has asked before gets nothing new by a label that is gone.
    entries.push(entry(
        "ns-label/all",
        &[&format!("k8s:ns:{space}"), "k8s:pod-name:web"],
    ));
    wait_for_update(&watch, &["ns-label/all", "ns-label/blue"], &["ns-label/red"]);

    label("team-");
    wait_for_team(installation, &space, &[]);
    installation.delete_entries(&entries);
    end(cluster, &other);
    end(cluster, &space);
}

/// Waits until the pod `web` has the identities of these teams and of no other.
fn wait_for_team(installation: &Installation<'_>, space: &str, teams: &[&str]) {
    wait_for("the identities of the namespace's label", READY, || {
        let found = installation.identities(space, "web");
        // Every pod has that of the fallback: the agent answered, and with all that it has.
        anyhow::ensure!(
            found.contains(&id(&format!("ns/{space}/sa/default"))),
            "{found:?}"
        );
        for team in ["red", "blue"] {
            let has = found.contains(&id(&format!("ns-label/{team}")));
            anyhow::ensure!(has == teams.contains(&team), "{team}: {found:?}");
        }
        Ok(())
    });
}

/// Waits until the last update of a watch has the ones and not the others.
fn wait_for_update(watch: &Program, with: &[&str], without: &[&str]) {
    wait_for("an update of the watch", READY, || {
        let lines = watch.lines().join("\n");
        let last = lines.rsplit("Received ").next().unwrap_or_default();
        let found = ids(last);
        for (paths, expected) in [(with, true), (without, false)] {
            for path in paths {
                anyhow::ensure!(found.contains(&id(path)) == expected, "{path}: {lines}");
            }
        }
        Ok(())
    });
}

fn id(path: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/{path}")
}
