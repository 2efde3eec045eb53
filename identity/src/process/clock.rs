//! The time, passed as a parameter wherever it is needed.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use rustls::pki_types::UnixTime;
use rustls::time_provider::TimeProvider;
use time::{Duration, OffsetDateTime};

/// Tells the time in UTC. Cheap to clone; clones show the same time.
///
/// Production uses [`Clock::system`]. Tests use [`Clock::paused_at`], which advances with tokio's
/// (pausable) time so that timers and certificate lifetimes move together, or [`Clock::offset`],
/// the system's time moved by an amount. It is also rustls' source of time.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    Shifted {
        shift: Shift,
    },
    Tokio {
        start: OffsetDateTime,
        since: tokio::time::Instant,
        shift: Shift,
    },
}

impl Clock {
    /// The operating system's clock.
    pub fn system() -> Self {
        Self {
            source: Source::System,
        }
    }

    /// A clock that shows `start` now and advances with [`tokio::time::Instant`].
    pub fn paused_at(start: OffsetDateTime) -> Self {
        Self {
            source: Source::Tokio {
                start,
                since: tokio::time::Instant::now(),
                shift: Shift::default(),
            },
        }
    }

    /// The operating system's clock moved by `by`, as on a machine whose clock is wrong.
    pub fn offset(by: Duration) -> Self {
        let shift = Shift::default();
        shift.add(by);
        Self {
            source: Source::Shifted { shift },
        }
    }

    /// Moves a test clock (and its clones) by `by`, which may be negative, as when an operator
    /// sets the machine's clock. The system's clock is not ours to set: returns false.
    pub fn shift(&self, by: Duration) -> bool {
        match &self.source {
            Source::System => false,
            Source::Shifted { shift } | Source::Tokio { shift, .. } => {
                shift.add(by);
                true
            }
        }
    }

    /// The present time, in UTC.
    pub fn now(&self) -> OffsetDateTime {
        match &self.source {
            Source::System => system_now(),
            Source::Shifted { shift } => system_now().saturating_add(shift.amount()),
            Source::Tokio { start, since, shift } => {
                let elapsed = Duration::try_from(since.elapsed()).unwrap_or(Duration::MAX);
                start.saturating_add(elapsed).saturating_add(shift.amount())
            }
        }
    }

    /// The present time in whole seconds since 1970-01-01T00:00:00Z.
    pub fn unix(&self) -> i64 {
        self.now().unix_timestamp()
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.unix()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    }
}

/// Nanoseconds added to a test clock, shared by its clones.
#[derive(Clone, Debug, Default)]
struct Shift(Arc<AtomicI64>);

impl Shift {
    fn add(&self, by: Duration) {
        let nanos = i64::try_from(by.whole_nanoseconds()).unwrap_or(if by.is_negative() {
            i64::MIN
        } else {
            i64::MAX
        });
        // Updates of a counter that nothing else is ordered by.
        let _previous = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
            Some(now.saturating_add(nanos))
        });
    }

    fn amount(&self) -> Duration {
        Duration::nanoseconds(self.0.load(Ordering::Relaxed))
    }
}

#[allow(clippy::disallowed_methods)] // The one place where the time is read.
fn system_now() -> OffsetDateTime {
    OffsetDateTime::now_utc()
}

#[cfg(test)]
mod tests {
    use super::*;
    use time::macros::datetime;

    const START: OffsetDateTime = datetime!(2030-01-02 03:04:05 UTC);

    #[tokio::test(start_paused = true)]
    async fn advances_with_tokio_time_only() {
        let clock = Clock::paused_at(START);
        assert_eq!(clock.now(), START);
        tokio::time::advance(std::time::Duration::from_secs(90)).await;
        assert_eq!(clock.now(), START + Duration::seconds(90));
        assert_eq!(clock.clone().unix(), START.unix_timestamp() + 90);
    }

    #[tokio::test(start_paused = true)]
    async fn shift_moves_every_clone_in_both_directions() {
        let clock = Clock::paused_at(START);
        let other = clock.clone();
        assert!(clock.shift(Duration::hours(2)));
        assert_eq!(other.now(), START + Duration::hours(2));
        assert!(other.shift(Duration::hours(-5)));
        assert_eq!(clock.now(), START - Duration::hours(3));
    }

    #[test]
    fn system_clock_is_in_utc_and_cannot_be_shifted() {
        let clock = Clock::system();
        assert!(!clock.shift(Duration::hours(1)));
        assert!(clock.now().offset().is_utc());
        let ahead = Clock::offset(Duration::days(400)).now() - clock.now();
        assert!(ahead > Duration::days(399) && ahead < Duration::days(401));
    }

    #[tokio::test(start_paused = true)]
    async fn gives_rustls_the_same_time_and_none_before_1970() {
        let clock = Clock::paused_at(START);
        assert_eq!(
            clock.current_time().map(|t| t.as_secs()),
            Some(START.unix_timestamp().unsigned_abs())
        );
        assert!(
            Clock::paused_at(datetime!(1960-01-01 0:00 UTC))
                .current_time()
                .is_none()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn absurd_shifts_stop_at_the_limits_instead_of_panicking() {
        let clock = Clock::paused_at(START);
        clock.shift(Duration::MAX);
        clock.shift(Duration::MAX);
        assert!(clock.now() > START);
        clock.shift(Duration::MIN);
        clock.shift(Duration::MIN);
        assert!(clock.now() < START);
    }
}
