//! What the sync task knows, from which each snapshot is made. One owner, no locks, no network.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use time::{Duration, OffsetDateTime};

use super::cache::{CachedEntry, IssuedSvid, Snapshot};
use super::keys::SvidRequest;
use super::renewal::{self, HeldTimes, Plan, Standing};
use crate::upstream::{AuthorizedEntry, BundleChanges, EntryStamp};

/// Entries with their SVIDs, and bundles.
#[derive(Debug)]
pub(super) struct Model {
    records: BTreeMap<String, Record>,
    own_bundle: Arc<Bundle>,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    synced_at: Option<OffsetDateTime>,
    /// Counts wants, so that they can be ordered.
    wants: u64,
    /// Something that snapshots show has changed since the last one.
    changed: bool,
}

/// Tokens that must not be handed out any more.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Forget {
    pub(super) entries: Vec<String>,
    pub(super) jwt_key_ids: HashSet<String>,
}

#[derive(Debug)]
struct Record {
    entry: AuthorizedEntry,
    cached: Arc<CachedEntry>,
    held: Option<Held>,
    subscribers: usize,
    last_wanted: u64,
    in_flight: bool,
    retry: Retry,
    /// The server was asked for a snapshot because it did not know this revision of the entry.
    resynced: bool,
}

#[derive(Debug)]
struct Held {
    times: HeldTimes,
    stamp: EntryStamp,
    /// Signed by an authority that was tainted or revoked since.
    distrusted: bool,
}

#[derive(Debug, Default)]
struct Retry {
    failures: u32,
    at: Option<OffsetDateTime>,
}

impl Model {
    pub(super) fn new(own_bundle: Arc<Bundle>) -> Self {
        Self {
            records: BTreeMap::new(),
            own_bundle,
            federated: BTreeMap::new(),
            synced_at: None,
            wants: 0,
            changed: false,
        }
    }

    /// Takes up changed entries. An entry that only changed around its identity keeps its SVID until there is
    /// a new one.
    pub(super) fn apply_entries(
        &mut self,
        upserts: Vec<AuthorizedEntry>,
        removals: &[String],
        subscribed: &[Arc<HashSet<Selector>>],
    ) -> Forget {
        let mut forget = Forget::default();
        for entry in upserts {
            if let Some(record) = self.records.get_mut(&entry.id) {
                if record.entry == entry {
                    continue;
                }
                forget.entries.push(entry.id.clone());
                record.replace(entry, subscribed);
            } else {
                let record = Record::new(entry, subscribed);
                self.records.insert(record.entry.id.clone(), record);
            }
            self.changed = true;
        }
        for id in removals {
            if self.records.remove(id).is_some() {
                forget.entries.push(id.clone());
                self.changed = true;
            }
        }
        forget
    }

    /// Takes up the own bundle. SVIDs that newly tainted or revoked authorities signed become outdated.
    pub(super) fn set_own_bundle(&mut self, bundle: Arc<Bundle>) -> Forget {
        if *self.own_bundle == *bundle {
            return Forget::default();
        }
        let distrusted = newly_distrusted(&self.own_bundle, &bundle);
        for record in self.records.values_mut() {
            record.distrust(&distrusted.x509_key_ids);
        }
        self.own_bundle = bundle;
        self.changed = true;
        Forget {
            entries: Vec::new(),
            jwt_key_ids: distrusted.jwt_key_ids,
        }
    }

    /// Takes up the bundles of foreign trust domains.
    pub(super) fn apply_federated(&mut self, changes: BundleChanges) {
        let before = self.federated.clone();
        if changes.complete {
            let named: HashSet<_> = changes
                .federated
                .iter()
                .map(|bundle| &bundle.trust_domain)
                .chain(&changes.kept)
                .collect();
            self.federated.retain(|name, _bundle| named.contains(name));
        }
        for bundle in changes.federated {
            let same = self
                .federated
                .get(&bundle.trust_domain)
                .is_some_and(|held| **held == bundle);
            if !same {
                self.federated
                    .insert(bundle.trust_domain.clone(), Arc::new(bundle));
            }
        }
        for name in &changes.removed {
            self.federated.remove(name);
        }
        self.changed |= before != self.federated;
    }

