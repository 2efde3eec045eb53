//! An agent during long failures: nothing expired is served, nothing valid is withdrawn, and it recovers
//! without an operator wherever its attestor allows.
#![allow(clippy::disallowed_methods, reason = "tests move what disks hold")]

use std::time::Duration;

use async_trait::async_trait;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::spire::api::types::permission_denied_details::Reason;

use super::{AttestorError, JoinTokenAttestor, NodeAttestor, NodeSettings, NodeState, Report};
use crate::config::{Rebootstrap, RebootstrapMode};
use crate::test_agent::TestAgent;
use crate::test_pki::Authority;
use crate::test_server::entry;
use crate::test_world::World;
use crate::upstream::UpstreamError;

pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Can attest as often as it likes.
#[derive(Debug)]
pub(super) struct Repeatable;

#[async_trait]
impl NodeAttestor for Repeatable {
    fn name(&self) -> &'static str {
        "repeatable"
    }

    async fn payload(&self) -> Result<Vec<u8>, AttestorError> {
        Ok(b"node-1".to_vec())
    }

    async fn respond(&self, _challenge: &[u8]) -> Result<Vec<u8>, AttestorError> {
        Err(AttestorError("no challenge expected".to_owned()))
    }
}

pub(super) fn token() -> JoinTokenAttestor {
    JoinTokenAttestor::new("token")
}

pub(super) fn state(agent: &TestAgent) -> String {
    agent.node.state().borrow().to_string()
}

pub(super) fn is_serving(agent: &TestAgent) -> bool {
    agent.node.state().borrow().is_serving()
}

/// The serial number of what a workload would get.
pub(super) fn serial(agent: &TestAgent, id: &str) -> Option<String> {
    let snapshot = agent.cache.snapshot();
    let svid = snapshot.entry(id)?.svid.clone()?;
    Some(svid.svid.leaf().serial_hex())
}

pub(super) fn agent_serial(agent: &TestAgent) -> Option<String> {
    let svid = agent.node.svid().borrow().clone()?;
    Some(svid.leaf().serial_hex())
}

/// An agent that has an SVID for the entry `a`.
pub(super) async fn settled(world: &World, attestor: impl NodeAttestor + 'static) -> TestAgent {
    world.server.put(entry("a", 1));
    let agent = world.start(attestor);
    let is_settled = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.until("an SVID", &agent, is_settled).await;
    agent
}

fn assert_nothing_expired(world: &World, agent: &TestAgent) {
    let snapshot = agent.cache.snapshot();
    for issued in snapshot.entries.iter().filter_map(|entry| entry.svid.as_ref()) {
        assert!(issued.expires_at() > world.clock.now(), "{}", issued.expires_at());
    }
    if let Some(svid) = agent.node.svid().borrow().as_ref() {
        assert!(svid.leaf().not_after() > world.clock.now());
    }
}

/// The server gets another authority, which the bootstrap source knows. Gives the former one.
fn rotate(world: &mut World, lifetime: time::Duration) -> Authority {
    world.server.stop();
    let former = world.server.rotate_authority(lifetime);
    let bundle = world.server.state().bundle.to_pem();
    std::fs::write(world.dir.path().join("bundle.pem"), bundle).unwrap();
    world.server.resume();
    former
}

