//! Servers of which one is in trouble of its own: it is left for another address, and not without need.

use std::net::SocketAddr;

use super::life_tests::{MINUTE, Repeatable, SECOND, agent_serial, is_serving, serial, settled, state};
use crate::test_agent::TestAgent;
use crate::test_server::entry;
use crate::test_world::World;
use crate::upstream::UpstreamError;

#[tokio::test(start_paused = true)]
async fn a_server_that_cannot_serve_is_not_held_on_to() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    let connections = agent.node.upstream().connections();
    world.server.state().is_sick = true;
    world.server.end_streams();
    let is_left = || agent.node.upstream().connections() > connections;
    world
        .pass_until("other connection", &agent, MINUTE, is_left)
        .await;
    world.server.state().is_sick = false;
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
}

/// A settled agent whose server has two addresses, and is connected to the first.
async fn settled_beside_two(world: &World) -> (TestAgent, [SocketAddr; 2]) {
    let addresses = [world.server.address, world.server.listen_elsewhere()];
    world.server.put(entry("a", 1));
    let agent = world.start(Repeatable);
    agent.node.upstream().resolve_to(addresses.to_vec());
    let is_settled = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.until("an SVID", &agent, is_settled).await;
    (agent, addresses)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_signs_nothing_is_left_for_another_address() {
    let world = World::new();
    let (agent, [first, _second]) = settled_beside_two(&world).await;
    let made = || agent.node.upstream().connections();
    let connections = made();
    world.server.state().unsigning.insert(first);
    world.server.put(entry("b", 1));
    world.pass_in_touch(20 * SECOND, || false).await;
    let calls = world.server.calls("");
    assert!(world.server.calls("sign").len() > 1, "{calls:?}");
    assert_eq!(made(), connections, "too early");
    world
        .pass_in_touch(MINUTE, || serial(&agent, "b").is_some())
        .await;
    assert!(serial(&agent, "b").is_some());
    world.pass_in_touch(5 * MINUTE, || false).await;
    assert_eq!(made(), connections + 1);
    assert!(is_serving(&agent), "{}", state(&agent));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_signs_no_tokens_is_left_for_another_address() {
    let world = World::new();
    let (agent, [first, _second]) = settled_beside_two(&world).await;
    let upstream = agent.node.upstream();
    let connections = upstream.connections();
    world.server.state().unsigning.insert(first);
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        let signed = upstream.sign_jwt("a", &["audience".to_owned()]).await;
        outcomes.push(signed.is_ok());
        world.pass_in_touch(20 * SECOND, || false).await;
    }
    // Those after 0, 20 and 40 s are failures enough, for long enough.
    assert_eq!(outcomes, [false, false, false, true, true]);
    assert_eq!(upstream.connections(), connections + 1);
}

#[tokio::test(start_paused = true)]
async fn servers_of_which_none_signs_are_visited_ever_more_rarely() {
    let world = World::new();
    let (agent, addresses) = settled_beside_two(&world).await;
    let connections = agent.node.upstream().connections();
    world.server.state().unsigning.extend(addresses);
    world.server.put(entry("b", 1));
    world.pass_in_touch(16 * MINUTE, || false).await;
    let left = agent.node.upstream().connections() - connections;
    assert!((3..=5).contains(&left), "left {left} times");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_signs_nothing_is_connected_to_again_where_there_is_one_address_but_ever_more_rarely() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    let address = world.server.address;
    world.server.state().unsigning.insert(address);
    world.server.put(entry("b", 1));
    world.pass_in_touch(3 * MINUTE, || false).await;
    // After half a minute and a minute; behind one address may be several servers.
    assert_eq!(world.server.calls("watch").len(), 3);
    world.server.state().unsigning.clear();
    world
        .pass_in_touch(MINUTE, || serial(&agent, "b").is_some())
        .await;
    assert!(serial(&agent, "b").is_some());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_renew_the_agent_is_left_for_another_address() {
    let world = World::new();
    // Workloads' SVIDs are not due while this lasts.
    world.server.state().svid_ttl = time::Duration::hours(10);
    let (agent, [first, _second]) = settled_beside_two(&world).await;
    let before = agent_serial(&agent);
    world.server.state().unsigning.insert(first);
    let has_tried = || !world.server.calls("renew").is_empty();
    world.pass_in_touch(35 * MINUTE, has_tried).await;
    world
        .pass_in_touch(MINUTE, || agent_serial(&agent) != before)
        .await;
    assert_ne!(agent_serial(&agent), before, "{}", state(&agent));
    assert!(world.server.calls("renew").len() > 3);
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
    assert_eq!(world.server.calls("attest").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_left_for_another_address_at_once() {
    let world = World::new();
    let (agent, [first, _second]) = settled_beside_two(&world).await;
    let connections = agent.node.upstream().connections();
    world.server.state().mute.insert(first);
    world.server.put(entry("b", 1));
    world
        .pass_in_touch(MINUTE, || serial(&agent, "b").is_some())
        .await;
    assert!(serial(&agent, "b").is_some());
    world.pass_in_touch(5 * MINUTE, || false).await;
    assert_eq!(agent.node.upstream().connections(), connections + 1);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_who_renews_the_agent_is_left_for_another_address() {
    let world = World::new();
    // Workloads' SVIDs are not due while this lasts.
    world.server.state().svid_ttl = time::Duration::hours(10);
    let (agent, [first, _second]) = settled_beside_two(&world).await;
    let (before, connections) = (agent_serial(&agent), agent.node.upstream().connections());
    world.server.state().mute.insert(first);
    let has_tried = || !world.server.calls("renew").is_empty();
    world.pass_in_touch(35 * MINUTE, has_tried).await;
    world
        .pass_in_touch(MINUTE, || agent_serial(&agent) != before)
        .await;
    assert_ne!(agent_serial(&agent), before, "{}", state(&agent));
    assert_eq!(world.server.calls("renew").len(), 2);
    // One to the other address, and one with the new SVID.
    world.pass_in_touch(5 * MINUTE, || false).await;
    assert_eq!(agent.node.upstream().connections(), connections + 2);
}

#[tokio::test(start_paused = true)]
async fn servers_of_which_none_answers_who_wants_a_token_are_visited_ever_more_rarely() {
    let world = World::new();
    let (agent, addresses) = settled_beside_two(&world).await;
    let upstream = agent.node.upstream();
    let connections = upstream.connections();
    world.server.state().mute.extend(addresses);
    for _ in 0..10 {
        let audience = ["audience".to_owned()];
        let mut signing = std::pin::pin!(upstream.sign_jwt("a", &audience));
        let mut outcome = None;
        while outcome.is_none() {
            tokio::select! {
                signed = &mut signing => outcome = Some(signed),
                () = world.pass_in_touch(20 * SECOND, || false) => {}
            }
        }
        assert!(
            matches!(outcome, Some(Err(UpstreamError::Unanswered(_)))),
            "{outcome:?}"
        );
    }
    let left = upstream.connections() - connections;
    // Five minutes: after half a minute, a minute, two minutes.
    assert!((2..=4).contains(&left), "left {left} times");
}

#[tokio::test(start_paused = true)]
async fn servers_of_which_none_answers_are_visited_ever_more_rarely() {
    let world = World::new();
    let (agent, addresses) = settled_beside_two(&world).await;
    let connections = agent.node.upstream().connections();
    world.server.state().mute.extend(addresses);
    world.server.put(entry("b", 1));
    world.pass_in_touch(16 * MINUTE, || false).await;
    let left = agent.node.upstream().connections() - connections;
    // After half a minute, a minute, and then every two minutes.
    assert!((6..=9).contains(&left), "left {left} times");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_again_after_a_long_silence_is_asked_within_a_minute() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    let address = world.server.address;
    world.server.state().mute.insert(address);
    world.server.put(entry("b", 1));
    world.pass_in_touch(20 * MINUTE, || false).await;
    world.server.state().mute.clear();
    world
        .pass_in_touch(MINUTE, || serial(&agent, "b").is_some())
        .await;
    assert!(serial(&agent, "b").is_some(), "{}", state(&agent));
}
