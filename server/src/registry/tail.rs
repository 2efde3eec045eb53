//! Reads changes from the store: all of them, in the order of revisions, each once.
//!
//! A history that does not continue the one in memory (a restored backup, a stale replica) is held back: memory
//! does not change and no request is refused because of it, until an operator calls [`Registry::release`], or a restart.

use std::collections::HashSet;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use finial_identity::process::tasks::Stop;
use finial_identity::spiffe_id::TrustDomain;
use thiserror::Error;
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};
use tonic::Code;

use super::Registry;
use super::core::Core;
use crate::store::{Change, HistoryError, Revision, Store, StoreError, What};
use crate::telemetry::metrics;

/// Changes that are applied under one lock.
const STEP: usize = 256;
/// Rows that loading reads at once.
const PAGE: u32 = 4_096;
/// How long a failed attempt to follow waits for the next.
const RETRY: Duration = Duration::from_secs(1);
/// How often expired entries are deleted, as SPIRE does.
const PRUNE_INTERVAL: Duration = Duration::from_secs(5 * 60);

/// Why memory cannot be brought up to date.
#[derive(Clone, Debug, Error)]
pub enum RegistryError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store's history is not the one that memory follows.
    #[error("registry holds back the store's content: {0}")]
    Held(Arc<str>),
    /// Rules that may concern the agent are not known yet.
    #[error("rules of {0} are not known yet")]
    Unsettled(Arc<str>),
}

/// Whether memory follows the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Following {
    /// It does.
    Yes,
    /// It holds back what the store says, for this reason.
    Held(Arc<str>),
}

/// The state of following.
#[derive(Debug)]
pub(super) struct Tail {
    /// Only one follows at a time; holds the number of the last attempt that succeeded.
    turn: Mutex<u64>,
    /// How many attempts were begun.
    begun: AtomicU64,
    following: watch::Sender<Following>,
}

impl Tail {
    pub(super) fn new() -> Self {
        Self {
            turn: Mutex::new(0),
            begun: AtomicU64::new(0),
            following: watch::Sender::new(Following::Yes),
        }
    }
}

