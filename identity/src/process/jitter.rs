//! Chance, passed as a parameter wherever timers need it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Where randomness for timers comes from: a function that draws evenly from `[0, 1)`.
#[derive(Clone)]
pub struct Jitter(Arc<dyn Fn() -> f64 + Send + Sync>);

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

    /// `duration` ±20 %, for what many begin at the same time.
    pub fn wide_around(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.8 + 0.4 * self.draw())
    }
}

impl fmt::Debug for Jitter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jitter")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_near_whatever_is_drawn() {
        for (drawn, near, wide) in [
            (0.0, 900, 800),
            (0.999_999_9, 1099, 1199),
            (f64::NAN, 1000, 1000),
            (7.0, 1100, 1200),
        ] {
            let jitter = Jitter::new(move || drawn);
            let second = Duration::from_secs(1);
            assert_eq!(jitter.around(second).as_millis(), near);
            assert_eq!(jitter.wide_around(second).as_millis(), wide);
        }
    }
}
