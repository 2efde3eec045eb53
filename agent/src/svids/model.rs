//! The state of the sync task, from which each snapshot is made. One owner, no locks, no network.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use finial_identity::bundle::Bundle;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::cache::{CachedEntry, IssuedSvid, Snapshot};
use super::counters::CacheCounters;
use super::entries::Entries;
use super::failing::{Failing, Failure};
use super::federating::Federating;
use super::keys::SvidRequest;
use super::record::{Held, Record};
use super::renewal::{HeldTimes, Schedule};
use super::subscriptions::News;
use super::trust::{Distrust, Forget, Step, Worth};
#[cfg(test)]
use super::visits;
use crate::node::{Moment, RenewalTime};
use crate::telemetry::metrics;
use crate::upstream::{AuthorizedEntry, BundleChanges};

/// Entries with their SVIDs, and bundles.
#[derive(Debug)]
pub(super) struct Model {
    records: HashMap<Arc<str>, Record>,
    /// What snapshots show of the records.
    entries: Entries,
    schedule: Schedule,
    /// Entries by the trust domains they federate with.
    federating: Federating,
    /// Entries whose last try failed.
    failing: Failing,
    own_bundle: Arc<Bundle>,
    distrust: Distrust,
    federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    synced_at: Option<OffsetDateTime>,
    /// Counts wants, so that they can be ordered.
    wants: u64,
    /// How many X509-SVIDs are held.
    held: usize,
    /// Something that snapshots show has changed since the last one.
    changed: bool,
    news: News,
    counters: Arc<CacheCounters>,
}

/// Whether somebody wants an entry's SVID now.
type IsWanted<'a> = &'a dyn Fn(&CachedEntry) -> bool;

impl Model {
    /// Holds nothing yet but a bundle; at most `limit` SVIDs that nobody wants.
    pub(super) fn new(
        own_bundle: Arc<Bundle>,
        limit: usize,
        counters: Arc<CacheCounters>,
        now: Moment,
    ) -> Self {
        Self {
            records: HashMap::new(),
            entries: Entries::default(),
            schedule: Schedule::new(limit, now),
            federating: Federating::default(),
            failing: Failing::default(),
            own_bundle,
            distrust: Distrust::default(),
            federated: BTreeMap::new(),
            synced_at: None,
            wants: 0,
            held: 0,
            changed: false,
            news: News::default(),
            counters,
        }
    }

    /// Takes up changed entries. An entry that only changed around its identity keeps its SVID until there is
    /// a new one.
    pub(super) fn apply_entries(
        &mut self,
        upserts: Vec<AuthorizedEntry>,
        removals: &[String],
        is_wanted: IsWanted<'_>,
    ) -> Forget {
        let mut forget = Forget::default();
        for entry in upserts {
            if let Some(id) = self.upsert(entry, is_wanted) {
                forget.entries.insert(id);
            }
        }
        for id in removals {
            if self.remove(id) {
                forget.entries.insert(id.clone());
            }
        }
        forget
    }

    /// Takes up the own bundle. What newly revoked authorities signed is dropped; what newly tainted ones signed
    /// is replaced from now on, a part at a time, the SVIDs that are wanted first.
    pub(super) fn set_own_bundle(&mut self, bundle: Arc<Bundle>, now: Instant) -> Forget {
        if *self.own_bundle == *bundle {
            return Forget::default();
        }
        let step = self.distrust.change(&self.own_bundle, &bundle);
        if step.concerns_x509() {
            self.replace_distrusted(&step, now);
        }
        self.own_bundle = bundle;
        self.changed = true;
        self.news.everyone = true;
        Forget {
            entries: HashSet::new(),
            jwt_key_ids: step.jwt_key_ids,
            wit_key_ids: step.wit_key_ids,
        }
    }

