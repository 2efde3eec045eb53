//! Longer waits after each failure, with jitter, so that agents do not retry at the same time.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Where randomness for timers comes from: a function that draws evenly from `[0, 1)`.
#[derive(Clone)]
pub struct Jitter(Arc<dyn Fn() -> f64 + Send + Sync>);

/// Exponential waiting: each failure waits half as long again as the one before, up to a limit, each
/// time ±10 %.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    limit: Duration,
    failures: u32,
    jitter: Jitter,
}

impl Jitter {
    /// Draws from `draw`.
    pub fn new(draw: impl Fn() -> f64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(draw))
    }

    /// Draws from the system's randomness.
    pub fn random() -> Self {
        Self::new(rand::random::<f64>)
    }

    /// A number in `[0, 1)`.
    pub fn draw(&self) -> f64 {
        let drawn = (self.0)();
        if drawn.is_finite() {
            drawn.clamp(0.0, 1.0)
        } else {
            0.5
        }
    }

    /// `duration` ±10 %.
    pub fn around(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.9 + 0.2 * self.draw())
    }
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

impl fmt::Debug for Jitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jitter")
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
    fn stays_within_ten_percent_whatever_is_drawn() {
        for (drawn, millis) in [(0.0, 900), (0.999_999_9, 1099), (f64::NAN, 1000), (7.0, 1100)] {
            let jitter = Jitter::new(move || drawn);
            assert_eq!(jitter.around(Duration::from_secs(1)).as_millis(), millis);
        }
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut backoff = Backoff::new(Duration::from_secs(5), Duration::from_secs(60), Jitter::random());
        let longest = (0..1000).map(|_| backoff.failed()).max();
        assert!(longest <= Some(Duration::from_secs(66)));
    }
}
