//! Open streams by their selectors, and the changes that each of them waits for.
//!
//! Subscriptions with the same selectors are one group, which is indexed by each of its selectors. The groups that
//! an entry concerns are found under the rarest of the entry's selectors.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use finial_identity::selector::Selector;
use tokio::sync::{Notify, watch};

use super::cache::CachedEntry;
#[cfg(test)]
use super::visits;

/// So many sets of selectors may have begun or ceased to be wanted by somebody before that is to be taken up.
const MOST_UNTOLD: usize = 64;

/// A registration for changes, until it is dropped.
///
/// It concerns the entries all of whose selectors are among its own, their SVIDs, the agent's own bundle and the
/// bundles that those entries federate with. It is also notified when an entry begins or ceases to match.
#[must_use = "a subscription lasts only for as long as it lives"]
#[derive(Debug)]
pub struct Subscription {
    group: u64,
    wanting: bool,
    news: watch::Receiver<u64>,
    subscribers: Arc<Subscribers>,
}

/// Whom a new snapshot concerns.
#[derive(Debug, Default)]
pub(super) struct News {
    /// All of them.
    pub(super) everyone: bool,
    /// Those whom one of these entries matches, as they were or as they are.
    pub(super) entries: Vec<Arc<CachedEntry>>,
}

/// All subscriptions.
#[derive(Debug, Default)]
pub(super) struct Subscribers {
    state: Mutex<State>,
    wake: Notify,
}

impl Subscription {
    /// Completes when a snapshot was published that affects this subscription, except those seen before.
    /// A snapshot that was published before the subscription was made counts as seen. Nothing is lost when
    /// the future is dropped.
    pub async fn changed(&mut self) {
        if self.news.changed().await.is_err() {
            // The group lasts as long as its subscriptions, so this is never reached; waiting is right then.
            std::future::pending().await
        }
    }

    /// [`crate::svids::Snapshot::version`] of the last snapshot that concerned this subscription; 0 when none was
    /// published since the first subscription with the same selectors.
    pub fn version(&self) -> u64 {
        *self.news.borrow()
    }

    /// From now on what matches is issued whatever the size limit says and kept fresh, also if it was not before.
    /// That is taken up before anything else is decided; who lacks an SVID says [`Subscription::hurry`] too.
    pub fn want(&mut self) {
        if !std::mem::replace(&mut self.wanting, true) {
            let untold = self.subscribers.lock().want(self.group);
            self.subscribers.remind(untold);
        }
    }

    /// Has what matches issued now.
    pub fn hurry(&self) {
        self.subscribers.wake.notify_one();
    }

    /// One of the same kind for other selectors. What both want is kept when this one is dropped after it was made.
    pub fn with_selectors(&self, selectors: Arc<HashSet<Selector>>) -> Self {
        self.subscribers.subscribe(selectors, self.wanting)
    }

    /// Marks everything published so far as seen; to be called before the snapshot is read.
    pub fn mark_seen(&mut self) {
        self.news.mark_unchanged();
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let untold = self.subscribers.lock().leave(self.group, self.wanting);
        self.subscribers.remind(untold);
    }
}

impl Subscribers {
    /// A subscription for `selectors`. With `wanting` the entries that match are issued and kept fresh whatever
    /// the size limit says.
    pub(super) fn subscribe(
        self: &Arc<Self>,
        selectors: Arc<HashSet<Selector>>,
        wanting: bool,
    ) -> Subscription {
        let (group, news) = self.lock().join(selectors, wanting);
        if wanting {
            self.wake.notify_one();
        }
        Subscription {
            group,
            wanting,
            news,
            subscribers: Arc::clone(self),
        }
    }

    /// Whether somebody wants the entry's SVID.
    pub(super) fn is_wanted(&self, entry: &CachedEntry) -> bool {
        let state = self.lock();
        state.matching(entry).any(|(_id, group)| group.wanting > 0)
    }

