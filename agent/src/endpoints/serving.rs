//! Serves gRPC on the connections of a socket.
//!
//! hyper serves each connection directly: tonic's own server keeps timers and layers for every connection that nobody
//! uses here, and most connections are idle streams whose cost is what is kept for them.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::time::Duration;

use finial_identity::process::{Stop, with_causes};
use futures_util::future::BoxFuture;
use futures_util::stream::{Stream, StreamExt as _};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tower::ServiceExt as _;
use tower_service::Service;

use super::connection::Connection;
use super::limits;

/// How long requests may take to end after the stop signal.
const DRAIN: Duration = Duration::from_secs(3);

/// What answers the requests of all connections of a socket.
pub(super) trait Answers:
    Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
    + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> Answers for S where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + Sync
        + 'static
{
}

/// Serves each connection as it comes, until `stop`; then no more come, and requests have a moment to end. Requests
/// find among their extensions what is known of their connection, which comes with it.
///
/// What is open when the future is dropped goes on until it ends by itself or the `stop`.
///
/// # Errors
/// None: a connection's trouble is not the socket's.
pub(super) async fn serve<IO, I, S>(
    connections: impl Stream<Item = (Connection<IO>, I)>,
    service: S,
    stop: &Stop,
) -> Result<(), Infallible>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    I: Clone + Unpin + Send + Sync + 'static,
    S: Answers,
{
    let (http, open) = (http(), TaskTracker::new());
    {
        let mut connections = pin!(connections);
        loop {
            let next = tokio::select! {
                biased;
                () = stop.stopped() => break,
                next = connections.next() => next,
            };
            let Some((connection, info)) = next else { break };
            let service = ConnectionService {
                info,
                service: service.clone(),
            };
            // In a place of its own: a future that holds it on the way to its last place has room for it twice.
            let connection = Box::new(http.serve_connection(TokioIo::new(connection), service));
            open.spawn(until_closed(connection, stop.clone()));
        }
    }
    open.close();
    open.wait().await;
    Ok(())
}

/// HTTP/2 within the limits.
pub(super) fn http() -> http2::Builder<TokioExecutor> {
    let mut http = http2::Builder::new(TokioExecutor::new());
    http.max_concurrent_streams(limits::MAX_STREAMS_PER_CONNECTION)
        .max_header_list_size(limits::MAX_HEADER_BYTES)
        .max_pending_accept_reset_streams(limits::MAX_PENDING_RESETS)
        .max_local_error_reset_streams(limits::MAX_OWN_RESETS)
        .initial_stream_window_size(limits::WINDOW_BYTES)
        .initial_connection_window_size(limits::WINDOW_BYTES)
        .max_frame_size(limits::FRAME_BYTES)
        // gRPC has no use for it, and SPIRE sends none.
        .auto_date_header(false);
    http
}

/// The HTTP/2 side of a connection.
type Http<IO, S> = http2::Connection<TokioIo<IO>, S, TokioExecutor>;

async fn until_closed<IO, I, S>(
    mut connection: Box<Http<Connection<IO>, ConnectionService<I, S>>>,
    stop: Stop,
) where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    I: Clone + Unpin + Send + Sync + 'static,
    S: Answers,
{
    let closed = tokio::select! {
        biased;
        closed = &mut *connection => Some(closed),
        () = stop.stopped() => None,
    };
    let closed = match closed {
        Some(closed) => closed,
        None => {
            Pin::new(&mut *connection).graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection).await {
                Ok(closed) => closed,
                Err(_elapsed) => return,
            }
        }
    };
    if let Err(error) = closed {
        tracing::debug!(error = with_causes(&error), "connection ended");
    }
}

/// Answers the requests of one connection.
#[derive(Clone, Debug)]
struct ConnectionService<I, S> {
    info: I,
    service: S,
}

