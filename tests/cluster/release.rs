//! The lifecycle of the release: tested, upgraded, rolled back, uninstalled and installed again.

use std::time::Instant;

use finial_tests::{Output, wait_for, wait_until};
use serde_json::Value;

use crate::cluster::READY;
use crate::installation::{
    Installation, RELEASE_NAMESPACE, SERVER_NAMESPACE, SYSTEM_NAMESPACE, TRUST_DOMAIN,
};
use crate::turns::{Turn, bundle, end, uid};
use crate::workload::Workload;

#[test]
fn helm_test_gets_both_kinds_of_svid() {
    let Some(turn) = Turn::take() else { return };
    let tested = json(turn.installation.helm(&["test", "finial"]));
    let logs = tested["logs"].as_str().expect("the test's pod prints");
    let id = format!("spiffe://{TRUST_DOMAIN}/ns/{RELEASE_NAMESPACE}/sa/default");
    assert!(logs.contains(&format!("token({id}):")), "{logs}");
}

#[test]
fn an_upgrade_with_other_values_and_a_rollback_keep_the_authority_and_every_identity() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = workload(installation, "upgraded");
    let authority = bundle(installation);
    let has_identity = || {
        let fetched = installation.fetch(&space, "web").stdout;
        fetched.contains(&id(&space))
    };
    let configured = || {
        cluster.kubectl_ok(&[
            "-n",
            SERVER_NAMESPACE,
            "get",
            "configmap",
            "finial-server",
            "-o",
            "jsonpath={.data}",
        ])
    };
    let before = configured();

    let change = [
        "--set",
        "spire-server.defaultX509SvidTTL=20m",
        "--set",
        "spire-agent.logLevel=info",
        // The volume has 1Gi, which is the same.
        "--set",
        "spire-server.persistence.size=1024Mi",
    ];
    let start = Instant::now();
    let upgraded =
        installation.helm(&[&installation.with_values(&["upgrade", "finial"])[..], &change].concat());
    eprintln!("upgraded after {:?}", start.elapsed());
    assert_eq!(json(upgraded)["status"], "deployed");
    installation.wait_ready();
    assert_ne!(configured(), before);
    assert_eq!(bundle(installation), authority);
    wait_until("the identity after the upgrade", READY, has_identity);
    // What is issued now lives as long as the new value says.
    let issued_to = |pod: &str| {
        cluster.apply(&Workload::new(&space, pod).manifest());
        installation.wait_for_identity(&space, pod, &id(&space));
        minutes(&installation.fetch(&space, pod).stdout)
    };
    let lifetime = issued_to("short");
    assert!((20..=21).contains(&lifetime), "{lifetime} minutes");

    // Kubernetes would refuse in words that name no value.
    let other_volume = ["--set", "spire-server.persistence.size=2Gi"];
    let refused = installation.helm(
        &[
            &installation.with_values(&["upgrade", "finial"])[..],
            &other_volume,
        ]
        .concat(),
    );
    let refused = refused.expect("the engine was there for the installation");
    let says = "spire-server.persistence.size is 1Gi and cannot become 2Gi";
    assert!(
        !refused.status.success() && refused.stderr.contains(says),
        "{}",
        refused.stderr
    );

    let rolled_back = json(installation.helm(&["rollback", "finial"]));
    assert_eq!(rolled_back["status"], "deployed");
    installation.wait_ready();
    assert_eq!(configured(), before);
    assert_eq!(bundle(installation), authority);
    wait_until("the identity after the rollback", READY, has_identity);
    let lifetime = issued_to("long");
    assert!((60..=61).contains(&lifetime), "{lifetime} minutes");
    assert_eq!(installation.agents().len(), 2);
    end(cluster, &space);
}

