//! Derived entries among all others. One that gives way, to a stored entry or to one of another source, waits here and
//! takes the place as soon as it is free, in the same batch: agents never hear that the identity is gone.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use super::core::{Batch, Core, FIRST_DERIVED_ROW};
use super::index::Slot;
use super::sources::{Derived, source_of};

/// Derived entries that give way.
#[derive(Debug, Default)]
pub(super) struct Masked {
    by_identity: HashMap<Identity, BTreeMap<String, Derived>>,
    by_id: HashMap<String, Identity>,
}

/// Entries with the same ones give the same identity for the same facts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    spiffe_id: SpiffeId,
    parent_id: SpiffeId,
    selectors: Vec<Selector>,
}

impl Identity {
    fn of(entry: &Entry) -> Self {
        Self {
            spiffe_id: entry.spiffe_id.clone(),
            parent_id: entry.parent_id.clone(),
            selectors: entry.selectors.clone(),
        }
    }
}

impl Masked {
    fn put(&mut self, derived: Derived) {
        let id = derived.entry.id.clone();
        self.remove(&id);
        let identity = Identity::of(&derived.entry);
        self.by_id.insert(id.clone(), identity.clone());
        self.by_identity.entry(identity).or_default().insert(id, derived);
    }

    fn remove(&mut self, id: &str) {
        let Some(identity) = self.by_id.remove(id) else {
            return;
        };
        if let Some(same) = self.by_identity.get_mut(&identity) {
            same.remove(id);
            if same.is_empty() {
                self.by_identity.remove(&identity);
            }
        }
    }

    pub(super) fn has(&self, id: &str) -> bool {
        self.by_id.contains_key(id)
    }

    fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Those that give the same identity as an entry, and which of them comes first.
    fn like(&self, entry: &Entry) -> Option<(Vec<String>, Derived)> {
        let same = self.by_identity.get(&Identity::of(entry))?;
        let first = same.values().min_by_key(|derived| place(&derived.entry))?;
        Some((same.keys().cloned().collect(), first.clone()))
    }

    /// The first of each identity.
    fn firsts(&self) -> Vec<Derived> {
        let firsts = self.by_identity.values();
        firsts
            .filter_map(|same| same.values().min_by_key(|derived| place(&derived.entry)))
            .cloned()
            .collect()
    }
}

/// Who comes first among equal entries of several sources: the older one, then that of the source with the smaller name.
pub(super) fn place(entry: &Entry) -> (i64, String) {
    (entry.created_at, source_of(&entry.id).to_owned())
}

impl Core {
    /// Puts and removes entries that are derived and not stored.
    pub(super) fn apply_derived(&mut self, upserts: &[Derived], removals: &[String]) {
        let mut batch = Batch::default();
        let mut places = Vec::new();
        for id in removals {
            places.extend(self.place_of(id));
            self.masked.remove(id);
            self.remove_derived(&mut batch, id);
        }
        for derived in upserts {
            self.masked.remove(&derived.entry.id);
            self.put_derived(&mut batch, derived);
            places.push(Arc::clone(&derived.entry));
        }
        self.settle_places(&mut batch, &places);
        self.finish(batch);
    }

    /// Takes in entries that give way at present, and forgets those of the given ids.
    pub(super) fn mask(&mut self, masked: &[Derived], gone: &[String]) {
        let mut batch = Batch::default();
        let mut places = Vec::new();
        for id in gone {
            places.extend(self.place_of(id));
            self.masked.remove(id);
            self.remove_derived(&mut batch, id);
        }
        for derived in masked {
            self.masked.put(derived.clone());
            places.push(Arc::clone(&derived.entry));
        }
        self.settle_places(&mut batch, &places);
        self.finish(batch);
    }

    /// The entry with this id, when others may wait for its place.
    pub(super) fn place_of(&self, id: &str) -> Option<Arc<Entry>> {
        if self.masked.is_empty() {
            return None;
        }
        self.index.slot(id).map(|slot| self.index.entry(slot))
    }

