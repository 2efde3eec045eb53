//! Where derived entries come from: which objects, and whether all of them are known yet.
//!
//! Derived entries are not stored, so a server that has just started has none. An agent that asked then would
//! be told that its workloads lost their identities; it is asked to come again instead.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::core::Core;
use super::derived::place;
use super::{Registry, RegistryError, listed};
use crate::store::{Revision, StoredEntry};

/// How long after the server's start an agent of no source waits for static entries. It is half of what agents have left
/// of their SVIDs at the least, if those are of the default lifetime.
const STATICS_WAIT: Duration = Duration::from_secs(15 * 60);
/// How long an agent of one source waits for the static entries of another. Its own cluster's pods wait with it.
const OTHERS_WAIT: Duration = Duration::from_secs(30);

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
    /// Whether its static entries have been taken in once, which may be meant for any agent.
    pub has_statics: bool,
    /// What the IDs of agents begin with that its other entries may be meant for.
    pub parent_prefix: String,
    /// When it was heard last.
    pub heard_at: Option<OffsetDateTime>,
    /// What is wrong with it.
    pub trouble: Option<String>,
}

#[derive(Debug, Default)]
pub(super) struct Sources {
    states: RwLock<BTreeMap<Arc<str>, SourceState>>,
    /// Ids of derived entries that an equal one of another source gave way to. Locked only while the core is.
    preferred: Mutex<HashSet<String>>,
    contests: watch::Sender<u64>,
}

impl Registry {
    /// Takes in entries that are derived from rules and never stored, and takes out those of the
    /// given ids. An entry whose id a stored one has is ignored.
    pub fn apply_derived(&self, upserts: &[Derived], removals: &[String]) {
        // First, so that nobody is sent an entry whose way is not known yet. What waited for its place has its way already.
        let new: Vec<Derived> = {
            let core = self.read();
            let new = upserts.iter().filter(|derived| !core.has_derived(derived));
            new.cloned().collect()
        };
        self.note_derived(&new);
        let is_contested = {
            let mut core = self.write();
            core.apply_derived(upserts, removals);
            let has_rival = upserts
                .iter()
                .any(|Derived { entry, .. }| core.rival(entry, |_any| true).is_some());
            let changed = upserts.iter().map(|derived| &derived.entry.id).chain(removals);
            self.sources.forget(&core, changed) || has_rival
        };
        self.note_gone(removals);
        if is_contested {
            self.sources.contests.send_modify(|count| *count += 1);
        }
    }

    /// Takes in derived entries that give way at present, and forgets those of the given ids. Each takes the place of what it
    /// gives way to as soon as that goes, in the same change.
    pub fn mask(&self, masked: &[Derived], gone: &[String]) {
        self.note_derived(masked);
        let is_contested = {
            let mut core = self.write();
            core.mask(masked, gone);
            self.sources.forget(&core, gone.iter())
        };
        self.note_gone(gone);
        if is_contested {
            self.sources.contests.send_modify(|count| *count += 1);
        }
    }

    /// Whether a derived entry must give way: to a stored one that gives the same identity for the same facts, or to one
    /// of another source, of which the older counts, and of equally old ones that of the source with the smaller name.
    /// So it is the same at every server, whichever source was heard first.
    pub fn gives_way(&self, entry: &Entry) -> bool {
        let core = self.read();
        if core.similar(entry, false).is_some() {
            return true;
        }
        let own = place(entry);
        let Some(preferred) = core.rival(entry, |rival| place(rival) < own) else {
            return false;
        };
        self.sources.prefer(&core, &preferred.id);
        true
    }

