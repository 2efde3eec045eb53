//! A store that counts and times the calls to another one (`datastore_<object>_<operation>`).

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::bundle::Bundle;
use finial_identity::entry::Entry;
use finial_identity::federation::Relationship;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use time::OffsetDateTime;
use tokio::sync::watch;
use tonic::Code;
use tracing::Instrument;

use super::{
    AgentPut, AgentRecord, AgentStore, BundleDeleteMode, BundleDeleted, BundleEdit, BundleStore, Change,
    ChangeLog, EntryCreated, EntryPatch, EntryStore, EntryUpdated, HistoryError, JoinTokenStore,
    JournalStore, RelationshipPatch, RelationshipStore, Revision, Store, StoreError, StoredAgent,
    StoredBundle, StoredEntry, StoredRelationship,
};
use crate::telemetry::{TRACE_TARGET, metrics};

/// See the module's text.
#[derive(Debug)]
pub struct Metered<S>(Arc<S>);

impl<S: Store> Metered<S> {
    /// Counts what is asked of `store`.
    pub fn new(store: Arc<S>) -> Self {
        Self(store)
    }
}

/// Something that is read.
async fn read<T>(
    name: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    metrics().start(name).around(work, status).await
}

/// Something that is written; a trace shows how long the commit took.
async fn write<T>(
    name: &'static str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    let span = tracing::info_span!(target: TRACE_TARGET, "store", otel.name = name);
    read(name, work).instrument(span).await
}

fn status(error: &StoreError) -> Code {
    match error {
        StoreError::Full(_) => Code::ResourceExhausted,
        StoreError::Locked(_) | StoreError::Closed => Code::Unavailable,
        StoreError::Corrupted(_) => Code::DataLoss,
        StoreError::Io(_) | StoreError::Internal(_) => Code::Internal,
    }
}

#[async_trait]
impl<S: Store> EntryStore for Metered<S> {
    async fn create_entries(&self, entries: Vec<Entry>) -> Result<Vec<EntryCreated>, StoreError> {
        write(
            "datastore_registration_entry_create",
            self.0.create_entries(entries),
        )
        .await
    }

    async fn update_entries(
        &self,
        updates: Vec<(String, EntryPatch)>,
    ) -> Result<Vec<EntryUpdated>, StoreError> {
        write(
            "datastore_registration_entry_update",
            self.0.update_entries(updates),
        )
        .await
    }

    async fn delete_entries(&self, ids: Vec<String>) -> Result<Vec<Option<StoredEntry>>, StoreError> {
        write("datastore_registration_entry_delete", self.0.delete_entries(ids)).await
    }

    async fn entry(&self, id: &str) -> Result<Option<StoredEntry>, StoreError> {
        read("datastore_registration_entry_fetch", self.0.entry(id)).await
    }

    async fn list_entries(&self, after_row: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError> {
        let work = self.0.list_entries(after_row, limit);
        read("datastore_registration_entry_list", work).await
    }

    async fn prune_expired_entries(&self, at: OffsetDateTime) -> Result<usize, StoreError> {
        write(
            "datastore_registration_entry_prune",
            self.0.prune_expired_entries(at),
        )
        .await
    }
}

#[async_trait]
impl<S: Store> AgentStore for Metered<S> {
    async fn put_agent(&self, agent: AgentRecord) -> Result<AgentPut, StoreError> {
        write("datastore_node_create", self.0.put_agent(agent)).await
    }

    async fn agent(&self, id: &SpiffeId) -> Result<Option<StoredAgent>, StoreError> {
        read("datastore_node_fetch", self.0.agent(id)).await
    }

    async fn list_agents(&self, after_row: u64, limit: u32) -> Result<Vec<StoredAgent>, StoreError> {
        read("datastore_node_list", self.0.list_agents(after_row, limit)).await
    }

    async fn set_new_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
        expires_at: i64,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        write(
            "datastore_node_update",
            self.0.set_new_serial(id, serial, expires_at),
        )
        .await
    }

    async fn promote_new_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        write("datastore_node_update", self.0.promote_new_serial(id, serial)).await
    }

    async fn ban_agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        write("datastore_node_update", self.0.ban_agent(id)).await
    }

    async fn delete_agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        write("datastore_node_delete", self.0.delete_agent(id)).await
    }

    async fn set_agent_version(
        &self,
        id: &SpiffeId,
        version: &str,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        write("datastore_node_update", self.0.set_agent_version(id, version)).await
    }

    async fn prune_agents(
        &self,
        at: OffsetDateTime,
        also_unattestable: bool,
        limit: u32,
    ) -> Result<usize, StoreError> {
        let work = self.0.prune_agents(at, also_unattestable, limit);
        write("datastore_node_prune", work).await
    }
}

