//! The server's own X.509-SVID, with which it authenticates to agents.

use std::sync::Arc;

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::x509::{Certificate, X509Svid};
use time::OffsetDateTime;
use tonic::Code;
use tracing::info;

use super::sign::{X509Request, X509Subject};
use super::{AuthorityError, AuthorityManager};
use crate::credential::BACKDATE;
use crate::telemetry::metrics;

impl AuthorityManager {
    /// Renews the server's SVID if half its life is over, and returns when that will be.
    pub(super) async fn renew_server_svid(self: &Arc<Self>) -> Result<OffsetDateTime, AuthorityError> {
        let held = self
            .server_svid
            .borrow()
            .as_ref()
            .map(|svid| half_life(svid.leaf()));
        match held {
            Some(due) if self.clock.now() <= due => Ok(due),
            _ => self.replace_server_svid().await,
        }
    }

    /// Renews the server's SVID if that authority signed it.
    pub(super) async fn leave_authority(self: &Arc<Self>, authority_id: &str) -> Result<(), AuthorityError> {
        let key_id = self
            .server_svid
            .borrow()
            .as_ref()
            .and_then(|svid| svid.leaf().authority_key_id().map(<[u8]>::to_vec));
        let signed_by = key_id.map(|id| data_encoding::HEXLOWER.encode(&id));
        if signed_by.as_deref() == Some(authority_id) {
            info!(
                authority_id,
                "own SVID is of an authority that gets tainted, renewing it"
            );
            self.replace_server_svid().await?;
        }
        Ok(())
    }

    async fn replace_server_svid(self: &Arc<Self>) -> Result<OffsetDateTime, AuthorityError> {
        let replaced = self.make_server_svid();
        metrics()
            .start("svid_rotate")
            .around(replaced, |_| Code::Internal)
            .await
    }

    async fn make_server_svid(self: &Arc<Self>) -> Result<OffsetDateTime, AuthorityError> {
        let failed = |error| AuthorityError::internal("renew the server's SVID", error);
        let key_type = self.config.ca_key_type;
        let key = match key_type {
            KeyType::EcP256 => PrivateKey::generate(key_type),
            _ => self.off_thread(move || PrivateKey::generate(key_type)).await?,
        }
        .map_err(|error| AuthorityError::internal("generate the server's key", error))?;
        let request = X509Request {
            subject: X509Subject::Server,
            public_key: key.public_key().clone(),
            ttl: None,
        };
        let chain = self.sign_x509_off_thread(request).await?;
        let svid = X509Svid::new(chain, Arc::new(key)).map_err(failed)?;
        let due = half_life(svid.leaf());
        info!(spiffe_id = %svid.spiffe_id(), expires_at = svid.leaf().not_after().unix_timestamp(), "own SVID renewed");
        self.server_svid.send_replace(Some(Arc::new(svid)));
        Ok(due)
    }
}

/// Half of the time from the signature to the end. Counted from the backdated begin, a life of a few seconds would be
/// half over from the start.
fn half_life(leaf: &Certificate) -> OffsetDateTime {
    let signed_at = (leaf.not_before() + BACKDATE).min(leaf.not_after());
    signed_at + (leaf.not_after() - signed_at) / 2
}
