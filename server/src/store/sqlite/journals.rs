//! Journals of authorities.

use async_trait::async_trait;
use sqlx::Row;

use super::SqliteStore;
use crate::store::{JournalStore, StoreError};

#[async_trait]
impl JournalStore for SqliteStore {
    async fn save_journal(&self, key: &str, journal: &[u8]) -> Result<(), StoreError> {
        let (key, journal) = (key.to_owned(), journal.to_vec());
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    sqlx::query(
                        "INSERT INTO journals (key, content) VALUES (?, ?) \
                         ON CONFLICT (key) DO UPDATE SET content = excluded.content",
                    )
                    .bind(key)
                    .bind(journal)
                    .execute(&mut work.connection)
                    .await?;
                    Ok(())
                })
            })
            .await
    }

    async fn list_journals(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let rows = sqlx::query("SELECT key, content FROM journals ORDER BY key")
            .fetch_all(&mut *self.readers.acquire().await?)
            .await?;
        rows.iter()
            .map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
            .collect()
    }

    async fn delete_journal(&self, key: &str) -> Result<bool, StoreError> {
        let key = key.to_owned();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let done = sqlx::query("DELETE FROM journals WHERE key = ?")
                        .bind(key)
                        .execute(&mut work.connection)
                        .await?;
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }
}
