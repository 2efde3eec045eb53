//! When each step of an entry happened: derived, sent to an agent, an SVID signed for it. For operators; only in
//! memory. About 100 bytes for each derived entry.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, MutexGuard, PoisonError};

use finial_identity::entry::Entry;
use finial_identity::spiffe_id::SpiffeId;
use time::OffsetDateTime;

use super::Registry;
use super::authorized::roots_above;
use super::sources::Derived;
use crate::store::{AgentRecord, StoredEntry};

/// Of how many derived entries the way is known; of further ones it is not.
const MAX_DERIVED: usize = 131_072;
/// Of how many stored entries the last signature is known.
const MAX_STORED: usize = 16_384;
/// Of how many agents that poll the last time is known.
const MAX_POLLING: usize = 16_384;

/// The way of one entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hop {
    /// When it was derived as it is now.
    pub derived_at: Option<OffsetDateTime>,
    /// Whether it was derived when its source was first read: earlier times are not known.
    pub is_from_before: bool,
    /// When it was pushed to the agent, or fetched by it, as it is now.
    pub sent_at: Option<OffsetDateTime>,
    /// When an X509-SVID was last signed for it, for the agent.
    pub signed_at: Option<OffsetDateTime>,
    /// When that SVID expires, in Unix seconds.
    pub svid_expires_at: i64,
}

/// How an agent gets its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connection {
    /// It has an open watch.
    pub is_watching: bool,
    /// When it last polled.
    pub polled_at: Option<OffsetDateTime>,
}

/// What is remembered. Ids and agents are known by their hashes; two with the same would show each other's times.
#[derive(Debug, Default)]
pub(super) struct Hops {
    derived: HashMap<u64, Record>,
    stored: HashMap<u64, Record>,
    polled: HashMap<u64, i64>,
    hasher: RandomState,
}

/// Times in milliseconds since 1970; 0 is never.
#[derive(Clone, Copy, Debug, Default)]
struct Record {
    derived_at: i64,
    sent_at: i64,
    sent_to: u64,
    signed_at: i64,
    signed_for: u64,
    svid_expires_at: i64,
    is_from_before: bool,
}

impl Hops {
    fn derived(&mut self, entries: &[Derived], now: i64) {
        for Derived { entry, .. } in entries {
            let key = self.hasher.hash_one(&entry.id);
            if self.derived.len() >= MAX_DERIVED && !self.derived.contains_key(&key) {
                continue;
            }
            let record = self.derived.entry(key).or_default();
            // An entry that changed keeps its last signature.
            record.derived_at = now;
            record.sent_at = 0;
            record.is_from_before = false;
        }
    }

    fn gone(&mut self, ids: &[String]) {
        for id in ids {
            self.derived.remove(&self.hasher.hash_one(id));
        }
    }

    fn sent(&mut self, agent: &SpiffeId, ids: &mut dyn Iterator<Item = &str>, now: i64) {
        if self.derived.is_empty() {
            return;
        }
        let agent = self.hasher.hash_one(agent);
        for id in ids {
            let key = self.hasher.hash_one(id);
            if let Some(record) = self.derived.get_mut(&key)
                && (record.sent_at == 0 || record.sent_to != agent)
            {
                (record.sent_at, record.sent_to) = (now, agent);
            }
        }
    }

    fn signed(&mut self, agent: &SpiffeId, id: &str, now: i64, expires_at: i64) {
        let agent = self.hasher.hash_one(agent);
        let key = self.hasher.hash_one(id);
        let record = match self.derived.get_mut(&key) {
            Some(record) => record,
            None => {
                make_room(&mut self.stored, key, MAX_STORED);
                self.stored.entry(key).or_default()
            }
        };
        (record.signed_at, record.signed_for, record.svid_expires_at) = (now, agent, expires_at);
    }

    fn polled(&mut self, agent: &SpiffeId, now: i64) {
        let key = self.hasher.hash_one(agent);
        make_room(&mut self.polled, key, MAX_POLLING);
        self.polled.insert(key, now);
    }

