//! Tests that every store must pass; each gets a new store, of trust domain `example.test`.

mod agents;
mod bundles;
mod entries;
mod revisions;

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::entry::{Entry, EntryError};
use finial_identity::federation::{EndpointProfile, EndpointUrl, Relationship};
use finial_identity::spiffe_id::TrustDomain;
use time::OffsetDateTime;

use self::agents::*;
use self::bundles::*;
use self::entries::*;
use self::revisions::*;
use super::*;
use crate::store::testing::{agent, domain, entry, id};

/// Runs every clause on a store that `open` makes again.
pub(crate) async fn all(open: impl AsyncFn() -> Arc<dyn Store>) {
    creates_entries_and_answers_each_in_order(&*open().await).await;
    similar_entries_and_taken_ids_are_refused_in_one_call_as_in_many(&*open().await).await;
    update_advances_the_revision_number_and_keeps_what_is_the_stores(&*open().await).await;
    an_update_may_make_two_entries_alike(&*open().await).await;
    deletes_entries_and_says_which_were_unknown(&*open().await).await;
    pages_by_row_and_never_gives_a_row_again(&*open().await).await;
    expired_entries_are_pruned(&*open().await).await;
    entries_need_the_bundles_they_name(&*open().await).await;
    agents_attest_renew_and_are_banned(&*open().await).await;
    a_banned_agent_stays_banned(&*open().await).await;
    deleting_a_join_token_agent_deletes_its_entry(&*open().await).await;
    agents_are_pruned_by_age_and_kind(&*open().await).await;
    a_join_token_is_taken_once(&*open().await).await;
    the_own_bundle_counts_effective_edits(&*open().await).await;
    a_foreign_bundle_is_kept_as_it_is(&*open().await).await;
    deleting_a_bundle_respects_the_mode(&*open().await).await;
    relationships_are_stored_with_the_bundles_that_come_with_them(&*open().await).await;
    journals_are_replaced_by_key(&*open().await).await;
    revisions_are_dense_and_carry_what_changed(&*open().await).await;
    what_changes_nothing_makes_no_revision(&*open().await).await;
    another_history_is_recognised(&*open().await).await;
    many_writers_at_once_lose_nothing(open().await).await;
    long_batches_are_one_commit_of_dense_revisions(&*open().await).await;
}

fn e(n: usize) -> Entry {
    entry(
        &format!("e{n}"),
        &format!("/w{n}"),
        "/spire/agent/a",
        &["u:1", "u:2"],
    )
}

fn foreign(name: &str) -> TrustDomain {
    TrustDomain::parse(name).unwrap()
}

fn bundle(name: &str, refresh_hint: i64, sequence_number: u64) -> Bundle {
    let mut bundle = Bundle::new(foreign(name));
    bundle.refresh_hint = refresh_hint;
    bundle.sequence_number = sequence_number;
    bundle
}

fn federated(n: usize, names: &[&str]) -> Entry {
    let mut parts = e(n).into_parts();
    parts.federates_with = names.iter().map(|name| foreign(name)).collect();
    Entry::check(parts, &domain()).unwrap()
}

async fn create(store: &dyn Store, entry: Entry) -> StoredEntry {
    match store.create_entries(vec![entry]).await.unwrap().remove(0) {
        EntryCreated::Created(created) => created,
        other => panic!("not created: {other:?}"),
    }
}

fn at(seconds: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}
