//! Returns memory to the system after many connections were closed, as when a node's pods are replaced: the
//! allocator would keep it otherwise.

use std::convert::Infallible;
use std::time::Duration;

use finial_identity::process::{Stop, sys};

use super::Admission;

/// Between looks.
const LOOK: Duration = Duration::from_secs(2);
/// With fewer closed connections, returning their memory is not worth the milliseconds that it takes.
const CROWD: usize = 500;

/// How many connections there were and are.
#[derive(Debug, Default)]
struct Crowd {
    most: usize,
    last: usize,
}

impl Crowd {
    /// Whether many connections were closed, and none is being opened or closed now. Called once in each interval.
    fn has_left(&mut self, open: usize) -> bool {
        let is_calm = open.abs_diff(self.last) < CROWD / 10;
        self.last = open;
        self.most = self.most.max(open);
        let left = self.most - open >= CROWD && self.most >= 2 * open;
        if left && is_calm {
            self.most = open;
            return true;
        }
        false
    }
}

/// Looks at the connections of `admission` until stopped.
///
/// # Errors
/// None; the type is what task sets expect.
pub async fn trim_after_crowds(admission: Admission, stop: Stop) -> Result<(), Infallible> {
    let mut crowd = Crowd::default();
    loop {
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = tokio::time::sleep(LOOK) => {}
        }
        if crowd.has_left(admission.open()) {
            // Off the thread that serves: it takes milliseconds for hundreds of megabytes.
            let _done = tokio::task::spawn_blocking(sys::malloc_trim).await;
            tracing::debug!("memory of connections that ended was given back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crowd_that_has_left_is_noticed_once_and_when_it_is_calm() {
        let mut crowd = Crowd::default();
        let mut seen = |open| crowd.has_left(open);
        assert!(!seen(10_000));
        assert!(!seen(10_000));
        assert!(!seen(5_001), "half are still here");
        assert!(!seen(100), "they are leaving");
        assert!(seen(90));
        assert!(!seen(90), "once");
        assert!(!seen(400) && !seen(0) && !seen(0), "a few are no crowd");
        assert!(!seen(1_000) && !seen(0));
        assert!(seen(0), "the next crowd");
    }
}
