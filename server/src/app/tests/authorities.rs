//! Manual operations on the authorities.

use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::localauthority::v1 as pb;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use tonic::Code;

use crate::app::testing::TestServer;

#[tokio::test]
async fn an_x509_authority_is_prepared_activated_tainted_and_revoked_in_this_order() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let mut client = LocalAuthorityClient::new(channel.clone());
    let state = client
        .get_x509_authority_state(pb::GetX509AuthorityStateRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = state.active.unwrap();
    assert_eq!(first.authority_id.len(), 40);
    assert!(first.expires_at > server.clock.unix());
    assert_eq!((state.prepared, state.old), (None, None));

    let activate = |id: &str| pb::ActivateX509AuthorityRequest {
        authority_id: id.to_owned(),
    };
    let refused = client.activate_x509_authority(activate("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let refused = client
        .activate_x509_authority(activate("0123"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused.message().contains("unexpected authority ID"),
        "{refused:?}"
    );

    let prepared = client
        .prepare_x509_authority(pb::PrepareX509AuthorityRequest {})
        .await
        .unwrap()
        .into_inner()
        .prepared_authority
        .unwrap();
    let activated = client
        .activate_x509_authority(activate(&prepared.authority_id))
        .await
        .unwrap()
        .into_inner()
        .activated_authority
        .unwrap();
    assert_eq!(activated, prepared);

    let taint = |id: &str| pb::TaintX509AuthorityRequest {
        authority_id: id.to_owned(),
    };
    let refused = client
        .taint_x509_authority(taint(&activated.authority_id))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let tainted = client
        .taint_x509_authority(taint(&first.authority_id))
        .await
        .unwrap()
        .into_inner()
        .tainted_authority
        .unwrap();
    assert_eq!(tainted.expires_at, first.expires_at);
    let mut bundles = BundleClient::new(channel);
    let bundle = bundles
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        bundle
            .x509_authorities
            .iter()
            .filter(|authority| authority.tainted)
            .count(),
        1
    );

    client
        .revoke_x509_authority(pb::RevokeX509AuthorityRequest {
            authority_id: first.authority_id,
        })
        .await
        .unwrap();
    let bundle = bundles
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(bundle.x509_authorities.len(), 1);
}

#[tokio::test]
async fn jwt_taint_and_revoke_answer_with_the_id_alone() {
    let server = TestServer::start().await;
    let mut client = LocalAuthorityClient::new(server.local().await);
    let first = client
        .get_jwt_authority_state(pb::GetJwtAuthorityStateRequest {})
        .await
        .unwrap()
        .into_inner()
        .active
        .unwrap();
    let prepared = client
        .prepare_jwt_authority(pb::PrepareJwtAuthorityRequest {})
        .await
        .unwrap()
        .into_inner()
        .prepared_authority
        .unwrap();
    client
        .activate_jwt_authority(pb::ActivateJwtAuthorityRequest {
            authority_id: prepared.authority_id,
        })
        .await
        .unwrap();
    let tainted = client
        .taint_jwt_authority(pb::TaintJwtAuthorityRequest {
            authority_id: first.authority_id.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .tainted_authority
        .unwrap();
    assert_eq!(
        (tainted.authority_id.as_str(), tainted.expires_at),
        (first.authority_id.as_str(), 0)
    );
    let revoked = client
        .revoke_jwt_authority(pb::RevokeJwtAuthorityRequest {
            authority_id: first.authority_id.clone(),
        })
        .await
        .unwrap()
        .into_inner()
        .revoked_authority
        .unwrap();
    assert_eq!(revoked.authority_id, first.authority_id);
}

#[tokio::test]
async fn upstream_wit_and_disabled_jwt_authorities_are_refused_as_in_spire() {
    let server = TestServer::start_with(|config| {
        config.with_authority(|authority| authority.disable_jwt_svids = true)
    })
    .await;
    let mut client = LocalAuthorityClient::new(server.local().await);
    let refused = client
        .taint_x509_upstream_authority(pb::TaintX509UpstreamAuthorityRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let refused = client
        .revoke_x509_upstream_authority(pb::RevokeX509UpstreamAuthorityRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let refused = client
        .get_wit_authority_state(pb::GetWitAuthorityStateRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = client
        .get_jwt_authority_state(pb::GetJwtAuthorityStateRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
