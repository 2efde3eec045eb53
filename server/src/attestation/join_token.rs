//! `join_token`: a secret from the server, valid for one agent and one use. A token is deleted
//! when it is first used, even when it had expired.

use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::process::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use super::{AttestError, Attested, Challenge, NodeAttestor};
use crate::store::Store;

/// The attestor's name.
pub const NAME: &str = "join_token";

/// Attests with the tokens of the store.
#[derive(Debug)]
pub struct JoinTokenAttestor {
    trust_domain: TrustDomain,
    store: Arc<dyn Store>,
    clock: Clock,
}

impl JoinTokenAttestor {
    /// Takes tokens from this store.
    pub fn new(trust_domain: TrustDomain, store: Arc<dyn Store>, clock: Clock) -> Self {
        Self {
            trust_domain,
            store,
            clock,
        }
    }
}

/// The ID of the agent that attests with this token.
///
/// # Errors
/// When the token holds what a SPIFFE ID cannot.
pub fn agent_id(trust_domain: &TrustDomain, token: &str) -> Result<SpiffeId, AttestError> {
    let unusable = || AttestError::Invalid("join token cannot be part of a SPIFFE ID".to_owned());
    if token.contains('/') {
        return Err(unusable());
    }
    SpiffeId::new(trust_domain, &format!("/spire/agent/{NAME}/{token}")).map_err(|_error| unusable())
}

#[async_trait]
impl NodeAttestor for JoinTokenAttestor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, payload: &[u8], _: &mut dyn Challenge) -> Result<Attested, AttestError> {
        let unknown = || {
            AttestError::Invalid(
                "failed to attest: join token does not exist or has already been used".to_owned(),
            )
        };
        let token = std::str::from_utf8(payload).map_err(|_error| unknown())?;
        let taken = self
            .store
            .take_join_token(token)
            .await
            .map_err(|error| AttestError::Failed {
                what: "failed to fetch join token",
                source: error.into(),
            })?;
        let expires_at = taken.ok_or_else(unknown)?;
        if self.clock.unix() > expires_at {
            return Err(AttestError::Invalid("join token expired".to_owned()));
        }
        Ok(Attested {
            agent_id: agent_id(&self.trust_domain, token)?,
            selectors: Vec::new(),
            can_reattest: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_becomes_one_path_segment_or_nothing() {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        assert_eq!(
            agent_id(&trust_domain, "a-b.c_1").unwrap().as_str(),
            "spiffe://example.org/spire/agent/join_token/a-b.c_1"
        );
        for token in ["", "a/b", "..", "a b", "é", "%2e"] {
            assert!(agent_id(&trust_domain, token).is_err(), "{token:?}");
        }
    }
}
