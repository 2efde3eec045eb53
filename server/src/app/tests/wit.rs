//! WIT-SVIDs over the API, switched on and off.

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::{wire, wit};
use finial_proto::spire::api::server::bundle::v1 as bundles;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::localauthority::v1 as authorities;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::server::svid::v1 as pb;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::types;
use time::OffsetDateTime;
use tonic::Code;

use crate::app::testing::{TestServer, entry_below};
use crate::config::WitConfig;

async fn start() -> TestServer {
    TestServer::start_with(|config| {
        config.with_authority(|authority| {
            authority.wit = Some(WitConfig {
                issuer: Some("issuer".to_owned()),
                ..WitConfig::default()
            });
        })
    })
    .await
}

async fn bundle(server: &TestServer, output_mask: Option<types::BundleMask>) -> types::Bundle {
    BundleClient::new(server.local().await)
        .get_bundle(bundles::GetBundleRequest { output_mask })
        .await
        .unwrap()
        .into_inner()
}

fn wit_key(key_id: &str) -> types::WitKey {
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    types::WitKey {
        public_key: key.public_key().spki_der().to_vec(),
        key_id: key_id.to_owned(),
        expires_at: 0,
        tainted: true,
    }
}

fn appended(key_id: &str) -> bundles::AppendBundleRequest {
    bundles::AppendBundleRequest {
        wit_authorities: vec![wit_key(key_id)],
        ..bundles::AppendBundleRequest::default()
    }
}

/// Covers WIT-04, WIT-06, WIT-10, WIT-11, WIT-22.
#[tokio::test]
async fn wit_svids_are_minted_and_signed_for_agents_where_they_are_switched_on() {
    let server = start().await;
    let key = PrivateKey::generate(KeyType::EcP256).unwrap();
    let mint = |change: &dyn Fn(&mut pb::MintWitsvidRequest)| {
        let mut request = pb::MintWitsvidRequest {
            id: Some(types::Spiffeid {
                trust_domain: "example.org".to_owned(),
                path: "/a".to_owned(),
            }),
            public_key: key.public_key().spki_der().to_vec(),
            ttl: 60,
            signing_algorithm: "ES256".to_owned(),
        };
        change(&mut request);
        request
    };
    let mut client = SvidClient::new(server.local().await);
    let minted = client.mint_witsvid(mint(&|_| {})).await.unwrap().into_inner();
    let minted = minted.svid.unwrap();
    assert_eq!(minted.expires_at - minted.issued_at, 60);
    let read = wit::parse_unverified(&minted.token).unwrap();
    assert_eq!(&read.confirmation.public_key, key.public_key());
    assert_eq!(read.claims["sub"], "spiffe://example.org/a");
    assert_eq!(read.claims["iss"], "issuer");
    assert_eq!(read.claims.get("aud"), None);
    for refused in [
        mint(&|request| request.signing_algorithm = "RS256".to_owned()),
        mint(&|request| request.public_key.clear()),
        mint(&|request| request.ttl = -1),
        mint(&|request| request.id = None),
    ] {
        let refused = client.mint_witsvid(refused).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }

    let agent = server.attest().await;
    let entry = server
        .entry(entry_below(server.id(agent.id.path()), server.id("/web")))
        .await;
    let params = |entry_id: &str| pb::NewWitsvidParams {
        entry_id: entry_id.to_owned(),
        public_key: key.public_key().spki_der().to_vec(),
        signing_algorithm: "ES256".to_owned(),
    };
    let results = SvidClient::new(server.as_agent(&agent).await)
        .batch_new_witsvid(pb::BatchNewWitsvidRequest {
            params: vec![params(&entry.id), params("unknown"), params("")],
        })
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<i32> = results.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    let wanted = [Code::Ok, Code::NotFound, Code::InvalidArgument].map(|code| code as i32);
    assert_eq!(codes, wanted);
    let token = &results[0].svid.as_ref().unwrap().token;
    let signed = wit::parse_unverified(token).unwrap();
    assert_eq!(signed.claims["sub"], "spiffe://example.org/web");
    let bundle = wire::bundle_from_wire(bundle(&server, None).await).unwrap();
    let keys = |_: &TrustDomain| Some(bundle.wit_authorities.clone());
    let now = OffsetDateTime::from_unix_timestamp(minted.issued_at).unwrap();
    wit::validate(token, &keys, now, wit::DEFAULT_SKEW).unwrap();
}

