//! Which objects of a kind are known, and in which version. Pure.

use std::collections::{HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::kubernetes::derive::NamespacedName;

/// How many deleted objects are remembered, because events about them may come late.
const REMEMBERED: usize = 16_384;

/// The objects of one kind.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    known: HashMap<NamespacedName, Seen>,
    deleted: HashSet<String>,
    deleted_in_order: VecDeque<String>,
    listed: Option<HashSet<NamespacedName>>,
}

#[derive(Debug)]
struct Seen {
    uid: String,
    /// Versions of etcd grow over all objects; where one is no number, order is not known.
    version: Option<u64>,
}

impl Tracker {
    /// Takes in an object that a list has. Lists are asked of the store itself, so what they have is so, even in a lower
    /// version or after it was deleted: the store may have been restored to what it was before.
    pub(super) fn listed(&mut self, name: &NamespacedName, meta: &ObjectMeta) {
        if let Some(listed) = &mut self.listed {
            listed.insert(name.clone());
        }
        self.found(name, meta);
    }

    /// Takes in an object that was asked for, which is as good as a list.
    pub(super) fn found(&mut self, name: &NamespacedName, meta: &ObjectMeta) {
        let uid = uid(meta);
        if self.deleted.remove(&uid) {
            self.deleted_in_order.retain(|deleted| *deleted != uid);
        }
        let version = version(meta);
        self.known.insert(name.clone(), Seen { uid, version });
    }

    /// Takes in an object that a watch tells of. False when it is older than what is known.
    pub(super) fn applied(&mut self, name: &NamespacedName, meta: &ObjectMeta) -> bool {
        let (uid, version) = (uid(meta), version(meta));
        if self.deleted.contains(&uid) {
            return false;
        }
        let before = self.known.get(name);
        if let Some(seen) = before.filter(|seen| seen.uid == uid)
            && let (Some(known), Some(told)) = (seen.version, version)
            && told < known
        {
            return false;
        }
        // Of one name there is one object: another one in its place means that the first is gone.
        let replaced = before
            .map(|seen| seen.uid.clone())
            .filter(|before| *before != uid);
        self.known.insert(name.clone(), Seen { uid, version });
        if let Some(replaced) = replaced {
            self.remember_deleted(replaced);
        }
        true
    }

    /// Takes in a deletion. False when it is about an object that another one has replaced.
    pub(super) fn deleted(&mut self, name: &NamespacedName, meta: &ObjectMeta) -> bool {
        let uid = uid(meta);
        let is_current = self.known.get(name).is_some_and(|seen| seen.uid == uid);
        if is_current {
            self.known.remove(name);
        }
        self.remember_deleted(uid);
        is_current
    }

    /// In a watch an object never comes back under its uid.
    fn remember_deleted(&mut self, uid: String) {
        if uid.is_empty() || !self.deleted.insert(uid.clone()) {
            return;
        }
        self.deleted_in_order.push_back(uid);
        if self.deleted_in_order.len() > REMEMBERED
            && let Some(oldest) = self.deleted_in_order.pop_front()
        {
            self.deleted.remove(&oldest);
        }
    }

    /// A new list begins; it counts when it is complete.
    pub(super) fn list_began(&mut self) {
        self.listed = Some(HashSet::new());
    }

    /// The list is complete. What it lacks may be gone; the API server must say so of each.
    pub(super) fn list_done(&mut self) -> Vec<NamespacedName> {
        let Some(listed) = self.listed.take() else {
            return Vec::new();
        };
        let mut missing: Vec<NamespacedName> = self
            .known
            .keys()
            .filter(|name| !listed.contains(name))
            .cloned()
            .collect();
        missing.sort_unstable();
        missing
    }

    /// The API server says that there is no object of this name.
    pub(super) fn is_not_there(&mut self, name: &NamespacedName) -> bool {
        self.known.remove(name).is_some()
    }
}

fn uid(meta: &ObjectMeta) -> String {
    meta.uid.clone().unwrap_or_default()
}

