//! Registration entries: one row with the encoded entry, and columns for searches.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::entry::Entry;
use finial_identity::spiffe_id::TrustDomain;
use sqlx::sqlite::SqliteRow;
use sqlx::{AssertSqlSafe, Row, SqliteConnection};
use time::OffsetDateTime;

use super::writer::Work;
use super::{SqliteStore, chunks, placeholders, row_bound, row_number};
use crate::store::codec;
use crate::store::{EntryCreated, EntryPatch, EntryStore, EntryUpdated, StoreError, StoredEntry, What};

/// Expired entries that one transaction deletes.
const PRUNE_CHUNK: i64 = 1_000;

#[async_trait]
impl EntryStore for SqliteStore {
    async fn create_entries(&self, entries: Vec<Entry>) -> Result<Vec<EntryCreated>, StoreError> {
        self.writer
            .write(move |work| Box::pin(async move { create(work, entries).await }))
            .await
    }

    async fn update_entries(
        &self,
        updates: Vec<(String, EntryPatch)>,
    ) -> Result<Vec<EntryUpdated>, StoreError> {
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let mut results = Vec::with_capacity(updates.len());
                    for (id, patch) in updates {
                        results.push(update(work, &id, patch).await?);
                    }
                    Ok(results)
                })
            })
            .await
    }

    async fn delete_entries(&self, ids: Vec<String>) -> Result<Vec<Option<StoredEntry>>, StoreError> {
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let mut results = Vec::with_capacity(ids.len());
                    for id in &ids {
                        results.push(delete(work, id).await?);
                    }
                    Ok(results)
                })
            })
            .await
    }

    async fn entry(&self, id: &str) -> Result<Option<StoredEntry>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        read(&mut connection, id, &self.trust_domain).await
    }

    async fn list_entries(&self, after_row: u64, limit: u32) -> Result<Vec<StoredEntry>, StoreError> {
        let rows = sqlx::query("SELECT row, id, content FROM entries WHERE row > ? ORDER BY row LIMIT ?")
            .bind(row_bound(after_row))
            .bind(limit)
            .fetch_all(&mut *self.readers.acquire().await?)
            .await?;
        rows.iter().map(|row| stored(row, &self.trust_domain)).collect()
    }

    async fn prune_expired_entries(&self, at: OffsetDateTime) -> Result<usize, StoreError> {
        let at = at.unix_timestamp();
        let mut pruned = 0;
        loop {
            let chunk = self
                .writer
                .write(move |work| Box::pin(async move { prune(work, at).await }))
                .await?;
            pruned += chunk;
            if chunk == 0 {
                return Ok(pruned);
            }
        }
    }
}

/// The entry with this id.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    id: &str,
    trust_domain: &TrustDomain,
) -> Result<Option<StoredEntry>, StoreError> {
    let row = sqlx::query("SELECT row, id, content FROM entries WHERE id = ?")
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.map(|row| stored(&row, trust_domain)).transpose()
}

/// Deletes the entry with this id and records it.
pub(super) async fn delete(work: &mut Work, id: &str) -> Result<Option<StoredEntry>, StoreError> {
    let row = sqlx::query("DELETE FROM entries WHERE id = ? RETURNING row, id, content")
        .bind(id)
        .fetch_optional(&mut work.connection)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let deleted = stored(&row, &work.trust_domain)?;
    work.record(What::EntryDeleted(deleted.entry.id.clone()));
    Ok(Some(deleted))
}

/// The entries that have this parent.
pub(super) async fn children(
    work: &mut Work,
    parent: &finial_identity::spiffe_id::SpiffeId,
) -> Result<Vec<StoredEntry>, StoreError> {
    let from = codec::parent_key(parent);
    let mut to = from.to_vec();
    to.extend_from_slice(&[0xff; 17]);
    let rows = sqlx::query("SELECT row, id, content FROM entries WHERE similar >= ? AND similar <= ?")
        .bind(from.to_vec())
        .bind(to)
        .fetch_all(&mut work.connection)
        .await?;
    let mut found = Vec::with_capacity(rows.len());
    for row in &rows {
        let child = stored(row, &work.trust_domain)?;
        if child.entry.parent_id == *parent {
            found.push(child);
        }
    }
    Ok(found)
}

