//! Attacks on the server: with a copied token of an agent, and with an agent's identity for entries of another node.

use std::path::Path;

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::x509::{Csr, CsrSubject};
use finial_proto::spire::api::server::entry::v1 as entry;
use finial_proto::spire::api::server::svid::v1 as svid;
use finial_tests::Output;
use prost::Message;
use serde_json::{Value, json};
use tonic::{Code, Status};

use super::{Scene, text};
use crate::cluster::Cluster;
use crate::door::{self, AUDIENCE, Door};
use crate::installation::{CLUSTER_NAME, Installation, SERVER_NAMESPACE, SYSTEM_NAMESPACE};
use crate::wire::{Identity, call, tls_unix};
use crate::workload::SOCKET;

fn token(cluster: &Cluster, account: (&str, &str), audience: &str, pod: Option<&Value>) -> String {
    door::token(|args| cluster.kubectl_ok(args), account, Some(audience), pod)
}

/// The agent's pod of a node, with its service account.
fn agent_pod(installation: &Installation<'static>, node: &str) -> Value {
    let name = installation.agent_pod(node);
    installation
        .cluster()
        .get(&["-n", SYSTEM_NAMESPACE, "pod", &name])
}

/// What the kubelet has mounted into the agent's container.
fn mounted_token(cluster: &Cluster, node: &str, pod: &Value) -> String {
    let path = Path::new("/var/lib/kubelet/pods")
        .join(text(&pod["metadata"]["uid"]))
        .join("volumes/kubernetes.io~projected/attestation-token/spire-agent");
    let read = Output::of(cluster.enter_node(node, "cat").arg(path));
    assert!(read.status.success(), "{}", read.stderr);
    read.stdout.trim().to_owned()
}

/// Each is refused, and no text, of the answer or of the server's log, holds the token.
#[tokio::test]
async fn a_token_is_refused_from_another_node_audience_or_account_and_after_its_pod_and_is_shown_nowhere() {
    let Some(scene) = Scene::set("attack-tokens") else {
        return;
    };
    let cluster = scene.cluster();
    let on_a = agent_pod(scene.installation, "node-a");
    let on_b = agent_pod(scene.installation, "node-b");
    let account = (SYSTEM_NAMESPACE, text(&on_a["spec"]["serviceAccountName"]));
    let others = scene.start("web", &scene.pod("web"));
    let good = token(cluster, account, AUDIENCE, Some(&on_b));
    let (signed, signature) = good.rsplit_once('.').expect("a token has three parts");
    let flipped = if signature.starts_with('A') { "B" } else { "A" };

    let attempts = [
        (
            "of node-a's agent, sent from node-b",
            mounted_token(cluster, "node-a", &on_a),
            "which is neither its pod's address nor its node's; where the network translates addresses, set verify_client_ip to false",
        ),
        (
            "for another audience",
            token(cluster, account, "another-server", Some(&on_b)),
            "token is not good for this cluster and audience",
        ),
        (
            "of another account",
            token(cluster, (&scene.space, "default"), AUDIENCE, Some(&others)),
            "service account is not allowed",
        ),
        (
            "bound to no pod",
            token(cluster, account, AUDIENCE, None),
            "token is not bound to a pod",
        ),
        (
            "of a pod that was deleted",
            token_of_deleted(cluster, account),
            "token is not good for this cluster and audience",
        ),
        (
            "with another signature",
            format!("{signed}.{flipped}{}", &signature[1..]),
            "token is not good for this cluster and audience",
        ),
    ];
    let door = Door::open(cluster, "door-tokens");
    for (what, token, reason) in &attempts {
        let refused = door.attest(CLUSTER_NAME, token).await.expect_err(what);
        assert_eq!(refused.code(), Code::PermissionDenied, "{what}: {refused:?}");
        assert!(refused.message().contains(reason), "{what}: {refused:?}");
        let (signed, signature) = token.rsplit_once('.').expect("a token has three parts");
        let shown = format!("{refused:?}");
        assert!(
            !shown.contains(signature) && !shown.contains(signed),
            "{what} is shown"
        );
    }
    let log = cluster.kubectl_ok(&["-n", SERVER_NAMESPACE, "logs", "finial-server-0"]);
    for (what, token, _reason) in &attempts {
        let (signed, signature) = token.rsplit_once('.').expect("a token has three parts");
        assert!(
            !log.contains(signature) && !log.contains(signed),
            "{what} is logged"
        );
    }
}

/// A token of a pod of the agents' account that is no more.
fn token_of_deleted(cluster: &Cluster, account: (&str, &str)) -> String {
    let (namespace, name) = account;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "former-agent", "namespace": namespace},
        "spec": {
            "nodeName": "node-b",
            "serviceAccountName": name,
            "automountServiceAccountToken": false,
            "containers": [{"name": "main", "image": "local.test/pause:1", "imagePullPolicy": "Never"}],
        },
    });
    let pod = cluster.create(&pod);
    let token = token(cluster, account, AUDIENCE, Some(&pod));
    let delete = ["delete", "pod", "former-agent", "--grace-period=0", "--force"];
    cluster.kubectl_ok(&[&["-n", namespace][..], &delete].concat());
    token
}

