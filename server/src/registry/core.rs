//! The registry's state and how changes update it: entries, nodes, bundles, and what must be sent to each
//! watching agent. Pure: changes come in order, nothing here waits.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wire::{self, DigestSum};

use super::authorized::reach;
use super::cursor::{Cursor, Logged, RecentChanges, WasPlaced};
use super::derived::Masked;
use super::index::{Index, Slot};
use super::watchers::{AgentGone, State, WatchNumber, Watcher, Watchers};
use crate::store::{AgentRecord, Change, Revision, StoredEntry, What};

/// Rows of derived entries begin here, behind all stored ones.
pub(super) const FIRST_DERIVED_ROW: u64 = 1 << 62;

/// The bundles of all trust domains.
pub type Bundles = BTreeMap<TrustDomain, Arc<Bundle>>;

/// All that is held in memory.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) index: Index,
    pub(super) agents: HashMap<SpiffeId, Arc<AgentRecord>>,
    pub(super) bundles: Arc<Bundles>,
    pub(super) watchers: Watchers,
    recent: RecentChanges,
    applied: Revision,
    pub(super) next_derived_row: u64,
    /// Which objects derived entries come from, by row.
    pub(super) origins: HashMap<u64, Arc<str>>,
    pub(super) masked: Masked,
}

/// What the changes of one call did so far.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Slots whose entries changed.
    changed: HashSet<Slot>,
    /// Ids of entries that are gone, by their slots.
    gone: HashMap<Slot, String>,
    /// Watches whose sets must be computed again.
    recompute: BTreeSet<WatchNumber>,
    /// Watches that have something to send.
    wake: BTreeSet<WatchNumber>,
    has_bundle_changes: bool,
}

impl Core {
    pub(super) fn new(trust_domain: &TrustDomain) -> Self {
        Self {
            index: Index::new(trust_domain),
            agents: HashMap::new(),
            bundles: Arc::default(),
            watchers: Watchers::default(),
            recent: RecentChanges::new(),
            applied: Revision::START,
            next_derived_row: FIRST_DERIVED_ROW,
            origins: HashMap::new(),
            masked: Masked::default(),
        }
    }

    /// The revision of the last change that was applied.
    pub(super) fn applied(&self) -> Revision {
        self.applied
    }

    /// Where the state stands.
    pub(super) fn cursor(&self) -> Cursor {
        self.recent.cursor(self.applied)
    }

    /// Applies changes of the store, in order, and wakes the watches that they concern.
    pub(super) fn apply(&mut self, changes: Vec<Change>) {
        let mut batch = Batch::default();
        let mut places = Vec::new();
        for Change { revision, what } in changes {
            self.applied = revision;
            match what {
                What::EntryPut(StoredEntry { row, entry }) => {
                    places.extend(self.place_of(&entry.id));
                    self.put_entry(&mut batch, row, &entry);
                    places.push(entry);
                }
                What::EntryDeleted(id) => {
                    places.extend(self.place_of(&id));
                    self.remove_entry(&mut batch, &id);
                }
                What::AgentPut(agent) => self.put_agent(&mut batch, agent),
                What::AgentDeleted(id) => self.remove_agent(&mut batch, &id),
                What::BundlePut(bundle) => {
                    Arc::make_mut(&mut self.bundles).insert(bundle.trust_domain.clone(), bundle);
                    batch.has_bundle_changes = true;
                }
                What::BundleDeleted(trust_domain) => {
                    Arc::make_mut(&mut self.bundles).remove(&trust_domain);
                    batch.has_bundle_changes = true;
                }
            }
        }
        self.settle_places(&mut batch, &places);
        self.finish(batch);
    }