    /// Tells when it may be another entry that gives way because what another source declares changed.
    pub fn contests(&self) -> watch::Receiver<u64> {
        self.sources.contests.subscribe()
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

    /// The revision of the store that memory is at, and each new one.
    pub fn revisions(&self) -> watch::Receiver<Revision> {
        self.applied.subscribe()
    }

    /// Says how a source of derived entries stands. One that is not settled holds its agents back.
    pub fn set_source(&self, name: &str, state: SourceState) {
        let mut sources = self
            .sources
            .states
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        sources.insert(name.into(), state);
    }

    /// How each source of derived entries stands, by name.
    pub fn sources(&self) -> BTreeMap<Arc<str>, SourceState> {
        self.sources.read().clone()
    }

    /// Whether it can be told what an agent may have. The agents of a source wait for all of it, others for static entries,
    /// and not for longer than [`STATICS_WAIT`], those of another source [`OTHERS_WAIT`]: a cluster that is away must not
    /// take the others along.
    ///
    /// # Errors
    /// [`RegistryError::Unsettled`] while a source has not said what concerns the agent.
    pub fn check_settled(&self, agent: &SpiffeId) -> Result<(), RegistryError> {
        let is_of = |state: &SourceState| agent.as_str().starts_with(&state.parent_prefix);
        let is_of_any = self.sources.read().values().any(is_of);
        let wait = if is_of_any { OTHERS_WAIT } else { STATICS_WAIT };
        let is_late = self.loaded_at.elapsed() >= wait;
        self.check_sources(|state| state.is_settled || (!is_of(state) && (state.has_statics || is_late)))
    }

    /// Whether all sources have said what they declare.
    ///
    /// # Errors
    /// [`RegistryError::Unsettled`].
    pub fn check_all_settled(&self) -> Result<(), RegistryError> {
        self.check_sources(|state| state.is_settled)
    }

    /// How many derived entries federate with a trust domain, and the object that declares the first of them; `None` when
    /// there are none.
    ///
    /// # Errors
    /// [`RegistryError::Unsettled`] when there are none so far.
    pub fn derived_with(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<(usize, Arc<str>)>, RegistryError> {
        // Before the look: what is settled from here on is seen.
        let settled = self.check_all_settled();
        match self.read().derived_with(trust_domain) {
            None => settled.map(|()| None),
            found => Ok(found),
        }
    }

    fn check_sources(&self, is_told: impl Fn(&SourceState) -> bool) -> Result<(), RegistryError> {
        let sources = self.sources.read();
        match sources.iter().find(|(_, state)| !is_told(state)) {
            Some((name, _)) => Err(RegistryError::Unsettled(name.clone())),
            None => Ok(()),
        }
    }
}

impl Sources {
    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<Arc<str>, SourceState>> {
        self.states.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an entry of these gave way to the one with this id. Whoever changes that one next hears of it, because
    /// the core is held from the look at it until this is noted.
    fn prefer(&self, _held: &Core, id: &str) {
        self.preferred().insert(id.to_owned());
    }

    /// Forgets what gave way to these, which were changed just now. Says whether anything had.
    fn forget<'a>(&self, _held: &Core, changed: impl Iterator<Item = &'a String>) -> bool {
        let mut preferred = self.preferred();
        let before = preferred.len();
        if before > 0 {
            changed.for_each(|id| {
                preferred.remove(id);
            });
        }
        preferred.len() < before
    }

    fn preferred(&self) -> MutexGuard<'_, HashSet<String>> {
        self.preferred.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// A derived entry that gives the same identity for the same facts and has another id, so one of another source.
    fn rival(&self, entry: &Entry, is_meant: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let slot = self.index.similar(entry, |index, slot| {
            self.is_derived(slot) && {
                let rival = index.entry(slot);
                rival.id != entry.id && is_meant(&rival)
            }
        });
        slot.map(|slot| self.index.entry(slot))
    }
}

/// The part of a derived entry's id that names its source: `k8s.<source>.<UUID>`.
pub(super) fn source_of(id: &str) -> &str {
    id.rsplit_once('.').map_or(id, |(source, _uuid)| source)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // One of them measures.
    use std::time::Instant;

    use finial_identity::process::Clock;
    use rustix::time::{ClockId, clock_gettime};

    use super::*;
    use crate::store::testing::{domain, entry};
    use crate::store::{SqliteStore, Store};

    async fn registry() -> Arc<Registry> {
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap());
        Registry::load(store, &domain(), Clock::system()).await.unwrap()
    }

    fn derived(source: &str, number: usize, created_at: i64) -> Derived {
        let selector = format!("k8s:pod-uid:{number}");
        let id = format!("k8s.{source}.{number}");
        let mut parts = entry(&id, "/backend", "/node", &[&selector]).into_parts();
        parts.created_at = created_at;
        Derived {
            entry: Arc::new(Entry::check(parts, &domain()).unwrap()),
            origin: "rule".into(),
        }
    }

    #[tokio::test]
    async fn of_equal_entries_of_two_sources_the_older_counts_and_of_equally_old_ones_the_first_by_name() {
        let registry = registry().await;
        let (a, b) = (derived("a.x", 1, 5), derived("b", 1, 5));
        registry.apply_derived(&[a.clone(), b.clone()], &[]);
        assert!(!registry.gives_way(&a.entry) && registry.gives_way(&b.entry));
        let older = derived("b", 1, 4);
        registry.apply_derived(std::slice::from_ref(&older), &[]);
        assert!(registry.gives_way(&a.entry) && !registry.gives_way(&older.entry));
        let apart = derived("b", 2, 0);
        assert!(!registry.gives_way(&apart.entry));
    }

    #[tokio::test]
    async fn who_gave_way_hears_when_that_may_have_changed_and_not_of_anything_else() {
        let registry = registry().await;
        let mut contests = registry.contests();
        let (a, b) = (derived("a", 1, 5), derived("b", 1, 5));
        registry.apply_derived(&[b.clone(), derived("b", 2, 5)], &[]);
        registry.apply_derived(&[derived("b", 2, 6)], &["k8s.b.3".to_owned()]);
        assert!(!contests.has_changed().unwrap(), "nobody declares the same");
        registry.apply_derived(std::slice::from_ref(&a), &[]);
        assert!(contests.has_changed().unwrap(), "two declare the same");
        contests.mark_unchanged();
        assert!(registry.gives_way(&b.entry));
        registry.apply_derived(&[], std::slice::from_ref(&b.entry.id));
        assert!(!contests.has_changed().unwrap(), "nobody gave way to it");
        registry.apply_derived(&[], std::slice::from_ref(&a.entry.id));
        assert!(contests.has_changed().unwrap(), "it may come back");
        assert!(!registry.gives_way(&b.entry));
    }

    /// What gave way and is not noted yet would never hear that the other went.
    #[tokio::test]
    async fn an_entry_to_which_another_gives_way_cannot_go_before_that_is_noted() {
        let registry = registry().await;
        let contests = registry.contests();
        let (a, b) = (derived("a", 1, 5), derived("b", 1, 5));
        registry.apply_derived(std::slice::from_ref(&a), &[]);
        let noting = registry.sources.preferred();
        let asking = std::thread::spawn({
            let registry = Arc::clone(&registry);
            move || registry.gives_way(&b.entry)
        });
        // Far longer than a look takes, so whoever holds it waits to note what it saw.
        let is_held = || (0..200_000).all(|_look| registry.core.try_write().is_err());
        let begun = Instant::now();
        while !is_held() {
            assert!(begun.elapsed() < Duration::from_secs(20), "it is let go before");
            std::thread::yield_now();
        }
        drop(noting);
        assert!(asking.join().unwrap());
        registry.apply_derived(&[], std::slice::from_ref(&a.entry.id));
        assert!(contests.has_changed().unwrap(), "it may come back");
    }

    /// All pods of a cluster under one SPIFFE ID and one parent: what is looked for must not be among all of them.
    #[tokio::test]
    async fn masking_of_ten_times_as_many_entries_takes_some_ten_times_as_long() {
        let registry = registry().await;
        let time = |count: usize, registry: &Registry| {
            let entries: Vec<_> = (0..count).map(|number| derived("a", number, 0)).collect();
            registry.apply_derived(&entries, &[]);
            let measure = || {
                let begun = clock_gettime(ClockId::ThreadCPUTime);
                assert!(!entries.iter().any(|derived| registry.gives_way(&derived.entry)));
                let took = clock_gettime(ClockId::ThreadCPUTime) - begun;
                Duration::try_from(took).unwrap()
            };
            (0..3).map(|_turn| measure()).min().unwrap_or(Duration::ZERO)
        };
        let few = time(1_000, &registry);
        let many = time(10_000, &registry);
        assert!(
            many < few * 40,
            "1,000 entries took {few:?} and 10,000 took {many:?}"
        );
    }
}
