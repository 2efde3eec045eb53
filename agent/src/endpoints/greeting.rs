//! The first bytes of both ends of a connection.
//!
//! An HTTP/2 server sends its settings (RFC 9113 §3.4) before it has read anything, and acknowledges the client's as soon
//! as it has read them: two writes before the answer, each of which wakes the client. Mostly the client's first bytes, a
//! request among them, are there already when the connection is accepted, and what it asks for is at hand. So both are
//! held while those who answer have a turn, and go out with the answer if there is one by then, else without it. A
//! client that has not spoken yet gets the settings at once. The preface, which a server reads for itself, is read
//! together with what follows.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// More than settings and acknowledgement take; whoever writes more has answered.
const MAX_HELD: usize = 256;
/// The preface of a client (RFC 9113 §3.4) and the head of its first frame. A server that has read less may not get to
/// flush what it wrote.
const PREFACE: usize = 24 + 9;
/// How often in vain something more is read before nothing is held any longer. A server tries once before it hands a
/// request over, and once after that, in the same turn.
const LOOKS: usize = 3;
/// Room for what most clients send at first.
const EARLY_BYTES: usize = 512;

/// A connection whose server's settings go out with what it answers first.
#[derive(Debug)]
pub(super) struct Greeting<IO> {
    io: IO,
    stage: Stage,
    held: Vec<u8>,
    /// What was read with the preface and not asked for yet.
    early: Bytes,
}

/// How far the client and those who answer it are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing was read, nor asked for in vain.
    Unheard,
    /// So many bytes of the client were read, so often there was nothing more, and a flush came since.
    Heard {
        bytes: usize,
        looks: usize,
        is_flushed: bool,
    },
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
            early: Bytes::new(),
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

