//! From the API server to facts. A watch that is late, sends events twice or out of order, or ends
//! removes nothing; an object is removed only when the API server reports that it was deleted.

mod doubts;
mod follow;
#[cfg(test)]
mod follow_tests;
mod kinds;
mod tracker;

use std::sync::Arc;

use super::derive::Fact;
use super::resources::ClusterFederatedTrustDomain;

pub use kinds::{Watches, watches};

/// What is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Pods.
    Pods,
    /// Nodes.
    Nodes,
    /// Namespaces.
    Namespaces,
    /// The kind that lists the pods behind services.
    Endpoints,
    /// `ClusterSPIFFEID`
    Rules,
    /// `ClusterStaticEntry`
    Statics,
    /// `ClusterFederatedTrustDomain`
    Federations,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Pods,
        Self::Nodes,
        Self::Namespaces,
        Self::Endpoints,
        Self::Rules,
        Self::Statics,
        Self::Federations,
    ];

    /// For logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pods => "pods",
            Self::Nodes => "nodes",
            Self::Namespaces => "namespaces",
            Self::Endpoints => "endpoints",
            Self::Rules => "clusterspiffeids",
            Self::Statics => "clusterstaticentries",
            Self::Federations => "clusterfederatedtrustdomains",
        }
    }

    /// Whether a cluster may be without it: who declares nothing this way need not have its definition.
    pub(super) fn may_be_absent(self) -> bool {
        matches!(self, Self::Rules | Self::Statics)
    }

    /// Whether entries depend on it.
    pub fn concerns_entries(self) -> bool {
        self != Self::Federations
    }
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub enum News {
    /// An object changed or is gone.
    Fact(Fact),
    /// A federation relationship changed or is gone.
    Federation(Arc<str>, Option<Arc<ClusterFederatedTrustDomain>>),
    /// All objects of the kind were listed once.
    Synced(Kind),
    /// The API server answered.
    Heard(Kind),
    /// The watch failed and will be started again; what it reported stays valid.
    Lost(Kind, String),
    /// The API server has no such kind, or not yet.
    Absent(Kind),
}
