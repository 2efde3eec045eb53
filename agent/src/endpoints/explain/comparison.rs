//! Compares the facts about a process with the entries that the agent holds. Pure.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_proto::finial::agent::explain::v1::{Difference, Match, NearMiss, Verdict};

use super::redaction::Redaction;
use crate::svids::{CachedEntry, Snapshot};

/// The largest number of near misses that are reported.
pub(super) const NEAREST: usize = 10;
/// An entry with more selectors that do not hold is no near miss.
const FARTHEST: usize = 3;
/// The largest number of facts of the same kind that are reported with a selector that does not match.
const FOUND: usize = 8;

/// What the facts come to.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    pub(super) matches: Vec<Match>,
    pub(super) near_misses: Vec<NearMiss>,
}

/// Compares `facts` with all entries of `snapshot`.
pub(super) fn compare(snapshot: &Snapshot, facts: &HashSet<Selector>, redaction: &Redaction) -> Comparison {
    let mut matches = Vec::new();
    let mut near: Vec<(usize, Reverse<usize>, &Arc<CachedEntry>)> = Vec::new();
    for entry in snapshot.entries.iter() {
        if entry.fits(facts) {
            matches.push(describe(entry, redaction));
            continue;
        }
        let held = entry
            .selectors
            .iter()
            .filter(|wanted| facts.contains(*wanted))
            .count();
        let missing = entry.selectors.len() - held;
        if missing <= FARTHEST && (held > 0 || missing == 1) {
            near.push((missing, Reverse(held), entry));
        }
    }
    // Stable: entries that are equally near stay ordered by id.
    near.sort_by_key(|(missing, held, _entry)| (*missing, *held));
    let near_misses = near
        .into_iter()
        .take(NEAREST)
        .map(|(_missing, _held, entry)| near_miss(entry, facts, redaction))
        .collect();
    Comparison { matches, near_misses }
}

/// The verdict for the operator. `attested` is whether no attestor failed.
pub(super) fn verdict(snapshot: &Snapshot, matches: &[Match], attested: bool, may_serve: bool) -> Verdict {
    let usable = || matches.iter().filter(|found| !found.store_svid);
    if !may_serve {
        Verdict::AgentBanned
    } else if !attested {
        Verdict::AttestationFailed
    } else if usable().any(|found| found.x509_svid_expires_at > 0) {
        Verdict::HasIdentity
    } else if usable().next().is_some() {
        Verdict::WaitingForSvid
    } else if snapshot.synced_at.is_none() {
        Verdict::NotSynced
    } else if snapshot.entries.is_empty() {
        Verdict::AgentHasNoEntries
    } else {
        Verdict::NoEntryMatches
    }
}

fn describe(entry: &CachedEntry, redaction: &Redaction) -> Match {
    let expires_at = entry
        .svid
        .as_ref()
        .map(|issued| issued.expires_at().unix_timestamp());
    Match {
        entry_id: entry.entry_id.clone(),
        spiffe_id: entry.spiffe_id.to_string(),
        hint: entry.hint.clone(),
        selectors: entry.selectors.iter().map(|one| redaction.show(one)).collect(),
        x509_svid_expires_at: expires_at.unwrap_or_default(),
        store_svid: entry.store_svid,
    }
}

fn near_miss(entry: &CachedEntry, facts: &HashSet<Selector>, redaction: &Redaction) -> NearMiss {
    let (matched, missing): (Vec<&Selector>, Vec<&Selector>) =
        entry.selectors.iter().partition(|wanted| facts.contains(*wanted));
    NearMiss {
        entry_id: entry.entry_id.clone(),
        spiffe_id: entry.spiffe_id.to_string(),
        matched: matched.into_iter().map(|one| redaction.show(one)).collect(),
        differences: missing
            .into_iter()
            .map(|wanted| Difference {
                wanted: redaction.show(wanted),
                found: same_kind(wanted, facts, redaction),
            })
            .collect(),
    }
}

/// Facts that say something else where `wanted` says this: `unix:uid:0` for `unix:uid:1000`.
fn same_kind(wanted: &Selector, facts: &HashSet<Selector>, redaction: &Redaction) -> Vec<String> {
    let kind = key(wanted);
    let mut found: Vec<String> = facts
        .iter()
        .filter(|fact| fact.kind() == wanted.kind() && key(fact) == kind)
        .map(|fact| redaction.show(fact))
        .collect();
    found.sort_unstable();
    found.dedup();
    found.truncate(FOUND);
    found
}

