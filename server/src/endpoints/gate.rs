//! The checks of every call of both listeners before it reaches a service, and the processing of its
//! answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use finial_identity::metrics::CallTimer;
use finial_identity::process::grpc_timeout;
use finial_identity::traces;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::{Code, Status};
use tower_service::Service;
use tracing::{Instrument, Span};

use super::audit::{Audit, Outcome};
use super::authorization::{self, Bucket, Effect, Row};
use super::caller::{Callers, denied_method};
use super::calls;
use super::connection::{Connection, HeldOpen};
use super::limits::Limits;
use super::strangers::{LimitedBody, max_request};
use crate::api::Services;
use crate::api::call::{Call, Peer, Tokens};
use crate::api::status::Refusal;

/// What the gates of all connections share.
#[derive(Debug)]
pub struct Rules {
    /// Tells callers apart.
    pub callers: Callers,
    /// Rate limits by address.
    pub limits: Arc<Limits>,
    /// Keeps what was done.
    pub audit: Audit,
    /// Where what was written is taken in.
    pub services: Arc<Services>,
}

/// The gate of one connection.
#[derive(Clone, Debug)]
pub struct Gate {
    rules: Arc<Rules>,
    connection: Arc<Connection>,
    routes: Routes,
}

impl Gate {
    /// A gate before these services.
    pub fn new(rules: Arc<Rules>, connection: Arc<Connection>, routes: Routes) -> Self {
        Self {
            rules,
            connection,
            routes,
        }
    }

    async fn admit(&self, method: &str, deadline: Option<Instant>) -> Result<(&'static Row, Call), Refusal> {
        let row = authorization::row(method).ok_or_else(|| denied_method(method))?;
        let peer = self.connection.peer();
        let caller = self.rules.callers.identify(row, peer).await?;
        let tokens = self.pay(row, peer, deadline).await?;
        Ok((row, Call::new(caller, tokens)))
    }

    /// Pays for the call, or hands over the means to pay for its items.
    async fn pay(
        &self,
        row: &Row,
        peer: &Peer,
        deadline: Option<Instant>,
    ) -> Result<Option<Tokens>, Refusal> {
        let Peer::Remote { addr, .. } = peer else {
            return Ok(None);
        };
        let (limits, address, bucket) = (&self.rules.limits, addr.ip(), row.bucket);
        match bucket {
            Bucket::X509SigningPerItem | Bucket::WitSigningPerItem => {
                let limits = Arc::clone(limits);
                Ok(Some(Tokens::new(move |count| {
                    let limits = Arc::clone(&limits);
                    async move { limits.take(bucket, address, count, deadline).await }.boxed()
                })))
            }
            _ => {
                limits.take(bucket, address, 1, deadline).await?;
                Ok(None)
            }
        }
    }
}

impl<B> Service<http::Request<B>> for Gate
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let mut gate = self.clone();
        async move {
            let method = request.uri().path().to_owned();
            let timer = calls::start(&method);
            let deadline = earlier(deadline(request.headers()), own_deadline(&method));
            let (row, call) = match gate.admit(&method, deadline).await {
                Ok(admitted) => admitted,
                Err(refusal) => {
                    if let Some(timer) = timer {
                        timer.end(refusal.code());
                    }
                    let request_id = uuid::Uuid::new_v4();
                    let peer = gate.connection.peer();
                    gate.rules.audit.refused(request_id, &method, peer, &refusal);
                    return Ok(refusal.into_status(request_id).into_http());
                }
            };
            let held = (row.method == WATCH).then(|| gate.connection.hold_open());
            // A stream that lasts for days is no span.
            let span = if row.method == WATCH {
                Span::none()
            } else {
                calls::span(row.method)
            };
            // Strangers do not decide what is traced, but a node that attests is one.
            if !gate.connection.peer().is_stranger() || row.method == ATTEST {
                traces::continue_from(request.headers(), &span);
            }
            request.extensions_mut().insert(call.clone());
            let limit = max_request(gate.connection.peer(), row.method);
            let request = request.map(|body| LimitedBody::new(body, limit));
            let services = Arc::clone(&gate.rules.services);
            // A change is in force when its caller is told of it; one that was refused may have been made in part.
            let taking_in = async {
                if writes_before_it_answers(row) {
                    services.take_in_writes().await;
                }
            };
            let answer = gate.routes.call(request).instrument(span.clone());
            let answer = answer_by(deadline, answer, taking_in.instrument(span.clone())).await;
            let Ok(response) = answer.unwrap_or_else(|| Ok(Status::deadline_exceeded(OVERDUE).into_http()));
            let (parts, body) = response.into_parts();
            let mut body = ObservedBody {
                body,
                // A unary call's answer is there by now.
                overdue: deadline
                    .filter(|_| row.method == ATTEST)
                    .map(|deadline| Box::pin(sleep_until(deadline))),
                end: Some(End {
                    rules: Arc::clone(&gate.rules),
                    row,
                    call,
                    timer,
                    _held: held,
                }),
                span,
            };
            // Refusals come without a body, with the status among the headers.
            if let Some(outcome) = outcome(&parts.headers) {
                body.finish(outcome);
            }
            Ok(http::Response::from_parts(parts, Body::new(body)))
        }
        .boxed()
    }
}

