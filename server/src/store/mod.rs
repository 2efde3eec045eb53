//! Persistent data of the server: registration entries, attested nodes, bundles, federation relationships, join
//! tokens and journals, behind one small trait per aggregate.
//!
//! Every change of an entry, a node or a bundle gets the next [`Revision`] in the
//! same transaction, so that the order of commits is the order of revisions, without gaps. Code that
//! keeps a copy in memory reads [`ChangeLog::changes_since`] and is woken by
//! [`ChangeLog::committed`]. A mutating call returns after its commit is durable.

mod changes;
mod codec;
#[cfg(test)]
pub(crate) mod contract;
mod error;
mod metered;
pub mod prune;
mod records;
mod schema;
pub mod sqlite;
#[cfg(test)]
pub(crate) mod testing;

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::bundle::Bundle;
use finial_identity::entry::{Entry, EntryParts};
use finial_identity::federation::Relationship;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use tokio::sync::{oneshot, watch};

pub use changes::{Change, HistoryError, Revision, What};
pub use error::{OpenError, StoreError};
pub use metered::Metered;
pub use records::{
    AgentPut, AgentRecord, BundleDeleteMode, BundleDeleted, EntryCreated, EntryUpdated, StoredAgent,
    StoredBundle, StoredEntry, StoredRelationship,
};
pub use sqlite::SqliteStore;

/// All that a server remembers. The parts are traits of their own; most callers need one of them.
pub trait Store:
    EntryStore + AgentStore + JoinTokenStore + BundleStore + RelationshipStore + JournalStore + ChangeLog
{
}

impl<T> Store for T where
    T: EntryStore + AgentStore + JoinTokenStore + BundleStore + RelationshipStore + JournalStore + ChangeLog
{
}

/// Changes the fields of a stored entry; the store keeps the id, the creation time and the revision
/// number whatever the function does to them.
pub type EntryPatch = Box<dyn FnOnce(EntryParts) -> EntryParts + Send>;

/// Registration entries.
#[async_trait]
pub trait EntryStore: Send + Sync + Debug {
    /// Creates entries one by one, with revision number 0 and the present as creation time. The
    /// answers are in the order of the entries; one that is refused does not touch the others.
    ///
    /// # Errors
    /// [`StoreError`]; then none was created.
    async fn create_entries(&self, entries: Vec<Entry>) -> Result<Vec<EntryCreated>, StoreError>;

    /// Updates entries by id, one by one, and advances each revision number by exactly one, also
    /// when nothing else changed (as SPIRE does). A similar entry is not looked for.
    ///
    /// # Errors
    /// [`StoreError`]; then none was updated.
    async fn update_entries(
        &self,
        updates: Vec<(String, EntryPatch)>,
    ) -> Result<Vec<EntryUpdated>, StoreError>;

    /// Deletes entries by id and returns what was deleted, `None` for an id that is unknown.
    ///
    /// # Errors
    /// [`StoreError`]; then none was deleted.
    async fn delete_entries(&self, ids: Vec<String>) -> Result<Vec<Option<StoredEntry>>, StoreError>;

    /// The entry with this id.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn entry(&self, id: &str) -> Result<Option<StoredEntry>, StoreError>;

    /// At most `limit` entries with rows above `after_row`, in the order of rows.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_entries(&self, after_row: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError>;

    /// Deletes the entries whose `expires_at` lies before `at`; returns how many.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune_expired_entries(&self, at: OffsetDateTime) -> Result<usize, StoreError>;

    /// [`EntryStore::update_entries`] for one entry.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn update_entry(&self, id: &str, patch: EntryPatch) -> Result<EntryUpdated, StoreError> {
        let mut updated = self.update_entries(vec![(id.to_owned(), patch)]).await?;
        Ok(updated.pop().unwrap_or(EntryUpdated::NotFound))
    }

    /// [`EntryStore::delete_entries`] for one entry.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete_entry(&self, id: &str) -> Result<Option<StoredEntry>, StoreError> {
        Ok(self.delete_entries(vec![id.to_owned()]).await?.pop().flatten())
    }
}

