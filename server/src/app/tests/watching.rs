//! The push to agents.

use finial_identity::wire::{DigestSum, entry_digest};
use finial_proto::finial::server::sync::v1 as pb;
use finial_proto::finial::server::sync::v1::sync_client::SyncClient;
use finial_proto::finial::server::sync::v1::watch_response::Event;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;
use finial_proto::spire::api::server::agent::v1::{BanAgentRequest, DeleteAgentRequest};
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::bundle::v1::{AppendBundleRequest, GetBundleRequest};
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{
    BatchCreateEntryRequest, BatchDeleteEntryRequest, CountEntriesRequest,
};
use finial_proto::spire::api::server::localauthority::v1 as authority_pb;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use tonic::{Code, Streaming};

use crate::app::testing::{TestAgent, TestServer, entry_below, reason};

async fn watch(
    server: &TestServer,
    agent: &TestAgent,
    request: pb::WatchRequest,
) -> Streaming<pb::WatchResponse> {
    SyncClient::new(server.as_agent(agent).await)
        .watch(request)
        .await
        .unwrap()
        .into_inner()
}

async fn next(stream: &mut Streaming<pb::WatchResponse>) -> Event {
    stream.message().await.unwrap().unwrap().event.unwrap()
}

#[tokio::test]
async fn begins_with_bundles_and_a_snapshot_and_goes_on_with_each_change() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let first = server
        .entry(entry_below(server.id(agent.id.path()), server.id("/a")))
        .await;
    EntryClient::new(server.local().await)
        .count_entries(CountEntriesRequest::default())
        .await
        .unwrap();
    let mut stream = watch(&server, &agent, pb::WatchRequest::default()).await;
    let Event::Bundles(bundles) = next(&mut stream).await else {
        panic!("bundles come first");
    };
    assert!(bundles.complete && bundles.own.is_some());
    let Event::Snapshot(snapshot) = next(&mut stream).await else {
        panic!("a snapshot follows");
    };
    assert_eq!(snapshot.entries.len(), 1);
    assert_eq!(snapshot.entries[0].id, first.id);
    assert!(snapshot.entries[0].parent_id.is_none() && !snapshot.more);
    let sum = DigestSum::of(snapshot.entries.iter().map(entry_digest));
    assert_eq!(snapshot.digest, sum.to_bytes());

    let second = server
        .entry(entry_below(server.id(agent.id.path()), server.id("/b")))
        .await;
    let Event::Delta(delta) = next(&mut stream).await else {
        panic!("a change is a delta");
    };
    assert_eq!(delta.from, snapshot.cursor);
    assert_eq!(delta.upserts.len(), 1);
    assert_eq!(delta.upserts[0].id, second.id);

    EntryClient::new(server.local().await)
        .batch_delete_entry(BatchDeleteEntryRequest {
            ids: vec![first.id.clone()],
        })
        .await
        .unwrap();
    let Event::Delta(removal) = next(&mut stream).await else {
        panic!("a removal is a delta");
    };
    assert_eq!((removal.from, removal.removals), (delta.to, vec![first.id]));
    let left = DigestSum::of(delta.upserts.iter().map(entry_digest));
    assert_eq!(removal.digest, left.to_bytes());

    // Somebody who holds the set hears only that it is right.
    let resume = pb::WatchRequest {
        cursor: removal.to.clone(),
        digest: removal.digest.clone(),
        agent_version: "9".to_owned(),
    };
    let mut again = watch(&server, &agent, resume).await;
    assert!(matches!(next(&mut again).await, Event::Bundles(_)));
    let Event::Heartbeat(heartbeat) = next(&mut again).await else {
        panic!("a set that is right needs no snapshot");
    };
    assert_eq!(heartbeat.digest, removal.digest);
    assert!(heartbeat.interval_seconds > 0);
}

#[tokio::test]
async fn a_snapshot_above_a_mebibyte_comes_in_chunks() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let parent = server.id(agent.id.path());
    let entries: Vec<_> = (0..1500)
        .map(|n| types::Entry {
            hint: "h".repeat(1000),
            ..entry_below(parent.clone(), server.id(&format!("/w{n}")))
        })
        .collect();
    let mut admin = EntryClient::new(server.local().await);
    admin
        .batch_create_entry(BatchCreateEntryRequest {
            entries,
            output_mask: Some(Default::default()),
        })
        .await
        .unwrap();
    admin.count_entries(CountEntriesRequest::default()).await.unwrap();
    let mut stream = watch(&server, &agent, pb::WatchRequest::default()).await;
    assert!(matches!(next(&mut stream).await, Event::Bundles(_)));
    let (mut count, mut chunks) = (0, 0);
    loop {
        let Event::Snapshot(chunk) = next(&mut stream).await else {
            panic!("chunks follow each other");
        };
        assert!(prost::Message::encoded_len(&chunk) <= 1024 * 1024);
        count += chunk.entries.len();
        chunks += 1;
        assert_eq!(chunk.more, chunk.cursor.is_empty());
        if !chunk.more {
            break;
        }
    }
    assert_eq!((count, chunks), (1500, 2));
}

