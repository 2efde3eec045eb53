//! `spire.api.server.debug.v1.Debug`: the state of the running server.

use std::sync::{Arc, Mutex, PoisonError};

use finial_identity::wire;
use finial_proto::spire::api::server::debug::v1 as pb;
use finial_proto::spire::api::server::debug::v1::debug_server::Debug as DebugApi;
use time::{Duration, OffsetDateTime};
use tonic::{Request, Response, Status};

use super::Services;
use super::call::Call;
use super::status::Refusal;

/// How long an answer is given again.
const CACHED_FOR: Duration = Duration::seconds(5);

/// Answers the Debug service.
#[derive(Debug)]
pub struct DebugService {
    services: Arc<Services>,
    cached: Mutex<Option<(OffsetDateTime, pb::GetInfoResponse)>>,
}

impl DebugService {
    /// Looks at these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self {
            services,
            cached: Mutex::new(None),
        }
    }

    async fn info(&self) -> Result<pb::GetInfoResponse, Refusal> {
        let now = self.services.clock.now();
        if let Some((at, info)) = &*self.cached.lock().unwrap_or_else(PoisonError::into_inner)
            && (Duration::ZERO..CACHED_FOR).contains(&(now - *at))
        {
            return Ok(info.clone());
        }
        let info = self.look(now).await?;
        *self.cached.lock().unwrap_or_else(PoisonError::into_inner) = Some((now, info.clone()));
        Ok(info)
    }

    async fn look(&self, now: OffsetDateTime) -> Result<pb::GetInfoResponse, Refusal> {
        let services = &self.services;
        Ok(pb::GetInfoResponse {
            svid_chain: self.svid_chain().await?,
            uptime: i32::try_from((now - services.started_at).whole_seconds()).unwrap_or(i32::MAX),
            agents_count: services.count_agents(|_| true).await?,
            federated_bundles_count: services.count_bundles().await?,
            entries_count: i32::try_from(services.registry.entry_count()).unwrap_or(i32::MAX),
        })
    }

    /// The server's SVID up to and including the root.
    async fn svid_chain(&self) -> Result<Vec<pb::get_info_response::Cert>, Refusal> {
        let svid = self.services.authority.server_svid().borrow().clone();
        let Some(svid) = svid else {
            return Ok(Vec::new());
        };
        let bundle = self.services.own_bundle().await?;
        let chain = svid.chain_with_root(
            bundle
                .x509_authorities
                .iter()
                .map(|authority| &authority.certificate),
        );
        Ok(chain
            .iter()
            .map(|cert| pb::get_info_response::Cert {
                id: cert.spiffe_id().ok().map(|id| wire::spiffe_id_to_wire(&id)),
                expires_at: cert.not_after().unix_timestamp(),
                subject: cert.subject_text(),
            })
            .collect())
    }
}

#[tonic::async_trait]
impl DebugApi for DebugService {
    async fn get_info(
        &self,
        request: Request<pb::GetInfoRequest>,
    ) -> Result<Response<pb::GetInfoResponse>, Status> {
        let call = Call::of(&request)?;
        self.info()
            .await
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }
}
