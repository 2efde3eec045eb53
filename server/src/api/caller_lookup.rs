//! What the registry and the store know about a caller. A refusal is never decided from memory alone.

use std::sync::Arc;

use finial_identity::process::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::Certificate;
use finial_proto::spire::api::types::permission_denied_details::Reason;

use super::status::{OrRefuse, Refusal};
use crate::registry::{AgentStanding, Registry};
use crate::store::Store;

/// Looks callers up.
#[derive(Clone, Debug)]
pub struct CallerLookup {
    trust_domain: TrustDomain,
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    clock: Clock,
}

impl CallerLookup {
    /// Looks them up here.
    pub fn new(
        trust_domain: TrustDomain,
        registry: Arc<Registry>,
        store: Arc<dyn Store>,
        clock: Clock,
    ) -> Self {
        Self {
            trust_domain,
            registry,
            store,
            clock,
        }
    }

    /// Whether an admin entry has this ID.
    ///
    /// # Errors
    /// When the store could not be asked.
    pub async fn is_admin(&self, id: &SpiffeId) -> Result<bool, Refusal> {
        if !id.is_member_of(&self.trust_domain) {
            return Ok(false);
        }
        self.registry
            .has_admin(id)
            .await
            .or_refuse("failed to fetch caller's entries")
    }

    /// Whether a downstream entry has this ID.
    ///
    /// # Errors
    /// When the store could not be asked.
    pub async fn is_downstream(&self, id: &SpiffeId) -> Result<bool, Refusal> {
        if !id.is_member_of(&self.trust_domain) {
            return Ok(false);
        }
        self.registry
            .has_downstream(id)
            .await
            .or_refuse("failed to fetch caller's entries")
    }

    /// Whether all entries that the caller may have are known.
    ///
    /// # Errors
    /// `UNAVAILABLE` while they are not.
    pub fn check_settled(&self, id: &SpiffeId) -> Result<(), Refusal> {
        if !id.is_member_of(&self.trust_domain) {
            return Ok(());
        }
        self.registry
            .check_all_settled()
            .or_refuse("failed to fetch caller's entries")
    }

    /// Whether the certificate is the node's current one. One that waits to become current does so
    /// now. The inner error is why not.
    ///
    /// # Errors
    /// When the store could not be asked.
    pub async fn check_agent(
        &self,
        id: &SpiffeId,
        certificate: &Certificate,
    ) -> Result<Result<(), Reason>, Refusal> {
        if certificate.not_after() < self.clock.now() {
            return Ok(Err(Reason::AgentExpired));
        }
        if !id.is_member_of(&self.trust_domain) || !id.is_agent() {
            return Ok(Err(Reason::AgentNotAttested));
        }
        let serial = certificate.serial_decimal();
        let standing = self
            .registry
            .agent_standing(id, &serial)
            .await
            .or_refuse("failed to fetch agent")?;
        match standing {
            AgentStanding::Active(_) => Ok(Ok(())),
            AgentStanding::Renewed(_) => {
                let promoted = self
                    .store
                    .promote_new_serial(id, &serial)
                    .await
                    .or_refuse("failed to update agent")?;
                // Else another call was faster, or the agent was banned meanwhile.
                if promoted.is_some() {
                    return Ok(Ok(()));
                }
                let stored = self.store.agent(id).await.or_refuse("failed to fetch agent")?;
                let is_current = stored.is_some_and(|stored| stored.agent.has_serial(&serial));
                Ok(is_current.then_some(()).ok_or(Reason::AgentNotActive))
            }
            AgentStanding::Banned => Ok(Err(Reason::AgentBanned)),
            AgentStanding::NotActive => Ok(Err(Reason::AgentNotActive)),
            AgentStanding::Unknown => Ok(Err(Reason::AgentNotAttested)),
        }
    }
}
