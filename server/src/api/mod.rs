//! The services, one file each: wire messages in, checked types to the parts below, wire messages out.

pub mod agent;
pub mod agent_attest;
pub mod agent_filter;
pub mod bundle;
pub mod call;
pub mod caller_lookup;
pub mod csr;
pub mod debug;
pub mod entry;
pub mod entry_filter;
pub mod entry_sync;
mod entry_write;
pub mod explain;
mod given_bundle;
pub mod local_authority;
pub mod logger;
mod page;
pub mod registry;
pub mod status;
pub mod streaming;
pub mod svid;
pub mod sync;
pub mod trust_domain;

mod refusals;
mod svid_wit;

use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::key::PublicKey;
use finial_identity::process::{Clock, Stop};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire;
use finial_identity::x509::Certificate;
use finial_proto::spire::api::types;
use time::OffsetDateTime;

use crate::attestation::Attestors;
use crate::authority::{AuthorityKind, AuthorityManager, X509Request, X509Subject};
use crate::federation::Federation;
use crate::registry::Registry;
use crate::store::{AgentRecord, Store};
use crate::telemetry::LogControl;
use caller_lookup::CallerLookup;
use status::{OrRefuse, Refusal};

/// How many rows are read from the store at once.
const SCAN: u32 = 1000;

/// What the services work with.
#[derive(Debug)]
pub struct Services {
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// What is remembered.
    pub store: Arc<dyn Store>,
    /// Who may have which identity.
    pub registry: Arc<Registry>,
    /// Who signs.
    pub authority: Arc<AuthorityManager>,
    /// Who keeps foreign bundles fresh.
    pub federation: Arc<Federation>,
    /// How nodes are attested.
    pub attestors: Attestors,
    /// The time.
    pub clock: Clock,
    /// The log level.
    pub log: LogControl,
    /// When the server was built.
    pub started_at: OffsetDateTime,
    /// Ends open streams.
    pub stop: Stop,
    /// Choices of the configuration.
    pub settings: ApiSettings,
}

/// Choices of the configuration that change answers.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApiSettings {
    /// `experimental.agent_spiffe_id_as_selector`.
    pub agent_spiffe_id_as_selector: bool,
    /// `disable_jwt_svids`.
    pub disable_jwt_svids: bool,
    /// Whether WIT-SVIDs are switched on (`experimental.feature_flags`).
    pub wit_svids: bool,
}

impl Services {
    /// Where callers are looked up.
    pub fn caller_lookup(&self) -> CallerLookup {
        CallerLookup::new(
            self.trust_domain.clone(),
            Arc::clone(&self.registry),
            Arc::clone(&self.store),
            self.clock.clone(),
        )
    }

    /// Makes a call's writes visible to every later call, so that a change is in effect
    /// when its caller gets the answer. The writes stay stored if this fails; the registry says why.
    pub async fn take_in_writes(&self) {
        if let Err(error) = self.registry.catch_up().await {
            tracing::debug!(%error, "registry did not take in what was written");
        }
    }

    /// The own trust domain's bundle.
    ///
    /// # Errors
    /// `NOT_FOUND` before the first authority was made; `INTERNAL` when the store fails.
    pub async fn own_bundle(&self) -> Result<Arc<Bundle>, Refusal> {
        let stored = self
            .store
            .bundle(&self.trust_domain)
            .await
            .or_refuse("failed to fetch bundle")?;
        stored
            .map(|stored| stored.bundle)
            .ok_or_else(|| Refusal::not_found("bundle not found"))
    }

    /// How many bundles are stored, the own one included.
    ///
    /// # Errors
    /// `INTERNAL` when the store fails.
    pub async fn count_bundles(&self) -> Result<i32, Refusal> {
        let mut count = 0_usize;
        let mut after = 0;
        loop {
            let rows = self
                .store
                .list_bundles(after, SCAN)
                .await
                .or_refuse("failed to count bundles")?;
            let Some(last) = rows.last() else {
                return Ok(i32::try_from(count).unwrap_or(i32::MAX));
            };
            after = last.row;
            count += rows.len();
        }
    }

    /// How many of the attested nodes count, banned ones among them.
    ///
    /// # Errors
    /// `INTERNAL` when the store fails.
    pub async fn count_agents(&self, counts: impl Fn(&AgentRecord) -> bool + Send) -> Result<i32, Refusal> {
        let mut count = 0_usize;
        let mut after = 0;
        loop {
            let rows = self
                .store
                .list_agents(after, SCAN)
                .await
                .or_refuse("failed to count agents")?;
            let Some(last) = rows.last() else {
                return Ok(i32::try_from(count).unwrap_or(i32::MAX));
            };
            after = last.row;
            count += rows.iter().filter(|stored| counts(&stored.agent)).count();
        }
    }

    /// Signs an agent's SVID.
    ///
    /// # Errors
    /// As the authority's.
    pub async fn sign_agent(
        &self,
        id: &SpiffeId,
        public_key: &PublicKey,
    ) -> Result<Vec<Certificate>, Refusal> {
        let request = X509Request {
            subject: X509Subject::Agent(id.clone()),
            public_key: public_key.clone(),
            ttl: None,
        };
        self.authority
            .sign_x509_off_thread(request)
            .await
            .or_refuse("failed to sign X509 SVID")
    }

    /// Refuses when JWT-SVIDs are switched off.
    ///
    /// # Errors
    /// `UNIMPLEMENTED`.
    pub fn require_jwt(&self) -> Result<(), Refusal> {
        if self.settings.disable_jwt_svids {
            return Err(Refusal::unimplemented("JWT functionality is disabled"));
        }
        Ok(())
    }

    /// A bundle as peers get it. WIT authorities are left out where WIT-SVIDs are switched off: an earlier run of this
    /// server, or another server, may have had them on (STABILITY §2.3).
    pub fn bundle_to_wire(&self, bundle: &Bundle) -> types::Bundle {
        let mut message = wire::bundle_to_wire(bundle);
        if !self.settings.wit_svids {
            message.wit_authorities.clear();
        }
        message
    }

    /// Whether the own bundle can be read and the registry follows the store.
    pub async fn is_healthy(&self) -> bool {
        self.registry.held().is_none() && self.own_bundle().await.is_ok()
    }

    /// Why callers should use another server, although this one runs.
    pub fn unready(&self) -> Option<String> {
        self.registry.held().map(|reason| {
            format!("store's content is held back until it is released or the server restarts: {reason}")
        })
    }

    /// When the active X.509 authority expires, in Unix seconds.
    pub fn ca_expires_at(&self) -> Option<i64> {
        let states = self.authority.state(AuthorityKind::X509).ok()?;
        Some(states.active.expires_at)
    }

    /// The problem of each subsystem, for the HTTP health checks.
    pub async fn health(&self) -> Vec<(&'static str, Option<String>)> {
        let store = self
            .own_bundle()
            .await
            .err()
            .map(|refusal| refusal.message().to_owned());
        let authority = self
            .authority
            .state(AuthorityKind::X509)
            .err()
            .map(|error| error.to_string());
        let own_svid = match &*self.authority.server_svid().borrow() {
            Some(svid) if svid.leaf().not_after() > self.clock.now() => None,
            Some(_) => Some("server SVID has expired".to_owned()),
            None => Some("server has no SVID".to_owned()),
        };
        vec![
            ("catalog.datastore", store),
            ("server.ca", authority),
            ("server.ca.rotator", own_svid),
        ]
    }
}
