//! Servers of unknown authority: those that the bundle of the bootstrap source trusts, and others.
#![allow(
    clippy::disallowed_methods,
    reason = "tests write the files that operators write"
)]

use std::sync::Arc;
use std::time::Duration;

use super::life_tests::{Repeatable, is_serving, serial, settled, state, token};
use super::{AgentStorage, BootstrapSource, NodeAttestor, NodeError, NodeSettings};
use crate::config::{Rebootstrap, RebootstrapMode};
use crate::test_agent::{TestAgent, open_as};
use crate::test_server::entry;
use crate::test_world::World;

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

fn settings(world: &World, mode: RebootstrapMode) -> NodeSettings {
    NodeSettings {
        rebootstrap: Rebootstrap {
            mode,
            delay: 10 * MINUTE,
        },
        ..world.settings()
    }
}

/// An agent that may return to its source, and has an SVID for the entry `a`.
async fn returning(world: &World) -> TestAgent {
    world.server.put(entry("a", 1));
    let agent = world.start_as(settings(world, RebootstrapMode::Auto), Repeatable);
    let is_settled = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.until("an SVID", &agent, is_settled).await;
    agent
}

fn write_bundle(world: &World) {
    let bundle = world.server.state().bundle.to_pem();
    std::fs::write(world.dir.path().join("bundle.pem"), bundle).unwrap();
}

/// The server is installed again, and has not been called since.
fn reinstall(world: &mut World) {
    world.server.stop();
    world.server.reinstall();
    world.server.state().calls.clear();
    world.server.resume();
}

