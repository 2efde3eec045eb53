//! Which object is used when several declare the same entry: same SPIFFE ID, parent and set of selectors. A
//! stored entry takes precedence over all of them, and an entry of another cluster may.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::wire;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use uuid::Uuid;

use super::{IsTaken, NamespacedName, Pass, Settings, entry_id};
use crate::kubernetes::admission::Copied;
pub use crate::registry::Derived as DerivedEntry;

/// Whose declaration it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    /// A rule, for a pod.
    Rule(Arc<str>, NamespacedName),
    /// A static entry.
    Static(Arc<str>),
}

/// Who comes first: the older object, then one that is not being deleted, then the smaller uid.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    created_at: i64,
    is_deleted: bool,
    uid: String,
}

impl Rank {
    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            created_at: created_at(meta),
            is_deleted: meta.deletion_timestamp.is_some(),
            // An object from a file has none.
            uid: meta.uid.clone().or_else(|| meta.name.clone()).unwrap_or_default(),
        }
    }
}

/// When an object was created, in Unix seconds.
pub(super) fn created_at(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

/// A declared entry.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) key: Uuid,
    pub(super) owner: Owner,
    pub(super) rank: Arc<Rank>,
    pub(super) derived: DerivedEntry,
}

/// What comes from an object, to make an entry of.
pub(super) struct Declared<'a> {
    pub(super) spiffe_id: finial_identity::spiffe_id::SpiffeId,
    pub(super) parent_id: finial_identity::spiffe_id::SpiffeId,
    pub(super) selectors: Vec<finial_identity::selector::Selector>,
    pub(super) dns_names: Vec<String>,
    pub(super) store_svid: bool,
    pub(super) created_at: i64,
    pub(super) copied: &'a Copied,
}

impl Declared<'_> {
    /// The entry with its stable id and revision number.
    pub(super) fn entry(self, settings: &Settings) -> Result<(Uuid, Entry), String> {
        let mut selectors = self.selectors;
        selectors.sort_unstable();
        selectors.dedup();
        let mut name = format!("{}\n{}", self.spiffe_id, self.parent_id);
        for selector in &selectors {
            let text = selector.to_string();
            name.push_str(&format!("\n{} {text}", text.len()));
        }
        let key = Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes());
        let copied = self.copied;
        let parts = EntryParts {
            id: entry_id(&settings.cluster_name, key),
            spiffe_id: self.spiffe_id,
            parent_id: self.parent_id,
            selectors,
            x509_svid_ttl: copied.x509_svid_ttl,
            jwt_svid_ttl: copied.jwt_svid_ttl,
            federates_with: copied.federates_with.clone(),
            admin: copied.admin,
            downstream: copied.downstream,
            expires_at: 0,
            dns_names: self.dns_names,
            revision_number: 0,
            store_svid: self.store_svid,
            hint: copied.hint.clone(),
            created_at: self.created_at,
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        };
        let check = |parts| Entry::check(parts, &settings.trust_domain).map_err(|error| error.to_string());
        let entry = check(parts)?;
        // 31 bits, so that it stays positive wherever it goes.
        let digest = wire::entry_digest(&wire::entry_to_wire(&entry)) & 0x7fff_ffff;
        let mut parts = entry.into_parts();
        parts.revision_number = i64::try_from(digest).unwrap_or_default();
        Ok((key, check(parts)?))
    }
}

/// A declaration among those of the same entry.
#[derive(Debug)]
pub(super) struct Ranked<'k> {
    pub(super) entry: &'k Arc<Entry>,
    pub(super) counts: Counts<'k>,
}

/// Which of several declarations of the same entry counts.
#[derive(Debug)]
pub(super) enum Counts<'k> {
    /// This one.
    This,
    /// That of another object.
    Other(&'k str),
    /// A stored one, or one that another cluster declares.
    Elsewhere,
}

/// All declared entries by key.
#[derive(Debug, Default)]
pub(super) struct Keys {
    keys: HashMap<Uuid, Key>,
    unsettled: HashSet<Uuid>,
    /// Others may have taken keys, or let them go, since the last look.
    looks_again: bool,
    /// How many entries each rule has: there and masked.
    counts: BTreeMap<Arc<str>, (i64, i64)>,
    /// Static entries that lost.
    masked_statics: HashSet<Arc<str>>,
}

#[derive(Debug, Default)]
struct Key {
    /// The first one first.
    candidates: Vec<Candidate>,
    /// What counts of it: each candidate's owner and whether it was masked.
    counted: Vec<(Owner, bool)>,
    published: Option<DerivedEntry>,
    /// That of the first one, when it gives way to one of elsewhere.
    masked: Option<DerivedEntry>,
}

impl Keys {
    pub(super) fn declare(&mut self, candidate: Candidate) {
        let key = self.keys.entry(candidate.key).or_default();
        self.unsettled.insert(candidate.key);
        key.candidates.retain(|other| other.owner != candidate.owner);
        let at = key
            .candidates
            .partition_point(|other| other.rank < candidate.rank);
        key.candidates.insert(at, candidate);
    }

