//! When a failure that goes on is told again, so that the last hour of a log always shows it.

use std::time::Duration;

use time::OffsetDateTime;
use tokio::time::Instant;

/// Paces what is logged of one failure: the first time at once, then after a minute, two, four, and every hour at last.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reminder {
    /// When it was told last, and for how long nothing is said then.
    told: Option<(Instant, Duration)>,
}

impl Reminder {
    /// Of something that has been told elsewhere.
    pub fn told(now: Instant) -> Self {
        Self {
            told: Some((now, FIRST_PAUSE)),
        }
    }

    /// Whether a failure is to be told now. If so it counts as told.
    pub fn is_due(&mut self, now: Instant) -> bool {
        let pause = match self.told {
            None => FIRST_PAUSE,
            Some((at, pause)) if now.saturating_duration_since(at) < pause => return false,
            Some((_at, pause)) => pause.saturating_mul(2).min(LONGEST_PAUSE),
        };
        self.told = Some((now, pause));
        true
    }

    /// It is over. Returns whether it was ever told.
    pub fn end(&mut self) -> bool {
        self.told.take().is_some()
    }
}

/// For how long what expires then is valid still, in whole seconds.
pub fn valid_for(expires_at: OffsetDateTime, now: OffsetDateTime) -> Duration {
    let left = (expires_at - now).whole_seconds();
    Duration::from_secs(u64::try_from(left).unwrap_or(0))
}

const FIRST_PAUSE: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn tells_at_once_then_ever_more_rarely_and_at_least_every_hour() {
        let mut reminder = Reminder::default();
        let start = Instant::now();
        let told = (0..400).filter(|minute| reminder.is_due(start + MINUTE * *minute));
        assert_eq!(
            told.collect::<Vec<_>>(),
            [0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303, 363]
        );
        assert!(reminder.end() && !reminder.end());
        assert!(reminder.is_due(start));
        let mut elsewhere = Reminder::told(start);
        assert!(!elsewhere.is_due(start) && elsewhere.is_due(start + MINUTE));
    }

    #[test]
    fn what_has_expired_is_valid_for_no_time() {
        let now = OffsetDateTime::UNIX_EPOCH;
        assert_eq!(
            valid_for(now + Duration::from_millis(2500), now),
            Duration::from_secs(2)
        );
        assert_eq!(valid_for(now - Duration::from_secs(9), now), Duration::ZERO);
    }
}
