//! What the feed has passed on, by digest: finds what is new in the server's messages. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire::DigestSum;

use super::feed::Update;
use crate::upstream::{AuthorizedEntry, EntryStamp, PolledEntries, ReceivedEntry};

/// What was passed on.
#[derive(Debug, Default)]
pub(super) struct Index {
    held: HashMap<String, Held>,
    sum: DigestSum,
}

#[derive(Debug)]
struct Held {
    digest: u128,
    stamp: EntryStamp,
    federates_with: Vec<TrustDomain>,
}

impl Index {
    /// The digest of all that was passed on.
    pub(super) fn sum(&self) -> u128 {
        self.sum.value()
    }

    pub(super) fn stamp(&self, id: &str) -> Option<EntryStamp> {
        self.held.get(id).map(|held| held.stamp)
    }

    pub(super) fn federates_with(&self) -> BTreeSet<TrustDomain> {
        let names = self.held.values().flat_map(|held| &held.federates_with);
        names.cloned().collect()
    }

    /// The digest there would be after a step.
    pub(super) fn sum_after(&self, upserts: &[ReceivedEntry], removals: &[String]) -> u128 {
        let mut sum = self.sum;
        let mut touched: HashMap<&str, Option<u128>> = HashMap::new();
        let before = |id: &str| self.held.get(id).map(|held| held.digest);
        let steps = upserts
            .iter()
            .map(|entry| (entry.id.as_str(), Some(entry.digest)));
        for (id, after) in steps.chain(removals.iter().map(|id| (id.as_str(), None))) {
            let replaced = touched.insert(id, after).unwrap_or_else(|| before(id));
            replaced.into_iter().for_each(|digest| sum.sub(digest));
            after.into_iter().for_each(|digest| sum.add(digest));
        }
        sum.value()
    }

    /// One step: returns what is new about it.
    pub(super) fn step(&mut self, upserts: Vec<ReceivedEntry>, removals: Vec<String>) -> Update {
        let mut passed = Vec::new();
        let mut gone = Vec::new();
        for received in upserts {
            if self
                .held
                .get(&received.id)
                .is_some_and(|held| held.digest == received.digest)
            {
                continue;
            }
            match self.take(received) {
                Ok(entry) => passed.push(entry),
                Err(id) => gone.push(id),
            }
        }
        for id in removals {
            if self.forget(&id) {
                gone.push(id);
            }
        }
        Update::Entries {
            upserts: passed,
            removals: gone,
        }
    }

    /// The whole set: what is not in it is gone.
    pub(super) fn replace(&mut self, received: Vec<ReceivedEntry>) -> Update {
        let present: HashSet<&str> = received.iter().map(|entry| entry.id.as_str()).collect();
        let gone = self.absent_from(&present);
        self.step(received, gone)
    }

    pub(super) fn merge(&mut self, polled: PolledEntries) -> Update {
        let present: HashSet<&str> = polled.ids.iter().map(String::as_str).collect();
        let gone = self.absent_from(&present);
        self.step(polled.changed, gone)
    }

    fn absent_from(&self, present: &HashSet<&str>) -> Vec<String> {
        let absent = self.held.keys().filter(|id| !present.contains(id.as_str()));
        absent.cloned().collect()
    }

    /// Notes an entry. One that cannot be used still counts in the digest; its former self must go.
    fn take(&mut self, received: ReceivedEntry) -> Result<AuthorizedEntry, String> {
        self.forget(&received.id);
        self.sum.add(received.digest);
        let federates_with = match &received.entry {
            Ok(entry) => entry.federates_with.clone(),
            Err(_unusable) => Vec::new(),
        };
        let held = Held {
            digest: received.digest,
            stamp: received.stamp,
            federates_with,
        };
        self.held.insert(received.id.clone(), held);
        received.entry.map_err(|error| {
            tracing::warn!(
                entry_id = received.id,
                error,
                "the server sent an entry that cannot be used"
            );
            received.id
        })
    }

    fn forget(&mut self, id: &str) -> bool {
        let held = self.held.remove(id);
        if let Some(held) = &held {
            self.sum.sub(held.digest);
        }
        held.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use finial_proto::spire::api::types;

    fn received(id: &str, revision_number: i64) -> ReceivedEntry {
        ReceivedEntry::from_wire(types::Entry {
            id: id.to_owned(),
            spiffe_id: Some(types::Spiffeid {
                trust_domain: "example.org".to_owned(),
                path: format!("/{id}"),
            }),
            selectors: vec![types::Selector {
                r#type: "unix".to_owned(),
                value: "uid:1".to_owned(),
            }],
            revision_number,
            federates_with: vec![format!("{id}.org")],
            ..types::Entry::default()
        })
    }

    fn names(update: &Update) -> (Vec<String>, Vec<String>) {
        let Update::Entries { upserts, removals } = update else {
            panic!("entries expected");
        };
        let mut gone = removals.clone();
        gone.sort();
        (upserts.iter().map(|entry| entry.id.clone()).collect(), gone)
    }

    fn list(ids: &[&str]) -> Vec<String> {
        ids.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_snapshot_passes_on_only_what_differs() {
        let mut index = Index::default();
        index.replace(vec![received("a", 0), received("b", 0), received("c", 0)]);
        let update = index.replace(vec![received("a", 0), received("b", 1), received("d", 0)]);
        assert_eq!(names(&update), (list(&["b", "d"]), list(&["c"])));
        let sum = DigestSum::of([received("a", 0), received("b", 1), received("d", 0)].map(|e| e.digest));
        assert_eq!(index.sum.value(), sum.value());
    }

    #[test]
    fn the_digest_after_a_step_is_known_before_it_is_taken() {
        let mut index = Index::default();
        index.replace(vec![received("a", 0), received("b", 0)]);
        for (upserts, removals) in [
            (vec![received("a", 1), received("c", 0)], list(&["b", "unknown"])),
            (vec![received("a", 1)], list(&[])),
            (vec![received("a", 2), received("a", 3)], list(&["a"])),
            (vec![], list(&["c", "c"])),
        ] {
            let expected = index.sum_after(&upserts, &removals);
            index.step(upserts, removals);
            assert_eq!(index.sum.value(), expected);
        }
        assert_eq!(index.sum.value(), 0);
    }

    #[test]
    fn an_entry_that_becomes_unusable_is_removed_but_still_counted() {
        let mut index = Index::default();
        index.replace(vec![received("a", 0)]);
        let mut broken = received("a", 1);
        broken.entry = Err("no selectors".to_owned());
        let expected = broken.digest;
        let update = index.step(vec![broken], vec![]);
        assert_eq!(names(&update), (list(&[]), list(&["a"])));
        assert_eq!(index.sum.value(), expected);
    }

    #[test]
    fn polled_ids_that_are_missing_are_gone() {
        let mut index = Index::default();
        index.replace(vec![received("a", 0), received("b", 0)]);
        let update = index.merge(PolledEntries {
            ids: list(&["a", "c"]),
            changed: vec![received("c", 0)],
        });
        assert_eq!(names(&update), (list(&["c"]), list(&["b"])));
        let federated: Vec<_> = index
            .federates_with()
            .into_iter()
            .map(|name| name.to_string())
            .collect();
        assert_eq!(federated, ["a.org", "c.org"]);
    }
}
