//! Changes of registration entries: what a batch asks for is checked item by item and goes to the store together.
//!
//! Each item has an outcome of its own, in the order of the request; an item that is refused does not touch the others.

use finial_identity::entry::{Entry, EntryParts};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::types;

use super::Services;
use super::call::{Call, Fields, field};
use super::entry::masked;
use super::status::{OrRefuse, Refusal, Refuse, ok};
use crate::store::{EntryCreated, EntryPatch, EntryUpdated, StoreError, StoredEntry};

/// An item of a batch: what the audit says of it, and why it never reaches the store.
type Item = (Fields, Option<Refusal>);

/// Creates entries.
pub(super) async fn create_all(
    services: &Services,
    call: &Call,
    request: pb::BatchCreateEntryRequest,
) -> Vec<pb::batch_create_entry_response::Result> {
    let (items, checked) = checked(request.entries.into_iter().map(|entry| {
        let fields = audit_fields(&entry);
        (fields, check_created(services, entry))
    }));
    let created = services.store.create_entries(checked).await;
    outcomes(items, created, "failed to create entry")
        .map(|(fields, outcome)| {
            let (entry, refusal) = match outcome {
                Ok(created) => created_outcome(created),
                Err(refusal) => (None, Some(refusal)),
            };
            let status = note(call, fields, refusal.as_ref());
            pb::batch_create_entry_response::Result {
                status: Some(status),
                entry: entry.map(|stored| masked(&stored.entry, &request.output_mask)),
            }
        })
        .collect()
}

/// Changes entries, whole or in the fields that the request's mask names.
pub(super) async fn update_all(
    services: &Services,
    call: &Call,
    request: pb::BatchUpdateEntryRequest,
) -> Vec<pb::batch_update_entry_response::Result> {
    let mut read = Vec::with_capacity(request.entries.len());
    for entry in request.entries {
        let fields = audit_fields(&entry);
        read.push((fields, patch_of(services, entry, &request.input_mask).await));
    }
    let (items, patches) = checked(read.into_iter());
    let updated = services.store.update_entries(patches).await;
    outcomes(items, updated, UPDATE_FAILED)
        .map(|(fields, outcome)| {
            let outcome = outcome.and_then(updated_outcome);
            let status = note(call, fields, outcome.as_ref().err());
            pb::batch_update_entry_response::Result {
                status: Some(status),
                entry: outcome
                    .ok()
                    .map(|stored| masked(&stored.entry, &request.output_mask)),
            }
        })
        .collect()
}

/// Deletes entries by id.
pub(super) async fn delete_all(
    services: &Services,
    call: &Call,
    ids: Vec<String>,
) -> Vec<pb::batch_delete_entry_response::Result> {
    let (items, wanted) = checked(ids.iter().map(|id| {
        let outcome = match id.as_str() {
            "" => Err(Refusal::invalid("missing entry ID")),
            id => check_stored(services, id).map(|()| id.to_owned()),
        };
        (vec![(field::ENTRY_ID, id.clone())], outcome)
    }));
    let deleted = services.store.delete_entries(wanted).await;
    outcomes(items, deleted, "failed to delete entry")
        .zip(&ids)
        .map(|((fields, outcome), id)| {
            let outcome =
                outcome.and_then(|deleted| deleted.ok_or_else(|| Refusal::not_found("entry not found")));
            pb::batch_delete_entry_response::Result {
                status: Some(note(call, fields, outcome.as_ref().err())),
                id: id.clone(),
            }
        })
        .collect()
}

/// Begins the id of each derived entry.
const DERIVED_PREFIX: &str = "k8s.";

const UPDATE_FAILED: &str = "failed to update entry";

/// Parts the items from what those that passed have for the store.
fn checked<T>(read: impl Iterator<Item = (Fields, Result<T, Refusal>)>) -> (Vec<Item>, Vec<T>) {
    let mut passed = Vec::new();
    let items = read
        .map(|(fields, outcome)| match outcome {
            Ok(value) => {
                passed.push(value);
                (fields, None)
            }
            Err(refusal) => (fields, Some(refusal)),
        })
        .collect();
    (items, passed)
}

/// Each item with the store's answer, or with why there is none.
fn outcomes<T>(
    items: Vec<Item>,
    answers: Result<Vec<T>, StoreError>,
    what: &'static str,
) -> impl Iterator<Item = (Fields, Result<T, Refusal>)> {
    let (mut answers, failure) = match answers {
        Ok(answers) => (answers.into_iter(), None),
        Err(error) => (Vec::new().into_iter(), Some(error)),
    };
    items.into_iter().map(move |(fields, refusal)| {
        let outcome = match (refusal, &failure) {
            (Some(refusal), _) => Err(refusal),
            (None, Some(error)) => Err(error.clone().refuse(what)),
            (None, None) => answers.next().ok_or_else(|| Refusal::internal(what)),
        };
        (fields, outcome)
    })
}

