//! Federation relationships through the API.

use finial_identity::federation::{EndpointUrl, Relationship};
use finial_identity::wire;
use finial_proto::spire::api::server::bundle::v1::GetFederatedBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::trustdomain::v1 as pb;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::federation_relationship::BundleEndpointProfile as Profile;
use time::Duration;
use tonic::Code;
use tonic::transport::Channel;

use crate::app::testing::TestServer;
use crate::config::FederationConfig;
use crate::federation::testing::{Authority, Endpoint, bundle, web};

type Client = TrustDomainClient<Channel>;

fn message(name: &str) -> types::FederationRelationship {
    wire::relationship_to_wire(&web(name, &format!("https://{name}/bundle")))
}

fn with_bundle(name: &str, of: &str) -> types::FederationRelationship {
    types::FederationRelationship {
        trust_domain_bundle: Some(wire::bundle_to_wire(&bundle(of, 1))),
        ..message(name)
    }
}

async fn create(
    client: &mut Client,
    federation_relationships: Vec<types::FederationRelationship>,
) -> Vec<(i32, String)> {
    let request = pb::BatchCreateFederationRelationshipRequest {
        federation_relationships,
        output_mask: None,
    };
    let answer = client.batch_create_federation_relationship(request).await;
    let results = answer.unwrap().into_inner().results;
    let results = results.into_iter().map(|result| result.status.unwrap());
    results.map(|status| (status.code, status.message)).collect()
}

async fn list(client: &mut Client, page_size: i32) -> Vec<Vec<String>> {
    let mut pages = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = pb::ListFederationRelationshipsRequest {
            output_mask: None,
            page_size,
            page_token: std::mem::take(&mut page_token),
        };
        let page = client.list_federation_relationships(request).await;
        let page = page.unwrap().into_inner();
        let names = page.federation_relationships.iter();
        pages.push(
            names
                .map(|relationship| relationship.trust_domain.clone())
                .collect(),
        );
        if page.next_page_token.is_empty() {
            return pages;
        }
        page_token = page.next_page_token;
    }
}

#[tokio::test]
async fn relationships_are_made_read_changed_and_deleted() {
    let server = TestServer::start().await;
    let mut client = Client::new(server.local().await);
    let created = create(
        &mut client,
        vec![
            with_bundle("a.test", "a.test"),
            message("a.test"),
            message("example.org"),
            types::FederationRelationship {
                bundle_endpoint_url: "http://b.test".to_owned(),
                ..message("b.test")
            },
            types::FederationRelationship {
                bundle_endpoint_profile: None,
                ..message("b.test")
            },
            with_bundle("b.test", "c.test"),
            message("b.test"),
        ],
    )
    .await;
    let codes: Vec<i32> = created.iter().map(|(code, _)| *code).collect();
    assert_eq!(codes, [0, 6, 3, 3, 3, 3, 0], "{created:?}");
    assert!(
        created[5].1.contains("must match the trust domain"),
        "{created:?}"
    );
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(list(&mut client, 0).await, [names(&["a.test", "b.test"])]);
    assert_eq!(
        list(&mut client, 1).await,
        [names(&["a.test"]), names(&["b.test"]), Vec::new()]
    );

    let get = |name: &str, mask| pb::GetFederationRelationshipRequest {
        trust_domain: name.to_owned(),
        output_mask: mask,
    };
    let read = client
        .get_federation_relationship(get("spiffe://a.test", None))
        .await;
    assert_eq!(read.unwrap().into_inner(), with_bundle("a.test", "a.test"));
    let mask = types::FederationRelationshipMask {
        bundle_endpoint_url: true,
        ..Default::default()
    };
    let read = client
        .get_federation_relationship(get("a.test", Some(mask)))
        .await;
    let expected = types::FederationRelationship {
        bundle_endpoint_profile: None,
        ..message("a.test")
    };
    assert_eq!(read.unwrap().into_inner(), expected);
    for (name, code) in [("c.test", Code::NotFound), ("NO", Code::InvalidArgument)] {
        let refused = client.get_federation_relationship(get(name, None)).await;
        assert_eq!(refused.unwrap_err().code(), code, "{name}");
    }

    // Only the fields of the mask are written, but all are checked.
    let update = |url: &str, mask| pb::BatchUpdateFederationRelationshipRequest {
        federation_relationships: vec![types::FederationRelationship {
            bundle_endpoint_url: url.to_owned(),
            bundle_endpoint_profile: Some(Profile::HttpsSpiffe(types::HttpsspiffeProfile {
                endpoint_spiffe_id: "spiffe://a.test/be".to_owned(),
            })),
            ..with_bundle("a.test", "a.test")
        }],
        input_mask: mask,
        output_mask: None,
    };
    let changed = client
        .batch_update_federation_relationship(update("https://a.test/new", Some(mask)))
        .await;
    let changed = changed.unwrap().into_inner().results.remove(0);
    let relationship = changed.federation_relationship.unwrap();
    assert_eq!(relationship.bundle_endpoint_url, "https://a.test/new");
    assert!(matches!(
        relationship.bundle_endpoint_profile,
        Some(Profile::HttpsWeb(_))
    ));
    let refused = client
        .batch_update_federation_relationship(update("no", None))
        .await;
    let refused = refused.unwrap().into_inner().results.remove(0);
    assert_eq!(refused.status.unwrap().code, Code::InvalidArgument as i32);
    let mut unknown = update("https://c.test", None);
    unknown.federation_relationships[0] = message("c.test");
    let unknown = client.batch_update_federation_relationship(unknown).await;
    let unknown = unknown.unwrap().into_inner().results.remove(0);
    assert_eq!(unknown.status.unwrap().code, Code::NotFound as i32);

    let delete = pb::BatchDeleteFederationRelationshipRequest {
        trust_domains: names(&["spiffe://a.test", "a.test", "", "NO"]),
    };
    let deleted = client.batch_delete_federation_relationship(delete).await;
    let deleted = deleted.unwrap().into_inner().results;
    let deleted: Vec<(i32, &str)> = deleted
        .iter()
        .map(|result| (result.status.as_ref().unwrap().code, result.trust_domain.as_str()))
        .collect();
    assert_eq!(deleted, [(0, "a.test"), (5, "a.test"), (3, ""), (3, "NO")]);
    // The bundle stays, as with SPIRE.
    let held = BundleClient::new(server.local().await)
        .get_federated_bundle(GetFederatedBundleRequest {
            trust_domain: "a.test".to_owned(),
            output_mask: None,
        })
        .await;
    assert!(held.is_ok());
}

