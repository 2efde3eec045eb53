//! The process that calls, and whether it may.

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use finial_identity::selector::Selector;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Status};

use super::{Shared, not_synced};
use crate::endpoints::listener::Caller;
use crate::endpoints::session::{attestation_failed, denied, ending, stopping};
use crate::node::NodeState;
use crate::svids::Snapshot;
use crate::workload::Process;

/// A delegate in one of its calls, attested and authorized.
#[derive(Debug)]
pub(super) struct Delegate {
    shared: Arc<Shared>,
    process: Arc<Process>,
    facts: HashSet<Selector>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
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
    /// `PermissionDenied` when that is no delegate; `Unavailable` when it cannot be told who it is.
    pub(super) async fn open<M>(shared: Arc<Shared>, request: &Request<M>) -> Result<Self, Status> {
        let Some(Caller { peer, .. }) = request.extensions().get() else {
            return Err(Status::internal("connection has no peer"));
        };
        let process = match peer.process() {
            Ok(process) => Arc::clone(process),
            Err(error) => {
                tracing::warn!(%error, "caller of the delegated identity API cannot be identified");
                return Err(attestation_failed());
            }
        };
        let facts = attest(&shared, &process).await?;
        let mut delegate = Self {
            snapshots: shared.svids.snapshots(),
            node: shared.node.clone(),
            shared,
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
            let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
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

    /// Until when this call waits for the entries to be synced; `None` when that is over.
    pub(super) fn sync_deadline(&self) -> Option<Instant> {
        let until = self.opened + self.shared.sync_interval;
        (Instant::now() < until).then_some(until)
    }

    /// Whether the same facts hold for the process as before. If not, those that hold now are taken up; what they
    /// are worth is told by [`Delegate::snapshot`].
    ///
    /// # Errors
    /// `Unavailable` when it cannot be told.
    pub(super) async fn attest_again(&mut self) -> Result<bool, Status> {
        let facts = attest(&self.shared, &self.process).await?;
        let same = facts == self.facts;
        self.facts = facts;
        Ok(same)
    }

    /// Completes when there is something new, or at `until`.
    ///
    /// # Errors
    /// When the call is over, or `target_gone` says so.
    pub(super) async fn changed(
        &mut self,
        until: Option<Instant>,
        target_gone: impl Future<Output = Status>,
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
            status = target_gone => Err(status),
            outcome = self.snapshots.changed() => outcome.map_err(|_gone| stopping()),
            outcome = self.node.changed() => outcome.map_err(|_gone| stopping()),
            () = elapsed => Ok(()),
        }
    }

    fn authorize(&self, snapshot: &Snapshot) -> Result<(), Refusal> {
        let delegates = &self.shared.delegates;
        let mut entries = snapshot.entries.iter();
        if entries.any(|entry| delegates.contains(&entry.spiffe_id) && entry.matches(&self.facts)) {
            return Ok(());
        }
        if snapshot.synced_at.is_none() {
            return Err(Refusal::NotSynced);
        }
        let has_identity = snapshot.entries.iter().any(|entry| entry.matches(&self.facts));
        Err(if has_identity {
            Refusal::NotAuthorized
        } else {
            Refusal::NoIdentity
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

async fn attest(shared: &Shared, process: &Arc<Process>) -> Result<HashSet<Selector>, Status> {
    shared.attestation.attest(process).await.map_err(|error| {
        tracing::warn!(%error, pid = process.pid(), "attestation of a delegate failed");
        attestation_failed()
    })
}
