//! Agents whose nodes are gone. An agent of `k8s_psat` stands for an object of a node, by its UID; without that object
//! nothing is derived for it, and what runs on the machine may attest anew for the object that came in its place.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use finial_identity::process::Stop;
use finial_identity::spiffe_id::SpiffeId;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};
use tokio::sync::Notify;

use crate::registry::{Registry, RegistryError};

/// What the selector begins with that names the node of an agent.
const NODE_NAME: &str = "k8s_psat:agent_node_name:";

/// Agents of one cluster that no node stands for: found by the cluster's task, and taken one by one by [`evict`], which
/// may be slow. Until one is taken its node may be seen again.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    found: Mutex<Found>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Found {
    due: BTreeSet<SpiffeId>,
    suspects: BTreeSet<SpiffeId>,
}

impl Orphans {
    /// A node's object was seen to go.
    pub(super) fn left(&self, agent: SpiffeId) {
        self.lock().due.insert(agent);
        self.news.notify_one();
    }

    /// A node's object is there. Whatever was thought of its agent does not hold any more.
    pub(super) fn has_node(&self, agent: &SpiffeId) {
        let mut found = self.lock();
        found.due.remove(agent);
        found.suspects.remove(agent);
    }

    /// Takes in all agents that no node stands for. One that was among them at the last look as well is due: a
    /// node that has just come may be known to its agent before it is known here.
    pub(super) fn look(&self, without_node: BTreeSet<SpiffeId>) {
        let mut found = self.lock();
        let still = without_node.intersection(&found.suspects).cloned();
        let still: Vec<SpiffeId> = still.collect();
        found.due.extend(still);
        found.suspects = without_node;
        drop(found);
        self.news.notify_one();
    }

    /// The next to evict, at once. Whichever cannot be comes again after two looks.
    pub(super) fn take(&self) -> Option<SpiffeId> {
        self.lock().due.pop_first()
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the API server for the UID that the object of a node has now; none when there is no such object.
pub(super) type AskNode = Box<dyn Fn(&str) -> BoxFuture<'static, kube::Result<Option<String>>> + Send + Sync>;

/// Asks by this client.
pub(super) fn asking(client: Client) -> AskNode {
    let api = Api::<Node>::all(client);
    Box::new(move |name| {
        let (api, name) = (api.clone(), name.to_owned());
        Box::pin(async move {
            let node = api.get_metadata_opt(&name).await?;
            Ok(node.and_then(|node| node.metadata.uid))
        })
    })
}

/// Evicts agents of this cluster until `stop`, one after the other: the store has others to serve. An agent that may attest
/// again does so at once, as the agent of the node that its pod is on now.
pub(super) async fn evict(
    orphans: Arc<Orphans>,
    registry: Arc<Registry>,
    cluster: String,
    ask: AskNode,
    stop: Stop,
) -> Result<(), Infallible> {
    let evicting = async {
        loop {
            evict_due(&orphans, &registry, &cluster, &ask).await;
            orphans.news.notified().await;
        }
    };
    tokio::select! {
        () = stop.stopped() => {}
        () = evicting => {}
    }
    Ok(())
}

/// Why it is not known whether a node is there.
#[derive(Debug, thiserror::Error)]
enum Unknown {
    /// Which node it is.
    #[error("{0}")]
    Agent(#[from] RegistryError),
    /// The API server does not say.
    #[error("{0}")]
    Node(#[from] kube::Error),
}

/// The watch of nodes may be behind without telling, so none is evicted whose node the API server has.
pub(super) async fn evict_due(orphans: &Orphans, registry: &Registry, cluster: &str, ask: &AskNode) {
    while let Some(agent_id) = orphans.take() {
        match is_there(registry, &agent_id, ask).await {
            Ok(false) => {}
            Ok(true) => {
                tracing::info!(cluster, %agent_id, "agent stays: its node is there, of which the watch of nodes has not told");
                continue;
            }
            Err(error) => {
                tracing::warn!(cluster, %agent_id, %error, "failed to find out whether the node of an agent is gone");
                continue;
            }
        }
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
}

/// Whether the API server has the object of the agent's node. One whose node has no known name has none.
async fn is_there(registry: &Registry, agent_id: &SpiffeId, ask: &AskNode) -> Result<bool, Unknown> {
    let Some(agent) = registry.agent(agent_id).await? else {
        return Ok(false);
    };
    let mut selectors = agent.selectors.iter();
    let Some(name) = selectors.find_map(|selector| selector.as_str().strip_prefix(NODE_NAME)) else {
        return Ok(false);
    };
    let uid = ask(name).await?;
    let own = agent_id.path().rsplit('/').next();
    Ok(uid.is_some() && uid.as_deref() == own)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::id;

    fn set(names: &[&str]) -> BTreeSet<SpiffeId> {
        names.iter().map(|name| id(name)).collect()
    }

    #[test]
    fn an_agent_is_due_when_two_looks_in_a_row_find_no_node() {
        let orphans = Orphans::default();
        orphans.look(set(&["/a", "/b"]));
        assert!(orphans.take().is_none());
        orphans.look(set(&["/b", "/c"]));
        assert_eq!((orphans.take(), orphans.take()), (Some(id("/b")), None));
        orphans.look(set(&["/a"]));
        assert!(orphans.take().is_none(), "it had a node meanwhile");
        orphans.left(id("/d"));
        assert_eq!(orphans.take(), Some(id("/d")));
    }

    #[test]
    fn an_agent_whose_node_is_seen_before_its_turn_is_not_due() {
        let orphans = Orphans::default();
        for agent in ["/a", "/b"] {
            orphans.left(id(agent));
        }
        orphans.has_node(&id("/a"));
        assert_eq!((orphans.take(), orphans.take()), (Some(id("/b")), None));
        orphans.look(set(&["/c", "/d"]));
        orphans.has_node(&id("/c"));
        orphans.look(set(&["/c", "/d"]));
        orphans.has_node(&id("/d"));
        assert_eq!(
            orphans.take(),
            None,
            "the first look at one, both looks at the other"
        );
    }
}
