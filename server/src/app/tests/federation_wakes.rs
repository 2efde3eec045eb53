//! What callers write about foreign trust domains wakes whoever fetches their bundles.

use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::wire;
use finial_proto::spire::api::server::bundle::v1 as bundle_pb;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::trustdomain::v1 as pb;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile as Profile;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::app::testing::TestServer;
use crate::federation::testing::{Authority, Endpoint, bundle, web};

/// Less than the shortest time between two fetches that nobody wished for.
const SOON: Duration = Duration::from_secs(10);

/// A server, and an endpoint of `a.test`.
struct World {
    relationships: TrustDomainClient<Channel>,
    bundles: BundleClient<Channel>,
    authority: Authority,
    endpoint: Endpoint,
    _server: TestServer,
}

impl World {
    /// The endpoint serves its bundle as the fifth.
    async fn new() -> Self {
        let authority = Authority::new("a.test");
        let endpoint = endpoint(&authority, 5).await;
        let server = TestServer::start().await;
        Self {
            relationships: TrustDomainClient::new(server.local().await),
            bundles: BundleClient::new(server.local().await),
            authority,
            endpoint,
            _server: server,
        }
    }

    fn relationship(&self, url: String, bundle: Option<Bundle>) -> types::FederationRelationship {
        types::FederationRelationship {
            bundle_endpoint_url: url,
            bundle_endpoint_profile: Some(Profile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: "spiffe://a.test/spire/server".to_owned(),
            })),
            trust_domain_bundle: bundle.as_ref().map(wire::bundle_to_wire),
            ..wire::relationship_to_wire(&web("a.test", "https://a.test"))
        }
    }

    async fn create(&mut self, relationship: types::FederationRelationship) {
        let request = pb::BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            output_mask: None,
        };
        let created = self.relationships.batch_create_federation_relationship(request);
        check(created.await.unwrap().into_inner().results.remove(0).status);
    }

    async fn update(&mut self, relationship: types::FederationRelationship) {
        let request = pb::BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            input_mask: None,
            output_mask: None,
        };
        let updated = self.relationships.batch_update_federation_relationship(request);
        check(updated.await.unwrap().into_inner().results.remove(0).status);
    }

    async fn set(&mut self, bundle: &Bundle) {
        let request = bundle_pb::BatchSetFederatedBundleRequest {
            bundle: vec![wire::bundle_to_wire(bundle)],
            output_mask: None,
        };
        let set = self.bundles.batch_set_federated_bundle(request).await.unwrap();
        check(set.into_inner().results.remove(0).status);
    }

    /// Has a fetch fail. The next one is due only after [`SOON`].
    async fn fail(&mut self) {
        let request = pb::RefreshBundleRequest {
            trust_domain: "a.test".to_owned(),
        };
        let failed = self.relationships.refresh_bundle(request).await;
        assert!(failed.is_err(), "nothing authenticates the endpoint");
    }

    /// There is a relationship, and nothing authenticates its endpoint.
    async fn failing() -> Self {
        let mut world = Self::new().await;
        let relationship = world.relationship(world.endpoint.url("/"), None);
        world.create(relationship).await;
        world.fail().await;
        world
    }

    /// Waits until the bundle with this number is stored, which nobody but an endpoint has.
    async fn until_fetched(&mut self, number: u64) {
        let fetched = async {
            loop {
                let request = bundle_pb::GetFederatedBundleRequest {
                    trust_domain: "a.test".to_owned(),
                    output_mask: None,
                };
                let held = self.bundles.get_federated_bundle(request).await;
                if held.is_ok_and(|held| held.into_inner().sequence_number == number) {
                    return;
                }
            }
        };
        assert!(timeout(SOON, fetched).await.is_ok(), "{number} is not fetched");
    }
}

async fn endpoint(authority: &Authority, number: u64) -> Endpoint {
    let svid = authority.svid("/spire/server", time::Duration::hours(1));
    let endpoint = Endpoint::start(svid).await;
    endpoint.serve(&authority.bundle(number));
    endpoint
}

fn check(status: Option<types::Status>) {
    let status = status.unwrap();
    assert_eq!(status.code, 0, "{}", status.message);
}

