//! The agent's state, as one value that health checks and sockets watch.

use std::fmt;

/// The agent's state. Trouble with the server is [`NodeState::Degraded`], never the end of the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    /// Reads what an earlier run left and learns whom to trust.
    Bootstrapping,
    /// Proves to the server which node it runs on.
    Attesting,
    /// Has a valid SVID, obtained or saved by an earlier run, and knows of nothing that is wrong.
    Serving,
    /// Something is wrong, and here is what; valid SVIDs are served until they expire.
    Degraded(String),
    /// The server banned this agent: open streams end and the process stops.
    Banned,
}

impl NodeState {
    /// Whether the agent has a valid identity and nothing is wrong.
    pub fn is_serving(&self) -> bool {
        matches!(self, Self::Serving)
    }

    /// Whether an agent in this state may serve what it holds.
    pub fn may_serve(&self) -> bool {
        !matches!(self, Self::Banned)
    }

    /// Whether the change from `self` to `next` can happen. A ban is final.
    pub fn can_become(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Banned, _) => false,
            (_, Self::Bootstrapping) => matches!(self, Self::Bootstrapping),
            _ => true,
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bootstrapping => f.write_str("bootstrapping"),
            Self::Attesting => f.write_str("attesting"),
            Self::Serving => f.write_str("serving"),
            Self::Degraded(reason) => write!(f, "degraded: {reason}"),
            Self::Banned => f.write_str("banned"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ban_is_final() {
        let states = [
            NodeState::Bootstrapping,
            NodeState::Attesting,
            NodeState::Serving,
            NodeState::Degraded("server unreachable".to_owned()),
            NodeState::Banned,
        ];
        assert!(states.iter().all(|next| !NodeState::Banned.can_become(next)));
        assert!(!NodeState::Banned.may_serve());
    }

    #[test]
    fn trouble_keeps_serving_and_recovery_is_possible() {
        let degraded = NodeState::Degraded("server unreachable".to_owned());
        assert!(degraded.may_serve() && !degraded.is_serving());
        assert!(NodeState::Serving.can_become(&degraded));
        assert!(degraded.can_become(&NodeState::Serving));
        assert!(degraded.can_become(&NodeState::Attesting));
        assert!(!NodeState::Serving.can_become(&NodeState::Bootstrapping));
    }
}
