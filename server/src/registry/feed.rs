//! One agent's feed: what a Watch stream sends.
//!
//! A feed reads the pending changes of its agent when the stream polls it, so many changes between two polls
//! become one delta, and a slow stream does not delay others.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire::DigestSum;
use thiserror::Error;

use super::core::Core;
use super::cursor::Cursor;
use super::tail::RegistryError;
use super::watchers::{AgentGone, State, Watcher};
use super::{AgentStanding, Registry, standing};
use crate::store::AgentRecord;

/// What an agent says it holds.
#[derive(Clone, Copy, Debug)]
pub struct Resume {
    /// Where its set stands.
    pub cursor: Cursor,
    /// The digest of its set.
    pub digest: DigestSum,
}

/// Why there is no feed.
#[derive(Clone, Debug, Error)]
pub enum SubscribeError {
    /// The agent may not watch.
    #[error("agent may not watch: {0:?}")]
    Agent(AgentGone),
    /// It cannot be found out whether it may.
    #[error(transparent)]
    Registry(#[from] RegistryError),
}

/// What an agent must hear next.
#[derive(Clone, Debug)]
pub enum FeedEvent {
    /// The whole set.
    Snapshot {
        /// Where the set stands.
        cursor: Cursor,
        /// The entries, in no order.
        entries: Vec<Arc<Entry>>,
        /// Their digest.
        digest: DigestSum,
    },
    /// What changed.
    Delta {
        /// Where the set stood.
        from: Cursor,
        /// Where it stands now.
        to: Cursor,
        /// Entries that are new or changed.
        upserts: Vec<Arc<Entry>>,
        /// Ids of entries that the agent no longer has.
        removals: Vec<String>,
        /// The digest of the set now.
        digest: DigestSum,
    },
    /// The set that the agent holds is right: send a heartbeat.
    Current {
        /// Where the set stands.
        cursor: Cursor,
        /// Its digest.
        digest: DigestSum,
    },
    /// Bundles changed.
    Bundles(BundleChanges),
    /// The watch ends; nothing follows.
    AgentGone(AgentGone),
}

/// Bundles that an agent must have.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BundleChanges {
    /// The own trust domain's, when it changed.
    pub own: Option<Arc<Bundle>>,
    /// Those of foreign trust domains that its entries name, when they changed.
    pub federated: Vec<Arc<Bundle>>,
    /// Foreign trust domains whose bundles it no longer needs.
    pub removed: Vec<TrustDomain>,
    /// Whether `federated` is the whole list.
    pub is_complete: bool,
}

/// The feed of one open watch. Dropping it ends the watch.
#[derive(Debug)]
pub struct Feed {
    registry: Arc<Registry>,
    pub(super) watcher: Arc<Watcher>,
    /// Where the agent's set stands after the last event.
    cursor: Cursor,
    /// The bundles that the agent was sent; `None` before the first.
    bundles: Option<BTreeMap<TrustDomain, Arc<Bundle>>>,
    /// Whether the agent knows that what it holds is right.
    is_confirmed: bool,
}

impl Registry {
    /// Opens a feed for an agent whose SVID has this serial number (decimal). The first events are
    /// the bundles, complete, and then a snapshot, a delta, or the word that the set held is right.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub async fn subscribe(
        self: &Arc<Self>,
        agent: &SpiffeId,
        serial: &str,
        resume: Option<Resume>,
    ) -> Result<Feed, SubscribeError> {
        admitted(self.agent_standing(agent, serial).await?)?;
        let settled = self.check_settled(agent);
        if let Some(resume) = &resume {
            self.compare_history(agent, resume.cursor).await?;
        }
        let mut core = self.write();
        // One that holds nothing more than is known here loses nothing.
        if let Err(unsettled) = settled
            && !resume.is_some_and(|resume| core.is_set(agent, resume.digest))
        {
            return Err(unsettled.into());
        }
        // Since the question above the agent may have been banned or deleted. What happens to it from
        // here on the watch hears.
        let record = admitted(standing(&core, agent, serial))?;
        let watcher = core.watch(
            &record,
            serial,
            resume.map(|resume| (resume.cursor, resume.digest)),
        );
        let cursor = resume.map_or_else(|| core.cursor(), |resume| resume.cursor);
        drop(core);
        Ok(Feed {
            registry: self.clone(),
            watcher,
            cursor,
            bundles: None,
            is_confirmed: false,
        })
    }

    /// Says so when an agent has seen what this server has not: the store went back in time, or this
    /// agent talked to a server on another store.
    async fn compare_history(&self, agent: &SpiffeId, cursor: Cursor) -> Result<(), RegistryError> {
        let seen = cursor.revision();
        if seen.n > self.applied().n {
            self.catch_up().await?;
        }
        let applied = self.applied();
        if seen.n > applied.n || (seen.n == applied.n && seen.mark != applied.mark) {
            tracing::warn!(agent_id = %agent, %seen, %applied, "agent has seen another history of the store");
        }
        Ok(())
    }
}

