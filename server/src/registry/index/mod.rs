//! The entries in memory and the ways to find them: by id, by row, by parent, by SPIFFE ID, and node
//! aliases by selector. Pure: it knows neither store nor time.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use hashbrown::HashTable;

use super::intern::Interner;
use super::record::{NONE, Record};
use super::rows::Rows;

/// Where a record lies. A slot that is freed is given again only after [`Index::recycle`].
pub(super) type Slot = u32;
/// A SPIFFE ID of the trust domain, by its path.
pub(super) type IdNumber = u32;

/// All entries of one trust domain.
#[derive(Debug)]
pub(super) struct Index {
    trust_domain: TrustDomain,
    /// The parent of node aliases.
    server: IdNumber,
    records: Vec<Option<Record>>,
    free: Vec<Slot>,
    freed: Vec<Slot>,
    by_id: HashTable<Slot>,
    by_row: Rows,
    /// By SPIFFE ID, parent and selectors: entries with the same ones give the same identity for the same facts.
    by_identity: HashTable<Slot>,
    ids: Interner,
    /// For each number of an ID, the first entry in its lists.
    places: Vec<Place>,
    selectors: Interner,
    /// Each alias stands under one of its selectors, the one with the fewest aliases at that time.
    aliases: HashMap<u32, Vec<Slot>>,
    hasher: RandomState,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    first_child: Slot,
    first_holder: Slot,
}

const NOWHERE: Place = Place {
    first_child: NONE,
    first_holder: NONE,
};

impl Index {
    /// An index without entries.
    pub(super) fn new(trust_domain: &TrustDomain) -> Self {
        let mut index = Self {
            trust_domain: trust_domain.clone(),
            server: NONE,
            records: Vec::new(),
            free: Vec::new(),
            freed: Vec::new(),
            by_id: HashTable::new(),
            by_row: Rows::default(),
            by_identity: HashTable::new(),
            ids: Interner::default(),
            places: Vec::new(),
            selectors: Interner::default(),
            aliases: HashMap::new(),
            hasher: RandomState::new(),
        };
        index.server = index.acquire_id(trust_domain.server_id().path());
        index
    }

    pub(super) fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(super) fn len(&self) -> usize {
        self.by_row.len()
    }

    /// The slot of the entry with this id.
    pub(super) fn slot(&self, id: &str) -> Option<Slot> {
        self.by_id
            .find(self.hasher.hash_one(id), |slot| {
                self.record(*slot).with_id(|found| found == id)
            })
            .copied()
    }

    /// Puts an entry in place of the one with its id, whose slot it keeps. `None` for an entry of
    /// another trust domain, which is ignored.
    pub(super) fn put(&mut self, row: u64, entry: &Entry) -> Option<Slot> {
        if !entry.spiffe_id.is_member_of(&self.trust_domain)
            || !entry.parent_id.is_member_of(&self.trust_domain)
        {
            return None;
        }
        // The new numbers come first, so that texts in use by both stay where they are.
        let spiffe = self.acquire_id(entry.spiffe_id.path());
        let parent = self.acquire_id(entry.parent_id.path());
        let selectors: Vec<u32> = entry
            .selectors
            .iter()
            .map(|selector| self.selectors.acquire(selector.as_str()))
            .collect();
        let record = Record::new(row, entry, spiffe, parent, &selectors);
        let slot = match self.slot(&entry.id) {
            Some(slot) => {
                self.unlink(slot);
                self.records[slot as usize] = Some(record);
                slot
            }
            None => self.add(record),
        };
        self.link(slot);
        Some(slot)
    }

    /// Takes out the entry in a slot.
    pub(super) fn remove(&mut self, slot: Slot) {
        self.unlink(slot);
        let hash = self.record(slot).with_id(|id| self.hasher.hash_one(id));
        if let Ok(found) = self.by_id.find_entry(hash, |candidate| *candidate == slot) {
            found.remove();
        }
        self.records[slot as usize] = None;
        self.freed.push(slot);
    }

    /// Lets freed slots be given again. Until then a slot means the same entry to everybody.
    pub(super) fn recycle(&mut self) {
        self.free.append(&mut self.freed);
    }

    /// The entry in a slot, built again.
    pub(super) fn entry(&self, slot: Slot) -> Arc<Entry> {
        let record = self.record(slot);
        let fields = record.fields();
        let parts = EntryParts {
            id: record.with_id(str::to_owned),
            spiffe_id: self.spiffe_id(record.spiffe),
            parent_id: self.spiffe_id(record.parent),
            selectors: record
                .selectors()
                .iter()
                .map(|number| self.selector(*number))
                .collect(),
            x509_svid_ttl: fields.x509_svid_ttl,
            jwt_svid_ttl: fields.jwt_svid_ttl,
            federates_with: fields.federates_with.to_vec(),
            admin: fields.admin,
            downstream: fields.downstream,
            expires_at: fields.expires_at,
            dns_names: fields.dns_names.to_vec(),
            revision_number: fields.revision_number,
            store_svid: fields.store_svid,
            hint: fields.hint.to_owned(),
            created_at: fields.created_at,
            disable_x509_svid_prefetch: fields.disable_x509_svid_prefetch,
            jwt_svid_include_jti: fields.jwt_svid_include_jti,
        };
        Arc::new(Entry::check(parts, &self.trust_domain).expect("the record was made from a checked entry"))
    }

