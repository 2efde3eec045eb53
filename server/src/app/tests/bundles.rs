//! Bundles.

use finial_identity::bundle::MAX_FOREIGN_DOCUMENT_BYTES;
use finial_identity::wire;
use finial_proto::spire::api::server::bundle::v1 as pb;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::server::trustdomain::v1::{
    BatchCreateFederationRelationshipRequest, BatchUpdateFederationRelationshipRequest,
};
use finial_proto::spire::api::types;
use tonic::Code;

use crate::app::testing::{TestServer, entry_below};
use crate::config::WitConfig;
use crate::federation::testing::web;

/// A foreign bundle with a real authority: another server's.
async fn foreign() -> types::Bundle {
    let other = TestServer::start().await;
    let bundle = BundleClient::new(other.local().await)
        .get_bundle(pb::GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    types::Bundle {
        trust_domain: "foreign.org".to_owned(),
        sequence_number: 42,
        refresh_hint: 60,
        ..bundle
    }
}

#[tokio::test]
async fn federated_bundles_are_made_read_changed_and_deleted() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let bundle = foreign().await;
    let create = pb::BatchCreateFederatedBundleRequest {
        bundle: vec![
            bundle.clone(),
            bundle.clone(),
            types::Bundle {
                trust_domain: "example.org".to_owned(),
                ..bundle.clone()
            },
        ],
        output_mask: None,
    };
    let results = client
        .batch_create_federated_bundle(create)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<i32> = results.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, 6, 3]);

    let get = |trust_domain: &str| pb::GetFederatedBundleRequest {
        trust_domain: trust_domain.to_owned(),
        output_mask: None,
    };
    let read = client
        .get_federated_bundle(get("foreign.org"))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(read, bundle);
    for (trust_domain, code) in [
        ("example.org", Code::InvalidArgument),
        ("NOT VALID", Code::InvalidArgument),
        ("unknown.org", Code::NotFound),
    ] {
        let refused = client.get_federated_bundle(get(trust_domain)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{trust_domain}");
    }
    let agent = server.attest().await;
    BundleClient::new(server.as_agent(&agent).await)
        .get_federated_bundle(get("foreign.org"))
        .await
        .unwrap();

    let update = pb::BatchUpdateFederatedBundleRequest {
        bundle: vec![types::Bundle {
            trust_domain: "foreign.org".to_owned(),
            refresh_hint: 120,
            ..types::Bundle::default()
        }],
        input_mask: Some(types::BundleMask {
            refresh_hint: true,
            ..types::BundleMask::default()
        }),
        output_mask: None,
    };
    let mut results = client
        .batch_update_federated_bundle(update)
        .await
        .unwrap()
        .into_inner()
        .results;
    let updated = results.pop().unwrap().bundle.unwrap();
    assert_eq!((updated.refresh_hint, updated.x509_authorities.len()), (120, 1));

    let listed = client
        .list_federated_bundles(pb::ListFederatedBundlesRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.bundles.len(), 1);
    let count = client
        .count_bundles(pb::CountBundlesRequest {})
        .await
        .unwrap()
        .into_inner()
        .count;
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_bundle_in_use_is_deleted_only_with_its_entries_or_their_association() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let set = pb::BatchSetFederatedBundleRequest {
        bundle: vec![foreign().await],
        output_mask: None,
    };
    client.batch_set_federated_bundle(set).await.unwrap();
    server
        .entry(types::Entry {
            federates_with: vec!["foreign.org".to_owned()],
            ..entry_below(server.id("/agent"), server.id("/web"))
        })
        .await;
    let delete = |mode| pb::BatchDeleteFederatedBundleRequest {
        trust_domains: vec!["foreign.org".to_owned()],
        mode,
    };
    let status =
        |response: pb::BatchDeleteFederatedBundleResponse| response.results[0].status.clone().unwrap();
    let refused = status(
        client
            .batch_delete_federated_bundle(delete(0))
            .await
            .unwrap()
            .into_inner(),
    );
    assert_eq!(refused.code, Code::FailedPrecondition as i32);
    assert!(
        refused
            .message
            .contains("cannot delete bundle; federated with 1 registration entries"),
        "{refused:?}"
    );
    let unknown = client.batch_delete_federated_bundle(delete(9)).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    let done = status(
        client
            .batch_delete_federated_bundle(delete(2))
            .await
            .unwrap()
            .into_inner(),
    );
    assert_eq!(done.code, 0);
    let gone = status(
        client
            .batch_delete_federated_bundle(delete(2))
            .await
            .unwrap()
            .into_inner(),
    );
    assert_eq!((gone.code, gone.message.as_str()), (5, "bundle not found"));
}

