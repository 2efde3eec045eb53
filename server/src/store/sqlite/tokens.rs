//! Join tokens.

use async_trait::async_trait;
use sqlx::Row;
use time::OffsetDateTime;

use super::SqliteStore;
use crate::store::{JoinTokenStore, StoreError};

#[async_trait]
impl JoinTokenStore for SqliteStore {
    async fn create_join_token(&self, token: &str, expires_at: i64) -> Result<bool, StoreError> {
        let token = token.to_owned();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let done = sqlx::query(
                        "INSERT INTO join_tokens (token, expires_at) VALUES (?, ?) ON CONFLICT DO NOTHING",
                    )
                    .bind(token)
                    .bind(expires_at)
                    .execute(&mut work.connection)
                    .await?;
                    Ok(done.rows_affected() == 1)
                })
            })
            .await
    }

    async fn take_join_token(&self, token: &str) -> Result<Option<i64>, StoreError> {
        let token = token.to_owned();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let row = sqlx::query("DELETE FROM join_tokens WHERE token = ? RETURNING expires_at")
                        .bind(token)
                        .fetch_optional(&mut work.connection)
                        .await?;
                    Ok(row.map(|row| row.try_get(0)).transpose()?)
                })
            })
            .await
    }

    async fn prune_join_tokens(&self, at: OffsetDateTime) -> Result<usize, StoreError> {
        let at = at.unix_timestamp();
        self.writer
            .write(move |work| {
                Box::pin(async move {
                    let done = sqlx::query("DELETE FROM join_tokens WHERE expires_at < ?")
                        .bind(at)
                        .execute(&mut work.connection)
                        .await?;
                    Ok(usize::try_from(done.rows_affected()).unwrap_or(usize::MAX))
                })
            })
            .await
    }
}