/// Whether what a call wrote is stored when there is an answer. An attestation answers before it writes, and whoever it
/// is about is looked for in the store.
fn writes_before_it_answers(row: &Row) -> bool {
    row.effect == Effect::Changes && row.method != ATTEST
}

/// The answer, if there is one in time. `afterwards` comes before it goes out, but does not take it away: what was done is
/// not called undone when only that takes too long.
async fn answer_by<A>(
    deadline: Option<Instant>,
    answer: impl Future<Output = A>,
    afterwards: impl Future<Output = ()>,
) -> Option<A> {
    let Some(deadline) = deadline else {
        let answer = answer.await;
        afterwards.await;
        return Some(answer);
    };
    let answer = timeout_at(deadline, answer).await.ok()?;
    if timeout_at(deadline, afterwards).await.is_err() {
        tracing::debug!("a call was answered before its writes were taken in: its time was over");
    }
    Some(answer)
}

/// An answer's body, which reports the end of the call to the audit log.
struct ObservedBody {
    body: Body,
    /// Completes when the call has taken too long.
    overdue: Option<Pin<Box<Sleep>>>,
    end: Option<End>,
    /// What happens while the answer is read is part of the call.
    span: Span,
}

struct End {
    rules: Arc<Rules>,
    row: &'static Row,
    call: Call,
    timer: Option<CallTimer>,
    _held: Option<HeldOpen>,
}

impl ObservedBody {
    /// Ends the answer, whatever is still to come.
    fn give_up(&mut self, status: &Status) -> Option<Result<Frame<Bytes>, Status>> {
        self.overdue = None;
        self.body = Body::empty();
        self.finish(Outcome {
            code: status.code(),
            message: status.message().to_owned(),
        });
        let mut trailers = HeaderMap::new();
        Some(
            status
                .add_header(&mut trailers)
                .map(|()| Frame::trailers(trailers)),
        )
    }

    fn finish(&mut self, outcome: Outcome) {
        if let Some(end) = self.end.take() {
            end.rules.audit.done(end.row, &end.call, &outcome);
            self.span.record("rpc.grpc.status_code", outcome.code as i64);
            if let Some(timer) = end.timer {
                timer.end(outcome.code);
            }
        }
    }
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let span = self.span.clone();
        let polled = span.in_scope(|| Pin::new(&mut self.body).poll_frame(cx));
        // What is there goes out; too late is only what must be waited for.
        if polled.is_pending()
            && let Some(overdue) = &mut self.overdue
            && overdue.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(self.give_up(&Status::deadline_exceeded(OVERDUE)));
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(outcome) = frame.trailers_ref().and_then(outcome) {
                    self.finish(outcome);
                }
            }
            Poll::Ready(Some(Err(status))) => {
                let outcome = Outcome {
                    code: status.code(),
                    message: status.message().to_owned(),
                };
                self.finish(outcome);
            }
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for ObservedBody {
    fn drop(&mut self) {
        self.finish(Outcome {
            code: Code::Cancelled,
            message: "caller left".to_owned(),
        });
    }
}

fn outcome(headers: &HeaderMap) -> Option<Outcome> {
    let status = Status::from_header_map(headers)?;
    Some(Outcome {
        code: status.code(),
        message: status.message().to_owned(),
    })
}

