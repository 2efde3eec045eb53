//! Who may have which identity: entries, nodes and bundles in memory, and the push of each change to
//! exactly the agents that it concerns.
//!
//! `store` commits -> `tail` applies the change to `core`, in order -> `watchers` finds the agents that it affects ->
//! `feed` wakes their watches. `index`, `authorized`, `watchers` and `core` are pure.
//!
//! A refusal is never decided from memory alone: before a refusal the registry catches up with the store.

mod authorized;
mod core;
mod cursor;
mod derived;
mod explained;
mod feed;
mod hops;
mod index;
mod intern;
#[cfg(test)]
mod model;
mod record;
mod rows;
mod sources;
mod tail;
mod watchers;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::process::clock::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use self::core::Core;
use self::index::{Index, Slot};
use self::tail::Tail;
use crate::store::{AgentRecord, Revision, Store, StoredEntry};

pub use self::core::Bundles;
pub use cursor::Cursor;
pub use explained::{
    AskError, LabelDifference, NodeReport, PodFacts, PodQuestion, PodReport, RuleOutcome, RuleReport,
};
pub use feed::{BundleChanges, Feed, FeedEvent, Resume, SubscribeError};
pub use hops::{Connection, Hop};
pub use sources::{Derived, SourceState};
pub use tail::{Following, RegistryError};
pub use watchers::AgentGone;

/// The registry of one trust domain.
#[derive(Debug)]
pub struct Registry {
    store: Arc<dyn Store>,
    trust_domain: TrustDomain,
    clock: Clock,
    core: RwLock<Core>,
    tail: Tail,
    applied: watch::Sender<Revision>,
    bundles: watch::Sender<Arc<Bundles>>,
    sources: sources::Sources,
    loaded_at: Instant,
    askable: RwLock<BTreeMap<Arc<str>, mpsc::Sender<PodQuestion>>>,
    hops: Mutex<hops::Hops>,
}

/// How a node stands with the SVID that it presents.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentStanding {
    /// The serial is that of its current SVID.
    Active(Arc<AgentRecord>),
    /// The serial is that of its renewed SVID, which was not used before: promote it.
    Renewed(Arc<AgentRecord>),
    /// The node is banned.
    Banned,
    /// The serial is neither.
    NotActive,
    /// No node has the ID.
    Unknown,
}

impl Registry {
    /// Reads everything from the store.
    ///
    /// # Errors
    /// [`RegistryError`] when the store fails.
    pub async fn load(
        store: Arc<dyn Store>,
        trust_domain: &TrustDomain,
        clock: Clock,
    ) -> Result<Arc<Self>, RegistryError> {
        let core = tail::reloading(tail::load(&*store, trust_domain)).await?;
        let registry = Arc::new(Self {
            trust_domain: trust_domain.clone(),
            clock,
            tail: Tail::new(),
            applied: watch::Sender::new(core.applied()),
            bundles: watch::Sender::new(core.bundles.clone()),
            core: RwLock::new(core),
            sources: sources::Sources::default(),
            loaded_at: Instant::now(),
            askable: RwLock::default(),
            hops: Mutex::default(),
            store,
        });
        registry.catch_up().await?;
        Ok(registry)
    }

    /// The trust domain whose entries these are.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The entries that an agent may have, in the order of rows.
    pub fn authorized(&self, agent: &SpiffeId) -> Vec<Arc<Entry>> {
        let core = self.read();
        let slots = core.authorized(agent);
        slots.into_iter().map(|slot| core.index.entry(slot)).collect()
    }

    /// One entry, if the agent may have it.
    ///
    /// # Errors
    /// [`RegistryError`] when memory says no and the store cannot be asked.
    pub async fn authorized_entry(
        &self,
        agent: &SpiffeId,
        id: &str,
    ) -> Result<Option<Arc<Entry>>, RegistryError> {
        let found = self
            .found_or_caught_up(|core| {
                let slot = core.index.slot(id)?;
                let selectors = core.selectors_of(agent);
                authorized::is_authorized(&core.index, agent, &selectors, slot)
                    .then(|| core.index.entry(slot))
            })
            .await?;
        if found.is_none() {
            self.check_settled(agent)?;
        }
        Ok(found)
    }

    /// The node with this ID, banned or not.
    ///
    /// # Errors
    /// [`RegistryError`] when memory has none and the store cannot be asked.
    pub async fn agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, RegistryError> {
        self.found_or_caught_up(|core| core.agents.get(id).cloned()).await
    }

    /// Deletes a node whose machine was removed, so that its streams end and a new machine in its place attests again.
    /// One that is banned stays so. Says whether there was one.
    ///
    /// # Errors
    /// [`RegistryError`] when the store cannot be asked or written.
    pub async fn evict(&self, id: &SpiffeId) -> Result<bool, RegistryError> {
        let found = self.agent(id).await?;
        if found.is_none_or(|agent| agent.is_banned()) {
            return Ok(false);
        }
        let deleted = self.store.delete_agent(id).await?;
        self.catch_up().await?;
        Ok(deleted.is_some())
    }

    /// How a node stands with an SVID of this serial number (decimal).
    ///
    /// # Errors
    /// [`RegistryError`] when memory would refuse and the store cannot be asked.
    pub async fn agent_standing(&self, id: &SpiffeId, serial: &str) -> Result<AgentStanding, RegistryError> {
        let stands = |core: &Core| match standing(core, id, serial) {
            active @ (AgentStanding::Active(_) | AgentStanding::Renewed(_)) => Some(active),
            _ => None,
        };
        if let Some(active) = self.found_or_caught_up(stands).await? {
            return Ok(active);
        }
        Ok(standing(&self.read(), id, serial))
    }

