//! When a bundle is fetched next. Pure.

use std::time::Duration;

use finial_identity::bundle::Bundle;

/// A hint below this counts as this, as in SPIRE: no endpoint is called more often than every [`SHORTEST`]` / `[`ASKED`].
const SHORTEST: Duration = Duration::from_secs(60);
/// So many times a bundle is asked for within the time of its hint, as in SPIRE, so that one that cannot be had once
/// or twice is not late. (A hint may be undercut: SPIFFE Trust Domain and Bundle §4.1.2.)
const ASKED: u32 = 4;
/// How long after a first failure a bundle is fetched again; each further one doubles it.
const RETRY: Duration = Duration::from_secs(15);
/// The part of the time that chance takes off, so that many servers do not ask at once.
const JITTER: f64 = 0.1;

/// How long to wait before the bundle is fetched again.
///
/// `held` is the bundle that is stored, `failures` how many fetches in a row failed: it is tried again soon, then ever
/// later, never later than after a success. `chance` lies between 0 and 1.
pub(super) fn delay(held: Option<&Bundle>, failures: u32, chance: f64) -> Duration {
    let hint = held.map_or(SHORTEST, |bundle| bundle.refresh_interval().max(SHORTEST));
    let interval = hint / ASKED;
    let wait = match failures {
        0 => interval,
        more => RETRY.saturating_mul(1 << (more - 1).min(16)).min(interval),
    };
    wait.mul_f64(1.0 - JITTER * chance.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use finial_identity::bundle::MAX_REFRESH;

    use super::super::testing::bundle;
    use super::*;

    fn hinted(hint: i64) -> Bundle {
        Bundle {
            refresh_hint: hint,
            ..bundle("a.test", 1)
        }
    }

    fn seconds(hint: i64, failures: u32, chance: f64) -> f64 {
        delay(Some(&hinted(hint)), failures, chance).as_secs_f64()
    }

    #[test]
    fn a_bundle_is_asked_for_four_times_within_its_hint() {
        assert_eq!(seconds(300, 0, 0.0), 75.0);
        assert_eq!(seconds(0, 0, 0.0), 75.0, "five minutes without a hint");
        assert_eq!(seconds(-5, 0, 0.0), 75.0);
        assert_eq!(seconds(1, 0, 0.0), 15.0, "nobody is asked without pause");
        let longest = (MAX_REFRESH / 4).as_secs_f64();
        assert_eq!(seconds(i64::MAX, 0, 0.0), longest);
        assert_eq!(delay(None, 0, 0.0).as_secs_f64(), 15.0);
    }

    #[test]
    fn a_failure_is_tried_again_soon_then_ever_later_and_never_later_than_success() {
        let delays = |hint: i64| -> Vec<f64> {
            [1, 2, 3, 4, 1000]
                .iter()
                .map(|failures| seconds(hint, *failures, 0.0))
                .collect()
        };
        assert_eq!(delays(300), [15.0, 30.0, 60.0, 75.0, 75.0]);
        assert_eq!(delays(86_400), [15.0, 30.0, 60.0, 120.0, 21_600.0]);
        assert_eq!(delays(60), [15.0; 5]);
        assert_eq!(delay(None, 7, 0.0).as_secs_f64(), 15.0);
    }

    #[test]
    fn chance_takes_off_a_tenth_at_most() {
        assert_eq!(seconds(400, 0, 1.0), 90.0);
        assert_eq!(seconds(400, 0, 0.5), 95.0);
    }
}
