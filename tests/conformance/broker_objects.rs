//! SPIFFE_Broker_API.md, references to objects of Kubernetes: the agent with a kubelet that lists what the test says.

use std::time::Duration;

use finial_identity::x509::Certificate;
use finial_proto::spiffe::broker as pb;
use finial_proto::spiffe::broker::api_client::ApiClient;
use finial_proto::workload::X509svidRequest;
use finial_tests::kubernetes::FakeKubelet;
use finial_tests::{Entry, Stack, StackOptions, free_port};
use prost::Message;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::broker::{next, reason, secured, subscribe};
use crate::fixture::{first, secured as for_workload_api, workload_api};
use crate::wire::{Identity, tls};

const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";
const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";
const OTHER: &str = "00000000-25a7-4c0b-9ab1-4e2f1bd4a9b1";
const PATIENCE: Duration = Duration::from_secs(30);

fn pod(name: &str, uid: &str, phase: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "shop", "uid": uid, "labels": {"app": name}},
        "spec": {"nodeName": "n1", "serviceAccountName": name},
        "status": {"phase": phase},
    })
}

fn object(plural: &str, key: Option<(&str, &str)>, uid: &str) -> Option<pb::WorkloadReference> {
    let object = pb::KubernetesObjectReference {
        r#type: Some(pb::KubernetesObjectType {
            plural: plural.to_owned(),
            group: "core".to_owned(),
        }),
        key: key.map(|(namespace, name)| pb::KubernetesObjectKey {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        }),
        uid: uid.to_owned(),
    };
    Some(pb::WorkloadReference {
        reference: Some(prost_types::Any {
            type_url: OBJECT.to_owned(),
            value: object.encode_to_vec(),
        }),
    })
}

async fn connect(stack: &Stack, port: u16) -> ApiClient<Channel> {
    let request = for_workload_api(X509svidRequest {});
    let svids = first(workload_api(stack).await.fetch_x509svid(request).await);
    let svid = svids.await.expect("this user has an identity").svids.remove(0);
    let chain = Certificate::parse_many(&svid.x509_svid).expect("DER certificates back to back");
    let identity = Identity {
        chain: chain.iter().map(|one| one.der().clone()).collect(),
        key: PrivatePkcs8KeyDer::from(svid.x509_svid_key.to_vec()).into(),
    };
    let channel = tls(port, Some(identity)).await;
    ApiClient::new(channel.expect("a broker may connect"))
}

async fn refused(client: &mut ApiClient<Channel>, reference: Option<pb::WorkloadReference>) -> Status {
    let request = secured(pb::SubscribeToX509svidRequest { reference });
    let answer = tokio::time::timeout(PATIENCE, client.subscribe_to_x509svid(request)).await;
    answer.expect("an answer in time").map(drop).expect_err("refused")
}

/// Covers BRK-04, BRK-22, BRK-24, BRK-25, BRK-42, BRK-43, BRK-44, BRK-47, BRK-49.
#[tokio::test]
async fn brk_22_a_pod_of_the_node_is_named_by_name_uid_or_both_for_as_long_as_it_runs() {
    let kubelet = FakeKubelet::start();
    let pods = |uid: &str| vec![pod("web", uid, "Running"), pod("job", OTHER, "Succeeded")];
    kubelet.set(pods(UID));
    let port = free_port();
    let stack = Stack::start(StackOptions {
        agent: format!(
            r#"experimental {{ broker {{
              bind_address = "127.0.0.1:{port}"
              brokers = [ {{
                id = "spiffe://example.org/broker"
                allowed_reference_types = [ {{ type_url = "{OBJECT}", allow_over_tcp = true }} ]
              }} ]
            }} }}"#
        ),
        agent_plugins: kubelet.attestor(),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/broker"));
    for (path, selector) in [("/web", "k8s:pod-label:app:web"), ("/job", "k8s:sa:job")] {
        stack.create_entry(&Entry {
            path,
            selectors: vec!["k8s:ns:shop".to_owned(), selector.to_owned()],
            extra: Vec::new(),
        });
    }
    stack.wait_identity("/broker");
    let mut client = connect(&stack, port).await;

    let key = Some(("shop", "web"));
    let mut streams = Vec::new();
    for right in [
        object("pods", key, ""),
        object("pods", None, UID),
        object("pods", key, UID),
    ] {
        let mut stream = subscribe(&mut client, right).await;
        let message = next(&mut stream).await.expect("a message");
        let ids: Vec<&str> = message.svids.iter().map(|svid| &*svid.spiffe_id).collect();
        assert_eq!(ids, [stack.id("/web")]);
        streams.push(stream);
    }
    let not_found = |status: Status| {
        assert_eq!(status.code(), Code::NotFound, "{status}");
        assert_eq!(reason(&status), "WORKLOAD_NOT_FOUND");
    };
    for wrong in [
        object("pods", key, OTHER),
        object("pods", Some(("other", "web")), ""),
        object("pods", Some(("shop", "job")), ""),
    ] {
        not_found(refused(&mut client, wrong).await);
    }
    let invalid = refused(&mut client, object("pods", Some(("", "web")), UID)).await;
    assert_eq!(
        (invalid.code(), &*reason(&invalid)),
        (Code::InvalidArgument, "WORKLOAD_REFERENCE_INVALID")
    );
    let other_kind = refused(&mut client, object("services", key, "")).await;
    assert_eq!(other_kind.code(), Code::Unimplemented, "{other_kind}");

    // Another pod of that name is another workload.
    kubelet.set(pods("11111111-25a7-4c0b-9ab1-4e2f1bd4a9b1"));
    for mut stream in streams {
        not_found(next(&mut stream).await.expect_err("the pod is gone"));
    }
    not_found(refused(&mut client, object("pods", key, UID)).await);
    let mut stream = subscribe(&mut client, object("pods", key, "")).await;
    next(&mut stream).await.expect("the pod that has the name now");
}