#[tokio::test]
async fn a_ban_and_an_eviction_end_the_stream_with_their_reason() {
    let server = TestServer::start().await;
    let mut admin = AgentClient::new(server.local().await);
    for (ban, expected) in [(true, Reason::AgentBanned), (false, Reason::AgentNotAttested)] {
        let agent = server.attest().await;
        let mut stream = watch(&server, &agent, pb::WatchRequest::default()).await;
        assert!(matches!(next(&mut stream).await, Event::Bundles(_)));
        assert!(matches!(next(&mut stream).await, Event::Snapshot(_)));
        let id = Some(server.id(agent.id.path()));
        if ban {
            admin.ban_agent(BanAgentRequest { id }).await.unwrap();
        } else {
            admin.delete_agent(DeleteAgentRequest { id }).await.unwrap();
        }
        let ended = stream.message().await.unwrap_err();
        assert_eq!(ended.code(), Code::PermissionDenied);
        assert_eq!(reason(&ended), expected);
    }
}

#[tokio::test]
async fn the_first_use_of_a_renewed_svid_ends_the_streams_of_the_old_one() {
    let server = TestServer::start().await;
    let first = server.attest().await;
    let mut stream = watch(&server, &first, pb::WatchRequest::default()).await;
    assert!(matches!(next(&mut stream).await, Event::Bundles(_)));
    assert!(matches!(next(&mut stream).await, Event::Snapshot(_)));
    let second = super::agents::renewed(&server, &first).await;
    let mut with_new = watch(&server, &second, pb::WatchRequest::default()).await;
    assert!(matches!(next(&mut with_new).await, Event::Bundles(_)));
    let ended = stream.message().await.unwrap_err();
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert_eq!(reason(&ended), Reason::AgentNotActive);
    assert!(matches!(next(&mut with_new).await, Event::Snapshot(_)));
}

#[tokio::test]
async fn a_watch_ends_when_its_svid_expires() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut stream = watch(&server, &agent, pb::WatchRequest::default()).await;
    assert!(matches!(next(&mut stream).await, Event::Bundles(_)));
    assert!(matches!(next(&mut stream).await, Event::Snapshot(_)));
    let left = agent.svid.leaf().not_after() - server.clock.now();
    assert!(server.clock.shift(left - time::Duration::milliseconds(500)));
    // Any change of the bundles makes the server look at the clock, which it also does by itself.
    append_authority(&server).await;
    let ended = loop {
        match stream.message().await {
            Ok(Some(_bundles)) => {}
            Ok(None) => panic!("ends with a reason"),
            Err(ended) => break ended,
        }
    };
    assert_eq!(ended.code(), Code::PermissionDenied);
    assert_eq!(reason(&ended), Reason::AgentExpired);
}

#[tokio::test]
async fn a_watch_ends_when_the_authority_of_its_svid_is_revoked() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut stream = watch(&server, &agent, pb::WatchRequest::default()).await;
    assert!(matches!(next(&mut stream).await, Event::Bundles(_)));
    assert!(matches!(next(&mut stream).await, Event::Snapshot(_)));
    let mut operator = LocalAuthorityClient::new(server.local().await);
    let state = operator
        .get_x509_authority_state(authority_pb::GetX509AuthorityStateRequest {})
        .await
        .unwrap();
    let old = state.into_inner().active.unwrap().authority_id;
    let prepared = operator
        .prepare_x509_authority(authority_pb::PrepareX509AuthorityRequest {})
        .await
        .unwrap();
    let activate = authority_pb::ActivateX509AuthorityRequest {
        authority_id: prepared.into_inner().prepared_authority.unwrap().authority_id,
    };
    operator.activate_x509_authority(activate).await.unwrap();
    let taint = authority_pb::TaintX509AuthorityRequest {
        authority_id: old.clone(),
    };
    operator.taint_x509_authority(taint).await.unwrap();
    // Tainted is still trusted: the agent hears of it.
    assert!(matches!(next(&mut stream).await, Event::Bundles(_)));
    let revoke = authority_pb::RevokeX509AuthorityRequest { authority_id: old };
    operator.revoke_x509_authority(revoke).await.unwrap();
    let ended = loop {
        match stream.message().await {
            Ok(Some(_bundles)) => {}
            Ok(None) => panic!("ends with a reason"),
            Err(ended) => break ended,
        }
    };
    assert_eq!(reason(&ended), Reason::AgentExpired);
}

async fn append_authority(server: &TestServer) {
    let foreign = TestServer::start().await;
    let bundle = BundleClient::new(foreign.local().await)
        .get_bundle(GetBundleRequest::default())
        .await
        .unwrap()
        .into_inner();
    BundleClient::new(server.local().await)
        .append_bundle(AppendBundleRequest {
            x509_authorities: bundle.x509_authorities,
            ..AppendBundleRequest::default()
        })
        .await
        .unwrap();
}

#[tokio::test]
async fn only_agents_may_watch() {
    let server = TestServer::start().await;
    for channel in [server.anonymous().await, server.local().await] {
        let refused = SyncClient::new(channel)
            .watch(pb::WatchRequest::default())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied);
    }
}
