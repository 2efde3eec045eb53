//! Token buckets.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::who::Holder;

/// Fewer buckets than these are not swept.
const SWEEP_MIN: usize = 1024;
/// The part of a burst that is waited for when all was used up.
const SOME: f64 = 64.0;

/// How fast a bucket fills, and how much it holds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rate {
    pub(super) per_second: f64,
    pub(super) burst: f64,
}

/// The buckets that are not known to be full, by their holder and the method, which is empty for all methods.
#[derive(Debug, Default)]
pub(super) struct Rates {
    levels: HashMap<(Holder, &'static str), Level>,
    sweep_at: usize,
}

#[derive(Clone, Copy, Debug)]
struct Level {
    rate: Rate,
    tokens: f64,
    at: Instant,
}

impl Rate {
    /// So many a second, and so many at once.
    pub(super) fn of(limit: u32) -> Self {
        Self {
            per_second: f64::from(limit),
            burst: f64::from(limit),
        }
    }
}

impl Rates {
    /// Takes one token, if there is one. Of the bucket for all methods one is owed otherwise: whoever does not stop
    /// asking waits the longer.
    pub(super) fn take(&mut self, key: (Holder, &'static str), rate: Rate, now: Instant) -> bool {
        if self.levels.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.levels
                .retain(|_key, level| level.now(now) < level.rate.burst);
            self.sweep_at = 2 * self.levels.len();
        }
        let level = self.levels.entry(key).or_insert(Level {
            rate,
            tokens: rate.burst,
            at: now,
        });
        let tokens = level.now(now);
        let is_there = tokens >= 1.0;
        let owes = key.1.is_empty();
        level.tokens = match is_there {
            true => tokens - 1.0,
            false if owes => (tokens - 1.0).max(-rate.burst),
            false => tokens,
        };
        level.at = now;
        is_there
    }

    /// Until when a holder that has used up what it may has nothing to expect; then it has some tokens at once.
    pub(super) fn used_up_until(&self, holder: Holder, now: Instant) -> Option<Instant> {
        let level = self.levels.get(&(holder, ""))?;
        let tokens = level.now(now);
        let missing = (level.rate.burst / SOME - tokens) / level.rate.per_second;
        (tokens < 1.0).then(|| now + Duration::from_secs_f64(missing.max(0.0)))
    }
}

impl Level {
    fn now(&self, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.tokens + passed * self.rate.per_second).min(self.rate.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_does_not_stop_asking_waits_the_longer_and_not_for_ever() {
        let (mut rates, now, holder) = (Rates::default(), Instant::now(), Holder::User(7));
        let rate = Rate::of(64);
        assert!((0..64).all(|_| rates.take((holder, ""), rate, now)));
        let wait = |rates: &Rates| rates.used_up_until(holder, now).unwrap() - now;
        let first = wait(&rates);
        assert!(!rates.take((holder, ""), rate, now) && wait(&rates) > first);
        assert!((0..1000).all(|_| !rates.take((holder, ""), rate, now)));
        assert!(wait(&rates) < Duration::from_millis(1100), "{:?}", wait(&rates));
        assert_eq!(rates.used_up_until(Holder::User(8), now), None);
        assert_eq!(rates.used_up_until(holder, now + Duration::from_secs(2)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn full_buckets_are_forgotten() {
        let mut rates = Rates::default();
        let now = Instant::now();
        for uid in 0..5_000 {
            assert!(rates.take((Holder::User(uid), ""), Rate::of(1), now));
        }
        assert!(!rates.take((Holder::User(7), ""), Rate::of(1), now));
        let later = now + Duration::from_secs(2);
        for uid in 5_000..20_000 {
            assert!(rates.take((Holder::User(uid), ""), Rate::of(1), later));
        }
        assert!(rates.levels.len() <= 15_000, "{}", rates.levels.len());
        assert!(!rates.levels.contains_key(&(Holder::User(7), "")));
    }
}