/// Attested nodes.
#[async_trait]
pub trait AgentStore: Send + Sync + Debug {
    /// Records an attested node: creates it, or replaces serial, expiry and selectors of the one
    /// known. A banned node stays banned. The version is kept when the new record has none.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn put_agent(&self, agent: AgentRecord) -> Result<AgentPut, StoreError>;

    /// The node with this ID, banned or not.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn agent(&self, id: &SpiffeId) -> Result<Option<StoredAgent>, StoreError>;

    /// At most `limit` nodes with rows above `after_row`, in the order of rows.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_agents(&self, after_row: u64, limit: u32) -> Result<Vec<StoredAgent>, StoreError>;

    /// Records a renewed SVID as pending; the current one stays valid. `None` when the node is
    /// unknown or banned.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn set_new_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
        expires_at: i64,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError>;

    /// Makes the pending SVID the current one if it still has this serial. `None` when it has not.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn promote_new_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError>;

    /// Bans a node: blanks both serials. `None` when it is unknown.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn ban_agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError>;

    /// Deletes a node; of one that attested by join token also the entry that was made with its
    /// token. `None` when it is unknown.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete_agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError>;

    /// Records the version that an agent reports. `None` when the node is unknown.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn set_agent_version(
        &self,
        id: &SpiffeId,
        version: &str,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError>;

    /// Deletes at most `limit` nodes whose SVID expired before `at`, never banned ones, and those
    /// that cannot re-attest only when `also_unattestable`; returns how many.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune_agents(
        &self,
        at: OffsetDateTime,
        also_unattestable: bool,
        limit: u32,
    ) -> Result<usize, StoreError>;
}

/// Join tokens.
#[async_trait]
pub trait JoinTokenStore: Send + Sync + Debug {
    /// Remembers a token until it is taken; false when there is one of that value.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn create_join_token(&self, token: &str, expires_at: i64) -> Result<bool, StoreError>;

    /// Deletes a token and returns its expiry in Unix seconds, which the caller checks: a token is
    /// used up by its first use, expired or not.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn take_join_token(&self, token: &str) -> Result<Option<i64>, StoreError>;

    /// Deletes the tokens that expired before `at`; returns how many.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune_join_tokens(&self, at: OffsetDateTime) -> Result<usize, StoreError>;
}

/// Edits a bundle inside the transaction.
pub type BundleEdit = Box<dyn FnOnce(&mut Bundle) + Send>;

/// Trust bundles, the own one and those of federated trust domains.
#[async_trait]
pub trait BundleStore: Send + Sync + Debug {
    /// The bundle of a trust domain.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn bundle(&self, trust_domain: &TrustDomain) -> Result<Option<StoredBundle>, StoreError>;

    /// At most `limit` bundles with rows above `after_row`, in the order of rows; the own one too.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_bundles(&self, after_row: u64, limit: u32) -> Result<Vec<StoredBundle>, StoreError>;

    /// Stores a bundle as it is, in place of the one stored. Equal content is no change.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn put_bundle(&self, bundle: Bundle) -> Result<StoredBundle, StoreError>;

    /// Stores a bundle if there is none of its trust domain, else `None`.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn create_bundle(&self, bundle: Bundle) -> Result<Option<StoredBundle>, StoreError>;

    /// Edits a bundle in one transaction. The own trust domain's bundle is made when it is missing,
    /// and its sequence number advances by one when the edit has an effect. `None`, without a call
    /// of the edit, when a foreign bundle is missing. [`update_bundle`] returns a value as well.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn edit_bundle(
        &self,
        trust_domain: &TrustDomain,
        edit: BundleEdit,
    ) -> Result<Option<StoredBundle>, StoreError>;

    /// Deletes a federated bundle; `mode` says what happens to the entries that name it.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete_bundle(
        &self,
        trust_domain: &TrustDomain,
        mode: BundleDeleteMode,
    ) -> Result<BundleDeleted, StoreError>;
}

