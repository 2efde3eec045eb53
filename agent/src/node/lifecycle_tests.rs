//! The lifecycle of the agent's SVID against a server with real connections.
#![allow(
    clippy::disallowed_methods,
    reason = "tests write the files that operators and SPIRE would write"
)]

use std::sync::Arc;
use std::time::Duration;

use finial_proto::spire::api::types::permission_denied_details::Reason;

use super::life_tests::Repeatable;
use super::{JoinTokenAttestor, NodeError, NodeState};
use crate::test_agent::{TestAgent, open, open_at};
use crate::test_pki::Authority;
use crate::test_server::TestServer;
use finial_identity::process::{Clock, Stop};

async fn agent_serial(agent: &TestAgent, other_than: Option<&str>) -> String {
    let mut svid = agent.node.svid();
    let wanted = svid.wait_for(|svid| {
        let serial = svid.as_ref().map(|svid| svid.leaf().serial_hex());
        serial.is_some() && serial.as_deref() != other_than
    });
    let found = tokio::time::timeout(Duration::from_secs(20), wanted)
        .await
        .unwrap()
        .unwrap();
    found.as_ref().unwrap().leaf().serial_hex()
}

#[tokio::test]
async fn a_restart_reuses_what_was_saved_without_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start();
    let agent = TestAgent::start(&server, dir.path());
    let serial = agent_serial(&agent, None).await;
    agent.state(NodeState::is_serving).await;
    drop(agent);
    server.stop();
    let node = open(&server, dir.path(), None);
    let handle = node.handle();
    let reused = handle.svid().borrow().clone().unwrap();
    assert_eq!(reused.leaf().serial_hex(), serial);
    assert_eq!(*handle.state().borrow(), NodeState::Serving);
    assert!(!handle.own_bundle().x509_authorities.is_empty());
}

#[tokio::test]
async fn without_its_key_a_saved_svid_is_of_no_use() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let agent = TestAgent::start(&server, dir.path());
    agent.state(NodeState::is_serving).await;
    drop(agent);
    std::fs::remove_file(dir.path().join("keys.json")).unwrap();
    let error = open(&server, dir.path(), None)
        .run(Stop::never())
        .await
        .unwrap_err();
    assert!(matches!(&error, NodeError::Refused(_)));
    assert!(
        error.to_string().contains("no node attestor is configured"),
        "{error}"
    );
}

#[tokio::test]
async fn a_used_join_token_ends_the_first_start_with_the_servers_words() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.state().tokens.clear();
    let mut agent = TestAgent::start(&server, dir.path());
    let ended = tokio::time::timeout(Duration::from_secs(10), &mut agent.run)
        .await
        .unwrap();
    let error = ended.unwrap().unwrap_err().to_string();
    assert!(
        error.contains("join token does not exist or has already been used"),
        "{error}"
    );
}

#[tokio::test]
async fn a_wrong_bundle_is_named_and_tried_again_when_it_was_corrected() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let path = dir.path().join("bundle.pem");
    std::fs::write(&path, Authority::new("example.org").bundle().to_pem()).unwrap();
    let agent = TestAgent::start(&server, dir.path());
    let state = agent
        .state(|state| matches!(state, NodeState::Degraded(_)))
        .await
        .to_string();
    assert!(
        state.contains("not trusted") && state.contains("bundle.pem"),
        "{state}"
    );
    assert!(server.calls("attest").is_empty());
    std::fs::write(&path, server.state().bundle.to_pem()).unwrap();
    agent.state(NodeState::is_serving).await;
}

#[tokio::test]
async fn pods_without_a_socket_degrade_the_agent_for_as_long_as_they_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let agent = TestAgent::start(&server, dir.path());
    agent.state(NodeState::is_serving).await;
    let (told, receiver) = tokio::sync::watch::channel(None);
    let following = tokio::spawn(agent.node.clone().follow_pods(receiver));
    told.send_replace(Some("too many pods".to_owned()));
    let state = agent.state(|state| !state.is_serving()).await;
    assert_eq!(state.to_string(), "degraded: too many pods");
    assert!(agent.node.troubles().contains(&("pods", true)));
    told.send_replace(None);
    agent.state(NodeState::is_serving).await;
    drop(told);
    assert!(following.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_reattestable_agent_attests_again_when_it_is_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.state().reattestable = true;
    let agent = TestAgent::start_with(&server, dir.path(), Some(Arc::new(Repeatable)));
    let first = agent_serial(&agent, None).await;
    agent
        .snapshot("a sync", |snapshot| snapshot.synced_at.is_some())
        .await;
    server.state().denied = Some(Reason::AgentNotAttested);
    server.end_streams();
    agent_serial(&agent, Some(&first)).await;
    server.state().denied = None;
    assert!(server.calls("attest").len() >= 2);
    agent.state(NodeState::is_serving).await;
}

