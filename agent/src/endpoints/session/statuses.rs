//! What callers are told when there is nothing to give.

use tokio::sync::watch;
use tonic::Status;

use crate::node::NodeState;

/// The answer to callers without identity; clients look for this very text.
pub fn denied() -> Status {
    Status::permission_denied("no identity issued")
}

/// The answer when it cannot be found out who calls.
pub fn attestation_failed() -> Status {
    Status::unavailable("workload attestation failed")
}

/// Why all streams end. A banned agent stops too, but its callers have lost their identities.
pub fn ending(node: &watch::Receiver<NodeState>) -> Status {
    if node.borrow().may_serve() {
        stopping()
    } else {
        denied()
    }
}

/// The answer of an agent that stops.
pub fn stopping() -> Status {
    Status::unavailable("agent is stopping")
}
