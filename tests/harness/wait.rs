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
        std::thread::sleep(pause_after(asked));
    }
}

/// [`wait_for`] for a probe that is a future.
pub async fn wait_for_async<T, F>(what: &str, limit: Duration, mut probe: impl FnMut() -> F) -> T
where
    F: Future<Output = anyhow::Result<T>>,
{
    let start = Instant::now();
    loop {
        let asked = Instant::now();
        let error = match probe().await {
            Ok(value) => return value,
            Err(error) => error,
        };
        assert!(
            start.elapsed() < limit,
            "gave up waiting for {what} after {limit:?}: {error:#}"
        );
        tokio::time::sleep(pause_after(asked)).await;
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

/// A probe that is itself work, such as a program, must not keep from working what it waits for.
fn pause_after(asked: Instant) -> Duration {
    asked.elapsed().clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}
