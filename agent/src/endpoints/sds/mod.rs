//! Envoy's secret discovery service v3: certificates and trust bundles for Envoy, on the same socket.
//!
//! The caller is attested as for the Workload API; the security header is not required, because Envoy does not send it.
//! A secret that does not exist yet is left out of the response and sent when it exists: a stream is never ended
//! because of a name, because Envoy would wait long before it connects again. `secrets` knows the names,
//! `state_of_the_world` and `delta` are the two protocols, without waiting, and `exchange` is the loop around them.

mod delta;
mod exchange;
mod node;
mod secrets;
mod state_of_the_world;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use finial_proto::envoy::service::discovery::v3::DiscoveryRequest;
use finial_proto::envoy::service::secret::v3::secret_discovery_service_server::SERVICE_NAME;
use futures_util::future::BoxFuture;
use prost::Message;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::server::{Grpc, NamedService};
use tonic::{Request, Response, Status, Streaming};
use tower_service::Service;

pub use self::delta::Delta;
pub use self::exchange::Protocol;
use self::exchange::{Exchange, FRESH, check_names, check_type};
pub use self::node::{Requester, Validator};
pub use self::secrets::{Asked, Found, Secret};
pub use self::state_of_the_world::StateOfTheWorld;
use super::codec::PreEncoded;
use super::limits::MAX_REQUEST_BYTES;
use super::session::{Access, ISSUE_WAIT, Session, Sessions, svid_of};
use crate::config::SdsSettings;

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sds {
    sessions: Sessions,
    settings: Arc<SdsSettings>,
}

impl Sds {
    /// The service for these sessions.
    pub fn new(sessions: Sessions, settings: SdsSettings) -> Self {
        Self {
            sessions,
            settings: Arc::new(settings),
        }
    }

    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path();
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some((SERVICE_NAME, "StreamSecrets")) => {
                let protocol = StateOfTheWorld::new(Arc::clone(&self.settings));
                self.stream(request, protocol).await
            }
            Some((SERVICE_NAME, "DeltaSecrets")) => {
                let protocol = Delta::new(Arc::clone(&self.settings));
                self.stream(request, protocol).await
            }
            Some((SERVICE_NAME, "FetchSecrets")) => {
                let service = tower::service_fn(move |request: Request<DiscoveryRequest>| {
                    let sds = self.clone();
                    async move { sds.fetch(request).await.map(Response::new) }
                });
                grpc::<DiscoveryRequest>().unary(service, request).await
            }
            _ => Status::unimplemented("unknown method").into_http(),
        }
    }

    async fn stream<P: Protocol>(self, request: http::Request<Body>, protocol: P) -> http::Response<Body> {
        let mut protocol = Some(protocol);
        let service = tower::service_fn(move |request: Request<Streaming<P::Request>>| {
            let (sds, protocol) = (self.clone(), protocol.take());
            async move {
                let protocol = protocol.ok_or_else(|| Status::internal("stream was opened before"))?;
                let exchange = Exchange::open(&sds.sessions, sds.settings, request, protocol).await?;
                Ok::<_, Status>(Response::new(exchange.into_responses()))
            }
        });
        grpc::<P::Request>().streaming(service, request).await
    }

    /// Everything at once or nothing: there is no later answer in which the rest could come.
    async fn fetch(self, request: Request<DiscoveryRequest>) -> Result<Bytes, Status> {
        check_type(&request.get_ref().type_url)?;
        check_names(request.get_ref().resource_names.iter())?;
        let mut session = Session::open(&self.sessions, &request, Access::Secrets).await?;
        let request = request.into_inner();
        let requester = match &request.node {
            Some(node) => Requester::of(node, &self.settings),
            None => Requester::unknown(&self.settings),
        };
        let asked = state_of_the_world::asked(request.resource_names);
        if secrets::wants_svids(&asked, &self.settings) {
            session.want_svids();
        }
        let deadline = Instant::now() + ISSUE_WAIT;
        loop {
            let is_late = Instant::now() >= deadline;
            if let Some(view) = session.glance()? {
                let found = secrets::find(&asked, &view, &self.settings, requester.validator)?;
                let missing = asked.names.iter().filter(|name| !found.contains_key(*name));
                let missing: Vec<String> = missing.map(|name| format!("{name:?}")).collect();
                let is_signing = view
                    .entries_of_any_hint()
                    .iter()
                    .any(|entry| svid_of(entry).is_none());
                let is_more_to_come = asked.everything && is_signing && session.is_worth_waiting(&view);
                let is_whole = missing.is_empty() && !is_more_to_come;
                if !is_whole && is_signing && !is_late {
                    session.changed_until(Some(deadline)).await?;
                    continue;
                }
                if !missing.is_empty() {
                    return Err(Status::invalid_argument(format!(
                        "workload is not authorized for the requested identities [{}]",
                        missing.join(" ")
                    )));
                }
                if session.attested_ago() < FRESH || session.attest_again().await? {
                    let version = secrets::version_of(&found);
                    return Ok(state_of_the_world::response(&found, version, String::new()));
                }
                continue;
            }
            if is_late {
                return Err(Status::unavailable(
                    "agent has not been told its entries by the server yet",
                ));
            }
            session.changed_until(Some(deadline)).await?;
        }
    }
}

impl NamedService for Sds {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for Sds {
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

fn grpc<M: Message + Default + 'static>() -> Grpc<PreEncoded<M>> {
    Grpc::new(PreEncoded::new()).max_decoding_message_size(MAX_REQUEST_BYTES)
}