    fn hop(&self, agent: &SpiffeId, id: &str) -> Hop {
        let key = self.hasher.hash_one(id);
        let agent = self.hasher.hash_one(agent);
        let Some(record) = self.derived.get(&key).or_else(|| self.stored.get(&key)) else {
            return Hop::default();
        };
        let is_signed = record.signed_for == agent;
        Hop {
            derived_at: at(record.derived_at),
            is_from_before: record.is_from_before,
            sent_at: at(record.sent_at).filter(|_| record.sent_to == agent),
            signed_at: at(record.signed_at).filter(|_| is_signed),
            svid_expires_at: if is_signed { record.svid_expires_at } else { 0 },
        }
    }
}

/// Takes any one out when another one comes to a full table.
fn make_room<T>(table: &mut HashMap<u64, T>, key: u64, limit: usize) {
    if table.len() >= limit
        && !table.contains_key(&key)
        && let Some(any) = table.keys().next().copied()
    {
        table.remove(&any);
    }
}

fn at(milliseconds: i64) -> Option<OffsetDateTime> {
    if milliseconds == 0 {
        return None;
    }
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
}

impl Registry {
    /// Records that entries were derived when their source was first read.
    pub fn note_from_before(&self, entries: &[Derived]) {
        let mut hops = self.hops();
        for Derived { entry, .. } in entries {
            let key = hops.hasher.hash_one(&entry.id);
            if let Some(record) = hops.derived.get_mut(&key) {
                record.is_from_before = true;
            }
        }
    }

    /// Says that an agent that polls fetched these entries.
    pub fn note_fetched(&self, agent: &SpiffeId, entries: &[Arc<Entry>]) {
        let now = self.milliseconds();
        let mut hops = self.hops();
        hops.polled(agent, now);
        hops.sent(agent, &mut entries.iter().map(|entry| entry.id.as_str()), now);
    }

    /// Says that an X509-SVID was signed for an entry.
    pub fn note_signed(&self, agent: &SpiffeId, id: &str, expires_at: i64) {
        let now = self.milliseconds();
        self.hops().signed(agent, id, now, expires_at);
    }

    /// The way of an entry to an agent, as far as it is known.
    pub fn hop(&self, agent: &SpiffeId, id: &str) -> Hop {
        self.hops().hop(agent, id)
    }

    /// How an agent gets its entries.
    pub fn connection(&self, agent: &SpiffeId) -> Connection {
        let hops = self.hops();
        let polled = hops.polled.get(&hops.hasher.hash_one(agent)).copied();
        drop(hops);
        Connection {
            is_watching: !self.read().watchers.of_agent(agent).is_empty(),
            polled_at: at(polled.unwrap_or_default()),
        }
    }

    /// Whether an agent with an open watch has been sent an entry as it is now, or held it when the watch began.
    pub fn is_held(&self, agent: &SpiffeId, id: &str) -> bool {
        let core = self.read();
        let Some(slot) = core.index.slot(id) else {
            return false;
        };
        let watchers = core.watchers.of_agent(agent);
        watchers
            .into_iter()
            .filter_map(|number| core.watchers.watcher(number))
            .any(|watcher| {
                let state = watcher.state();
                state.set.contains(&slot) && !state.needs_snapshot && !state.pending.contains_key(id)
            })
    }

    /// The agents that get the entries of a parent. At most `limit`, in the order of their IDs.
    pub fn agents_below(&self, parent: &SpiffeId, limit: usize) -> Vec<Arc<AgentRecord>> {
        let core = self.read();
        let mut found: Vec<Arc<AgentRecord>> = match core.index.id_number(parent) {
            // No entry names it, so nobody else has what is below it.
            None => core.agents.get(parent).cloned().into_iter().collect(),
            Some(number) => {
                let roots = roots_above(&core.index, number);
                let ids = roots.ids.iter().map(|number| core.index.spiffe_id(*number));
                let mut found: Vec<_> = ids.filter_map(|id| core.agents.get(&id).cloned()).collect();
                if !roots.aliases.is_empty() {
                    let has_alias = |agent: &&Arc<AgentRecord>| {
                        let own = core.index.aliases_within(&agent.selectors);
                        own.iter().any(|alias| roots.aliases.contains(alias))
                    };
                    found.extend(core.agents.values().filter(has_alias).cloned());
                }
                found
            }
        };
        found.sort_by(|one, other| one.id.cmp(&other.id));
        found.dedup_by(|one, other| one.id == other.id);
        found.truncate(limit);
        found
    }

