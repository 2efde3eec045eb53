//! The agents with an open watch, what was sent to each, and which of them an entry affects.
//!
//! Only an agent with an open watch has state here. Changes that were not sent yet are kept as a short list
//! of ids; when it grows too long, a snapshot replaces it, so the memory for a slow agent is limited.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire::DigestSum;
use tokio::sync::Notify;

use super::authorized::roots;
use super::index::{Index, Slot};

/// Changes that wait for one agent at most; above it gets a snapshot.
const MAX_PENDING: usize = 2_048;

/// Names a watch.
pub(super) type WatchNumber = u64;

/// Why an agent's watch ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentGone {
    /// The agent was banned.
    Banned,
    /// The agent was deleted.
    Deleted,
    /// The SVID that the watch was opened with was superseded.
    Superseded,
}

/// One open watch.
#[derive(Debug)]
pub(super) struct Watcher {
    pub(super) number: WatchNumber,
    pub(super) agent: SpiffeId,
    /// Serial number of the SVID that the watch was opened with.
    pub(super) serial: String,
    state: Mutex<State>,
    pub(super) notify: Notify,
}

/// What one agent was offered and what waits for it.
#[derive(Debug, Default)]
pub(super) struct State {
    /// The agent's set after all that waits.
    pub(super) set: HashSet<Slot>,
    /// The digest of that set.
    pub(super) digest: DigestSum,
    /// Ids that changed since the last event; `None` is a removal.
    pub(super) pending: HashMap<String, Option<Slot>>,
    /// The next event is a snapshot; `pending` is empty.
    pub(super) needs_snapshot: bool,
    /// The bundles that the agent needs may have changed.
    pub(super) has_new_bundles: bool,
    pub(super) gone: Option<AgentGone>,
}

impl Watcher {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// An entry joined the set or changed; `old_digest` is that of the entry before.
    pub(super) fn upsert(&mut self, slot: Slot, id: &str, old_digest: u128, new_digest: u128) {
        if !self.set.insert(slot) {
            self.digest.sub(old_digest);
        }
        self.digest.add(new_digest);
        self.wait(id, Some(slot));
    }

    /// An entry left the set.
    pub(super) fn remove(&mut self, slot: Slot, id: &str, old_digest: u128) {
        if self.set.remove(&slot) {
            self.digest.sub(old_digest);
            self.wait(id, None);
        }
    }

    /// Notes a change that waits to be sent.
    pub(super) fn wait(&mut self, id: &str, slot: Option<Slot>) {
        if self.needs_snapshot {
            return;
        }
        self.pending.insert(id.to_owned(), slot);
        if self.pending.len() > MAX_PENDING {
            self.pending = HashMap::new();
            self.needs_snapshot = true;
        }
    }
}

/// All open watches.
#[derive(Debug, Default)]
pub(super) struct Watchers {
    next: WatchNumber,
    open: HashMap<WatchNumber, Open>,
    by_agent: HashMap<SpiffeId, Vec<WatchNumber>>,
    by_selector: HashMap<Selector, BTreeSet<WatchNumber>>,
}

#[derive(Debug)]
struct Open {
    watcher: Arc<Watcher>,
    selectors: HashSet<Selector>,
}

impl Watchers {
    /// Opens a watch.
    pub(super) fn open(
        &mut self,
        agent: &SpiffeId,
        serial: &str,
        selectors: &[Selector],
        state: State,
    ) -> Arc<Watcher> {
        self.next += 1;
        let number = self.next;
        let watcher = Arc::new(Watcher {
            number,
            agent: agent.clone(),
            serial: serial.to_owned(),
            state: Mutex::new(state),
            notify: Notify::new(),
        });
        self.by_agent.entry(agent.clone()).or_default().push(number);
        let selectors: HashSet<Selector> = selectors.iter().cloned().collect();
        self.post(number, &selectors);
        let open = Open {
            watcher: watcher.clone(),
            selectors,
        };
        self.open.insert(number, open);
        watcher
    }

