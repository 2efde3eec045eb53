//! How long the agent has been looking for a server to trust, and how often it asked the configured source for help.

use tokio::time::Instant;

use crate::telemetry::metrics;

/// What is told of the present search, or of the last one.
#[derive(Debug, Default)]
pub(super) struct Bootstrapping {
    search: Option<Search>,
}

#[derive(Debug)]
struct Search {
    mode: &'static str,
    began: Instant,
    attempts: u32,
}

impl Bootstrapping {
    /// The source is asked: for the first time in this agent's life, or `is_again` because the server is not trusted any
    /// more.
    pub(super) fn attempt(&mut self, is_again: bool) {
        let mode = if is_again { "rebootstrap" } else { "bootstrap" };
        let held = self.search.take().filter(|search| search.mode == mode);
        let mut search = held.unwrap_or_else(|| Search {
            mode,
            began: Instant::now(),
            attempts: 0,
        });
        search.attempts = search.attempts.saturating_add(1);
        search.show();
        self.search = Some(search);
    }

    /// A server was trusted.
    pub(super) fn done(&mut self) {
        if let Some(search) = self.search.take() {
            search.show();
        }
    }
}

impl Search {
    fn show(&self) {
        let labels = [("mode", self.mode)];
        let lasted = self.began.elapsed().as_secs_f64();
        metrics().set("bootstrap_seconds", &labels, lasted);
        metrics().set("bootstrap_attempts", &labels, f64::from(self.attempts));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use finial_identity::metrics::{Exposition, Polled};

    use super::*;

    fn shown() -> String {
        let all = Exposition::default().render(metrics(), Polled::default());
        let of_mode = all.lines().filter(|line| line.contains("mode=\"rebootstrap\""));
        of_mode.collect::<Vec<_>>().join("\n")
    }

    /// Nothing else in the tests of this crate returns to its source and looks at these numbers.
    #[tokio::test(start_paused = true)]
    async fn each_search_is_counted_and_timed_from_its_first_attempt() {
        let mut bootstrapping = Bootstrapping::default();
        for _ in 0..3 {
            bootstrapping.attempt(true);
            tokio::time::advance(Duration::from_secs(2)).await;
        }
        bootstrapping.done();
        let text = shown();
        assert!(
            text.contains("bootstrap_seconds{mode=\"rebootstrap\"} 6"),
            "{text}"
        );
        assert!(
            text.contains("bootstrap_attempts{mode=\"rebootstrap\"} 3"),
            "{text}"
        );
        bootstrapping.done();
        assert_eq!(shown(), text, "it is over");
        bootstrapping.attempt(true);
        let text = shown();
        assert!(
            text.contains("bootstrap_seconds{mode=\"rebootstrap\"} 0"),
            "{text}"
        );
        assert!(
            text.contains("bootstrap_attempts{mode=\"rebootstrap\"} 1"),
            "{text}"
        );
    }
}
