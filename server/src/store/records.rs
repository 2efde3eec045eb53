//! The records of stores.

use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::entry::{Entry, EntryError};
use finial_identity::federation::Relationship;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

/// An entry and its row, which never changes. Rows grow and are never used again,
/// so that a row is a stable page token.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredEntry {
    /// The row.
    pub row: u64,
    /// The entry.
    pub entry: Arc<Entry>,
}

/// The result of creating an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum EntryCreated {
    /// It is stored.
    Created(StoredEntry),
    /// This entry has the same SPIFFE ID, parent and selectors.
    Similar(StoredEntry),
    /// Another entry has its id.
    IdTaken,
    /// It names a trust domain whose bundle is not stored.
    MissingBundle(TrustDomain),
}

/// The result of an update.
#[derive(Clone, Debug, PartialEq)]
pub enum EntryUpdated {
    /// The entry as it is now.
    Updated(StoredEntry),
    /// No entry has the id.
    NotFound,
    /// The entry would break a rule.
    Refused(EntryError),
    /// It names a trust domain whose bundle is not stored.
    MissingBundle(TrustDomain),
}

/// An attested node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// Name of the node attestor.
    pub attestation_type: String,
    /// Serial number of its current SVID, decimal; empty when the node is banned.
    pub serial: String,
    /// When that SVID expires, in Unix seconds.
    pub expires_at: i64,
    /// Serial number of a renewed SVID that was not used yet; empty when there is none.
    pub new_serial: String,
    /// When the renewed SVID expires, in Unix seconds.
    pub new_expires_at: i64,
    /// Whether the node can attest again instead of renewing.
    pub can_reattest: bool,
    /// Node selectors, sorted and without repeats.
    pub selectors: Vec<Selector>,
    /// Version that the agent reported; may be empty.
    pub agent_version: String,
}

impl AgentRecord {
    /// Whether the node is banned.
    pub fn is_banned(&self) -> bool {
        self.serial.is_empty()
    }

    /// Whether this serial is that of the current or of the pending SVID.
    pub fn has_serial(&self, serial: &str) -> bool {
        !serial.is_empty() && (self.serial == serial || self.new_serial == serial)
    }
}

/// A node and its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredAgent {
    /// The row.
    pub row: u64,
    /// The node.
    pub agent: Arc<AgentRecord>,
}

/// The result of an attestation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentPut {
    /// The node as it is now.
    Stored(Arc<AgentRecord>),
    /// The node is banned and stays so.
    Banned,
}

/// A bundle and its row.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredBundle {
    /// The row.
    pub row: u64,
    /// The bundle.
    pub bundle: Arc<Bundle>,
}

/// A federation relationship and its row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRelationship {
    /// The row.
    pub row: u64,
    /// The relationship.
    pub relationship: Relationship,
}

/// What happens to the entries that federate with a trust domain whose bundle is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleDeleteMode {
    /// They keep the bundle from being deleted.
    Restrict,
    /// They are deleted too.
    Delete,
    /// They no longer federate with the trust domain.
    Dissociate,
}

/// The result of deleting a bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BundleDeleted {
    /// It is gone; so many entries were deleted or changed with it.
    Deleted(usize),
    /// There is none of that trust domain.
    NotFound,
    /// So many entries federate with the trust domain.
    InUse(usize),
}