async fn until_distrusted(world: &World, agent: &TestAgent) {
    let distrusted = || state(agent).contains("server is not trusted");
    world.pass_until("distrust", agent, MINUTE, distrusted).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_returns_to_its_source_in_place_and_serves_meanwhile() {
    let mut world = World::new();
    let agent = returning(&world).await;
    let first = serial(&agent, "a");
    reinstall(&mut world);
    write_bundle(&world);
    until_distrusted(&world, &agent).await;
    let advice = "if this lasts for 600s, the agent returns to trust_bundle_path";
    assert!(state(&agent).contains(advice), "{}", state(&agent));
    world.pass(9 * MINUTE, 5 * SECOND).await;
    assert_eq!(serial(&agent, "a"), first, "what is valid is served");
    assert_eq!(world.server.calls(""), [""; 0], "it is not time yet");
    let healed = || is_serving(&agent) && serial(&agent, "a").is_some_and(|now| Some(now) != first);
    world.pass_until("recovery", &agent, 3 * MINUTE, healed).await;
    assert_eq!(world.server.calls("attest").len(), 1);
    let authority = world.server.state().authority.certificate();
    assert_eq!(
        agent.node.own_bundle().x509_certificates(),
        std::slice::from_ref(&authority)
    );
    let saved = AgentStorage::open(world.dir.path()).unwrap().data();
    assert_eq!(saved.bundle, [authority]);
    assert_eq!(agent.node.svid().borrow().as_ref().unwrap().chain(), saved.svid);
}

#[tokio::test(start_paused = true)]
async fn an_impostor_gets_nothing_however_long_it_tries() {
    let mut world = World::new();
    let agent = returning(&world).await;
    reinstall(&mut world);
    world.pass(10 * MINUTE, 5 * SECOND).await;
    let has_tried = || {
        let said = state(&agent);
        said.contains("returning to trust_bundle_path") && said.contains("failed")
    };
    world.pass_until("attempt", &agent, 2 * MINUTE, has_tried).await;
    let mut states = agent.node.state();
    states.mark_unchanged();
    world.pass(5 * MINUTE, 5 * SECOND).await;
    assert!(!states.has_changed().unwrap(), "said once: {}", state(&agent));
    // The agent's own SVID expires, and still nothing is shown to it.
    world.pass(2 * HOUR, MINUTE).await;
    assert_eq!(serial(&agent, "a"), None);
    assert_eq!(world.server.calls(""), [""; 0]);
    assert!(!agent.run.is_finished());
    assert!(state(&agent).contains("not trusted"), "{}", state(&agent));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_known_again_starts_the_count_anew() {
    let mut world = World::new();
    let agent = returning(&world).await;
    for _ in 0..2 {
        world.server.stop();
        let known = world.server.reinstall();
        write_bundle(&world);
        world.server.state().calls.clear();
        world.server.resume();
        world.pass(8 * MINUTE, 5 * SECOND).await;
        assert!(state(&agent).contains("not trusted"), "{}", state(&agent));
        assert_eq!(world.server.calls(""), [""; 0]);
        world.server.stop();
        world.server.replace_authority(known);
        world.server.resume();
        world
            .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
            .await;
    }
    assert!(world.server.calls("attest").is_empty());
}

#[tokio::test(start_paused = true)]
async fn time_in_which_the_machine_slept_does_not_count() {
    let mut world = World::new();
    world.server.state().agent_ttl = time::Duration::days(10);
    let agent = returning(&world).await;
    reinstall(&mut world);
    write_bundle(&world);
    until_distrusted(&world, &agent).await;
    world.sleep(48 * HOUR);
    world.pass(5 * MINUTE, 5 * SECOND).await;
    assert_eq!(world.server.calls(""), [""; 0]);
    world
        .pass_until("recovery", &agent, 8 * MINUTE, || is_serving(&agent))
        .await;
}

#[tokio::test(start_paused = true)]
async fn by_default_the_bundle_is_kept_and_the_state_says_what_helps() {
    let mut world = World::new();
    let agent = settled(&world, Repeatable).await;
    reinstall(&mut world);
    write_bundle(&world);
    until_distrusted(&world, &agent).await;
    world.pass(3 * HOUR, MINUTE).await;
    let said = state(&agent);
    for part in [
        "the saved bundle is kept (rebootstrap_mode never)",
        "agent-data.json away",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert_eq!(world.server.calls(""), [""; 0]);
    assert!(!agent.run.is_finished());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_was_away_for_long_returns_to_its_source_too() {
    let mut world = World::new();
    drop(returning(&world).await);
    world.sleep(48 * HOUR);
    reinstall(&mut world);
    write_bundle(&world);
    let agent = world.start_as(settings(&world, RebootstrapMode::Always), Repeatable);
    until_distrusted_without_svid(&world, &agent).await;
    world.pass(8 * MINUTE, 5 * SECOND).await;
    assert_eq!(world.server.calls(""), [""; 0]);
    let healed = || is_serving(&agent) && serial(&agent, "a").is_some();
    world.pass_until("recovery", &agent, 4 * MINUTE, healed).await;
}

async fn until_distrusted_without_svid(world: &World, agent: &TestAgent) {
    let distrusted = || state(agent).contains("not trusted according to trust bundle saved in");
    world.pass_until("distrust", agent, MINUTE, distrusted).await;
    assert!(state(agent).contains("the agent returns to"), "{}", state(agent));
}

#[tokio::test(start_paused = true)]
async fn without_its_source_an_agent_still_knows_the_server_that_it_knew() {
    let mut world = World::new();
    drop(returning(&world).await);
    world.sleep(48 * HOUR);
    world.server.stop();
    let known = world.server.reinstall();
    world.server.resume();
    let agent = world.start_as(settings(&world, RebootstrapMode::Auto), Repeatable);
    std::fs::remove_file(world.dir.path().join("bundle.pem")).unwrap();
    world.pass(10 * MINUTE, 5 * SECOND).await;
    let has_tried = || state(&agent).contains("bundle.pem: No such file");
    world.pass_until("attempt", &agent, 2 * MINUTE, has_tried).await;
    world.server.stop();
    world.server.replace_authority(known);
    world.server.resume();
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
}

#[tokio::test(start_paused = true)]
async fn always_is_refused_and_auto_has_no_effect_where_the_agent_cannot_attest_twice() {
    let world = World::new();
    let attestors: [Option<Arc<dyn NodeAttestor>>; 2] = [None, Some(Arc::new(token()))];
    for attestor in attestors {
        let open = |mode| open_as(settings(&world, mode), attestor.clone(), world.clock.clone());
        let error = open(RebootstrapMode::Always).unwrap_err();
        assert!(matches!(error, NodeError::CannotRebootstrap(_)));
        assert!(
            error.to_string().starts_with("rebootstrap_mode always: "),
            "{error}"
        );
        assert!(open(RebootstrapMode::Auto).is_ok() && open(RebootstrapMode::Never).is_ok());
    }
    let insecure = NodeSettings {
        bootstrap: BootstrapSource::Insecure,
        ..settings(&world, RebootstrapMode::Always)
    };
    let opened = open_as(insecure, Some(Arc::new(Repeatable)), world.clock.clone());
    assert!(matches!(opened, Err(NodeError::CannotRebootstrap(_))));
}

#[tokio::test(start_paused = true)]
async fn a_corrupted_bundle_is_not_replaced_by_whatever_server_answers() {
    let world = World::new();
    let insecure = NodeSettings {
        bootstrap: BootstrapSource::Insecure,
        ..settings(&world, RebootstrapMode::Never)
    };
    std::fs::write(insecure.data_dir.join("agent-data.json"), "{").unwrap();
    let open =
        |settings: &NodeSettings| open_as(settings.clone(), Some(Arc::new(Repeatable)), world.clock.clone());
    assert!(matches!(open(&insecure), Err(NodeError::Storage(_))));
    assert!(open(&settings(&world, RebootstrapMode::Never)).is_ok());
}
