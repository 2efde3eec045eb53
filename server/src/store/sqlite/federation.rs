//! Federation relationships.

use async_trait::async_trait;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::{SqliteStore, row_bound, row_number};
use crate::store::{FederationRelationship, FederationStore, StoreError, StoredRelationship, What};

const INSERT: &str = "INSERT INTO relationships (bundle_endpoint_url, endpoint_spiffe_id, trust_domain) \
                      VALUES (?, ?, ?) ON CONFLICT DO NOTHING";
const UPDATE: &str =
    "UPDATE relationships SET bundle_endpoint_url = ?, endpoint_spiffe_id = ? WHERE trust_domain = ?";

#[async_trait]
impl FederationStore for SqliteStore {
    async fn relationship(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        let row = sqlx::query(
            "SELECT row, trust_domain, bundle_endpoint_url, endpoint_spiffe_id FROM relationships WHERE trust_domain = ?",
        )
        .bind(trust_domain.as_str())
        .fetch_optional(&mut *self.readers.acquire().await?)
        .await?;
        row.map(|row| stored(&row)).transpose()
    }

    async fn list_relationships(
        &self,
        after_row: u64,
        limit: u32,
    ) -> Result<Vec<StoredRelationship>, StoreError> {
        let rows = sqlx::query(
            "SELECT row, trust_domain, bundle_endpoint_url, endpoint_spiffe_id FROM relationships \
             WHERE row > ? ORDER BY row LIMIT ?",
        )
        .bind(row_bound(after_row))
        .bind(limit)
        .fetch_all(&mut *self.readers.acquire().await?)
        .await?;
        rows.iter().map(stored).collect()
    }

    async fn create_relationship(&self, relationship: FederationRelationship) -> Result<bool, StoreError> {
        self.write_relationship(INSERT, relationship).await
    }

    async fn update_relationship(&self, relationship: FederationRelationship) -> Result<bool, StoreError> {
        self.write_relationship(UPDATE, relationship).await
    }

    async fn delete_relationship(&self, trust_domain: &TrustDomain) -> Result<bool, StoreError> {
        let trust_domain = trust_domain.clone();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let done = sqlx::query("DELETE FROM relationships WHERE trust_domain = ?")
                        .bind(trust_domain.as_str())
                        .execute(&mut work.connection)
                        .await?;
                    let is_deleted = done.rows_affected() == 1;
                    if is_deleted {
                        work.record(What::RelationshipChanged(trust_domain));
                    }
                    Ok(is_deleted)
                })
            })
            .await
    }
}

impl SqliteStore {
    async fn write_relationship(
        &self,
        statement: &'static str,
        relationship: FederationRelationship,
    ) -> Result<bool, StoreError> {
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let done = sqlx::query(statement)
                        .bind(relationship.bundle_endpoint_url)
                        .bind(relationship.endpoint_spiffe_id.map(|id| id.to_string()))
                        .bind(relationship.trust_domain.as_str())
                        .execute(&mut work.connection)
                        .await?;
                    let is_done = done.rows_affected() == 1;
                    if is_done {
                        work.record(What::RelationshipChanged(relationship.trust_domain));
                    }
                    Ok(is_done)
                })
            })
            .await
    }
}

fn stored(row: &SqliteRow) -> Result<StoredRelationship, StoreError> {
    let name: &str = row.try_get(1)?;
    let unreadable = |error| StoreError::unreadable("federation relationship", name, error);
    let endpoint: Option<&str> = row.try_get(3)?;
    Ok(StoredRelationship {
        row: row_number(row.try_get(0)?),
        relationship: FederationRelationship {
            trust_domain: TrustDomain::parse(name).map_err(unreadable)?,
            bundle_endpoint_url: row.try_get(2)?,
            endpoint_spiffe_id: endpoint.map(SpiffeId::parse).transpose().map_err(unreadable)?,
        },
    })
}
