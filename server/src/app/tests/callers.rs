//! Who may call.

use finial_proto::grpc::health::v1::health_client::HealthClient;
use finial_proto::grpc::health::v1::{HealthCheckRequest, HealthListRequest};
use finial_proto::spire::api::server::agent::v1 as agent_pb;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::bundle::v1::GetBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::debug::v1::GetInfoRequest;
use finial_proto::spire::api::server::debug::v1::debug_client::DebugClient;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{GetAuthorizedEntriesRequest, ListEntriesRequest};
use finial_proto::spire::api::server::logger::v1 as logger_pb;
use finial_proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::server::svid::v1::NewDownstreamX509caRequest;
use finial_proto::spire::api::server::svid::v1::svid_client::SvidClient;
use finial_proto::spire::api::server::trustdomain::v1::ListFederationRelationshipsRequest;
use finial_proto::spire::api::server::trustdomain::v1::trust_domain_client::TrustDomainClient;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use time::Duration;
use tonic::Code;

use crate::app::testing::{TestServer, csr, entry_below, new_key, reason};
use crate::config::HealthChecks;

#[tokio::test]
async fn anybody_gets_the_bundle_and_nobody_without_an_svid_lists_entries() {
    let server = TestServer::start().await;
    let channel = server.anonymous().await;
    let bundle = BundleClient::new(channel.clone())
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(bundle.trust_domain, "example.org");
    assert_eq!(bundle.x509_authorities.len(), 1);
    assert_eq!(bundle.jwt_authorities.len(), 1);
    let refused = EntryClient::new(channel)
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(
        refused.message(),
        "authorization denied for method /spire.api.server.entry.v1.Entry/ListEntries"
    );
}

#[tokio::test]
async fn a_local_caller_manages_but_is_no_agent() {
    let server = TestServer::start().await;
    let channel = server.local().await;
    let mut entries = EntryClient::new(channel.clone());
    entries.list_entries(ListEntriesRequest::default()).await.unwrap();
    let refused = entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    TrustDomainClient::new(channel)
        .list_federation_relationships(ListFederationRelationshipsRequest::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn an_agent_gets_its_entries_and_manages_nothing() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let channel = server.as_agent(&agent).await;
    let mut entries = EntryClient::new(channel);
    entries
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap();
    let refused = entries
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.details().is_empty());
}

#[tokio::test]
async fn an_unknown_banned_or_expired_agent_is_told_its_reason() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut as_agent = EntryClient::new(server.as_agent(&agent).await);
    let mut admin = AgentClient::new(server.local().await);
    let id = Some(server.id(agent.id.path()));

    admin
        .ban_agent(agent_pb::BanAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let refused = as_agent
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::AgentBanned);
    assert_eq!(
        refused.message(),
        "authorization denied for method /spire.api.server.entry.v1.Entry/GetAuthorizedEntries"
    );

    admin
        .delete_agent(agent_pb::DeleteAgentRequest { id })
        .await
        .unwrap();
    let refused = as_agent
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::AgentNotAttested);

    assert!(server.clock.shift(Duration::hours(2)));
    let refused = as_agent
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .unwrap_err();
    assert_eq!(reason(&refused), Reason::AgentExpired);
}

