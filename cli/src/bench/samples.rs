//! Measured times and their percentiles.

use std::time::Duration;

/// Times of one kind of event.
#[derive(Debug, Default, Clone)]
pub struct Samples {
    sorted: Vec<Duration>,
}

impl Samples {
    /// Of no event yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one time.
    pub fn push(&mut self, time: Duration) {
        let at = self.sorted.partition_point(|other| *other <= time);
        self.sorted.insert(at, time);
    }

    /// Adds many times.
    pub fn extend(&mut self, times: impl IntoIterator<Item = Duration>) {
        self.sorted.extend(times);
        self.sorted.sort_unstable();
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    /// The smallest time that `percent` of 100 events did not exceed (nearest rank); zero without events.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.sorted.len() * percent.min(100)).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or_default()
    }

    /// Half of the events took no longer.
    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    /// 99 of 100 events took no longer.
    pub fn p99(&self) -> Duration {
        self.percentile(99)
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.percentile(100)
    }
}

impl FromIterator<Duration> for Samples {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut samples = Samples::new();
        samples.extend(times);
        samples
    }
}

/// The middle one of some numbers; zero without any.
pub fn median(numbers: impl IntoIterator<Item = u64>) -> u64 {
    let mut sorted: Vec<u64> = numbers.into_iter().collect();
    sorted.sort_unstable();
    let middle = sorted.len().saturating_sub(1) / 2;
    sorted.get(middle).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_of_nearest_rank() {
        let samples: Samples = (1..=200).rev().map(Duration::from_millis).collect();
        assert_eq!(samples.p50(), Duration::from_millis(100));
        assert_eq!(samples.p99(), Duration::from_millis(198));
        assert_eq!(samples.worst(), Duration::from_millis(200));
        let one: Samples = [Duration::from_millis(7)].into_iter().collect();
        assert_eq!((one.p50(), one.p99()), (one.worst(), Duration::from_millis(7)));
        assert_eq!(Samples::new().p99(), Duration::ZERO);
    }

    #[test]
    fn times_that_come_one_by_one_are_kept_in_order() {
        let mut samples = Samples::new();
        for millis in [5, 1, 3, 3, 2] {
            samples.push(Duration::from_millis(millis));
        }
        assert_eq!(samples.len(), 5);
        assert_eq!(samples.p50(), Duration::from_millis(3));
        assert_eq!(samples.worst(), Duration::from_millis(5));
    }

    #[test]
    fn the_median_of_an_even_number_is_one_of_them() {
        assert_eq!(median([4, 1, 3, 2]), 2);
        assert_eq!(median([9, 1, 5]), 5);
        assert_eq!(median([]), 0);
    }
}
