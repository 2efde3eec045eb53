//! The first bytes of both ends of a connection.
//!
//! An HTTP/2 server sends its settings (RFC 9113 §3.4) before it has read anything, and acknowledges the client's as soon
//! as it has read them: two writes before the answer, each of which wakes the client. Mostly the client's first bytes, a
//! request among them, are there already when the connection is accepted, and what it asks for is at hand. So both are
//! held while those who answer have one turn, and go out with the answer if there is one by then, else without it. A
//! client that has not spoken yet gets the settings at once.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than settings and acknowledgement take; whoever writes more is not held up.
const MAX_HELD: usize = 256;
/// The preface of a client (RFC 9113 §3.4) and the head of its first frame. A server that has read less may not get to
/// flush what it wrote.
const PREFACE: usize = 24 + 9;

/// A connection whose server's settings go out with what it answers first.
#[derive(Debug)]
pub(super) struct Greeting<IO> {
    io: IO,
    stage: Stage,
    held: Vec<u8>,
}

/// How far the client and those who answer it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was read, nor asked for in vain.
    Unheard,
    /// So much of what the client sent was read, and there may be more.
    Reading(usize),
    /// All of it was read, and whoever answers it has a turn before the next read.
    Turn(usize),
    /// Nothing is held any longer than the socket needs.
    Due,
}

impl<IO> Greeting<IO> {
    /// Wraps a connection of which nothing was read or written yet.
    pub(super) fn new(io: IO) -> Self {
        Self {
            io,
            stage: Stage::Unheard,
            held: Vec::new(),
        }
    }
}

