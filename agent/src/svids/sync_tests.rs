//! Syncing against a server with real connections, keys and signatures.

use std::sync::Arc;
use std::time::Duration;

use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;

use super::Snapshot;
use crate::node::NodeState;
use crate::test_agent::{TestAgent, is_issued, uid};
use crate::test_pki::Authority;
use crate::test_server::{TestServer, entry};

fn serial(agent: &TestAgent, id: &str) -> Option<String> {
    let snapshot = agent.cache.snapshot();
    let svid = snapshot.entry(id)?.svid.clone()?;
    Some(svid.svid.leaf().serial_hex())
}

fn svids(snapshot: &Snapshot) -> usize {
    let entries = snapshot.entries.iter();
    entries.filter(|entry| entry.svid.is_some()).count()
}

#[tokio::test]
async fn what_is_pushed_is_issued_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    for n in 0..3 {
        server.put(entry(&format!("e{n}"), n));
    }
    let agent = TestAgent::start(&server, dir.path());
    let first = agent.issued("e2").await;
    let svid = first.svid.as_ref().unwrap();
    assert_eq!(svid.svid.spiffe_id().path(), "/e2");
    assert_eq!(svid.chain_der, svid.svid.leaf().der().as_ref());
    assert_eq!(svid.key_pkcs8, svid.svid.pkcs8_der());
    agent.snapshot("all", |snapshot| svids(snapshot) == 3).await;

    let pushed = tokio::time::Instant::now();
    server.put(entry("late", 9));
    agent.issued("late").await;
    assert!(
        pushed.elapsed() < Duration::from_secs(1),
        "{:?}",
        pushed.elapsed()
    );
    server.change(vec![], vec!["e1".to_owned()]);
    agent
        .snapshot("e1 gone", |snapshot| snapshot.entry("e1").is_none())
        .await;
    assert!(Arc::ptr_eq(&first, agent.cache.snapshot().entry("e2").unwrap()));
    assert_eq!(agent.counters.snapshots(), 1);
    assert_eq!(server.calls("status"), ["status 1.2.3"]);
}

#[tokio::test]
async fn a_stream_that_ended_is_resumed_where_it_stood() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    server.end_streams();
    server.put(entry("b", 1));
    agent.issued("b").await;
    assert_eq!(server.calls("watch"), ["watch ", "watch 1:1"]);
    assert_eq!(agent.counters.snapshots(), 1);
    // A server that does not know the cursor sends a snapshot; nothing is signed twice.
    server.state().forget_cursors();
    server.end_streams();
    server.put(entry("c", 1));
    agent.issued("c").await;
    assert_eq!(agent.counters.snapshots(), 2);
    assert_eq!(server.calls("sign"), ["sign 1", "sign 1", "sign 1"]);
}

#[tokio::test]
async fn a_digest_that_differs_brings_a_snapshot_and_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    let digest = server.state().digest();
    server.heartbeat(digest);
    // An entry that was never pushed: only the digest tells.
    server.state().entries.insert("b".to_owned(), entry("b", 1));
    let digest = server.state().digest();
    server.heartbeat(digest);
    agent.issued("b").await;
    assert!(is_issued(&agent.cache.snapshot(), "a"));
    assert_eq!(agent.counters.digest_mismatches(), 1);
    assert_eq!(server.calls("watch"), ["watch ", "watch "]);
}