    /// The stored entry that gives the same identity for the same facts.
    pub fn similar_stored(&self, entry: &Entry) -> Option<StoredEntry> {
        let core = self.read();
        let slot = core.similar(entry, false)?;
        Some(super::listed(&core, slot))
    }

    pub(super) fn note_derived(&self, upserts: &[Derived]) {
        let now = self.milliseconds();
        self.hops().derived(upserts, now);
    }

    pub(super) fn note_gone(&self, removals: &[String]) {
        self.hops().gone(removals);
    }

    pub(super) fn note_pushed(&self, agent: &SpiffeId, entries: &[Arc<Entry>]) {
        let now = self.milliseconds();
        self.hops()
            .sent(agent, &mut entries.iter().map(|entry| entry.id.as_str()), now);
    }

    fn milliseconds(&self) -> i64 {
        let nanoseconds = self.clock.now().unix_timestamp_nanos();
        i64::try_from(nanoseconds / 1_000_000).unwrap_or_default()
    }

    fn hops(&self) -> MutexGuard<'_, Hops> {
        self.hops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{entry, id};

    const AGENT: &str = "/spire/agent/1";

    fn derived(id: &str) -> Derived {
        Derived {
            entry: Arc::new(entry(id, "/a", AGENT, &["k8s:pod-uid:1"])),
            origin: "ClusterSPIFFEID r".into(),
        }
    }

    #[test]
    fn an_entry_that_changes_has_its_way_before_it_again_and_keeps_its_signature() {
        let mut hops = Hops::default();
        let agent = id(AGENT);
        hops.derived(&[derived("k8s.c.1")], 1_000);
        hops.sent(&agent, &mut ["k8s.c.1", "other"].into_iter(), 2_000);
        hops.sent(&agent, &mut ["k8s.c.1"].into_iter(), 2_500);
        hops.signed(&agent, "k8s.c.1", 3_000, 77);
        let hop = hops.hop(&agent, "k8s.c.1");
        assert_eq!(
            (hop.derived_at, hop.sent_at, hop.signed_at, hop.svid_expires_at),
            (at(1_000), at(2_000), at(3_000), 77),
            "sent again, it keeps the first time"
        );
        assert_eq!(hops.hop(&agent, "other"), Hop::default());
        let elsewhere = hops.hop(&id("/spire/agent/2"), "k8s.c.1");
        assert_eq!((elsewhere.sent_at, elsewhere.signed_at), (None, None));

        hops.derived(&[derived("k8s.c.1")], 4_000);
        let hop = hops.hop(&agent, "k8s.c.1");
        assert_eq!(
            (hop.derived_at, hop.sent_at, hop.signed_at),
            (at(4_000), None, at(3_000))
        );
        hops.gone(&["k8s.c.1".to_owned()]);
        assert_eq!(hops.hop(&agent, "k8s.c.1"), Hop::default());
    }

    #[test]
    fn signatures_of_stored_entries_are_remembered_within_bounds() {
        let mut hops = Hops::default();
        let agent = id(AGENT);
        for n in 0..MAX_STORED + 5 {
            hops.signed(&agent, &format!("e{n}"), 1, 2);
            hops.polled(&id(&format!("/spire/agent/{n}")), 1);
        }
        assert_eq!((hops.stored.len(), hops.polled.len()), (MAX_STORED, MAX_POLLING));
        let last = format!("e{}", MAX_STORED + 4);
        assert_eq!(hops.hop(&agent, &last).svid_expires_at, 2);
    }

    #[test]
    fn a_record_is_small() {
        assert!(size_of::<(u64, Record)>() <= 64);
    }
}
