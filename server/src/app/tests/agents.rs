//! Attestation, renewal and management of nodes.

use finial_proto::spire::api::server::agent::v1 as pb;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{GetAuthorizedEntriesRequest, ListEntriesRequest};
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use time::Duration;
use tonic::Code;

use crate::app::testing::{TestAgent, TestServer, agent_of, csr, new_key, reason};

pub(super) async fn renewed(server: &TestServer, agent: &TestAgent) -> TestAgent {
    let key = new_key();
    let request = pb::RenewAgentRequest {
        params: Some(pb::AgentX509svidParams { csr: csr(&key) }),
    };
    let answer = AgentClient::new(server.as_agent(agent).await)
        .renew_agent(request)
        .await
        .unwrap()
        .into_inner();
    agent_of(&answer.svid.unwrap(), key)
}

async fn works(server: &TestServer, agent: &TestAgent) -> Result<(), Reason> {
    EntryClient::new(server.as_agent(agent).await)
        .get_authorized_entries(GetAuthorizedEntriesRequest::default())
        .await
        .map(drop)
        .map_err(|status| reason(&status))
}

#[tokio::test]
async fn a_join_token_attests_one_agent_once() {
    let server = TestServer::start().await;
    let token = server.token().await;
    let agent = server.attest_with(&token).await.unwrap();
    assert_eq!(agent.id.path(), format!("/spire/agent/join_token/{token}"));
    let refused = server
        .attest_with(&token)
        .await
        .map(|agent| agent.id)
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert_eq!(
        refused.message(),
        "failed to attest: join token does not exist or has already been used"
    );
}

#[tokio::test]
async fn an_expired_token_is_used_up_too() {
    let server = TestServer::start().await;
    let token = server.token().await;
    server.clock.shift(Duration::minutes(11));
    let refused = server
        .attest_with(&token)
        .await
        .map(|agent| agent.id)
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::InvalidArgument, "join token expired")
    );
    let refused = server
        .attest_with(&token)
        .await
        .map(|agent| agent.id)
        .unwrap_err();
    assert!(refused.message().contains("does not exist"), "{refused:?}");
}

#[tokio::test]
async fn attestation_refuses_what_is_incomplete_or_unknown() {
    let server = TestServer::start().await;
    let data = |kind: &str, payload: &str| types::AttestationData {
        r#type: kind.to_owned(),
        payload: payload.as_bytes().to_vec(),
    };
    for (data, csr, code) in [
        (data("", "x"), csr(&new_key()), Code::InvalidArgument),
        (data("join_token", ""), csr(&new_key()), Code::InvalidArgument),
        (data("join_token", "x"), Vec::new(), Code::InvalidArgument),
        (
            data("join_token", "x"),
            b"not a CSR".to_vec(),
            Code::InvalidArgument,
        ),
        (data("tpm", "x"), csr(&new_key()), Code::FailedPrecondition),
    ] {
        let refused = server.attest_raw(data.clone(), csr).await.unwrap_err();
        assert_eq!(refused.code(), code, "{data:?}: {refused:?}");
    }
}

#[tokio::test]
async fn a_malformed_csr_does_not_use_up_the_token() {
    let server = TestServer::start().await;
    let token = server.token().await;
    let data = types::AttestationData {
        r#type: "join_token".to_owned(),
        payload: token.clone().into_bytes(),
    };
    server.attest_raw(data, b"not a CSR".to_vec()).await.unwrap_err();
    server.attest_with(&token).await.map(|agent| agent.id).unwrap();
}

#[tokio::test]
async fn a_renewed_svid_becomes_the_current_one_with_its_first_use() {
    let server = TestServer::start().await;
    let first = server.attest().await;
    let second = renewed(&server, &first).await;
    assert_eq!(second.id, first.id);
    assert_eq!(works(&server, &first).await, Ok(()));
    assert_eq!(works(&server, &second).await, Ok(()));
    assert_eq!(works(&server, &first).await, Err(Reason::AgentNotActive));
    assert_eq!(works(&server, &second).await, Ok(()));
}

#[tokio::test]
async fn a_banned_agent_cannot_attest_until_it_is_evicted() {
    let server = TestServer::start().await;
    let mut admin = AgentClient::new(server.local().await);
    let token = |value: &str| pb::CreateJoinTokenRequest {
        ttl: 600,
        token: value.to_owned(),
        agent_id: None,
    };
    admin.create_join_token(token("t1")).await.unwrap();
    let agent = server.attest_with("t1").await.unwrap();
    let id = Some(server.id(agent.id.path()));
    admin
        .ban_agent(pb::BanAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let shown = admin
        .get_agent(pb::GetAgentRequest {
            id: id.clone(),
            output_mask: None,
        })
        .await
        .unwrap()
        .into_inner();
    assert!(shown.banned && shown.x509svid_serial_number.is_empty());

    admin.create_join_token(token("t1")).await.unwrap();
    let refused = server.attest_with("t1").await.map(|agent| agent.id).unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert_eq!(refused.message(), "failed to attest: agent is banned");

    admin
        .delete_agent(pb::DeleteAgentRequest { id: id.clone() })
        .await
        .unwrap();
    admin.create_join_token(token("t1")).await.unwrap();
    server.attest_with("t1").await.map(|agent| agent.id).unwrap();
    admin
        .delete_agent(pb::DeleteAgentRequest { id: id.clone() })
        .await
        .unwrap();
    let refused = admin
        .delete_agent(pb::DeleteAgentRequest { id })
        .await
        .unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::NotFound, "agent not found")
    );
}