    /// Replaces the state by what was loaded again. Watches stay open and get the differences.
    pub(super) fn replace(&mut self, mut loaded: Self) {
        for (row, slot) in self.index.after(FIRST_DERIVED_ROW) {
            let entry = self.index.entry(slot);
            // What waits for a place takes it below, if it is free.
            if self.masked.has(&entry.id) {
                self.origins.remove(&row);
                continue;
            }
            if loaded.index.slot(&entry.id).is_none() {
                loaded.index.put(row, &entry);
            }
        }
        self.index = loaded.index;
        self.fill_places();
        self.agents = loaded.agents;
        self.bundles = loaded.bundles;
        self.applied = loaded.applied;
        self.recent.forget();
        let open: Vec<Arc<Watcher>> = self.watchers.all().cloned().collect();
        for watcher in open {
            if let Some(reason) = self.standing(&watcher) {
                watcher.state().gone = Some(reason);
                watcher.notify.notify_one();
                continue;
            }
            let selectors = self.selectors_of(&watcher.agent);
            self.watchers.set_selectors(watcher.number, &selectors);
            let (set, digest) = self.set_of(&watcher.agent);
            let mut state = watcher.state();
            // Slots mean other entries now, so what waits by slot is worth nothing.
            state.needs_snapshot |= digest != state.digest || !state.pending.is_empty();
            state.pending.clear();
            (state.set, state.digest) = (set, digest);
            state.has_new_bundles = true;
            watcher.notify.notify_one();
        }
    }

    /// Whether the watch must end, and why.
    fn standing(&self, watcher: &Watcher) -> Option<AgentGone> {
        match self.agents.get(&watcher.agent) {
            None => Some(AgentGone::Deleted),
            Some(agent) if agent.is_banned() => Some(AgentGone::Banned),
            Some(agent) if !agent.has_serial(&watcher.serial) => Some(AgentGone::Superseded),
            Some(_) => None,
        }
    }

    /// Marks the loaded state with the revision that it was loaded at.
    pub(super) fn loaded_at(&mut self, revision: Revision) {
        self.applied = revision;
    }

    /// Opens a watch for a node. An agent whose set is current gets nothing, one whose cursor is
    /// known gets the changes since then, any other gets a snapshot.
    pub(super) fn watch(
        &mut self,
        agent: &AgentRecord,
        serial: &str,
        resume: Option<(Cursor, DigestSum)>,
    ) -> Arc<Watcher> {
        let (set, digest) = self.set_of(&agent.id);
        let mut state = State {
            set,
            digest,
            has_new_bundles: true,
            ..State::default()
        };
        match resume {
            Some((_, held)) if held == digest => {}
            Some((cursor, _)) => match self.changed_since(&agent.id, cursor) {
                Some(changed) => changed.iter().for_each(|(id, slot)| state.wait(id, *slot)),
                None => state.needs_snapshot = true,
            },
            None => state.needs_snapshot = true,
        }
        self.watchers.open(&agent.id, serial, &agent.selectors, state)
    }

    /// The ids that changed for an agent since a cursor, if they are known.
    fn changed_since(&self, agent: &SpiffeId, cursor: Cursor) -> Option<HashMap<String, Option<Slot>>> {
        let logged = self.recent.since(cursor)?;
        let logged: Vec<&Logged> = logged.collect();
        let is_untellable = |item: &&Logged| match item {
            Logged::Structure => true,
            Logged::Node(id) => id == agent,
            Logged::Entry { .. } => false,
        };
        if logged.iter().any(is_untellable) {
            return None;
        }
        let reach = reach(&self.index, agent, &self.selectors_of(agent));
        let set: HashSet<Slot> = reach.entries.iter().copied().collect();
        // Parents that the agent reached then: those it reaches now, and below them the IDs of
        // entries that are gone since.
        let mut then = HashSet::from([agent.clone()]);
        let is_reached = |then: &HashSet<SpiffeId>, parent: &SpiffeId| {
            let number = self.index.id_number(parent);
            then.contains(parent) || number.is_some_and(|number| reach.parents.contains(&number))
        };
        let mut changed = HashMap::new();
        loop {
            let known = (changed.len(), then.len());
            for item in &logged {
                let Logged::Entry { id, before } = item else {
                    continue;
                };
                let slot = self.index.slot(id).filter(|slot| set.contains(slot));
                let before = before.as_ref().filter(|before| is_reached(&then, &before.parent));
                if let Some(before) = before {
                    then.insert(before.spiffe_id.clone());
                }
                if slot.is_some() || before.is_some() {
                    changed.insert(id.clone(), slot);
                }
            }
            if known == (changed.len(), then.len()) {
                return Some(changed);
            }
        }
    }