    /// The server confirmed the entries at `at`. The first time is worth a snapshot of its own.
    pub(super) fn confirmed(&mut self, at: OffsetDateTime) {
        self.changed |= self.synced_at.is_none();
        self.synced_at = Some(at);
    }

    pub(super) fn subscribed(&mut self, selectors: &HashSet<Selector>) {
        self.count(selectors, 1);
    }

    pub(super) fn unsubscribed(&mut self, selectors: &HashSet<Selector>) {
        self.count(selectors, -1);
    }

    /// What to do now.
    pub(super) fn plan(&self, now: OffsetDateTime, limit: usize) -> Plan {
        let standings: Vec<_> = self
            .records
            .values()
            .filter(|record| !record.entry.store_svid)
            .map(Record::standing)
            .collect();
        renewal::plan(&standings, now, limit)
    }

    /// Drops SVIDs that expired, or that are too many.
    pub(super) fn drop_svids(&mut self, ids: &[String]) {
        for id in ids {
            if let Some(record) = self.records.get_mut(id)
                && record.held.take().is_some()
            {
                record.show(None);
                self.changed = true;
            }
        }
    }

    /// Marks entries as being signed and returns what to ask for.
    pub(super) fn start_signing(&mut self, ids: &[String]) -> Vec<SvidRequest> {
        let mut wanted = Vec::with_capacity(ids.len());
        for id in ids {
            if let Some(record) = self.records.get_mut(id) {
                record.in_flight = true;
                wanted.push(SvidRequest {
                    entry_id: id.clone(),
                    spiffe_id: record.entry.spiffe_id.clone(),
                    stamp: record.stamp(),
                });
            }
        }
        wanted
    }

    /// A signature is no longer under way, whatever came of it.
    pub(super) fn stop_signing(&mut self, id: &str) {
        if let Some(record) = self.records.get_mut(id) {
            record.in_flight = false;
        }
    }

    /// Takes up a new SVID, due at half of its life give or take as `drawn` says. Dropped when the entry is gone
    /// or has become another identity meanwhile.
    pub(super) fn issued(&mut self, wanted: &SvidRequest, svid: IssuedSvid, drawn: f64) {
        let Some(record) = self.records.get_mut(&wanted.entry_id) else {
            return;
        };
        if record.entry.spiffe_id != wanted.spiffe_id {
            return;
        }
        let leaf = svid.svid.leaf();
        let remaining = crate::node::x509_remaining_at_renewal(leaf, drawn);
        record.held = Some(Held {
            times: HeldTimes {
                renew_at: leaf.not_after() - remaining,
                expires_at: leaf.not_after(),
            },
            stamp: wanted.stamp,
            distrusted: false,
        });
        record.retry = Retry::default();
        record.resynced = false;
        record.show(Some(Arc::new(svid)));
        self.changed = true;
    }

    /// An entry could not be signed; it is tried again, later after each failure. Returns how often it failed.
    pub(super) fn sign_failed(&mut self, id: &str, now: OffsetDateTime) -> u32 {
        let Some(record) = self.records.get_mut(id) else {
            return 0;
        };
        record.retry.failures = record.retry.failures.saturating_add(1);
        let doubled = RETRY_FIRST * 2_i32.saturating_pow(record.retry.failures.min(10) - 1);
        record.retry.at = Some(now + doubled.min(RETRY_LIMIT));
        record.retry.failures
    }

    /// Whether the server's not knowing an entry calls for a snapshot: once for each revision of the entry.
    pub(super) fn needs_resync(&mut self, id: &str) -> bool {
        match self.records.get_mut(id) {
            Some(record) if !record.resynced => {
                record.resynced = true;
                true
            }
            _ => false,
        }
    }

    /// Entries that failed are due at once, as when the server is back.
    pub(super) fn retry_now(&mut self) {
        for record in self.records.values_mut() {
            record.retry.at = None;
        }
    }