impl Registry {
    /// Follows the store and deletes expired entries until `stop`.
    ///
    /// # Errors
    /// None; failures are logged, shown by [`Registry::following`] and tried again.
    pub async fn run(self: Arc<Self>, stop: Stop) -> Result<(), Infallible> {
        let mut committed = self.store.committed();
        let mut prune = interval_at(Instant::now() + PRUNE_INTERVAL, PRUNE_INTERVAL);
        prune.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                changed = committed.changed() => if changed.is_err() {
                    return Ok(());
                },
                _ = prune.tick() => self.prune().await,
                () = sleep(RETRY), if is_failing => {}
            }
            match self.catch_up().await {
                Ok(()) if is_failing => {
                    tracing::info!("registry follows the store again");
                    is_failing = false;
                }
                Ok(()) => {}
                Err(RegistryError::Store(error)) => {
                    if !is_failing {
                        tracing::error!(%error, "registry does not follow the store");
                    }
                    is_failing = true;
                }
                // What is held back stays so until it is released, which catches up itself.
                Err(RegistryError::Held(_) | RegistryError::Unsettled(_)) => is_failing = false,
            }
        }
    }

    /// Applies all that was committed before the call; what an API call wrote is seen by the next
    /// read of its caller after this. Concurrent callers share one attempt.
    ///
    /// # Errors
    /// [`RegistryError`]; memory is then as it was.
    pub async fn catch_up(&self) -> Result<(), RegistryError> {
        let before = self.tail.begun.load(Ordering::SeqCst);
        let mut succeeded = self.tail.turn.lock().await;
        if *succeeded > before {
            // An attempt that began after this call has seen all that was committed before it.
            return Ok(());
        }
        if let Following::Held(reason) = &*self.tail.following.borrow() {
            return Err(RegistryError::Held(reason.clone()));
        }
        let attempt = self.tail.begun.fetch_add(1, Ordering::SeqCst) + 1;
        reloading(self.follow()).await?;
        *succeeded = attempt;
        Ok(())
    }

    /// The revision of the last change that was applied.
    pub fn applied(&self) -> Revision {
        *self.applied.borrow()
    }

    /// Whether memory follows the store.
    pub fn following(&self) -> watch::Receiver<Following> {
        self.tail.following.subscribe()
    }

    /// Why the store's content is held back, if it is.
    pub fn held(&self) -> Option<Arc<str>> {
        match &*self.tail.following.borrow() {
            Following::Yes => None,
            Following::Held(reason) => Some(reason.clone()),
        }
    }

    /// Takes the store's content as it is, also when it was held back.
    ///
    /// # Errors
    /// [`RegistryError`]; what was held back stays so.
    pub async fn release(&self) -> Result<(), RegistryError> {
        let _turn = self.tail.turn.lock().await;
        let loaded = load(&*self.store, &self.trust_domain).await?;
        self.install(loaded);
        self.follow().await?;
        self.tail.following.send_replace(Following::Yes);
        tracing::warn!(revision = %self.applied(), "registry took over the store's content by command");
        Ok(())
    }

    async fn follow(&self) -> Result<(), RegistryError> {
        loop {
            let applied = self.applied();
            match self.store.changes_since(applied).await {
                Ok(changes) if changes.is_empty() => return Ok(()),
                Ok(changes) => self.apply(applied, changes)?,
                Err(HistoryError::Pruned { .. }) => self.reload(applied).await?,
                Err(error @ HistoryError::Other { .. }) => return Err(self.hold(error.to_string())),
                Err(HistoryError::Store(error)) => return Err(error.into()),
            }
        }
    }

    fn apply(&self, applied: Revision, changes: Vec<Change>) -> Result<(), RegistryError> {
        let is_dense = (applied.n + 1..)
            .zip(&changes)
            .all(|(n, change)| change.revision.n == n);
        if !is_dense {
            return Err(self.hold(format!("changes after revision {applied} have gaps")));
        }
        let has_bundles = changes
            .iter()
            .any(|change| matches!(change.what, What::BundlePut(_) | What::BundleDeleted(_)));
        let mut changes = changes.into_iter().peekable();
        while changes.peek().is_some() {
            let step: Vec<Change> = changes.by_ref().take(STEP).collect();
            let mut core = self.write();
            core.apply(step);
            self.applied.send_replace(core.applied());
        }
        if has_bundles {
            self.publish_bundles();
        }
        Ok(())
    }

    /// Loads all again because the log no longer reaches back to us.
    async fn reload(&self, applied: Revision) -> Result<(), RegistryError> {
        let loaded = load(&*self.store, &self.trust_domain).await?;
        let (held, lost) = self.lost(&loaded);
        if lost * 2 > held {
            let explained = self.store.entries_deleted_since(applied.n).await?;
            if explained < lost {
                return Err(self.hold(format!(
                    "{lost} of {held} entries would go, of which the log explains {explained}"
                )));
            }
        }
        tracing::warn!(from = %applied, to = %loaded.applied(), "registry was too far behind and loaded all anew");
        self.install(loaded);
        Ok(())
    }

    /// How many entries are held, and how many of them are not among those loaded.
    fn lost(&self, loaded: &Core) -> (usize, usize) {
        let core = self.read();
        let ids: HashSet<String> = core.stored_ids().collect();
        let lost = ids.iter().filter(|id| loaded.index.slot(id).is_none()).count();
        (ids.len(), lost)
    }

    fn install(&self, loaded: Core) {
        {
            let mut core = self.write();
            core.replace(loaded);
            self.applied.send_replace(core.applied());
        }
        self.publish_bundles();
    }

    fn publish_bundles(&self) {
        let bundles = self.read().bundles.clone();
        self.bundles.send_replace(bundles);
    }

    fn hold(&self, reason: String) -> RegistryError {
        tracing::error!(%reason, "registry holds back the store's content until it is released or the server restarts");
        let reason: Arc<str> = reason.into();
        self.tail.following.send_replace(Following::Held(reason.clone()));
        RegistryError::Held(reason)
    }

    async fn prune(&self) {
        let now = self.clock.now();
        let timer = metrics().start("registration_entry_manager_prune");
        let pruned = self.store.prune_expired_entries(now);
        match timer.around(pruned, |_| Code::Internal).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "expired entries deleted"),
            Err(error) => tracing::error!(%error, "expired entries not deleted"),
        }
    }
}

/// Counts that memory took in what the store has.
pub(super) async fn reloading<T>(
    work: impl Future<Output = Result<T, RegistryError>>,
) -> Result<T, RegistryError> {
    let code = |error: &RegistryError| match error {
        RegistryError::Store(_) => Code::Unavailable,
        RegistryError::Held(_) | RegistryError::Unsettled(_) => Code::FailedPrecondition,
    };
    metrics().start("entry_cache_reload").around(work, code).await
}

/// Reads everything. What changes meanwhile is read again by following from the revision before.
pub(super) async fn load(store: &dyn Store, trust_domain: &TrustDomain) -> Result<Core, RegistryError> {
    let revision = store.revision();
    let mut core = Core::new(trust_domain);
    let mut after = 0;
    loop {
        let page = store.list_entries(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.row;
        for stored in &page {
            core.index.put(stored.row, &stored.entry);
        }
    }
    after = 0;
    loop {
        let page = store.list_agents(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.row;
        core.agents.extend(
            page.into_iter()
                .map(|stored| (stored.agent.id.clone(), stored.agent)),
        );
    }
    after = 0;
    loop {
        let page = store.list_bundles(after, PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.row;
        Arc::make_mut(&mut core.bundles).extend(
            page.into_iter()
                .map(|stored| (stored.bundle.trust_domain.clone(), stored.bundle)),
        );
    }
    core.loaded_at(revision);
    Ok(core)
}