#[tokio::test]
async fn wit_authorities_are_shown_masked_and_appended_where_they_are_switched_on() {
    let server = start().await;
    let own = bundle(&server, None).await;
    assert_eq!(own.wit_authorities.len(), 1);
    let mask = types::BundleMask {
        wit_authorities: true,
        ..types::BundleMask::default()
    };
    let masked = bundle(&server, Some(mask)).await;
    assert_eq!(masked.wit_authorities, own.wit_authorities);
    assert!(masked.x509_authorities.is_empty() && masked.jwt_authorities.is_empty());
    let mut client = BundleClient::new(server.local().await);
    let answer = client.append_bundle(appended("w")).await.unwrap().into_inner();
    let ids: Vec<_> = answer
        .wit_authorities
        .iter()
        .map(|key| key.key_id.as_str())
        .collect();
    assert_eq!(ids, [own.wit_authorities[0].key_id.as_str(), "w"]);
    assert!(
        !answer.wit_authorities[1].tainted,
        "only the server's own operations taint"
    );
    // A key id is taken once in the whole bundle.
    let taken = own.jwt_authorities[0].key_id.clone();
    let answer = client.append_bundle(appended(&taken)).await.unwrap().into_inner();
    assert_eq!(answer.wit_authorities.len(), 2);

    let mut foreign = bundle(&server, None).await;
    foreign.trust_domain = "foreign.org".to_owned();
    let request = bundles::BatchSetFederatedBundleRequest {
        bundle: vec![foreign],
        output_mask: None,
    };
    let set = client
        .batch_set_federated_bundle(request)
        .await
        .unwrap()
        .into_inner();
    let set = set.results[0].bundle.as_ref().unwrap();
    assert_eq!(set.wit_authorities.len(), 2);

    // Also when it comes for a key of the other kind alone: nobody reads both.
    let update = bundles::BatchUpdateFederatedBundleRequest {
        bundle: vec![types::Bundle {
            trust_domain: "foreign.org".to_owned(),
            jwt_authorities: vec![types::JwtKey {
                key_id: "w".to_owned(),
                ..own.jwt_authorities[0].clone()
            }],
            ..types::Bundle::default()
        }],
        input_mask: Some(types::BundleMask {
            jwt_authorities: true,
            ..types::BundleMask::default()
        }),
        output_mask: None,
    };
    let updated = client
        .batch_update_federated_bundle(update)
        .await
        .unwrap()
        .into_inner();
    let updated = updated.results[0].bundle.as_ref().unwrap();
    assert_eq!(updated.jwt_authorities[0].key_id, "w");
    assert!(updated.wit_authorities.iter().all(|key| key.key_id != "w"));
}

#[tokio::test]
async fn wit_authorities_are_prepared_activated_tainted_and_revoked() {
    let server = start().await;
    let mut client = LocalAuthorityClient::new(server.local().await);
    let states = |answer: tonic::Response<authorities::GetWitAuthorityStateResponse>| answer.into_inner();
    let request = authorities::GetWitAuthorityStateRequest {};
    let first = states(client.get_wit_authority_state(request).await.unwrap());
    let first = first.active.unwrap().authority_id;
    let prepared = client
        .prepare_wit_authority(authorities::PrepareWitAuthorityRequest {})
        .await
        .unwrap()
        .into_inner()
        .prepared_authority
        .unwrap();
    assert!(prepared.expires_at > 0);
    let authority_id = prepared.authority_id.clone();
    client
        .activate_wit_authority(authorities::ActivateWitAuthorityRequest { authority_id })
        .await
        .unwrap();
    let request = authorities::GetWitAuthorityStateRequest {};
    let now = states(client.get_wit_authority_state(request).await.unwrap());
    assert_eq!(now.active.unwrap().authority_id, prepared.authority_id);
    assert_eq!(now.old.unwrap().authority_id, first);
    let tainted = client
        .taint_wit_authority(authorities::TaintWitAuthorityRequest {
            authority_id: first.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .tainted_authority
        .unwrap();
    assert_eq!((tainted.authority_id, tainted.expires_at), (first.clone(), 0));
    let keys = bundle(&server, None).await.wit_authorities;
    assert!(keys.iter().any(|key| key.key_id == first && key.tainted));
    client
        .revoke_wit_authority(authorities::RevokeWitAuthorityRequest {
            authority_id: first.clone(),
        })
        .await
        .unwrap();
    let keys = bundle(&server, None).await.wit_authorities;
    assert!(keys.iter().all(|key| key.key_id != first));
}

#[tokio::test]
async fn switched_off_no_wit_authority_comes_in_or_goes_out() {
    let server = TestServer::start().await;
    let mut client = BundleClient::new(server.local().await);
    let refused = client.append_bundle(appended("w")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut foreign = bundle(&server, None).await;
    assert!(foreign.wit_authorities.is_empty());
    foreign.trust_domain = "foreign.org".to_owned();
    foreign.wit_authorities.push(wit_key("w"));
    let request = bundles::BatchSetFederatedBundleRequest {
        bundle: vec![foreign],
        output_mask: None,
    };
    let set = client
        .batch_set_federated_bundle(request)
        .await
        .unwrap()
        .into_inner();
    assert!(set.results[0].bundle.as_ref().unwrap().wit_authorities.is_empty());
}