fn version(meta: &ObjectMeta) -> Option<u64> {
    meta.resource_version.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(uid: &str, version: u64) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        }
    }

    fn name(name: &str) -> NamespacedName {
        NamespacedName::new("ns", name)
    }

    #[test]
    fn news_that_come_late_change_nothing() {
        let mut tracker = Tracker::default();
        let a = name("a");
        assert!(tracker.applied(&a, &meta("1", 10)));
        assert!(tracker.applied(&a, &meta("1", 12)));
        assert!(!tracker.applied(&a, &meta("1", 11)), "an older version");
        assert!(tracker.applied(&a, &meta("1", 12)), "twice is harmless");
        assert!(tracker.deleted(&a, &meta("1", 13)));
        assert!(!tracker.applied(&a, &meta("1", 12)), "it is gone for good");
        assert!(!tracker.applied(&a, &meta("1", 14)), "a uid never comes back");
        assert!(
            tracker.applied(&a, &meta("2", 15)),
            "another object of the same name"
        );
        assert!(
            !tracker.deleted(&a, &meta("1", 13)),
            "the deletion of the one before"
        );
        assert!(tracker.applied(&a, &meta("2", 16)));
    }

    #[test]
    fn a_list_takes_nothing_away_before_it_is_complete_and_then_only_asks() {
        let mut tracker = Tracker::default();
        for n in ["a", "b", "c"] {
            tracker.applied(&name(n), &meta(n, 1));
        }
        tracker.list_began();
        tracker.listed(&name("a"), &meta("a", 1));
        // The list breaks off, and another begins.
        tracker.list_began();
        tracker.listed(&name("b"), &meta("b", 2));
        assert_eq!(tracker.list_done(), [name("a"), name("c")]);
        assert!(tracker.is_not_there(&name("a")));
        assert!(!tracker.is_not_there(&name("a")));
        // `c` was a hole in the list: it is still there, and is taken in again.
        tracker.found(&name("c"), &meta("c", 3));
        assert_eq!(tracker.list_done(), []);
    }

    #[test]
    fn after_the_store_was_restored_lists_and_answers_count_and_so_does_what_follows() {
        for is_listed in [true, false] {
            let mut tracker = Tracker::default();
            let a = name("a");
            tracker.applied(&a, &meta("1", 90));
            tracker.deleted(&name("b"), &meta("2", 91));
            let take = |tracker: &mut Tracker, name: &NamespacedName, meta: &ObjectMeta| {
                if is_listed {
                    tracker.listed(name, meta);
                } else {
                    tracker.found(name, meta);
                }
            };
            take(&mut tracker, &a, &meta("1", 10));
            assert!(tracker.applied(&a, &meta("1", 11)), "counted from the list on");
            assert!(!tracker.applied(&a, &meta("1", 9)));
            take(&mut tracker, &name("b"), &meta("2", 5));
            assert!(
                tracker.applied(&name("b"), &meta("2", 12)),
                "deleted in a history that is no more"
            );
        }
    }

    #[test]
    fn versions_of_two_objects_are_not_compared_and_the_one_that_was_replaced_is_gone() {
        let mut tracker = Tracker::default();
        let a = name("a");
        assert!(tracker.applied(&a, &meta("1", 90)));
        assert!(tracker.applied(&a, &meta("2", 10)));
        assert!(!tracker.applied(&a, &meta("1", 91)), "late news of the first");
        assert!(tracker.applied(&a, &meta("2", 11)));
    }

    #[test]
    fn memory_of_deleted_objects_is_bounded() {
        let mut tracker = Tracker::default();
        for n in 0..REMEMBERED + 10 {
            tracker.deleted(&name("a"), &meta(&n.to_string(), 1));
        }
        assert_eq!(tracker.deleted.len(), REMEMBERED);
        assert!(tracker.applied(&name("a"), &meta("0", 1)));
        assert!(!tracker.applied(&name("a"), &meta("10", 1)));
    }
}