/// What a selector is about: all of its value but what stands behind the last colon, as `label:app` of
/// `label:app:web`.
fn key(selector: &Selector) -> &str {
    let value = selector.value();
    value.rsplit_once(':').map_or(value, |(key, _value)| key)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use finial_identity::spiffe_id::TrustDomain;
    use time::macros::datetime;

    use super::*;
    use crate::svids::tests::unissued;

    fn selectors(texts: &[&str]) -> Vec<Selector> {
        let mut all: Vec<Selector> = texts.iter().map(|text| Selector::parse(text).unwrap()).collect();
        all.sort_unstable();
        all
    }

    fn entry(id: &str, wanted: &[&str]) -> CachedEntry {
        unissued(id, selectors(wanted))
    }

    fn snapshot(entries: Vec<CachedEntry>) -> Snapshot {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        Snapshot {
            entries: entries.into_iter().map(Arc::new).collect(),
            own_bundle: Arc::new(crate::node::bundle_of(&trust_domain, Vec::new())),
            federated: BTreeMap::new(),
            synced_at: Some(datetime!(2030-01-01 00:00 UTC)),
            version: 1,
        }
    }

    fn facts(texts: &[&str]) -> HashSet<Selector> {
        selectors(texts).into_iter().collect()
    }

    #[test]
    fn tells_what_matches_and_the_one_selector_that_differs() {
        let snapshot = snapshot(vec![
            entry(
                "far",
                &[
                    "k8s:ns:a",
                    "k8s:sa:b",
                    "k8s:pod-name:c",
                    "k8s:pod-uid:d",
                    "unix:uid:1000",
                ],
            ),
            entry("near", &["unix:uid:1000", "docker:label:app:web"]),
            entry("other", &["unix:uid:0"]),
            entry("two", &["unix:uid:1000", "docker:label:app:db", "unix:gid:5"]),
            entry("yes", &["unix:uid:1000"]),
        ]);
        let facts = facts(&[
            "unix:uid:1000",
            "unix:gid:1000",
            "docker:label:app:api",
            "docker:label:x:y",
        ]);
        let found = compare(&snapshot, &facts, &Redaction::default());
        let ids: Vec<_> = found.matches.iter().map(|one| one.entry_id.as_str()).collect();
        assert_eq!(ids, ["yes"]);
        let misses: Vec<_> = found
            .near_misses
            .iter()
            .map(|one| one.entry_id.as_str())
            .collect();
        assert_eq!(misses, ["near", "other", "two"]);
        let near = &found.near_misses[0];
        assert_eq!(near.matched, ["unix:uid:1000"]);
        let expected = Difference {
            wanted: "docker:label:app:web".to_owned(),
            found: vec!["docker:label:app:api".to_owned()],
        };
        assert_eq!(near.differences, [expected]);
        assert_eq!(found.near_misses[1].differences[0].found, ["unix:uid:1000"]);
    }

    #[test]
    fn only_the_nearest_are_told_and_values_may_be_hidden() {
        let many = (0..30).map(|n| entry(&format!("e{n:02}"), &["docker:env:TOKEN=a", "unix:uid:1"]));
        let snapshot = snapshot(many.collect());
        let facts = facts(&["docker:env:TOKEN=b", "unix:uid:1"]);
        let found = compare(&snapshot, &facts, &Redaction::default());
        assert_eq!(found.near_misses.len(), NEAREST);
        assert_eq!(found.near_misses[0].entry_id, "e00");
        let text = format!("{found:?}");
        assert!(!text.contains("TOKEN=a") && !text.contains("TOKEN=b"), "{text}");
    }

    #[test]
    fn the_verdict_names_the_first_thing_to_mend() {
        let full = snapshot(vec![entry("a", &["unix:uid:1"])]);
        let matching = compare(&full, &facts(&["unix:uid:1"]), &Redaction::default()).matches;
        let issued = vec![Match {
            x509_svid_expires_at: 5,
            ..matching[0].clone()
        }];
        let stored = vec![Match {
            store_svid: true,
            ..issued[0].clone()
        }];
        let empty = snapshot(Vec::new());
        let unsynced = Snapshot {
            synced_at: None,
            ..snapshot(Vec::new())
        };
        let cases = [
            (&full, &issued, true, true, Verdict::HasIdentity),
            (&full, &matching, true, true, Verdict::WaitingForSvid),
            (&full, &stored, true, true, Verdict::NoEntryMatches),
            (&full, &Vec::new(), true, true, Verdict::NoEntryMatches),
            (&empty, &Vec::new(), true, true, Verdict::AgentHasNoEntries),
            (&unsynced, &Vec::new(), true, true, Verdict::NotSynced),
            (&full, &issued, false, true, Verdict::AttestationFailed),
            (&full, &issued, true, false, Verdict::AgentBanned),
        ];
        for (snapshot, matches, attested, may_serve, expected) in cases {
            assert_eq!(verdict(snapshot, matches, attested, may_serve), expected);
        }
    }
}