    pub(super) fn withdraw(&mut self, key: Uuid, owner: &Owner) {
        if let Some(found) = self.keys.get_mut(&key) {
            found.candidates.retain(|other| other.owner != *owner);
            self.unsettled.insert(key);
        }
    }

    pub(super) fn look_again(&mut self) {
        self.looks_again = true;
    }

    /// The keys that others took, or let go.
    fn turned(&self, is_taken: IsTaken<'_>) -> Vec<Uuid> {
        let turned = |key: &Key| {
            let first = key.candidates.first();
            first.is_some_and(|first| is_taken(&first.derived.entry) == key.published.is_some())
        };
        let keys = self.keys.iter().filter(|(_, key)| turned(key));
        keys.map(|(uuid, _)| *uuid).collect()
    }

    /// Decides every key that changed.
    pub(super) fn settle(&mut self, is_taken: IsTaken<'_>, pass: &mut Pass) {
        if std::mem::take(&mut self.looks_again) {
            self.unsettled.extend(self.turned(is_taken));
        }
        let unsettled = std::mem::take(&mut self.unsettled);
        // All that was counted goes before anything counts again: an owner may have moved from one key to another.
        for uuid in &unsettled {
            let counted = self
                .keys
                .get_mut(uuid)
                .map(|key| std::mem::take(&mut key.counted));
            for (owner, was_masked) in counted.into_iter().flatten() {
                self.count(&owner, was_masked, -1);
            }
        }
        for uuid in unsettled {
            let Some(mut key) = self.keys.remove(&uuid) else {
                continue;
            };
            let first = key.candidates.first().map(|first| first.derived.clone());
            let (winner, masked) = match first {
                Some(first) if is_taken(&first.entry) => (None, Some(first)),
                first => (first, None),
            };
            for (n, candidate) in key.candidates.iter().enumerate() {
                let is_masked = n > 0 || winner.is_none();
                key.counted.push((candidate.owner.clone(), is_masked));
            }
            for (owner, is_masked) in &key.counted {
                self.count(owner, *is_masked, 1);
            }
            if winner != key.published {
                match (&winner, &key.published) {
                    (Some(winner), _) => pass.upserts.push(winner.clone()),
                    (None, Some(before)) => pass.removals.push(before.entry.id.clone()),
                    (None, None) => {}
                }
                key.published = winner;
            }
            if masked != key.masked {
                match (&masked, &key.masked) {
                    (Some(masked), _) => pass.masked.push(masked.clone()),
                    // What is published is masked no more.
                    (None, Some(before)) if key.published.is_none() => {
                        pass.unmasked.push(before.entry.id.clone());
                    }
                    (None, _) => {}
                }
                key.masked = masked;
            }
            if !key.candidates.is_empty() {
                self.keys.insert(uuid, key);
            }
        }
        for entries in [&mut pass.upserts, &mut pass.masked] {
            entries.sort_unstable_by(|one, other| one.entry.id.cmp(&other.entry.id));
        }
        for ids in [&mut pass.removals, &mut pass.unmasked] {
            ids.sort_unstable();
        }
    }

    /// What an owner declares under a key, and whose entry with it counts: that of the first object, or one of elsewhere.
    pub(super) fn ranked(&self, key: &Uuid, owner: &Owner) -> Option<Ranked<'_>> {
        let key = self.keys.get(key)?;
        let at = key
            .candidates
            .iter()
            .position(|candidate| candidate.owner == *owner)?;
        let first = key.candidates.first()?;
        Some(Ranked {
            entry: &key.candidates[at].derived.entry,
            counts: match (&key.published, at) {
                (None, _) => Counts::Elsewhere,
                (Some(_), 0) => Counts::This,
                (Some(_), _) => Counts::Other(&first.derived.origin),
            },
        })
    }

    pub(super) fn published(&self) -> impl Iterator<Item = &DerivedEntry> {
        self.keys.values().filter_map(|key| key.published.as_ref())
    }

    pub(super) fn masked(&self) -> impl Iterator<Item = &DerivedEntry> {
        self.keys.values().filter_map(|key| key.masked.as_ref())
    }

    /// How many entries of a rule are there, and how many are masked.
    pub(super) fn counts(&self, rule: &str) -> (i64, i64) {
        self.counts.get(rule).copied().unwrap_or_default()
    }

    pub(super) fn is_static_masked(&self, name: &str) -> bool {
        self.masked_statics.contains(name)
    }

    fn count(&mut self, owner: &Owner, is_masked: bool, by: i64) {
        match owner {
            Owner::Rule(rule, _) => {
                let counts = self.counts.entry(rule.clone()).or_default();
                if is_masked {
                    counts.1 += by;
                } else {
                    counts.0 += by;
                }
                if *counts == (0, 0) {
                    self.counts.remove(rule);
                }
            }
            Owner::Static(name) if is_masked && by > 0 => {
                self.masked_statics.insert(name.clone());
            }
            Owner::Static(name) => {
                self.masked_statics.remove(name);
            }
        }
    }
}
