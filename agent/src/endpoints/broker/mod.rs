//! The SPIFFE Broker Endpoint and API (both Incubating): identities of workloads for authorized brokers.
//!
//! A broker connects over TLS, on a Unix socket or over TCP, with an X509-SVID whose SPIFFE ID is in the configuration
//! (`caller`, `listener`); each request carries `broker.spiffe.io: true` (`gate`). It names a workload by a `reference`
//! of a type that it may use (`allowed`), which is found on this machine (`target`), attested as if the workload itself
//! had called; the broker gets the workload's identities, without those that must not be given to others. The messages
//! are those of the Workload API: the fields of both have the same numbers.

mod allowed;
mod caller;
mod gate;
mod listener;
pub mod reference;
mod refusal;
mod target;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use finial_proto::spiffe::broker as pb;
use finial_proto::spiffe::broker::api_server::SERVICE_NAME;
use futures_util::future::BoxFuture;
use futures_util::stream::{Stream, StreamExt as _};
use prost::Message;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Request, Status};
use tower_service::Service;

use self::allowed::AllowedBrokers;
use self::caller::Trust;
use self::reference::{Reference, ReferenceError, ReferenceType};
use self::refusal::Refusal;
use self::target::Target;
use super::codec::{Framed, streaming, unary};
use super::jwt_svids::check_audience;
use super::session::{Access, Session, Sessions};
use super::workload_api::{Content, Messages, requested_identity, tokens};
use crate::workload::ProcFs;

pub use self::caller::{BrokerCaller, Transport};
pub use self::gate::BROKER_HEADER;
pub use self::listener::{BrokerEndpoint, BrokerError, BrokerParts};

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct BrokerApi {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sessions: Sessions,
    brokers: AllowedBrokers,
    trust: Trust,
    procfs: ProcFs,
}

/// A call that may be answered: who asks, for whom, and what there is.
#[derive(Debug)]
struct Asked {
    caller: BrokerCaller,
    target: Target,
    session: Session,
}

impl BrokerApi {
    async fn answer(self, request: http::Request<Body>) -> http::Response<Body> {
        let path = request.uri().path();
        match path.strip_prefix('/').and_then(|path| path.split_once('/')) {
            Some((SERVICE_NAME, "SubscribeToX509SVID")) => {
                let reference = |asked: &pb::SubscribeToX509svidRequest| asked.reference.clone();
                self.stream(request, Content::X509Svids, reference).await
            }
            Some((SERVICE_NAME, "SubscribeToX509Bundles")) => {
                let reference = |asked: &pb::SubscribeToX509BundlesRequest| asked.reference.clone();
                self.stream(request, Content::X509Bundles, reference).await
            }
            Some((SERVICE_NAME, "SubscribeToJWTBundles")) => {
                let reference = |asked: &pb::SubscribeToJwtBundlesRequest| asked.reference.clone();
                self.stream(request, Content::JwtBundles, reference).await
            }
            Some((SERVICE_NAME, "FetchJWTSVID")) => {
                unary(
                    request,
                    move |request| async move { self.fetch_jwt(request).await },
                )
                .await
            }
            _ => Status::unimplemented("unknown method").into_http(),
        }
    }

    async fn stream<M: Message + Default + 'static>(
        self,
        request: http::Request<Body>,
        content: Content,
        reference: fn(&M) -> Option<pb::WorkloadReference>,
    ) -> http::Response<Body> {
        let answer = move |request: Request<M>| async move {
            let reference = reference(request.get_ref());
            let asked = self.ask(&request, reference, content.access()).await?;
            self.subscribe(asked, content).await
        };
        streaming(request, answer).await
    }

    /// The whole state at first, and again whenever it is another for this workload (§4.4).
    async fn subscribe(
        self,
        asked: Asked,
        content: Content,
    ) -> Result<impl Stream<Item = Result<Framed, Status>> + Send + 'static, Status> {
        let Asked {
            caller,
            target,
            session,
        } = asked;
        let mut messages = Messages::of(session, content);
        let first = messages.next().await.map_err(|status| target.explain(status))?;
        let parts = Arc::new((self.shared.trust.clone(), caller, target));
        Ok(messages.into_stream(first).then(move |next| {
            let parts = Arc::clone(&parts);
            async move {
                let (trust, caller, target) = &*parts;
                let message = next.map_err(|status| target.explain(status))?;
                // Attesting and waiting take a while, in which much may end.
                target.check_alive().await?;
                trust.check(caller)?;
                Ok(message)
            }
        }))
    }

    /// `FetchJWTSVID`: one token for each identity of the workload, or for the one that is named (§6.2.1).
    async fn fetch_jwt(self, request: Request<pb::FetchJwtsvidRequest>) -> Result<Bytes, Status> {
        let pb::FetchJwtsvidRequest {
            reference,
            audience,
            spiffe_id,
        } = request.get_ref();
        check_audience(audience)?;
        let only = requested_identity(spiffe_id)?;
        let Asked {
            caller,
            target,
            session,
        } = self.ask(&request, reference.clone(), Access::Identities).await?;
        let tokens = tokens(&self.shared.sessions, session, audience, only).await;
        let tokens = tokens.map_err(|status| target.explain(status))?;
        target.check_alive().await?;
        self.shared.trust.check(&caller)?;
        Ok(tokens)
    }

    /// From a request to the workload that it is about, attested. What costs nothing is decided first.
    async fn ask<M>(
        &self,
        request: &Request<M>,
        reference: Option<pb::WorkloadReference>,
        access: Access,
    ) -> Result<Asked, Status> {
        let Some(caller) = request.extensions().get::<BrokerCaller>().cloned() else {
            return Err(Status::unauthenticated("connection has no broker"));
        };
        let Shared {
            sessions,
            brokers,
            procfs,
            ..
        } = &*self.shared;
        let reference = self.read(&caller, reference)?;
        let permit = brokers.hold(caller.place)?;
        let target = Target::find(&reference, procfs, sessions, permit).await?;
        let session = Session::on_behalf_of(
            sessions,
            target.workload().clone(),
            &caller.admitted,
            request.metadata(),
            access,
        );
        let session = session.await.map_err(|status| target.explain(status))?;
        Ok(Asked {
            caller,
            target,
            session,
        })
    }

    /// An unknown type gets another error than one that is not allowed (§3.1.4); the content of a reference is read only
    /// for a broker that may use its type.
    fn read(
        &self,
        caller: &BrokerCaller,
        reference: Option<pb::WorkloadReference>,
    ) -> Result<Reference, Refusal> {
        let reference = reference.and_then(|reference| reference.reference);
        let reference = reference.ok_or(ReferenceError::Missing)?;
        let kind = ReferenceType::of(&reference)?;
        self.shared.brokers.check(caller.place, kind, caller.transport)?;
        Ok(kind.parse(&reference.value)?)
    }
}

impl NamedService for BrokerApi {
    const NAME: &'static str = SERVICE_NAME;
}

impl Service<http::Request<Body>> for BrokerApi {
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
