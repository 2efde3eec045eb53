//! How often the agent looks after its own SVID, and which key the next one gets. The renewal itself is in `obtain.rs`.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::key::{PrivateKey, PrivateKeyManager};
use finial_identity::x509::Certificate;
use time::OffsetDateTime;

use super::renewal_time::{Moment, RenewalTime};
use super::rotation::life;

/// Where the agent's keys are kept, one after the other, as SPIRE's agents do: the key of the present SVID
/// stays until the next SVID is there.
pub(super) const SLOTS: [&str; 2] = ["agent-svid-A", "agent-svid-B"];

/// How often the agent looks whether its SVID is due.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// Looking more often would find nothing new.
pub(super) const SHORTEST_WAIT: Duration = Duration::from_millis(50);

/// How long until it is due, at most [`CHECK_INTERVAL`]: the clock may be set, and machines be suspended.
pub(super) fn until_check(due: RenewalTime, now: Moment) -> Duration {
    let wait = Duration::try_from(due.by_clock(now) - now.clock).unwrap_or(Duration::ZERO);
    wait.clamp(SHORTEST_WAIT, CHECK_INTERVAL)
}

/// Whether an SVID can be used no longer, a second early.
pub(super) fn is_expired(leaf: &Certificate, now: OffsetDateTime) -> bool {
    leaf.not_after() <= now + time::Duration::SECOND
}

/// Whether no more than an eighth of the SVID's life is left.
pub(super) fn is_in_last_eighth(leaf: &Certificate, now: OffsetDateTime) -> bool {
    leaf.not_after() - now <= last_eighth(leaf)
}

/// How long until the SVID is in its last eighth, at most [`CHECK_INTERVAL`].
pub(super) fn until_last_eighth(leaf: &Certificate, now: OffsetDateTime) -> Duration {
    let left = leaf.not_after() - last_eighth(leaf) - now;
    let wait = Duration::try_from(left).unwrap_or(Duration::ZERO);
    wait.clamp(SHORTEST_WAIT, CHECK_INTERVAL)
}

fn last_eighth(leaf: &Certificate) -> time::Duration {
    life(leaf) / 8
}

/// How long to wait after a failed renewal: as the backoff says, but often enough that several attempts fit
/// into what remains.
pub(super) fn until_retry(backoff: Duration, leaf: &Certificate, now: OffsetDateTime) -> Duration {
    let remaining = Duration::try_from(leaf.not_after() - now).unwrap_or(Duration::ZERO);
    backoff.min(remaining / 8).max(Duration::from_millis(250))
}

/// The key that an SVID is for, and its slot.
pub(super) fn key_of(
    keys: &dyn PrivateKeyManager,
    leaf: &Certificate,
) -> Option<(&'static str, Arc<PrivateKey>)> {
    SLOTS.into_iter().find_map(|slot| {
        let key = keys.private_key(slot)?;
        (key.public_key() == leaf.public_key()).then_some((slot, key))
    })
}