impl<IO: AsyncRead + Unpin> Greeting<IO> {
    /// Reads, at first more than is asked for.
    fn poll_early(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.stage == Stage::Unheard && self.early.is_empty() && buf.remaining() < EARLY_BYTES {
            let mut bytes = [0; EARLY_BYTES];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut read))?;
            self.early = Bytes::copy_from_slice(read.filled());
        }
        if self.early.is_empty() {
            return match self.stage {
                // The end of the stream.
                Stage::Unheard if buf.remaining() < EARLY_BYTES => Poll::Ready(Ok(())),
                _ => Pin::new(&mut self.io).poll_read(cx, buf),
            };
        }
        let count = buf.remaining().min(self.early.len());
        buf.put_slice(&self.early.split_to(count));
        if self.early.is_empty() {
            self.early = Bytes::new(); // Its memory is given back.
        }
        Poll::Ready(Ok(()))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Greeting<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.stage == Stage::Due && this.held.is_empty() && this.early.is_empty() {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let before = buf.filled().len();
        if this.poll_early(cx, buf)?.is_ready() {
            let count = buf.filled().len() - before;
            this.stage = match this.stage {
                Stage::Unheard => Stage::Heard {
                    bytes: count,
                    looks: 0,
                    is_flushed: false,
                },
                Stage::Heard { bytes, looks, .. } => Stage::Heard {
                    bytes: bytes.saturating_add(count),
                    looks,
                    is_flushed: false,
                },
                Stage::Due => Stage::Due,
            };
            return Poll::Ready(Ok(()));
        }
        this.stage = match this.stage {
            Stage::Heard { bytes, looks, .. } if bytes >= PREFACE => {
                let looks = looks + 1;
                if looks < LOOKS {
                    cx.waker().wake_by_ref();
                    Stage::Heard {
                        bytes,
                        looks,
                        is_flushed: false,
                    }
                } else {
                    Stage::Due // The server flushes after each look.
                }
            }
            Stage::Unheard | Stage::Heard { .. } | Stage::Due => {
                // The client may be waiting for it. Of an error the next write or flush tells too.
                let _sent = this.poll_held(cx).is_ready() && Pin::new(&mut this.io).poll_flush(cx).is_ready();
                Stage::Due
            }
        };
        Poll::Pending
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
        if this.held.len() + length > MAX_HELD {
            this.stage = Stage::Due; // An answer.
        }
        if this.stage != Stage::Due {
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
        match &mut self.stage {
            Stage::Unheard => return Poll::Ready(Ok(())),
            // One for each look. If another comes without a look, whoever is above does not read for a while.
            Stage::Heard { is_flushed, .. } if !*is_flushed => {
                *is_flushed = true;
                return Poll::Ready(Ok(()));
            }
            Stage::Heard { .. } | Stage::Due => self.stage = Stage::Due,
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
    use std::convert::Infallible;

    use futures_util::FutureExt as _;
    use futures_util::future::poll_fn;
    use hyper_util::rt::TokioIo;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

    use super::*;
    use crate::endpoints::serving;

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
        for look in ["before", "after the request was handed over"] {
            read_all(&mut greeting, 1).await;
            greeting.write_all(b"ack ").await.unwrap();
            greeting.flush().await.unwrap();
            assert_eq!(arrived(&mut far), "", "{look}");
        }
        read_all(&mut greeting, 1).await;
        assert_eq!(greeting.write(b"answer").await.unwrap(), 6);
        assert_eq!(arrived(&mut far), "settings ack ack answer");
        greeting.write_all(b"more").await.unwrap();
        assert_eq!(arrived(&mut far), "more");
    }

    #[tokio::test]
    async fn settings_and_acknowledgement_go_out_alone_when_no_answer_comes_in_the_next_turn() {
        let (mut greeting, mut far) = greeting(512).await;
        far.write_all(&SPOKEN).await.unwrap();
        // The next turns come by themselves.
        read_all(&mut greeting, LOOKS).await;
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
    async fn what_comes_with_the_preface_is_read_in_order_and_then_what_follows() {
        let (mut greeting, mut far) = greeting(1024).await;
        let sent: Vec<u8> = (0..=255).cycle().take(700).collect();
        far.write_all(&sent).await.unwrap();
        let mut read = vec![0; sent.len()];
        for part in read.chunks_mut(24) {
            greeting.read_exact(part).await.unwrap();
        }
        assert_eq!(read, sent);
        drop(far);
        assert_eq!(greeting.read(&mut [0; 24]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_leaves_without_a_word_is_seen_to_leave() {
        let (mut greeting, far) = greeting(64).await;
        drop(far);
        assert_eq!(greeting.read(&mut [0; 24]).await.unwrap(), 0);
    }

    /// A server of its own kind decides when it reads, writes and flushes.
    #[tokio::test]
    async fn a_real_server_tells_settings_and_acknowledgement_to_a_client_without_a_request() {
        let (near, mut far) = duplex(4096);
        let service = hyper::service::service_fn(|_request| async {
            Ok::<_, Infallible>(http::Response::new(tonic::body::Body::empty()))
        });
        let serving = serving::http().serve_connection(TokioIo::new(Greeting::new(near)), service);
        let client = async {
            far.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
            far.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
            let mut acknowledged = false;
            while !acknowledged {
                let mut head = [0; 9];
                far.read_exact(&mut head).await.unwrap();
                let length = usize::from(head[1]) << 8 | usize::from(head[2]);
                far.read_exact(&mut vec![0; length]).await.unwrap();
                acknowledged = head[3] == 4 && head[4] == 1;
            }
            drop(far);
        };
        let both = async { tokio::join!(serving, client) };
        let (served, ()) = tokio::time::timeout(std::time::Duration::from_secs(20), both)
            .await
            .expect("settings were held back for good");
        served.unwrap();
    }

    #[tokio::test]
    async fn an_answer_goes_out_although_nothing_more_is_read_for_now() {
        let (mut greeting, mut far) = greeting(512).await;
        far.write_all(&SPOKEN).await.unwrap();
        read_all(&mut greeting, 1).await;
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "");
        // Whoever is above does not read while a caller has used up its calls.
        greeting.write_all(b"refused").await.unwrap();
        greeting.flush().await.unwrap();
        assert_eq!(arrived(&mut far), "settings refused");
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