    /// Slots with rows above `after_row`, in the order of rows.
    pub(super) fn after(&self, after_row: u64) -> impl Iterator<Item = (u64, Slot)> {
        self.by_row.after(after_row)
    }

    pub(super) fn row(&self, slot: Slot) -> u64 {
        self.record(slot).row
    }

    /// The entry's id.
    pub(super) fn id(&self, slot: Slot) -> String {
        self.record(slot).with_id(str::to_owned)
    }

    pub(super) fn federates_with(&self, slot: Slot) -> &[TrustDomain] {
        self.record(slot).federates_with()
    }

    pub(super) fn is_admin(&self, slot: Slot) -> bool {
        self.record(slot).is_admin()
    }

    pub(super) fn is_downstream(&self, slot: Slot) -> bool {
        self.record(slot).is_downstream()
    }

    /// The number of the entry's SPIFFE ID.
    pub(super) fn holds(&self, slot: Slot) -> IdNumber {
        self.record(slot).spiffe
    }

    /// The number of the entry's parent.
    pub(super) fn parent(&self, slot: Slot) -> IdNumber {
        self.record(slot).parent
    }

    /// Whether the entry is a node alias: its parent is the server.
    pub(super) fn is_alias(&self, slot: Slot) -> bool {
        self.record(slot).parent == self.server
    }

    /// Whether other entries' authorization rests on this one: it is an alias or a parent of other entries.
    pub(super) fn is_structural(&self, slot: Slot) -> bool {
        self.is_alias(slot) || self.places[self.record(slot).spiffe as usize].first_child != NONE
    }

    /// Whether the entry in the slot authorizes in the same way as `entry` would.
    pub(super) fn is_same_place(&self, slot: Slot, entry: &Entry) -> bool {
        let record = self.record(slot);
        self.ids.text(record.spiffe) == entry.spiffe_id.path()
            && self.ids.text(record.parent) == entry.parent_id.path()
            && (record.parent != self.server
                || record
                    .selectors()
                    .iter()
                    .map(|number| self.selectors.text(*number))
                    .eq(entry.selectors.iter().map(Selector::as_str)))
    }

    /// The number of an ID that some entry names.
    pub(super) fn id_number(&self, id: &SpiffeId) -> Option<IdNumber> {
        if !id.is_member_of(&self.trust_domain) {
            return None;
        }
        self.ids.find(id.path())
    }

    pub(super) fn spiffe_id(&self, number: IdNumber) -> SpiffeId {
        SpiffeId::new(&self.trust_domain, self.ids.text(number)).expect("the path was that of a checked ID")
    }

    /// Entries whose parent is this ID.
    pub(super) fn children(&self, parent: IdNumber) -> impl Iterator<Item = Slot> {
        chain(self.places[parent as usize].first_child, |slot| {
            self.record(slot).next_child
        })
    }

    /// Entries that give this ID.
    pub(super) fn holders(&self, id: IdNumber) -> impl Iterator<Item = Slot> {
        chain(self.places[id as usize].first_holder, |slot| {
            self.record(slot).next_holder
        })
    }

    /// Node aliases whose selectors are all among these.
    pub(super) fn aliases_within(&self, selectors: &[Selector]) -> Vec<Slot> {
        let mut numbers: Vec<u32> = selectors
            .iter()
            .filter_map(|selector| self.selectors.find(selector.as_str()))
            .collect();
        numbers.sort_unstable();
        let is_among = |number: &u32| numbers.binary_search(number).is_ok();
        numbers
            .iter()
            .filter_map(|number| self.aliases.get(number))
            .flatten()
            .copied()
            .filter(|slot| self.record(*slot).selectors().iter().all(is_among))
            .collect()
    }

    /// The selectors of an entry.
    pub(super) fn selectors(&self, slot: Slot) -> Vec<Selector> {
        let numbers = self.record(slot).selectors();
        numbers.iter().map(|number| self.selector(*number)).collect()
    }

    /// The entry that gives the same identity for the same facts, among those that `is_meant`.
    pub(super) fn similar(&self, entry: &Entry, is_meant: impl Fn(&Self, Slot) -> bool) -> Option<Slot> {
        let spiffe = self.id_number(&entry.spiffe_id)?;
        let parent = self.id_number(&entry.parent_id)?;
        let selectors = entry
            .selectors
            .iter()
            .map(|selector| self.selectors.find(selector.as_str()));
        let selectors: Vec<u32> = selectors.collect::<Option<_>>()?;
        let hash = self.hasher.hash_one((spiffe, parent, &selectors[..]));
        self.by_identity
            .find(hash, |slot| {
                let record = self.record(*slot);
                record.spiffe == spiffe
                    && record.parent == parent
                    && record.selectors() == selectors
                    && is_meant(self, *slot)
            })
            .copied()
    }

