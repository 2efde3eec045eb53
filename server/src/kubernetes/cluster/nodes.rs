//! Nodes that go, and the agents that are left without one.

use std::collections::HashSet;

use finial_identity::spiffe_id::SpiffeId;

use super::Cluster;
use crate::config::psat_agent_path;
use crate::kubernetes::objects::Node;
use crate::kubernetes::watch::Kind;

impl Cluster {
    /// A node's object is there, or it is gone: deleted, or made again under its name. What runs on the machine then has
    /// the parent of nothing.
    pub(super) fn note_node(&self, name: &str, now: Option<&Node>) {
        let before = self.deriver.objects().node(name);
        let before = before.and_then(|before| before.metadata.uid.as_deref());
        let now = now.and_then(|now| now.metadata.uid.as_deref());
        if let Some(agent) = before
            .filter(|before| now != Some(*before))
            .and_then(|uid| self.agent_of(uid))
        {
            self.orphans.left(agent);
        }
        if let Some(agent) = now.and_then(|uid| self.agent_of(uid)) {
            self.orphans.has_node(&agent);
        }
    }

    /// The agent that stands for the node's object with this UID, as `k8s_psat` names it.
    fn agent_of(&self, uid: &str) -> Option<SpiffeId> {
        SpiffeId::new(self.registry.trust_domain(), &psat_agent_path(self.name(), uid)).ok()
    }

    /// Looks for agents whose nodes were deleted while there was no watch, or that could not be evicted.
    pub(super) fn look_for_orphans(&mut self) {
        if self.troubles.contains_key(&Kind::Nodes) {
            return; // A node that is new would be missing.
        }
        let nodes: HashSet<&str> = self
            .deriver
            .objects()
            .nodes()
            .filter_map(|node| node.metadata.uid.as_deref())
            .collect();
        let path = psat_agent_path(self.name(), "");
        let prefix = format!("spiffe://{}{path}", self.registry.trust_domain());
        let agents = self.registry.agents_beginning(&prefix).into_iter();
        let without_node = agents.filter(|agent| {
            let uid = agent.as_str().strip_prefix(prefix.as_str());
            uid.is_some_and(|uid| !nodes.contains(uid))
        });
        self.orphans.look(without_node.collect());
    }
}