#[tokio::test]
async fn a_relationship_is_followed_as_soon_as_it_is_created_and_as_soon_as_it_is_changed() {
    let mut world = World::new().await;
    let own = world.authority.bundle(1);
    let relationship = world.relationship(world.endpoint.url("/"), Some(own));
    world.create(relationship).await;
    world.until_fetched(5).await;
    let other = endpoint(&world.authority, 7).await;
    let relationship = world.relationship(other.url("/"), None);
    world.update(relationship).await;
    world.until_fetched(7).await;
}

#[tokio::test]
async fn a_bundle_that_comes_with_a_change_of_the_relationship_is_tried_at_once() {
    let mut world = World::failing().await;
    let own = world.authority.bundle(1);
    let relationship = world.relationship(world.endpoint.url("/"), Some(own));
    world.update(relationship).await;
    world.until_fetched(5).await;
}

#[tokio::test]
async fn a_bundle_that_comes_with_a_new_relationship_is_tried_at_once_for_others_that_need_it() {
    let mut world = World::new().await;
    // The endpoint of `a.test` shows an SVID of `host.test`.
    let host = Authority::new("host.test");
    world.endpoint.present(host.svid("/be", time::Duration::hours(1)));
    let by_host = types::HttpsspiffeProfile {
        endpoint_spiffe_id: "spiffe://host.test/be".to_owned(),
    };
    let mut relationship = world.relationship(world.endpoint.url("/"), None);
    relationship.bundle_endpoint_profile = Some(Profile::HttpsSpiffe(by_host));
    world.create(relationship).await;
    world.fail().await;
    world
        .create(types::FederationRelationship {
            trust_domain_bundle: Some(wire::bundle_to_wire(&host.bundle(1))),
            ..wire::relationship_to_wire(&web("host.test", "https://127.0.0.1:9/"))
        })
        .await;
    world.until_fetched(5).await;
}

#[tokio::test]
async fn a_fetch_is_cut_off_when_its_relationship_is_deleted() {
    let mut world = World::new().await;
    let silent = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let url = format!("https://127.0.0.1:{port}/");
    let own = world.authority.bundle(1);
    let relationship = world.relationship(url, Some(own));
    world.create(relationship).await;
    let (mut connection, _from) = timeout(SOON, silent.accept()).await.unwrap().unwrap();
    let request = pb::BatchDeleteFederationRelationshipRequest {
        trust_domains: vec!["a.test".to_owned()],
    };
    let deleted = world.relationships.batch_delete_federation_relationship(request);
    check(deleted.await.unwrap().into_inner().results.remove(0).status);
    let mut said = Vec::new();
    // Sooner than who waits for the handshake gives up.
    let ended = timeout(SOON / 2, connection.read_to_end(&mut said)).await;
    assert!(ended.is_ok(), "it still waits for an answer");
}

#[tokio::test]
async fn a_bundle_that_is_created_is_tried_at_once() {
    let mut world = World::failing().await;
    let request = bundle_pb::BatchCreateFederatedBundleRequest {
        bundle: vec![wire::bundle_to_wire(&world.authority.bundle(1))],
        output_mask: None,
    };
    let created = world
        .bundles
        .batch_create_federated_bundle(request)
        .await
        .unwrap();
    check(created.into_inner().results.remove(0).status);
    world.until_fetched(5).await;
}

#[tokio::test]
async fn a_bundle_that_is_set_is_tried_at_once() {
    let mut world = World::failing().await;
    let own = world.authority.bundle(1);
    world.set(&own).await;
    world.until_fetched(5).await;
}

#[tokio::test]
async fn a_bundle_that_is_changed_is_tried_at_once() {
    let mut world = World::failing().await;
    // With a stranger's authority, which authenticates the endpoint no more than none.
    world.set(&bundle("a.test", 9)).await;
    world.fail().await;
    let request = bundle_pb::BatchUpdateFederatedBundleRequest {
        bundle: vec![wire::bundle_to_wire(&world.authority.bundle(1))],
        input_mask: None,
        output_mask: None,
    };
    let updated = world
        .bundles
        .batch_update_federated_bundle(request)
        .await
        .unwrap();
    check(updated.into_inner().results.remove(0).status);
    world.until_fetched(5).await;
}