#[tokio::test]
async fn a_token_with_an_agent_id_makes_an_alias_that_goes_with_the_agent() {
    let server = TestServer::start().await;
    let mut admin = AgentClient::new(server.local().await);
    let request = |ttl, agent_id| pb::CreateJoinTokenRequest {
        ttl,
        token: "t2".to_owned(),
        agent_id,
    };
    let alias = Some(server.id("/host/a"));
    for (ttl, id, code) in [
        (0, alias.clone(), Code::InvalidArgument),
        (60, Some(server.id("/spire/server")), Code::InvalidArgument),
        (60, Some(server.id("")), Code::InvalidArgument),
    ] {
        let refused = admin.create_join_token(request(ttl, id)).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused:?}");
    }
    admin.create_join_token(request(60, alias.clone())).await.unwrap();
    let refused = admin.create_join_token(request(60, alias)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);

    let agent = server.attest_with("t2").await.unwrap();
    let mut entries = EntryClient::new(server.local().await);
    let listed = entries
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .entries;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].spiffe_id.as_ref().unwrap().path, "/host/a");
    assert_eq!(listed[0].parent_id.as_ref().unwrap().path, agent.id.path());
    assert_eq!(listed[0].selectors[0].r#type, "spiffe_id");
    assert_eq!(listed[0].selectors[0].value, agent.id.as_str());

    let id = Some(server.id(agent.id.path()));
    admin.delete_agent(pb::DeleteAgentRequest { id }).await.unwrap();
    let listed = entries
        .list_entries(ListEntriesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .entries;
    assert!(listed.is_empty(), "{listed:?}");
}

#[tokio::test]
async fn agents_are_listed_by_filter_page_and_mask() {
    let server = TestServer::start().await;
    let first = server.attest().await;
    let second = server.attest().await;
    let mut admin = AgentClient::new(server.local().await);
    let id = Some(server.id(first.id.path()));
    admin.ban_agent(pb::BanAgentRequest { id }).await.unwrap();

    let list = |filter, page_size, page_token: &str| pb::ListAgentsRequest {
        filter: Some(filter),
        output_mask: Some(types::AgentMask::default()),
        page_size,
        page_token: page_token.to_owned(),
    };
    let banned = pb::list_agents_request::Filter {
        by_banned: Some(true),
        ..Default::default()
    };
    let found = admin.list_agents(list(banned, 0, "")).await.unwrap().into_inner();
    assert_eq!(found.agents.len(), 1);
    assert_eq!(found.agents[0].id.as_ref().unwrap().path, first.id.path());
    assert!(!found.agents[0].banned && found.agents[0].attestation_type.is_empty());
    assert_eq!(found.next_page_token, "");

    let all = pb::list_agents_request::Filter::default;
    let page = admin.list_agents(list(all(), 1, "")).await.unwrap().into_inner();
    let next = admin
        .list_agents(list(all(), 1, &page.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(next.agents[0].id.as_ref().unwrap().path, second.id.path());
    let last = admin
        .list_agents(list(all(), 1, &next.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert!(last.agents.is_empty() && last.next_page_token.is_empty());
    let refused = admin.list_agents(list(all(), 1, "x")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert!(refused.message().contains("could not parse token"), "{refused:?}");

    let count = |by_expires_before: &str| pb::CountAgentsRequest {
        filter: Some(pb::count_agents_request::Filter {
            by_expires_before: by_expires_before.to_owned(),
            ..Default::default()
        }),
    };
    for (before, expected) in [("", 2), ("2001-01-01 00:00:00 +0000 +00", 0), ("nonsense", 2)] {
        let counted = admin
            .count_agents(count(before))
            .await
            .unwrap()
            .into_inner()
            .count;
        assert_eq!(counted, expected, "{before}");
    }
}

#[tokio::test]
async fn an_agent_reports_its_version() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut client = AgentClient::new(server.as_agent(&agent).await);
    let status = |version: String| pb::PostStatusRequest {
        current_bundle_serial: 0,
        agent_version: version,
    };
    client.post_status(status("1.2.3".to_owned())).await.unwrap();
    client.post_status(status(String::new())).await.unwrap();
    let refused = client.post_status(status("x".repeat(256))).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let shown = AgentClient::new(server.local().await)
        .get_agent(pb::GetAgentRequest {
            id: Some(server.id(agent.id.path())),
            output_mask: None,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(shown.agent_version, "1.2.3");
    assert_eq!(shown.attestation_type, "join_token");
    assert_eq!(shown.x509svid_serial_number, agent.svid.leaf().serial_decimal());
}

#[tokio::test]
async fn an_id_that_is_no_agents_is_refused() {
    let server = TestServer::start().await;
    let mut admin = AgentClient::new(server.local().await);
    for id in [None, Some(server.id("/web")), Some(server.id(""))] {
        let refused = admin
            .get_agent(pb::GetAgentRequest {
                id: id.clone(),
                output_mask: None,
            })
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{id:?}");
    }
}