    /// The ids of the entries that are stored.
    pub(super) fn stored_ids(&self) -> impl Iterator<Item = String> {
        let stored = self
            .index
            .after(0)
            .take_while(|(row, _)| *row < FIRST_DERIVED_ROW);
        stored.map(|(_, slot)| self.index.id(slot))
    }

    /// The node's selectors; none when it is unknown.
    pub(super) fn selectors_of(&self, agent: &SpiffeId) -> Vec<Selector> {
        self.agents
            .get(agent)
            .map(|agent| agent.selectors.clone())
            .unwrap_or_default()
    }

    /// The slots of an agent's set, in the order of rows.
    pub(super) fn authorized(&self, agent: &SpiffeId) -> Vec<Slot> {
        let mut slots = reach(&self.index, agent, &self.selectors_of(agent)).entries;
        slots.sort_unstable_by_key(|slot| self.index.row(*slot));
        slots
    }

    fn set_of(&self, agent: &SpiffeId) -> (HashSet<Slot>, DigestSum) {
        let set: HashSet<Slot> = reach(&self.index, agent, &self.selectors_of(agent))
            .entries
            .into_iter()
            .collect();
        let digest = DigestSum::of(set.iter().map(|slot| self.digest(*slot)));
        (set, digest)
    }

    /// Whether this is the digest of an agent's set.
    pub(super) fn is_set(&self, agent: &SpiffeId, digest: DigestSum) -> bool {
        self.set_of(agent).1 == digest
    }

    fn digest(&self, slot: Slot) -> u128 {
        wire::entry_digest(&wire::entry_to_wire(&self.index.entry(slot)))
    }

    pub(super) fn put_entry(&mut self, batch: &mut Batch, row: u64, entry: &Entry) {
        let old = self.index.slot(&entry.id);
        let is_moved = !old.is_some_and(|slot| self.index.is_same_place(slot, entry));
        let before = old.map(|slot| self.before(batch, slot)).unwrap_or_default();
        let Some(slot) = self.index.put(row, entry) else {
            return;
        };
        batch.changed.insert(slot);
        let is_structural = is_moved && (before.is_structural || self.index.is_structural(slot));
        self.log(&entry.id, &before, is_structural);
        let touched = if is_moved {
            self.watchers.touched(&self.index, slot)
        } else {
            before.touched.clone()
        };
        if is_structural {
            batch.recompute.extend(before.touched);
            batch.recompute.extend(touched);
            return;
        }
        if self.index.is_alias(slot) {
            return;
        }
        let has_bundles = before.has_bundles || !self.index.federates_with(slot).is_empty();
        for number in before.touched.difference(&touched) {
            self.tell(batch, *number, has_bundles, |state| {
                state.remove(slot, &entry.id, before.digest)
            });
        }
        if touched.is_empty() {
            return;
        }
        let digest = self.digest(slot);
        for number in &touched {
            self.tell(batch, *number, has_bundles, |state| {
                state.upsert(slot, &entry.id, before.digest, digest);
            });
        }
    }

    pub(super) fn remove_entry(&mut self, batch: &mut Batch, id: &str) {
        let Some(slot) = self.index.slot(id) else { return };
        let before = self.before(batch, slot);
        self.index.remove(slot);
        batch.gone.insert(slot, id.to_owned());
        self.log(id, &before, before.is_structural);
        if before.is_structural {
            batch.recompute.extend(before.touched);
            return;
        }
        for number in &before.touched {
            self.tell(batch, *number, before.has_bundles, |state| {
                state.remove(slot, id, before.digest)
            });
        }
    }

    /// What must be known of an entry before it changes.
    fn before(&self, batch: &Batch, slot: Slot) -> Before {
        let touched = self.watchers.touched(&self.index, slot);
        // A digest costs a hash; only who held the entry needs it.
        let is_held = touched.iter().any(|number| !batch.recompute.contains(number));
        Before {
            digest: if is_held { self.digest(slot) } else { 0 },
            touched,
            is_structural: self.index.is_structural(slot),
            has_bundles: !self.index.federates_with(slot).is_empty(),
            place: Some(WasPlaced {
                parent: self.index.spiffe_id(self.index.parent(slot)),
                spiffe_id: self.index.spiffe_id(self.index.holds(slot)),
            }),
        }
    }