    /// Takes up the bundles of foreign trust domains.
    pub(super) fn apply_federated(&mut self, changes: BundleChanges) {
        let mut removed: HashSet<TrustDomain> = changes.removed.into_iter().collect();
        if changes.complete {
            let named: HashSet<_> = changes
                .federated
                .iter()
                .map(|bundle| &bundle.trust_domain)
                .chain(&changes.kept)
                .collect();
            let unnamed = self.federated.keys().filter(|name| !named.contains(name));
            removed.extend(unnamed.cloned());
        }
        for bundle in changes.federated {
            let name = bundle.trust_domain.clone();
            let held = self.federated.get(&name);
            if !removed.contains(&name) && held.is_none_or(|held| **held != bundle) {
                self.federated.insert(name.clone(), Arc::new(bundle));
                self.bundle_changed(&name);
            }
        }
        for name in removed {
            if self.federated.remove(&name).is_some() {
                self.bundle_changed(&name);
            }
        }
    }

    /// The server confirmed the entries at `at`. The first time is worth a snapshot of its own.
    pub(super) fn confirmed(&mut self, at: OffsetDateTime) {
        if self.synced_at.replace(at).is_none() {
            self.changed = true;
            self.news.everyone = true;
        }
    }

    /// Somebody with these selectors began or ceased to want what matches.
    pub(super) fn touched(&mut self, selectors: &HashSet<Selector>, is_wanted: IsWanted<'_>) {
        self.wants += 1;
        let matching = self.entries.matching(selectors);
        let ids: Vec<Arc<str>> = matching
            .iter()
            .filter_map(|entry| self.key(&entry.entry_id))
            .collect();
        for id in ids {
            if let Some(record) = self.records.get_mut(&id) {
                record.is_wanted = is_wanted(&record.cached);
                record.last_wanted = self.wants;
                self.file(&id);
            }
        }
    }

    /// Takes up the time: drops SVIDs that expired or are too many.
    pub(super) fn advance(&mut self, now: Moment) {
        loop {
            let drop = self.schedule.advance(now);
            if drop.is_empty() {
                return;
            }
            for id in drop {
                let record = self.records.get(&id);
                let Some(held) = record.and_then(|record| record.held.as_ref()) else {
                    continue;
                };
                if held.times.expires_at <= now.clock {
                    self.counters.x509_expired.add(1);
                } else {
                    self.counters.x509_evicted.add(1);
                }
                self.drop_svid(&id);
            }
        }
    }

    /// How many entries are to be signed now.
    pub(super) fn ready(&self) -> usize {
        self.schedule.ready_len()
    }

    /// What the clock shows when something becomes due or expires.
    pub(super) fn next(&self) -> Option<OffsetDateTime> {
        self.schedule.next()
    }

    /// Marks the most urgent entries as being signed and returns what to ask for.
    pub(super) fn start_signing(&mut self, most: usize) -> Vec<SvidRequest> {
        let ids: Vec<_> = self.schedule.ready().take(most).map(Arc::clone).collect();
        let mut requests = Vec::with_capacity(ids.len());
        let (mut renewals, mut outdated) = (0_u32, 0_u32);
        for id in ids {
            if let Some(record) = self.records.get_mut(&id) {
                record.is_in_flight = true;
                renewals += u32::from(record.held.is_some());
                outdated += u32::from(record.is_outdated());
                requests.push(record.request());
                self.file(&id);
            }
        }
        if renewals > 0 {
            metrics().sample("cache_manager_expiring_svids", &[], f64::from(renewals));
        }
        if outdated > 0 {
            metrics().sample("cache_manager_outdated_svids", &[], f64::from(outdated));
        }
        requests
    }

    /// A signature is no longer under way, whatever came of it.
    pub(super) fn stop_signing(&mut self, id: &str) {
        if let Some(id) = self.key(id)
            && let Some(record) = self.records.get_mut(&id)
        {
            record.is_in_flight = false;
            self.file(&id);
        }
    }

