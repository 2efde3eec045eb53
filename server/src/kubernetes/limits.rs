//! How long the API server may take. The client itself waits for ever, and the runtime's timer runs only while a watch
//! is open: an API server, or a proxy before it, that takes a request and never answers would end a watch for good.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tower_service::Service;

/// How long a connection may be silent; longer than a watch without events, which the API server ends after 290 seconds.
pub(super) const SILENCE: Duration = Duration::from_secs(300);
/// How long the whole answer to a request may take.
const SINGLE: Duration = Duration::from_secs(10);
/// How long a page of a list may take, and the beginning of a watch.
const LIST: Duration = Duration::from_secs(30);

type BoxError = Box<dyn Error + Send + Sync>;

/// A client's service whose every request ends.
#[derive(Clone, Debug)]
pub(super) struct Limited<S>(pub(super) S);

/// The API server took longer.
#[derive(Debug)]
struct Overdue(Duration);

impl fmt::Display for Overdue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "API server took longer than {} seconds to answer",
            self.0.as_secs()
        )
    }
}

impl Error for Overdue {}

impl<S, A, B> Service<Request<A>> for Limited<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: Body<Data = Bytes> + Unpin + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<LimitedBody<B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let form = Form::of(request.uri().query().unwrap_or_default());
        let limit = form.limit();
        let answer = self.0.call(request);
        async move {
            let deadline = Instant::now() + limit;
            let answer = timeout_at(deadline, answer).await;
            let answer = answer.map_err(|_elapsed| Overdue(limit))?;
            let (parts, body) = answer.map_err(Into::into)?.into_parts();
            let body = LimitedBody {
                body,
                overdue: (form != Form::Watch).then(|| Box::pin(sleep_until(deadline))),
                limit,
            };
            Ok(Response::from_parts(parts, body))
        }
        .boxed()
    }
}

/// What kind of request it is, which its query tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Single,
    List,
    /// Its answer goes on.
    Watch,
}

impl Form {
    fn of(query: &str) -> Self {
        let has = |key: &str| query.split('&').any(|pair| pair.split('=').next() == Some(key));
        match (has("watch"), has("limit")) {
            (true, _) => Self::Watch,
            (false, true) => Self::List,
            (false, false) => Self::Single,
        }
    }

    fn limit(self) -> Duration {
        match self {
            Self::Single => SINGLE,
            Self::List | Self::Watch => LIST,
        }
    }
}

/// An answer that must be there in time.
pub(super) struct LimitedBody<B> {
    body: B,
    overdue: Option<Pin<Box<Sleep>>>,
    limit: Duration,
}

impl<B> Body for LimitedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        if let Some(overdue) = &mut self.overdue
            && overdue.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(Overdue(self.limit).into())));
        }
        Pin::new(&mut self.body).poll_frame(cx).map_err(Into::into)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers after so long, with a body that never ends.
    struct Slow(Option<Duration>);

    impl Service<Request<()>> for Slow {
        type Response = Response<Endless>;
        type Error = BoxError;
        type Future = BoxFuture<'static, Result<Response<Endless>, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(Ok(()))
        }

        fn call(&mut self, _request: Request<()>) -> Self::Future {
            let after = self.0;
            async move {
                match after {
                    Some(after) => tokio::time::sleep(after).await,
                    None => std::future::pending().await,
                }
                Ok(Response::new(Endless))
            }
            .boxed()
        }
    }

    struct Endless;

    impl Body for Endless {
        type Data = Bytes;
        type Error = BoxError;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            Poll::Pending
        }
    }

    /// After how many seconds the request has failed; none when it goes on for an hour.
    async fn fails_after(path: &str, answers: Option<Duration>) -> Option<u64> {
        let request = Request::builder().uri(path).body(()).unwrap();
        let start = Instant::now();
        let whole = async {
            let mut body = Limited(Slow(answers)).call(request).await?.into_body();
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            frame.transpose()
        };
        match tokio::time::timeout(Duration::from_secs(3600), whole).await {
            Err(_goes_on) => None,
            Ok(failed) => {
                let text = failed.err().unwrap().to_string();
                assert!(text.contains("took longer than"), "{text}");
                Some(start.elapsed().as_secs())
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_is_taken_and_never_answered_fails() {
        assert_eq!(fails_after("/api/v1/pods?&limit=500", None).await, Some(30));
        assert_eq!(fails_after("/api/v1/pods?watch=true", None).await, Some(30));
        assert_eq!(
            fails_after("/api/v1/namespaces/a/pods/limit", None).await,
            Some(10)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_end_fails_unless_it_is_a_watch() {
        let soon = Some(Duration::from_secs(1));
        assert_eq!(fails_after("/api/v1/pods?&limit=500", soon).await, Some(30));
        assert_eq!(fails_after("/api/v1/pods/a?", soon).await, Some(10));
        assert_eq!(
            fails_after("/api/v1/pods?&watch=true&timeoutSeconds=290", soon).await,
            None
        );
    }
}