fn note(call: &Call, fields: Fields, refusal: Option<&Refusal>) -> types::Status {
    call.note_item(fields, refusal.map_or(Ok(()), Err));
    refusal.map_or_else(ok, |refusal| call.refuse_item(refusal))
}

/// As [`check_new`], and it must not be in the way of entries that objects in Kubernetes declare.
fn check_created(services: &Services, entry: types::Entry) -> Result<Entry, Refusal> {
    let what = "failed to create entry";
    if entry.id.starts_with(DERIVED_PREFIX) {
        let text = format!("{what}: ids that begin with {DERIVED_PREFIX:?} are those of derived entries");
        return Err(Refusal::invalid(text));
    }
    let entry = check_new(services, entry)?;
    match services.registry.similar_derived(&entry) {
        Some((stored, origin)) => Err(Refusal::exists(format!(
            "similar entry already exists: {} is declared by {origin}",
            stored.entry.id
        ))),
        None => Ok(entry),
    }
}

/// Refuses the id of an entry that an object in Kubernetes declares.
fn check_stored(services: &Services, id: &str) -> Result<(), Refusal> {
    match services.registry.origin(id) {
        Some(origin) => Err(Refusal::precondition(format!(
            "entry {id} is declared by {origin}: change that object"
        ))),
        None => Ok(()),
    }
}

fn check_new(services: &Services, entry: types::Entry) -> Result<Entry, Refusal> {
    let parts =
        wire::entry_parts_from_wire(entry, &services.trust_domain).or_refuse("failed to convert entry")?;
    Entry::check_new(parts, &services.trust_domain).or_refuse("failed to convert entry")
}

/// The id and what changes the stored entry.
async fn patch_of(
    services: &Services,
    update: types::Entry,
    mask: &Option<types::EntryMask>,
) -> Result<(String, EntryPatch), Refusal> {
    if update.id.is_empty() {
        return Err(Refusal::invalid("failed to convert entry: missing entry ID"));
    }
    let id = update.id.clone();
    check_stored(services, &id)?;
    let patch: EntryPatch = match mask {
        None => {
            let entry = check_new(services, update)?;
            Box::new(move |_stored| entry.into_parts())
        }
        Some(mask) => {
            let stored = services.store.entry(&id).await.or_refuse(UPDATE_FAILED)?;
            let stored = stored.ok_or_else(|| Refusal::not_found(UPDATE_FAILED))?;
            // What the mask leaves out need not be valid in the request, nor even there.
            let mut whole = wire::entry_to_wire(&stored.entry);
            merge(&mut whole, update, mask);
            let parts = check_new(services, whole)?.into_parts();
            let mask = *mask;
            Box::new(move |stored| patched(stored, parts, &mask))
        }
    };
    Ok((id, patch))
}

fn updated_outcome(updated: EntryUpdated) -> Result<StoredEntry, Refusal> {
    match updated {
        EntryUpdated::Updated(stored) => Ok(stored),
        EntryUpdated::NotFound => Err(Refusal::not_found(UPDATE_FAILED)),
        EntryUpdated::Refused(error) => Err(error.refuse(UPDATE_FAILED)),
        EntryUpdated::MissingBundle(trust_domain) => Err(missing_bundle(UPDATE_FAILED, &trust_domain)),
    }
}

/// Takes the fields that the mask names from the update: those that messages and checked entries call alike.
macro_rules! take_masked {
    ($mask:expr, $update:expr => $entry:expr) => {
        take_masked!(
            $mask, $update => $entry, spiffe_id parent_id selectors x509_svid_ttl jwt_svid_ttl federates_with admin
            downstream expires_at dns_names store_svid hint
        )
    };
    ($mask:expr, $update:expr => $entry:expr, $($field:ident)*) => {
        $(if $mask.$field {
            $entry.$field = $update.$field;
        })*
    };
}

/// Before the update is checked.
fn merge(entry: &mut types::Entry, update: types::Entry, mask: &types::EntryMask) {
    take_masked!(mask, update => entry);
    if mask.additional_attributes {
        entry.additional_attributes = update.additional_attributes;
    }
}

/// Once the update is checked: the rest stays as the store has it by then.
fn patched(stored: EntryParts, update: EntryParts, mask: &types::EntryMask) -> EntryParts {
    let mut entry = stored;
    take_masked!(mask, update => entry);
    if mask.additional_attributes {
        entry.disable_x509_svid_prefetch = update.disable_x509_svid_prefetch;
        entry.jwt_svid_include_jti = update.jwt_svid_include_jti;
    }
    entry
}

fn created_outcome(created: EntryCreated) -> (Option<StoredEntry>, Option<Refusal>) {
    let what = "failed to create entry";
    match created {
        EntryCreated::Created(stored) => (Some(stored), None),
        EntryCreated::Similar(stored) => (
            Some(stored),
            Some(Refusal::exists("similar entry already exists")),
        ),
        EntryCreated::IdTaken => (
            None,
            Some(Refusal::exists(format!("{what}: entry ID already exists"))),
        ),
        EntryCreated::MissingBundle(trust_domain) => (None, Some(missing_bundle(what, &trust_domain))),
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