    /// The next snapshot, if it would differ from the last.
    pub(super) fn snapshot(&mut self) -> Option<Snapshot> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        Some(Snapshot {
            entries: self
                .records
                .values()
                .map(|record| Arc::clone(&record.cached))
                .collect(),
            own_bundle: Arc::clone(&self.own_bundle),
            federated: self.federated.clone(),
            synced_at: self.synced_at,
            version: 0,
        })
    }

    fn count(&mut self, selectors: &HashSet<Selector>, by: isize) {
        self.wants = self.wants.wrapping_add(1);
        for record in self.records.values_mut() {
            if record.cached.matches(selectors) {
                record.subscribers = record.subscribers.saturating_add_signed(by);
                record.last_wanted = self.wants;
            }
        }
    }
}

impl Record {
    fn new(entry: AuthorizedEntry, subscribed: &[Arc<HashSet<Selector>>]) -> Self {
        let cached = Arc::new(show(&entry, None));
        let subscribers = count_subscribers(&cached, subscribed);
        Self {
            entry,
            cached,
            held: None,
            subscribers,
            last_wanted: 0,
            in_flight: false,
            retry: Retry::default(),
            resynced: false,
        }
    }

    fn replace(&mut self, entry: AuthorizedEntry, subscribed: &[Arc<HashSet<Selector>>]) {
        if self.entry.spiffe_id != entry.spiffe_id {
            self.held = None;
        }
        self.entry = entry;
        self.retry = Retry::default();
        self.resynced = false;
        let svid = self.cached.svid.clone().filter(|_| self.held.is_some());
        self.show(svid);
        self.subscribers = count_subscribers(&self.cached, subscribed);
    }

    fn show(&mut self, svid: Option<Arc<IssuedSvid>>) {
        self.cached = Arc::new(show(&self.entry, svid));
    }

    fn distrust(&mut self, key_ids: &[Vec<u8>]) {
        let (Some(held), Some(issued)) = (&mut self.held, &self.cached.svid) else {
            return;
        };
        let signed_by = |id: &Vec<u8>| {
            let mut links = issued.svid.chain().iter();
            links.any(|link| link.authority_key_id() == Some(id.as_slice()))
        };
        held.distrusted |= key_ids.iter().any(signed_by);
    }

    fn standing(&self) -> Standing<'_> {
        let outdated = |held: &Held| held.distrusted || self.stamp().differs_from(&held.stamp);
        Standing {
            entry_id: &self.entry.id,
            wanted: self.subscribers > 0,
            prefetch: !self.entry.disable_x509_svid_prefetch,
            held: self.held.as_ref().map(|held| held.times),
            outdated: self.held.as_ref().is_some_and(outdated),
            in_flight: self.in_flight,
            retry_at: self.retry.at,
            last_wanted: self.last_wanted,
        }
    }

    fn stamp(&self) -> EntryStamp {
        EntryStamp {
            revision_number: self.entry.revision_number,
            created_at: self.entry.created_at,
        }
    }
}

/// The subject key ids and `kid`s that no longer count.
struct Distrusted {
    x509_key_ids: Vec<Vec<u8>>,
    jwt_key_ids: HashSet<String>,
}

/// What was trusted in `before` and is tainted or gone in `after`.
fn newly_distrusted(before: &Bundle, after: &Bundle) -> Distrusted {
    let x509 = before.x509_authorities.iter().filter(|held| !held.tainted);
    let jwt = before.jwt_authorities.iter().filter(|held| !held.tainted);
    Distrusted {
        x509_key_ids: x509
            .filter(|held| {
                let mut next = after.x509_authorities.iter();
                !next.any(|other| other.certificate == held.certificate && !other.tainted)
            })
            .filter_map(|held| Some(held.certificate.subject_key_id()?.to_vec()))
            .collect(),
        jwt_key_ids: jwt
            .filter(|held| {
                let mut next = after.jwt_authorities.iter();
                !next.any(|other| other.key_id == held.key_id && !other.tainted)
            })
            .map(|held| held.key_id.clone())
            .collect(),
    }
}