    pub(super) fn close(&mut self, number: WatchNumber) {
        let Some(open) = self.open.remove(&number) else {
            return;
        };
        self.withdraw(number, &open.selectors);
        if let Some(numbers) = self.by_agent.get_mut(&open.watcher.agent) {
            numbers.retain(|other| *other != number);
            if numbers.is_empty() {
                self.by_agent.remove(&open.watcher.agent);
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    pub(super) fn watcher(&self, number: WatchNumber) -> Option<&Arc<Watcher>> {
        self.open.get(&number).map(|open| &open.watcher)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Watcher>> {
        self.open.values().map(|open| &open.watcher)
    }

    /// The watches of one agent.
    pub(super) fn of_agent(&self, agent: &SpiffeId) -> Vec<WatchNumber> {
        self.by_agent.get(agent).cloned().unwrap_or_default()
    }

    /// Replaces a node's selectors, false when they are the same.
    pub(super) fn set_selectors(&mut self, number: WatchNumber, selectors: &[Selector]) -> bool {
        let selectors: HashSet<Selector> = selectors.iter().cloned().collect();
        let Some(open) = self.open.get_mut(&number) else {
            return false;
        };
        if open.selectors == selectors {
            return false;
        }
        let before = std::mem::replace(&mut open.selectors, selectors.clone());
        self.withdraw(number, &before);
        self.post(number, &selectors);
        true
    }

    /// The watches whose agents' sets the entry in the slot is part of, or below whose aliases it
    /// opens a part; found without a look at the others.
    pub(super) fn touched(&self, index: &Index, slot: Slot) -> BTreeSet<WatchNumber> {
        if self.open.is_empty() {
            return BTreeSet::new();
        }
        let roots = roots(index, slot);
        let mut touched: BTreeSet<WatchNumber> = roots
            .ids
            .iter()
            .filter_map(|number| self.by_agent.get(&index.spiffe_id(*number)))
            .flatten()
            .copied()
            .collect();
        for alias in roots.aliases {
            touched.extend(self.with_all(&index.selectors(alias)));
        }
        touched
    }

    /// The watches of nodes that have all of these selectors.
    fn with_all(&self, selectors: &[Selector]) -> impl Iterator<Item = WatchNumber> {
        let rarest = selectors
            .iter()
            .map(|selector| self.by_selector.get(selector))
            .min_by_key(|numbers| numbers.map_or(0, BTreeSet::len))
            .flatten();
        rarest.into_iter().flatten().copied().filter(|number| {
            self.open
                .get(number)
                .is_some_and(|open| selectors.iter().all(|selector| open.selectors.contains(selector)))
        })
    }

    fn post(&mut self, number: WatchNumber, selectors: &HashSet<Selector>) {
        for selector in selectors {
            self.by_selector
                .entry(selector.clone())
                .or_default()
                .insert(number);
        }
    }

    fn withdraw(&mut self, number: WatchNumber, selectors: &HashSet<Selector>) {
        for selector in selectors {
            if let Some(numbers) = self.by_selector.get_mut(selector) {
                numbers.remove(&number);
                if numbers.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{domain, entry, id};

    fn selectors(texts: &[&str]) -> Vec<Selector> {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    fn open(watchers: &mut Watchers, agent: &str, texts: &[&str]) -> WatchNumber {
        watchers
            .open(&id(agent), "1", &selectors(texts), State::default())
            .number
    }

    #[test]
    fn an_entry_touches_the_agents_above_it_only() {
        let mut index = Index::new(&domain());
        index
            .put(1, &entry("alias", "/nodes", "/spire/server", &["k8s:a", "k8s:b"]))
            .unwrap();
        let below = index.put(2, &entry("below", "/w", "/nodes", &["u:1"])).unwrap();
        let direct = index
            .put(3, &entry("direct", "/v", "/spire/agent/2", &["u:1"]))
            .unwrap();
        let mut watchers = Watchers::default();
        let first = open(&mut watchers, "/spire/agent/1", &["k8s:a", "k8s:b", "k8s:c"]);
        let second = open(&mut watchers, "/spire/agent/2", &["k8s:a"]);
        assert_eq!(watchers.touched(&index, below), BTreeSet::from([first]));
        assert_eq!(watchers.touched(&index, direct), BTreeSet::from([second]));
        assert!(watchers.set_selectors(second, &selectors(&["k8s:b", "k8s:a"])));
        assert_eq!(watchers.touched(&index, below), BTreeSet::from([first, second]));
    }

    #[test]
    fn a_closed_watch_leaves_nothing_behind() {
        let mut watchers = Watchers::default();
        let number = open(&mut watchers, "/spire/agent/1", &["k8s:a"]);
        watchers.close(number);
        assert_eq!(watchers.len(), 0);
        assert!(watchers.by_agent.is_empty() && watchers.by_selector.is_empty());
    }

    #[test]
    fn too_many_waiting_changes_become_a_snapshot() {
        let mut state = State::default();
        for n in 0..=u32::try_from(MAX_PENDING).unwrap() {
            state.upsert(n, &format!("e{n}"), 0, u128::from(n));
        }
        assert!(state.needs_snapshot);
        assert!(state.pending.is_empty());
        assert_eq!(state.set.len(), MAX_PENDING + 1);
    }

    #[test]
    fn the_digest_follows_updates_and_removals() {
        let mut state = State::default();
        state.upsert(1, "a", 0, 10);
        state.upsert(2, "b", 0, 7);
        state.upsert(1, "a", 10, 11);
        state.remove(2, "b", 7);
        state.remove(3, "never", 99);
        assert_eq!(state.digest.value(), 11);
    }
}