    /// Whether an entry with this SPIFFE ID gives administrator rights.
    ///
    /// # Errors
    /// [`RegistryError`] when memory says no and the store cannot be asked.
    pub async fn has_admin(&self, id: &SpiffeId) -> Result<bool, RegistryError> {
        let found = self
            .found_or_caught_up(|core| any_holder(core, id, Index::is_admin))
            .await?;
        Ok(found.is_some())
    }

    /// Whether an entry with this SPIFFE ID is a downstream server's.
    ///
    /// # Errors
    /// [`RegistryError`] when memory says no and the store cannot be asked.
    pub async fn has_downstream(&self, id: &SpiffeId) -> Result<bool, RegistryError> {
        let found = self
            .found_or_caught_up(|core| any_holder(core, id, Index::is_downstream))
            .await?;
        Ok(found.is_some())
    }

    /// The entry with this id, stored or derived.
    pub fn entry(&self, id: &str) -> Option<StoredEntry> {
        let core = self.read();
        core.index.slot(id).map(|slot| listed(&core, slot))
    }

    /// At most `limit` entries with rows above `after_row`, in the order of rows; derived ones last.
    pub fn entries(&self, after_row: u64, limit: usize) -> Vec<StoredEntry> {
        let core = self.read();
        let slots = core.index.after(after_row).take(limit);
        slots.map(|(_, slot)| listed(&core, slot)).collect()
    }

    /// How many entries there are.
    pub fn entry_count(&self) -> usize {
        self.read().index.len()
    }

    /// How many attested nodes there are, banned ones among them.
    pub fn agent_count(&self) -> usize {
        self.read().agents.len()
    }

    /// The attested nodes whose SPIFFE IDs begin so, except banned ones.
    pub fn agents_beginning(&self, prefix: &str) -> Vec<SpiffeId> {
        let core = self.read();
        let agents = core.agents.values().filter(|agent| !agent.is_banned());
        let ids = agents
            .map(|agent| &agent.id)
            .filter(|id| id.as_str().starts_with(prefix));
        ids.cloned().collect()
    }

    /// The entries with this parent, in the order of rows.
    pub fn entries_with_parent(&self, parent: &SpiffeId) -> Vec<StoredEntry> {
        let core = self.read();
        let number = core.index.id_number(parent);
        listed_all(
            &core,
            number.into_iter().flat_map(|number| core.index.children(number)),
        )
    }

    /// The entries with this SPIFFE ID, in the order of rows.
    pub fn entries_with_spiffe_id(&self, id: &SpiffeId) -> Vec<StoredEntry> {
        let core = self.read();
        let number = core.index.id_number(id);
        listed_all(
            &core,
            number.into_iter().flat_map(|number| core.index.holders(number)),
        )
    }

    /// The bundle of a trust domain.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<Arc<Bundle>> {
        self.read().bundles.get(trust_domain).cloned()
    }

    /// The bundle of the own trust domain, once there is one.
    pub fn own_bundle(&self) -> Option<Arc<Bundle>> {
        self.bundle(&self.trust_domain)
    }

    /// All bundles, and each change of them.
    pub fn bundles(&self) -> watch::Receiver<Arc<Bundles>> {
        self.bundles.subscribe()
    }

    /// How many agents watch.
    pub fn watch_count(&self) -> usize {
        self.read().watchers.len()
    }

    /// Looks in memory, then once more after catching up with the store.
    async fn found_or_caught_up<T>(
        &self,
        find: impl Fn(&Core) -> Option<T>,
    ) -> Result<Option<T>, RegistryError> {
        if let Some(found) = find(&self.read()) {
            return Ok(Some(found));
        }
        self.catch_up().await?;
        Ok(find(&self.read()))
    }

    fn read(&self) -> RwLockReadGuard<'_, Core> {
        self.core.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Core> {
        self.core.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn standing(core: &Core, id: &SpiffeId, serial: &str) -> AgentStanding {
    match core.agents.get(id) {
        None => AgentStanding::Unknown,
        Some(agent) if agent.is_banned() => AgentStanding::Banned,
        Some(agent) if agent.serial == serial => AgentStanding::Active(agent.clone()),
        Some(agent) if agent.has_serial(serial) => AgentStanding::Renewed(agent.clone()),
        Some(_) => AgentStanding::NotActive,
    }
}

fn any_holder(core: &Core, id: &SpiffeId, has: impl Fn(&Index, Slot) -> bool) -> Option<()> {
    let number = core.index.id_number(id)?;
    core.index
        .holders(number)
        .any(|slot| has(&core.index, slot))
        .then_some(())
}

fn listed(core: &Core, slot: Slot) -> StoredEntry {
    StoredEntry {
        row: core.index.row(slot),
        entry: core.index.entry(slot),
    }
}

fn listed_all(core: &Core, slots: impl Iterator<Item = Slot>) -> Vec<StoredEntry> {
    let mut slots: Vec<Slot> = slots.collect();
    slots.sort_unstable_by_key(|slot| core.index.row(*slot));
    slots.into_iter().map(|slot| listed(core, slot)).collect()
}

#[cfg(test)]
mod tests;
