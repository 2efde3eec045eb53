//! `k8s_psat`: an agent in a Kubernetes cluster sends the service account token that the kubelet projected into its
//! pod for this server. The cluster's API server says whose token it is and of which pod; the pod says which node.
//!
//! The payload is `{"cluster": …, "token": …}`; there is no challenge. No error or log message contains the token.

mod addresses;
mod cluster;
mod objects;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use async_trait::async_trait;
use finial_identity::selector::{Selector, SelectorError};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use kube::Client;
use serde::Deserialize;
use zeroize::Zeroizing;

use self::cluster::{Agent, Cluster};
use super::{AttestError, Attested, Challenge, NodeAttestor};
use crate::config::{K8sPsatCluster, psat_agent_path};

/// The attestor's name.
pub const NAME: &str = "k8s_psat";

/// Most bytes of a payload: tokens have about one kilobyte.
const MAX_PAYLOAD: usize = 32 * 1024;
/// Most bytes of a token.
const MAX_TOKEN: usize = 16 * 1024;

/// Attests agents by what the API servers of their clusters say.
#[derive(Debug)]
pub struct K8sPsatAttestor {
    trust_domain: TrustDomain,
    clusters: BTreeMap<String, Cluster>,
}

#[derive(Deserialize)]
struct WirePayload {
    #[serde(default)]
    cluster: String,
    #[serde(default)]
    token: String,
}

struct Payload {
    cluster: String,
    token: Zeroizing<String>,
}

impl K8sPsatAttestor {
    /// Asks these clusters, each by its client.
    pub fn new(trust_domain: TrustDomain, clusters: Vec<(K8sPsatCluster, Client)>) -> Self {
        let named = |(settings, client): (K8sPsatCluster, Client)| {
            (settings.name.clone(), Cluster::new(settings, client))
        };
        Self {
            trust_domain,
            clusters: clusters.into_iter().map(named).collect(),
        }
    }
}

#[async_trait]
impl NodeAttestor for K8sPsatAttestor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, payload: &[u8], agent: &mut dyn Challenge) -> Result<Attested, AttestError> {
        let payload = read(payload)?;
        let cluster = self.clusters.get(&payload.cluster).ok_or_else(|| {
            invalid(format!(
                "not configured for cluster {:?}",
                shown(&payload.cluster)
            ))
        })?;
        let found = cluster.examine(&payload.token, agent.peer_ip()).await?;
        Ok(Attested {
            agent_id: agent_id(&self.trust_domain, cluster.settings(), &found)?,
            selectors: selectors(cluster.settings(), &found).map_err(|error| AttestError::Failed {
                what: "k8s_psat: make selectors",
                source: Box::new(error),
            })?,
            can_reattest: true,
        })
    }
}

/// The payload, with a token that at least looks like one.
fn read(payload: &[u8]) -> Result<Payload, AttestError> {
    if payload.len() > MAX_PAYLOAD {
        return Err(invalid(format!("payload of {} bytes", payload.len())));
    }
    // The reader's own text could show a part of the token.
    let wire: WirePayload = serde_json::from_slice(payload)
        .map_err(|_error| invalid("payload is not the JSON of this attestor"))?;
    let payload = Payload {
        cluster: wire.cluster,
        token: Zeroizing::new(wire.token),
    };
    if payload.cluster.is_empty() {
        return Err(invalid("payload names no cluster"));
    }
    if payload.token.is_empty() {
        return Err(invalid("payload has no token"));
    }
    let is_jwt = payload.token.split('.').count() == 3
        && payload
            .token
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'='));
    if payload.token.len() > MAX_TOKEN || !is_jwt {
        return Err(invalid("token is not a JWT"));
    }
    Ok(payload)
}

fn agent_id(
    trust_domain: &TrustDomain,
    cluster: &K8sPsatCluster,
    agent: &Agent,
) -> Result<SpiffeId, AttestError> {
    let own = if cluster.use_pod_uid_for_agent_id {
        format!("pod/{}", agent.pod_uid)
    } else {
        agent.node_uid.clone()
    };
    let path = psat_agent_path(&cluster.name, &own);
    SpiffeId::new(trust_domain, &path).map_err(|error| AttestError::Failed {
        what: "k8s_psat: make agent ID",
        source: Box::new(error),
    })
}

/// The node's selectors, as SPIRE has them.
fn selectors(cluster: &K8sPsatCluster, agent: &Agent) -> Result<Vec<Selector>, SelectorError> {
    let mut values = vec![
        format!("cluster:{}", cluster.name),
        format!("agent_ns:{}", agent.namespace),
        format!("agent_sa:{}", agent.service_account),
        format!("agent_pod_name:{}", agent.pod_name),
        format!("agent_pod_uid:{}", agent.pod_uid),
        format!("agent_node_ip:{}", agent.node_ip),
        format!("agent_node_name:{}", agent.node_name),
        format!("agent_node_uid:{}", agent.node_uid),
    ];
    for (kind, allowed, labels) in [
        ("agent_node_label", &cluster.node_label_keys, &agent.node_labels),
        ("agent_pod_label", &cluster.pod_label_keys, &agent.pod_labels),
    ] {
        let of_allowed = labels.iter().filter(|(key, _)| allowed.contains(*key));
        values.extend(of_allowed.map(|(key, value)| format!("{kind}:{key}:{value}")));
    }
    values.iter().map(|value| Selector::new(NAME, value)).collect()
}

/// As much of a name as an answer may show.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

fn invalid(why: impl std::fmt::Display) -> AttestError {
    AttestError::Invalid(format!("{NAME}: {why}"))
}

fn denied(why: impl std::fmt::Display) -> AttestError {
    AttestError::Denied(format!("{NAME}: {why}"))
}