#[tokio::test]
async fn a_server_that_cannot_push_is_polled() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start();
    server.state().push = false;
    server.state().page = 2;
    let foreign = Authority::new("foreign.org");
    server
        .state()
        .federated
        .insert("foreign.org".to_owned(), foreign.bundle());
    for n in 0..5 {
        server.put(types::Entry {
            federates_with: vec!["foreign.org".to_owned(), "unknown.org".to_owned()],
            ..entry(&format!("e{n}"), n)
        });
    }
    let agent = TestAgent::start(&server, dir.path());
    agent.snapshot("all", |snapshot| svids(snapshot) == 5).await;
    let snapshot = agent
        .snapshot("bundles", |snapshot| snapshot.federated.len() == 1)
        .await;
    assert!(
        snapshot
            .federated
            .keys()
            .all(|name| name.as_str() == "foreign.org")
    );
    assert_eq!(server.calls("fetch"), ["fetch 2", "fetch 2", "fetch 1"]);
    // Only what changed is fetched again.
    let before = serial(&agent, "e0").unwrap();
    server.change(
        vec![types::Entry {
            revision_number: 1,
            ..entry("e4", 4)
        }],
        vec!["e1".to_owned()],
    );
    agent
        .snapshot("e1 gone", |snapshot| snapshot.entry("e1").is_none())
        .await;
    assert_eq!(server.calls("fetch").last().unwrap(), "fetch 1");
    assert_eq!(serial(&agent, "e0").unwrap(), before);
    assert_eq!(server.calls("watch").len(), 1);
    assert!(!agent.counters.is_pushed());
    // Another server at the same place, which can push.
    server.stop();
    server.state().push = true;
    server.resume();
    server.put(entry("e9", 9));
    agent.issued("e9").await;
    assert!(agent.counters.is_pushed());
}

#[tokio::test]
async fn an_entry_unknown_to_the_signer_brings_one_snapshot_and_is_not_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    server.state().unknown.insert("b".to_owned(), 2);
    server.put(entry("b", 1));
    agent
        .snapshot("b", |snapshot| snapshot.entry("b").is_some())
        .await;
    agent.issued("b").await;
    assert_eq!(server.calls("watch"), ["watch ", "watch "]);
    assert_eq!(agent.counters.digest_mismatches(), 0);
}

#[tokio::test]
async fn nobody_is_to_wait_for_what_the_server_does_not_sign_or_for_a_server_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start();
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    let mut trouble = agent.cache.signing_trouble();
    assert!(!*trouble.borrow_and_update());
    server.state().unknown.insert("b".to_owned(), 1000);
    server.put(entry("b", 1));
    let failed = |snapshot: &Snapshot| snapshot.entry("b").is_some_and(|entry| entry.signing_failed);
    agent.snapshot("b fails", failed).await;
    assert!(!*trouble.borrow_and_update(), "others are signed");
    let within = Duration::from_secs(20);
    server.stop();
    let lost = tokio::time::timeout(within, trouble.wait_for(|trouble| *trouble)).await;
    assert!(lost.unwrap().is_ok());
    server.state().unknown.clear();
    server.resume();
    let issued = agent.issued("b").await;
    assert!(!issued.signing_failed);
    let back = tokio::time::timeout(within, trouble.wait_for(|trouble| !*trouble)).await;
    assert!(back.unwrap().is_ok());
}

#[tokio::test]
async fn svids_outlive_a_server_that_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let mut server = TestServer::start();
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    agent.state(NodeState::is_serving).await;
    let before = serial(&agent, "a");
    server.stop();
    agent.state(|state| matches!(state, NodeState::Degraded(_))).await;
    assert_eq!(serial(&agent, "a"), before);
    server.put(entry("b", 1));
    server.resume();
    agent.issued("b").await;
    agent.state(NodeState::is_serving).await;
    assert_eq!(serial(&agent, "a"), before);
}

#[tokio::test]
async fn a_failing_signer_is_asked_again_in_smaller_batches() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.state().failing = 1;
    for n in 0..4 {
        server.put(entry(&format!("e{n}"), n));
    }
    let agent = TestAgent::start(&server, dir.path());
    agent.snapshot("all", |snapshot| svids(snapshot) == 4).await;
    assert_eq!(server.calls("sign"), ["sign 4", "sign 4"]);
}

#[tokio::test]
async fn short_lived_svids_are_renewed_without_a_gap() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.state().svid_ttl = time::Duration::seconds(3);
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    let mut snapshots = agent.cache.snapshots();
    let mut serials = std::collections::BTreeSet::new();
    while serials.len() < 3 {
        tokio::time::timeout(Duration::from_secs(10), snapshots.changed())
            .await
            .unwrap()
            .unwrap();
        assert!(is_issued(&snapshots.borrow_and_update(), "a"));
        serials.extend(serial(&agent, "a"));
    }
    let counters = agent.cache.counters();
    assert_eq!(counters.x509_svids.value(), 1);
    assert_eq!(counters.x509_rotated.value() + 1, counters.x509_issued.value());
    // At half of its lifetime, not as fast as it goes.
    assert!(server.calls("sign").len() <= 4, "{:?}", server.calls("sign"));
}

