//! What a set of selectors gets of a snapshot.

use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use finial_identity::bundle::Bundle;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use time::OffsetDateTime;

use crate::svids::{CachedEntry, IssuedSvid, Snapshot};

/// Facts about a workload.
pub(super) type Selectors = HashSet<Selector>;

/// What a service made of a view.
type Derived = Arc<dyn Any + Send + Sync>;

/// One caller's part of one snapshot.
#[derive(Debug)]
pub struct View {
    snapshot: Arc<Snapshot>,
    /// Ordered by entry id.
    entries_of_any_hint: Arc<[Arc<CachedEntry>]>,
    /// Those of them whose hints are unique; the same slice when all are.
    entries: Arc<[Arc<CachedEntry>]>,
    /// How many of the entries have an SVID.
    issued: usize,
    derived: Mutex<Vec<Derived>>,
}

impl View {
    pub(super) fn new(snapshot: Arc<Snapshot>, matching: Vec<Arc<CachedEntry>>) -> Self {
        let entries_of_any_hint: Arc<[_]> = matching.into();
        let entries = without_repeated_hints(&entries_of_any_hint);
        let issued = entries.iter().filter(|entry| svid_of(entry).is_some()).count();
        Self {
            snapshot,
            entries_of_any_hint,
            entries,
            issued,
            derived: Mutex::default(),
        }
    }

    /// The view without the identities of administrators and of downstream servers, which are given only to
    /// themselves.
    pub(super) fn handed_out(self: Arc<Self>) -> Arc<Self> {
        struct HandedOut(Arc<View>);
        let is_own = |entry: &Arc<CachedEntry>| entry.admin || entry.downstream;
        if !self.entries_of_any_hint.iter().any(is_own) {
            return self;
        }
        let without = |view: &Self| {
            let entries = view.entries_of_any_hint.iter();
            let others = entries.filter(|entry| !is_own(entry)).cloned().collect();
            HandedOut(Arc::new(Self::new(Arc::clone(&view.snapshot), others)))
        };
        Arc::clone(&self.derived(without).0)
    }

    /// The identities of the caller, ordered by entry id; of entries with the same hint only the oldest.
    pub fn entries(&self) -> &[Arc<CachedEntry>] {
        &self.entries
    }

    /// The identities of the caller, ordered by entry id, for services that know no hints.
    pub fn entries_of_any_hint(&self) -> &[Arc<CachedEntry>] {
        &self.entries_of_any_hint
    }

    /// Whether the server has confirmed the entries since this agent was started.
    pub fn is_synced(&self) -> bool {
        self.snapshot.synced_at.is_some()
    }

    /// Whether the caller has no identity.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many identities have an SVID, and how many have none yet.
    pub fn issued_and_missing(&self) -> (usize, usize) {
        (self.issued, self.entries.len() - self.issued)
    }

    /// Whether there is an identity whose first SVID may come at any moment.
    pub(super) fn awaits_svid(&self) -> bool {
        let mut entries = self.entries.iter();
        entries.any(|entry| svid_of(entry).is_none() && !entry.signing_failed)
    }

    /// Whether an SVID is among them that must not be handed out any more.
    pub(super) fn holds_expired(&self, now: OffsetDateTime) -> bool {
        let mut svids = self.entries_of_any_hint.iter().filter_map(|entry| svid_of(entry));
        svids.any(|svid| svid.usable_until() <= now)
    }

    /// Bundles by which the caller verifies others: the own one and those its identities federate with.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        if self.snapshot.own_bundle.trust_domain == *trust_domain {
            return Some(&self.snapshot.own_bundle);
        }
        let federated = self
            .entries
            .iter()
            .any(|entry| entry.federates_with.contains(trust_domain));
        self.snapshot.federated.get(trust_domain).filter(|_| federated)
    }

    /// Whether the agent belongs to this trust domain.
    pub fn is_own(&self, trust_domain: &TrustDomain) -> bool {
        self.snapshot.own_bundle.trust_domain == *trust_domain
    }

    /// The bundle of the agent's own trust domain.
    pub fn own_bundle(&self) -> &Arc<Bundle> {
        &self.snapshot.own_bundle
    }

    /// The identities that have an SVID, each with it, ordered by entry id.
    pub fn issued(&self) -> impl Iterator<Item = (&Arc<CachedEntry>, &Arc<IssuedSvid>)> {
        self.entries
            .iter()
            .filter_map(|entry| Some((entry, svid_of(entry)?)))
    }

    /// Bundles that the caller's identities federate with, by the name of the trust domain.
    pub fn federated(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        self.federated_with(&self.entries)
    }

    /// [`View::federated`] for services that know no hints.
    pub fn federated_with_any_hint(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        self.federated_with(&self.entries_of_any_hint)
    }

    fn federated_with(
        &self,
        entries: &[Arc<CachedEntry>],
    ) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> + use<'_> {
        let names: HashSet<TrustDomain> = entries
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .filter(|name| !self.is_own(name))
            .cloned()
            .collect();
        self.snapshot
            .federated
            .iter()
            .filter(move |(name, _bundle)| names.contains(*name))
    }

    /// The own bundle, then those that the caller's identities federate with.
    pub fn all_bundles(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        let own = &self.snapshot.own_bundle;
        std::iter::once((&own.trust_domain, own)).chain(self.federated())
    }

    /// What `make` makes of this view, kept for all who ask for the same type.
    pub fn derived<T: Any + Send + Sync>(&self, make: impl FnOnce(&Self) -> T) -> Arc<T> {
        let known = |derived: &[Derived]| {
            derived
                .iter()
                .find_map(|one| Arc::clone(one).downcast::<T>().ok())
        };
        if let Some(one) = known(&self.lock()) {
            return one;
        }
        let made = Arc::new(make(self));
        let mut derived = self.lock();
        known(&derived).unwrap_or_else(|| {
            derived.push(Arc::clone(&made) as Derived);
            made
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Derived>> {
        // Things are only ever added whole.
        self.derived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The SVID of an entry, if it is for the identity that the entry has now.
pub fn svid_of(entry: &CachedEntry) -> Option<&Arc<IssuedSvid>> {
    entry
        .svid
        .as_ref()
        .filter(|issued| *issued.svid.spiffe_id() == entry.spiffe_id)
}

/// Of the entries with the same hint the oldest stays, among equally old ones that of the lowest id.
fn without_repeated_hints(entries: &Arc<[Arc<CachedEntry>]>) -> Arc<[Arc<CachedEntry>]> {
    let mut owners: HashMap<&str, &Arc<CachedEntry>> = HashMap::new();
    let mut is_repeated = false;
    for entry in entries.iter().filter(|entry| !entry.hint.is_empty()) {
        let owner = owners.entry(&entry.hint).or_insert(entry);
        is_repeated |= !Arc::ptr_eq(owner, entry);
        if entry.created_at < owner.created_at {
            *owner = entry;
        }
    }
    if !is_repeated {
        return Arc::clone(entries);
    }
    let stays = |entry: &&Arc<CachedEntry>| {
        let owner = owners.get(entry.hint.as_str());
        owner.is_none_or(|owner| Arc::ptr_eq(owner, entry))
    };
    entries.iter().filter(stays).cloned().collect()
}
