//! The agent's entries as a set that snapshots share: in the order of their ids, and found by selectors.
//!
//! A copy is cheap and shares everything that is not changed afterwards, so publishing one changed entry among ten
//! thousand replaces only a few nodes of the tree. Every entry is indexed by the rarest of its selectors; a search for
//! a workload reads only the entries indexed by the workload's selectors.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use finial_identity::selector::Selector;
use rpds::{HashTrieMapSync, RedBlackTreeMapSync};

use super::cache::CachedEntry;
#[cfg(test)]
use super::visits;

/// Entries by id. Cheap to clone.
#[derive(Clone, Default)]
pub struct Entries {
    by_id: RedBlackTreeMapSync<Arc<str>, Filed>,
    by_selector: HashTrieMapSync<Selector, Posting>,
}

#[derive(Clone)]
struct Filed {
    entry: Arc<CachedEntry>,
    /// Which of its selectors it is filed under; none when no workload can ever match it.
    under: Option<usize>,
}

#[derive(Clone, Default)]
struct Posting {
    /// How many entries have the selector.
    uses: usize,
    /// Those that are filed under it.
    filed: RedBlackTreeMapSync<Arc<str>, Arc<CachedEntry>>,
}

impl Entries {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.size()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All of them, ordered by id.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<CachedEntry>> {
        self.by_id.values().map(|filed| &filed.entry)
    }

    /// The entry with this id.
    pub fn get(&self, id: &str) -> Option<&Arc<CachedEntry>> {
        self.by_id.get(id).map(|filed| &filed.entry)
    }

    /// The entries all of whose selectors are among `selectors`, ordered by id.
    pub fn matching(&self, selectors: &HashSet<Selector>) -> Vec<&Arc<CachedEntry>> {
        let postings = selectors
            .iter()
            .filter_map(|selector| self.by_selector.get(selector));
        let mut found: Vec<&Arc<CachedEntry>> = postings
            .flat_map(|posting| posting.filed.values())
            .filter(|entry| {
                #[cfg(test)]
                visits::count();
                entry.matches(selectors)
            })
            .collect();
        found.sort_unstable_by(|a, b| a.entry_id.cmp(&b.entry_id));
        found
    }

    /// Puts an entry in the place of the one with the same id, which is returned.
    pub(super) fn insert(&mut self, entry: Arc<CachedEntry>) -> Option<Arc<CachedEntry>> {
        let present = self.by_id.get_key_value(entry.entry_id.as_str());
        let Some((id, held)) = present.map(|(id, filed)| (Arc::clone(id), filed.clone())) else {
            self.file(Arc::from(entry.entry_id.as_str()), entry);
            return None;
        };
        if held.entry.store_svid == entry.store_svid && held.entry.selectors == entry.selectors {
            if let Some(posting) = self.posting_mut(&entry, held.under) {
                posting.filed.insert_mut(Arc::clone(&id), Arc::clone(&entry));
            }
            let under = held.under;
            self.by_id.insert_mut(id, Filed { entry, under });
        } else {
            self.unfile(&held);
            self.file(id, entry);
        }
        Some(held.entry)
    }

    /// Takes the entry with this id out.
    pub(super) fn remove(&mut self, id: &str) -> Option<Arc<CachedEntry>> {
        let held = self.by_id.get(id)?.clone();
        self.unfile(&held);
        self.by_id.remove_mut(id);
        Some(held.entry)
    }

    fn file(&mut self, id: Arc<str>, entry: Arc<CachedEntry>) {
        let mut under: Option<(usize, usize)> = None;
        for (at, selector) in filed_selectors(&entry).iter().enumerate() {
            let uses = match self.by_selector.get_mut(selector) {
                Some(posting) => {
                    posting.uses += 1;
                    posting.uses
                }
                None => {
                    let first = Posting {
                        uses: 1,
                        ..Posting::default()
                    };
                    self.by_selector.insert_mut(selector.clone(), first);
                    1
                }
            };
            if under.is_none_or(|(rarest, _at)| uses < rarest) {
                under = Some((uses, at));
            }
        }
        let under = under.map(|(_uses, at)| at);
        if let Some(posting) = self.posting_mut(&entry, under) {
            posting.filed.insert_mut(Arc::clone(&id), Arc::clone(&entry));
        }
        self.by_id.insert_mut(id, Filed { entry, under });
    }

    fn unfile(&mut self, held: &Filed) {
        if let Some(posting) = self.posting_mut(&held.entry, held.under) {
            posting.filed.remove_mut(held.entry.entry_id.as_str());
        }
        for selector in filed_selectors(&held.entry) {
            let Some(posting) = self.by_selector.get_mut(selector) else {
                continue;
            };
            posting.uses -= 1;
            if posting.uses == 0 {
                self.by_selector.remove_mut(selector);
            }
        }
    }

