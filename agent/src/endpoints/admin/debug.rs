//! `spire.agent.debug.v1.Debug`: the state of the running agent.

use std::sync::{Arc, Mutex, PoisonError};

use finial_identity::process::Clock;
use finial_identity::wire;
use finial_identity::x509::X509Svid;
use finial_proto::spire::agent::debug::v1::debug_server::{Debug as DebugApi, DebugServer};
use finial_proto::spire::agent::debug::v1::get_info_response::Cert;
use finial_proto::spire::agent::debug::v1::{GetInfoRequest, GetInfoResponse};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::endpoints::limits::MAX_REQUEST_BYTES;
use crate::svids::SvidCache;

/// How long an answer is given again.
const CACHED_FOR: Duration = Duration::seconds(5);

/// What the service looks at.
#[derive(Clone, Debug)]
pub struct DebugParts {
    /// The agent's own SVID.
    pub svid: watch::Receiver<Option<Arc<X509Svid>>>,
    /// What is held for workloads.
    pub svids: SvidCache,
    /// The time.
    pub clock: Clock,
}

/// Answers the Debug service.
#[derive(Debug)]
pub struct DebugService {
    parts: DebugParts,
    started_at: OffsetDateTime,
    cached: Mutex<Option<(OffsetDateTime, GetInfoResponse)>>,
}

impl DebugService {
    /// The service of an agent that starts now.
    pub fn server(parts: DebugParts) -> DebugServer<Self> {
        let service = Self {
            started_at: parts.clock.now(),
            parts,
            cached: Mutex::new(None),
        };
        DebugServer::new(service).max_decoding_message_size(MAX_REQUEST_BYTES)
    }

    fn look(&self, now: OffsetDateTime) -> GetInfoResponse {
        let snapshot = self.parts.svids.snapshot();
        let issued = || snapshot.entries.iter().filter(|entry| entry.svid.is_some());
        let stored = issued().filter(|entry| entry.store_svid).count();
        let x509_svids = count(issued().count() - stored);
        let synced_at = snapshot.synced_at.max(self.parts.svids.synced_at());
        GetInfoResponse {
            svid_chain: self.chain(),
            uptime: i32::try_from((now - self.started_at).whole_seconds()).unwrap_or(i32::MAX),
            svids_count: x509_svids,
            last_sync_success: synced_at.map_or(0, OffsetDateTime::unix_timestamp),
            cached_x509_svids_count: x509_svids,
            cached_jwt_svids_count: count(self.parts.svids.jwt_cache().len()),
            cached_svidstore_x509_svids_count: count(stored),
        }
    }

    /// The agent's SVID up to and including the root; empty until there is one.
    fn chain(&self) -> Vec<Cert> {
        let Some(svid) = self.parts.svid.borrow().clone() else {
            return Vec::new();
        };
        let bundle = Arc::clone(&self.parts.svids.snapshot().own_bundle);
        let roots = bundle.x509_authorities.iter().map(|root| &root.certificate);
        svid.chain_with_root(roots)
            .iter()
            .map(|certificate| Cert {
                id: certificate.spiffe_id().ok().as_ref().map(wire::spiffe_id_to_wire),
                expires_at: certificate.not_after().unix_timestamp(),
                subject: certificate.subject_text(),
            })
            .collect()
    }
}

#[tonic::async_trait]
impl DebugApi for DebugService {
    async fn get_info(&self, _: Request<GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let now = self.parts.clock.now();
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = cached
            .take()
            .filter(|(at, _info)| (Duration::ZERO..CACHED_FOR).contains(&(now - *at)));
        let (at, info) = fresh.unwrap_or_else(|| (now, self.look(now)));
        *cached = Some((at, info.clone()));
        Ok(Response::new(info))
    }
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
