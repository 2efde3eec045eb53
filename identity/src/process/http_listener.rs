//! HTTP/1.1 for health checks and scrapes: small answers for callers who need no identity.
//!
//! No client can block the others: a connection whose headers are not complete after [`HEADERS_WITHIN`] is closed,
//! every connection ends after [`LONGEST_LIFE`], and when there are [`MOST_CONNECTIONS`] a new one replaces one of the
//! address with most.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::serve::Listener;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use super::Stop;
use super::sources::{Begun, Source};

/// How long a caller may take for the headers of a request, also for those of the next one.
pub const HEADERS_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection lasts at most.
pub const LONGEST_LIFE: Duration = Duration::from_secs(120);
/// How many connections there are at most.
pub const MOST_CONNECTIONS: usize = 256;
/// How long a TLS handshake may take.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// How long requests may take to end once the process stops.
const DRAIN: Duration = Duration::from_secs(3);
const HEADER_BYTES: usize = 16 * 1024;

/// The TLS configuration of the next handshake.
#[derive(Clone)]
pub struct TlsSource(Arc<dyn Fn() -> Arc<ServerConfig> + Send + Sync>);

impl TlsSource {
    /// Asks `config` before each handshake.
    pub fn new(config: impl Fn() -> Arc<ServerConfig> + Send + Sync + 'static) -> Self {
        Self(Arc::new(config))
    }
}

impl fmt::Debug for TlsSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsSource")
    }
}

/// A listener that is bound and not yet served.
#[derive(Debug)]
pub struct HttpListener<L> {
    listener: L,
    routes: Router,
    tls: Option<TlsSource>,
}

impl<L: Listener<Addr = SocketAddr>> HttpListener<L> {
    /// Answers with `routes`.
    pub fn new(listener: L, routes: Router) -> Self {
        Self {
            listener,
            routes,
            tls: None,
        }
    }

    /// The same over TLS.
    #[must_use]
    pub fn with_tls(self, tls: Option<TlsSource>) -> Self {
        Self { tls, ..self }
    }

    /// Where it listens.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        self.listener.local_addr().ok()
    }

    /// Serves until `stop`; then running requests have a short time to end.
    ///
    /// # Errors
    /// None: a failure of a connection ends only that connection.
    pub async fn run(mut self, stop: Stop) -> Result<(), Infallible> {
        let mut connections = Begun::new(MOST_CONNECTIONS);
        loop {
            let (io, address) = tokio::select! {
                () = stop.stopped() => break,
                Some(()) = connections.next() => continue,
                accepted = self.listener.accept() => accepted,
            };
            let (routes, tls, stop) = (self.routes.clone(), self.tls.clone(), stop.clone());
            connections.begin(Source::of_address(address.ip()), async move {
                let life = tokio::time::timeout(LONGEST_LIFE, connection(io, routes, tls, stop));
                if let Ok(Err(error)) = life.await {
                    tracing::debug!(%error, "HTTP connection ended");
                }
            });
        }
        drop(self.listener);
        let drained = async { while connections.next().await.is_some() {} };
        // What is left is aborted with the set.
        let _overdue = tokio::time::timeout(DRAIN, drained).await;
        Ok(())
    }
}

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

async fn connection<I>(io: I, routes: Router, tls: Option<TlsSource>, stop: Stop) -> Ended
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let Some(TlsSource(config)) = tls else {
        return serve(io, routes, stop).await;
    };
    let handshake = TlsAcceptor::from(config()).accept(io);
    let stream = tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await??;
    serve(stream, routes, stop).await
}

async fn serve<I>(io: I, routes: Router, stop: Stop) -> Ended
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = Builder::new(TokioExecutor::new()).http1_only();
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .max_buf_size(HEADER_BYTES);
    let http = builder.serve_connection(TokioIo::new(io), TowerToHyperService::new(routes));
    let mut http = std::pin::pin!(http);
    tokio::select! {
        ended = http.as_mut() => return ended,
        () = stop.stopped() => http.as_mut().graceful_shutdown(),
    }
    http.await
}

/// The answer of a health check: one object member for each part, with what is wrong with it.
pub fn health_answer(status: StatusCode, parts: Map<String, Value>) -> Response {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (status, headers, Value::Object(parts).to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::super::TaskSet;
    use super::*;

    /// Accepts the near ends of pipes.
    #[derive(Debug)]
    struct Pipes(mpsc::Receiver<(DuplexStream, u8)>);

    impl Listener for Pipes {
        type Io = DuplexStream;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
            match self.0.recv().await {
                Some((pipe, host)) => (pipe, SocketAddr::from(([192, 0, 2, host], 1))),
                None => std::future::pending().await,
            }
        }

        fn local_addr(&self) -> std::io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 80)))
        }
    }

    struct Served {
        connect: mpsc::Sender<(DuplexStream, u8)>,
        tasks: TaskSet,
    }

    impl Served {
        fn start() -> Self {
            let (connect, pipes) = mpsc::channel(1);
            let routes = Router::new().route("/live", get(|| async { "well" }));
            let mut tasks = TaskSet::new();
            let stop = tasks.stop_signal();
            tasks.spawn("http", HttpListener::new(Pipes(pipes), routes).run(stop));
            Self { connect, tasks }
        }

        async fn connect(&self) -> DuplexStream {
            self.connect_from(1).await
        }

        async fn connect_from(&self, host: u8) -> DuplexStream {
            let (near, far) = tokio::io::duplex(4096);
            self.connect.send((far, host)).await.unwrap();
            near
        }

        async fn ask(&self) -> String {
            let mut pipe = self.connect().await;
            let request = b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
            pipe.write_all(request).await.unwrap();
            let mut answer = String::new();
            pipe.read_to_string(&mut answer).await.unwrap();
            answer
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_who_is_slow_with_its_headers_is_left() {
        let served = Served::start();
        let mut slow = served.connect().await;
        slow.write_all(b"GET /live HTTP/1.1\r\nHost").await.unwrap();
        let started = Instant::now();
        let mut rest = Vec::new();
        slow.read_to_end(&mut rest).await.unwrap();
        let waited = started.elapsed();
        assert!(waited <= HEADERS_WITHIN + Duration::from_secs(1), "{waited:?}");
        assert!(served.ask().await.ends_with("well"));
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_connects_again_and_again_ends_no_connection_from_elsewhere() {
        let served = Served::start();
        let mut partner = served.connect_from(2).await;
        let mut held = Vec::new();
        for _ in 0..2 * MOST_CONNECTIONS {
            held.push(served.connect_from(1).await);
        }
        let request = b"GET /live HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        partner.write_all(request).await.unwrap();
        let mut answer = String::new();
        partner.read_to_string(&mut answer).await.unwrap();
        assert!(answer.ends_with("well"));
    }

    #[tokio::test(start_paused = true)]
    async fn many_who_only_connect_do_not_keep_others_out() {
        let served = Served::start();
        let mut held = Vec::new();
        for _ in 0..2 * MOST_CONNECTIONS {
            held.push(served.connect().await);
        }
        assert!(served.ask().await.ends_with("well"));
        let mut nothing = [0];
        assert_eq!(
            held[0].read(&mut nothing).await.unwrap(),
            0,
            "the oldest made room"
        );
        served
            .tasks
            .run_until_first_exit(std::future::ready(()))
            .await
            .unwrap();
    }
}