    /// Selectors of those who began or ceased to want something since the last call, in the order in which they
    /// first did.
    pub(super) fn take_touched(&self) -> Vec<Arc<HashSet<Selector>>> {
        let mut state = self.lock();
        let touched = std::mem::take(&mut state.touched);
        for (id, _selectors) in &touched {
            if let Some(group) = state.groups.get_mut(id) {
                group.touched = false;
            }
        }
        touched.into_iter().map(|(_id, selectors)| selectors).collect()
    }

    /// Callers who have what they want come and go all the time. They change which SVIDs may go and nothing else, so
    /// nobody is woken for a few of them.
    fn remind(&self, untold: usize) {
        if untold >= MOST_UNTOLD {
            self.wake.notify_one();
        }
    }

    /// Completes when somebody wants what is not there, or very many have begun or ceased to want something.
    pub(super) async fn touched(&self) {
        self.wake.notified().await;
    }

    /// Notifies the affected subscriptions that `version` is published.
    pub(super) fn tell(&self, version: u64, news: &News) {
        let state = self.lock();
        if news.everyone {
            for group in state.groups.values() {
                group.news.send_replace(version);
            }
            return;
        }
        let mut told = HashSet::new();
        for (id, group) in news.entries.iter().flat_map(|entry| state.matching(entry)) {
            if told.insert(id) {
                group.news.send_replace(version);
            }
        }
    }

    /// How many subscriptions there are, and how many of them want SVIDs.
    pub(super) fn count(&self) -> (usize, usize) {
        let state = self.lock();
        (state.subscriptions, state.wanting)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change under the lock is complete when it is released, also by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    subscriptions: usize,
    wanting: usize,
    groups: HashMap<u64, Group>,
    /// Groups whose selectors have this digest.
    by_content: HashMap<u64, Vec<u64>>,
    by_selector: HashMap<Selector, HashSet<u64>>,
    touched: Vec<(u64, Arc<HashSet<Selector>>)>,
    hasher: RandomState,
}

#[derive(Debug)]
struct Group {
    selectors: Arc<HashSet<Selector>>,
    content: u64,
    members: usize,
    /// How many of the members want the SVIDs.
    wanting: usize,
    /// Is in the list of those touched.
    touched: bool,
    news: watch::Sender<u64>,
}

impl State {
    fn join(&mut self, selectors: Arc<HashSet<Selector>>, wanting: bool) -> (u64, watch::Receiver<u64>) {
        self.subscriptions += 1;
        let id = self.group_of(selectors);
        let group = self.groups.get_mut(&id).expect("was found or made just now");
        group.members += 1;
        let news = group.news.subscribe();
        if wanting {
            self.want(id);
        }
        (id, news)
    }

    /// Returns how many groups are touched.
    fn want(&mut self, id: u64) -> usize {
        self.wanting += 1;
        if let Some(group) = self.groups.get_mut(&id) {
            group.wanting += 1;
        }
        self.touch(id);
        self.touched.len()
    }

    /// Returns how many groups are touched.
    fn leave(&mut self, id: u64, wanting: bool) -> usize {
        self.subscriptions -= 1;
        if wanting {
            self.wanting -= 1;
            self.touch(id);
        }
        let Some(group) = self.groups.get_mut(&id) else {
            return self.touched.len();
        };
        group.members -= 1;
        group.wanting -= usize::from(wanting);
        if group.members == 0 {
            self.remove(id);
        }
        self.touched.len()
    }

    fn touch(&mut self, id: u64) {
        if let Some(group) = self.groups.get_mut(&id)
            && !std::mem::replace(&mut group.touched, true)
        {
            self.touched.push((id, Arc::clone(&group.selectors)));
        }
    }

