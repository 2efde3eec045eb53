//! Which entries an agent may have, and which agents an entry concerns. Pure.
//!
//! An agent's set is every entry whose parent is the agent, or the SPIFFE ID of an entry in the set;
//! and likewise below each node alias (an entry whose parent is the server) whose selectors the node
//! has all of. Aliases themselves are not in the set. Each parent is visited once, which cuts cycles.

use std::collections::HashSet;

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;

use super::index::{IdNumber, Index, Slot};

/// What an agent reaches.
#[derive(Debug, Default)]
pub(super) struct Reach {
    /// The set, each entry once, in no order.
    pub(super) entries: Vec<Slot>,
    /// The parents below which the entries were found.
    pub(super) parents: HashSet<IdNumber>,
}

/// Walks down from an agent.
pub(super) fn reach(index: &Index, agent: &SpiffeId, selectors: &[Selector]) -> Reach {
    let mut reach = Reach::default();
    let mut open: Vec<IdNumber> = index.id_number(agent).into_iter().collect();
    let aliases = index.aliases_within(selectors);
    open.extend(aliases.into_iter().map(|alias| index.holds(alias)));
    while let Some(parent) = open.pop() {
        if !reach.parents.insert(parent) {
            continue;
        }
        for child in index.children(parent) {
            reach.entries.push(child);
            open.push(index.holds(child));
        }
    }
    reach
}

/// Where an entry's authorization comes from.
#[derive(Debug, Default)]
pub(super) struct Roots {
    /// IDs that reach the entry if an agent bears them.
    pub(super) ids: HashSet<IdNumber>,
    /// Aliases that give the entry to every node with their selectors.
    pub(super) aliases: Vec<Slot>,
}

/// Walks up from an entry. Of an alias the only root is the alias: its holders get what is below it.
pub(super) fn roots(index: &Index, entry: Slot) -> Roots {
    if index.is_alias(entry) {
        return Roots {
            aliases: vec![entry],
            ..Roots::default()
        };
    }
    roots_above(index, index.parent(entry))
}

/// Walks up from a parent of entries.
pub(super) fn roots_above(index: &Index, parent: IdNumber) -> Roots {
    let mut roots = Roots::default();
    let mut open = vec![parent];
    while let Some(parent) = open.pop() {
        if !roots.ids.insert(parent) {
            continue;
        }
        for holder in index.holders(parent) {
            if index.is_alias(holder) {
                roots.aliases.push(holder);
            } else {
                open.push(index.parent(holder));
            }
        }
    }
    roots
}

/// Whether an agent may have one entry; cheaper than its whole set.
pub(super) fn is_authorized(index: &Index, agent: &SpiffeId, selectors: &[Selector], entry: Slot) -> bool {
    if index.is_alias(entry) {
        return false;
    }
    let roots = roots(index, entry);
    if index
        .id_number(agent)
        .is_some_and(|number| roots.ids.contains(&number))
    {
        return true;
    }
    !roots.aliases.is_empty() && {
        let own: HashSet<Slot> = index.aliases_within(selectors).into_iter().collect();
        roots.aliases.iter().any(|alias| own.contains(alias))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::{domain, entry, id};

    const SERVER: &str = "/spire/server";

    fn index(entries: &[(&str, &str, &str, &[&str])]) -> Index {
        let mut index = Index::new(&domain());
        for (row, (id, spiffe, parent, selectors)) in (1..).zip(entries) {
            index.put(row, &entry(id, spiffe, parent, selectors)).unwrap();
        }
        index
    }

    fn selectors(texts: &[&str]) -> Vec<Selector> {
        texts.iter().map(|text| Selector::parse(text).unwrap()).collect()
    }

    /// The set of an agent, proved to agree entry by entry.
    fn set(index: &Index, agent: &str, texts: &[&str]) -> Vec<String> {
        let (agent, selectors) = (id(agent), selectors(texts));
        let slots = reach(index, &agent, &selectors).entries;
        for (_, slot) in index.after(0) {
            assert_eq!(
                is_authorized(index, &agent, &selectors, slot),
                slots.contains(&slot)
            );
        }
        let mut ids: Vec<String> = slots.into_iter().map(|slot| index.id(slot)).collect();
        ids.sort_unstable();
        ids
    }

    #[test]
    fn follows_parents_down_from_the_agent() {
        let index = index(&[
            ("child", "/a", "/spire/agent/1", &["u:1"]),
            ("grandchild", "/b", "/a", &["u:1"]),
            ("other", "/c", "/spire/agent/2", &["u:1"]),
        ]);
        assert_eq!(set(&index, "/spire/agent/1", &[]), ["child", "grandchild"]);
    }

    #[test]
    fn gives_what_is_below_an_alias_but_not_the_alias() {
        let index = index(&[
            ("alias", "/nodes", SERVER, &["k8s:cluster:x", "k8s:zone:1"]),
            ("below", "/w", "/nodes", &["u:1"]),
            ("deeper", "/v", "/w", &["u:1"]),
        ]);
        let all = ["k8s:cluster:x", "k8s:zone:1", "k8s:more"];
        assert_eq!(set(&index, "/spire/agent/1", &all), ["below", "deeper"]);
        assert_eq!(set(&index, "/spire/agent/1", &["k8s:cluster:x"]), [] as [&str; 0]);
    }

    #[test]
    fn cuts_cycles_and_names_each_entry_once() {
        let index = index(&[
            ("start", "/a", "/spire/agent/1", &["u:1"]),
            ("ab", "/b", "/a", &["u:1"]),
            ("ba", "/a", "/b", &["u:1"]),
            ("self", "/b", "/b", &["u:2"]),
        ]);
        assert_eq!(set(&index, "/spire/agent/1", &[]), ["ab", "ba", "self", "start"]);
    }

    #[test]
    fn an_agent_that_no_entry_names_has_nothing() {
        let index = index(&[("child", "/a", "/spire/agent/1", &["u:1"])]);
        assert_eq!(set(&index, "/spire/agent/9", &["u:1"]), [] as [&str; 0]);
    }

    #[test]
    fn roots_are_the_agents_and_aliases_above() {
        let index = index(&[
            ("alias", "/nodes", SERVER, &["k8s:a"]),
            ("middle", "/m", "/nodes", &["u:1"]),
            ("direct", "/m", "/spire/agent/1", &["u:1"]),
            ("leaf", "/l", "/m", &["u:1"]),
        ]);
        let roots = roots(&index, index.slot("leaf").unwrap());
        let mut ids: Vec<SpiffeId> = roots.ids.iter().map(|number| index.spiffe_id(*number)).collect();
        ids.sort_unstable();
        assert_eq!(ids, [id("/m"), id("/nodes"), id("/spire/agent/1")]);
        assert_eq!(roots.aliases, [index.slot("alias").unwrap()]);
    }
}
