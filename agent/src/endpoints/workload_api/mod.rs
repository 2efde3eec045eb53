//! The SPIFFE Workload API: X.509 and JWT profiles (Workload API §5 and §6). The WIT profile is off.
//!
//! Every call carries `workload.spiffe.io: true`. The caller is attested by its process, once for each call and on
//! a stream again before each new message; a stream sends the whole state whenever what this caller gets has
//! changed, and never ends without an error.

mod call;
mod codec;
mod jwt;
mod view;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use finial_identity::process::{Clock, Stop};
use finial_proto::workload::spiffe_workload_api_server::SERVICE_NAME;
use finial_proto::workload::{
    JwtBundlesRequest, JwtsvidRequest, ValidateJwtsvidRequest, X509BundlesRequest, X509svidRequest,
};
use futures_util::future::BoxFuture;
use prost::Message;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status};
use tower_service::Service;

use self::call::{Call, Wanted};
use self::codec::PreEncoded;
use self::view::Views;
use super::client::SECURITY_HEADER;
use super::limits::MAX_REQUEST_BYTES;
use crate::node::NodeState;
use crate::svids::SvidCache;
use crate::workload::WorkloadAttestation;

/// What the operator decided about callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPolicy {
    /// Callers without identity get the own bundle (`allow_unauthenticated_verifiers`).
    pub allow_unauthenticated_verifiers: bool,
    /// Claims that are returned for tokens of other trust domains, besides `sub`, `aud` and `exp`
    /// (`allowed_foreign_jwt_claims`).
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// How long the first answer may wait for the entries to be synced.
    pub sync_interval: Duration,
}

/// What the service stands on.
#[derive(Clone, Debug)]
pub struct WorkloadApiParts {
    /// Who calls.
    pub attestation: WorkloadAttestation,
    /// What there is to give.
    pub svids: SvidCache,
    /// How the agent learns of changes.
    pub sync: SyncMode,
    /// How the agent is.
    pub node: watch::Receiver<NodeState>,
    /// The time.
    pub clock: Clock,
    /// When streams are to end.
    pub stop: Stop,
    /// The agent's own process, which asks for its health and is never made to wait.
    pub own_pid: u32,
    /// What the operator decided.
    pub policy: WorkloadPolicy,
}

/// Tells whether the server pushes changes or is polled, which may change with each connection to it.
#[derive(Clone)]
pub struct SyncMode(Arc<dyn Fn() -> bool + Send + Sync>);

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WorkloadApi {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    attestation: WorkloadAttestation,
    svids: SvidCache,
    sync: SyncMode,
    node: watch::Receiver<NodeState>,
    clock: Clock,
    stop: Stop,
    own_pid: u32,
    policy: WorkloadPolicy,
    views: Views,
}

impl SyncMode {
    /// A mode that `is_pushed` looks up.
    pub fn new(is_pushed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_pushed))
    }

    fn is_pushed(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for SyncMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncMode")
            .field("is_pushed", &self.is_pushed())
            .finish()
    }
}

impl WorkloadApi {
    /// The service on top of its parts.
    pub fn new(parts: WorkloadApiParts) -> Self {
        Self {
            shared: Arc::new(Shared {
                attestation: parts.attestation,
                svids: parts.svids,
                sync: parts.sync,
                node: parts.node,
                clock: parts.clock,
                stop: parts.stop,
                own_pid: parts.own_pid,
                policy: parts.policy,
                views: Views::default(),
            }),
        }
    }

    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        if !has_security_header(request.headers()) {
            return Status::invalid_argument("security header missing from request").into_http();
        }
        let shared = self.shared;
        let path = request.uri().path();
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some((SERVICE_NAME, "FetchX509SVID")) => {
                stream::<X509svidRequest>(shared, request, Wanted::X509Svids).await
            }
            Some((SERVICE_NAME, "FetchX509Bundles")) => {
                stream::<X509BundlesRequest>(shared, request, Wanted::X509Bundles).await
            }
            Some((SERVICE_NAME, "FetchJWTBundles")) => {
                stream::<JwtBundlesRequest>(shared, request, Wanted::JwtBundles).await
            }
            Some((SERVICE_NAME, "FetchJWTSVID")) => {
                unary(request, move |request: Request<JwtsvidRequest>| {
                    jwt::fetch(shared, request)
                })
                .await
            }
            Some((SERVICE_NAME, "ValidateJWTSVID")) => {
                unary(request, move |request: Request<ValidateJwtsvidRequest>| {
                    jwt::validate(shared, request)
                })
                .await
            }
            Some((SERVICE_NAME, "FetchWITSVID" | "FetchWITBundles")) => {
                Status::unimplemented("the WIT profile is switched off").into_http()
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
    shared: Arc<Shared>,
    request: http::Request<Body>,
    wanted: Wanted,
) -> http::Response<Body> {
    let service = tower::service_fn(move |request: Request<M>| {
        let shared = Arc::clone(&shared);
        async move {
            let mut call = Call::open(shared, &request, wanted).await?;
            let first = call.next().await?;
            Ok::<_, Status>(Response::new(call.into_stream(first)))
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