    /// The group with these selectors, a new one if there is none.
    fn group_of(&mut self, selectors: Arc<HashSet<Selector>>) -> u64 {
        let digests = selectors.iter().map(|selector| self.hasher.hash_one(selector));
        let content = digests.fold(0, u64::wrapping_add);
        let mut alike = self.by_content.get(&content).into_iter().flatten();
        let is_same = |id: &&u64| {
            let group = self.groups.get(id);
            group.is_some_and(|group| {
                Arc::ptr_eq(&group.selectors, &selectors) || group.selectors == selectors
            })
        };
        if let Some(id) = alike.find(is_same) {
            return *id;
        }
        let id = self.next_id;
        self.next_id += 1;
        for selector in selectors.iter() {
            match self.by_selector.get_mut(selector) {
                Some(ids) => ids.insert(id),
                None => self
                    .by_selector
                    .insert(selector.clone(), HashSet::from([id]))
                    .is_none(),
            };
        }
        self.by_content.entry(content).or_default().push(id);
        let group = Group {
            selectors,
            content,
            members: 0,
            wanting: 0,
            touched: false,
            news: watch::Sender::new(0),
        };
        self.groups.insert(id, group);
        id
    }

    fn remove(&mut self, id: u64) {
        let Some(group) = self.groups.remove(&id) else {
            return;
        };
        if let Some(alike) = self.by_content.get_mut(&group.content) {
            alike.retain(|other| *other != id);
            if alike.is_empty() {
                self.by_content.remove(&group.content);
            }
        }
        for selector in group.selectors.iter() {
            if let Some(ids) = self.by_selector.get_mut(selector) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_selector.remove(selector);
                }
            }
        }
    }

    /// The groups that get the entry.
    fn matching<'a>(&'a self, entry: &'a CachedEntry) -> impl Iterator<Item = (u64, &'a Group)> {
        let postings = entry
            .selectors
            .iter()
            .map(|selector| self.by_selector.get(selector));
        let rarest = postings.min_by_key(|ids| ids.map_or(0, HashSet::len)).flatten();
        rarest
            .into_iter()
            .flatten()
            .filter_map(|id| Some((*id, self.groups.get(id)?)))
            .filter(|(_id, group)| {
                #[cfg(test)]
                visits::count();
                entry.matches(&group.selectors)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svids::tests::{cached, selectors};

    fn subscribe(subscribers: &Arc<Subscribers>, values: &[&str], wanting: bool) -> Subscription {
        subscribers.subscribe(Arc::new(selectors(values)), wanting)
    }

    fn about(entries: &[Arc<CachedEntry>]) -> News {
        News {
            everyone: false,
            entries: entries.to_vec(),
        }
    }

    /// Whether there is an unseen change; marks it as seen.
    fn heard(subscription: &mut Subscription) -> bool {
        let news = subscription.news.has_changed().unwrap();
        subscription.mark_seen();
        news
    }

    #[test]
    fn news_of_an_entry_reach_those_it_matches_and_nobody_else() {
        let subscribers = Arc::new(Subscribers::default());
        let mut one = subscribe(&subscribers, &["uid:1", "gid:1"], true);
        let mut same = subscribe(&subscribers, &["gid:1", "uid:1"], false);
        let mut less = subscribe(&subscribers, &["uid:1"], true);
        let mut none = subscribe(&subscribers, &[], false);
        let mut hear = |version, news: &News| {
            subscribers.tell(version, news);
            [&mut one, &mut same, &mut less, &mut none].map(heard)
        };
        let both = cached("a", &["uid:1", "gid:1"]);
        assert_eq!(hear(1, &about(&[both])), [true, true, false, false]);
        assert_eq!(
            hear(2, &about(&[cached("b", &["uid:1"])])),
            [true, true, true, false]
        );
        assert_eq!(hear(3, &about(&[cached("c", &["uid:2"])])), [false; 4]);
        let stored = Arc::new(CachedEntry {
            store_svid: true,
            ..(*cached("d", &["uid:1"])).clone()
        });
        assert_eq!(hear(4, &about(&[stored])), [false; 4]);
        let everyone = News {
            everyone: true,
            entries: Vec::new(),
        };
        assert_eq!(hear(5, &everyone), [true; 4]);
        assert_eq!((one.version(), none.version()), (5, 5));
    }

    #[tokio::test]
    async fn what_was_published_while_nobody_waited_is_heard_of_once() {
        let subscribers = Arc::new(Subscribers::default());
        let mut subscription = subscribe(&subscribers, &["uid:1"], false);
        let entry = cached("a", &["uid:1"]);
        subscribers.tell(7, &about(&[Arc::clone(&entry), entry]));
        subscription.changed().await;
        assert_eq!(subscription.version(), 7);
        assert!(futures_util::FutureExt::now_or_never(subscription.changed()).is_none());
    }

    #[test]
    fn an_entry_is_wanted_while_a_subscription_that_wants_it_lives() {
        let subscribers = Arc::new(Subscribers::default());
        let entry = cached("a", &["uid:1"]);
        let observing = subscribe(&subscribers, &["uid:1", "gid:1"], false);
        assert!(!subscribers.is_wanted(&entry) && subscribers.take_touched().is_empty());
        let first = subscribe(&subscribers, &["uid:1", "gid:1"], true);
        let second = subscribe(&subscribers, &["uid:1", "gid:2"], true);
        assert!(subscribers.is_wanted(&entry));
        assert_eq!(subscribers.take_touched().len(), 2);
        drop(first);
        assert!(subscribers.is_wanted(&entry));
        drop(second);
        assert!(!subscribers.is_wanted(&entry));
        let touched = subscribers.take_touched();
        assert_eq!(*touched[1], selectors(&["uid:1", "gid:2"]));
        assert_eq!((touched.len(), subscribers.count()), (2, (1, 0)));
        drop(observing);
    }

    #[test]
    fn an_observer_can_begin_to_want_and_keeps_that_with_other_selectors() {
        let subscribers = Arc::new(Subscribers::default());
        let (one, two) = (cached("a", &["uid:1"]), cached("b", &["uid:2"]));
        let mut stream = subscribe(&subscribers, &["uid:1"], false);
        subscribers.tell(1, &about(&[Arc::clone(&one)]));
        stream.want();
        stream.want();
        assert!(subscribers.is_wanted(&one) && subscribers.count() == (1, 1));
        assert_eq!(subscribers.take_touched().len(), 1);
        assert!(heard(&mut stream), "news are not lost by it");
        let next = stream.with_selectors(Arc::new(selectors(&["uid:2"])));
        assert!(subscribers.is_wanted(&one) && subscribers.is_wanted(&two));
        drop(std::mem::replace(&mut stream, next));
        assert!(!subscribers.is_wanted(&one) && subscribers.is_wanted(&two));
        drop(stream);
        assert_eq!(subscribers.count(), (0, 0));
    }

    #[test]
    fn nobody_is_woken_for_callers_that_come_and_go_but_for_one_in_a_hurry_or_very_many() {
        use futures_util::FutureExt as _;
        let subscribers = Arc::new(Subscribers::default());
        let woken = || subscribers.touched().now_or_never().is_some();
        let caller = |n: usize| {
            let mut caller = subscribe(&subscribers, &[&format!("uid:{n}")], false);
            caller.want();
            caller
        };
        for _ in 0..1000 {
            drop(caller(1));
            subscribers.take_touched();
        }
        assert!(!woken());
        let waiting = caller(1);
        waiting.hurry();
        assert!(woken() && !woken());
        subscribers.take_touched();
        let many: Vec<_> = (0..MOST_UNTOLD).map(caller).collect();
        assert!(woken());
        assert_eq!(subscribers.take_touched().len(), MOST_UNTOLD);
        drop(many);
        assert!(woken());
    }

    #[test]
    fn nothing_is_left_of_subscriptions_that_are_gone() {
        let subscribers = Arc::new(Subscribers::default());
        for n in 0..10 {
            let uid = format!("uid:{}", n % 3);
            drop((
                subscribe(&subscribers, &["ns:prod", &uid], true),
                subscribe(&subscribers, &["ns:prod"], false),
            ));
            subscribers.take_touched();
        }
        let state = subscribers.lock();
        assert_eq!((state.subscriptions, state.wanting), (0, 0));
        assert!(state.groups.is_empty() && state.by_content.is_empty() && state.by_selector.is_empty());
    }
}
