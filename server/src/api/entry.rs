//! `spire.api.server.entry.v1.Entry`: registration entries.

use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_identity::wire;
use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::server::entry::v1::entry_server::Entry as EntryApi;
use finial_proto::spire::api::types;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use super::call::{Call, field};
use super::entry_filter::EntryFilter;
use super::entry_sync::sync;
use super::entry_write::{create_all, delete_all, update_all};
use super::page::Page;
use super::status::{OrRefuse, Refusal};
use super::streaming::driven;
use crate::store::StoredEntry;

/// How many rows a listing reads at once.
const SCAN: usize = 1000;

/// Answers the Entry service.
#[derive(Debug)]
pub struct EntryService(Arc<Services>);

impl EntryService {
    /// Works with these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }
}

#[tonic::async_trait]
impl EntryApi for EntryService {
    type SyncAuthorizedEntriesStream = BoxStream<'static, Result<pb::SyncAuthorizedEntriesResponse, Status>>;

    async fn count_entries(
        &self,
        request: Request<pb::CountEntriesRequest>,
    ) -> Result<Response<pb::CountEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let filter = request.into_inner().filter;
        let count = self.count(filter).await.map_err(|refusal| call.refuse(refusal))?;
        Ok(Response::new(pb::CountEntriesResponse { count }))
    }

    async fn list_entries(
        &self,
        request: Request<pb::ListEntriesRequest>,
    ) -> Result<Response<pb::ListEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let listed = self.list(request.into_inner()).await;
        listed.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn get_entry(
        &self,
        request: Request<pb::GetEntryRequest>,
    ) -> Result<Response<types::Entry>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        call.note(field::ENTRY_ID, &request.id);
        let entry = self.entry(request).await;
        entry.map(Response::new).map_err(|refusal| call.refuse(refusal))
    }

    async fn batch_create_entry(
        &self,
        request: Request<pb::BatchCreateEntryRequest>,
    ) -> Result<Response<pb::BatchCreateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let results = create_all(&self.0, &call, request).await;
        Ok(Response::new(pb::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<pb::BatchUpdateEntryRequest>,
    ) -> Result<Response<pb::BatchUpdateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let results = update_all(&self.0, &call, request).await;
        Ok(Response::new(pb::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<pb::BatchDeleteEntryRequest>,
    ) -> Result<Response<pb::BatchDeleteEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let ids = request.into_inner().ids;
        let results = delete_all(&self.0, &call, ids).await;
        Ok(Response::new(pb::BatchDeleteEntryResponse { results }))
    }

    async fn get_authorized_entries(
        &self,
        request: Request<pb::GetAuthorizedEntriesRequest>,
    ) -> Result<Response<pb::GetAuthorizedEntriesResponse>, Status> {
        let call = Call::of(&request)?;
        let mask = request.into_inner().output_mask;
        let entries = self.authorized(&call).map_err(|refusal| call.refuse(refusal))?;
        let entries = entries.iter().map(|entry| masked(entry, &mask)).collect();
        Ok(Response::new(pb::GetAuthorizedEntriesResponse { entries }))
    }

    async fn sync_authorized_entries(
        &self,
        request: Request<Streaming<pb::SyncAuthorizedEntriesRequest>>,
    ) -> Result<Response<Self::SyncAuthorizedEntriesStream>, Status> {
        let call = Call::of(&request)?;
        let authorized = self.authorized(&call).map_err(|refusal| call.refuse(refusal))?;
        let requests = request.into_inner();
        Ok(Response::new(driven(move |sender| async move {
            sync(authorized, requests, sender).await
        })))
    }
}

impl EntryService {
    async fn count(&self, filter: Option<pb::count_entries_request::Filter>) -> Result<i32, Refusal> {
        let filter = EntryFilter::of_count(filter, &self.0.trust_domain)?;
        self.0
            .registry
            .catch_up()
            .await
            .or_refuse("failed to count entries")?;
        let count = if filter.is_empty() {
            self.0.registry.entry_count()
        } else {
            self.candidates(&filter, 0)
                .filter(|stored| filter.matches(&stored.entry))
                .count()
        };
        Ok(i32::try_from(count).unwrap_or(i32::MAX))
    }

    async fn list(&self, request: pb::ListEntriesRequest) -> Result<pb::ListEntriesResponse, Refusal> {
        let what = "failed to list entries";
        let filter = EntryFilter::of_list(request.filter, &self.0.trust_domain)?;
        let mut page = Page::new(request.page_size, request.page_token);
        let after = page.begins_after_row(what)?;
        // So that a caller sees what it has just written.
        self.0.registry.catch_up().await.or_refuse(what)?;
        let mut found = self
            .candidates(&filter, after)
            .filter(|stored| filter.matches(&stored.entry));
        while page.has_room()
            && let Some(stored) = found.next()
        {
            page.push(masked(&stored.entry, &request.output_mask), stored.row);
        }
        let (entries, next_page_token) = page.finish();
        Ok(pb::ListEntriesResponse {
            entries,
            next_page_token,
        })
    }

    /// Entries among which all that the filter matches are, in the order of rows, after a row.
    fn candidates(
        &self,
        filter: &EntryFilter,
        after: u64,
    ) -> Box<dyn Iterator<Item = StoredEntry> + Send + '_> {
        let registry = &self.0.registry;
        let few = match (filter.spiffe_id(), filter.parent_id()) {
            (Some(id), _) => registry.entries_with_spiffe_id(id),
            (None, Some(id)) => registry.entries_with_parent(id),
            (None, None) => {
                let mut after = after;
                return Box::new(
                    std::iter::from_fn(move || {
                        let page = registry.entries(after, SCAN);
                        after = page.last()?.row;
                        Some(page)
                    })
                    .flatten(),
                );
            }
        };
        Box::new(few.into_iter().filter(move |stored| stored.row > after))
    }

    async fn entry(&self, request: pb::GetEntryRequest) -> Result<types::Entry, Refusal> {
        if request.id.is_empty() {
            return Err(Refusal::invalid("missing ID"));
        }
        self.0
            .registry
            .catch_up()
            .await
            .or_refuse("failed to fetch entry")?;
        let stored = self.0.registry.entry(&request.id);
        let stored = stored.ok_or_else(|| Refusal::not_found("entry not found"))?;
        Ok(masked(&stored.entry, &request.output_mask))
    }

    fn authorized(&self, call: &Call) -> Result<Vec<Arc<Entry>>, Refusal> {
        let agent = call.agent()?;
        let registry = &self.0.registry;
        registry
            .check_settled(agent)
            .or_refuse("failed to fetch entries")?;
        let entries = registry.authorized(agent);
        registry.note_fetched(agent, &entries);
        Ok(entries)
    }
}

pub(super) fn masked(entry: &Entry, mask: &Option<types::EntryMask>) -> types::Entry {
    wire::apply_entry_mask(wire::entry_to_wire(entry), mask)
}
