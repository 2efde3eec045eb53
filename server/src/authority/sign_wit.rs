//! Signs WIT-SVIDs, which name the key of their workload.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::key::{JwsAlgorithm, PublicKey};
use finial_identity::spiffe_id::SpiffeId;

use super::sign::{issue_token, refused, seconds, signs_fast};
use super::slots::TokenIssuer;
use super::{AuthorityError, AuthorityManager, SignedJwt};
use crate::credential::{JwtProfile, MintedWit};
use crate::telemetry::{TRACE_TARGET, metrics};

/// Lifetime of a WIT-SVID for which neither entry nor caller gives one, as in SPIRE.
const DEFAULT_TTL: Duration = Duration::from_secs(60 * 60);

/// A WIT-SVID to be signed.
#[derive(Clone, Debug)]
pub struct WitRequest {
    pub spiffe_id: SpiffeId,
    /// The workload's key, which is all that the token is worth something with.
    pub public_key: PublicKey,
    /// The algorithm that the workload's key proves possession with.
    pub algorithm: JwsAlgorithm,
    /// `None` is the default. The authority's end bounds it in any case.
    pub ttl: Option<Duration>,
}

impl WitRequest {
    /// The SVID that an entry gives to the holder of the key. It has the lifetime of the entry's X.509-SVID, as in SPIRE.
    pub fn for_entry(entry: &Entry, public_key: PublicKey, algorithm: JwsAlgorithm) -> Self {
        Self {
            spiffe_id: entry.spiffe_id.clone(),
            public_key,
            algorithm,
            ttl: seconds(entry.x509_svid_ttl),
        }
    }
}

impl AuthorityManager {
    /// Signs a WIT-SVID, on the calling thread where that is fast, else on one of a bounded number of others.
    ///
    /// # Errors
    /// `WitDisabled`, `NotReady`, `InvalidArgument` for an algorithm that does not fit the key or an ID of another trust
    /// domain, `Internal`.
    pub async fn sign_wit(self: &Arc<Self>, request: WitRequest) -> Result<SignedJwt, AuthorityError> {
        if self.config.wit.is_none() {
            return Err(AuthorityError::WitDisabled);
        }
        let issuer = self.published().wit.clone().ok_or(AuthorityError::NotReady)?;
        if signs_fast(&*issuer.signer) {
            return self.sign_wit_with(&issuer, &request);
        }
        let manager = Arc::clone(self);
        self.off_thread(move || manager.sign_wit_with(&issuer, &request))
            .await?
    }

    fn sign_wit_with(&self, issuer: &TokenIssuer, request: &WitRequest) -> Result<SignedJwt, AuthorityError> {
        let minted = MintedWit {
            trust_domain: &self.config.trust_domain,
            spiffe_id: &request.spiffe_id,
            public_key: &request.public_key,
            algorithm: request.algorithm,
            ttl: request.ttl.unwrap_or(DEFAULT_TTL),
            cap: issuer.not_after,
            issuer: self.config.wit.as_ref().and_then(|wit| wit.issuer.as_deref()),
        };
        let profile = JwtProfile::wit(minted, self.clock.now()).map_err(refused)?;
        let span = tracing::info_span!(target: TRACE_TARGET, "sign_wit");
        let signed = span.in_scope(|| issue_token(&request.spiffe_id, issuer, &profile))?;
        metrics().count("server_ca_sign_wit_svid", &[], 1);
        Ok(signed)
    }
}
