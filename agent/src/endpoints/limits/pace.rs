//! Reads from a client no faster than its calls can be checked.
//!
//! A client may send thousands of requests at once. Each becomes a task, and later callers would wait for all of them.
//! So only a little is read at a time, alternating with other connections, and nothing is read for a while from a user
//! that calls faster than it can be served: its calls wait in the client and not here.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Admitted;

/// Most bytes in one go: about ten requests.
const PORTION: usize = 2048;

/// The pace of one connection.
#[derive(Debug, Default)]
pub struct Pace {
    /// The last portion was large, so there is more.
    is_greedy: bool,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// Reads a portion into `buf`, when it is this connection's turn.
    pub fn poll_read<IO: AsyncRead + Unpin>(
        &mut self,
        io: &mut IO,
        admitted: &Admitted,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if std::mem::take(&mut self.is_greedy) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match admitted.used_up_until(Instant::now()) {
                Some(until) => self.pause = Some(Box::pin(sleep_until(until))),
                None => break,
            }
        }
        let mut space = [0; PORTION];
        let room = buf.remaining().min(PORTION);
        let mut portion = ReadBuf::new(space.get_mut(..room).unwrap_or_default());
        ready!(Pin::new(io).poll_read(cx, &mut portion))?;
        self.is_greedy = portion.filled().len() > PORTION / 2;
        buf.put_slice(portion.filled());
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::future::poll_fn;
    use futures_util::poll;

    use super::*;
    use crate::endpoints::limits::{Admission, CALL_RATE};

    #[tokio::test(start_paused = true)]
    async fn others_have_their_turn_after_each_portion_and_who_used_up_its_calls_waits() {
        let admitted = Admission::new(8).admit(1000).unwrap();
        let (mut pace, mut sent) = (Pace::default(), &[7_u8; 10_000][..]);
        let mut space = [0; 8192];
        let mut buf = ReadBuf::new(&mut space);
        let mut read = |pace: &mut Pace, buf: &mut ReadBuf<'_>, cx: &mut Context<'_>| {
            pace.poll_read(&mut sent, &admitted, cx, buf)
        };
        let first = poll!(poll_fn(|cx| read(&mut pace, &mut buf, cx)));
        assert!(first.is_ready());
        assert_eq!(buf.filled().len(), PORTION);
        assert!(poll!(poll_fn(|cx| read(&mut pace, &mut buf, cx))).is_pending());
        assert!(poll!(poll_fn(|cx| read(&mut pace, &mut buf, cx))).is_ready());
        for _ in 0..CALL_RATE.burst as usize {
            drop(admitted.call("/"));
        }
        assert!(
            poll!(poll_fn(|cx| read(&mut pace, &mut buf, cx))).is_pending(),
            "its turn is over"
        );
        let begun = Instant::now();
        poll_fn(|cx| read(&mut pace, &mut buf, cx)).await.unwrap();
        assert!(
            begun.elapsed() > Duration::from_millis(10),
            "{:?}",
            begun.elapsed()
        );
        assert_eq!(buf.filled(), &[7; 3 * PORTION]);
    }
}