/// In the wrong order too: the documentation tells what to do then, and the right order is that of its commands.
#[test]
fn uninstalled_and_installed_again_no_pod_stays_stuck_and_the_authority_is_the_same() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let authority = bundle(installation);
    let space = workload(installation, "uninstalled");
    let object = cluster.get(&["-n", &space, "pod", "web"]);
    let node = object["spec"]["nodeName"]
        .as_str()
        .expect("a bound pod")
        .to_owned();
    let pod = uid(cluster, &["-n", &space, "pod", "web"]);
    let is_mounted = || {
        let mounts = Output::of(cluster.enter_node(&node, "cat").args(["/proc/self/mountinfo"]));
        assert!(mounts.status.success(), "{}", mounts.stderr);
        mounts
            .stdout
            .contains(&format!("/pods/{pod}/volumes/kubernetes.io~csi/"))
    };
    assert!(is_mounted(), "the volume of {pod} on {node}");
    json(installation.helm(&["uninstall", "finial"]));
    wait_until("all pods of the release to end", READY, || {
        [SERVER_NAMESPACE, SYSTEM_NAMESPACE].iter().all(|space| {
            let pods = cluster.get(&["-n", space, "pods"]);
            pods["items"].as_array().is_some_and(Vec::is_empty)
        })
    });
    let claims = cluster.get(&["-n", SERVER_NAMESPACE, "persistentvolumeclaims"]);
    assert_eq!(claims["items"].as_array().map(Vec::len), Some(1), "{claims}");
    cluster.kubectl_ok(&["-n", &space, "delete", "pod", "web", "--wait=false"]);
    wait_for("the pod to be stuck", READY, || {
        let pod = cluster.get(&["-n", &space, "pod", "web"]);
        let statuses = pod["status"]["containerStatuses"].as_array();
        // Its container's end is told as "terminated", or as "waiting" when the runtime has already removed it.
        let has_ended = |status: &Value| {
            let state = &status["state"];
            state["running"].is_null() && (state["terminated"].is_object() || state["waiting"].is_object())
        };
        let is_over = statuses.is_some_and(|statuses| statuses.len() == 1 && statuses.iter().all(has_ended));
        anyhow::ensure!(
            is_over && pod["metadata"]["deletionTimestamp"].is_string(),
            "{pod}"
        );
        Ok(())
    });
    assert!(is_mounted(), "nobody was there to unmount the volume of {pod}");

    let start = Instant::now();
    if installation.install().is_none() {
        return;
    }
    eprintln!("installed again after {:?}", start.elapsed());
    wait_until("the stuck pod to be gone", READY, || {
        let pod = cluster.kubectl(&["-n", &space, "get", "pod", "web", "--ignore-not-found"]);
        pod.status.success() && pod.stdout.is_empty()
    });
    wait_until("its volume to be unmounted", READY, || !is_mounted());
    assert_eq!(bundle(installation), authority);
    assert_eq!(installation.agents().len(), 2);
    cluster.apply(&Workload::new(&space, "web").manifest());
    installation.wait_for_identity(&space, "web", &id(&space));
    end(cluster, &space);
}

fn workload(installation: &Installation<'_>, space: &str) -> String {
    let space = installation.cluster().namespace(space);
    installation
        .cluster()
        .apply(&Workload::new(&space, "web").manifest());
    installation.wait_for_identity(&space, "web", &id(&space));
    space
}

/// Between the two times that `finial agent api fetch x509` prints of the SVID.
fn minutes(fetched: &str) -> i64 {
    let time = |what: &str| {
        let line = fetched.lines().find_map(|line| line.strip_prefix(what));
        let text = line.unwrap_or_else(|| panic!("no {what}: {fetched}")).trim();
        // 2030-01-02 03:04:05 +0000 UTC
        let numbers: Vec<i64> = text
            .split(|character: char| !character.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        (numbers[2] * 24 + numbers[3]) * 60 + numbers[4]
    };
    (time("SVID Valid Until:") - time("SVID Valid After:")).rem_euclid(24 * 60)
}

fn id(space: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/ns/{space}/sa/default")
}

fn json(output: Option<Output>) -> Value {
    let output = output.expect("the engine was there for the installation");
    assert!(output.status.success(), "{}{}", output.stdout, output.stderr);
    output.json()
}