/// [`BundleStore::edit_bundle`] with an edit that returns a value.
///
/// # Errors
/// [`StoreError`].
pub async fn update_bundle<S, R, F>(
    store: &S,
    trust_domain: &TrustDomain,
    edit: F,
) -> Result<Option<(StoredBundle, R)>, StoreError>
where
    S: BundleStore + ?Sized,
    R: Send + 'static,
    F: FnOnce(&mut Bundle) -> R + Send + 'static,
{
    let (sender, mut receiver) = oneshot::channel();
    let edit: BundleEdit = Box::new(move |bundle| {
        // Fails only when the caller is gone, who then does not ask for the value.
        let _ = sender.send(edit(bundle));
    });
    let Some(stored) = store.edit_bundle(trust_domain, edit).await? else {
        return Ok(None);
    };
    Ok(receiver.try_recv().ok().map(|value| (stored, value)))
}

/// Changes a stored relationship; its trust domain stays whatever the function does to it.
pub type RelationshipPatch = Box<dyn FnOnce(Relationship) -> Relationship + Send>;

/// Federation relationships that operators made through the API. Their changes are not in the log of changes.
#[async_trait]
pub trait RelationshipStore: Send + Sync + Debug {
    /// The relationship with a trust domain.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn relationship(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<StoredRelationship>, StoreError>;

    /// At most `limit` relationships with rows above `after_row`, in the order of rows.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_relationships(
        &self,
        after_row: u64,
        limit: u32,
    ) -> Result<Vec<StoredRelationship>, StoreError>;

    /// Stores a relationship, and the bundle in place of the one stored; `None` when there is one with the trust
    /// domain, and then the bundle is not stored either.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn create_relationship(
        &self,
        relationship: Relationship,
        bundle: Option<Bundle>,
    ) -> Result<Option<StoredRelationship>, StoreError>;

    /// Changes a relationship, and stores the bundle in place of the one stored; `None` when there is no
    /// relationship with the trust domain, and then the bundle is not stored either.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn update_relationship(
        &self,
        trust_domain: &TrustDomain,
        patch: RelationshipPatch,
        bundle: Option<Bundle>,
    ) -> Result<Option<StoredRelationship>, StoreError>;

    /// Deletes a relationship, `false` when there is none. The bundle stays, as with SPIRE.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete_relationship(&self, trust_domain: &TrustDomain) -> Result<bool, StoreError>;
}

/// Journals of authorities: which this server prepared, activated and gave up. Opaque here.
#[async_trait]
pub trait JournalStore: Send + Sync + Debug {
    /// Stores a journal under its key, in place of the one stored.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn save_journal(&self, key: &str, journal: &[u8]) -> Result<(), StoreError>;

    /// All journals with their keys.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn list_journals(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError>;

    /// Deletes a journal, `false` when there is none.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn delete_journal(&self, key: &str) -> Result<bool, StoreError>;
}

/// The log of changes.
#[async_trait]
pub trait ChangeLog: Send + Sync + Debug {
    /// The revision of the last commit.
    fn revision(&self) -> Revision {
        *self.committed().borrow()
    }

    /// The changes after `after`, in the order of their commits, at most some thousands: ask again
    /// from the last one until the answer is empty. Each shows the state that it led to or a later one.
    ///
    /// # Errors
    /// [`HistoryError`] when the log does not continue `after`, or the store fails.
    async fn changes_since(&self, after: Revision) -> Result<Vec<Change>, HistoryError>;

    /// How many entries the log shows deleted after revision number `after`, as far as it reaches back.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn entries_deleted_since(&self, after: u64) -> Result<usize, StoreError>;

    /// The revision of the last commit, seen before the call that made it returns.
    fn committed(&self) -> watch::Receiver<Revision>;
}
