//! Federation relationships. Only a bundle that is stored with one is recorded as a change.

use async_trait::async_trait;
use finial_identity::bundle::Bundle;
use finial_identity::federation::{EndpointProfile, EndpointUrl, Relationship};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::{SqliteStore, bundles, row_bound, row_number};
use crate::store::{RelationshipPatch, RelationshipStore, StoreError, StoredRelationship};

#[async_trait]
impl RelationshipStore for SqliteStore {
    async fn relationship(
        &self,
        trust_domain: &TrustDomain,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        read(&mut connection, trust_domain).await
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

    async fn create_relationship(
        &self,
        relationship: Relationship,
        bundle: Option<Bundle>,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let known = read(&mut work.connection, &relationship.trust_domain).await?;
                    if known.is_some() {
                        return Ok(None);
                    }
                    bundles::put_with(work, bundle).await?;
                    write(&mut work.connection, relationship).await.map(Some)
                })
            })
            .await
    }

    async fn update_relationship(
        &self,
        trust_domain: &TrustDomain,
        patch: RelationshipPatch,
        bundle: Option<Bundle>,
    ) -> Result<Option<StoredRelationship>, StoreError> {
        let trust_domain = trust_domain.clone();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let Some(known) = read(&mut work.connection, &trust_domain).await? else {
                        return Ok(None);
                    };
                    bundles::put_with(work, bundle).await?;
                    let patched = Relationship {
                        trust_domain,
                        ..patch(known.relationship)
                    };
                    write(&mut work.connection, patched).await.map(Some)
                })
            })
            .await
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
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }
}

async fn read(
    connection: &mut SqliteConnection,
    trust_domain: &TrustDomain,
) -> Result<Option<StoredRelationship>, StoreError> {
    let row = sqlx::query(
        "SELECT row, trust_domain, bundle_endpoint_url, endpoint_spiffe_id FROM relationships \
         WHERE trust_domain = ?",
    )
    .bind(trust_domain.as_str())
    .fetch_optional(connection)
    .await?;
    row.map(|row| stored(&row)).transpose()
}

async fn write(
    connection: &mut SqliteConnection,
    relationship: Relationship,
) -> Result<StoredRelationship, StoreError> {
    let row = sqlx::query(
        "INSERT INTO relationships (trust_domain, bundle_endpoint_url, endpoint_spiffe_id) VALUES (?, ?, ?) \
         ON CONFLICT (trust_domain) DO UPDATE SET bundle_endpoint_url = excluded.bundle_endpoint_url, \
         endpoint_spiffe_id = excluded.endpoint_spiffe_id RETURNING row",
    )
    .bind(relationship.trust_domain.as_str())
    .bind(relationship.endpoint_url.as_str())
    .bind(relationship.profile.endpoint_id().map(SpiffeId::as_str))
    .fetch_one(connection)
    .await?;
    Ok(StoredRelationship {
        row: row_number(row.try_get(0)?),
        relationship,
    })
}

/// Columns row, trust_domain, bundle_endpoint_url, endpoint_spiffe_id.
fn stored(row: &SqliteRow) -> Result<StoredRelationship, StoreError> {
    const WHAT: &str = "federation relationship";
    let name: &str = row.try_get(1)?;
    let url: &str = row.try_get(2)?;
    let endpoint_id: Option<&str> = row.try_get(3)?;
    Ok(StoredRelationship {
        row: row_number(row.try_get(0)?),
        relationship: Relationship {
            trust_domain: TrustDomain::parse(name)
                .map_err(|error| StoreError::unreadable(WHAT, name, error))?,
            endpoint_url: EndpointUrl::parse(url)
                .map_err(|error| StoreError::unreadable(WHAT, name, error))?,
            profile: match endpoint_id {
                None => EndpointProfile::HttpsWeb,
                Some(id) => EndpointProfile::HttpsSpiffe(
                    SpiffeId::parse(id).map_err(|error| StoreError::unreadable(WHAT, name, error))?,
                ),
            },
        },
    })
}
