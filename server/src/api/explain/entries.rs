//! Which entries below the agent of a pod's node may be the pod's, and which way they went.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::finial::server::explain::v1 as pb;
use time::OffsetDateTime;

use super::milliseconds;
use crate::registry::{Hop, PodFacts, Registry};
use crate::store::AgentRecord;

/// What of a pod the server knows as well as the agent does. Nothing of a single container is among it: which of a pod's
/// containers asks, the agent finds out, and on the socket of a pod it does not know.
const KNOWN: &[&str] = &[
    "ns",
    "sa",
    "pod-name",
    "pod-uid",
    "node-name",
    "pod-label",
    "pod-owner",
    "pod-owner-uid",
];

/// An entry that is the pod's, or may be.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) entry: Arc<Entry>,
    pub(super) origin: String,
    /// Selectors about which the agent decides; without them the entry is the pod's.
    pub(super) undecided: Vec<String>,
    /// Whether an agent of the node has it.
    pub(super) is_at_agent: bool,
    /// Whether an SVID may have been signed for it without this server's knowledge.
    pub(super) may_be_signed: bool,
    pub(super) hop: Hop,
}

impl Found {
    /// Whether its SVID was signed and is valid.
    pub(super) fn has_svid(&self, now: OffsetDateTime) -> bool {
        self.hop.signed_at.is_some() && self.hop.svid_expires_at > now.unix_timestamp()
    }

    pub(super) fn into_message(self) -> pb::Entry {
        let Self {
            entry,
            origin,
            undecided,
            is_at_agent,
            hop,
            ..
        } = self;
        pb::Entry {
            id: entry.id.clone(),
            spiffe_id: entry.spiffe_id.to_string(),
            parent_id: entry.parent_id.to_string(),
            selectors: entry.selectors.iter().map(ToString::to_string).collect(),
            dns_names: entry.dns_names.clone(),
            x509_svid_ttl: entry.x509_svid_ttl,
            jwt_svid_ttl: entry.jwt_svid_ttl,
            hint: entry.hint.clone(),
            origin,
            undecided,
            is_at_agent,
            derived_at_ms: milliseconds(hop.derived_at),
            is_from_before: hop.is_from_before,
            sent_at_ms: milliseconds(hop.sent_at),
            signed_at_ms: milliseconds(hop.signed_at),
            svid_expires_at: hop.svid_expires_at,
        }
    }
}

/// The entries that are the pod's, and those that may be, in this order.
pub(super) fn find(
    registry: &Registry,
    pod: &PodFacts,
    parent: &SpiffeId,
    agents: &[Arc<AgentRecord>],
    (now, started_at): (OffsetDateTime, OffsetDateTime),
) -> Vec<Found> {
    let facts: HashSet<&str> = pod.selectors.iter().map(String::as_str).collect();
    let mut candidates: BTreeMap<String, Arc<Entry>> = BTreeMap::new();
    let below_agents = agents.iter().flat_map(|agent| registry.authorized(&agent.id));
    let below_parent = registry
        .entries_with_parent(parent)
        .into_iter()
        .map(|stored| stored.entry);
    for entry in below_agents.chain(below_parent) {
        candidates.insert(entry.id.clone(), entry);
    }
    let found = candidates.into_values().filter_map(|entry| {
        let is_over = entry.expires_at != 0 && entry.expires_at <= now.unix_timestamp();
        let undecided = undecided(&entry.selectors, &facts).filter(|_| !entry.store_svid && !is_over)?;
        let (mut is_at_agent, mut hop) = (false, Hop::default());
        for agent in agents {
            let way = registry.hop(&agent.id, &entry.id);
            if way.signed_at.or(way.sent_at).or(way.derived_at)
                > hop.signed_at.or(hop.sent_at).or(hop.derived_at)
            {
                hop = way;
            }
            is_at_agent |= has(registry, &agent.id, &entry, way);
        }
        Some(Found {
            origin: registry
                .origin(&entry.id)
                .map(|origin| origin.to_string())
                .unwrap_or_default(),
            may_be_signed: hop.is_from_before
                || (hop.derived_at.is_none() && entry.created_at < started_at.unix_timestamp()),
            undecided,
            is_at_agent,
            hop,
            entry,
        })
    });
    let mut found: Vec<Found> = found.collect();
    found.sort_by_key(|found| !found.undecided.is_empty());
    found
}

/// Whether an agent was sent an entry as it is, or said by its digest that it has it, or fetched all of its entries
/// since the entry was made.
fn has(registry: &Registry, agent: &SpiffeId, entry: &Entry, way: Hop) -> bool {
    if way.sent_at.is_some() || registry.is_held(agent, &entry.id) {
        return true;
    }
    let polled_at = registry.connection(agent).polled_at;
    way.derived_at.is_none() && polled_at.is_some_and(|at| at.unix_timestamp() > entry.created_at)
}

/// The selectors that only the agent can decide; none when one of them does not hold for the pod.
fn undecided(selectors: &[Selector], facts: &HashSet<&str>) -> Option<Vec<String>> {
    let mut undecided = Vec::new();
    for selector in selectors {
        let text = selector.as_str();
        if facts.contains(text) {
            continue;
        }
        let name = selector.value().split(':').next().unwrap_or_default();
        if selector.kind() == "k8s" && KNOWN.contains(&name) {
            return None;
        }
        undecided.push(text.to_owned());
    }
    Some(undecided)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_that_the_server_knows_decides_and_others_are_the_agents() {
        let facts = HashSet::from(["k8s:ns:shop", "k8s:pod-label:app:web"]);
        let of = |texts: &[&str]| {
            let selectors = texts.iter().map(|text| Selector::parse(text).unwrap());
            undecided(&selectors.collect::<Vec<_>>(), &facts)
        };
        assert_eq!(of(&["k8s:ns:shop", "k8s:pod-label:app:web"]), Some(Vec::new()));
        assert_eq!(of(&["k8s:ns:other", "unix:uid:0"]), None);
        assert_eq!(of(&["k8s:pod-label:app:db"]), None);
        let agents = ["k8s:container-name:app", "k8s:container-image:x", "unix:uid:0"];
        assert_eq!(
            of(&[&["k8s:ns:shop"], &agents[..]].concat()),
            Some(agents.map(str::to_owned).to_vec())
        );
    }
}
