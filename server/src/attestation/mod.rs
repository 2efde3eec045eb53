//! Node attestation: who is this machine? One attestor for each way to prove it.

pub mod join_token;
pub mod k8s_psat;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;

/// Proves which node an agent runs on.
#[async_trait]
pub trait NodeAttestor: Send + Sync + Debug {
    /// The name in the configuration, in the agent's data and in the node's selectors.
    fn name(&self) -> &'static str;

    /// Decides over the payload, asking the agent as often as needed.
    ///
    /// # Errors
    /// [`AttestError`], which is sent to the agent.
    async fn attest(&self, payload: &[u8], agent: &mut dyn Challenge) -> Result<Attested, AttestError>;
}

/// The agent, while it is attested.
#[async_trait]
pub trait Challenge: Send {
    /// Sends a challenge and waits for the answer.
    ///
    /// # Errors
    /// When the agent left or answered with something else.
    async fn challenge(&mut self, challenge: Vec<u8>) -> Result<Vec<u8>, AttestError>;

    /// The address that it calls from, when that is known; IPv4 is never written as IPv6.
    fn peer_ip(&self) -> Option<IpAddr>;
}

/// What an attestor found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attested {
    /// The agent's SPIFFE ID.
    pub agent_id: SpiffeId,
    /// What is known of the node.
    pub selectors: Vec<Selector>,
    /// Whether the agent may prove itself again in the same way.
    pub can_reattest: bool,
}

/// Why a node was not attested.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The data can never be accepted.
    #[error("{0}")]
    Invalid(String),
    /// The node may not.
    #[error("{0}")]
    Denied(String),
    /// Whoever knows could not be asked; that says nothing about the node, and the same proof may do later.
    #[error("{what}: {source}")]
    Unavailable {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
    /// We could not find out.
    #[error("{what}: {source}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Box<dyn Error + Send + Sync>,
    },
}

/// The attestors that are switched on, by name.
#[derive(Clone, Debug, Default)]
pub struct Attestors(BTreeMap<&'static str, Arc<dyn NodeAttestor>>);

impl Attestors {
    /// Adds one; the last of a name wins.
    #[must_use]
    pub fn with(mut self, attestor: Arc<dyn NodeAttestor>) -> Self {
        self.0.insert(attestor.name(), attestor);
        self
    }

    /// The attestor of this name.
    pub fn by_name(&self, name: &str) -> Option<&Arc<dyn NodeAttestor>> {
        self.0.get(name)
    }
}