#[tokio::test]
async fn an_entry_makes_its_holder_admin_or_downstream() {
    let server = TestServer::start().await;
    let admin_id = server.id("/admin");
    let downstream_id = server.id("/downstream");
    let parent = server.id("/spire/agent/x/y");
    server
        .entry(types::Entry {
            admin: true,
            ..entry_below(parent.clone(), admin_id.clone())
        })
        .await;
    server
        .entry(types::Entry {
            downstream: true,
            ..entry_below(parent, downstream_id.clone())
        })
        .await;
    let admin = super::svids::minted(&server, "/admin").await;
    let downstream = super::svids::minted(&server, "/downstream").await;
    let nobody = super::svids::minted(&server, "/nobody").await;

    let list = |channel| async {
        EntryClient::new(channel)
            .list_entries(ListEntriesRequest::default())
            .await
            .map(|answer| answer.into_inner().entries.len())
            .map_err(|status| status.code())
    };
    assert_eq!(
        list(server.remote(Some(admin.clone())).await.unwrap()).await,
        Ok(2)
    );
    assert_eq!(
        list(server.remote(Some(downstream.clone())).await.unwrap()).await,
        Err(Code::PermissionDenied)
    );
    assert_eq!(
        list(server.remote(Some(nobody)).await.unwrap()).await,
        Err(Code::PermissionDenied)
    );

    let request = NewDownstreamX509caRequest {
        csr: csr(&new_key()),
        preferred_ttl: 0,
    };
    let answer = SvidClient::new(server.remote(Some(downstream)).await.unwrap())
        .new_downstream_x509ca(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.x509_authorities.len(), 1);
    assert!(!answer.ca_cert_chain.is_empty());
    let refused = SvidClient::new(server.remote(Some(admin)).await.unwrap())
        .new_downstream_x509ca(request)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn the_log_level_and_debug_are_for_the_machine_itself() {
    let server = TestServer::start().await;
    let local = server.local().await;
    let mut logger = LoggerClient::new(local.clone());
    let set = logger
        .set_log_level(logger_pb::SetLogLevelRequest {
            new_level: types::LogLevel::Debug.into(),
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        (set.current_level(), set.launch_level()),
        (types::LogLevel::Debug, types::LogLevel::Info)
    );
    for wrong in [0, 99] {
        let refused = logger
            .set_log_level(logger_pb::SetLogLevelRequest { new_level: wrong })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    let reset = logger
        .reset_log_level(logger_pb::ResetLogLevelRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reset.current_level(), types::LogLevel::Info);

    let info = DebugClient::new(local)
        .get_info(GetInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.federated_bundles_count, 1);
    assert_eq!(info.svid_chain.len(), 2, "{:?}", info.svid_chain);
    assert_eq!(info.svid_chain[0].id.as_ref().unwrap().path, "/spire/server");
    assert_eq!(info.svid_chain[1].id.as_ref().unwrap().path, "");

    let refused = DebugClient::new(server.anonymous().await)
        .get_info(GetInfoRequest {})
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn health_is_told_on_the_private_socket_as_a_whole() {
    let server = TestServer::start().await;
    let mut health = HealthClient::new(server.local().await);
    let answer = health
        .check(HealthCheckRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(answer.status, 1);
    let named = HealthCheckRequest {
        service: "spire".to_owned(),
    };
    let refused = health.check(named).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(refused.message(), "per-service health is not supported");
    let refused = health.list(HealthListRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = HealthClient::new(server.anonymous().await)
        .check(HealthCheckRequest::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn http_health_tells_of_each_subsystem() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = TestServer::start_with(|config| {
        config.with_health_checks(HealthChecks {
            address: "127.0.0.1".to_owned(),
            port: 0,
            live_path: "/live".to_owned(),
            ready_path: "/ready".to_owned(),
        })
    })
    .await;
    for (path, status) in [("/live", "200"), ("/ready", "200"), ("/other", "404")] {
        let mut stream = tokio::net::TcpStream::connect(server.health.unwrap())
            .await
            .unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert_eq!(answer.contains(r#""server.ca":{}"#), status == "200", "{answer}");
    }
    assert!(server.clock.shift(Duration::days(2)));
    let mut stream = tokio::net::TcpStream::connect(server.health.unwrap())
        .await
        .unwrap();
    stream
        .write_all(b"GET /live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    assert!(answer.contains("server SVID has expired"), "{answer}");
}

#[tokio::test]
async fn an_svid_of_another_trust_domain_fails_the_handshake() {
    let server = TestServer::start().await;
    let other = TestServer::start().await;
    let stranger = other.attest().await;
    // Both servers have the same name and different authorities.
    let channel = server.remote(Some(stranger.svid)).await;
    let failed = match channel {
        Err(_) => true,
        Ok(channel) => BundleClient::new(channel)
            .get_bundle(GetBundleRequest::default())
            .await
            .is_err(),
    };
    assert!(failed);
}

#[tokio::test]
async fn a_caller_without_an_svid_can_say_little() {
    let server = TestServer::start().await;
    let data = |size| types::AttestationData {
        r#type: "join_token".to_owned(),
        payload: vec![b'x'; size],
    };
    let attest = async |size| {
        let refused = server.attest_raw(data(size), csr(&new_key())).await;
        refused.unwrap_err().code()
    };
    assert_ne!(attest(200 * 1024).await, Code::ResourceExhausted);
    assert_eq!(attest(300 * 1024).await, Code::ResourceExhausted);
}