    fn log(&mut self, id: &str, before: &Before, is_structural: bool) {
        self.recent.push(if is_structural {
            Logged::Structure
        } else {
            Logged::Entry {
                id: id.to_owned(),
                before: before.place.clone(),
            }
        });
    }

    /// Changes a watch's state, unless it is computed again anyway.
    fn tell(
        &self,
        batch: &mut Batch,
        number: WatchNumber,
        has_bundles: bool,
        change: impl FnOnce(&mut State),
    ) {
        if batch.recompute.contains(&number) {
            return;
        }
        if let Some(watcher) = self.watchers.watcher(number) {
            let mut state = watcher.state();
            change(&mut state);
            state.has_new_bundles |= has_bundles;
            batch.wake.insert(number);
        }
    }

    fn put_agent(&mut self, batch: &mut Batch, agent: Arc<AgentRecord>) {
        let before = self.agents.insert(agent.id.clone(), agent.clone());
        if before.is_none_or(|before| before.selectors != agent.selectors) {
            self.recent.push(Logged::Node(agent.id.clone()));
        }
        for number in self.watchers.of_agent(&agent.id) {
            if self.watchers.set_selectors(number, &agent.selectors) {
                batch.recompute.insert(number);
            }
        }
        self.end_watches(batch, &agent.id);
    }

    fn remove_agent(&mut self, batch: &mut Batch, id: &SpiffeId) {
        if self.agents.remove(id).is_some() {
            self.recent.push(Logged::Node(id.clone()));
        }
        self.end_watches(batch, id);
    }

    /// Ends the watches that the agent's record no longer bears.
    fn end_watches(&self, batch: &mut Batch, id: &SpiffeId) {
        for number in self.watchers.of_agent(id) {
            if let Some(watcher) = self.watchers.watcher(number)
                && let Some(reason) = self.standing(watcher)
            {
                watcher.state().gone = Some(reason);
                batch.wake.insert(number);
            }
        }
    }

    /// Computes what must be computed again, wakes the watches, and frees what was kept for both.
    pub(super) fn finish(&mut self, mut batch: Batch) {
        let mut digests: HashMap<Slot, u128> = HashMap::new();
        for number in &batch.recompute {
            if let Some(watcher) = self.watchers.watcher(*number) {
                self.recompute(&batch, &mut digests, watcher);
            }
        }
        batch.wake.append(&mut batch.recompute);
        if batch.has_bundle_changes {
            for watcher in self.watchers.all() {
                watcher.state().has_new_bundles = true;
                watcher.notify.notify_one();
            }
        }
        for number in &batch.wake {
            if let Some(watcher) = self.watchers.watcher(*number) {
                watcher.notify.notify_one();
            }
        }
        self.index.recycle();
    }

    fn recompute(&self, batch: &Batch, digests: &mut HashMap<Slot, u128>, watcher: &Watcher) {
        let reach = reach(&self.index, &watcher.agent, &self.selectors_of(&watcher.agent));
        let set: HashSet<Slot> = reach.entries.into_iter().collect();
        let mut digest = DigestSum::default();
        for slot in &set {
            digest.add(*digests.entry(*slot).or_insert_with(|| self.digest(*slot)));
        }
        let mut state = watcher.state();
        let before = std::mem::take(&mut state.set);
        for slot in before.difference(&set) {
            match batch.gone.get(slot) {
                Some(id) => state.wait(id, None),
                None => state.wait(&self.index.id(*slot), None),
            }
        }
        for slot in &set {
            if !before.contains(slot) || batch.changed.contains(slot) {
                state.wait(&self.index.id(*slot), Some(*slot));
            }
        }
        state.set = set;
        state.digest = digest;
        state.has_new_bundles = true;
    }
}

/// What was known of an entry before it changed.
#[derive(Debug, Default)]
struct Before {
    digest: u128,
    touched: BTreeSet<WatchNumber>,
    is_structural: bool,
    has_bundles: bool,
    place: Option<WasPlaced>,
}