#[async_trait]
impl<S: Store> JoinTokenStore for Metered<S> {
    async fn create_join_token(&self, token: &str, expires_at: i64) -> Result<bool, StoreError> {
        let work = self.0.create_join_token(token, expires_at);
        write("datastore_join_token_create", work).await
    }

    async fn take_join_token(&self, token: &str) -> Result<Option<i64>, StoreError> {
        write("datastore_join_token_delete", self.0.take_join_token(token)).await
    }

    async fn prune_join_tokens(&self, at: OffsetDateTime) -> Result<usize, StoreError> {
        write("datastore_join_token_prune", self.0.prune_join_tokens(at)).await
    }
}

#[async_trait]
impl<S: Store> BundleStore for Metered<S> {
    async fn bundle(&self, trust_domain: &TrustDomain) -> Result<Option<StoredBundle>, StoreError> {
        read("datastore_bundle_fetch", self.0.bundle(trust_domain)).await
    }

    async fn list_bundles(&self, after_row: u64, limit: u32) -> Result<Vec<StoredBundle>, StoreError> {
        read("datastore_bundle_list", self.0.list_bundles(after_row, limit)).await
    }

    async fn put_bundle(&self, bundle: Bundle) -> Result<StoredBundle, StoreError> {
        write("datastore_bundle_set", self.0.put_bundle(bundle)).await
    }

    async fn create_bundle(&self, bundle: Bundle) -> Result<Option<StoredBundle>, StoreError> {
        write("datastore_bundle_create", self.0.create_bundle(bundle)).await
    }

    async fn edit_bundle(
        &self,
        trust_domain: &TrustDomain,
        edit: BundleEdit,
    ) -> Result<Option<StoredBundle>, StoreError> {
        write("datastore_bundle_update", self.0.edit_bundle(trust_domain, edit)).await
    }

    async fn delete_bundle(
        &self,
        trust_domain: &TrustDomain,
        mode: BundleDeleteMode,
    ) -> Result<BundleDeleted, StoreError> {
        write(
            "datastore_bundle_delete",
            self.0.delete_bundle(trust_domain, mode),
        )
        .await
    }
}

#[async_trait]
impl<S: Store> RelationshipStore for Metered<S> {
    async fn relationship(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        let work = self.0.relationship(trust_domain);
        read("datastore_federation_relationship_fetch", work).await
    }

    async fn list_relationships(
        &self,
        after_row: u64,
        limit: u32,
    ) -> Result<Vec<StoredRelationship>, StoreError> {
        let work = self.0.list_relationships(after_row, limit);
        read("datastore_federation_relationship_list", work).await
    }

    async fn create_relationship(
        &self,
        relationship: Relationship,
        bundle: Option<Bundle>,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        let work = self.0.create_relationship(relationship, bundle);
        write("datastore_federation_relationship_create", work).await
    }

    async fn update_relationship(
        &self,
        trust_domain: &TrustDomain,
        patch: RelationshipPatch,
        bundle: Option<Bundle>,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        let work = self.0.update_relationship(trust_domain, patch, bundle);
        write("datastore_federation_relationship_update", work).await
    }

    async fn delete_relationship(&self, trust_domain: &TrustDomain) -> Result<bool, StoreError> {
        let work = self.0.delete_relationship(trust_domain);
        write("datastore_federation_relationship_delete", work).await
    }
}

#[async_trait]
impl<S: Store> JournalStore for Metered<S> {
    async fn save_journal(&self, key: &str, journal: &[u8]) -> Result<(), StoreError> {
        write("datastore_ca_journal_set", self.0.save_journal(key, journal)).await
    }

    async fn list_journals(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        read("datastore_ca_journal_list", self.0.list_journals()).await
    }

    async fn delete_journal(&self, key: &str) -> Result<bool, StoreError> {
        write("datastore_ca_journal_delete", self.0.delete_journal(key)).await
    }
}

#[async_trait]
impl<S: Store> ChangeLog for Metered<S> {
    async fn changes_since(&self, after: Revision) -> Result<Vec<Change>, HistoryError> {
        let timer = metrics().start("datastore_registration_entry_event_list");
        let code = |error: &HistoryError| match error {
            HistoryError::Store(error) => status(error),
            _ => Code::OutOfRange,
        };
        timer.around(self.0.changes_since(after), code).await
    }

    async fn entries_deleted_since(&self, after: u64) -> Result<usize, StoreError> {
        self.0.entries_deleted_since(after).await
    }

    fn committed(&self) -> watch::Receiver<Revision> {
        self.0.committed()
    }
}
