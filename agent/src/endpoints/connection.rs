//! What all gRPC connections of the agent have in common: their limits, and when they end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use finial_identity::process::AuthorityAdapter;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::greeting::Greeting;
use super::limits::{Admitted, Pace, Quiet};

/// Timers run no longer than this.
const LONGEST_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// A connection.
#[derive(Debug)]
pub(super) struct Connection<IO> {
    io: AuthorityAdapter<Greeting<IO>>,
    pace: Pace,
    quiet: Quiet,
    admitted: Arc<Admitted>,
    end: Option<Pin<Box<Sleep>>>,
}

impl<IO> Connection<IO> {
    /// A connection that begins now.
    pub(super) fn new(io: IO, admitted: Arc<Admitted>) -> Self {
        Self {
            io: AuthorityAdapter::new(Greeting::new(io)),
            pace: Pace::default(),
            quiet: Quiet::begin(),
            admitted,
            end: None,
        }
    }

    /// It is closed after so long, whatever happens on it. Brokers' connections are, with their certificates.
    pub(super) fn for_at_most(mut self, life: Duration) -> Self {
        self.end = Some(Box::pin(tokio::time::sleep(life.min(LONGEST_LIFE))));
        self
    }

    /// Completes with an error when the connection is to be closed at once.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match &mut self.end {
            Some(end) => end.as_mut().poll(cx).map(|()| io::ErrorKind::TimedOut.into()),
            None => Poll::Pending,
        }
    }

    /// What was `polled`, unless nothing can be done now and the client has been quiet for too long.
    fn unless_quiet<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_pending() {
            return self.quiet.poll(cx, self.admitted.is_idle()).map(Err);
        }
        polled
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Connection<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Poll::Ready(error) = this.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        let read = this.pace.poll_read(&mut this.io, &this.admitted, cx, buf);
        if read.is_ready() {
            this.quiet.heard(buf.filled().len() - before);
        }
        this.unless_quiet(cx, read)
    }
}

/// Nothing is read while something cannot be written, so writes look at the time too.
impl<IO: AsyncWrite + Unpin> AsyncWrite for Connection<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.unless_quiet(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.unless_quiet(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let flushed = Pin::new(&mut self.io).poll_flush(cx);
        self.unless_quiet(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Poll::Ready(error) = self.poll_end(cx) {
            return Poll::Ready(Err(error));
        }
        let shut = Pin::new(&mut self.io).poll_shutdown(cx);
        self.unless_quiet(cx, shut)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;
    use crate::endpoints::limits::Admission;

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_an_end_is_closed_then_although_a_call_is_open() {
        let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
        let _call = admitted.call("/a").unwrap();
        let (near, _far) = tokio::io::duplex(64);
        let life = Duration::from_secs(5);
        let mut connection = Connection::new(near, admitted).for_at_most(life);
        let begun = Instant::now();
        let error = connection.read_u8().await.unwrap_err();
        assert_eq!(
            (error.kind(), begun.elapsed().as_secs()),
            (io::ErrorKind::TimedOut, 5)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_cannot_keep_its_connection_longer() {
        for (life, expected) in [(Some(5), 5), (None, 10)] {
            let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
            let (near, _far) = tokio::io::duplex(64);
            let mut connection = Connection::new(near, admitted);
            if let Some(life) = life {
                connection = connection.for_at_most(Duration::from_secs(life));
            }
            let begun = Instant::now();
            let error = connection.write_all(&[0; 4096]).await.unwrap_err();
            assert_eq!(
                (error.kind(), begun.elapsed().as_secs()),
                (io::ErrorKind::TimedOut, expected)
            );
        }
    }
}