/// The record of an agent that may watch.
fn admitted(standing: AgentStanding) -> Result<Arc<AgentRecord>, SubscribeError> {
    Err(SubscribeError::Agent(match standing {
        AgentStanding::Active(record) | AgentStanding::Renewed(record) => return Ok(record),
        AgentStanding::Banned => AgentGone::Banned,
        AgentStanding::NotActive => AgentGone::Superseded,
        AgentStanding::Unknown => AgentGone::Deleted,
    }))
}

impl Feed {
    /// The next event. May be dropped while it waits without losing one.
    pub async fn next(&mut self) -> FeedEvent {
        loop {
            if let Some(event) = self.take() {
                match &event {
                    FeedEvent::Snapshot { entries, .. } | FeedEvent::Delta { upserts: entries, .. } => {
                        self.registry.note_pushed(&self.watcher.agent, entries)
                    }
                    _ => {}
                }
                return event;
            }
            self.watcher.notify.notified().await;
        }
    }

    /// What a heartbeat may say: where the agent's set stands and its digest. `None` when an event
    /// waits, which [`Feed::next`] then gives at once.
    pub fn heartbeat(&mut self) -> Option<(Cursor, DigestSum)> {
        let core = self.registry.read();
        let state = self.watcher.state();
        if self.has_waiting(&state) {
            return None;
        }
        self.cursor = core.cursor();
        Some((self.cursor, state.digest))
    }

    fn has_waiting(&self, state: &State) -> bool {
        state.gone.is_some()
            || state.has_new_bundles
            || state.needs_snapshot
            || !state.pending.is_empty()
            || !self.is_confirmed
    }

    /// The next event, if one waits.
    pub(super) fn take(&mut self) -> Option<FeedEvent> {
        let core = self.registry.read();
        let mut state = self.watcher.state();
        if let Some(reason) = state.gone {
            return Some(FeedEvent::AgentGone(reason));
        }
        if std::mem::take(&mut state.has_new_bundles) {
            let needed = needed_bundles(&core, &state);
            let own = self.registry.trust_domain();
            let changes = bundle_changes(self.bundles.as_ref(), &needed, own);
            self.bundles = Some(needed);
            if let Some(changes) = changes {
                return Some(FeedEvent::Bundles(changes));
            }
        }
        let to = core.cursor();
        let event = if std::mem::take(&mut state.needs_snapshot) {
            FeedEvent::Snapshot {
                cursor: to,
                entries: state.set.iter().map(|slot| core.index.entry(*slot)).collect(),
                digest: state.digest,
            }
        } else if !state.pending.is_empty() {
            let mut upserts = Vec::with_capacity(state.pending.len());
            let mut removals = Vec::new();
            for (id, slot) in std::mem::take(&mut state.pending) {
                match slot {
                    Some(slot) => upserts.push(core.index.entry(slot)),
                    None => removals.push(id),
                }
            }
            FeedEvent::Delta {
                from: self.cursor,
                to,
                upserts,
                removals,
                digest: state.digest,
            }
        } else if !self.is_confirmed {
            FeedEvent::Current {
                cursor: to,
                digest: state.digest,
            }
        } else {
            return None;
        };
        self.cursor = to;
        self.is_confirmed = true;
        Some(event)
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.registry.write().watchers.close(self.watcher.number);
    }
}

/// The own bundle and those that the entries of the set federate with, as far as they are known.
fn needed_bundles(core: &Core, state: &State) -> BTreeMap<TrustDomain, Arc<Bundle>> {
    let mut names: BTreeSet<&TrustDomain> = state
        .set
        .iter()
        .flat_map(|slot| core.index.federates_with(*slot))
        .collect();
    names.insert(core.index.trust_domain());
    names
        .into_iter()
        .filter_map(|name| core.bundles.get_key_value(name))
        .map(|(name, bundle)| (name.clone(), bundle.clone()))
        .collect()
}

/// What must be said for the agent to have the bundles it needs; `None` when it has them.
fn bundle_changes(
    sent: Option<&BTreeMap<TrustDomain, Arc<Bundle>>>,
    needed: &BTreeMap<TrustDomain, Arc<Bundle>>,
    own: &TrustDomain,
) -> Option<BundleChanges> {
    let nothing = BTreeMap::new();
    let is_complete = sent.is_none();
    let sent = sent.unwrap_or(&nothing);
    let mut changes = BundleChanges {
        is_complete,
        ..BundleChanges::default()
    };
    for (name, bundle) in needed {
        if sent
            .get(name)
            .is_some_and(|known| Arc::ptr_eq(known, bundle) || known == bundle)
        {
            continue;
        }
        if name == own {
            changes.own = Some(bundle.clone());
        } else {
            changes.federated.push(bundle.clone());
        }
    }
    changes.removed = sent
        .keys()
        .filter(|name| *name != own && !needed.contains_key(*name))
        .cloned()
        .collect();
    (is_complete || changes != BundleChanges::default()).then_some(changes)
}
