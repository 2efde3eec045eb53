//! How long to wait before the next attempt.

use std::time::Duration;

/// Doubles from a first pause to the longest; each pause is spread by a tenth, so that the processes of a node do not
/// come back all at once.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    random: fn() -> f64,
}

impl Backoff {
    /// `random` gives numbers from 0 to 1.
    pub(super) fn new(first: Duration, longest: Duration, random: fn() -> f64) -> Self {
        Self {
            first,
            longest,
            next: first,
            random,
        }
    }

    /// The pause before the next attempt.
    pub(super) fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.longest);
        pause.mul_f64(0.9 + 0.2 * (self.random)().clamp(0.0, 1.0))
    }

    /// An attempt went well.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_the_longest_and_starts_again_after_success() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5), || 0.5);
        let mut pauses = || backoff.pause().as_secs_f64().round() as u64;
        assert_eq!(
            [pauses(), pauses(), pauses(), pauses(), pauses()],
            [1, 2, 4, 5, 5]
        );
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::from_secs(1));
    }

    #[test]
    fn is_spread_by_a_tenth() {
        let pause = |random| Backoff::new(Duration::from_secs(10), Duration::from_secs(10), random).pause();
        assert_eq!(pause(|| 0.0), Duration::from_secs(9));
        assert_eq!(pause(|| 1.0), Duration::from_secs(11));
        assert_eq!(pause(|| 7.0), Duration::from_secs(11));
    }
}
