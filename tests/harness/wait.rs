//! Waiting for a condition, with a limit and a name for the message.

use std::time::{Duration, Instant};

const SHORTEST_PAUSE: Duration = Duration::from_millis(25);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// Polls `probe` until it gives a value; panics with `what` and the last error at the limit.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> anyhow::Result<T>) -> T {
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        let error = match probe() {
            Ok(value) => return value,
            Err(error) => error,
        };
        assert!(
            start.elapsed() < limit,
            "gave up waiting for {what} after {limit:?}: {error:#}"
        );
        // A probe that is itself work, such as a program, must not keep from working what it waits for.
        std::thread::sleep(asked.elapsed().clamp(SHORTEST_PAUSE, LONGEST_PAUSE));
    }
}

/// [`wait_for`] over a yes-or-no condition.
pub fn wait_until(what: &str, limit: Duration, mut holds: impl FnMut() -> bool) {
    wait_for(what, limit, || {
        if holds() {
            Ok(())
        } else {
            anyhow::bail!("does not hold yet")
        }
    });
}
