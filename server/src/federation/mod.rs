//! Fetches bundles of foreign trust domains regularly (SPIFFE Federation).
//!
//! [`sources`] merges what the configuration, operators and objects declare; [`Federation`] has one `refresher` for
//! each trust domain, which calls the endpoint (`fetch`) at the times of `schedule`, lets `judge` compare the answer
//! with the stored bundle, and stores it. [`endpoint`] serves the own bundle to others.

pub mod endpoint;
mod fetch;
mod judge;
mod refresher;
mod schedule;
mod seed;
pub mod sources;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use finial_identity::federation::{Declared, DeclaredSets, Origin, RefreshStates, Relationship};
use finial_identity::process::{Clock, Stop};
use finial_identity::spiffe_id::TrustDomain;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use crate::store::{Store, StoreError};
use refresher::Refresher;
use seed::Seeds;
use sources::Managed;

pub use fetch::FetchError;
pub use judge::Unfit;
pub use refresher::RefreshError;

/// Relationships that are read from the store at once.
const PAGE: u32 = 500;
/// When what operators declare is read again after the store failed.
const READ_AGAIN: Duration = Duration::from_secs(10);

/// What a federation is made of.
#[derive(Clone, Debug)]
pub struct FederationParts {
    /// What is remembered.
    pub store: Arc<dyn Store>,
    /// The time.
    pub clock: Clock,
    /// `federation.federates_with` of the configuration.
    pub configured: Vec<Relationship>,
    /// What objects declare.
    pub declared: watch::Receiver<DeclaredSets>,
    /// Whether authorities of WIT-SVIDs are kept.
    pub wit_svids: bool,
}

/// All federation relationships, and the refresh of their bundles.
pub struct Federation {
    parts: Arc<FederationParts>,
    states: watch::Sender<RefreshStates>,
    /// One change of the set at a time.
    turn: tokio::sync::Mutex<Turn>,
    running: Mutex<BTreeMap<TrustDomain, Running>>,
}

#[derive(Debug, Default)]
struct Turn {
    tasks: JoinSet<()>,
    seeds: Seeds,
    is_stopped: bool,
}

#[derive(Debug)]
struct Running {
    managed: Managed,
    refresher: Arc<Refresher>,
    task: AbortHandle,
}

impl fmt::Debug for Federation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Federation").finish_non_exhaustive()
    }
}

impl Federation {
    /// Nothing is fetched before [`Federation::run`].
    pub fn new(parts: FederationParts) -> Arc<Self> {
        Arc::new(Self {
            parts: Arc::new(parts),
            states: watch::Sender::default(),
            turn: tokio::sync::Mutex::new(Turn {
                is_stopped: true,
                ..Turn::default()
            }),
            running: Mutex::default(),
        })
    }

    /// Refreshes bundles until `stop`.
    ///
    /// # Errors
    /// None: failed accesses to the store are tried again.
    pub async fn run(self: Arc<Self>, stop: Stop) -> Result<(), Infallible> {
        self.turn.lock().await.is_stopped = false;
        let mut declared = self.parts.declared.clone();
        loop {
            let wait = match self.reload().await {
                Ok(()) => Duration::MAX,
                Err(error) => {
                    tracing::error!(%error, "federation relationships not read");
                    READ_AGAIN
                }
            };
            tokio::select! {
                () = stop.stopped() => break,
                () = tokio::time::sleep(wait) => {}
                Ok(()) = declared.changed() => {}
            }
        }
        let mut turn = self.turn.lock().await;
        turn.is_stopped = true;
        turn.tasks.shutdown().await;
        self.running().clear();
        Ok(())
    }

    /// Takes in what is declared now: begins to refresh what is new or different, and stops the rest.
    ///
    /// # Errors
    /// [`StoreError`]; then everything continues as it was.
    pub async fn reload(&self) -> Result<(), StoreError> {
        let mut turn = self.turn.lock().await;
        if turn.is_stopped {
            return Ok(());
        }
        let stored = stored_relationships(&*self.parts.store).await?;
        let declared = self.parts.declared.borrow().clone();
        let wanted = sources::merge(&self.parts.configured, stored, &declared);
        let in_force: Vec<&Declared> = declared
            .values()
            .flatten()
            .filter(|declared| is_in_force(&wanted, declared))
            .collect();
        let seeded = turn.seeds.plant(&*self.parts.store, &in_force).await?;
        self.stop_all_but(&wanted);
        for (trust_domain, managed) in wanted {
            if self.running().contains_key(&trust_domain) {
                continue;
            }
            self.begin(&mut turn.tasks, managed);
        }
        for trust_domain in seeded {
            if let Some(running) = self.running().get(&trust_domain) {
                running.refresher.soon();
            }
        }
        while let Some(ended) = turn.tasks.try_join_next() {
            if let Err(error) = ended
                && error.is_panic()
            {
                tracing::error!(%error, "refresh of a bundle ended");
            }
        }
        Ok(())
    }