    fn selector(&self, number: u32) -> Selector {
        Selector::parse(self.selectors.text(number)).expect("the text was that of a checked selector")
    }

    fn record(&self, slot: Slot) -> &Record {
        self.records[slot as usize]
            .as_ref()
            .expect("slots in the tables and lists hold records")
    }

    fn record_mut(&mut self, slot: Slot) -> &mut Record {
        self.records[slot as usize]
            .as_mut()
            .expect("slots in the tables and lists hold records")
    }

    fn add(&mut self, record: Record) -> Slot {
        let hash = record.with_id(|id| self.hasher.hash_one(id));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.records[slot as usize] = Some(record);
                slot
            }
            None => {
                let slot =
                    Slot::try_from(self.records.len()).expect("memory ends before four billion entries");
                self.records.push(Some(record));
                slot
            }
        };
        let Self {
            by_id,
            records,
            hasher,
            ..
        } = self;
        by_id.insert_unique(hash, slot, |slot| {
            records[*slot as usize]
                .as_ref()
                .map_or(0, |record| record.with_id(|id| hasher.hash_one(id)))
        });
        slot
    }

    fn acquire_id(&mut self, path: &str) -> IdNumber {
        let number = self.ids.acquire(path);
        if self.places.len() <= number as usize {
            self.places.resize(number as usize + 1, NOWHERE);
        }
        number
    }

    fn link(&mut self, slot: Slot) {
        let (row, spiffe, parent) = {
            let record = self.record(slot);
            (record.row, record.spiffe, record.parent)
        };
        self.by_row.insert(row, slot);
        let Self {
            by_identity,
            records,
            hasher,
            ..
        } = self;
        let identity = |slot: &Slot| match &records[*slot as usize] {
            Some(record) => identity_hash(hasher, record),
            None => 0,
        };
        by_identity.insert_unique(identity(&slot), slot, identity);
        let first_child = std::mem::replace(&mut self.places[parent as usize].first_child, slot);
        let first_holder = std::mem::replace(&mut self.places[spiffe as usize].first_holder, slot);
        let record = self.record_mut(slot);
        record.next_child = first_child;
        record.next_holder = first_holder;
        if first_child != NONE {
            self.record_mut(first_child).previous_child = slot;
        }
        if first_holder != NONE {
            self.record_mut(first_holder).previous_holder = slot;
        }
        if parent == self.server {
            self.link_alias(slot);
        }
    }

    fn link_alias(&mut self, slot: Slot) {
        let count = |number: &u32| self.aliases.get(number).map_or(0, Vec::len);
        let rarest = self.record(slot).selectors().iter().copied().min_by_key(count);
        if let Some(rarest) = rarest {
            self.aliases.entry(rarest).or_default().push(slot);
        }
    }

    /// Takes a record out of all lists but that of ids, and gives its numbers back.
    fn unlink(&mut self, slot: Slot) {
        if self.is_alias(slot) {
            self.unlink_alias(slot);
        }
        let hash = identity_hash(&self.hasher, self.record(slot));
        if let Ok(found) = self.by_identity.find_entry(hash, |candidate| *candidate == slot) {
            found.remove();
        }
        let record = self.record(slot);
        let (row, spiffe, parent) = (record.row, record.spiffe, record.parent);
        let (previous_child, next_child) = (record.previous_child, record.next_child);
        let (previous_holder, next_holder) = (record.previous_holder, record.next_holder);
        let selectors = record.selectors().to_vec();
        self.by_row.remove(row);
        match previous_child {
            NONE => self.places[parent as usize].first_child = next_child,
            previous => self.record_mut(previous).next_child = next_child,
        }
        if next_child != NONE {
            self.record_mut(next_child).previous_child = previous_child;
        }
        match previous_holder {
            NONE => self.places[spiffe as usize].first_holder = next_holder,
            previous => self.record_mut(previous).next_holder = next_holder,
        }
        if next_holder != NONE {
            self.record_mut(next_holder).previous_holder = previous_holder;
        }
        self.ids.release(spiffe);
        self.ids.release(parent);
        for number in selectors {
            self.selectors.release(number);
        }
    }

    fn unlink_alias(&mut self, slot: Slot) {
        let numbers = self.record(slot).selectors().to_vec();
        for number in numbers {
            let Some(slots) = self.aliases.get_mut(&number) else {
                continue;
            };
            if let Some(position) = slots.iter().position(|candidate| *candidate == slot) {
                slots.swap_remove(position);
                if slots.is_empty() {
                    self.aliases.remove(&number);
                }
                return;
            }
        }
    }
}

fn identity_hash(hasher: &RandomState, record: &Record) -> u64 {
    hasher.hash_one((record.spiffe, record.parent, record.selectors()))
}

/// Follows a list from its first slot.
fn chain(first: Slot, next: impl Fn(Slot) -> Slot) -> impl Iterator<Item = Slot> {
    let start = (first != NONE).then_some(first);
    std::iter::successors(start, move |slot| match next(*slot) {
        NONE => None,
        slot => Some(slot),
    })
}

#[cfg(test)]
mod tests;
