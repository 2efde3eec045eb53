//! `spire.api.server.entry.v1.Entry`: registration entries.

use std::sync::Arc;

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::server::entry::v1::entry_server::Entry as EntryApi;
use finial_proto::spire::api::types;
use futures_util::stream::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use super::call::{Call, Fields, field};
use super::entry_filter::{EntryFilter, page_size, parse_page_token};
use super::entry_sync::sync;
use super::status::{OrRefuse, Refusal, Refuse, ok};
use super::streaming::driven;
use crate::store::{EntryCreated, EntryPatch, EntryUpdated, StoredEntry};

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
        let results = self.create_all(&call, request).await;
        self.0.take_in_writes().await;
        Ok(Response::new(pb::BatchCreateEntryResponse { results }))
    }

    async fn batch_update_entry(
        &self,
        request: Request<pb::BatchUpdateEntryRequest>,
    ) -> Result<Response<pb::BatchUpdateEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let request = request.into_inner();
        let mut results = Vec::with_capacity(request.entries.len());
        for entry in request.entries {
            let fields = audit_fields(&entry);
            let outcome = self.update(entry, &request.input_mask).await;
            call.note_item(fields, outcome.as_ref());
            results.push(match outcome {
                Ok(stored) => pb::batch_update_entry_response::Result {
                    status: Some(ok()),
                    entry: Some(masked(&stored.entry, &request.output_mask)),
                },
                Err(refusal) => pb::batch_update_entry_response::Result {
                    status: Some(call.refuse_item(&refusal)),
                    entry: None,
                },
            });
        }
        self.0.take_in_writes().await;
        Ok(Response::new(pb::BatchUpdateEntryResponse { results }))
    }

    async fn batch_delete_entry(
        &self,
        request: Request<pb::BatchDeleteEntryRequest>,
    ) -> Result<Response<pb::BatchDeleteEntryResponse>, Status> {
        let call = Call::of(&request)?;
        let ids = request.into_inner().ids;
        let mut results = Vec::with_capacity(ids.len());
        for id in ids {
            let outcome = self.delete(&id).await;
            call.note_item(vec![(field::ENTRY_ID, id.clone())], outcome.as_ref());
            let status = match outcome {
                Ok(()) => ok(),
                Err(refusal) => call.refuse_item(&refusal),
            };
            results.push(pb::batch_delete_entry_response::Result {
                status: Some(status),
                id,
            });
        }
        self.0.take_in_writes().await;
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
        let size = page_size(request.page_size);
        let after = match size {
            None => 0,
            Some(_) => parse_page_token(&request.page_token, what)?,
        };
        // So that a caller sees what it has just written.
        self.0.registry.catch_up().await.or_refuse(what)?;
        let mut last_row = None;
        let entries = self
            .candidates(&filter, after)
            .filter(|stored| filter.matches(&stored.entry))
            .take(size.unwrap_or(usize::MAX))
            .inspect(|stored| last_row = Some(stored.row))
            .map(|stored| masked(&stored.entry, &request.output_mask))
            .collect();
        Ok(pb::ListEntriesResponse {
            entries,
            next_page_token: last_row
                .filter(|_| size.is_some())
                .map(|row| row.to_string())
                .unwrap_or_default(),
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

    /// Entries that pass the checks go to the store together; each has its own outcome.
    async fn create_all(
        &self,
        call: &Call,
        request: pb::BatchCreateEntryRequest,
    ) -> Vec<pb::batch_create_entry_response::Result> {
        let mut checked = Vec::new();
        let mut outcomes: Vec<(Fields, Option<Refusal>)> = Vec::with_capacity(request.entries.len());
        for entry in request.entries {
            let fields = audit_fields(&entry);
            let refusal = match self.check_new(entry) {
                Ok(entry) => {
                    checked.push(entry);
                    None
                }
                Err(refusal) => Some(refusal),
            };
            outcomes.push((fields, refusal));
        }
        let (mut created, failure) = match self.0.store.create_entries(checked).await {
            Ok(created) => (created.into_iter(), None),
            Err(error) => (Vec::new().into_iter(), Some(error)),
        };
        let mut results = Vec::with_capacity(outcomes.len());
        for (fields, refusal) in outcomes {
            let (entry, refusal) = match (refusal, &failure) {
                (Some(refusal), _) => (None, Some(refusal)),
                (None, Some(error)) => (None, Some(error.clone().refuse("failed to create entry"))),
                (None, None) => created_outcome(created.next()),
            };
            let status = match &refusal {
                None => ok(),
                Some(refusal) => call.refuse_item(refusal),
            };
            call.note_item(fields, refusal.as_ref().map_or(Ok(()), Err));
            results.push(pb::batch_create_entry_response::Result {
                status: Some(status),
                entry: entry.map(|stored| masked(&stored.entry, &request.output_mask)),
            });
        }
        results
    }

    fn check_new(&self, entry: types::Entry) -> Result<Entry, Refusal> {
        let parts =
            wire::entry_parts_from_wire(entry, &self.0.trust_domain).or_refuse("failed to convert entry")?;
        Entry::check_new(parts, &self.0.trust_domain).or_refuse("failed to convert entry")
    }

    async fn update(
        &self,
        update: types::Entry,
        mask: &Option<types::EntryMask>,
    ) -> Result<StoredEntry, Refusal> {
        let what = "failed to update entry";
        if update.id.is_empty() {
            return Err(Refusal::invalid("failed to convert entry: missing entry ID"));
        }
        let id = update.id.clone();
        let patch: EntryPatch = match mask {
            None => {
                let entry = self.check_new(update)?;
                Box::new(move |_stored| entry.into_parts())
            }
            Some(mask) => {
                let stored = self.0.store.entry(&id).await.or_refuse(what)?;
                let stored = stored.ok_or_else(|| Refusal::not_found(what))?;
                // What the mask leaves out need not be valid in the request, nor even there.
                let mut whole = wire::entry_to_wire(&stored.entry);
                take_masked(&mut whole, update, mask);
                let parts = self.check_new(whole)?.into_parts();
                let mask = *mask;
                Box::new(move |stored| patch_masked(stored, parts, &mask))
            }
        };
        match self.0.store.update_entry(&id, patch).await.or_refuse(what)? {
            EntryUpdated::Updated(stored) => Ok(stored),
            EntryUpdated::NotFound => Err(Refusal::not_found(what)),
            EntryUpdated::Refused(error) => Err(error.refuse(what)),
            EntryUpdated::MissingBundle(trust_domain) => Err(missing_bundle(what, &trust_domain)),
        }
    }

    async fn delete(&self, id: &str) -> Result<(), Refusal> {
        if id.is_empty() {
            return Err(Refusal::invalid("missing entry ID"));
        }
        match self
            .0
            .store
            .delete_entry(id)
            .await
            .or_refuse("failed to delete entry")?
        {
            Some(_) => Ok(()),
            None => Err(Refusal::not_found("entry not found")),
        }
    }

    fn authorized(&self, call: &Call) -> Result<Vec<Arc<Entry>>, Refusal> {
        Ok(self.0.registry.authorized(call.agent()?))
    }
}

pub(super) fn masked(entry: &Entry, mask: &Option<types::EntryMask>) -> types::Entry {
    wire::apply_entry_mask(wire::entry_to_wire(entry), mask)
}

/// Takes the fields that the mask names from the update.
fn take_masked(entry: &mut types::Entry, update: types::Entry, mask: &types::EntryMask) {
    if mask.spiffe_id {
        entry.spiffe_id = update.spiffe_id;
    }
    if mask.parent_id {
        entry.parent_id = update.parent_id;
    }
    if mask.selectors {
        entry.selectors = update.selectors;
    }
    if mask.x509_svid_ttl {
        entry.x509_svid_ttl = update.x509_svid_ttl;
    }
    if mask.jwt_svid_ttl {
        entry.jwt_svid_ttl = update.jwt_svid_ttl;
    }
    if mask.federates_with {
        entry.federates_with = update.federates_with;
    }
    if mask.admin {
        entry.admin = update.admin;
    }
    if mask.downstream {
        entry.downstream = update.downstream;
    }
    if mask.expires_at {
        entry.expires_at = update.expires_at;
    }
    if mask.dns_names {
        entry.dns_names = update.dns_names;
    }
    if mask.store_svid {
        entry.store_svid = update.store_svid;
    }
    if mask.hint {
        entry.hint = update.hint;
    }
    if mask.additional_attributes {
        entry.additional_attributes = update.additional_attributes;
    }
}

/// As [`take_masked`], once the update is checked: the rest stays as the store has it by then.
fn patch_masked(stored: EntryParts, update: EntryParts, mask: &types::EntryMask) -> EntryParts {
    let mut entry = stored;
    if mask.spiffe_id {
        entry.spiffe_id = update.spiffe_id;
    }
    if mask.parent_id {
        entry.parent_id = update.parent_id;
    }
    if mask.selectors {
        entry.selectors = update.selectors;
    }
    if mask.x509_svid_ttl {
        entry.x509_svid_ttl = update.x509_svid_ttl;
    }
    if mask.jwt_svid_ttl {
        entry.jwt_svid_ttl = update.jwt_svid_ttl;
    }
    if mask.federates_with {
        entry.federates_with = update.federates_with;
    }
    if mask.admin {
        entry.admin = update.admin;
    }
    if mask.downstream {
        entry.downstream = update.downstream;
    }
    if mask.expires_at {
        entry.expires_at = update.expires_at;
    }
    if mask.dns_names {
        entry.dns_names = update.dns_names;
    }
    if mask.store_svid {
        entry.store_svid = update.store_svid;
    }
    if mask.hint {
        entry.hint = update.hint;
    }
    if mask.additional_attributes {
        entry.disable_x509_svid_prefetch = update.disable_x509_svid_prefetch;
        entry.jwt_svid_include_jti = update.jwt_svid_include_jti;
    }
    entry
}

fn created_outcome(created: Option<EntryCreated>) -> (Option<StoredEntry>, Option<Refusal>) {
    let what = "failed to create entry";
    match created {
        Some(EntryCreated::Created(stored)) => (Some(stored), None),
        Some(EntryCreated::Similar(stored)) => (
            Some(stored),
            Some(Refusal::exists("similar entry already exists")),
        ),
        Some(EntryCreated::IdTaken) => (
            None,
            Some(Refusal::exists(format!("{what}: entry ID already exists"))),
        ),
        Some(EntryCreated::MissingBundle(trust_domain)) => (None, Some(missing_bundle(what, &trust_domain))),
        None => (None, Some(Refusal::internal(what))),
    }
}

fn missing_bundle(what: &str, trust_domain: &TrustDomain) -> Refusal {
    Refusal::internal(format!(
        "{what}: unable to find federated bundle \"{}\"",
        trust_domain.id()
    ))
}

fn audit_fields(entry: &types::Entry) -> Fields {
    let id = |id: &Option<types::Spiffeid>| {
        id.as_ref()
            .map(|id| format!("spiffe://{}{}", id.trust_domain, id.path))
            .unwrap_or_default()
    };
    let mut fields = vec![
        (field::ENTRY_ID, entry.id.clone()),
        (field::SPIFFE_ID, id(&entry.spiffe_id)),
        (field::PARENT_ID, id(&entry.parent_id)),
        (field::TTL, entry.x509_svid_ttl.to_string()),
        (field::ADMIN, entry.admin.to_string()),
        (field::DOWNSTREAM, entry.downstream.to_string()),
        (field::EXPIRES_AT, entry.expires_at.to_string()),
        (field::HINT, entry.hint.clone()),
    ];
    let selectors: Vec<String> = entry
        .selectors
        .iter()
        .map(|selector| format!("{}:{}", selector.r#type, selector.value))
        .collect();
    fields.push((field::SELECTORS, selectors.join(",")));
    fields.push((field::FEDERATES_WITH, entry.federates_with.join(",")));
    fields.push((field::DNS_NAMES, entry.dns_names.join(",")));
    fields.retain(|(_, value)| !value.is_empty());
    fields
}