#[tokio::test]
async fn appended_authorities_join_the_own_bundle_once_and_untainted() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let before = client
        .get_bundle(pb::GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut authorities = foreign().await.x509_authorities;
    authorities[0].tainted = true;
    let append = pb::AppendBundleRequest {
        x509_authorities: authorities,
        ..pb::AppendBundleRequest::default()
    };
    let after = client.append_bundle(append.clone()).await.unwrap().into_inner();
    assert_eq!(after.x509_authorities.len(), 2);
    assert!(after.x509_authorities.iter().all(|authority| !authority.tainted));
    assert_eq!(after.sequence_number, before.sequence_number + 1);
    let again = client.append_bundle(append).await.unwrap().into_inner();
    assert_eq!(again, after);
    let refused = client
        .append_bundle(pb::AppendBundleRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let garbage = pb::AppendBundleRequest {
        x509_authorities: vec![types::X509Certificate {
            asn1: b"garbage".to_vec(),
            tainted: false,
        }],
        ..pb::AppendBundleRequest::default()
    };
    let refused = client.append_bundle(garbage).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn a_published_jwt_authority_is_untainted() {
    let server = TestServer::start().await;
    let mut downstream = entry_below(server.id("/agent"), server.id("/downstream"));
    downstream.downstream = true;
    server.entry(downstream).await;
    let svid = super::svids::minted(&server, "/downstream").await;
    let mut key = foreign().await.jwt_authorities.remove(0);
    key.tainted = true;
    let published = BundleClient::new(server.remote(Some(svid)).await.unwrap())
        .publish_jwt_authority(pb::PublishJwtAuthorityRequest {
            jwt_authority: Some(key.clone()),
        })
        .await
        .unwrap()
        .into_inner()
        .jwt_authorities;
    let found = published.iter().find(|found| found.key_id == key.key_id).unwrap();
    assert!(!found.tainted);
}

/// As large as a document that is fetched may be: what is stored is served to agents and workloads.
#[tokio::test]
async fn a_foreign_bundle_that_is_larger_than_a_fetched_one_may_be_is_refused_however_it_comes() {
    let server = TestServer::start().await;
    let bundle = foreign().await;
    let of = |filler: usize| {
        let mut bundle = bundle.clone();
        bundle.jwt_authorities.truncate(1);
        bundle.jwt_authorities[0].key_id = "k".repeat(filler);
        bundle
    };
    let read = wire::bundle_from_wire(of(1)).unwrap();
    let largest = MAX_FOREIGN_DOCUMENT_BYTES + 1 - read.to_spiffe_json().len();
    let mut client = BundleClient::new(server.local().await);
    let mut relationships = TrustDomainClient::new(server.local().await);
    for (filler, code) in [(largest + 1, Code::InvalidArgument), (largest, Code::Ok)] {
        let bundle = vec![of(filler)];
        let mut statuses = Vec::new();
        let create = pb::BatchCreateFederatedBundleRequest {
            bundle: bundle.clone(),
            ..Default::default()
        };
        let created = client.batch_create_federated_bundle(create).await.unwrap();
        statuses.extend(created.into_inner().results.remove(0).status);
        let set = pb::BatchSetFederatedBundleRequest {
            bundle: bundle.clone(),
            ..Default::default()
        };
        let set = client.batch_set_federated_bundle(set).await.unwrap();
        statuses.extend(set.into_inner().results.remove(0).status);
        let update = pb::BatchUpdateFederatedBundleRequest {
            bundle,
            ..Default::default()
        };
        let updated = client.batch_update_federated_bundle(update).await.unwrap();
        statuses.extend(updated.into_inner().results.remove(0).status);

        let relationship = types::FederationRelationship {
            trust_domain_bundle: Some(of(filler)),
            ..wire::relationship_to_wire(&web("foreign.org", "https://foreign.org/bundle"))
        };
        let create = BatchCreateFederationRelationshipRequest {
            federation_relationships: vec![relationship.clone()],
            ..Default::default()
        };
        let created = relationships.batch_create_federation_relationship(create).await;
        statuses.extend(created.unwrap().into_inner().results.remove(0).status);
        let update = BatchUpdateFederationRelationshipRequest {
            federation_relationships: vec![relationship],
            ..Default::default()
        };
        let updated = relationships.batch_update_federation_relationship(update).await;
        statuses.extend(updated.unwrap().into_inner().results.remove(0).status);

        assert_eq!(statuses.len(), 5);
        for status in statuses {
            assert_eq!(Code::from(status.code), code, "{filler}: {}", status.message);
            assert_eq!(
                status.message.contains("larger than 524288 bytes"),
                code != Code::Ok,
                "{}",
                status.message
            );
        }
    }
}

/// Either half alone is small enough, and so is each request.
#[tokio::test]
async fn halves_of_a_foreign_bundle_that_are_too_large_together_are_not_joined() {
    let server = TestServer::start_with(|config| {
        config.with_authority(|authority| authority.wit = Some(WitConfig::default()))
    })
    .await;
    let mut client = BundleClient::new(server.local().await);
    let bundle = foreign().await;
    let with_jwt = |filler: usize| {
        let mut bundle = bundle.clone();
        bundle.jwt_authorities.truncate(1);
        bundle.jwt_authorities[0].key_id = "j".repeat(filler);
        bundle
    };
    let wit = types::WitKey {
        public_key: bundle.jwt_authorities[0].public_key.clone(),
        key_id: "w".repeat(MAX_FOREIGN_DOCUMENT_BYTES / 2),
        ..types::WitKey::default()
    };
    let updating = client.clone();
    let update = |given: types::Bundle, input_mask: types::BundleMask| {
        let mut client = updating.clone();
        async move {
            let request = pb::BatchUpdateFederatedBundleRequest {
                bundle: vec![given],
                input_mask: Some(input_mask),
                ..Default::default()
            };
            let answer = client.batch_update_federated_bundle(request).await.unwrap();
            let status = answer.into_inner().results.remove(0).status.unwrap();
            (Code::from(status.code), status.message)
        }
    };
    let get = pb::GetFederatedBundleRequest {
        trust_domain: "foreign.org".to_owned(),
        output_mask: None,
    };
    let size = |bundle: types::Bundle| wire::bundle_from_wire(bundle).unwrap().to_spiffe_json().len();
    let create = pb::BatchCreateFederatedBundleRequest {
        bundle: vec![with_jwt(MAX_FOREIGN_DOCUMENT_BYTES / 2)],
        ..Default::default()
    };
    client.batch_create_federated_bundle(create).await.unwrap();
    let before = client
        .get_federated_bundle(get.clone())
        .await
        .unwrap()
        .into_inner();

    let of_wit = types::BundleMask {
        wit_authorities: true,
        ..types::BundleMask::default()
    };
    let given = types::Bundle {
        wit_authorities: vec![wit],
        ..with_jwt(1)
    };
    assert!(size(given.clone()) <= MAX_FOREIGN_DOCUMENT_BYTES);
    let (code, text) = update(given.clone(), of_wit).await;
    assert_eq!(code, Code::InvalidArgument);
    assert!(text.contains("larger than 524288 bytes"), "{text}");
    let after = client
        .get_federated_bundle(get.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(after, before, "nothing of it is stored");

    let of_jwt = types::BundleMask {
        jwt_authorities: true,
        ..types::BundleMask::default()
    };
    assert_eq!(update(with_jwt(1), of_jwt).await.0, Code::Ok);
    assert_eq!(update(given, of_wit).await.0, Code::Ok);
    let full = client.get_federated_bundle(get).await.unwrap().into_inner();
    let room = MAX_FOREIGN_DOCUMENT_BYTES - size(full.clone());
    assert_eq!(update(with_jwt(room + 2), of_jwt).await.0, Code::InvalidArgument);
    assert_eq!(update(with_jwt(room + 1), of_jwt).await.0, Code::Ok);
    // What it says of its own refresh is no half of it.
    let of_hint = types::BundleMask {
        refresh_hint: true,
        ..types::BundleMask::default()
    };
    let hinting = types::Bundle {
        refresh_hint: 3600,
        ..with_jwt(1)
    };
    assert_eq!(update(hinting, of_hint).await.0, Code::Ok);
}
