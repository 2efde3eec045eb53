//! Who calls, what that caller may have, and when it changes: the same for all services of the socket.
//!
//! A [`Session`] is an attested call. It gives the [`View`] that its caller has of the present snapshot, waits for
//! changes of it, and attests the process again before it gets anything new. Services make messages
//! from views; callers with the same identities share one view and its messages.

mod attestation;
mod call;
mod logged;
mod recent;
mod refusals;
mod statuses;
mod view;
mod views;

use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::{Clock, Stop};
#[cfg(test)]
use finial_identity::selector::Selector;
use tokio::sync::watch;

use self::recent::RecentAttestations;
use self::views::Views;
use crate::node::NodeState;
use crate::svids::SvidCache;
use crate::workload::WorkloadAttestation;

pub use self::call::Session;
pub use self::logged::LoggedSelectors;
pub use self::refusals::{Refusals, Refused};
pub use self::statuses::{attestation_failed, denied, ending, stopping};
pub use self::view::{View, svid_of};

/// How long an SVID that is being signed is waited for before a caller gets what there is.
pub(super) const ISSUE_WAIT: Duration = Duration::from_secs(10);

/// What a call is about. It decides whom the call serves and what it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// X509-SVIDs with their keys, once they are issued.
    X509Svids,
    /// The identities, to obtain something else for them.
    Identities,
    /// X.509 bundles to serve.
    X509Bundles,
    /// JWT bundles to serve.
    JwtBundles,
    /// The identities, to obtain WIT-SVIDs for them.
    WitSvids,
    /// WIT bundles to serve.
    WitBundles,
    /// Bundles to validate with; no identity is needed.
    Validation,
    /// Whatever there is, now and later; no identity is needed.
    Secrets,
}

impl Access {
    /// What was asked for, for operators: the method of the Workload API that gives it, also where a delegate or a
    /// broker asked for it by a method of another name.
    pub fn method(self) -> &'static str {
        match self {
            Self::X509Svids => "FetchX509SVID",
            Self::Identities => "FetchJWTSVID",
            Self::X509Bundles => "FetchX509Bundles",
            Self::JwtBundles => "FetchJWTBundles",
            Self::WitSvids => "FetchWITSVID",
            Self::WitBundles => "FetchWITBundles",
            Self::Validation => "ValidateJWTSVID",
            Self::Secrets => "secret discovery",
        }
    }
}

/// What the operator decided about callers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerPolicy {
    /// Callers without identity get the own bundle (`allow_unauthenticated_verifiers`).
    pub allow_unauthenticated_verifiers: bool,
    /// Claims that are returned for tokens of other trust domains, besides `sub`, `aud` and `exp`
    /// (`allowed_foreign_jwt_claims`).
    pub allowed_foreign_jwt_claims: Vec<String>,
    /// How long the first answer may wait for the entries to be synced.
    pub sync_interval: Duration,
    /// Which facts about callers may be logged (`log_selectors`).
    pub logged_selectors: LoggedSelectors,
}

/// What sessions stand on.
#[derive(Clone, Debug)]
pub struct SessionParts {
    /// Who calls.
    pub attestation: WorkloadAttestation,
    /// What there is to give.
    pub svids: SvidCache,
    /// How the agent learns of changes.
    pub sync: SyncMode,
    /// How the agent is.
    pub node: watch::Receiver<NodeState>,
    /// The time.
    pub clock: Clock,
    /// When streams are to end.
    pub stop: Stop,
    /// The agent's own process, which asks for its health and is never made to wait.
    pub own_pid: u32,
    /// Remembers callers that were refused.
    pub refusals: Refusals,
    /// What the operator decided.
    pub policy: CallerPolicy,
}

/// Tells whether the server pushes changes or is polled, which may change with each connection to it.
#[derive(Clone)]
pub struct SyncMode(Arc<dyn Fn() -> bool + Send + Sync>);

/// Opens sessions. Cheap to clone; the services of one agent share one, and with it the views.
#[derive(Clone, Debug)]
pub struct Sessions {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    parts: SessionParts,
    views: Views,
    recent: RecentAttestations,
}

impl SyncMode {
    /// A mode that `is_pushed` looks up.
    pub fn new(is_pushed: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(is_pushed))
    }

    fn is_pushed(&self) -> bool {
        (self.0)()
    }
}

impl std::fmt::Debug for SyncMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SyncMode")
            .field("is_pushed", &self.is_pushed())
            .finish()
    }
}

impl Sessions {
    /// Sessions on top of these parts.
    pub fn new(parts: SessionParts) -> Self {
        Self {
            shared: Arc::new(Shared {
                parts,
                views: Views::default(),
                recent: RecentAttestations::default(),
            }),
        }
    }

    /// What there is to give.
    pub fn svids(&self) -> &SvidCache {
        &self.shared.parts.svids
    }

    /// The time.
    pub fn clock(&self) -> &Clock {
        &self.shared.parts.clock
    }

    /// Who the workloads are.
    pub fn attestation(&self) -> &WorkloadAttestation {
        &self.shared.parts.attestation
    }

    /// What the operator decided about callers.
    pub fn policy(&self) -> &CallerPolicy {
        &self.shared.parts.policy
    }

    /// What a caller with these selectors gets of the present snapshot.
    #[cfg(test)]
    pub(crate) fn view(&self, selectors: std::collections::HashSet<Selector>) -> Arc<View> {
        let selectors = self.shared.views.share(selectors);
        self.shared.views.view(&self.svids().snapshot(), &selectors)
    }
}
