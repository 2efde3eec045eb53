//! Attested nodes.

use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};
use time::OffsetDateTime;

use super::writer::Work;
use super::{SqliteStore, entries, row_bound, row_number};
use crate::store::codec;
use crate::store::{AgentPut, AgentRecord, AgentStore, StoreError, StoredAgent, What};

/// The attestor whose nodes come with an entry of their own.
const JOIN_TOKEN: &str = "join_token";
/// Type of the selector by which that entry matches its node.
const SPIFFE_ID_SELECTOR: &str = "spiffe_id";

#[async_trait]
impl AgentStore for SqliteStore {
    async fn put_agent(&self, agent: AgentRecord) -> Result<AgentPut, StoreError> {
        self.writer
            .write(move |work| Box::pin(async move { put(work, agent).await }))
            .await
    }

    async fn agent(&self, id: &SpiffeId) -> Result<Option<StoredAgent>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        read(&mut connection, id.as_str()).await
    }

    async fn list_agents(&self, after_row: u64, limit: u32) -> Result<Vec<StoredAgent>, StoreError> {
        let rows = sqlx::query("SELECT row, id, content FROM agents WHERE row > ? ORDER BY row LIMIT ?")
            .bind(row_bound(after_row))
            .bind(limit)
            .fetch_all(&mut *self.readers.acquire().await?)
            .await?;
        rows.iter().map(stored).collect()
    }

    async fn set_new_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
        expires_at: i64,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        let serial = serial.to_owned();
        self.change(id, move |agent| {
            if agent.is_banned() {
                return false;
            }
            agent.new_serial = serial;
            agent.new_expires_at = expires_at;
            true
        })
        .await
    }

    async fn promote_new_serial(
        &self,
        id: &SpiffeId,
        serial: &str,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        let serial = serial.to_owned();
        self.change(id, move |agent| {
            if serial.is_empty() || agent.new_serial != serial {
                return false;
            }
            agent.serial = std::mem::take(&mut agent.new_serial);
            agent.expires_at = std::mem::take(&mut agent.new_expires_at);
            true
        })
        .await
    }

    async fn ban_agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        self.change(id, |agent| {
            agent.serial.clear();
            agent.new_serial.clear();
            true
        })
        .await
    }

    async fn delete_agent(&self, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        let id = id.clone();
        self.writer
            .write(move |work| Box::pin(async move { delete(work, &id).await }))
            .await
    }

    async fn set_agent_version(
        &self,
        id: &SpiffeId,
        version: &str,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        let version = version.to_owned();
        self.change(id, move |agent| {
            agent.agent_version = version;
            true
        })
        .await
    }

    async fn prune_agents(
        &self,
        at: OffsetDateTime,
        also_unattestable: bool,
        limit: u32,
    ) -> Result<usize, StoreError> {
        let at = at.unix_timestamp();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let rows = sqlx::query(
                        "SELECT id FROM agents WHERE expires_at < ? AND banned = 0 AND (can_reattest = 1 OR ?) LIMIT ?",
                    )
                    .bind(at)
                    .bind(also_unattestable)
                    .bind(limit)
                    .fetch_all(&mut work.connection)
                    .await?;
                    let mut pruned = 0;
                    for row in &rows {
                        let id: &str = row.try_get(0)?;
                        let id = SpiffeId::parse(id).map_err(|error| StoreError::unreadable("agent", id, error))?;
                        pruned += usize::from(delete(work, &id).await?.is_some());
                    }
                    Ok(pruned)
                })
            })
            .await
    }
}

impl SqliteStore {
    /// Changes a node in one transaction, if `change` says that it did.
    async fn change(
        &self,
        id: &SpiffeId,
        change: impl FnOnce(&mut AgentRecord) -> bool + Send + 'static,
    ) -> Result<Option<Arc<AgentRecord>>, StoreError> {
        let id = id.clone();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let Some(before) = read(&mut work.connection, id.as_str()).await? else {
                        return Ok(None);
                    };
                    let mut agent = AgentRecord::clone(&before.agent);
                    if !change(&mut agent) {
                        return Ok(None);
                    }
                    if agent == *before.agent {
                        return Ok(Some(before.agent));
                    }
                    write(work, agent).await.map(Some)
                })
            })
            .await
    }
}

/// The node with this ID.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    id: &str,
) -> Result<Option<StoredAgent>, StoreError> {
    let row = sqlx::query("SELECT row, id, content FROM agents WHERE id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.map(|row| stored(&row)).transpose()
}

async fn put(work: &mut Work, mut agent: AgentRecord) -> Result<AgentPut, StoreError> {
    if let Some(before) = read(&mut work.connection, agent.id.as_str()).await? {
        if before.agent.is_banned() {
            return Ok(AgentPut::Banned);
        }
        if agent.agent_version.is_empty() {
            agent.agent_version.clone_from(&before.agent.agent_version);
        }
    }
    write(work, agent).await.map(AgentPut::Stored)
}

async fn write(work: &mut Work, mut agent: AgentRecord) -> Result<Arc<AgentRecord>, StoreError> {
    agent.selectors.sort_unstable();
    agent.selectors.dedup();
    sqlx::query(
        "INSERT INTO agents (id, expires_at, can_reattest, banned, content) VALUES (?, ?, ?, ?, ?) \
         ON CONFLICT (id) DO UPDATE SET expires_at = excluded.expires_at, can_reattest = excluded.can_reattest, \
         banned = excluded.banned, content = excluded.content",
    )
    .bind(agent.id.as_str())
    .bind(agent.expires_at.max(agent.new_expires_at))
    .bind(agent.can_reattest)
    .bind(agent.is_banned())
    .bind(codec::encode_agent(&agent))
    .execute(&mut work.connection)
    .await?;
    let agent = Arc::new(agent);
    work.record(What::AgentPut(agent.clone()));
    Ok(agent)
}

async fn delete(work: &mut Work, id: &SpiffeId) -> Result<Option<Arc<AgentRecord>>, StoreError> {
    let row = sqlx::query("DELETE FROM agents WHERE id = ? RETURNING row, id, content")
        .bind(id.as_str())
        .fetch_optional(&mut work.connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let agent = stored(&row)?.agent;
    if agent.attestation_type == JOIN_TOKEN {
        for child in entries::children(work, id).await? {
            if is_of_join_token(&child.entry.selectors, id) {
                entries::delete(work, &child.entry.id).await?;
            }
        }
    }
    work.record(What::AgentDeleted(id.clone()));
    Ok(Some(agent))
}

/// Whether these are the selectors of the entry that is made with a token for this agent.
fn is_of_join_token(selectors: &[Selector], agent: &SpiffeId) -> bool {
    matches!(selectors, [only] if only.kind() == SPIFFE_ID_SELECTOR && only.value() == agent.as_str())
}

/// Columns row, id, content.
fn stored(row: &SqliteRow) -> Result<StoredAgent, StoreError> {
    let id: &str = row.try_get(1)?;
    let content: &[u8] = row.try_get(2)?;
    Ok(StoredAgent {
        row: row_number(row.try_get(0)?),
        agent: Arc::new(codec::decode_agent(id, content)?),
    })
}
