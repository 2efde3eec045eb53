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

/// One bucket.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
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
    /// Takes one token, if there is one.
    pub(super) fn take(&mut self, key: (Holder, &'static str), rate: Rate, now: Instant) -> bool {
        let level = self.level(key, rate, now);
        let is_there = level.now(now) >= 1.0;
        level.take(if is_there { 1.0 } else { 0.0 }, now);
        is_there
    }

    /// Takes tokens of the bucket for all methods, also those that are not there: a caller that does not stop asking waits the
    /// longer, but not forever.
    pub(super) fn spend(&mut self, holder: Holder, cost: f64, rate: Rate, now: Instant) {
        self.level((holder, ""), rate, now).take(cost, now);
    }

    fn level(&mut self, key: (Holder, &'static str), rate: Rate, now: Instant) -> &mut Level {
        if self.levels.len() >= self.sweep_at.max(SWEEP_MIN) {
            self.levels.retain(|_key, level| !level.is_full(now));
            self.sweep_at = 2 * self.levels.len();
        }
        self.levels.entry(key).or_insert_with(|| Level::full(rate, now))
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
    /// A full bucket.
    pub(super) fn full(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            tokens: rate.burst,
            at: now,
        }
    }

    /// Takes tokens, owing what is not there, up to as many as the bucket holds.
    pub(super) fn take(&mut self, cost: f64, now: Instant) {
        self.tokens = (self.now(now) - cost).max(-self.rate.burst);
        self.at = now;
    }

    /// How long it takes until there is a token.
    pub(super) fn missing(&self, now: Instant) -> Duration {
        let missing = (1.0 - self.now(now)) / self.rate.per_second;
        Duration::from_secs_f64(missing.max(0.0))
    }

    /// Whether it holds as much as it can.
    pub(super) fn is_full(&self, now: Instant) -> bool {
        self.now(now) >= self.rate.burst
    }

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
        (0..63).for_each(|_| rates.spend(holder, 1.0, rate, now));
        assert_eq!(rates.used_up_until(holder, now), None);
        rates.spend(holder, 1.0, rate, now);
        let wait = |rates: &Rates| rates.used_up_until(holder, now).unwrap() - now;
        let first = wait(&rates);
        rates.spend(holder, 16.0, rate, now);
        assert!(
            wait(&rates) >= first + Duration::from_millis(249),
            "{:?}",
            wait(&rates)
        );
        (0..1000).for_each(|_| rates.spend(holder, 1.0, rate, now));
        assert!(wait(&rates) < Duration::from_millis(1100), "{:?}", wait(&rates));
        assert_eq!(rates.used_up_until(Holder::User(8), now), None);
        assert_eq!(rates.used_up_until(holder, now + Duration::from_secs(2)), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_is_not_there_is_not_given_and_not_owed() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        let key = (Holder::User(7), "fetch_jwt_svid");
        let mut take = |at| rates.take(key, Rate::of(2), at);
        assert_eq!(
            [take(now), take(now), take(now), take(now)],
            [true, true, false, false]
        );
        let later = now + Duration::from_millis(500);
        assert_eq!([take(later), take(later)], [true, false]);
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
