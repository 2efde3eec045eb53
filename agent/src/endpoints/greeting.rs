//! The first bytes of both ends of a connection.
//!
//! An HTTP/2 server sends its settings (RFC 9113 §3.4) before it has read anything, acknowledges the client's as soon
//! as it has read them, and then answers the first request: three writes, each of which wakes the client. Mostly the
//! client's first bytes are there already when the connection is accepted, and the answer needs no waiting. So the
//! settings are held until the server has read, and what it writes then until the tasks that are ready have had their
//! turn: mostly the answer goes out with all of it. Where there is nothing to read, everything goes out at once. What is
//! held waits for no timer and for nothing that the client does.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than settings and an acknowledgement take; whoever writes more is not held up.
const MAX_HELD: usize = 256;

/// A connection whose server's settings go out with its first answer, if that comes at once.
#[derive(Debug)]
pub(super) struct Greeting<IO> {
    io: IO,
    phase: Phase,
    held: Vec<u8>,
}

/// How far the two ends are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was read yet, nor asked for in vain.
    Unheard,
    /// The client has spoken.
    Heard,
    /// What is held goes out when this connection's task has its next turn.
    Due,
    /// Nothing is held up any more.
    Open,
}

impl<IO> Greeting<IO> {
    /// Wraps a connection of which nothing was read or written yet.
    pub(super) fn new(io: IO) -> Self {
        Self {
            io,
            phase: Phase::Unheard,
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
        if self.phase == Phase::Unheard {
            self.phase = Phase::Heard;
            if read.is_pending() {
                self.phase = Phase::Open;
                // What cannot be sent now is sent by the next write or flush, which tells of errors too.
                let _sent = self.poll_held(cx);
            }
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
        if this.phase != Phase::Open && this.held.len() + length <= MAX_HELD {
            bufs.iter().for_each(|buf| this.held.extend_from_slice(buf));
            return Poll::Ready(Ok(length));
        }
        this.phase = Phase::Open;
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
        match self.phase {
            Phase::Unheard => return Poll::Ready(Ok(())),
            Phase::Heard if !self.held.is_empty() => {
                self.phase = Phase::Due;
                cx.waker().wake_by_ref();
                return Poll::Ready(Ok(()));
            }
            Phase::Heard | Phase::Due | Phase::Open => self.phase = Phase::Open,
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;

    use futures_util::FutureExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;

    /// Counts how often a task is woken.
    #[derive(Default)]
    struct Wakes(AtomicUsize);

    impl Wakes {
        fn count(&self) -> usize {
            self.0.load(Ordering::Relaxed)
        }
    }

    impl Wake for Wakes {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

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

    /// The client has spoken and was heard; the server acknowledges it.
    async fn acknowledged(size: usize) -> (Greeting<DuplexStream>, DuplexStream) {
        let (mut greeting, mut far) = greeting(size).await;
        far.write_all(b"h").await.unwrap();
        assert_eq!(arrived(&mut far), "");
        greeting.read_u8().await.unwrap();
        greeting.write_all(b"ack ").await.unwrap();
        (greeting, far)
    }

    #[tokio::test]
    async fn an_answer_that_comes_at_once_takes_settings_and_acknowledgement_along() {
        let (mut greeting, mut far) = acknowledged(1024).await;
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "");
        greeting.write_all(&[b'x'; MAX_HELD]).await.unwrap();
        assert_eq!(
            arrived(&mut far),
            format!("settings ack {}", "x".repeat(MAX_HELD))
        );
        greeting.write_all(b"more").await.unwrap();
        assert_eq!(arrived(&mut far), "more");
    }

    #[tokio::test]
    async fn an_answer_that_is_short_goes_out_with_its_flush() {
        let (mut greeting, mut far) = acknowledged(64).await;
        greeting.flush().await.unwrap();
        greeting.write_all(b"answer").await.unwrap();
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "settings ack answer");
    }

    #[tokio::test]
    async fn without_an_answer_the_task_is_woken_and_settings_and_acknowledgement_go_out() {
        let (mut greeting, mut far) = acknowledged(64).await;
        let woken = Arc::new(Wakes::default());
        let waker = Arc::clone(&woken).into();
        let mut cx = Context::from_waker(&waker);
        assert!(Pin::new(&mut greeting).poll_flush(&mut cx).is_ready());
        assert_eq!((woken.count(), arrived(&mut far).as_str()), (1, ""));
        assert!(Pin::new(&mut greeting).poll_flush(&mut cx).is_ready());
        assert_eq!((woken.count(), arrived(&mut far).as_str()), (1, "settings ack "));
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
    async fn settings_go_out_before_a_connection_is_closed() {
        let (mut greeting, mut far) = greeting(64).await;
        greeting.shutdown().await.unwrap();
        assert_eq!(arrived(&mut far), "settings ");
    }

    #[tokio::test]
    async fn a_socket_that_takes_little_at_a_time_gets_everything_in_order() {
        for size in 1..16 {
            let (mut greeting, mut far) = acknowledged(size).await;
            let writing = async {
                greeting.flush().await.unwrap();
                greeting.write_all(&[b'x'; MAX_HELD]).await.unwrap();
                greeting.write_all(b" more").await.unwrap();
                greeting.shutdown().await.unwrap();
            };
            let mut text = String::new();
            let (read, ()) = tokio::join!(far.read_to_string(&mut text), writing);
            read.unwrap();
            let expected = format!("settings ack {} more", "x".repeat(MAX_HELD));
            assert_eq!(text, expected, "{size}");
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