    /// Takes up a new SVID and when it is to be renewed. Passed over when the entry is gone or has become another
    /// identity meanwhile.
    ///
    /// # Errors
    /// When the SVID is of no use.
    pub(super) fn issued(
        &mut self,
        request: &SvidRequest,
        svid: IssuedSvid,
        renewal: RenewalTime,
        now: Instant,
    ) -> Result<(), &'static str> {
        let Some(id) = self.key(&request.entry_id) else {
            return Ok(());
        };
        let Some(record) = self.records.get_mut(&id) else {
            return Ok(());
        };
        if record.entry.spiffe_id != request.spiffe_id {
            return Ok(());
        }
        let replace_at = match self.distrust.judge(&svid.svid) {
            Worth::Good => None,
            Worth::ToReplace => Some(now + STILL_TAINTED),
            Worth::Nothing => return Err("SVID is signed by a revoked authority"),
        };
        let times = HeldTimes {
            renewal,
            expires_at: svid.usable_until(),
        };
        let held = Held {
            times,
            stamp: request.stamp,
            replace_at,
        };
        match record.take_svid(svid, held) {
            Some(_before) => self.counters.x509_rotated.add(1),
            None => self.held += 1,
        }
        self.counters.x509_issued.add(1);
        self.failing.remove(&id);
        self.show(&id);
        Ok(())
    }

    /// An entry could not be signed; it is tried again, later after each failure.
    pub(super) fn sign_failed(&mut self, id: &str, now: Instant) -> Option<Failure> {
        let id = self.key(id)?;
        let record = self.records.get_mut(&id)?;
        record.retry_later(now);
        let is_news = record.show_failure();
        let failure = self.failing.add(&id, record.expires_at(), now);
        self.counters.x509_failed.add(1);
        if is_news {
            // Whoever waits for it need not any longer.
            self.show(&id);
        } else {
            self.file(&id);
        }
        Some(failure)
    }

    /// When the first of the SVIDs expires that are to be replaced now.
    pub(super) fn first_end(&self) -> Option<OffsetDateTime> {
        let due = self.schedule.ready().filter_map(|id| self.records.get(id));
        due.filter_map(Record::expires_at).min()
    }

    /// Whether the server's not knowing an entry calls for a snapshot: once for each revision of the entry.
    pub(super) fn needs_resync(&mut self, id: &str) -> bool {
        let record = self.records.get_mut(id);
        record.is_some_and(|record| !std::mem::replace(&mut record.is_resynced, true))
    }

    /// Entries that failed are due at once, as when the server is back.
    pub(super) fn retry_now(&mut self) {
        for id in self.failing.ids() {
            if let Some(record) = self.records.get_mut(&id) {
                record.retry.at = None;
                self.file(&id);
            }
        }
    }

    /// The next snapshot, if it would differ from the last, and whom it concerns.
    pub(super) fn snapshot(&mut self) -> Option<(Snapshot, News)> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        self.counters.entries.set(self.records.len());
        self.counters.x509_svids.set(self.held);
        let snapshot = Snapshot {
            entries: self.entries.clone(),
            own_bundle: Arc::clone(&self.own_bundle),
            federated: self.federated.clone(),
            synced_at: self.synced_at,
            version: 0,
        };
        Some((snapshot, std::mem::take(&mut self.news)))
    }

    /// Returns the id of an entry that was another before.
    fn upsert(&mut self, entry: AuthorizedEntry, is_wanted: IsWanted<'_>) -> Option<String> {
        let Some(id) = self.key(&entry.id) else {
            let id: Arc<str> = Arc::from(entry.id.as_str());
            self.federating.add(&id, &entry.federates_with);
            self.take_record(&id, Record::new(entry), is_wanted);
            self.counters.entries_added.add(1);
            return None;
        };
        let mut record = self.records.remove(&id)?;
        if record.entry == entry {
            self.records.insert(id, record);
            return None;
        }
        self.federating.remove(&id, &record.entry.federates_with);
        self.federating.add(&id, &entry.federates_with);
        self.held -= usize::from(record.replace(entry));
        self.failing.remove(&id);
        self.take_record(&id, record, is_wanted);
        self.counters.entries_updated.add(1);
        Some(id.to_string())
    }

    fn take_record(&mut self, id: &Arc<str>, mut record: Record, is_wanted: IsWanted<'_>) {
        record.is_wanted = is_wanted(&record.cached);
        self.records.insert(Arc::clone(id), record);
        self.show(id);
    }

    fn remove(&mut self, id: &str) -> bool {
        let Some((id, record)) = self.records.remove_entry(id) else {
            return false;
        };
        self.federating.remove(&id, &record.entry.federates_with);
        self.schedule.remove(&id);
        self.failing.remove(&id);
        self.held -= usize::from(record.held.is_some());
        self.news.entries.extend(self.entries.remove(&id));
        self.changed = true;
        self.counters.entries_removed.add(1);
        true
    }

    fn drop_svid(&mut self, id: &Arc<str>) {
        if let Some(record) = self.records.get_mut(id)
            && record.drop_svid()
        {
            self.held -= 1;
            self.show(id);
        }
    }

    /// Looks at everything that is held, which happens when an authority goes and not otherwise.
    fn replace_distrusted(&mut self, step: &Step, now: Instant) {
        let mut replace = Vec::new();
        let mut useless = Vec::new();
        for (id, record) in &self.records {
            let (Some(held), Some(issued)) = (&record.held, &record.cached.svid) else {
                continue;
            };
            match step.judge(&issued.svid) {
                Worth::Good => {}
                Worth::ToReplace => {
                    replace.push((!record.is_wanted, held.times.expires_at, Arc::clone(id)));
                }
                Worth::Nothing => useless.push(Arc::clone(id)),
            }
        }
        let (tainted, revoked) = (replace.len(), useless.len());
        if tainted + revoked == 0 {
            return;
        }
        tracing::info!(
            tainted,
            revoked,
            "X509-SVIDs of authorities that no longer count are replaced"
        );
        self.counters.x509_tainted.add(tainted + revoked);
        metrics().sample(
            "cache_manager_tainted_x509_svids_workload",
            &[],
            (tainted + revoked) as f64,
        );
        for id in useless {
            self.drop_svid(&id);
        }
        replace.sort_unstable();
        for (at, (.., id)) in replace.into_iter().enumerate() {
            let part = u32::try_from(at / TAINTED_PART).unwrap_or(u32::MAX);
            let Some(record) = self.records.get_mut(&id) else {
                continue;
            };
            record.replace_at(now + TAINTED_PAUSE * part);
            self.file(&id);
        }
    }

    fn bundle_changed(&mut self, name: &TrustDomain) {
        let ids = self.federating.with(name);
        let concerned = ids.filter_map(|id| self.entries.get(id)).map(Arc::clone);
        self.news.entries.extend(concerned);
        self.changed = true;
    }

    /// Shows in snapshots what a record is now.
    fn show(&mut self, id: &Arc<str>) {
        let Some(record) = self.records.get(id) else {
            return;
        };
        let cached = Arc::clone(&record.cached);
        let before = self.entries.insert(Arc::clone(&cached));
        let others = before
            .filter(|before| before.selectors != cached.selectors || before.store_svid != cached.store_svid);
        self.news.entries.extend(others);
        self.news.entries.push(cached);
        self.changed = true;
        self.file(id);
    }

    /// Files a record under what is to be done about it. Entries for SVID stores are not signed here.
    fn file(&mut self, id: &Arc<str>) {
        #[cfg(test)]
        visits::count();
        match self.records.get(id) {
            Some(record) if !record.entry.store_svid => self.schedule.set(id, record.renewal_state()),
            _ => self.schedule.remove(id),
        }
    }

    fn key(&self, id: &str) -> Option<Arc<str>> {
        let (id, _record) = self.records.get_key_value(id)?;
        Some(Arc::clone(id))
    }
}

/// So many SVIDs of a tainted authority are replaced at once, as SPIRE's agents do.
const TAINTED_PART: usize = 100;
/// Between two such parts.
const TAINTED_PAUSE: Duration = Duration::from_secs(5);
/// An SVID that comes from an authority known to be tainted is asked for again after this.
const STILL_TAINTED: Duration = Duration::from_secs(60);
