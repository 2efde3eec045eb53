//! Longer waits after each failure, with jitter, so that agents do not retry at the same time.

use std::time::Duration;

use finial_identity::process::Jitter;

/// Exponential waiting: each failure waits half as long again as the one before, up to a limit, each
/// time ±10 %.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
    jitter: Jitter,
}

impl Backoff {
    /// Starts with `first` and never waits for (much) longer than `limit`.
    pub fn new(first: Duration, limit: Duration, jitter: Jitter) -> Self {
        Self {
            first,
            limit,
            failures: 0,
            jitter,
        }
    }

    /// How long to wait after one more failure.
    pub fn failed(&mut self) -> Duration {
        let exponent = i32::try_from(self.failures.min(MAX_EXPONENT)).unwrap_or(0);
        self.failures = self.failures.saturating_add(1);
        let wait = self.first.mul_f64(FACTOR.powi(exponent)).min(self.limit);
        self.jitter.around(wait)
    }

    /// Starts over, after a success.
    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// How often it failed since the last success.
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

const FACTOR: f64 = 1.5;
/// 1.5 to the 40th is over ten million: the limit has long been reached.
const MAX_EXPONENT: u32 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_by_half_up_to_the_limit_and_starts_over() {
        let mut backoff = Backoff::new(
            Duration::from_secs(2),
            Duration::from_secs(4),
            Jitter::new(|| 0.5),
        );
        let waits: Vec<_> = (0..4).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(waits, [2000, 3000, 4000, 4000]);
        backoff.reset();
        assert_eq!(backoff.failed().as_millis(), 2000);
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(60), Jitter::random());
        let longest = (0..1000).map(|_| backoff.failed()).max();
        assert!(longest <= Some(Duration::from_secs(66)));
    }
}