#[tokio::test]
async fn an_on_demand_entry_is_issued_when_somebody_subscribes() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.put(types::Entry {
        additional_attributes: Some(types::entry::AdditionalAttributes {
            disable_x509_svid_prefetch: true,
            ..Default::default()
        }),
        ..entry("a", 1)
    });
    server.put(entry("b", 2));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("b").await;
    assert!(!is_issued(&agent.cache.snapshot(), "a"));
    let _subscription = agent.cache.subscribe(uid(1));
    let entry = agent.issued("a").await;
    assert!(entry.matches(&uid(1)));
}

#[tokio::test]
async fn a_tainted_authority_and_a_new_bundle_reach_the_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    agent.state(NodeState::is_serving).await;
    let before = serial(&agent, "a");
    let mut bundle = server.state().bundle.clone();
    bundle.sequence_number += 1;
    bundle.x509_authorities[0].tainted = true;
    server.send(
        finial_proto::finial::server::sync::v1::watch_response::Event::Bundles(
            finial_proto::finial::server::sync::v1::Bundles {
                own: Some(finial_identity::wire::bundle_to_wire(&bundle)),
                ..Default::default()
            },
        ),
    );
    agent
        .snapshot("the taint", |snapshot| {
            snapshot.own_bundle.x509_authorities[0].tainted
        })
        .await;
    let mut snapshots = agent.cache.snapshots();
    let renewed = snapshots.wait_for(|_| serial(&agent, "a") != before);
    tokio::time::timeout(Duration::from_secs(10), renewed)
        .await
        .unwrap()
        .unwrap();
    tokio::time::timeout(Duration::from_secs(10), async {
        let mut svid = agent.node.svid();
        while server.calls("renew").is_empty() {
            svid.changed().await.unwrap();
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_revoked_authority_makes_the_agent_connect_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    let present = server.state().bundle.clone();
    let other = Authority::new("example.org").bundle();
    server
        .state()
        .bundle
        .x509_authorities
        .extend(other.x509_authorities);
    server.put(entry("a", 1));
    let agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    agent
        .snapshot("both", |snapshot| snapshot.own_bundle.x509_authorities.len() == 2)
        .await;
    let before = agent.node.upstream().connections();
    server.state().bundle = present.clone();
    server.send(
        finial_proto::finial::server::sync::v1::watch_response::Event::Bundles(
            finial_proto::finial::server::sync::v1::Bundles {
                own: Some(finial_identity::wire::bundle_to_wire(&present)),
                ..Default::default()
            },
        ),
    );
    agent
        .snapshot("one", |snapshot| snapshot.own_bundle.x509_authorities.len() == 1)
        .await;
    server.put(entry("b", 1));
    agent.issued("b").await;
    assert_eq!(server.calls("watch").last().unwrap(), "watch 1:1");
    assert_eq!(agent.node.upstream().connections(), before + 1);
}

#[tokio::test]
async fn a_ban_ends_the_node_and_an_eviction_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let server = TestServer::start();
    server.put(entry("a", 1));
    let mut agent = TestAgent::start(&server, dir.path());
    agent.issued("a").await;
    server.state().denied = Some(Reason::AgentNotAttested);
    server.end_streams();
    let state = agent.state(|state| matches!(state, NodeState::Degraded(_))).await;
    assert!(state.to_string().contains("not attested"), "{state}");
    assert!(is_issued(&agent.cache.snapshot(), "a"));
    server.state().denied = Some(Reason::AgentBanned);
    let ended = tokio::time::timeout(Duration::from_secs(10), &mut agent.run)
        .await
        .unwrap();
    assert!(matches!(ended.unwrap(), Err(crate::node::NodeError::Banned)));
    assert_eq!(*agent.node.state().borrow(), NodeState::Banned);
    let saved = std::fs::read_to_string(dir.path().join("agent-data.json")).unwrap();
    assert!(saved.contains("\"svid\":null"));
}
