//! Revisions and their changes.

use std::fmt;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use thiserror::Error;

use super::{AgentRecord, StoreError, StoredEntry};

/// One point in the store's history.
///
/// `n` grows by one with each change. `mark` is drawn at random with each, so that a history which
/// went another way, for example from a restored backup, is recognised even when its `n` has grown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Revision {
    /// How many changes there were.
    pub n: u64,
    /// Random, drawn with the change.
    pub mark: u64,
}

impl Revision {
    /// Before the first change.
    pub const START: Self = Self { n: 0, mark: 0 };
}

impl fmt::Display for Revision {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}-{:016x}", self.n, self.mark)
    }
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// The revision that it made.
    pub revision: Revision,
    /// What it did.
    pub what: What,
}

/// What a change did.
#[derive(Clone, Debug)]
pub enum What {
    /// An entry was created or updated.
    EntryPut(StoredEntry),
    /// The entry with this id was deleted.
    EntryDeleted(String),
    /// A node attested, renewed, was banned or reported its version.
    AgentPut(Arc<AgentRecord>),
    /// A node was deleted.
    AgentDeleted(SpiffeId),
    /// A bundle was created or changed.
    BundlePut(Arc<Bundle>),
    /// A federated bundle was deleted.
    BundleDeleted(TrustDomain),
}

/// Why the log does not continue from a revision.
#[derive(Clone, Debug, Error)]
pub enum HistoryError {
    /// The revision is of another history: a restored backup or another store.
    #[error("revision {asked} is of another history than the store's, which stands at {head}")]
    Other {
        /// The revision asked for.
        asked: Revision,
        /// The store's revision.
        head: Revision,
    },
    /// The changes after the revision are no longer kept; load everything.
    #[error("changes after revision {asked} are no longer kept, the oldest is {oldest}")]
    Pruned {
        /// The revision asked for.
        asked: Revision,
        /// Number of the oldest change kept.
        oldest: u64,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
