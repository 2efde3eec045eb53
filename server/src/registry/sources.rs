//! Where derived entries come from: which objects, and whether all of them are known yet.
//!
//! Derived entries are not stored, so a server that has just started has none. An agent that asked then would
//! be told that its workloads lost their identities; it is asked to come again instead.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use finial_identity::entry::Entry;
use finial_identity::spiffe_id::SpiffeId;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::{Registry, RegistryError, listed};
use crate::store::{Revision, StoredEntry};

/// A derived entry.
#[derive(Clone, Debug, PartialEq)]
pub struct Derived {
    /// The entry.
    pub entry: Arc<Entry>,
    /// The object that declares it, for people.
    pub origin: Arc<str>,
}

/// How a source of derived entries stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// How much it declares: what kind of object, in which state, how many.
    pub counts: Vec<(&'static str, &'static str, i64)>,
    /// When all of it was looked at last.
    pub passed_at: Option<OffsetDateTime>,
    /// Whether everything that it declares has been taken in once.
    pub is_settled: bool,
    /// What the IDs of agents begin with that it may concern.
    pub parent_prefix: String,
    /// When it was heard last.
    pub heard_at: Option<OffsetDateTime>,
    /// What is wrong with it.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Sources(RwLock<BTreeMap<Arc<str>, SourceState>>);

impl Registry {
    /// Takes in entries that are derived from rules and never stored, and takes out those of the
    /// given ids. An entry whose id a stored one has is ignored.
    pub fn apply_derived(&self, upserts: &[Derived], removals: &[String]) {
        // First, so that nobody is sent an entry whose way is not known yet.
        self.note_derived(upserts);
        self.write().apply_derived(upserts, removals);
        self.note_gone(removals);
    }

    /// The object that declares a derived entry; none for stored entries.
    pub fn origin(&self, id: &str) -> Option<Arc<str>> {
        self.read().origin(id)
    }

    /// The derived entry that gives the same identity for the same facts, with its object.
    pub fn similar_derived(&self, entry: &Entry) -> Option<(StoredEntry, Arc<str>)> {
        let core = self.read();
        let slot = core.similar(entry, true)?;
        let stored = listed(&core, slot);
        let origin = core.origin(&stored.entry.id)?;
        Some((stored, origin))
    }

    /// Whether a stored entry gives the same identity for the same facts.
    pub fn has_similar_stored(&self, entry: &Entry) -> bool {
        self.read().similar(entry, false).is_some()
    }

    /// The revision of the store that memory is at, and each new one.
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// Says how a source of derived entries stands. One that is not settled holds its agents back.
    pub fn set_source(&self, name: &str, state: SourceState) {
        let mut sources = self.sources.0.write().unwrap_or_else(PoisonError::into_inner);
        sources.insert(name.into(), state);
    }

    /// How each source of derived entries stands, by name.
    pub fn sources(&self) -> BTreeMap<Arc<str>, SourceState> {
        let sources = self.sources.0.read().unwrap_or_else(PoisonError::into_inner);
        sources.clone()
    }

    /// Whether it can be told what an agent may have.
    ///
    /// # Errors
    /// [`RegistryError::Unsettled`] while a source that may concern the agent is not settled.
    pub fn check_settled(&self, agent: &SpiffeId) -> Result<(), RegistryError> {
        let sources = self.sources.0.read().unwrap_or_else(PoisonError::into_inner);
        let unsettled = sources
            .iter()
            .find(|(_, state)| !state.is_settled && agent.as_str().starts_with(&state.parent_prefix));
        match unsettled {
            Some((name, _)) => Err(RegistryError::Unsettled(name.clone())),
            None => Ok(()),
        }
    }
}
