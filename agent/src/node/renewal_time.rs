//! When an X509-SVID is due, by two clocks: the machine's, which may be set, also back, and the monotonic one ([`Instant`]),
//! which stands still while the machine is suspended. Whichever says so first counts. (Tokens use [`Moment`]; their rule is
//! in `svids/tokens/kept.rs`.)

use std::time::Duration;

use finial_identity::process::Clock;
use finial_identity::x509::Certificate;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::rotation::{RotationStrategy, life};

/// One moment, by both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// What the machine's clock shows.
    pub clock: OffsetDateTime,
    /// What the monotonic clock shows.
    pub passed: Instant,
}

/// When an X509-SVID is to be renewed. Settled once, when the SVID is taken up: drawn again at each look, it would
/// nearly always come early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RenewalTime {
    /// By the clock.
    at: OffsetDateTime,
    /// By the monotonic clock, in case the other is set back. `None` for an SVID of an earlier run: nobody knows how long
    /// ago it came, so the machine's clock alone counts.
    after: Option<Instant>,
}

impl Moment {
    /// This one.
    pub fn now(clock: &Clock) -> Self {
        Self {
            clock: clock.now(),
            passed: Instant::now(),
        }
    }

    /// What the clock will show at `then`, unless it is set. Now, if that has passed.
    pub fn clock_at(&self, then: Instant) -> OffsetDateTime {
        let wait = then.saturating_duration_since(self.passed);
        let wait = time::Duration::try_from(wait).unwrap_or(time::Duration::MAX);
        self.clock.saturating_add(wait)
    }
}

impl RenewalTime {
    /// For an SVID of an earlier run.
    pub fn of_saved(rotation: RotationStrategy, leaf: &Certificate, drawn: f64) -> Self {
        Self {
            at: leaf.not_after() - rotation.remaining_at_renewal(leaf, drawn),
            after: None,
        }
    }

    /// For an SVID that was issued `now`.
    pub fn of_new(rotation: RotationStrategy, leaf: &Certificate, now: Moment, drawn: f64) -> Self {
        let at = rotation.renew_at(leaf, now.clock, drawn);
        let wait = (at - now.clock).min(life(leaf) - rotation.remaining_at_renewal(leaf, drawn));
        let wait = Duration::try_from(wait).unwrap_or(Duration::ZERO);
        Self {
            at,
            after: now.passed.checked_add(wait),
        }
    }

    /// By the clock alone.
    #[cfg(test)]
    pub(crate) fn at(at: OffsetDateTime) -> Self {
        Self { at, after: None }
    }

    #[cfg(test)]
    pub(crate) fn of(at: OffsetDateTime, after: Instant) -> Self {
        let after = Some(after);
        Self { at, after }
    }

    /// Whether it has come.
    pub fn is_due(&self, now: Moment) -> bool {
        self.by_clock(now) <= now.clock
    }

    /// When it will be due as the machine's clock counts, if nobody sets that meanwhile: the earlier of the two.
    pub fn by_clock(&self, now: Moment) -> OffsetDateTime {
        self.after
            .map_or(self.at, |after| now.clock_at(after).min(self.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::Authority;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    fn half() -> RotationStrategy {
        RotationStrategy::default()
    }

    /// By a clock that shows `clock`.
    fn moment(clock: OffsetDateTime) -> Moment {
        Moment {
            clock,
            passed: Instant::now(),
        }
    }

    #[test]
    fn is_due_at_half_of_its_life_give_or_take_a_tenth() {
        let leaf =
            Authority::new("example.org").leaf("/spire/agent/x/1", NOW, NOW + time::Duration::seconds(1010));
        let at = |seconds: i64| moment(NOW + time::Duration::seconds(10 + seconds));
        let early = RenewalTime::of_saved(half(), &leaf, 1.0);
        assert!(!early.is_due(at(449)) && early.is_due(at(450)));
        let late = RenewalTime::of_saved(half(), &leaf, 0.0);
        assert!(!late.is_due(at(549)) && late.is_due(at(550)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_back_does_not_put_a_renewal_off() {
        let (from, until) = (NOW - time::Duration::seconds(10), NOW + time::Duration::hours(1));
        let leaf = Authority::new("example.org").leaf("/spire/agent/x/1", from, until);
        let hour = time::Duration::hours(1);
        for clock in [NOW, NOW - hour] {
            let time = RenewalTime::of_new(half(), &leaf, moment(clock), 0.5);
            tokio::time::advance(Duration::from_secs(29 * 60)).await;
            assert!(!time.is_due(moment(NOW - hour)));
            let left = time.by_clock(moment(NOW - hour)) - (NOW - hour);
            assert_eq!(left, time::Duration::MINUTE);
            tokio::time::advance(Duration::from_secs(61)).await;
            assert!(time.is_due(moment(NOW - hour)));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_machine_that_was_suspended_goes_by_its_clock() {
        let (from, until) = (NOW - time::Duration::seconds(10), NOW + time::Duration::hours(1));
        let leaf = Authority::new("example.org").leaf("/spire/agent/x/1", from, until);
        let time = RenewalTime::of_new(half(), &leaf, moment(NOW), 0.5);
        assert!(!time.is_due(moment(NOW + time::Duration::minutes(29))));
        assert!(time.is_due(moment(NOW + time::Duration::minutes(30))));
    }

    #[test]
    fn with_an_availability_target_is_due_when_that_much_is_left() {
        let rotation = RotationStrategy::new(Some(Duration::from_secs(24 * 3600)));
        let end = NOW + time::Duration::hours(40);
        let leaf = Authority::new("example.org").leaf("/spire/agent/x/1", NOW, end);
        let left = |minutes: i64| moment(end - time::Duration::hours(24) - time::Duration::minutes(minutes));
        let late = RenewalTime::of_saved(rotation, &leaf, 0.0);
        assert!(!late.is_due(left(1)) && late.is_due(left(0)));
        let early = RenewalTime::of_saved(rotation, &leaf, 1.0);
        assert!(!early.is_due(left(11)) && early.is_due(left(10)));
    }
}
