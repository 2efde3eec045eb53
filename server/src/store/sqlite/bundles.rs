//! Trust bundles.

use std::sync::Arc;

use async_trait::async_trait;
use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire::WireError;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use super::writer::Work;
use super::{SqliteStore, entries, row_bound, row_number};
use crate::store::codec;
use crate::store::{
    BundleDeleteMode, BundleDeleted, BundleEdit, BundleStore, EntryPatch, EntryUpdated, StoreError,
    StoredBundle, What,
};

#[async_trait]
impl BundleStore for SqliteStore {
    async fn bundle(&self, trust_domain: &TrustDomain) -> Result<Option<StoredBundle>, StoreError> {
        let mut connection = self.readers.acquire().await?;
        read(&mut connection, trust_domain.as_str(), &self.trust_domain).await
    }

    async fn list_bundles(&self, after_row: u64, limit: u32) -> Result<Vec<StoredBundle>, StoreError> {
        let rows =
            sqlx::query("SELECT row, trust_domain, content FROM bundles WHERE row > ? ORDER BY row LIMIT ?")
                .bind(row_bound(after_row))
                .bind(limit)
                .fetch_all(&mut *self.readers.acquire().await?)
                .await?;
        rows.iter().map(|row| listed(row, &self.trust_domain)).collect()
    }

    async fn put_bundle(&self, bundle: Bundle) -> Result<StoredBundle, StoreError> {
        self.writer
            .write(move |work| Box::pin(async move { put(work, bundle).await }))
            .await
    }

    async fn create_bundle(&self, bundle: Bundle) -> Result<Option<StoredBundle>, StoreError> {
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    match read(
                        &mut work.connection,
                        bundle.trust_domain.as_str(),
                        &work.trust_domain,
                    )
                    .await?
                    {
                        Some(_) => Ok(None),
                        None => write(work, bundle).await.map(Some),
                    }
                })
            })
            .await
    }

    async fn edit_bundle(
        &self,
        trust_domain: &TrustDomain,
        edit: BundleEdit,
    ) -> Result<Option<StoredBundle>, StoreError> {
        let trust_domain = trust_domain.clone();
        self.writer
            .write(move |work| Box::pin(async move { edit_stored(work, &trust_domain, edit).await }))
            .await
    }

    async fn delete_bundle(
        &self,
        trust_domain: &TrustDomain,
        mode: BundleDeleteMode,
    ) -> Result<BundleDeleted, StoreError> {
        let trust_domain = trust_domain.clone();
        self.writer
            .write(move |work| Box::pin(async move { delete(work, &trust_domain, mode).await }))
            .await
    }
}

/// Stores a bundle that comes with something else, if one does.
pub(super) async fn put_with(work: &mut Work, bundle: Option<Bundle>) -> Result<(), StoreError> {
    if let Some(bundle) = bundle {
        put(work, bundle).await?;
    }
    Ok(())
}

async fn put(work: &mut Work, bundle: Bundle) -> Result<StoredBundle, StoreError> {
    match read(
        &mut work.connection,
        bundle.trust_domain.as_str(),
        &work.trust_domain,
    )
    .await?
    {
        Some(before) if *before.bundle == bundle => Ok(before),
        _ => write(work, bundle).await,
    }
}

/// The bundle of a trust domain.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    trust_domain: &str,
    own: &TrustDomain,
) -> Result<Option<StoredBundle>, StoreError> {
    let row = sqlx::query("SELECT row, trust_domain, content FROM bundles WHERE trust_domain = ?")
        .bind(trust_domain)
        .fetch_optional(connection)
        .await?;
    row.map(|row| Ok(stored(&row, own)?.0)).transpose()
}

async fn edit_stored(
    work: &mut Work,
    trust_domain: &TrustDomain,
    edit: BundleEdit,
) -> Result<Option<StoredBundle>, StoreError> {
    let is_own = *trust_domain == work.trust_domain;
    let before = read(&mut work.connection, trust_domain.as_str(), &work.trust_domain).await?;
    let mut bundle = match &before {
        Some(before) => Bundle::clone(&before.bundle),
        None if is_own => Bundle::new(trust_domain.clone()),
        None => return Ok(None),
    };
    edit(&mut bundle);
    bundle.trust_domain = trust_domain.clone();
    match before {
        Some(before) if *before.bundle == bundle => Ok(Some(before)),
        before => {
            if is_own {
                let sequence_number = before.map_or(0, |before| before.bundle.sequence_number);
                bundle.sequence_number = sequence_number.saturating_add(1);
            }
            write(work, bundle).await.map(Some)
        }
    }
}