fn show(entry: &AuthorizedEntry, svid: Option<Arc<IssuedSvid>>) -> CachedEntry {
    CachedEntry {
        entry_id: entry.id.clone(),
        spiffe_id: entry.spiffe_id.clone(),
        selectors: entry.selectors.clone(),
        hint: entry.hint.clone(),
        created_at: entry.created_at,
        federates_with: entry.federates_with.clone(),
        admin: entry.admin,
        downstream: entry.downstream,
        store_svid: entry.store_svid,
        jwt_svid_include_jti: entry.jwt_svid_include_jti,
        svid,
    }
}

fn count_subscribers(entry: &CachedEntry, subscribed: &[Arc<HashSet<Selector>>]) -> usize {
    subscribed
        .iter()
        .filter(|selectors| entry.matches(selectors))
        .count()
}

/// The identity an entry stands for, as tests name it.
#[cfg(test)]
pub(super) fn identity(path: &str) -> finial_identity::spiffe_id::SpiffeId {
    finial_identity::spiffe_id::SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

const RETRY_FIRST: Duration = Duration::milliseconds(500);
const RETRY_LIMIT: Duration = Duration::seconds(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pki::Authority;
    use finial_identity::bundle::X509Authority;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

    fn selectors(values: &[&str]) -> Arc<HashSet<Selector>> {
        Arc::new(
            values
                .iter()
                .map(|value| Selector::new("unix", value).unwrap())
                .collect(),
        )
    }

    fn entry(id: &str, values: &[&str]) -> AuthorizedEntry {
        let mut sorted: Vec<_> = selectors(values).iter().cloned().collect();
        sorted.sort();
        AuthorizedEntry {
            id: id.to_owned(),
            spiffe_id: identity(&format!("/{id}")),
            selectors: sorted,
            federates_with: Vec::new(),
            admin: false,
            downstream: false,
            revision_number: 0,
            store_svid: false,
            hint: String::new(),
            created_at: 1,
            disable_x509_svid_prefetch: false,
            jwt_svid_include_jti: false,
        }
    }

    fn model(entries: Vec<AuthorizedEntry>) -> Model {
        let bundle = Bundle::new(identity("/x").trust_domain().clone());
        let mut model = Model::new(Arc::new(bundle));
        model.apply_entries(entries, &[], &[]);
        model
    }

    fn issue(model: &mut Model, authority: &Authority, id: &str) {
        let wanted = model.start_signing(&[id.to_owned()]).pop().unwrap();
        model.stop_signing(id);
        let svid = authority.svid(wanted.spiffe_id.path());
        model.issued(&wanted, IssuedSvid::new(svid), 0.5);
    }

    fn now() -> OffsetDateTime {
        Authority::new("x.org").certificate().not_before() + Duration::days(1)
    }

    #[test]
    fn entries_are_sorted_by_id_and_unchanged_ones_are_shared() {
        let mut model = model(vec![entry("b", &["uid:2"]), entry("a", &["uid:1"])]);
        let first = model.snapshot().unwrap();
        let ids: Vec<_> = first
            .entries
            .iter()
            .map(|entry| entry.entry_id.as_str())
            .collect();
        assert_eq!(ids, ["a", "b"]);
        assert!(model.snapshot().is_none());
        let mut changed = entry("b", &["uid:2"]);
        changed.hint = "internal".to_owned();
        model.apply_entries(vec![entry("a", &["uid:1"]), changed], &[], &[]);
        let second = model.snapshot().unwrap();
        assert!(Arc::ptr_eq(&first.entries[0], &second.entries[0]));
        assert!(!Arc::ptr_eq(&first.entries[1], &second.entries[1]));
        assert_eq!(second.entry("b").unwrap().hint, "internal");
    }

    #[test]
    fn a_workload_gets_the_entries_whose_selectors_it_has_all() {
        let mut model = model(vec![
            entry("a", &["uid:1", "gid:1"]),
            entry("b", &["uid:1"]),
            entry("c", &["uid:2"]),
            AuthorizedEntry {
                store_svid: true,
                ..entry("d", &["uid:1"])
            },
        ]);
        let snapshot = model.snapshot().unwrap();
        let ids = |values: &[&str]| -> Vec<String> {
            let matching = snapshot.matching(&selectors(values));
            matching.iter().map(|entry| entry.entry_id.clone()).collect()
        };
        assert_eq!(ids(&["uid:1", "gid:1", "path:/x"]), ["a", "b"]);
        assert_eq!(ids(&["uid:1"]), ["b"]);
        assert!(ids(&["gid:1"]).is_empty());
    }

    #[test]
    fn a_new_revision_keeps_the_svid_until_the_next_and_another_identity_does_not() {
        let authority = Authority::new("example.org");
        let mut model = model(vec![entry("a", &["uid:1"])]);
        issue(&mut model, &authority, "a");
        assert!(model.plan(now(), 10).due.is_empty());
        model.apply_entries(
            vec![AuthorizedEntry {
                revision_number: 1,
                ..entry("a", &["uid:1"])
            }],
            &[],
            &[],
        );
        assert_eq!(model.plan(now(), 10).due, ["a"]);
        assert!(model.snapshot().unwrap().entries[0].svid.is_some());
        issue(&mut model, &authority, "a");
        assert!(model.plan(now(), 10).due.is_empty());
        model.apply_entries(
            vec![AuthorizedEntry {
                created_at: 2,
                revision_number: 1,
                ..entry("a", &["uid:1"])
            }],
            &[],
            &[],
        );
        assert_eq!(model.plan(now(), 10).due, ["a"]);
        let other = AuthorizedEntry {
            spiffe_id: identity("/other"),
            ..entry("a", &["uid:1"])
        };
        model.apply_entries(vec![other], &[], &[]);
        assert!(model.snapshot().unwrap().entries[0].svid.is_none());
    }

    #[test]
    fn an_svid_signed_for_what_the_entry_was_does_not_count_for_what_it_is() {
        let authority = Authority::new("example.org");
        let mut model = model(vec![entry("a", &["uid:1"])]);
        let wanted = model.start_signing(&["a".to_owned()]).pop().unwrap();
        model.apply_entries(
            vec![AuthorizedEntry {
                revision_number: 1,
                ..entry("a", &["uid:1"])
            }],
            &[],
            &[],
        );
        model.stop_signing("a");
        model.issued(&wanted, IssuedSvid::new(authority.svid("/a")), 0.5);
        assert_eq!(model.plan(now(), 10).due, ["a"]);
        let other = AuthorizedEntry {
            spiffe_id: identity("/other"),
            ..entry("a", &["uid:1"])
        };
        model.apply_entries(vec![other], &[], &[]);
        model.issued(&wanted, IssuedSvid::new(authority.svid("/a")), 0.5);
        assert!(model.snapshot().unwrap().entries[0].svid.is_none());
    }

    #[test]
    fn subscriptions_are_counted_also_when_the_selectors_of_an_entry_change() {
        let mut model = model(vec![AuthorizedEntry {
            disable_x509_svid_prefetch: true,
            ..entry("a", &["uid:1"])
        }]);
        let (one, two) = (selectors(&["uid:1"]), selectors(&["uid:2"]));
        assert!(model.plan(NOW, 10).due.is_empty());
        model.subscribed(&one);
        assert_eq!(model.plan(NOW, 10).due, ["a"]);
        let moved = AuthorizedEntry {
            disable_x509_svid_prefetch: true,
            ..entry("a", &["uid:2"])
        };
        model.apply_entries(vec![moved], &[], &[Arc::clone(&one)]);
        assert!(model.plan(NOW, 10).due.is_empty());
        model.subscribed(&two);
        assert_eq!(model.plan(NOW, 10).due, ["a"]);
        model.unsubscribed(&one);
        assert_eq!(model.plan(NOW, 10).due, ["a"]);
        model.unsubscribed(&two);
        assert!(model.plan(NOW, 10).due.is_empty());
    }

    #[test]
    fn svids_of_a_tainted_or_revoked_authority_are_signed_anew_once() {
        let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
        let both = |tainted: bool| {
            let mut bundle = new.bundle();
            bundle.x509_authorities.push(X509Authority {
                tainted,
                ..X509Authority::new(old.certificate())
            });
            Arc::new(bundle)
        };
        let mut model = model(vec![entry("a", &["uid:1"]), entry("b", &["uid:1"])]);
        model.set_own_bundle(both(false));
        issue(&mut model, &old, "a");
        issue(&mut model, &new, "b");
        assert!(model.plan(now(), 10).due.is_empty());
        model.set_own_bundle(both(true));
        assert_eq!(model.plan(now(), 10).due, ["a"]);
        issue(&mut model, &old, "a");
        assert!(model.plan(now(), 10).due.is_empty());
        model.set_own_bundle(Arc::new(new.bundle()));
        assert!(model.plan(now(), 10).due.is_empty());
        model.set_own_bundle(Arc::new(old.bundle()));
        assert_eq!(model.plan(now(), 10).due, ["b"]);
    }

    #[test]
    fn a_failed_entry_waits_longer_each_time_and_not_at_all_when_the_server_is_back() {
        let mut model = model(vec![entry("a", &["uid:1"])]);
        for (failure, millis) in [(1, 500), (2, 1000), (3, 2000), (4, 4000), (5, 5000), (6, 5000)] {
            assert_eq!(model.sign_failed("a", NOW), failure);
            let plan = model.plan(NOW, 10);
            assert!(plan.due.is_empty());
            assert_eq!(plan.next, Some(NOW + Duration::milliseconds(millis)));
        }
        model.retry_now();
        assert_eq!(model.plan(NOW, 10).due, ["a"]);
    }

    #[test]
    fn one_snapshot_is_asked_for_per_revision_that_the_server_does_not_know() {
        let mut model = model(vec![entry("a", &["uid:1"])]);
        assert!(model.needs_resync("a"));
        assert!(!model.needs_resync("a"));
        assert!(!model.needs_resync("gone"));
        model.apply_entries(
            vec![AuthorizedEntry {
                revision_number: 1,
                ..entry("a", &["uid:1"])
            }],
            &[],
            &[],
        );
        assert!(model.needs_resync("a"));
    }

    #[test]
    fn a_complete_list_of_foreign_bundles_replaces_the_others() {
        let mut model = model(vec![]);
        let changes = |names: &[&str], complete| BundleChanges {
            federated: names.iter().map(|name| Authority::new(name).bundle()).collect(),
            complete,
            ..BundleChanges::default()
        };
        let held = |model: &mut Model| -> Vec<String> {
            let snapshot = model.snapshot().unwrap();
            snapshot.federated.keys().map(ToString::to_string).collect()
        };
        model.apply_federated(changes(&["a.org", "b.org"], true));
        assert_eq!(held(&mut model), ["a.org", "b.org"]);
        model.apply_federated(changes(&["c.org"], false));
        assert_eq!(held(&mut model), ["a.org", "b.org", "c.org"]);
        let a = BundleChanges {
            kept: vec![TrustDomain::parse("b.org").unwrap()],
            ..changes(&["a.org"], true)
        };
        model.apply_federated(a);
        assert_eq!(held(&mut model), ["a.org", "b.org"]);
        model.apply_federated(changes(&["a.org"], true));
        assert_eq!(held(&mut model), ["a.org"]);
        model.apply_federated(BundleChanges {
            removed: vec![TrustDomain::parse("a.org").unwrap()],
            ..Default::default()
        });
        assert!(held(&mut model).is_empty());
    }

    #[test]
    fn tokens_of_changed_and_removed_entries_are_to_be_forgotten() {
        let mut model = model(vec![entry("a", &["uid:1"]), entry("b", &["uid:1"])]);
        let changed = AuthorizedEntry {
            revision_number: 9,
            ..entry("a", &["uid:1"])
        };
        let forget = model.apply_entries(vec![changed], &["b".to_owned(), "gone".to_owned()], &[]);
        assert_eq!(forget.entries, ["a", "b"]);
    }
}