#[tokio::test]
async fn a_bundle_is_refreshed_when_asked_for_and_why_not_is_told() {
    let authority = Authority::new("a.test");
    let endpoint = Endpoint::start(authority.svid("/spire/server", Duration::hours(1))).await;
    endpoint.serve(&authority.bundle(5));
    let configured = Relationship {
        endpoint_url: EndpointUrl::parse("https://127.0.0.1:9/").unwrap(),
        ..web("b.test", "https://b.test")
    };
    let server = TestServer::start_with(|config| {
        config.with_federation(FederationConfig {
            bundle_endpoint: None,
            federates_with: vec![configured],
        })
    })
    .await;
    let mut client = Client::new(server.local().await);
    let relationship = types::FederationRelationship {
        bundle_endpoint_url: endpoint.url("/"),
        bundle_endpoint_profile: Some(Profile::HttpsSpiffe(types::HttpsspiffeProfile {
            endpoint_spiffe_id: "spiffe://a.test/spire/server".to_owned(),
        })),
        trust_domain_bundle: Some(wire::bundle_to_wire(&authority.bundle(1))),
        ..message("a.test")
    };
    assert_eq!(create(&mut client, vec![relationship]).await[0].0, 0);
    let refresh = |name: &str| pb::RefreshBundleRequest {
        trust_domain: name.to_owned(),
    };
    client.refresh_bundle(refresh("a.test")).await.unwrap();
    let held = BundleClient::new(server.local().await)
        .get_federated_bundle(GetFederatedBundleRequest {
            trust_domain: "a.test".to_owned(),
            output_mask: None,
        })
        .await;
    assert_eq!(held.unwrap().into_inner().sequence_number, 5);
    endpoint.say("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    let refused = client.refresh_bundle(refresh("a.test")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert_eq!(
        refused.message(),
        "failed to refresh bundle: endpoint answered 404 Not Found, want 200"
    );
    // One of the configuration is refreshed too, and not listed.
    let refused = client.refresh_bundle(refresh("b.test")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused}");
    assert_eq!(list(&mut client, 0).await, [["a.test".to_owned()]]);
    let refused = client.refresh_bundle(refresh("c.test")).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert_eq!(refused.message(), "no relationship with trust domain \"c.test\"");
}
