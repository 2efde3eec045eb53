//! Entries that objects declare, and what is not known of them yet.

use std::path::Path;

use finial_proto::spire::api::server::agent::v1::BanAgentRequest;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1 as pb;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1::ListEntriesRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use regex::RegexSet;
use tonic::Code;

use super::svids::minted;
use crate::app::testing::{TestServer, reason};
use crate::config::{ClusterSource, KubernetesCluster};

fn cluster(source: ClusterSource) -> KubernetesCluster {
    KubernetesCluster {
        name: "demo".to_owned(),
        source,
        ignored_namespaces: RegexSet::empty(),
        class_name: None,
        watch_classless: false,
        parent_id_template:
            "spiffe://{{ .TrustDomain }}/spire/agent/k8s_psat/{{ .ClusterName }}/{{ .NodeMeta.UID }}"
                .to_owned(),
        cluster_domain: String::new(),
        csi_driver: "csi.spiffe.io".to_owned(),
    }
}

/// One that nobody answers for.
fn absent(directory: &Path) -> KubernetesCluster {
    let path = directory.join("kubeconfig");
    let text = r#"{"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}]}"#;
    std::fs::write(&path, text).unwrap();
    cluster(ClusterSource::Api {
        kube_config_file: Some(path),
        manages_crds: false,
    })
}

async fn deleted(server: &TestServer, mode: i32) -> types::Status {
    let request = pb::BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["foreign.org".to_owned()],
        mode,
    };
    let mut client = BundleClient::new(server.local().await);
    let answer = client.batch_delete_federated_bundle(request).await.unwrap();
    answer.into_inner().results[0].status.clone().unwrap()
}

async fn set_foreign(server: &TestServer) {
    let set = pb::BatchSetFederatedBundleRequest {
        bundle: vec![types::Bundle {
            trust_domain: "foreign.org".to_owned(),
            ..types::Bundle::default()
        }],
        output_mask: None,
    };
    let mut client = BundleClient::new(server.local().await);
    let answer = client.batch_set_federated_bundle(set).await.unwrap().into_inner();
    assert_eq!(answer.results[0].status.as_ref().unwrap().code, 0);
}

#[tokio::test]
async fn a_bundle_that_an_object_federates_with_is_deleted_by_force_only() {
    let directory = tempfile::tempdir().unwrap();
    let object = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {name: vm}\nspec:\n  spiffeID: spiffe://example.org/vm\n  parentID: spiffe://example.org/spire/agent/x\n  selectors: [\"unix:uid:1\"]\n  federatesWith: [foreign.org]\n";
    std::fs::write(directory.path().join("vm.yaml"), object).unwrap();
    let files = cluster(ClusterSource::Manifests(directory.path().to_owned()));
    let server = TestServer::start_with(|config| config.with_kubernetes(vec![files])).await;
    assert_eq!(deleted(&server, 0).await.code, Code::NotFound as i32);
    set_foreign(&server).await;
    // The files are read by a task of their own.
    let mut entries = EntryClient::new(server.local().await);
    let mut count = 0;
    while count == 0 {
        let listed = entries.list_entries(ListEntriesRequest::default()).await.unwrap();
        count = listed.into_inner().entries.len();
        tokio::task::yield_now().await;
    }
    for (mode, part) in [(0, "cannot delete bundle"), (2, "cannot dissociate")] {
        let refused = deleted(&server, mode).await;
        assert_eq!(refused.code, Code::FailedPrecondition as i32, "{refused:?}");
        let origin = "1, the first by ClusterStaticEntry vm of cluster demo";
        assert!(
            refused.message.contains(part) && refused.message.contains(origin),
            "{refused:?}"
        );
    }
    assert_eq!(deleted(&server, 1).await.code, 0);
}

#[tokio::test]
async fn a_bundle_is_not_deleted_while_it_is_not_known_whether_objects_federate_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let absent = absent(directory.path());
    let server = TestServer::start_with(|config| config.with_kubernetes(vec![absent])).await;
    set_foreign(&server).await;
    for mode in [0, 2] {
        assert_eq!(deleted(&server, mode).await.code, Code::Unavailable as i32);
    }
    assert_eq!(deleted(&server, 1).await.code, 0);
}

#[tokio::test]
async fn a_caller_whom_an_object_may_make_admin_is_told_to_come_again_and_agents_are_not() {
    let directory = tempfile::tempdir().unwrap();
    let absent = absent(directory.path());
    let server = TestServer::start_with(|config| config.with_kubernetes(vec![absent])).await;
    set_foreign(&server).await;
    let caller = minted(&server, "/caller").await;
    let channel = server.remote(Some(caller)).await.unwrap();
    let refused = EntryClient::new(channel.clone())
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let get = pb::GetFederatedBundleRequest {
        trust_domain: "foreign.org".to_owned(),
        output_mask: None,
    };
    let refused = BundleClient::new(channel)
        .get_federated_bundle(get.clone())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    let agent = server.attest().await;
    let channel = server.as_agent(&agent).await;
    BundleClient::new(channel.clone())
        .get_federated_bundle(get.clone())
        .await
        .unwrap();
    let ban = BanAgentRequest {
        id: Some(server.id(agent.id.path())),
    };
    AgentClient::new(server.local().await)
        .ban_agent(ban)
        .await
        .unwrap();
    let refused = BundleClient::new(channel)
        .get_federated_bundle(get)
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::AgentBanned);
}