/// Replaces the content of an entry: revision number + 1, id and creation time as they were.
pub(super) async fn update(work: &mut Work, id: &str, patch: EntryPatch) -> Result<EntryUpdated, StoreError> {
    let Some(before) = read(&mut work.connection, id, &work.trust_domain).await? else {
        return Ok(EntryUpdated::NotFound);
    };
    let mut parts = patch(Entry::clone(&before.entry).into_parts());
    parts.id.clone_from(&before.entry.id);
    parts.created_at = before.entry.created_at;
    parts.revision_number = before.entry.revision_number.saturating_add(1);
    let entry = match Entry::check(parts, &work.trust_domain) {
        Ok(entry) => entry,
        Err(error) => return Ok(EntryUpdated::Refused(error)),
    };
    if let Some(missing) = Bundles::default().missing(work, &entry).await? {
        return Ok(EntryUpdated::MissingBundle(missing));
    }
    sqlx::query("UPDATE entries SET similar = ?, expires_at = ?, content = ? WHERE row = ?")
        .bind(codec::similarity_key(&entry))
        .bind(entry.expires_at)
        .bind(codec::encode_entry(&entry))
        .bind(before.row.cast_signed())
        .execute(&mut work.connection)
        .await?;
    if entry.federates_with != before.entry.federates_with {
        sqlx::query("DELETE FROM entry_bundles WHERE entry_row = ?")
            .bind(before.row.cast_signed())
            .execute(&mut work.connection)
            .await?;
        associate(work, before.row, &entry).await?;
    }
    let updated = StoredEntry {
        row: before.row,
        entry: Arc::new(entry),
    };
    work.record(What::EntryPut(updated.clone()));
    Ok(EntryUpdated::Updated(updated))
}

async fn create(work: &mut Work, entries: Vec<Entry>) -> Result<Vec<EntryCreated>, StoreError> {
    let created_at = work.now();
    let mut bundles = Bundles::default();
    let mut results: Vec<Option<EntryCreated>> = Vec::with_capacity(entries.len());
    let mut candidates = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        if let Some(missing) = bundles.missing(work, &entry).await? {
            results.push(Some(EntryCreated::MissingBundle(missing)));
            continue;
        }
        results.push(None);
        let mut parts = entry.into_parts();
        parts.created_at = created_at;
        parts.revision_number = 0;
        let id = parts.id.clone();
        let entry = Entry::check(parts, &work.trust_domain)
            .map_err(|error| StoreError::unreadable("new registration entry", &id, error))?;
        candidates.push(Candidate {
            index,
            similar: codec::similarity_key(&entry),
            entry: Arc::new(entry),
        });
    }
    // One that stands after its like in the same call depends on what became of that one.
    let sizes: Box<dyn Iterator<Item = &[Candidate]> + Send> = if all_differ(&candidates) {
        Box::new(chunks(&candidates))
    } else {
        Box::new(candidates.chunks(1))
    };
    for chunk in sizes {
        for (candidate, result) in chunk.iter().zip(insert(work, chunk).await?) {
            results[candidate.index] = Some(result);
        }
    }
    Ok(results.into_iter().flatten().collect())
}

/// An entry that may be created.
#[derive(Debug)]
struct Candidate {
    index: usize,
    similar: Vec<u8>,
    entry: Arc<Entry>,
}

fn all_differ(candidates: &[Candidate]) -> bool {
    let mut seen = HashSet::new();
    let mut ids = HashSet::new();
    candidates
        .iter()
        .all(|candidate| seen.insert(&candidate.similar) && ids.insert(&candidate.entry.id))
}

