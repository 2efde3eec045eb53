//! Agents whose nodes are gone. An agent of `k8s_psat` stands for an object of a node, by its UID; without that object
//! nothing is derived for it, and what runs on the machine may attest anew for the object that came in its place.

use std::collections::BTreeSet;

use finial_identity::spiffe_id::SpiffeId;

/// Agents of one cluster that no node stands for.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    due: Vec<SpiffeId>,
    suspects: BTreeSet<SpiffeId>,
}

impl Orphans {
    /// A node's object was seen to go.
    pub(super) fn left(&mut self, agent: Option<SpiffeId>) {
        self.due.extend(agent);
    }

    /// Takes in all agents that no node stands for. One that was among them at the last look as well is due: a
    /// node that has just come may be known to its agent before it is known here.
    pub(super) fn look(&mut self, without_node: BTreeSet<SpiffeId>) {
        let still = without_node.intersection(&self.suspects).cloned();
        self.due.extend(still);
        self.suspects = without_node;
    }

    /// Those to evict now. Whichever cannot be comes again after two looks.
    pub(super) fn take(&mut self) -> Vec<SpiffeId> {
        std::mem::take(&mut self.due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::id;

    #[test]
    fn an_agent_is_due_when_two_looks_in_a_row_find_no_node() {
        let mut orphans = Orphans::default();
        let set = |names: &[&str]| names.iter().map(|name| id(name)).collect::<BTreeSet<_>>();
        orphans.look(set(&["/a", "/b"]));
        assert!(orphans.take().is_empty());
        orphans.look(set(&["/b", "/c"]));
        assert_eq!(orphans.take(), [id("/b")]);
        orphans.look(set(&["/a"]));
        assert!(orphans.take().is_empty(), "it had a node meanwhile");
        orphans.left(Some(id("/d")));
        assert_eq!(orphans.take(), [id("/d")]);
    }
}