/// Whoever has become the agent of a node has what that node's pods have, and nothing of another's: the server says so
/// itself, whatever an agent asks for.
#[tokio::test]
async fn the_agent_of_one_node_neither_sees_nor_signs_for_a_pod_of_another() {
    let Some(scene) = Scene::set("attack-agent") else {
        return;
    };
    let cluster = scene.cluster();
    let mut entries = Vec::new();
    for (role, node) in [("victim", "node-a"), ("own", "node-b")] {
        let pod = scene.start(role, &scene.pod(role).node(node));
        let fetched = scene.client(role, &[], SOCKET).ask_ok(&["x509"]);
        assert_eq!(fetched["ids"], json!([scene.id(role)]));
        let selector = format!("k8s:pod-uid:{}", text(&pod["metadata"]["uid"]));
        let shown = scene
            .installation
            .server_json(&["entry", "show", "-selector", &selector]);
        entries.push(text(&shown["entries"][0]["id"]).to_owned());
    }
    let [victims, own] = <[String; 2]>::try_from(entries).expect("two pods");
    let agent = agent_pod(scene.installation, "node-b");
    let account = (SYSTEM_NAMESPACE, text(&agent["spec"]["serviceAccountName"]));
    let door = Door::open(cluster, "door-agent");

    // Else the real agent, which learns that another one took its place, attests again and takes it back.
    let _stopped = Stopped::agent(cluster, "node-b", &agent);
    let token = token(cluster, account, AUDIENCE, Some(&agent));
    let identity = door
        .attest(CLUSTER_NAME, &token)
        .await
        .expect("the token of this node's agent");
    steal(&door, identity, &victims, &own)
        .await
        .expect("an agent is answered");
}

/// The agent of a node, which does nothing for as long as this lives.
struct Stopped<'c> {
    cluster: &'c Cluster,
    node: &'c str,
    uid: String,
}

impl<'c> Stopped<'c> {
    fn agent(cluster: &'c Cluster, node: &'c str, pod: &Value) -> Self {
        let uid = text(&pod["metadata"]["uid"]).to_owned();
        let stopped = Stopped { cluster, node, uid };
        assert_eq!(stopped.signal("STOP"), 1, "one process is the agent");
        stopped
    }

    /// To how many processes the signal was sent.
    fn signal(&self, name: &str) -> usize {
        let script = format!(
            "for p in $(grep -l pod{} /proc/[0-9]*/cgroup | cut -d/ -f3); do \
             tr '\\0' ' ' < /proc/$p/cmdline | grep -q 'finial agent run' && kill -{name} $p && echo $p; done; true",
            self.uid
        );
        let sent = Output::of(self.cluster.enter_node(self.node, "sh").args(["-c", &script]));
        assert!(sent.status.success(), "{}", sent.stderr);
        sent.stdout.lines().count()
    }
}

impl Drop for Stopped<'_> {
    fn drop(&mut self) {
        self.signal("CONT");
    }
}

/// Asks for everything, the victim's among it, with an agent's identity. Fails when that is no longer one.
async fn steal(door: &Door, identity: Identity, victims: &str, own: &str) -> Result<(), Status> {
    let channel = tls_unix(door.socket().to_owned(), Some(identity))
        .await
        .expect("the server answers");
    let ask = async |method: &str, request: Vec<u8>| call(&channel, method, request).await;

    let method = "/spire.api.server.entry.v1.Entry/GetAuthorizedEntries";
    let answer = ask(
        method,
        entry::GetAuthorizedEntriesRequest::default().encode_to_vec(),
    )
    .await?;
    let answer = entry::GetAuthorizedEntriesResponse::decode(&answer[..]).expect("entries");
    let seen: Vec<&str> = answer.entries.iter().map(|entry| entry.id.as_str()).collect();
    assert!(seen.contains(&own), "{seen:?}");
    assert!(!seen.contains(&victims), "{seen:?}");

    let request = svid::BatchNewX509svidRequest {
        params: [victims, own]
            .map(|id| {
                let key = PrivateKey::generate(KeyType::EcP256).expect("a key");
                svid::NewX509svidParams {
                    entry_id: id.to_owned(),
                    csr: Csr::build(&key, CsrSubject::spire(), None, &[]).expect("a CSR"),
                }
            })
            .into(),
    };
    let answer = ask(
        "/spire.api.server.svid.v1.SVID/BatchNewX509SVID",
        request.encode_to_vec(),
    )
    .await?;
    let answer = svid::BatchNewX509svidResponse::decode(&answer[..]).expect("SVIDs");
    let codes: Vec<_> = answer
        .results
        .iter()
        .map(|result| {
            (
                result.status.as_ref().map(|status| status.code),
                result.svid.is_some(),
            )
        })
        .collect();
    let not_found = Code::NotFound as i32;
    assert_eq!(codes, [(Some(not_found), false), (Some(0), true)]);

    let request = svid::NewJwtsvidRequest {
        entry_id: victims.to_owned(),
        audience: vec!["audience".to_owned()],
    };
    let refused = ask(
        "/spire.api.server.svid.v1.SVID/NewJWTSVID",
        request.encode_to_vec(),
    )
    .await;
    assert_eq!(
        refused.map(drop).map_err(|status| status.code()),
        Err(Code::NotFound)
    );
    Ok(())
}
