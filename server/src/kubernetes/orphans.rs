//! Agents whose nodes are gone. An agent of `k8s_psat` stands for an object of a node, by its UID; without that object
//! nothing is derived for it, and what runs on the machine may attest anew for the object that came in its place.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;

use finial_identity::process::Stop;
use finial_identity::spiffe_id::SpiffeId;
use tokio::sync::mpsc;

use crate::registry::Registry;

/// How many agents are handed over for eviction before the first of them has gone.
const WAITING: usize = 64;

/// Agents of one cluster that no node stands for.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    due: BTreeSet<SpiffeId>,
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

    /// Whether any is to be evicted.
    pub(super) fn are_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The next to evict. Whichever cannot be comes again after two looks.
    pub(super) fn take(&mut self) -> Option<SpiffeId> {
        self.due.pop_first()
    }
}

/// The way from whoever finds such agents to [`evict`], which may be slow.
pub(super) fn channel() -> (mpsc::Sender<SpiffeId>, mpsc::Receiver<SpiffeId>) {
    mpsc::channel(WAITING)
}

/// Evicts agents of this cluster until `stop`, one after the other: the store has others to serve. An agent that may attest
/// again does so at once, as the agent of the node that its pod is on now.
pub(super) async fn evict(
    mut agents: mpsc::Receiver<SpiffeId>,
    registry: Arc<Registry>,
    cluster: String,
    stop: Stop,
) -> Result<(), Infallible> {
    let evicting = async {
        while let Some(agent_id) = agents.recv().await {
            match registry.evict(&agent_id).await {
                Ok(true) => {
                    tracing::info!(cluster, %agent_id, "agent of a node that is gone was evicted");
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!(cluster, %agent_id, %error, "failed to evict the agent of a node that is gone");
                }
            }
        }
    };
    tokio::select! {
        () = stop.stopped() => {}
        () = evicting => {}
    }
    Ok(())
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
        assert!(!orphans.are_due() && orphans.take().is_none());
        orphans.look(set(&["/b", "/c"]));
        assert!(orphans.are_due());
        assert_eq!((orphans.take(), orphans.take()), (Some(id("/b")), None));
        orphans.look(set(&["/a"]));
        assert!(orphans.take().is_none(), "it had a node meanwhile");
        orphans.left(Some(id("/d")));
        assert_eq!(orphans.take(), Some(id("/d")));
    }
}