    fn posting_mut(&mut self, entry: &CachedEntry, under: Option<usize>) -> Option<&mut Posting> {
        self.by_selector.get_mut(entry.selectors.get(under?)?)
    }
}

impl FromIterator<Arc<CachedEntry>> for Entries {
    fn from_iter<T: IntoIterator<Item = Arc<CachedEntry>>>(entries: T) -> Self {
        let mut all = Self::default();
        for entry in entries {
            all.insert(entry);
        }
        all
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The selectors by which workloads find the entry: none when it goes to an SVID store.
fn filed_selectors(entry: &CachedEntry) -> &[Selector] {
    if entry.store_svid { &[] } else { &entry.selectors }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svids::tests::{cached, selectors};

    fn ids(entries: &Entries, values: &[&str]) -> Vec<String> {
        let matching = entries.matching(&selectors(values));
        matching.iter().map(|entry| entry.entry_id.clone()).collect()
    }

    fn all(entries: &Entries) -> Vec<&str> {
        entries.iter().map(|entry| entry.entry_id.as_str()).collect()
    }

    #[test]
    fn a_copy_does_not_see_later_changes_and_shares_what_did_not_change() {
        let mut entries: Entries = [cached("b", &["uid:2"]), cached("a", &["uid:1"])]
            .into_iter()
            .collect();
        let before = entries.clone();
        let replaced = entries.insert(cached("b", &["uid:3"])).unwrap();
        assert!(Arc::ptr_eq(&replaced, before.get("b").unwrap()));
        assert!(Arc::ptr_eq(entries.get("a").unwrap(), before.get("a").unwrap()));
        entries.remove("a").unwrap();
        assert!(entries.remove("a").is_none());
        assert_eq!((all(&before), all(&entries)), (vec!["a", "b"], vec!["b"]));
        assert_eq!(ids(&before, &["uid:1", "uid:2"]), ["a", "b"]);
        assert_eq!(ids(&entries, &["uid:1", "uid:2", "uid:3"]), ["b"]);
    }

    #[test]
    fn a_workload_gets_the_entries_whose_selectors_it_has_all() {
        let entries: Entries = [
            cached("a", &["uid:1", "gid:1"]),
            cached("b", &["uid:1"]),
            cached("c", &["uid:2"]),
            Arc::new(CachedEntry {
                store_svid: true,
                ..(*cached("d", &["uid:1"])).clone()
            }),
        ]
        .into_iter()
        .collect();
        assert_eq!(ids(&entries, &["uid:1", "gid:1", "path:/x"]), ["a", "b"]);
        assert_eq!(ids(&entries, &["uid:1"]), ["b"]);
        assert!(ids(&entries, &["gid:1"]).is_empty());
        assert!(ids(&entries, &[]).is_empty());
        assert_eq!(entries.len(), 4);
    }

    #[test]
    fn an_entry_is_found_wherever_it_is_filed_after_any_changes() {
        let mut entries = Entries::default();
        let values = |n: usize| -> Vec<String> {
            vec!["ns:prod".to_owned(), format!("sa:{}", n % 7), format!("pod:{n}")]
        };
        for n in 0..200 {
            let all = values(n % 100);
            let some: Vec<&str> = all.iter().skip(n % 3).map(String::as_str).collect();
            entries.insert(cached(&format!("e{}", n % 90), &some));
            if n % 5 == 0 {
                entries.remove(&format!("e{}", n / 2));
            }
        }
        for n in 0..100 {
            let workload: Vec<String> = values(n);
            let workload = selectors(&workload.iter().map(String::as_str).collect::<Vec<_>>());
            let wanted: Vec<_> = entries.iter().filter(|entry| entry.matches(&workload)).collect();
            let found = entries.matching(&workload);
            assert!(
                wanted.len() == found.len() && wanted.iter().zip(&found).all(|(a, b)| Arc::ptr_eq(a, b)),
                "{n}: {wanted:?} and {found:?}"
            );
        }
        let ids: Vec<String> = entries.iter().map(|entry| entry.entry_id.clone()).collect();
        for id in ids {
            entries.remove(&id);
        }
        assert!(entries.is_empty() && entries.by_selector.is_empty());
    }

    #[test]
    fn those_with_a_common_selector_are_not_looked_at_for_one_with_a_rare_one() {
        let entries: Entries = (0..1000)
            .map(|n| cached(&format!("e{n}"), &["ns:prod", &format!("pod:{n}")]))
            .collect();
        let visited = visits::during(|| assert_eq!(ids(&entries, &["ns:prod", "pod:7"]), ["e7"]));
        assert!(visited <= 3, "{visited}");
    }
}
