//! JWT-SVIDs for all identities of a workload, whichever service asks.

use std::sync::Arc;

use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use tonic::Status;

use super::limits::Admitted;
use crate::svids::{CachedEntry, SignedJwt, SvidCache};

/// How many tokens of one call are requested at the same time.
const CONCURRENT_TOKENS: usize = 8;
/// Most audiences of one token, and most bytes of them together: tokens are cached, and travel in headers.
const MAX_AUDIENCES: usize = 64;
const MAX_AUDIENCE_BYTES: usize = 8 * 1024;

/// # Errors
/// `InvalidArgument` for an audience that is missing or too large.
pub(super) fn check_audience(audience: &[String]) -> Result<(), Status> {
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let bytes: usize = audience.iter().map(String::len).sum();
    if audience.len() > MAX_AUDIENCES || bytes > MAX_AUDIENCE_BYTES {
        return Err(Status::invalid_argument(format!(
            "audience has {} names of {bytes} bytes, more than {MAX_AUDIENCES} or {MAX_AUDIENCE_BYTES}",
            audience.len()
        )));
    }
    Ok(())
}

/// Waits for the caller's turns to have tokens signed, one for each entry that has none cached.
pub(super) async fn signing_turns(
    admitted: &Admitted,
    svids: &SvidCache,
    entries: &[Arc<CachedEntry>],
    audience: &[String],
) {
    for entry in entries {
        if !svids.holds_jwt(entry, audience) {
            admitted.signature().await;
        }
    }
}

/// A token for each of the entries, in their order, as `make` puts it.
///
/// # Errors
/// `Unavailable` when one of them cannot be obtained.
pub(super) async fn obtain<T>(
    svids: &SvidCache,
    entries: Vec<Arc<CachedEntry>>,
    audience: &[String],
    make: impl Fn(&CachedEntry, SignedJwt) -> T,
) -> Result<Vec<T>, Status> {
    let make = &make;
    let tokens = entries.into_iter().map(|entry| async move {
        let signed = svids.jwt(&entry.entry_id, &entry.spiffe_id, audience).await;
        let signed = signed.map_err(|error| {
            tracing::warn!(entry_id = entry.entry_id, %error, "JWT-SVID could not be obtained");
            Status::unavailable("could not fetch JWT-SVID")
        })?;
        Ok(make(&entry, signed))
    });
    stream::iter(tokens)
        .buffered(CONCURRENT_TOKENS)
        .try_collect()
        .await
}