async fn insert(work: &mut Work, candidates: &[Candidate]) -> Result<Vec<EntryCreated>, StoreError> {
    let statement = format!(
        "INSERT INTO entries (id, similar, expires_at, content) \
         SELECT column1, column2, column3, column4 FROM (VALUES {}) \
         WHERE NOT EXISTS (SELECT 1 FROM entries WHERE similar = column2) \
         ON CONFLICT (id) DO NOTHING RETURNING row, id",
        placeholders(4, candidates.len())
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for Candidate { similar, entry, .. } in candidates {
        query = query
            .bind(&entry.id)
            .bind(similar)
            .bind(entry.expires_at)
            .bind(codec::encode_entry(entry));
    }
    let mut rows = HashMap::with_capacity(candidates.len());
    for row in query.fetch_all(&mut work.connection).await? {
        rows.insert(row.try_get::<String, _>(1)?, row_number(row.try_get(0)?));
    }
    let mut results = Vec::with_capacity(candidates.len());
    for Candidate { similar, entry, .. } in candidates {
        let Some(row) = rows.get(&entry.id).copied() else {
            results.push(refusal(work, similar).await?);
            continue;
        };
        if !entry.federates_with.is_empty() {
            associate(work, row, entry).await?;
        }
        let created = StoredEntry {
            row,
            entry: entry.clone(),
        };
        work.record(What::EntryPut(created.clone()));
        results.push(EntryCreated::Created(created));
    }
    Ok(results)
}

/// Why an entry was not inserted: a similar one, else one with its id.
async fn refusal(work: &mut Work, similar: &[u8]) -> Result<EntryCreated, StoreError> {
    let row = sqlx::query("SELECT row, id, content FROM entries WHERE similar = ? ORDER BY row LIMIT 1")
        .bind(similar)
        .fetch_optional(&mut work.connection)
        .await?;
    match row {
        Some(row) => Ok(EntryCreated::Similar(stored(&row, &work.trust_domain)?)),
        None => Ok(EntryCreated::IdTaken),
    }
}

async fn associate(work: &mut Work, row: u64, entry: &Entry) -> Result<(), StoreError> {
    for trust_domain in &entry.federates_with {
        sqlx::query(
            "INSERT INTO entry_bundles (entry_row, trust_domain) VALUES (?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(row.cast_signed())
        .bind(trust_domain.as_str())
        .execute(&mut work.connection)
        .await?;
    }
    Ok(())
}

async fn prune(work: &mut Work, at: i64) -> Result<usize, StoreError> {
    let rows = sqlx::query("SELECT id FROM entries WHERE expires_at > 0 AND expires_at < ? LIMIT ?")
        .bind(at)
        .bind(PRUNE_CHUNK)
        .fetch_all(&mut work.connection)
        .await?;
    for row in &rows {
        let id: String = row.try_get(0)?;
        delete(work, &id).await?;
    }
    Ok(rows.len())
}

/// Which bundles are stored, asked once in a job.
#[derive(Debug, Default)]
struct Bundles(HashMap<TrustDomain, bool>);

impl Bundles {
    /// The first trust domain that the entry federates with and whose bundle is not stored.
    async fn missing(&mut self, work: &mut Work, entry: &Entry) -> Result<Option<TrustDomain>, StoreError> {
        for trust_domain in &entry.federates_with {
            let stored = match self.0.get(trust_domain) {
                Some(stored) => *stored,
                None => {
                    let row = sqlx::query("SELECT 1 FROM bundles WHERE trust_domain = ?")
                        .bind(trust_domain.as_str())
                        .fetch_optional(&mut work.connection)
                        .await?;
                    self.0.insert(trust_domain.clone(), row.is_some());
                    row.is_some()
                }
            };
            if !stored {
                return Ok(Some(trust_domain.clone()));
            }
        }
        Ok(None)
    }
}

/// Columns row, id, content.
fn stored(row: &SqliteRow, trust_domain: &TrustDomain) -> Result<StoredEntry, StoreError> {
    let id: &str = row.try_get(1)?;
    let content: &[u8] = row.try_get(2)?;
    Ok(StoredEntry {
        row: row_number(row.try_get(0)?),
        entry: Arc::new(codec::decode_entry(id, content, trust_domain)?),
    })
}