/// When the caller gives up, if it says so and there is such a moment.
fn deadline(headers: &HeaderMap) -> Option<Instant> {
    Instant::now().checked_add(grpc_timeout(headers)?)
}

/// When we give up: no call but those that stream entries may take longer than a minute.
fn own_deadline(method: &str) -> Option<Instant> {
    match method {
        WATCH | SYNC => None,
        _ => Instant::now().checked_add(LONGEST),
    }
}

fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

const WATCH: &str = "/finial.server.sync.v1.Sync/Watch";
const SYNC: &str = "/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries";
/// The method by which nodes attest.
pub const ATTEST: &str = "/spire.api.server.agent.v1.Agent/AttestAgent";

const LONGEST: Duration = Duration::from_secs(60);
const OVERDUE: &str = "deadline exceeded";

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_caller_gives_up_when_it_says() {
        let mut headers = HeaderMap::new();
        assert_eq!(deadline(&headers), None);
        headers.insert("grpc-timeout", "1500m".parse().unwrap());
        assert_eq!(
            deadline(&headers),
            Some(Instant::now() + Duration::from_millis(1500))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn every_call_but_those_that_stream_entries_ends_within_a_minute() {
        let minute = Instant::now() + LONGEST;
        let hour = Instant::now() + 60 * LONGEST;
        assert_eq!(earlier(Some(hour), own_deadline(ATTEST)), Some(minute));
        assert_eq!(earlier(None, own_deadline("/a.B/C")), Some(minute));
        assert_eq!(earlier(None, own_deadline(WATCH)), None);
        assert_eq!(earlier(Some(hour), own_deadline(SYNC)), Some(hour));
    }

    /// A body of which nothing comes.
    struct Silent;

    impl HttpBody for Silent {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    /// A body that is there.
    struct Full(Option<Bytes>);

    impl HttpBody for Full {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_takes_too_long_ends_with_a_status() {
        let start = Instant::now();
        let mut body = ObservedBody {
            body: Body::new(Silent),
            overdue: Some(Box::pin(sleep_until(start + LONGEST))),
            end: None,
            span: Span::none(),
        };
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert_eq!(start.elapsed(), LONGEST);
        let trailers = frame.unwrap().unwrap().into_trailers().unwrap();
        assert_eq!(outcome(&trailers).unwrap().code, Code::DeadlineExceeded);
        let next = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(next.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_there_when_the_time_is_over_goes_out() {
        let mut body = ObservedBody {
            body: Body::new(Full(Some(Bytes::from_static(b"answer")))),
            overdue: Some(Box::pin(sleep_until(Instant::now()))),
            end: None,
            span: Span::none(),
        };
        tokio::time::sleep(LONGEST).await;
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert_eq!(frame.unwrap().unwrap().into_data().unwrap(), "answer");
        let end = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
        assert!(end.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_finished_call_is_answered_though_its_writes_are_not_taken_in_by_the_deadline() {
        let start = Instant::now();
        let deadline = Some(start + LONGEST);
        let after = |seconds| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            seconds
        };
        let never = std::future::pending::<()>;
        assert_eq!(answer_by(deadline, after(59), never()).await, Some(59));
        assert_eq!(start.elapsed(), LONGEST);
        // In time to the moment.
        assert_eq!(answer_by(deadline, std::future::ready(7), never()).await, Some(7));
        assert_eq!(answer_by(deadline, after(1), async {}).await, None);
        assert_eq!(answer_by(None, after(3600), async {}).await, Some(3600));
    }

    #[test]
    fn only_calls_that_store_something_wait_for_it() {
        let waits = |method: &str| writes_before_it_answers(authorization::row(method).unwrap());
        assert!(waits("/spire.api.server.entry.v1.Entry/BatchCreateEntry"));
        assert!(waits("/spire.api.server.agent.v1.Agent/BanAgent"));
        for method in [
            "/spire.api.server.entry.v1.Entry/GetEntry",
            "/spire.api.server.logger.v1.Logger/SetLogLevel",
            "/spire.api.server.logger.v1.Logger/ResetLogLevel",
            ATTEST,
        ] {
            assert!(!waits(method), "{method}");
        }
    }
}
