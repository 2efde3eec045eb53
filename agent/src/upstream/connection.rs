//! A connection to the server, which remembers why the server ended it.
//!
//! With TLS 1.3 a server verifies the client's certificate after the client has finished the handshake. Its alert
//! arrives with the first bytes read, and HTTP/2 reports only "connection closed".

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::dial::Contact;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    contact: Contact,
    /// Writing failed, and what the server said last has not been read yet.
    failed: Option<io::Error>,
}

impl Connection {
    pub(super) fn new(stream: TlsStream<TcpStream>, contact: Contact) -> Self {
        Self {
            stream,
            contact,
            failed: None,
        }
    }

    /// Writes, unless that failed before. A connection that cannot be written is told to be broken as soon as its
    /// last words are read: they are there, or its end is, at the latest when the system gives it up.
    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TlsStream<TcpStream>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.failed.is_none() {
            match write(Pin::new(&mut self.stream), cx) {
                Poll::Ready(Err(error)) => self.failed = Some(error),
                written => return written,
            }
        }
        let mut scratch = [0];
        let read = Pin::new(&mut self.stream).poll_read(cx, &mut ReadBuf::new(&mut scratch));
        match read {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Err(error)) => self.contact.note(&error),
            Poll::Ready(Ok(())) => {}
        }
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        Poll::Ready(Err(self.failed.take().unwrap_or_else(broken)))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Poll::Ready(Err(error)) = &read {
            self.contact.note(error);
        }
        read
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
