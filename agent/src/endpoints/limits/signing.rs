//! How often something new is signed for one user or container. Calls above the limit wait, in the order of their
//! arrival.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::rates::{Level, Rate};
use super::who::{Holder, Who};

/// A server signs 500 times a second for one agent by default: no caller gets more than half of that.
const RATE: Rate = Rate {
    per_second: 250.0,
    burst: 500.0,
};
/// Fewer queues than these are not swept.
const SWEEP_MIN: usize = 1024;

/// A queue for each holder that has had something signed lately.
#[derive(Debug, Default)]
pub(super) struct Signing {
    queues: Mutex<HashMap<Holder, Arc<tokio::sync::Mutex<Level>>>>,
}

impl Signing {
    /// Waits for a turn of everybody to whose share it counts. Given up, it costs nothing.
    pub(super) async fn turn(&self, who: Who) {
        for holder in who.holders() {
            let queue = self.queue(holder);
            let mut level = queue.lock().await;
            let missing = level.missing(Instant::now());
            if missing > Duration::ZERO {
                tokio::time::sleep(missing).await;
            }
            level.take(1.0, Instant::now());
        }
    }

    fn queue(&self, holder: Holder) -> Arc<tokio::sync::Mutex<Level>> {
        let now = Instant::now();
        // Each queue is whole; a panic elsewhere leaves none half-changed.
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if queues.len() >= SWEEP_MIN {
            // Whoever waits has the lock or a reference of its own, taken under this lock.
            queues.retain(|_holder, queue| {
                let is_full = || queue.try_lock().is_ok_and(|level| level.is_full(now));
                Arc::strong_count(queue) > 1 || !is_full()
            });
        }
        let queue = queues.entry(holder);
        Arc::clone(queue.or_insert_with(|| Arc::new(tokio::sync::Mutex::new(Level::full(RATE, now)))))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_wants_much_signed_waits_and_nobody_else_does() {
        let signing = Signing::default();
        let (one, other) = (Who::from(1000), Who::from(1001));
        let begun = Instant::now();
        for _ in 0..500 {
            signing.turn(one).await;
        }
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(signing.turn(one).now_or_never().is_none());
        assert!(signing.turn(other).now_or_never().is_some());
        assert!(signing.turn(Who::from(0)).now_or_never().is_some());
        for _ in 0..250 {
            signing.turn(one).await;
        }
        let took = begun.elapsed().as_millis();
        assert!((990..=1300).contains(&took), "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_given_up_costs_nothing_and_containers_of_a_user_share_its_turns() {
        let signing = Signing::default();
        for namespace in 0..500 {
            signing.turn(Who::within(1000, namespace)).await;
        }
        for _ in 0..1000 {
            assert!(signing.turn(Who::from(1000)).now_or_never().is_none());
        }
        tokio::time::advance(Duration::from_millis(5)).await;
        assert!(signing.turn(Who::within(1000, 7)).now_or_never().is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn queues_that_nobody_needs_are_forgotten() {
        let signing = Signing::default();
        for uid in 1..=5_000 {
            signing.turn(Who::from(uid)).await;
            tokio::time::advance(Duration::from_millis(4)).await;
        }
        assert!(signing.queues.lock().unwrap().len() <= SWEEP_MIN);
    }
}
