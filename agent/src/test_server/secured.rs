//! A TLS connection with the traits that tonic requires.

use super::*;

/// A TLS connection as tonic wants it.
#[derive(Debug)]
pub(super) struct Secured(pub(super) TlsStream<TcpStream>);

/// What is known of a caller.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller {
    /// The serial number of the SVID that it has shown, if it has.
    pub(super) serial: Option<String>,
    /// The address that it has called.
    pub(super) at: Option<SocketAddr>,
    /// For how long it waits, if it says so.
    pub(super) timeout: Option<Duration>,
}

impl Caller {
    pub(super) fn of<T>(request: &Request<T>) -> Self {
        Self {
            timeout: grpc_timeout(request.metadata().as_ref()),
            ..request.extensions().get().cloned().unwrap_or_default()
        }
    }
}

impl Connected for Secured {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Self::ConnectInfo {
        let (stream, tls) = self.0.get_ref();
        let leaf = tls.peer_certificates().and_then(|chain| chain.first());
        Caller {
            serial: leaf.map(|leaf| Certificate::parse(leaf).unwrap().serial_hex()),
            at: stream.local_addr().ok(),
            timeout: None,
        }
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
