//! One HTTP/2 connection: limits, maximum age, and graceful shutdown.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::Stop;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rand::Rng;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::gate::Gate;
use crate::api::call::Peer;

/// How long a connection may be open before the client gets GOAWAY, as in SPIRE; one with an open `Watch`
/// stays open until that ends.
pub const MAX_AGE: Duration = Duration::from_secs(3 * 60);

/// How long open calls may take to end once the server stops.
pub const DRAIN: Duration = Duration::from_secs(9);

/// What the calls of one connection share.
#[derive(Debug)]
pub struct Connection {
    peer: Arc<Peer>,
    watches: watch::Sender<usize>,
}

impl Connection {
    /// A connection with this peer.
    pub fn new(peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer: Arc::new(peer),
            watches: watch::Sender::new(0),
        })
    }

    /// The other end.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }

    /// Keeps the connection from ageing until the guard is dropped.
    pub fn hold_open(self: &Arc<Self>) -> HeldOpen {
        self.watches.send_modify(|count| *count += 1);
        HeldOpen(Arc::clone(self))
    }

    /// Completes when the connection has been open for `age` and no `Watch` holds it open.
    async fn is_old(&self, age: Duration) {
        sleep_until(Instant::now() + age).await;
        // The sender lives as long as self, so waiting cannot fail.
        let mut watches = self.watches.subscribe();
        let _zero = watches.wait_for(|count| *count == 0).await;
    }
}

/// See [`Connection::hold_open`].
#[derive(Debug)]
pub struct HeldOpen(Arc<Connection>);

impl Drop for HeldOpen {
    fn drop(&mut self) {
        self.0
            .watches
            .send_modify(|count| *count = count.saturating_sub(1));
    }
}

/// Serves the connection until the peer leaves, it is too old, or the server stops.
pub async fn serve<I>(io: I, connection: Arc<Connection>, gate: Gate, max_age: Option<Duration>, stop: Stop)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new()).http2_only();
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(Some(Duration::from_secs(60)))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(max_streams(connection.peer()))
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(MAX_SEND_BUFFER)
        .max_pending_accept_reset_streams(Some(64));
    let service = TowerToHyperService::new(gate);
    let http = builder.serve_connection(TokioIo::new(io), service);
    let mut http = std::pin::pin!(http);

    let old = async {
        match max_age {
            None => std::future::pending().await,
            Some(age) => connection.is_old(with_jitter(age)).await,
        }
    };
    let ended = tokio::select! {
        ended = http.as_mut() => Some(ended),
        () = old => {
            http.as_mut().graceful_shutdown();
            // Calls that run may end by themselves, within reason; a stop ends them below.
            tokio::select! {
                ended = http.as_mut() => Some(ended),
                () = connection.is_old(LINGER) => return,
                () = stop.stopped() => None,
            }
        }
        () = stop.stopped() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            http.as_mut().graceful_shutdown();
            match timeout_at(Instant::now() + DRAIN, http).await {
                Ok(ended) => ended,
                Err(_elapsed) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}

/// Spreads the ends of connections that began together, by a tenth either way.
fn with_jitter(age: Duration) -> Duration {
    age.mul_f64(rand::rng().random_range(0.9..=1.1))
}

/// A peer without an SVID can do little more than attest; a few calls at a time are enough for that.
fn max_streams(peer: &Peer) -> u32 {
    if peer.is_stranger() {
        STRANGERS_STREAMS
    } else {
        MAX_STREAMS
    }
}

/// How long the calls of a connection may take after GOAWAY, unless one is a `Watch`:
/// longer than any unary call may.
const LINGER: Duration = Duration::from_secs(90);

const MAX_STREAMS: u32 = 1000;
const STRANGERS_STREAMS: u32 = 16;
const MAX_HEADER_BYTES: u32 = 64 * 1024;
const STREAM_WINDOW: u32 = 1024 * 1024;
const CONNECTION_WINDOW: u32 = 4 * 1024 * 1024;
const MAX_SEND_BUFFER: usize = 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    fn connection() -> Arc<Connection> {
        Connection::new(Peer::Remote {
            addr: SocketAddr::from(([192, 0, 2, 1], 1)),
            svid: None,
            intermediates: Arc::default(),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_old_after_three_minutes() {
        let start = Instant::now();
        connection().is_old(MAX_AGE).await;
        assert_eq!(start.elapsed(), MAX_AGE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_with_an_open_watch_lives_until_the_last_of_them_ends() {
        let connection = connection();
        let (first, second) = (connection.hold_open(), connection.hold_open());
        let mut old = std::pin::pin!(connection.is_old(MAX_AGE));
        assert!(tokio::time::timeout(10 * MAX_AGE, old.as_mut()).await.is_err());
        drop(first);
        assert!(tokio::time::timeout(MAX_AGE, old.as_mut()).await.is_err());
        drop(second);
        assert!(tokio::time::timeout(Duration::ZERO, old).await.is_ok());
    }

    #[test]
    fn a_peer_without_an_svid_gets_fewer_streams() {
        assert_eq!(max_streams(connection().peer()), STRANGERS_STREAMS);
        let local = Peer::Local {
            uid: 0,
            gid: 0,
            pid: None,
            path: None,
        };
        assert_eq!(max_streams(&local), MAX_STREAMS);
    }

    #[test]
    fn ages_differ_by_a_tenth_at_most() {
        for _ in 0..100 {
            let age = with_jitter(MAX_AGE).as_secs_f64();
            assert!((162.0..=198.0).contains(&age), "{age}");
        }
    }
}