#[tokio::test(start_paused = true)]
async fn an_agent_svid_is_renewed_at_half_of_its_life_and_both_keys_alternate() {
    let world = World::new();
    let agent = settled(&world, token()).await;
    let keys = || std::fs::read_to_string(world.dir.path().join("keys.json")).unwrap();
    assert!(keys().contains("agent-svid-A") && !keys().contains("agent-svid-B"));
    let mut serials = vec![agent_serial(&agent)];
    for _ in 0..2 {
        world.pass(28 * MINUTE, MINUTE).await;
        let is_next = || !serials.contains(&agent_serial(&agent));
        assert!(!is_next(), "too early");
        world.pass_until("renewal", &agent, 4 * MINUTE, is_next).await;
        serials.push(agent_serial(&agent));
    }
    assert_eq!(world.server.calls("renew").len(), 2);
    assert_eq!(world.server.calls("attest").len(), 1);
    assert!(is_serving(&agent));
    assert!(keys().contains("agent-svid-A") && keys().contains("agent-svid-B"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_gone_for_days_takes_nothing_away_before_its_time() {
    let mut world = World::new();
    world.server.state().agent_ttl = time::Duration::days(10);
    let agent = settled(&world, token()).await;
    let first = serial(&agent, "a");
    world.server.stop();
    world.pass(20 * MINUTE, MINUTE).await;
    assert_eq!(serial(&agent, "a"), first);
    assert!(state(&agent).contains("server unavailable"), "{}", state(&agent));
    world.pass(3 * DAY, 20 * MINUTE).await;
    assert_eq!(serial(&agent, "a"), None, "what has expired is not served");
    world.server.resume();
    let healed = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.pass_until("recovery", &agent, MINUTE, healed).await;
    assert_ne!(serial(&agent, "a"), first);
    assert_eq!(world.server.calls("attest").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_svid_expired_meanwhile_attests_anew_when_it_can() {
    let mut world = World::new();
    let agent = settled(&world, Repeatable).await;
    world.server.stop();
    world.pass(3 * HOUR, 5 * MINUTE).await;
    assert_eq!((serial(&agent, "a"), agent_serial(&agent)), (None, None));
    world.server.resume();
    let healed = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.pass_until("recovery", &agent, MINUTE, healed).await;
    assert_eq!(world.server.calls("attest").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_cannot_attest_anew_says_what_it_needs_and_runs_on() {
    let mut world = World::new();
    let agent = settled(&world, token()).await;
    world.server.stop();
    world.pass(3 * HOUR, 5 * MINUTE).await;
    world.server.resume();
    world.pass(2 * MINUTE, 5 * SECOND).await;
    let said = state(&agent);
    assert!(
        said.starts_with("degraded: attest with join_token: it works once")
            && said.contains("start the agent with a new one"),
        "{said}"
    );
    assert_eq!((serial(&agent, "a"), agent.run.is_finished()), (None, false));
    assert_eq!(world.server.calls("attest").len(), 1, "a token is shown once");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_denied_for_good_serves_what_is_valid_and_says_why() {
    for (reason, why) in [
        (Reason::AgentNotAttested, "agent is not attested"),
        // The data directory of a snapshot: the server has seen a later SVID.
        (Reason::AgentNotActive, "agent SVID is not the active one"),
        (Reason::AgentMustReattest, "agent must attest again"),
        (Reason::AgentExpired, "agent SVID"),
    ] {
        let world = World::new();
        let agent = settled(&world, token()).await;
        let first = serial(&agent, "a");
        world.server.state().denied = Some(reason);
        world.server.end_streams();
        let is_told = || state(&agent).contains(why);
        world.pass_until("denial", &agent, MINUTE, is_told).await;
        assert!(
            state(&agent).contains("such as a new join token"),
            "{}",
            state(&agent)
        );
        world.pass(20 * MINUTE, MINUTE).await;
        assert_eq!(serial(&agent, "a"), first);
        world.pass(HOUR, MINUTE).await;
        assert_eq!((serial(&agent, "a"), agent.run.is_finished()), (None, false));
        assert_eq!(world.server.calls("renew").len(), 0);
        assert!(state(&agent).contains(why), "{}", state(&agent));
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_denied_attests_anew_when_it_can() {
    for reason in [
        // The data directory of a snapshot.
        Reason::AgentNotActive,
        Reason::AgentNotAttested,
        Reason::AgentExpired,
        Reason::AgentMustReattest,
    ] {
        let world = World::new();
        let agent = settled(&world, Repeatable).await;
        let first = agent_serial(&agent);
        world.server.state().denied = Some(reason);
        world.server.end_streams();
        let attested = || agent_serial(&agent) != first;
        world.pass_until("attestation", &agent, MINUTE, attested).await;
        world.server.state().denied = None;
        world
            .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_told_to_attest_again_does_so_at_once_and_serves_on() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    let (first, served) = (agent_serial(&agent), serial(&agent, "a"));
    world.server.state().denied = Some(Reason::AgentMustReattest);
    world.server.end_streams();
    let attested = || agent_serial(&agent) != first;
    world
        .pass_until("attestation", &agent, 10 * SECOND, attested)
        .await;
    assert_eq!(serial(&agent, "a"), served, "what is valid is served on");
    world.server.state().denied = None;
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
    assert_eq!(world.server.calls("renew").len(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_denies_what_it_has_just_issued_is_not_asked_without_pause() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    world.server.state().denied = Some(Reason::AgentNotAttested);
    world.server.end_streams();
    world.pass(10 * MINUTE, SECOND).await;
    let attempts = world.server.calls("attest").len();
    assert!(
        (5..60).contains(&attempts),
        "{attempts} attestations in ten minutes"
    );
    world.server.state().denied = None;
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_for_two_days_heals_within_a_minute() {
    let mut world = World::new();
    let day = time::Duration::days(1);
    rotate(&mut world, day);
    world.server.put(entry("a", 1));
    let settings = NodeSettings {
        rebootstrap: Rebootstrap {
            mode: RebootstrapMode::Auto,
            delay: 5 * SECOND,
        },
        ..world.settings()
    };
    let agent = world.start_as(settings, Repeatable);
    let is_settled = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.until("an SVID", &agent, is_settled).await;
    let before = (agent_serial(&agent), serial(&agent, "a"));
    let id = SpiffeId::parse("spiffe://example.org/a").unwrap();
    let audience = ["x".to_owned()];
    let jwt = agent
        .cache
        .jwt_cache()
        .fetch("a", &id, &audience, true)
        .await
        .unwrap();
    world.sleep(2 * DAY);
    let next = agent.cache.jwt_cache().fetch("a", &id, &audience, true).await;
    assert_ne!(
        next.unwrap().token,
        jwt.token,
        "a token that has expired is not handed out"
    );
    // The server woke up first, and its authority had expired.
    let former = rotate(&mut world, day);
    assert!(former.certificate().not_after() < world.clock.now());
    // The longest that anything sleeps.
    world.pass(6 * SECOND, SECOND).await;
    assert_nothing_expired(&world, &agent);
    let healed = || {
        let now = (agent_serial(&agent), serial(&agent, "a"));
        is_serving(&agent) && now.0.is_some() && now.1.is_some() && now.0 != before.0 && now.1 != before.1
    };
    world.pass_until("recovery", &agent, MINUTE, healed).await;
    let authority = world.server.state().authority.certificate();
    assert_eq!(agent.node.own_bundle().x509_certificates(), [authority]);
    let attempts = world.server.calls("attest").len() + world.server.calls("renew").len();
    assert!(attempts <= 3, "{:?}", world.server.calls(""));
    assert!(
        world.server.calls("sign").len() <= 3,
        "{:?}",
        world.server.calls("")
    );
}

#[tokio::test(start_paused = true)]
async fn workloads_of_a_machine_that_slept_get_new_svids_from_an_agent_that_is_still_known() {
    let world = World::new();
    world.server.state().agent_ttl = time::Duration::days(10);
    let agent = settled(&world, token()).await;
    let before = (agent_serial(&agent), serial(&agent, "a"));
    world.sleep(2 * DAY);
    let is_new = || serial(&agent, "a").is_some_and(|now| Some(now) != before.1);
    world.pass_until("SVID", &agent, 10 * SECOND, is_new).await;
    assert_eq!(agent_serial(&agent), before.0);
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_or_ahead_by_an_hour_causes_no_storm() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    let hour = time::Duration::hours(1);
    let count = |what: &str| world.server.calls(what).len();
    for by in [-hour, hour] {
        world.clock.shift(by);
        world.pass(10 * MINUTE, 5 * SECOND).await;
        assert_eq!((count("sign"), count("renew"), count("attest")), (1, 0, 1));
        assert!(serial(&agent, "a").is_some());
    }
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
    // All that the server signs has expired by this clock.
    world.clock.shift(hour);
    world.pass(10 * MINUTE, 5 * SECOND).await;
    assert_nothing_expired(&world, &agent);
    assert!(
        state(&agent).contains("clock of this machine"),
        "{}",
        state(&agent)
    );
    assert!(count("attest") < 50, "{} attestations", count("attest"));
    world.clock.shift(-hour);
    let healed = || serial(&agent, "a").is_some() && is_serving(&agent);
    world.pass_until("recovery", &agent, MINUTE, healed).await;
    assert!(count("sign") <= 3, "{} signatures", count("sign"));
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_set_back_puts_off_the_renewal_of_no_svid() {
    let world = World::new();
    world.server.state().agent_ttl = time::Duration::days(10);
    let agent = settled(&world, token()).await;
    let mut serials = vec![serial(&agent, "a")];
    for by in [0, 1, 3] {
        world.clock.shift(-time::Duration::hours(by));
        world.pass_in_touch(28 * MINUTE, || false).await;
        assert_eq!(serial(&agent, "a"), serials[serials.len() - 1], "too early");
        let is_next = || !serials.contains(&serial(&agent, "a"));
        world.pass_in_touch(4 * MINUTE, is_next).await;
        assert!(is_next(), "too late after a step of {by} hours");
        serials.push(serial(&agent, "a"));
    }
    assert_eq!(world.server.calls("sign").len(), 4);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_signed_does_not_wait_for_a_clock_that_was_set_back() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    world.server.state().failing = 1;
    world.server.put(entry("b", 1));
    let has_failed = || world.server.state().failing == 0;
    world.until("failure", &agent, has_failed).await;
    world.clock.shift(-time::Duration::minutes(30));
    let is_signed = || serial(&agent, "b").is_some();
    // An agent wakes up every five seconds.
    world
        .pass_until("signature", &agent, 10 * SECOND, is_signed)
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_must_attest_to_renew_does_so_once() {
    let world = World::new();
    world.server.state().reattestable = true;
    let agent = settled(&world, Repeatable).await;
    let first = agent_serial(&agent);
    let attested = || agent_serial(&agent) != first;
    world.pass(25 * MINUTE, MINUTE).await;
    world.pass_until("renewal", &agent, 10 * MINUTE, attested).await;
    world.pass(5 * MINUTE, 5 * SECOND).await;
    assert_eq!(
        world.server.calls("attest").len(),
        2,
        "{:?}",
        world.server.calls("")
    );
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_ahead_by_most_of_a_life_causes_no_storm() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    world.clock.shift(time::Duration::minutes(40));
    world.pass(HOUR, 5 * SECOND).await;
    assert_nothing_expired(&world, &agent);
    assert!(serial(&agent, "a").is_some());
    for what in ["sign", "renew", "attest"] {
        let calls = world.server.calls(what).len();
        assert!(calls <= 10, "{calls} times {what} in an hour");
    }
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_the_server_refuses_while_connecting_gives_way_to_the_one_held_back() {
    let mut world = World::new();
    let data = world.dir.path().join("data");
    std::fs::create_dir(&data).unwrap();
    world.server.put(entry("a", 1));
    let settings = super::NodeSettings {
        data_dir: data.clone(),
        ..world.settings()
    };
    let agent = world.start_as(settings, token());
    world.until("an SVID", &agent, || is_serving(&agent)).await;
    let first = agent_serial(&agent);
    // The next SVIDs are of another authority, and the disk does not take them.
    let next = Authority::new_at("example.org", world.clock.clone());
    let both = {
        let mut state = world.server.state();
        let added = next.bundle().x509_authorities;
        state.bundle.x509_authorities.extend(added);
        state.authority = next;
        state.bundle.clone()
    };
    world.server.end_streams();
    let knows_both = || agent.node.own_bundle().x509_authorities.len() == 2;
    world.pass_until("bundle", &agent, MINUTE, knows_both).await;
    std::fs::rename(&data, world.dir.path().join("away")).unwrap();
    let is_held_back = || state(&agent).contains("held back");
    world.pass(31 * MINUTE, 30 * SECOND).await;
    world.pass_until("renewal", &agent, MINUTE, is_held_back).await;
    assert_eq!(agent_serial(&agent), first);
    // The former authority no longer counts, and only the server knows.
    world.server.stop();
    world.server.state().bundle.x509_authorities = vec![both.x509_authorities[1].clone()];
    world.server.resume();
    let is_used = || agent_serial(&agent) != first;
    world
        .pass_until("SVID that was held back", &agent, MINUTE, is_used)
        .await;
    let reached = || agent.node.own_bundle().x509_authorities.len() == 1;
    world.pass_until("server", &agent, MINUTE, reached).await;
    assert_eq!(world.server.calls("attest").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_svid_does_not_give_way_for_what_was_said_against_its_predecessor() {
    let world = World::new();
    let agent = settled(&world, Repeatable).await;
    let refused = |serial| {
        let why = "certificate revoked".to_owned();
        Report::Unreachable(UpstreamError::SvidRefused { why, serial })
    };
    let attempts = || world.server.calls("attest").len();
    agent.node.report(refused(Some("0badc0de".to_owned())));
    world.pass(MINUTE, 5 * SECOND).await;
    assert_eq!(attempts(), 1);
    agent.node.report(refused(agent_serial(&agent)));
    let attested = || attempts() == 2;
    world.pass_until("attestation", &agent, MINUTE, attested).await;
}

#[tokio::test(start_paused = true)]
async fn a_state_that_lasts_is_published_once() {
    let mut world = World::new();
    let agent = settled(&world, Repeatable).await;
    world.server.stop();
    world.pass(MINUTE, SECOND).await;
    let mut states = agent.node.state();
    states.mark_unchanged();
    world.pass(10 * MINUTE, 5 * SECOND).await;
    assert!(!states.has_changed().unwrap(), "{}", state(&agent));
    world.server.resume();
    world
        .pass_until("recovery", &agent, MINUTE, || is_serving(&agent))
        .await;
    assert_eq!(*states.borrow(), NodeState::Serving);
}
