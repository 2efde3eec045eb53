//! The SPIFFE Workload API: X.509 and JWT profiles (Workload API §5 and §6), and the WIT profile (§7, Incubating) where
//! it is switched on.
//!
//! Every call carries `workload.spiffe.io: true`. The caller is attested by its process, once for each call and on
//! a stream again before each new message; a stream sends the whole state whenever what this caller gets has
//! changed, and never ends without an error.

mod encoding;
mod jwt;
mod messages;
mod wit;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::task::{Context, Poll};

use bytes::Bytes;
use finial_proto::workload::spiffe_workload_api_server::SERVICE_NAME;
use finial_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use futures_util::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tower_service::Service;

use self::messages::{Content, Messages};
use super::client::SECURITY_HEADER;
use super::codec::PreEncoded;
use super::limits::MAX_REQUEST_BYTES;
use super::session::Sessions;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    sessions: Sessions,
}

impl WorkloadApi {
    /// The service for these sessions.
    pub fn new(sessions: Sessions) -> Self {
        Self { sessions }
    }

    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        if !has_security_header(request.headers()) {
            return Status::invalid_argument("security header missing from request").into_http();
        }
        let sessions = self.sessions;
        let path = request.uri().path();
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some((SERVICE_NAME, "FetchX509SVID")) => {
                stream::<X509svidRequest>(sessions, request, Content::X509Svids).await
            }
            Some((SERVICE_NAME, "FetchX509Bundles")) => {
                stream::<X509BundlesRequest>(sessions, request, Content::X509Bundles).await
            }
            Some((SERVICE_NAME, "FetchJWTBundles")) => {
                stream::<JwtBundlesRequest>(sessions, request, Content::JwtBundles).await
            }
            Some((SERVICE_NAME, "FetchJWTSVID")) => {
                unary(request, move |request: Request<JwtsvidRequest>| {
                    jwt::fetch(sessions, request)
                })
                .await
            }
            Some((SERVICE_NAME, "ValidateJWTSVID")) => {
                unary(request, move |request: Request<ValidateJwtsvidRequest>| {
                    jwt::validate(sessions, request)
                })
                .await
            }
            Some((SERVICE_NAME, "FetchWITSVID" | "FetchWITBundles"))
                if sessions.svids().wit_cache().is_none() =>
            {
                Status::unimplemented("the WIT profile is switched off").into_http()
            }
            Some((SERVICE_NAME, "FetchWITSVID")) => {
                let service = tower::service_fn(move |request: Request<WitsvidRequest>| {
                    wit::fetch(sessions.clone(), request)
                });
                grpc::<WitsvidRequest>().server_streaming(service, request).await
            }
            Some((SERVICE_NAME, "FetchWITBundles")) => {
                stream::<WitBundlesRequest>(sessions, request, Content::WitBundles).await
            }
            _ => Status::unimplemented("unknown method").into_http(),
        }
    }
}

impl NamedService for WorkloadApi {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for WorkloadApi {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let answer = self.clone().answer(request);
        Box::pin(async move { Ok(answer.await) })
    }
}

/// Exactly one value, exactly `true`: a browser or a proxy that was tricked into a request cannot send it.
fn has_security_header(headers: &http::HeaderMap) -> bool {
    let (name, value) = SECURITY_HEADER;
    let mut values = headers.get_all(name).iter();
    values
        .next()
        .is_some_and(|only| only.as_bytes() == value.as_bytes())
        && values.next().is_none()
}

async fn stream<M: Message + Default + 'static>(
    sessions: Sessions,
    request: http::Request<Body>,
    content: Content,
) -> http::Response<Body> {
    let service = tower::service_fn(move |request: Request<M>| {
        let sessions = sessions.clone();
        async move {
            let mut messages = Messages::open(&sessions, &request, content).await?;
            let first = messages.next().await?;
            Ok::<_, Status>(Response::new(messages.into_stream(first)))
        }
    });
    grpc::<M>().server_streaming(service, request).await
}

async fn unary<M, F, A>(request: http::Request<Body>, answer: F) -> http::Response<Body>
where
    M: Message + Default + 'static,
    F: FnOnce(Request<M>) -> A + Clone,
    A: Future<Output = Result<Bytes, Status>>,
{
    let service = tower::service_fn(move |request: Request<M>| {
        let answer = answer.clone()(request);
        async move { answer.await.map(Response::new) }
    });
    grpc::<M>().unary(service, request).await
}

fn grpc<M: Message + Default + 'static>() -> Grpc<PreEncoded<M>> {
    Grpc::new(PreEncoded::new()).max_decoding_message_size(MAX_REQUEST_BYTES)
}
