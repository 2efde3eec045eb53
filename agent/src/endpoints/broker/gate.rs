//! What every request of a broker must have, whichever service it is for (SPIFFE Broker Endpoint §3, §6).

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::task::{Context, Poll};

use futures_util::future::Either;
use tonic::Status;
use tonic::body::Body;
use tower::Layer;
use tower_service::Service;

use super::caller::{BrokerCaller, Transport, Trust};
use crate::endpoints::codec::require_security_header;

/// The metadata that every request carries, and its one value.
pub const BROKER_HEADER: (&str, &str) = ("broker.spiffe.io", "true");
const REFLECTION: &str = "/grpc.reflection.";

/// Puts [`Gate`] before services.
#[derive(Clone, Debug)]
pub(super) struct GateLayer {
    pub(super) trust: Trust,
}

/// Refuses what no service must see.
#[derive(Clone, Debug)]
pub(super) struct Gate<S> {
    trust: Trust,
    inner: S,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            trust: self.trust.clone(),
            inner,
        }
    }
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Either<Ready<Result<Self::Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match check(&self.trust, &request) {
            Ok(()) => Either::Right(self.inner.call(request)),
            Err(refused) => Either::Left(ready(Ok(refused.into_http()))),
        }
    }
}

fn check(trust: &Trust, request: &http::Request<Body>) -> Result<(), Status> {
    let caller: &BrokerCaller = request
        .extensions()
        .get()
        .ok_or_else(|| Status::unauthenticated("connection has no broker"))?;
    require_security_header(request.headers(), BROKER_HEADER)?;
    if caller.transport == Transport::Tcp && request.uri().path().starts_with(REFLECTION) {
        return Err(Status::permission_denied(
            "server reflection is only available over Unix sockets",
        ));
    }
    trust.check(caller)
}