    /// Takes in what is declared now, as [`Federation::reload`] does, after these trust domains' relationships or bundles
    /// were changed: what they concern is refreshed soon.
    ///
    /// # Errors
    /// As [`Federation::reload`].
    pub async fn changed(&self, trust_domains: &[TrustDomain]) -> Result<(), StoreError> {
        // Those that begin now are due at once without a request.
        let concerned: Vec<Arc<Refresher>> = self
            .running()
            .values()
            .map(|running| &running.refresher)
            .filter(|refresher| trust_domains.iter().any(|name| refresher.concerns(name)))
            .map(Arc::clone)
            .collect();
        let reloaded = self.reload().await;
        for refresher in concerned {
            refresher.soon();
        }
        reloaded
    }

    /// Fetches a bundle now; `None` when there is no relationship with the trust domain.
    ///
    /// # Errors
    /// [`RefreshError`]: why the stored bundle stays as it was.
    pub async fn refresh(&self, trust_domain: &TrustDomain) -> Option<Result<(), RefreshError>> {
        if let Err(error) = self.reload().await {
            return Some(Err(error.into()));
        }
        let refresher = self
            .running()
            .get(trust_domain)
            .map(|running| Arc::clone(&running.refresher))?;
        Some(refresher.refresh().await)
    }

    /// What objects declare with a trust domain, whether or not it counts; of several objects the older one.
    pub fn declared(&self, trust_domain: &TrustDomain) -> Option<Declared> {
        let declared = self.parts.declared.borrow();
        let mut all = sources::in_order(&declared).into_iter();
        all.find(|declared| declared.relationship.trust_domain == *trust_domain)
            .cloned()
    }

    /// What objects declare, in the order of trust domains, each once.
    pub fn all_declared(&self) -> BTreeMap<TrustDomain, Declared> {
        let declared = self.parts.declared.borrow();
        let mut all = BTreeMap::new();
        for declared in sources::in_order(&declared) {
            all.entry(declared.relationship.trust_domain.clone())
                .or_insert_with(|| declared.clone());
        }
        all
    }

    /// How the refresh of each bundle stands, and each change of it.
    pub fn states(&self) -> watch::Receiver<RefreshStates> {
        self.states.subscribe()
    }

    fn begin(&self, tasks: &mut JoinSet<()>, managed: Managed) {
        let relationship = managed.relationship.clone();
        tracing::info!(
            trust_domain = %relationship.trust_domain,
            bundle_endpoint_url = %relationship.endpoint_url,
            bundle_endpoint_profile = relationship.profile.name(),
            declared_by = %managed.origin,
            "trust domain is now managed"
        );
        let trust_domain = relationship.trust_domain.clone();
        let refresher = Refresher::new(managed.clone(), Arc::clone(&self.parts), self.states.clone());
        let refresher = Arc::new(refresher);
        let task = tasks.spawn(Arc::clone(&refresher).run());
        self.running().insert(
            trust_domain,
            Running {
                managed,
                refresher,
                task,
            },
        );
    }

    fn stop_all_but(&self, wanted: &BTreeMap<TrustDomain, Managed>) {
        self.running().retain(|trust_domain, running| {
            let stays = wanted.get(trust_domain) == Some(&running.managed) && !running.task.is_finished();
            if !stays {
                running.task.abort();
                running.refresher.end();
            }
            if !wanted.contains_key(trust_domain) {
                tracing::info!(%trust_domain, "trust domain no longer managed");
            }
            stays
        });
        self.states.send_if_modified(|states| {
            let before = states.len();
            states.retain(|trust_domain, _| wanted.contains_key(trust_domain));
            states.len() != before
        });
    }

    fn running(&self) -> std::sync::MutexGuard<'_, BTreeMap<TrustDomain, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_in_force(wanted: &BTreeMap<TrustDomain, Managed>, declared: &Declared) -> bool {
    wanted
        .get(&declared.relationship.trust_domain)
        .is_some_and(|managed| managed.origin == Origin::Object(Arc::clone(&declared.origin)))
}

async fn stored_relationships(store: &dyn Store) -> Result<Vec<Relationship>, StoreError> {
    let mut all = Vec::new();
    let mut after = 0;
    loop {
        let page = store.list_relationships(after, PAGE).await?;
        let Some(last) = page.last() else {
            return Ok(all);
        };
        after = last.row;
        all.extend(page.into_iter().map(|stored| stored.relationship));
    }
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
