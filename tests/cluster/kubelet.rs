//! How agents know the kubelet of their node, with the verification that the chart has by itself: by the cluster's
//! authority on the first node, and on the second, whose kubelet vouches for itself, by the certificate that the
//! driver's container passes on (`inside/certificates`).

use finial_tests::{Output, wait_for};

use crate::cluster::{Cluster, READY};
use crate::installation::{Installation, SYSTEM_NAMESPACE, TRUST_DOMAIN, fetch_at, ids};
use crate::turns::{Turn, end, replace_kubelet, restart_kubelet};
use crate::workload::{SOCKET, Workload};

const OWN: &str = "/var/lib/kubelet/pki/kubelet";
const OTHER: &str = "/var/lib/kubelet/other";

#[test]
fn a_kubelet_is_known_by_the_clusters_authority_or_its_own_certificate_and_another_in_its_place_is_refused() {
    let Some(turn) = Turn::take() else { return };
    let installation = turn.installation;
    let cluster = installation.cluster();
    let space = cluster.namespace("kubelet");
    let mut entries = Vec::new();
    for (node, is_vouched_for) in [("node-a", true), ("node-b", false)] {
        assert_eq!(is_of_authority(cluster, node), is_vouched_for, "{node}");
        let (own, passed) = (
            read(cluster, node, &format!("{OWN}.crt")),
            passed_on(cluster, node),
        );
        assert_eq!(own.split_whitespace().collect::<String>(), passed);
        // Only the kubelet knows labels, and which selectors a stored entry has, rules do not say.
        let part = format!("k8s:pod-label:part:{node}");
        let agent = installation.agent_id(node);
        entries.push(installation.create_entry(&agent, &id(node), &[&part]));
        cluster.apply(
            &Workload::new(&space, node)
                .node(node)
                .label("part", node)
                .manifest(),
        );
    }
    for node in ["node-a", "node-b"] {
        cluster.wait_pod(&space, node);
        wait_for("the identity by the pod's label", READY, || {
            let found = installation.identities(&space, node);
            anyhow::ensure!(found.contains(&id(node)), "{found:?}");
            Ok(())
        });
    }

    // The agent's file still has the certificate of the kubelet that was there before.
    let config = cluster.dir().join("data/node-b/kubelet.yaml");
    let before = std::fs::read_to_string(&config).expect("the kubelet's configuration");
    make_other(cluster, "node-b");
    std::fs::write(&config, before.replace(OWN, &format!("{OTHER}/kubelet"))).expect("it is changed");
    let container = container_id(cluster, &space, "node-b");
    let untrusted = || {
        let log = agent_log(installation, "node-b");
        log.matches("invalid peer certificate").count()
    };
    let (untrusted_before, mut asked) = (untrusted(), 0);
    replace_kubelet(cluster, "node-b");
    wait_for("the refusal of another kubelet", READY, || {
        asked += 1;
        let printed = ask(cluster, "node-b", &container, asked);
        anyhow::ensure!(
            ids(&printed).is_empty() && printed.contains("workload attestation failed"),
            "{printed}"
        );
        // Not only while no kubelet answers.
        anyhow::ensure!(
            untrusted() > untrusted_before,
            "the agent has seen no other certificate"
        );
        Ok(())
    });
    // It is not the kubelet that says no: it is not asked.
    let printed = ask(cluster, "node-b", &container, asked + 1);
    assert!(ids(&printed).is_empty(), "{printed}");
    assert!(installation.identities(&space, "node-a").contains(&id("node-a")));

    std::fs::write(&config, before).expect("it is changed back");
    restart_kubelet(cluster, "node-b");
    wait_for("the identity again", READY, || {
        let found = installation.identities(&space, "node-b");
        anyhow::ensure!(found.contains(&id("node-b")), "{found:?}");
        Ok(())
    });
    installation.delete_entries(&entries);
    end(cluster, &space);
}

/// Whether the authority that agents are given has signed what the node's kubelet shows.
fn is_of_authority(cluster: &Cluster, node: &str) -> bool {
    let serving = format!("{OWN}.crt");
    let authority = cluster.dir().join("pki/ca.crt").display().to_string();
    let verified = Output::of(
        cluster
            .enter_node(node, "openssl")
            .args(["verify", "-CAfile", &authority, &serving]),
    );
    verified.status.success()
}

/// What the driver's container has written for the agent of the node, without white space. It holds no key.
fn passed_on(cluster: &Cluster, node: &str) -> String {
    let passed = read(cluster, node, "/run/finial/csi/kubelet.pem");
    assert!(!passed.contains("PRIVATE"), "{passed}");
    passed.split_whitespace().collect()
}

/// Another certificate with the node's address, which nobody vouches for, and its key.
fn make_other(cluster: &Cluster, node: &str) {
    let on_node = |program: &str, args: &[&str]| {
        let done = Output::of(cluster.enter_node(node, program).args(args));
        assert!(done.status.success(), "{}", done.stderr);
    };
    let (certificate, key) = (format!("{OTHER}/kubelet.crt"), format!("{OTHER}/kubelet.key"));
    on_node("mkdir", &["-p", OTHER]);
    let new = [
        "req",
        "-x509",
        "-noenc",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-days",
        "2",
    ];
    let who = [
        "-subj",
        "/CN=node-b",
        "-addext",
        "subjectAltName=DNS:node-b,IP:10.80.0.2",
    ];
    let files = ["-out", &certificate, "-keyout", &key];
    on_node("openssl", &[&new[..], &who, &files].concat());
}

/// One try of a workload in a container. The apiserver does not know the node's kubelet either, so not by `kubectl`.
fn ask(cluster: &Cluster, node: &str, container: &str, number: usize) -> String {
    let name = format!("ask-{number}");
    let exec = ["task", "exec", "--exec-id", &name, container];
    let fetch = fetch_at(SOCKET);
    let output = Output::of(cluster.enter_node(node, "ctr").args(exec).args(fetch));
    format!("{}{}", output.stdout, output.stderr)
}

/// What the agent of a node logged.
fn agent_log(installation: &Installation<'_>, node: &str) -> String {
    let pod = installation.agent_pod(node);
    let cat = format!("cat /var/log/pods/{SYSTEM_NAMESPACE}_{pod}_*/agent/*.log");
    Output::of(installation.cluster().enter_node(node, "sh").args(["-c", &cat])).stdout
}

fn container_id(cluster: &Cluster, space: &str, pod: &str) -> String {
    let pod = cluster.get(&["-n", space, "pod", pod]);
    let id = &pod["status"]["containerStatuses"][0]["containerID"];
    let id = id.as_str().unwrap_or_else(|| panic!("no container: {pod}"));
    id.trim_start_matches("containerd://").to_owned()
}

fn read(cluster: &Cluster, node: &str, path: &str) -> String {
    let read = Output::of(cluster.enter_node(node, "cat").arg(path));
    assert!(read.status.success(), "{}", read.stderr);
    read.stdout
}

fn id(node: &str) -> String {
    format!("spiffe://{TRUST_DOMAIN}/kubelet/{node}")
}
