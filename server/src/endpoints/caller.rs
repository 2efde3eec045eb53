//! Which class of caller a call has, in SPIRE's order: anybody, local, `admin_ids`, admin entry,
//! downstream entry, agent. The first one that the method's row allows is used.

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::peer::PeerPolicy;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use super::authorization::Row;
use crate::api::call::{Caller, CallerClass, Peer, Via};
use crate::api::caller_lookup::CallerLookup;
use crate::api::status::Refusal;

/// Tells callers apart.
#[derive(Debug)]
pub struct Callers {
    admin_ids: HashSet<SpiffeId>,
    lookup: CallerLookup,
}

impl Callers {
    /// `admin_ids` come from the configuration, the rest from what is registered.
    pub fn new(admin_ids: impl IntoIterator<Item = SpiffeId>, lookup: CallerLookup) -> Self {
        Self {
            admin_ids: admin_ids.into_iter().collect(),
            lookup,
        }
    }

    /// The class in which the peer may call the method.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` when none admits it, with the reason if agents may call;
    /// `UNAVAILABLE` while it is not known whether an object declares an entry that would;
    /// `INTERNAL` when the store could not be asked.
    pub async fn identify(&self, row: &Row, peer: &Arc<Peer>) -> Result<Caller, Refusal> {
        let caller = |class, via| Caller {
            class,
            via,
            peer: Arc::clone(peer),
        };
        let allowed = row.allowed;
        if allowed.anybody() {
            return Ok(caller(CallerClass::Nobody, Via::Nothing));
        }
        let svid = match &**peer {
            Peer::Local { .. } if allowed.admits(CallerClass::Local) => {
                return Ok(caller(CallerClass::Local, Via::Transport));
            }
            Peer::Local { .. } => return Err(denied(row)),
            Peer::Remote { svid, .. } => svid.as_ref(),
        };
        let Some((id, certificate)) = svid else {
            return Err(denied(row));
        };
        let is_agents = allowed.admits(CallerClass::Agent) && id.is_agent();
        let is_for_holders = allowed.admits(CallerClass::Admin) || allowed.admits(CallerClass::Downstream);
        // Before the look-ups: what is settled from here on they find.
        let settled = if is_for_holders && !is_agents {
            self.lookup.check_settled(id)
        } else {
            Ok(())
        };
        if allowed.admits(CallerClass::Admin) {
            if self.admin_ids.contains(id) {
                return Ok(caller(CallerClass::Admin, Via::Config));
            }
            if self.lookup.is_admin(id).await? {
                return Ok(caller(CallerClass::Admin, Via::Entries));
            }
        }
        if allowed.admits(CallerClass::Downstream) && self.lookup.is_downstream(id).await? {
            return Ok(caller(CallerClass::Downstream, Via::Entries));
        }
        let mut refusal = denied(row);
        if allowed.admits(CallerClass::Agent) {
            match self.lookup.check_agent(id, certificate).await? {
                Ok(()) => return Ok(caller(CallerClass::Agent, Via::Datastore)),
                Err(reason) => refusal = Refusal::denied_agent(denial_text(row), reason),
            }
        }
        settled?;
        Err(refusal)
    }
}

/// Whose certificates the TLS handshake takes: members of the own trust domain, and the admins of others, whose bundles
/// are stored.
pub fn client_policy(trust_domain: TrustDomain, admin_ids: Vec<SpiffeId>) -> PeerPolicy {
    PeerPolicy::Custom(Arc::new(move |id| {
        if id.is_member_of(&trust_domain) || admin_ids.contains(id) {
            return Ok(());
        }
        Err(format!("{id} is neither a member of {trust_domain} nor an admin"))
    }))
}

/// The refusal of a method that has no row.
pub fn denied_method(method: &str) -> Refusal {
    // The name is the caller's: what is longer than any of ours is not sent back.
    let shown = if method.len() <= 256 {
        method
    } else {
        "with a name too long"
    };
    Refusal::denied(format!("authorization denied for method {shown}"))
}

fn denied(row: &Row) -> Refusal {
    Refusal::denied(denial_text(row))
}

fn denial_text(row: &Row) -> String {
    format!("authorization denied for method {}", row.method)
}