#[tokio::test]
async fn a_server_that_is_not_there_yet_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start();
    server.stop();
    let agent = TestAgent::start(&server, dir.path());
    let state = agent.state(|state| matches!(state, NodeState::Degraded(_))).await;
    assert!(state.to_string().contains("unavailable"), "{state}");
    server.resume();
    agent.state(NodeState::is_serving).await;
}

#[tokio::test]
async fn data_of_another_trust_domain_is_refused_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let storage = super::AgentStorage::open(dir.path()).unwrap();
    let chain = Authority::new("other.org")
        .svid("/spire/agent/x/1")
        .chain()
        .to_vec();
    storage.update(|data| data.svid = chain).unwrap();
    let before = std::fs::read(storage.path()).unwrap();
    let opened = std::panic::catch_unwind(|| open(&server, dir.path(), None));
    assert!(opened.is_err());
    assert_eq!(std::fs::read(storage.path()).unwrap(), before);
}

#[tokio::test]
async fn a_clock_that_was_ahead_for_a_while_costs_no_identity() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start();
    let agent = TestAgent::start(&server, dir.path());
    let serial = agent_serial(&agent, None).await;
    agent.state(NodeState::is_serving).await;
    drop(agent);
    server.stop();
    let key = |slot: &str| {
        let text = std::fs::read(dir.path().join("keys.json")).unwrap();
        let file: serde_json::Value = serde_json::from_slice(&text).unwrap();
        file["keys"][slot].clone()
    };
    let saved_key = key("agent-svid-A");

    let clock = Clock::offset(time::Duration::ZERO);
    let attestor = Arc::new(JoinTokenAttestor::new("token"));
    let node = open_at(&server, dir.path(), Some(attestor), clock.clone());
    let (mut svid, mut states) = (node.handle().svid(), node.handle().state());
    let run = tokio::spawn(node.run(Stop::never()));
    let patience = Duration::from_secs(30);
    clock.shift(time::Duration::hours(2));
    let gone = tokio::time::timeout(patience, svid.wait_for(Option::is_none)).await;
    assert!(gone.unwrap().unwrap().is_none());
    // An attempt was made, with a key that must not be in the place of the saved SVID's.
    let failed = states.wait_for(|state| matches!(state, NodeState::Degraded(_)));
    drop(tokio::time::timeout(patience, failed).await.unwrap().unwrap());
    assert_eq!(key("agent-svid-A"), saved_key);
    clock.shift(time::Duration::hours(-2));
    let back = tokio::time::timeout(patience, svid.wait_for(Option::is_some)).await;
    let back = back.unwrap().unwrap().clone().unwrap();
    assert_eq!(back.leaf().serial_hex(), serial);
    assert_eq!(key("agent-svid-A"), saved_key);
    run.abort();
}

#[tokio::test]
async fn a_token_that_was_used_is_not_shown_again_and_no_further_keys_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let clock = Clock::offset(time::Duration::ZERO);
    let attestor = Arc::new(JoinTokenAttestor::new("token"));
    let node = open_at(&server, dir.path(), Some(attestor), clock.clone());
    let mut states = node.handle().state();
    let run = tokio::spawn(node.run(Stop::never()));
    states.wait_for(NodeState::is_serving).await.unwrap();
    let keys = std::fs::read(dir.path().join("keys.json")).unwrap();
    clock.shift(time::Duration::hours(2));
    let spent = |state: &NodeState| state.to_string().contains("works once");
    tokio::time::timeout(Duration::from_secs(20), states.wait_for(spent))
        .await
        .unwrap()
        .unwrap();
    clock.shift(time::Duration::hours(-2));
    tokio::time::timeout(Duration::from_secs(20), states.wait_for(NodeState::is_serving))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(server.calls("attest").len(), 1);
    assert_eq!(std::fs::read(dir.path().join("keys.json")).unwrap(), keys);
    run.abort();
}

#[tokio::test]
async fn a_ban_ends_an_agent_although_its_disk_fails() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let mut agent = TestAgent::start(&server, dir.path());
    agent.state(NodeState::is_serving).await;
    std::fs::remove_dir_all(dir.path()).unwrap();
    server.state().denied = Some(Reason::AgentBanned);
    server.end_streams();
    agent.state(|state| *state == NodeState::Banned).await;
    let ended = tokio::time::timeout(Duration::from_secs(10), &mut agent.run)
        .await
        .unwrap();
    assert!(matches!(ended.unwrap(), Err(NodeError::Banned)));
    assert!(agent.node.svid().borrow().is_none());
}
