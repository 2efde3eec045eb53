//! The rule by which SVIDs are renewed: at about half of their lifetime, or early enough that they stay valid during an
//! outage.

use std::time::Duration;

use finial_identity::x509::Certificate;
use time::OffsetDateTime;

/// The rule for X509-SVIDs, of the agent and of workloads alike. It is SPIRE's (`availability_target`): with a target
/// an SVID is renewed when no more than that, plus up to ten minutes so that not all are renewed together, is left
/// of its lifetime, and in any case at about half of it. An SVID that would live less than twelve hours longer than the
/// target is renewed as if there were no target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RotationStrategy {
    availability_target: Option<time::Duration>,
}

impl RotationStrategy {
    /// With a target, which the configuration keeps at a day or more.
    pub fn new(availability_target: Option<Duration>) -> Self {
        let target =
            availability_target.map(|target| time::Duration::try_from(target).unwrap_or(time::Duration::MAX));
        Self {
            availability_target: target,
        }
    }

    /// How much of its lifetime an SVID has left when it is to be renewed; `drawn` in `[0, 1)` spreads it.
    pub fn remaining_at_renewal(self, leaf: &Certificate, drawn: f64) -> time::Duration {
        let half = x509_remaining_at_renewal(leaf, drawn);
        match self.availability_target {
            Some(target) if !self.falls_back(leaf) => half.max(target.saturating_add(SPREAD * drawn)),
            _ => half,
        }
    }

    /// When an SVID that was issued `now` is to be renewed. Counted from when it came by this machine's clock, which
    /// may be ahead of the server's: else each SVID might be due as soon as it is there.
    pub fn renew_at(self, leaf: &Certificate, now: OffsetDateTime, drawn: f64) -> OffsetDateTime {
        let end = leaf.not_after();
        let at = end - self.remaining_at_renewal(leaf, drawn);
        let has_target = self.availability_target.is_some() && !self.falls_back(leaf);
        if at > now && has_target {
            return at;
        }
        let left = (end - now).clamp(time::Duration::ZERO, life(leaf));
        end - remaining_at_renewal(end - left, end, drawn)
    }

    /// Whether there is a target that an SVID with such a life cannot reach.
    pub fn falls_back(self, leaf: &Certificate) -> bool {
        let life = leaf.not_after() - leaf.not_before();
        self.availability_target
            .is_some_and(|target| life.saturating_sub(target) <= GRACE)
    }
}

/// The share of its lifetime that an SVID has left when it is to be renewed: half, with `drawn` in `[0, 1)`
/// moving it within `[0.45, 0.55]` so that agents started together do not renew together.
pub fn remaining_at_renewal(from: OffsetDateTime, until: OffsetDateTime, drawn: f64) -> time::Duration {
    (until - from) * (0.45 + 0.1 * drawn)
}

/// The same for a certificate, whose life is counted without the time it is backdated by.
fn x509_remaining_at_renewal(leaf: &Certificate, drawn: f64) -> time::Duration {
    remaining_at_renewal(leaf.not_after() - life(leaf), leaf.not_after(), drawn)
}

/// The ten seconds that servers backdate certificates by are no part of a life: else one of less than ten seconds
/// would be due from the start.
pub(super) fn life(leaf: &Certificate) -> time::Duration {
    let life = leaf.not_after() - leaf.not_before();
    let backdated = if life > BACKDATE { BACKDATE } else { life / 2 };
    life - backdated
}

/// By which servers set the begin of a certificate back.
const BACKDATE: time::Duration = time::Duration::seconds(10);
const SPREAD: time::Duration = time::Duration::minutes(10);
/// Else the SVIDs would be renewed almost without pause.
const GRACE: time::Duration = time::Duration::hours(12);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::Authority;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    fn remaining(target_hours: Option<u64>, life_hours: i64, drawn: f64) -> time::Duration {
        let end = NOW + time::Duration::hours(life_hours) + time::Duration::seconds(10);
        let leaf = Authority::new("example.org").leaf("/a", NOW, end);
        let target = target_hours.map(|hours| Duration::from_secs(hours * 3600));
        RotationStrategy::new(target).remaining_at_renewal(&leaf, drawn)
    }

    #[test]
    fn without_a_target_about_half_of_the_life_is_left() {
        assert_eq!(remaining(None, 100, 0.0), time::Duration::hours(45));
        assert_eq!(remaining(None, 100, 1.0), time::Duration::hours(55));
    }

    #[test]
    fn with_a_target_so_much_is_left_and_up_to_ten_minutes_more() {
        assert_eq!(remaining(Some(24), 37, 0.0), time::Duration::hours(24));
        let most = time::Duration::hours(24) + time::Duration::minutes(10);
        assert_eq!(remaining(Some(24), 37, 1.0), most);
    }

    #[test]
    fn by_a_clock_that_is_ahead_half_of_what_is_left_remains() {
        let end = NOW + time::Duration::hours(1);
        let leaf = Authority::new("example.org").leaf("/a", NOW - time::Duration::seconds(10), end);
        let renew_at = |now| RotationStrategy::default().renew_at(&leaf, now, 0.5) - NOW;
        assert_eq!(renew_at(NOW), time::Duration::minutes(30));
        assert_eq!(
            renew_at(NOW + time::Duration::minutes(40)),
            time::Duration::minutes(50)
        );
        assert_eq!(
            renew_at(NOW - time::Duration::hours(1)),
            time::Duration::minutes(30)
        );
        let day = RotationStrategy::new(Some(Duration::from_secs(24 * 3600)));
        let end = NOW + time::Duration::hours(40);
        let leaf = Authority::new("example.org").leaf("/a", NOW, end);
        assert_eq!(end - day.renew_at(&leaf, NOW, 0.0), time::Duration::hours(24));
        let late = NOW + time::Duration::hours(20);
        assert!(day.renew_at(&leaf, late, 0.0) > late + time::Duration::hours(9));
    }

    #[test]
    fn a_target_below_half_of_the_life_changes_nothing() {
        assert_eq!(remaining(Some(24), 100, 0.5), time::Duration::hours(50));
    }

    #[test]
    fn a_life_of_no_more_than_twelve_hours_beyond_the_target_falls_back_to_half() {
        assert_eq!(remaining(Some(24), 35, 0.0), time::Duration::hours(35) * 0.45);
        let leaf = |seconds: i64| {
            let end = NOW + time::Duration::hours(36) + time::Duration::seconds(seconds);
            Authority::new("example.org").leaf("/a", NOW, end)
        };
        let strategy = RotationStrategy::new(Some(Duration::from_secs(24 * 3600)));
        assert!(strategy.falls_back(&leaf(0)) && !strategy.falls_back(&leaf(1)));
        assert!(!RotationStrategy::default().falls_back(&leaf(0)));
    }
}