/// The slot for the next key: the one that the present SVID does not use.
pub(super) fn next_slot(present: Option<&str>) -> &'static str {
    let [first, second] = SLOTS;
    if present == Some(first) { second } else { first }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::rotation::RotationStrategy;
    use crate::test_pki::Authority;
    use finial_identity::key::{KeyManager, KeyType, manager::MemoryKeyManager};
    use time::macros::datetime;
    use tokio::time::Instant;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    fn half() -> RotationStrategy {
        RotationStrategy::default()
    }

    fn moment(clock: OffsetDateTime) -> Moment {
        Moment {
            clock,
            passed: Instant::now(),
        }
    }

    /// What a fleet does whose SVIDs live for an hour and which looks every five seconds.
    #[tokio::test(start_paused = true)]
    async fn renewals_are_spread_evenly_over_a_tenth_of_the_life() {
        let (from, until) = (NOW - time::Duration::seconds(10), NOW + time::Duration::hours(1));
        let leaf = Authority::new("example.org").leaf("/spire/agent/x/1", from, until);
        let mut tenths = [0; 10];
        for agent in 0..1000 {
            let time = RenewalTime::of_new(half(), &leaf, moment(NOW), (f64::from(agent) * 0.618).fract());
            let mut now = moment(NOW);
            while !time.is_due(now) {
                let wait = until_check(time, now);
                now.clock += wait;
                now.passed += wait;
            }
            let share = (until - now.clock) / time::Duration::hours(1);
            assert!((0.448..=0.551).contains(&share), "{share}");
            tenths[((share - 0.45).max(0.0) * 100.0).min(9.0) as usize] += 1;
        }
        assert!(
            tenths.iter().all(|count| (70..=130).contains(count)),
            "{tenths:?}"
        );
    }

    #[test]
    fn looks_more_often_when_life_is_short_and_never_less_than_every_five_seconds() {
        let authority = Authority::new("example.org");
        let short = authority.leaf(
            "/spire/agent/x/1",
            NOW - time::Duration::seconds(10),
            NOW + time::Duration::seconds(4),
        );
        let short = RenewalTime::of_saved(half(), &short, 0.0);
        assert_eq!(until_check(short, moment(NOW)), Duration::from_millis(2200));
        let long = authority.leaf("/spire/agent/x/1", NOW, NOW + time::Duration::hours(1));
        let long = RenewalTime::of_saved(half(), &long, 0.0);
        assert_eq!(until_check(long, moment(NOW)), CHECK_INTERVAL);
        let late = moment(NOW + time::Duration::days(1));
        assert_eq!(until_check(short, late), SHORTEST_WAIT);
    }

    #[test]
    fn the_last_eighth_is_of_the_life_without_the_backdating() {
        let leaf =
            Authority::new("example.org").leaf("/spire/agent/x/1", NOW, NOW + time::Duration::seconds(810));
        let at = |seconds: i64| NOW + time::Duration::seconds(10 + seconds);
        assert!(!is_in_last_eighth(&leaf, at(699)) && is_in_last_eighth(&leaf, at(700)));
        assert_eq!(until_last_eighth(&leaf, at(0)), CHECK_INTERVAL);
        assert_eq!(until_last_eighth(&leaf, at(698)), Duration::from_secs(2));
        assert_eq!(until_last_eighth(&leaf, at(900)), SHORTEST_WAIT);
    }

    #[test]
    fn retries_become_denser_as_the_end_comes_near() {
        let leaf =
            Authority::new("example.org").leaf("/spire/agent/x/1", NOW, NOW + time::Duration::seconds(80));
        let backoff = Duration::from_secs(15);
        assert_eq!(until_retry(backoff, &leaf, NOW), Duration::from_secs(10));
        let late = NOW + time::Duration::seconds(72);
        assert_eq!(until_retry(backoff, &leaf, late), Duration::from_secs(1));
        assert_eq!(
            until_retry(backoff, &leaf, NOW + time::Duration::days(1)),
            Duration::from_millis(250)
        );
    }

    #[tokio::test]
    async fn keys_alternate_and_are_found_by_the_certificate() {
        let keys = MemoryKeyManager::new();
        let authority = Authority::new("example.org");
        assert_eq!(next_slot(None), "agent-svid-A");
        keys.generate_key("agent-svid-A", KeyType::EcP256).await.unwrap();
        let key = keys.private_key("agent-svid-A").unwrap();
        let svid = authority.svid_for("/spire/agent/x/1", key, time::Duration::hours(1));
        assert_eq!(key_of(&keys, svid.leaf()).unwrap().0, "agent-svid-A");
        assert_eq!(next_slot(Some("agent-svid-A")), "agent-svid-B");
        assert_eq!(next_slot(Some("agent-svid-B")), "agent-svid-A");
        keys.generate_key("agent-svid-A", KeyType::EcP256).await.unwrap();
        assert!(key_of(&keys, svid.leaf()).is_none());
    }
}
