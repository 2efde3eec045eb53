//! Views are made once for all callers who get the same.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use finial_identity::selector::Selector;

use super::view::{Selectors, View};
use crate::svids::{CachedEntry, Snapshot};

/// How many sets of selectors have their view kept. Callers bring new ones at will, while a snapshot may last for long.
const MAX_VIEWS: usize = 4096;

/// The views of the present snapshot, by selectors and by matching entries.
#[derive(Debug, Default)]
pub(super) struct Views {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By the address of the set, which is kept with the view, so that no other set can have the address.
    by_selectors: HashMap<usize, (Arc<Selectors>, Arc<View>)>,
    /// By the addresses of the entries, which the view holds.
    by_entries: HashMap<Vec<usize>, Arc<View>>,
    /// Sets in use, so that streams of the same workload share one.
    sets: HashMap<Vec<Selector>, Weak<Selectors>>,
    sets_after_sweep: usize,
}

impl Views {
    /// The one set that all callers with these selectors share.
    pub(super) fn share(&self, selectors: Selectors) -> Arc<Selectors> {
        let mut sorted: Vec<Selector> = selectors.iter().cloned().collect();
        sorted.sort_unstable();
        let mut state = self.lock();
        if let Some(set) = state.sets.get(&sorted).and_then(Weak::upgrade) {
            return set;
        }
        if state.sets.len() > 2 * state.sets_after_sweep + 64 {
            state.sets.retain(|_key, set| set.strong_count() > 0);
            state.sets_after_sweep = state.sets.len();
        }
        let set = Arc::new(selectors);
        state.sets.insert(sorted, Arc::downgrade(&set));
        set
    }

    /// What `selectors` get of `snapshot`.
    pub(super) fn view(&self, snapshot: &Arc<Snapshot>, selectors: &Arc<Selectors>) -> Arc<View> {
        let mut state = self.lock();
        if snapshot.version > state.version {
            state.version = snapshot.version;
            state.by_selectors.clear();
            state.by_entries.clear();
        }
        let is_present = snapshot.version == state.version;
        let set = Arc::as_ptr(selectors).addr();
        if let Some((_set, view)) = state.by_selectors.get(&set).filter(|_| is_present) {
            return Arc::clone(view);
        }
        let matching: Vec<Arc<CachedEntry>> =
            snapshot.matching(selectors).into_iter().map(Arc::clone).collect();
        let addresses: Vec<usize> = matching.iter().map(|entry| Arc::as_ptr(entry).addr()).collect();
        let known = state.by_entries.get(&addresses).filter(|_| is_present);
        let view = known.map_or_else(|| Arc::new(View::new(Arc::clone(snapshot), matching)), Arc::clone);
        if is_present {
            if state.by_selectors.len() >= MAX_VIEWS {
                // Streams keep theirs, and what is asked for again is kept again.
                state.by_selectors.clear();
                state.by_entries.clear();
            }
            state.by_entries.insert(addresses, Arc::clone(&view));
            state
                .by_selectors
                .insert(set, (Arc::clone(selectors), Arc::clone(&view)));
        }
        view
    }

    /// What a caller without any identity gets of `snapshot`.
    pub(super) fn nobody(&self, snapshot: &Arc<Snapshot>) -> Arc<View> {
        Arc::new(View::new(Arc::clone(snapshot), Vec::new()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever is in the maps is right on its own, so a panic leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::endpoints::testing::{World, selectors};

    #[test]
    fn callers_of_the_same_entries_share_one_view_and_what_was_made_of_it() {
        struct Made;
        struct AlsoMade;
        let world = World::new();
        world.publish_entries(vec![world.entry("a")]);
        let (views, snapshot) = (Views::default(), world.svids.snapshot());
        let one = views.share(selectors(&["unix:uid:1000"]));
        let same = views.share(selectors(&["unix:uid:1000"]));
        let richer = views.share(selectors(&["unix:uid:1000", "unix:gid:1"]));
        assert!(Arc::ptr_eq(&one, &same));
        let view = views.view(&snapshot, &one);
        let made = view.derived(|_view| Made);
        for set in [&same, &richer] {
            let again = views.view(&snapshot, set);
            let _another = again.derived(|_view| AlsoMade);
            assert!(Arc::ptr_eq(&made, &again.derived(|_view| Made)));
        }
        // A new snapshot is evaluated again, and an old one never replaces a newer one.
        world.publish_entries(vec![world.entry("b")]);
        let newer = views.view(&world.svids.snapshot(), &one);
        assert_eq!(newer.entries()[0].entry_id, "b");
        assert_eq!(views.view(&snapshot, &one).entries()[0].entry_id, "a");
        assert!(Arc::ptr_eq(&views.view(&world.svids.snapshot(), &one), &newer));
    }

    #[test]
    fn callers_that_bring_ever_new_facts_do_not_fill_the_memory() {
        let world = World::new();
        world.publish_entries(vec![world.entry("a")]);
        let (views, snapshot) = (Views::default(), world.svids.snapshot());
        for number in 0..3 * MAX_VIEWS {
            let path = Selector::parse(&format!("unix:path:/tmp/{number}")).unwrap();
            let set = views.share([path].into());
            assert!(views.view(&snapshot, &set).is_empty());
        }
        let state = views.lock();
        let kept = [state.by_selectors.len(), state.by_entries.len(), state.sets.len()];
        assert!(kept.iter().all(|kept| *kept <= 4 * MAX_VIEWS), "{kept:?}");
        assert!(kept[0] <= MAX_VIEWS, "{kept:?}");
    }
}
