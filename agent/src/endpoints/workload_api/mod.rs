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
use std::task::{Context, Poll};

use finial_proto::workload::spiffe_workload_api_server::SERVICE_NAME;
use finial_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, WitBundlesRequest, WitsvidRequest,
    X509BundlesRequest, X509svidRequest,
};
use futures_util::future::BoxFuture;
use prost::Message;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower_service::Service;

pub(super) use self::jwt::{requested_identity, tokens};
pub(super) use self::messages::{Content, Messages};
use super::client::SECURITY_HEADER;
use super::codec::{require_security_header, streaming, unary};
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
        if let Err(missing) = require_security_header(request.headers(), SECURITY_HEADER) {
            return missing.into_http();
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
                streaming(request, move |request: Request<WitsvidRequest>| {
                    wit::fetch(sessions, request)
                })
                .await
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

async fn stream<M: Message + Default + 'static>(
    sessions: Sessions,
    request: http::Request<Body>,
    content: Content,
) -> http::Response<Body> {
    let answer = move |request: Request<M>| async move {
        let mut messages = Messages::open(&sessions, &request, content).await?;
        let first = messages.next().await?;
        Ok(messages.into_stream(first))
    };
    streaming(request, answer).await
}
