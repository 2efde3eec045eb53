//! The paging protocol of `SyncAuthorizedEntries`.

use std::collections::HashMap;
use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::types;
use tonic::{Status, Streaming};

use super::entry::masked;
use super::streaming::Sender;

/// How many entries or revisions `SyncAuthorizedEntries` puts into a message, as SPIRE.
pub const SYNC_PAGE: usize = 500;

/// The paging protocol of `SyncAuthorizedEntries`, over a set that stays as it was when the stream began.
pub async fn sync(
    authorized: Vec<Arc<Entry>>,
    mut requests: Streaming<pb::SyncAuthorizedEntriesRequest>,
    sender: Sender<pb::SyncAuthorizedEntriesResponse>,
) -> Result<(), Status> {
    let Some(first) = requests.message().await? else {
        return Ok(());
    };
    if !first.ids.is_empty() {
        return Err(Status::invalid_argument(
            "specifying IDs on initial request is not supported",
        ));
    }
    let mask = first.output_mask;
    if mask.as_ref().is_some_and(|mask| !mask.revision_number) {
        return Err(Status::invalid_argument("revision number cannot be masked"));
    }
    if authorized.len() <= SYNC_PAGE {
        let entries = authorized.iter().map(|entry| masked(entry, &mask)).collect();
        // A peer that left needs no answer.
        let _left = sender.send(full(entries, false)).await;
        return Ok(());
    }
    let last = authorized.len().div_ceil(SYNC_PAGE) - 1;
    for (n, page) in authorized.chunks(SYNC_PAGE).enumerate() {
        let entry_revisions = page
            .iter()
            .map(|entry| pb::EntryRevision {
                id: entry.id.clone(),
                revision_number: entry.revision_number,
                created_at: entry.created_at,
            })
            .collect();
        let page = pb::SyncAuthorizedEntriesResponse {
            entry_revisions,
            entries: Vec::new(),
            more: n < last,
        };
        if sender.send(page).await.is_err() {
            return Ok(());
        }
    }
    let by_id: HashMap<&str, &Arc<Entry>> = authorized
        .iter()
        .map(|entry| (entry.id.as_str(), entry))
        .collect();
    while let Some(request) = next(&mut requests).await? {
        let mut wanted: Vec<&str> = request.ids.iter().map(String::as_str).collect();
        wanted.sort_unstable();
        wanted.dedup();
        let found: Vec<_> = wanted.iter().filter_map(|id| by_id.get(id)).collect();
        let last = found.len().div_ceil(SYNC_PAGE).saturating_sub(1);
        let mut pages = found.chunks(SYNC_PAGE);
        for n in 0..=last {
            let page = pages.next().unwrap_or_default();
            let entries = page.iter().map(|entry| masked(entry, &mask)).collect();
            if sender.send(full(entries, n < last)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The next request; a caller that cancels has simply finished.
async fn next(
    requests: &mut Streaming<pb::SyncAuthorizedEntriesRequest>,
) -> Result<Option<pb::SyncAuthorizedEntriesRequest>, Status> {
    match requests.message().await {
        Err(status) if status.code() == tonic::Code::Cancelled => Ok(None),
        other => other,
    }
}

fn full(entries: Vec<types::Entry>, more: bool) -> pb::SyncAuthorizedEntriesResponse {
    pb::SyncAuthorizedEntriesResponse {
        entry_revisions: Vec::new(),
        entries,
        more,
    }
}
