//! `spire.api.agent.delegatedidentity.v1.DelegatedIdentity`: identities on behalf of other workloads.
//!
//! A delegate is a process whose own identity is in `authorized_delegates`: it is attested like a workload,
//! and must match an entry with such an ID, at the beginning of a call and for as long as a stream lasts. It names the
//! workload by selectors, which are not checked, or by a pid, whose process is held and attested here.

mod answer;
mod delegate;
mod jwt;
mod streams;
mod target;

#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::{Clock, Stop};
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::spire::api::agent::delegatedidentity::v1 as pb;
use finial_proto::spire::api::agent::delegatedidentity::v1::delegated_identity_server::{
    DelegatedIdentity as Api, DelegatedIdentityServer,
};
use futures_util::stream::BoxStream;
use tokio::sync::{Semaphore, watch};
use tonic::{Request, Response, Status};

use self::delegate::Delegate;
use self::streams::{JwtBundles, Updates, X509Bundles, X509Svids};
use self::target::Target;
use super::limits::MAX_REQUEST_BYTES;
use crate::node::NodeState;
use crate::svids::SvidCache;
use crate::workload::{ProcFs, WorkloadAttestation};

/// What the service stands on.
#[derive(Clone, Debug)]
pub struct DelegatedIdentityParts {
    /// Who calls, and whose pid was given.
    pub attestation: WorkloadAttestation,
    /// What there is to give.
    pub svids: SvidCache,
    /// How the agent is.
    pub node: watch::Receiver<NodeState>,
    /// When streams are to end.
    pub stop: Stop,
    /// What has expired.
    pub clock: Clock,
    /// Where processes are looked up by their pids.
    pub procfs: ProcFs,
    /// Who may call (`authorized_delegates`).
    pub authorized_delegates: Vec<SpiffeId>,
    /// How many processes whose pids were given may be held at a time.
    pub max_processes: usize,
    /// How long the first answer may wait for the entries to be synced.
    pub sync_interval: Duration,
}

/// The service. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DelegatedIdentity {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    attestation: WorkloadAttestation,
    svids: SvidCache,
    node: watch::Receiver<NodeState>,
    stop: Stop,
    clock: Clock,
    procfs: ProcFs,
    delegates: HashSet<SpiffeId>,
    processes: Arc<Semaphore>,
    sync_interval: Duration,
}

impl DelegatedIdentity {
    /// The service on top of its parts.
    pub fn server(parts: DelegatedIdentityParts) -> DelegatedIdentityServer<Self> {
        let service = Self {
            shared: Arc::new(Shared::from(parts)),
        };
        DelegatedIdentityServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES)
    }
}

impl From<DelegatedIdentityParts> for Shared {
    fn from(parts: DelegatedIdentityParts) -> Self {
        Self {
            attestation: parts.attestation,
            svids: parts.svids,
            node: parts.node,
            stop: parts.stop,
            clock: parts.clock,
            procfs: parts.procfs,
            delegates: parts.authorized_delegates.into_iter().collect(),
            processes: Arc::new(Semaphore::new(parts.max_processes)),
            sync_interval: parts.sync_interval,
        }
    }
}

type Answers<M> = BoxStream<'static, Result<M, Status>>;

#[tonic::async_trait]
impl Api for DelegatedIdentity {
    type SubscribeToX509SVIDsStream = Answers<pb::SubscribeToX509sviDsResponse>;
    type SubscribeToX509BundlesStream = Answers<pb::SubscribeToX509BundlesResponse>;
    type SubscribeToJWTBundlesStream = Answers<pb::SubscribeToJwtBundlesResponse>;

    async fn subscribe_to_x509svi_ds(
        &self,
        request: Request<pb::SubscribeToX509sviDsRequest>,
    ) -> Result<Response<Self::SubscribeToX509SVIDsStream>, Status> {
        let delegate = Delegate::open(Arc::clone(&self.shared), &request).await?;
        let pb::SubscribeToX509sviDsRequest { selectors, pid } = request.into_inner();
        let target = Target::of(&self.shared, delegate.admitted(), &selectors, pid).await?;
        Updates::begin(delegate, X509Svids::new(&self.shared, target)).await
    }

    async fn subscribe_to_x509_bundles(
        &self,
        request: Request<pb::SubscribeToX509BundlesRequest>,
    ) -> Result<Response<Self::SubscribeToX509BundlesStream>, Status> {
        let delegate = Delegate::open(Arc::clone(&self.shared), &request).await?;
        Updates::begin(delegate, X509Bundles::new(&self.shared)).await
    }

    async fn fetch_jwtsvi_ds(
        &self,
        request: Request<pb::FetchJwtsviDsRequest>,
    ) -> Result<Response<pb::FetchJwtsviDsResponse>, Status> {
        jwt::fetch(&self.shared, request).await.map(Response::new)
    }

    async fn subscribe_to_jwt_bundles(
        &self,
        request: Request<pb::SubscribeToJwtBundlesRequest>,
    ) -> Result<Response<Self::SubscribeToJWTBundlesStream>, Status> {
        let delegate = Delegate::open(Arc::clone(&self.shared), &request).await?;
        Updates::begin(delegate, JwtBundles::new(&self.shared)).await
    }
}

fn not_synced() -> Status {
    Status::unavailable("agent has not been told its entries by the server yet")
}
