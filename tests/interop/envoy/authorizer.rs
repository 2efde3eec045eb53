//! An external authorizer for Envoy: one method, of whose messages it knows the fields it needs.

use std::convert::Infallible;
use std::future::Future;
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll};

use prost::Message;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;
use tower::Service;

/// `envoy.service.auth.v3.CheckRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct CheckRequest {
    #[prost(message, optional, tag = "1")]
    pub(super) attributes: Option<Attributes>,
}

/// `envoy.service.auth.v3.AttributeContext`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Attributes {
    #[prost(message, optional, tag = "1")]
    pub(super) source: Option<Side>,
    #[prost(message, optional, tag = "2")]
    pub(super) destination: Option<Side>,
}

/// `envoy.service.auth.v3.AttributeContext.Peer`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Side {
    #[prost(string, tag = "4")]
    pub(super) principal: String,
    #[prost(string, tag = "5")]
    pub(super) certificate: String,
}

/// `envoy.service.auth.v3.CheckResponse`
#[derive(Clone, PartialEq, Message)]
struct CheckResponse {
    #[prost(message, optional, tag = "1")]
    status: Option<finial_proto::google::rpc::Status>,
}

/// Serves on a socket until the test program ends, and passes on what it is asked. It allows the callers whose
/// SPIFFE ID is `allowed`.
pub(super) fn start(socket: &Path, allowed: &str) -> Receiver<CheckRequest> {
    let (asked, requests) = channel();
    let service = Authorizer {
        allowed: allowed.to_owned(),
        asked,
    };
    let listener = std::os::unix::net::UnixListener::bind(socket).expect("a socket");
    listener
        .set_nonblocking(true)
        .expect("a socket that does not block");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let listener = UnixListener::from_std(listener).expect("a listener");
            let server = tonic::transport::Server::builder().add_service(service);
            server
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
        })
    });
    requests
}

#[derive(Clone, Debug)]
struct Authorizer {
    allowed: String,
    asked: Sender<CheckRequest>,
}

impl Authorizer {
    fn check(&self, request: CheckRequest) -> CheckResponse {
        let source = request.attributes.as_ref().and_then(|all| all.source.as_ref());
        let is_allowed = source.is_some_and(|source| source.principal == self.allowed);
        let _test_has_ended = self.asked.send(request);
        let code = if is_allowed { 0 } else { 7 };
        CheckResponse {
            status: Some(finial_proto::google::rpc::Status {
                code,
                ..Default::default()
            }),
        }
    }
}

impl NamedService for Authorizer {
    const NAME: &'static str = "envoy.service.auth.v3.Authorization";
}

impl Service<http::Request<Body>> for Authorizer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let authorizer = self.clone();
        let service = tower::service_fn(move |request: Request<CheckRequest>| {
            let response = authorizer.check(request.into_inner());
            async move { Ok::<_, Status>(Response::new(response)) }
        });
        Box::pin(async move {
            let codec = ProstCodec::<CheckResponse, CheckRequest>::default();
            Ok(Grpc::new(codec).unary(service, request).await)
        })
    }
}