impl<IO: AsyncWrite + Unpin> Greeting<IO> {
    /// Sends what is held.
    fn poll_held(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.held.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, &self.held))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => self.sent(count),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// So many of the held bytes are on their way; the memory of all is given back.
    fn sent(&mut self, count: usize) {
        if count < self.held.len() {
            self.held.drain(..count);
        } else {
            self.held = Vec::new();
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Greeting<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        if this.stage == Stage::Due && this.held.is_empty() {
            return read;
        }
        if read.is_ready() {
            let count = buf.filled().len() - before;
            this.stage = match this.stage {
                Stage::Unheard => Stage::Reading(count),
                Stage::Reading(sum) | Stage::Turn(sum) => Stage::Reading(sum.saturating_add(count)),
                Stage::Due => Stage::Due,
            };
            return read;
        }
        this.stage = match this.stage {
            Stage::Reading(sum) if sum >= PREFACE => {
                cx.waker().wake_by_ref();
                Stage::Turn(sum)
            }
            // It flushes once it has read all.
            Stage::Turn(_) => Stage::Due,
            Stage::Unheard | Stage::Reading(_) | Stage::Due => {
                // The client may be waiting for it. Of an error the next write or flush tells too.
                let _sent = this.poll_held(cx).is_ready() && Pin::new(&mut this.io).poll_flush(cx).is_ready();
                Stage::Due
            }
        };
        read
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Greeting<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let length: usize = bufs.iter().map(|buf| buf.len()).sum();
        if this.stage != Stage::Due && this.held.len() + length <= MAX_HELD {
            bufs.iter().for_each(|buf| this.held.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        while !this.held.is_empty() {
            let held = this.held.len();
            let mut all = Vec::with_capacity(1 + bufs.len());
            all.push(IoSlice::new(&this.held));
            all.extend_from_slice(bufs);
            let count = ready!(Pin::new(&mut this.io).poll_write_vectored(cx, &all))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            this.sent(count);
            if count > held {
                return Poll::Ready(Ok(count - held));
            }
        }
        Pin::new(&mut this.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stage != Stage::Due && self.held.len() <= MAX_HELD {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_held(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use futures_util::future::poll_fn;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// What has arrived at the other end.
    fn arrived(far: &mut DuplexStream) -> String {
        let mut text = [0; 512];
        let count = far.read(&mut text).now_or_never().map_or(0, Result::unwrap);
        String::from_utf8(text[..count].to_vec()).unwrap()
    }

    async fn greeting(size: usize) -> (Greeting<DuplexStream>, DuplexStream) {
        let (near, far) = duplex(size);
        let mut greeting = Greeting::new(near);
        greeting.write_all(b"settings ").await.unwrap();
        greeting.flush().await.unwrap();
        (greeting, far)
    }

    /// Reads until there is nothing more, as often as it is woken for that.
    async fn read_all(greeting: &mut Greeting<DuplexStream>, turns: usize) {
        let mut left = turns;
        poll_fn(|cx| {
            let mut bytes = [0; 512];
            let mut buf = ReadBuf::new(&mut bytes);
            while let Poll::Ready(read) = Pin::new(&mut *greeting).poll_read(cx, &mut buf) {
                read.unwrap();
                buf.clear();
            }
            left -= 1;
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    const SPOKEN: [u8; PREFACE] = [b'h'; PREFACE];

    #[tokio::test]
    async fn settings_and_acknowledgement_go_out_with_an_answer_that_comes_in_the_next_turn() {
        let (mut greeting, mut far) = greeting(512).await;
        far.write_all(&SPOKEN).await.unwrap();
        assert_eq!(arrived(&mut far), "");
        read_all(&mut greeting, 1).await;
        greeting.write_all(b"ack ").await.unwrap();
        greeting.flush().await.unwrap();
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "");
        read_all(&mut greeting, 1).await;
        assert_eq!(greeting.write(b"answer").await.unwrap(), 6);
        assert_eq!(arrived(&mut far), "settings ack answer");
        greeting.write_all(b"more").await.unwrap();
        assert_eq!(arrived(&mut far), "more");
    }

    #[tokio::test]
    async fn settings_and_acknowledgement_go_out_alone_when_no_answer_comes_in_the_next_turn() {
        let (mut greeting, mut far) = greeting(512).await;
        far.write_all(&SPOKEN).await.unwrap();
        // The second turn comes by itself.
        read_all(&mut greeting, 2).await;
        greeting.write_all(b"ack ").await.unwrap();
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "settings ack ");
    }

    #[tokio::test]
    async fn a_long_answer_takes_settings_with_it_in_its_own_turn() {
        let (mut greeting, mut far) = greeting(512).await;
        far.write_all(&SPOKEN).await.unwrap();
        read_all(&mut greeting, 1).await;
        greeting.write_all(&[b'x'; MAX_HELD]).await.unwrap();
        assert_eq!(arrived(&mut far), format!("settings {}", "x".repeat(MAX_HELD)));
    }

    #[tokio::test]
    async fn a_client_that_stops_within_its_preface_gets_the_settings_without_a_flush() {
        let (mut greeting, mut far) = greeting(512).await;
        far.write_all(&SPOKEN[1..]).await.unwrap();
        read_all(&mut greeting, 1).await;
        assert_eq!(arrived(&mut far), "settings ");
    }

    #[tokio::test]
    async fn settings_go_out_at_once_to_a_client_that_waits_for_them() {
        let (mut greeting, mut far) = greeting(64).await;
        assert!(greeting.read_u8().now_or_never().is_none());
        assert_eq!(arrived(&mut far), "settings ");
        greeting.write_all(b"more").await.unwrap();
        assert_eq!(arrived(&mut far), "more");
    }

    #[tokio::test]
    async fn settings_that_the_socket_does_not_take_at_once_go_out_with_a_later_read() {
        let (mut greeting, mut far) = greeting(4).await;
        let mut all = String::new();
        for _ in 0..3 {
            assert!(greeting.read_u8().now_or_never().is_none());
            all.push_str(&arrived(&mut far));
        }
        assert_eq!(all, "settings ");
    }

    #[tokio::test]
    async fn settings_go_out_before_a_connection_is_closed() {
        let (mut greeting, mut far) = greeting(64).await;
        greeting.shutdown().await.unwrap();
        assert_eq!(arrived(&mut far), "settings ");
    }

    #[tokio::test]
    async fn a_socket_that_takes_little_at_a_time_gets_everything_in_order() {
        for size in 1..16 {
            let (mut greeting, mut far) = greeting(size).await;
            let writing = async {
                assert!(greeting.read_u8().now_or_never().is_none());
                greeting.write_all(b"ack").await.unwrap();
                greeting.write_all(b" answer").await.unwrap();
                greeting.shutdown().await.unwrap();
            };
            let mut text = String::new();
            let (read, ()) = tokio::join!(far.read_to_string(&mut text), writing);
            read.unwrap();
            assert_eq!(text, "settings ack answer", "{size}");
        }
    }

    #[tokio::test]
    async fn what_is_too_much_for_settings_is_not_held() {
        let (near, mut far) = duplex(1024);
        let mut greeting = Greeting::new(near);
        greeting.write_all(b"settings ").await.unwrap();
        greeting.write_all(&[b'x'; MAX_HELD]).await.unwrap();
        assert_eq!(arrived(&mut far), format!("settings {}", "x".repeat(MAX_HELD)));
    }
}
