//! The first bytes of both ends of a connection.
//!
//! An HTTP/2 server sends its settings (RFC 9113 §3.4) before it has read anything, and acknowledges the client's as soon
//! as it has read them: two writes, each of which wakes the client. Mostly the client's first bytes are there already
//! when the connection is accepted. So the settings are held until the server reads: if there is something to
//! read they go out with the acknowledgement, else at once. Only a client that stops within the 24 bytes that each begins
//! with waits for them, and is disconnected soon.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than settings take; whoever writes more is not held up.
const MAX_HELD: usize = 256;

/// A connection whose server's settings go out with what it writes next.
#[derive(Debug)]
pub(super) struct Greeting<IO> {
    io: IO,
    /// Nothing was read yet, nor asked for in vain.
    is_before_read: bool,
    /// There was nothing to read: what is held goes out as soon as the socket takes it.
    is_due: bool,
    held: Vec<u8>,
}

impl<IO> Greeting<IO> {
    /// Wraps a connection of which nothing was read or written yet.
    pub(super) fn new(io: IO) -> Self {
        Self {
            io,
            is_before_read: true,
            is_due: false,
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
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let was_before_read = std::mem::take(&mut self.is_before_read);
        if read.is_pending() && (was_before_read || self.is_due) && !self.held.is_empty() {
            self.is_due = true;
            // The client may be waiting for it. Of an error the next write or flush tells too.
            let _sent = self.poll_held(cx).is_ready() && Pin::new(&mut self.io).poll_flush(cx).is_ready();
        }
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
        if this.is_before_read && this.held.len() + length <= MAX_HELD {
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
        if self.is_before_read {
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

    #[tokio::test]
    async fn settings_go_out_with_what_answers_a_client_that_has_spoken() {
        let (mut greeting, mut far) = greeting(64).await;
        far.write_all(b"hello").await.unwrap();
        assert_eq!(arrived(&mut far), "");
        let mut hello = [0; 5];
        greeting.read_exact(&mut hello).await.unwrap();
        assert_eq!(arrived(&mut far), "");
        assert_eq!(greeting.write(b"ack").await.unwrap(), 3);
        assert_eq!(arrived(&mut far), "settings ack");
        greeting.write_all(b"answer").await.unwrap();
        assert_eq!(arrived(&mut far), "answer");
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
    async fn settings_go_out_with_a_flush_that_nothing_was_written_before() {
        let (mut greeting, mut far) = greeting(64).await;
        far.write_all(b"h").await.unwrap();
        greeting.read_u8().await.unwrap();
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "settings ");
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
            far.write_all(b"h").await.unwrap();
            greeting.read_u8().await.unwrap();
            let writing = async {
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
