//! Checks the limits for each call, before its message is read and its caller is attested.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use finial_identity::process::grpc_timeout;
use futures_util::future::BoxFuture;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tower::Layer;
use tower_service::Service;

use super::AdmittedCall;
use super::body::RequestBody;
use crate::endpoints::broker::BrokerCaller;
use crate::endpoints::listener::Caller;

/// Puts the limits before services.
#[derive(Clone, Copy, Debug)]
pub struct LimitLayer;

/// Lets in what is not too much.
#[derive(Clone, Debug)]
pub struct Limited<S> {
    inner: S,
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limited<S>;

    fn layer(&self, inner: S) -> Limited<S> {
        Limited { inner }
    }
}

impl<S> Service<http::Request<Body>> for Limited<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let call = match admit(&request) {
            Ok(call) => Arc::new(call),
            Err(refused) => return Box::pin(std::future::ready(Ok(refused.into_http()))),
        };
        let (parts, body) = request.into_parts();
        let body = RequestBody::new(body, Arc::clone(&call), parts.uri.path());
        let patience = grpc_timeout(&parts.headers);
        let request = http::Request::from_parts(parts, Body::new(body));
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = match patience {
                None => answer.await,
                // Its client gives up by then, but may not say so. An answer that has begun goes on until it does.
                Some(patience) => Box::pin(tokio::time::timeout(patience, answer))
                    .await
                    .unwrap_or_else(
                        |_elapsed| Ok(Status::deadline_exceeded("deadline exceeded").into_http()),
                    ),
            };
            let (parts, body) = answer?.into_parts();
            let body = Body::new(CountedBody { body, _call: call });
            Ok(http::Response::from_parts(parts, body))
        })
    }
}

fn admit(request: &http::Request<Body>) -> Result<AdmittedCall, Status> {
    let extensions = request.extensions();
    let admitted = match (extensions.get(), extensions.get()) {
        (Some(Caller { peer, admitted }), _) => {
            if peer.is_own_process() {
                return Ok(admitted.own_call());
            }
            admitted
        }
        (None, Some(BrokerCaller { admitted, .. })) => admitted,
        (None, None) => return Err(Status::internal("connection has no peer")),
    };
    // As SPIRE says it; all clients try again later.
    let call = admitted.call(request.uri().path());
    call.map_err(|too_many| Status::unavailable(too_many.to_string()))
}

/// An answer's body, which holds the call's place until it is sent or given up. So does the request's, until it is read.
#[derive(Debug)]
struct CountedBody {
    body: Body,
    _call: Arc<AdmittedCall>,
}

impl HttpBody for CountedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.body).poll_frame(cx)
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
    use tokio::time::{Duration, Instant};
    use tonic::Code;

    use super::*;
    use crate::endpoints::limits::Admission;
    use crate::endpoints::peer::Peer;

    #[tokio::test(start_paused = true)]
    async fn a_call_is_over_when_its_client_no_longer_waits() {
        let admission = Admission::new(8);
        let admitted = Arc::new(admission.admit(0).unwrap());
        let caller = Caller {
            peer: Peer::hidden(),
            admitted: Arc::clone(&admitted),
        };
        let request = http::Request::builder().header("grpc-timeout", "1500m");
        let request = request.extension(caller).body(Body::empty()).unwrap();
        let never = tower::service_fn(|request: http::Request<Body>| async move {
            let _held = request;
            std::future::pending().await
        });
        let begun = Instant::now();
        let answer = LimitLayer.layer(never).call(request).await.unwrap();
        assert_eq!(begun.elapsed(), Duration::from_millis(1500));
        let status = Status::from_header_map(answer.headers()).unwrap();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        drop(answer);
        assert!(admitted.is_idle(), "its place is given back");
    }
}