async fn write(work: &mut Work, bundle: Bundle) -> Result<StoredBundle, StoreError> {
    let row = sqlx::query(
        "INSERT INTO bundles (trust_domain, content) VALUES (?, ?) \
         ON CONFLICT (trust_domain) DO UPDATE SET content = excluded.content RETURNING row",
    )
    .bind(bundle.trust_domain.as_str())
    .bind(codec::encode_bundle(&bundle))
    .fetch_one(&mut work.connection)
    .await?;
    let bundle = Arc::new(bundle);
    work.record(What::BundlePut(bundle.clone()));
    Ok(StoredBundle {
        row: row_number(row.try_get(0)?),
        bundle,
    })
}

async fn delete(
    work: &mut Work,
    trust_domain: &TrustDomain,
    mode: BundleDeleteMode,
) -> Result<BundleDeleted, StoreError> {
    if read(&mut work.connection, trust_domain.as_str(), &work.trust_domain)
        .await?
        .is_none()
    {
        return Ok(BundleDeleted::NotFound);
    }
    let federated = federated_ids(work, trust_domain).await?;
    match mode {
        BundleDeleteMode::Restrict if !federated.is_empty() => {
            return Ok(BundleDeleted::InUse(federated.len()));
        }
        BundleDeleteMode::Restrict => {}
        BundleDeleteMode::Delete => {
            for id in &federated {
                entries::delete(work, id).await?;
            }
        }
        BundleDeleteMode::Dissociate => {
            for id in &federated {
                dissociate(work, id, trust_domain).await?;
            }
        }
    }
    sqlx::query("DELETE FROM bundles WHERE trust_domain = ?")
        .bind(trust_domain.as_str())
        .execute(&mut work.connection)
        .await?;
    work.record(What::BundleDeleted(trust_domain.clone()));
    Ok(BundleDeleted::Deleted(federated.len()))
}

async fn federated_ids(work: &mut Work, trust_domain: &TrustDomain) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query(
        "SELECT entries.id FROM entry_bundles JOIN entries ON entries.row = entry_bundles.entry_row \
         WHERE entry_bundles.trust_domain = ? ORDER BY entries.row",
    )
    .bind(trust_domain.as_str())
    .fetch_all(&mut work.connection)
    .await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// Takes the trust domain out of an entry. The revision number advances, else agents that poll would
/// not see it.
async fn dissociate(work: &mut Work, id: &str, trust_domain: &TrustDomain) -> Result<(), StoreError> {
    let without = trust_domain.clone();
    let patch: EntryPatch = Box::new(move |mut parts| {
        parts.federates_with.retain(|name| *name != without);
        parts
    });
    match entries::update(work, id, patch).await? {
        EntryUpdated::Updated(_) => Ok(()),
        other => Err(StoreError::unreadable(
            "registration entry",
            id,
            std::io::Error::other(format!("cannot be dissociated from {trust_domain}: {other:?}")),
        )),
    }
}

/// As [`stored`]. Authorities that were left out are logged here, where all bundles are read when the server starts,
/// and not each time that one of them is read.
fn listed(row: &SqliteRow, own: &TrustDomain) -> Result<StoredBundle, StoreError> {
    let (stored, skipped) = stored(row, own)?;
    let trust_domain = &stored.bundle.trust_domain;
    for error in skipped {
        tracing::warn!(%trust_domain, %error, "an authority of a stored bundle cannot be used and was left out");
    }
    Ok(stored)
}

/// Columns row, trust_domain, content.
fn stored(row: &SqliteRow, own: &TrustDomain) -> Result<(StoredBundle, Vec<WireError>), StoreError> {
    let trust_domain: &str = row.try_get(1)?;
    let content: &[u8] = row.try_get(2)?;
    let (bundle, skipped) = codec::decode_bundle(trust_domain, own, content)?;
    let stored = StoredBundle {
        row: row_number(row.try_get(0)?),
        bundle: Arc::new(bundle),
    };
    Ok((stored, skipped))
}