    /// Of the entries that wait for the places of these, puts the first where the place is free, and takes out the others.
    pub(super) fn settle_places(&mut self, batch: &mut Batch, places: &[Arc<Entry>]) {
        if self.masked.is_empty() {
            return;
        }
        for place in places {
            let Some((ids, first)) = self.masked.like(place) else {
                continue;
            };
            let is_other = |core: &Self, slot: Slot| !core.masked.has(&core.index.id(slot));
            let is_free = self
                .index
                .similar(place, |_index, slot| is_other(self, slot))
                .is_none();
            for id in ids.iter().filter(|id| !is_free || **id != first.entry.id) {
                self.remove_derived(batch, id);
            }
            if is_free {
                self.put_derived(batch, &first);
            }
        }
    }

    /// Puts what waits for places that are free in what was loaded again. Whoever watches is told afterwards.
    pub(super) fn fill_places(&mut self) {
        for derived in self.masked.firsts() {
            let is_free = self.index.similar(&derived.entry, |_, _| true).is_none();
            if is_free && self.index.slot(&derived.entry.id).is_none() {
                let row = self.next_row();
                self.origins.insert(row, derived.origin);
                self.index.put(row, &derived.entry);
            }
        }
    }

    /// Whether the derived entry is there as it is.
    pub(super) fn has_derived(&self, derived: &Derived) -> bool {
        let Derived { entry, origin } = derived;
        self.derived_row(&entry.id)
            .is_some_and(|row| self.origins.get(&row) == Some(origin))
            && self
                .index
                .slot(&entry.id)
                .is_some_and(|slot| self.index.entry(slot) == *entry)
    }

    /// The object that a derived entry comes from.
    pub(super) fn origin(&self, id: &str) -> Option<Arc<str>> {
        self.origins.get(&self.derived_row(id)?).cloned()
    }

    /// The entry that gives the same identity for the same facts, of the derived or of the stored ones.
    pub(super) fn similar(&self, entry: &Entry, is_derived: bool) -> Option<Slot> {
        self.index
            .similar(entry, |_index, slot| self.is_derived(slot) == is_derived)
    }

    /// How many derived entries federate with a trust domain, and the object of the first.
    pub(super) fn derived_with(&self, trust_domain: &TrustDomain) -> Option<(usize, Arc<str>)> {
        let derived = self.index.after(FIRST_DERIVED_ROW);
        let mut with = derived.filter(|(_, slot)| self.index.federates_with(*slot).contains(trust_domain));
        let (row, _) = with.next()?;
        let origin = self.origins.get(&row).cloned().unwrap_or_default();
        Some((1 + with.count(), origin))
    }

    /// Whether the entry in the slot is derived and not stored.
    pub(super) fn is_derived(&self, slot: Slot) -> bool {
        self.index.row(slot) >= FIRST_DERIVED_ROW
    }

    /// An entry whose id a stored one has is ignored, and one that is there as it is.
    fn put_derived(&mut self, batch: &mut Batch, derived: &Derived) {
        if self.has_derived(derived) {
            return;
        }
        let Derived { entry, origin } = derived;
        let row = match self.index.slot(&entry.id) {
            None => self.next_row(),
            Some(_) => match self.derived_row(&entry.id) {
                Some(row) => row,
                None => return,
            },
        };
        self.origins.insert(row, origin.clone());
        self.put_entry(batch, row, entry);
    }

    fn remove_derived(&mut self, batch: &mut Batch, id: &str) {
        if let Some(row) = self.derived_row(id) {
            self.origins.remove(&row);
            self.remove_entry(batch, id);
        }
    }

    fn next_row(&mut self) -> u64 {
        self.next_derived_row += 1;
        self.next_derived_row
    }

    fn derived_row(&self, id: &str) -> Option<u64> {
        let row = self.index.row(self.index.slot(id)?);
        (row >= FIRST_DERIVED_ROW).then_some(row)
    }
}
