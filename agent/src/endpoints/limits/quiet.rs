//! Closes idle connections.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long a client may take to begin HTTP/2: the preface and the head of its settings.
const GREETING: Duration = Duration::from_secs(10);
const GREETING_BYTES: usize = 24 + 9;
/// How long a connection without an open call stays open after the last data from the client. Clients connect again without
/// being told to.
const IDLE: Duration = Duration::from_secs(10 * 60);

/// Watches how long a client has been quiet.
#[derive(Debug)]
pub struct Quiet {
    /// Checked when it has expired; not restarted with each byte.
    timer: Pin<Box<Sleep>>,
    heard: usize,
    last: Instant,
}

impl Quiet {
    /// For a connection that begins now.
    pub fn begin() -> Self {
        Self {
            timer: Box::pin(tokio::time::sleep(GREETING)),
            heard: 0,
            last: Instant::now(),
        }
    }

    /// Notes that the client sent so many bytes.
    pub fn heard(&mut self, bytes: usize) {
        self.heard = self.heard.saturating_add(bytes);
        self.last = Instant::now();
    }

    /// Completes when the connection is to be closed. `is_idle` tells whether no call is open on it.
    pub fn poll(&mut self, cx: &mut Context<'_>, is_idle: bool) -> Poll<io::Error> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.heard < GREETING_BYTES || (is_idle && now >= self.last + IDLE) {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            let next = if is_idle { self.last + IDLE } else { now + IDLE };
            self.timer.as_mut().reset(next);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// After how many seconds a connection is closed.
    async fn closed_after(mut quiet: Quiet, is_idle: bool) -> Option<u64> {
        let begun = Instant::now();
        let day = Duration::from_secs(24 * 3600);
        tokio::time::timeout(day, poll_fn(|cx| quiet.poll(cx, is_idle)))
            .await
            .ok()?;
        Some(begun.elapsed().as_secs())
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_says_half_a_greeting_has_ten_seconds() {
        assert_eq!(closed_after(Quiet::begin(), true).await, Some(10));
        let mut half = Quiet::begin();
        half.heard(24);
        assert_eq!(closed_after(half, true).await, Some(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_stays_while_a_call_is_open_and_some_minutes_without() {
        let greeted = || {
            let mut quiet = Quiet::begin();
            quiet.heard(GREETING_BYTES);
            quiet
        };
        assert_eq!(closed_after(greeted(), false).await, None);
        assert_eq!(closed_after(greeted(), true).await, Some(600));
        let mut busy = greeted();
        tokio::time::advance(Duration::from_secs(300)).await;
        busy.heard(1);
        assert_eq!(closed_after(busy, true).await, Some(600), "from the last byte on");
    }
}