impl<I, S> hyper::service::Service<http::Request<Incoming>> for ConnectionService<I, S>
where
    I: Clone + Send + Sync + 'static,
    S: Answers,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn call(&self, request: http::Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.info.clone());
        Box::pin(self.service.clone().oneshot(request))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use finial_identity::process::TaskSet;
    use http_body_util::Empty;
    use hyper::client::conn::http2 as client;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::sync::{mpsc, oneshot};
    use tokio::task::JoinHandle;
    use tokio::time::Instant;
    use tonic::Status;

    use super::*;
    use crate::endpoints::limits::Admission;

    type Requests = client::SendRequest<Empty<Bytes>>;

    /// A socket whose connections are numbered, and whose service answers with the number, or never.
    struct Socket {
        connect: mpsc::UnboundedSender<(Connection<DuplexStream>, u32)>,
        admission: Admission,
        stop: oneshot::Sender<()>,
        /// Ends when nothing is served any longer.
        served: JoinHandle<()>,
        clients: TaskTracker,
    }

    fn socket() -> Socket {
        let (connect, mut connections) = mpsc::unbounded_channel();
        let (stop, stopped) = oneshot::channel();
        let mut tasks = TaskSet::new();
        let signal = tasks.stop_signal();
        tasks.spawn("socket", async move {
            let connections = futures_util::stream::poll_fn(move |cx| connections.poll_recv(cx));
            serve(connections, tower::service_fn(answer), &signal).await
        });
        let clients = TaskTracker::new();
        let served = clients.spawn(async move {
            let stopped = async { drop(stopped.await) };
            tasks.run_until_first_exit(stopped).await.unwrap();
        });
        Socket {
            connect,
            admission: Admission::new(64),
            stop,
            served,
            clients,
        }
    }

    async fn answer(request: http::Request<Body>) -> Result<http::Response<Body>, Infallible> {
        if request.uri().path() == "/never" {
            std::future::pending::<()>().await;
        }
        let number = request.extensions().get::<u32>();
        Ok(Status::unknown(format!("{number:?}")).into_http())
    }

    impl Socket {
        /// The far end of a connection that is served.
        fn open(&self, number: u32) -> DuplexStream {
            let (near, far) = duplex(4096);
            let admitted = Arc::new(self.admission.admit(0).unwrap());
            self.connect
                .send((Connection::new(near, admitted), number))
                .unwrap();
            far
        }

        async fn connect(&self, number: u32) -> Requests {
            let far = self.open(number);
            let http = client::handshake(TokioExecutor::new(), TokioIo::new(far));
            let (requests, connection) = http.await.unwrap();
            self.clients.spawn(connection);
            requests
        }

        /// How many seconds after the stop nothing was served any longer.
        async fn stop(self) -> u64 {
            let begun = Instant::now();
            self.stop.send(()).unwrap();
            self.served.await.unwrap();
            assert_eq!(self.admission.open(), 0);
            begun.elapsed().as_secs()
        }
    }

    fn request(path: &str) -> http::Request<Empty<Bytes>> {
        let uri = format!("http://localhost{path}");
        http::Request::post(uri).body(Empty::new()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_find_what_is_known_of_their_own_connection() {
        let socket = socket();
        for number in [3, 5] {
            let mut requests = socket.connect(number).await;
            for _ in 0..2 {
                let answer = requests.send_request(request("/")).await.unwrap();
                assert_eq!(answer.headers()["grpc-message"], format!("Some({number})"));
                assert!(!answer.headers().contains_key("date"), "{answer:?}");
            }
        }
        assert_eq!(socket.stop().await, 0, "idle connections are closed at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_does_not_end_has_some_seconds_after_the_stop_and_no_other_may_begin() {
        let socket = socket();
        let mut requests = socket.connect(1).await;
        let mut others = requests.clone();
        let open = requests.send_request(request("/never"));
        // It has come when the next one is answered.
        others.send_request(request("/")).await.unwrap();
        let (seconds, ()) = tokio::join!(socket.stop(), async {
            tokio::time::sleep(DRAIN / 2).await;
            let begun = Instant::now();
            others.send_request(request("/")).await.unwrap_err();
            assert_eq!(begun.elapsed(), Duration::ZERO);
            open.await.unwrap_err();
        });
        assert_eq!(seconds, DRAIN.as_secs());
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_say_nothing_do_not_hold_up_the_stop() {
        let socket = socket();
        let silent = socket.open(1);
        let mut half = socket.open(2);
        half.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        // Says its settings, and does not answer the ping that comes before the end.
        let mut deaf = socket.open(3);
        deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
            .await
            .unwrap();
        deaf.read_u8().await.unwrap();
        assert_eq!(socket.stop().await, DRAIN.as_secs());
        drop((silent, half, deaf));
    }
}
