//! What a call wrote is in force when its caller is told of it, by whichever service.

use finial_proto::spire::api::server::bundle::v1 as bundle_pb;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1::GetAuthorizedEntriesRequest;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use tonic::transport::Channel;

use crate::app::testing::{TestServer, entry_below};

/// How many entries an agent gets, which is answered from memory as it is.
async fn authorized(agent: &mut EntryClient<Channel>) -> usize {
    let asked = GetAuthorizedEntriesRequest::default();
    let answer = agent.get_authorized_entries(asked).await.unwrap();
    answer.into_inner().entries.len()
}

/// Often, because the registry follows the store by itself a moment later.
#[tokio::test]
async fn entries_that_a_bundle_took_with_it_are_gone_when_the_call_is_answered() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let own = client
        .get_bundle(bundle_pb::GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    let agent = server.attest().await;
    let mut as_agent = EntryClient::new(server.as_agent(&agent).await);
    for round in 0..40 {
        let set = bundle_pb::BatchSetFederatedBundleRequest {
            bundle: vec![types::Bundle {
                trust_domain: "foreign.org".to_owned(),
                ..own.clone()
            }],
            output_mask: None,
        };
        client.batch_set_federated_bundle(set).await.unwrap();
        server
            .entry(types::Entry {
                federates_with: vec!["foreign.org".to_owned()],
                ..entry_below(server.id(agent.id.path()), server.id("/web"))
            })
            .await;
        assert_eq!(authorized(&mut as_agent).await, 1, "round {round}");
        let delete = bundle_pb::BatchDeleteFederatedBundleRequest {
            trust_domains: vec!["foreign.org".to_owned()],
            mode: bundle_pb::batch_delete_federated_bundle_request::Mode::Delete as i32,
        };
        let deleted = client.batch_delete_federated_bundle(delete).await.unwrap();
        let status = deleted.into_inner().results[0].status.clone().unwrap();
        assert_eq!(status.code, 0, "{status:?}");
        assert_eq!(authorized(&mut as_agent).await, 0, "round {round}");
    }
}
