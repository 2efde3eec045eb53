//! Quantiles of recent measurements, in bounded memory.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// How far quantiles look back.
const HORIZON: Duration = Duration::from_secs(60);
/// How many measurements are kept; with more than these in [`HORIZON`], quantiles are of the latest.
const MOST: usize = 256;

/// Sum and count since the start, and the latest measurements.
#[derive(Clone, Debug, Default)]
pub(super) struct Summary {
    sum: f64,
    count: u64,
    recent: VecDeque<(Instant, f64)>,
}

impl Summary {
    pub(super) fn add(&mut self, value: f64, now: Instant) {
        self.sum += value;
        self.count += 1;
        while self.recent.len() >= MOST || self.recent.front().is_some_and(|(at, _)| is_old(*at, now)) {
            self.recent.pop_front();
        }
        self.recent.push_back((now, value));
    }

    /// Takes over what another one holds, as when a label that kept them apart is not shown.
    pub(super) fn merge(&mut self, other: Self) {
        self.sum += other.sum;
        self.count += other.count;
        self.recent.extend(other.recent);
    }

    pub(super) fn sum(&self) -> f64 {
        self.sum
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The quantiles of what was measured within [`HORIZON`], each by nearest rank; not a number when that is
    /// nothing.
    pub(super) fn quantiles<const N: usize>(&self, wanted: [f64; N], now: Instant) -> [f64; N] {
        let mut values: Vec<f64> = self
            .recent
            .iter()
            .filter(|(at, _)| !is_old(*at, now))
            .map(|(_, value)| *value)
            .collect();
        values.sort_unstable_by(f64::total_cmp);
        wanted.map(|quantile| {
            let rank = (quantile * values.len() as f64).ceil() as usize;
            values.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        })
    }
}

fn is_old(at: Instant, now: Instant) -> bool {
    now.saturating_duration_since(at) > HORIZON
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn quantiles_are_of_the_last_minute_and_totals_of_all_time() {
        let mut summary = Summary::default();
        for value in 1..=100 {
            summary.add(f64::from(value), Instant::now());
        }
        assert_eq!(
            summary.quantiles([0.5, 0.9, 0.99], Instant::now()),
            [50.0, 90.0, 99.0]
        );
        tokio::time::advance(HORIZON + Duration::from_secs(1)).await;
        summary.add(7.0, Instant::now());
        assert_eq!(summary.quantiles([0.5, 0.99], Instant::now()), [7.0, 7.0]);
        assert_eq!((summary.sum(), summary.count()), (5057.0, 101));
        assert_eq!(summary.recent.len(), 1, "what is old is not kept");
        tokio::time::advance(HORIZON + Duration::from_secs(1)).await;
        assert!(summary.quantiles([0.5], Instant::now())[0].is_nan());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_kept_than_allowed() {
        let mut summary = Summary::default();
        for value in 0..10_000 {
            summary.add(f64::from(value), Instant::now());
        }
        assert_eq!(summary.recent.len(), MOST);
        assert_eq!(summary.quantiles([0.99], Instant::now())[0], 9997.0);
    }
}
