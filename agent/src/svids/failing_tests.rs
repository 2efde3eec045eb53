//! What the log says while X509-SVIDs cannot be had.

use std::time::Duration;

use crate::node::JoinTokenAttestor;
use crate::test_agent::{TestAgent, is_issued};
use crate::test_log::TestLog;
use crate::test_server::entry;
use crate::test_world::World;

const MINUTE: Duration = Duration::from_secs(60);

/// An agent that has an SVID for the entry `a`, which is due in half an hour.
async fn settled(world: &World) -> TestAgent {
    world.server.state().agent_ttl = time::Duration::days(10);
    world.server.put(entry("a", 1));
    let agent = world.start(JoinTokenAttestor::new("token"));
    let is_settled = || is_issued(&agent.cache.snapshot(), "a");
    world.until("an SVID", &agent, is_settled).await;
    agent
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_is_refused_is_told_again_ever_more_rarely_and_how_long_the_present_one_lasts() {
    let log = TestLog::start();
    let world = World::new();
    let agent = settled(&world).await;
    world.server.state().unknown.insert("a".to_owned(), usize::MAX);
    let told = || log.lines("X509-SVID could not be signed");
    world.pass_in_touch(32 * MINUTE, || !told().is_empty()).await;
    assert_eq!(told().len(), 1);
    world.pass_in_touch(20 * MINUTE, || false).await;
    // After 1, 3, 7 and 15 minutes.
    let lines = told();
    assert_eq!(lines.len(), 5, "{lines:#?}");
    for line in &lines {
        assert!(
            line.contains("entry_id=a ") && line.contains("expires_at="),
            "{line}"
        );
    }
    let minutes = |line: &String| {
        let (_before, left) = line.split_once("valid_for=").unwrap();
        let seconds: u64 = left.split_once('s').unwrap().0.parse().unwrap();
        seconds / 60
    };
    let left: Vec<_> = lines.iter().map(minutes).collect();
    assert!(
        (28..=30).contains(&left[0]) && (13..=15).contains(&left[4]),
        "{left:?}"
    );
    world.pass_in_touch(180 * MINUTE, || false).await;
    let lines = told();
    assert!((8..=9).contains(&lines.len()), "{lines:#?}");
    let last = &lines[lines.len() - 1];
    assert!(!last.contains("valid_for"), "there is none any longer: {last}");
    // Another failure is told at once.
    world.server.state().unknown.clear();
    world
        .pass_in_touch(MINUTE, || is_issued(&agent.cache.snapshot(), "a"))
        .await;
    world.server.state().unknown.insert("a".to_owned(), usize::MAX);
    let before = told().len();
    world.pass_in_touch(32 * MINUTE, || told().len() > before).await;
    assert_eq!(told().len(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn that_no_server_signs_is_told_again_ever_more_rarely_with_the_first_end() {
    let log = TestLog::start();
    let mut world = World::new();
    let _agent = settled(&world).await;
    world.pass_in_touch(25 * MINUTE, || false).await;
    world.server.stop();
    let told = || log.lines("X509-SVIDs could not be signed");
    for _ in 0..26 {
        world.pass(MINUTE, MINUTE / 12).await;
    }
    let lines = told();
    assert!((5..=6).contains(&lines.len()), "{lines:#?}");
    for line in &lines {
        assert!(
            line.contains("waiting=1") && line.contains("valid_for="),
            "{line}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn that_the_agent_itself_is_not_renewed_is_told_again_ever_more_rarely() {
    let log = TestLog::start();
    let mut world = World::new();
    world.server.state().svid_ttl = time::Duration::days(10);
    let agent = world.start(JoinTokenAttestor::new("token"));
    let has_svid = || agent.node.state().borrow().is_serving();
    world.until("an SVID", &agent, has_svid).await;
    world.server.stop();
    let told = || log.lines("the agent's SVID could not be renewed");
    world.pass(52 * MINUTE, MINUTE / 12).await;
    let lines = told();
    assert!((5..=6).contains(&lines.len()), "{lines:#?}");
    assert!(
        lines[0].contains("renewal of the agent's SVID failed"),
        "{}",
        lines[0]
    );
    assert!(
        lines[0].contains("valid_for=1") && lines[4].contains("expires_at="),
        "{lines:#?}"
    );
    // When it has expired the agent says so as long as it must attest anew.
    world.pass(60 * MINUTE, MINUTE / 6).await;
    assert_eq!(told().len(), lines.len());
    let lost = log.lines("there is no agent SVID yet");
    assert!((4..=6).contains(&lost.len()), "{lost:#?}");
}
