//! The process that calls, and whether it may.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use finial_identity::selector::Selector;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{Shared, not_synced};
use crate::endpoints::limits::Admitted;
use crate::endpoints::listener::Caller;
use crate::endpoints::session::{attestation_failed, denied, ending, stopping};
use crate::node::NodeState;
use crate::svids::{Snapshot, Subscription};
use crate::workload::Process;

/// A delegate in one of its calls, attested and authorized.
#[derive(Debug)]
pub(super) struct Delegate {
    shared: Arc<Shared>,
    admitted: Arc<Admitted>,
    process: Arc<Process>,
    facts: Arc<HashSet<Selector>>,
    /// Tells of what concerns the delegate itself: whether it still is one.
    subscription: Subscription,
    node: watch::Receiver<NodeState>,
    opened: Instant,
}

/// Why a caller is no delegate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refusal {
    /// It may be one: the entries are not known yet.
    NotSynced,
    /// No entry is for it.
    NoIdentity,
    /// None of its identities is that of a delegate.
    NotAuthorized,
}

impl Delegate {
    /// Finds out who calls.
    ///
    /// # Errors
    /// `PermissionDenied` when that is no delegate; `Unavailable` when it cannot be found out who it is.
    pub(super) async fn open<M>(shared: Arc<Shared>, request: &Request<M>) -> Result<Self, Status> {
        let Some(Caller { peer, admitted }) = request.extensions().get() else {
            return Err(Status::internal("connection has no peer"));
        };
        let process = match peer.process() {
            Ok(process) => Arc::clone(process),
            Err(error) => {
                tracing::warn!(%error, "caller of the delegated identity API cannot be identified");
                return Err(attestation_failed());
            }
        };
        let facts = Arc::new(attest(&shared, admitted, &process).await?);
        let mut delegate = Self {
            subscription: shared.svids.observe(Arc::clone(&facts)),
            node: shared.node.clone(),
            shared,
            admitted: Arc::clone(admitted),
            process,
            facts,
            opened: Instant::now(),
        };
        delegate.snapshot().await?;
        Ok(delegate)
    }

    /// The present snapshot, in which this is an authorized delegate.
    ///
    /// # Errors
    /// As [`Delegate::open`]; also when the agent stops or is banned.
    pub(super) async fn snapshot(&mut self) -> Result<Arc<Snapshot>, Status> {
        loop {
            if self.shared.stop.is_stopped() || !self.node.borrow().may_serve() {
                return Err(ending(&self.node));
            }
            self.subscription.mark_seen();
            let snapshot = self.shared.svids.snapshot();
            match self.authorize(&snapshot) {
                Ok(()) => return Ok(snapshot),
                Err(Refusal::NotSynced) => {}
                Err(refusal) => {
                    tracing::warn!(
                        pid = self.process.pid(),
                        reason = ?refusal,
                        "caller of the delegated identity API is refused"
                    );
                    return Err(refusal.into());
                }
            }
            let until = self.sync_deadline().ok_or_else(not_synced)?;
            drop(snapshot);
            self.changed(Some(until), std::future::pending()).await?;
        }
    }

    /// Counts what is done for this call.
    pub(super) fn admitted(&self) -> &Arc<Admitted> {
        &self.admitted
    }

    /// Until when this call waits for the entries to be synced; `None` when that is over.
    pub(super) fn sync_deadline(&self) -> Option<Instant> {
        let until = self.opened + self.shared.sync_interval;
        (Instant::now() < until).then_some(until)
    }

    /// Whether the same facts hold for the process as before. If not, those that hold now are taken up; what they
    /// are worth is told by [`Delegate::snapshot`].
    ///
    /// # Errors
    /// `Unavailable` when it cannot be found out.
    pub(super) async fn attest_again(&mut self) -> Result<bool, Status> {
        let facts = attest(&self.shared, &self.admitted, &self.process).await?;
        if facts == *self.facts {
            return Ok(true);
        }
        self.facts = Arc::new(facts);
        self.subscription = self.subscription.with_selectors(Arc::clone(&self.facts));
        Ok(false)
    }

    /// Completes when there is something new for the delegate itself or by `news`, or at `until`.
    ///
    /// # Errors
    /// When the call is over, or `news` says so.
    pub(super) async fn changed(
        &mut self,
        until: Option<Instant>,
        news: impl Future<Output = Result<(), Status>>,
    ) -> Result<(), Status> {
        let elapsed = async {
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.shared.stop.stopped() => Err(ending(&self.node)),
            () = self.process.exited() => Err(Status::unavailable("the process that opened the call has ended")),
            outcome = news => outcome,
            () = self.subscription.changed() => Ok(()),
            outcome = self.node.changed() => outcome.map_err(|_gone| stopping()),
            () = elapsed => Ok(()),
        }
    }

    fn authorize(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let delegates = &self.shared.delegates;
        let own = snapshot.matching(&self.facts);
        if own.iter().any(|entry| delegates.contains(&entry.spiffe_id)) {
            return Ok(());
        }
        if snapshot.synced_at.is_none() {
            return Err(Refusal::NotSynced);
        }
        Err(if own.is_empty() {
            Refusal::NoIdentity
        } else {
            Refusal::NotAuthorized
        })
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotSynced => not_synced(),
            Refusal::NoIdentity => denied(),
            Refusal::NotAuthorized => {
                Self::permission_denied("caller not configured as an authorized delegate")
            }
        }
    }
}

async fn attest(
    shared: &Shared,
    admitted: &Admitted,
    process: &Arc<Process>,
) -> Result<HashSet<Selector>, Status> {
    let _turn = admitted.turn().await;
    shared.attestation.attest(process).await.map_err(|error| {
        tracing::warn!(%error, pid = process.pid(), "attestation of a delegate failed");
        attestation_failed()
    })
}
