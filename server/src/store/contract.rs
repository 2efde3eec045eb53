//! What every store must do; each clause gets a store of its own, of trust domain `example.test`.

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::entry::{Entry, EntryError};
use finial_identity::federation::{EndpointProfile, EndpointUrl, Relationship};
use finial_identity::spiffe_id::TrustDomain;
use time::OffsetDateTime;

use super::*;
use crate::store::testing::{agent, domain, entry, id};

/// Runs every clause on a store that `open` makes anew.
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

async fn creates_entries_and_answers_each_in_order(store: &dyn Store) {
    let entries: Vec<Entry> = (0..90).map(e).collect();
    let created = store.create_entries(entries.clone()).await.unwrap();
    assert_eq!(created.len(), 90);
    for (sent, created) in entries.iter().zip(&created) {
        let EntryCreated::Created(stored) = created else {
            panic!("{created:?}")
        };
        assert_eq!(stored.entry.id, sent.id);
        assert_eq!(stored.entry.revision_number, 0);
        assert!(stored.entry.created_at > 0);
        assert_eq!(store.entry(&sent.id).await.unwrap().as_ref(), Some(stored));
    }
    assert_eq!(store.entry("nobody").await.unwrap(), None);
}

async fn similar_entries_and_taken_ids_are_refused_in_one_call_as_in_many(store: &dyn Store) {
    let first = create(store, e(1)).await;
    let mut alike = e(1).into_parts();
    alike.id = "other".into();
    alike.selectors.reverse();
    let alike = Entry::check(alike, &domain()).unwrap();
    let mut taken = e(2).into_parts();
    taken.id = "e1".into();
    let taken = Entry::check(taken, &domain()).unwrap();
    let mut alike_fresh = e(3).into_parts();
    alike_fresh.id = "third".into();
    let alike_fresh = Entry::check(alike_fresh, &domain()).unwrap();
    let results = store
        .create_entries(vec![alike, taken, e(3), alike_fresh, e(4)])
        .await
        .unwrap();
    assert_eq!(results[0], EntryCreated::Similar(first));
    assert_eq!(results[1], EntryCreated::IdTaken);
    let EntryCreated::Created(third) = &results[2] else {
        panic!("{results:?}")
    };
    assert_eq!(results[3], EntryCreated::Similar(third.clone()));
    assert!(matches!(results[4], EntryCreated::Created(_)));
    let ids: Vec<String> = store
        .list_entries(0, 10)
        .await
        .unwrap()
        .into_iter()
        .map(|s| s.entry.id.clone())
        .collect();
    assert_eq!(ids, ["e1", "e3", "e4"]);
}

async fn update_advances_the_revision_number_and_keeps_what_is_the_stores(store: &dyn Store) {
    let before = create(store, e(1)).await;
    let patch: EntryPatch = Box::new(|mut parts| {
        parts.hint = "db".into();
        parts.id = "stolen".into();
        parts.created_at = 7;
        parts.revision_number = 99;
        parts
    });
    let EntryUpdated::Updated(updated) = store.update_entry("e1", patch).await.unwrap() else {
        panic!()
    };
    assert_eq!(updated.row, before.row);
    assert_eq!(
        (updated.entry.id.as_str(), updated.entry.hint.as_str()),
        ("e1", "db")
    );
    assert_eq!(updated.entry.revision_number, 1);
    assert_eq!(updated.entry.created_at, before.entry.created_at);
    let EntryUpdated::Updated(same) = store.update_entry("e1", Box::new(|parts| parts)).await.unwrap() else {
        panic!()
    };
    assert_eq!(same.entry.revision_number, 2);
    assert_eq!(store.entry("e1").await.unwrap(), Some(same));
    let nobody = store
        .update_entry("nobody", Box::new(|parts| parts))
        .await
        .unwrap();
    assert_eq!(nobody, EntryUpdated::NotFound);
    let empty: EntryPatch = Box::new(|mut parts| {
        parts.selectors.clear();
        parts
    });
    let refused = store.update_entry("e1", empty).await.unwrap();
    assert_eq!(refused, EntryUpdated::Refused(EntryError::NoSelectors));
    assert_eq!(store.entry("e1").await.unwrap().unwrap().entry.revision_number, 2);
}

async fn an_update_may_make_two_entries_alike(store: &dyn Store) {
    create(store, e(1)).await;
    create(store, e(2)).await;
    let like_first: EntryPatch = Box::new(|mut parts| {
        parts.spiffe_id = id("/w1");
        parts
    });
    let updated = store.update_entry("e2", like_first).await.unwrap();
    assert!(matches!(updated, EntryUpdated::Updated(_)), "{updated:?}");
    // What e2 was is free again.
    let mut free = e(2).into_parts();
    free.id = "free".into();
    create(store, Entry::check(free, &domain()).unwrap()).await;
}

async fn deletes_entries_and_says_which_were_unknown(store: &dyn Store) {
    let stored = create(store, e(1)).await;
    let deleted = store
        .delete_entries(vec!["x".into(), "e1".into(), "e1".into()])
        .await
        .unwrap();
    assert_eq!(deleted, [None, Some(stored), None]);
    assert_eq!(store.entry("e1").await.unwrap(), None);
    create(store, e(1)).await;
}

async fn pages_by_row_and_never_gives_a_row_again(store: &dyn Store) {
    let rows: Vec<u64> = {
        let created = store.create_entries((0..5).map(e).collect()).await.unwrap();
        created
            .into_iter()
            .map(|created| match created {
                EntryCreated::Created(stored) => stored.row,
                other => panic!("{other:?}"),
            })
            .collect()
    };
    assert!(rows.is_sorted_by(|a, b| a < b));
    let page: Vec<u64> = store
        .list_entries(rows[1], 2)
        .await
        .unwrap()
        .iter()
        .map(|s| s.row)
        .collect();
    assert_eq!(page, [rows[2], rows[3]]);
    assert!(store.list_entries(u64::MAX, 2).await.unwrap().is_empty());
    store.delete_entry("e4").await.unwrap();
    assert!(create(store, e(4)).await.row > rows[4]);
}

async fn expired_entries_are_pruned(store: &dyn Store) {
    for (n, expires_at) in [(1, 0), (2, 1_000), (3, 3_000)] {
        let mut parts = e(n).into_parts();
        parts.expires_at = expires_at;
        create(store, Entry::check(parts, &domain()).unwrap()).await;
    }
    assert_eq!(store.prune_expired_entries(at(1_000)).await.unwrap(), 0);
    assert_eq!(store.prune_expired_entries(at(2_000)).await.unwrap(), 1);
    assert_eq!(store.entry("e2").await.unwrap(), None);
    assert_eq!(store.list_entries(0, 10).await.unwrap().len(), 2);
}

async fn entries_need_the_bundles_they_name(store: &dyn Store) {
    let missing = store
        .create_entries(vec![federated(1, &["a.test"]), e(2)])
        .await
        .unwrap();
    assert_eq!(missing[0], EntryCreated::MissingBundle(foreign("a.test")));
    assert!(matches!(missing[1], EntryCreated::Created(_)));
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    assert_eq!(
        create(store, federated(1, &["a.test"]))
            .await
            .entry
            .federates_with,
        [foreign("a.test")]
    );
    let patch: EntryPatch = Box::new(|mut parts| {
        parts.federates_with.push(foreign("b.test"));
        parts
    });
    let updated = store.update_entry("e1", patch).await.unwrap();
    assert_eq!(updated, EntryUpdated::MissingBundle(foreign("b.test")));
}

async fn agents_attest_renew_and_are_banned(store: &dyn Store) {
    let a = id("/spire/agent/a");
    let AgentPut::Stored(first) = store
        .put_agent(agent("/spire/agent/a", "10", &["t:b", "t:a", "t:b"]))
        .await
        .unwrap()
    else {
        panic!()
    };
    let texts: Vec<String> = first.selectors.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["t:a", "t:b"]);
    store.set_agent_version(&a, "1.2.3").await.unwrap().unwrap();
    let pending = store.set_new_serial(&a, "11", 5_000).await.unwrap().unwrap();
    assert!(pending.has_serial("10") && pending.has_serial("11"));
    assert_eq!(store.promote_new_serial(&a, "12").await.unwrap(), None);
    let promoted = store.promote_new_serial(&a, "11").await.unwrap().unwrap();
    assert_eq!((promoted.serial.as_str(), promoted.expires_at), ("11", 5_000));
    assert!(!promoted.has_serial("10") && promoted.new_serial.is_empty());
    assert_eq!(store.promote_new_serial(&a, "").await.unwrap(), None);
    let AgentPut::Stored(again) = store
        .put_agent(agent("/spire/agent/a", "20", &["t:c"]))
        .await
        .unwrap()
    else {
        panic!()
    };
    assert_eq!(
        (again.selectors.len(), again.agent_version.as_str()),
        (1, "1.2.3")
    );
    store.set_new_serial(&a, "21", 6_000).await.unwrap().unwrap();
    let banned = store.ban_agent(&a).await.unwrap().unwrap();
    assert!(banned.is_banned() && !banned.has_serial("20") && !banned.has_serial("21"));
    assert_eq!(store.agent(&a).await.unwrap().unwrap().agent, banned);
    assert_eq!(store.ban_agent(&id("/spire/agent/b")).await.unwrap(), None);
}

async fn a_banned_agent_stays_banned(store: &dyn Store) {
    let a = id("/spire/agent/a");
    store.put_agent(agent("/spire/agent/a", "10", &[])).await.unwrap();
    store.ban_agent(&a).await.unwrap();
    let again = store.put_agent(agent("/spire/agent/a", "11", &[])).await.unwrap();
    assert_eq!(again, AgentPut::Banned);
    assert_eq!(store.set_new_serial(&a, "12", 1).await.unwrap(), None);
    assert!(store.agent(&a).await.unwrap().unwrap().agent.is_banned());
    store.delete_agent(&a).await.unwrap().unwrap();
    let fresh = store.put_agent(agent("/spire/agent/a", "13", &[])).await.unwrap();
    assert!(matches!(fresh, AgentPut::Stored(_)));
}

async fn deleting_a_join_token_agent_deletes_its_entry(store: &dyn Store) {
    for attestor in ["join_token", "x509pop"] {
        let path = format!("/spire/agent/{attestor}/t");
        let mut record = agent(&path, "1", &[]);
        record.attestation_type = attestor.into();
        store.put_agent(record).await.unwrap();
        let selector = format!("spiffe_id:{}", id(&path));
        create(
            store,
            entry(&format!("alias-{attestor}"), "/node", &path, &[&selector]),
        )
        .await;
        create(store, entry(&format!("child-{attestor}"), "/w", &path, &["u:1"])).await;
        store.delete_agent(&id(&path)).await.unwrap().unwrap();
        assert_eq!(store.delete_agent(&id(&path)).await.unwrap(), None);
    }
    let left: HashSet<String> = store
        .list_entries(0, 10)
        .await
        .unwrap()
        .iter()
        .map(|s| s.entry.id.clone())
        .collect();
    let expected = ["child-join_token", "child-x509pop", "alias-x509pop"];
    assert_eq!(left, expected.map(String::from).into());
}

async fn agents_are_pruned_by_age_and_kind(store: &dyn Store) {
    for (name, expires_at, can_reattest) in [
        ("old", 100, true),
        ("tofu", 100, false),
        ("banned", 100, true),
        ("live", 900, true),
    ] {
        let mut record = agent(&format!("/spire/agent/{name}"), "1", &[]);
        (record.expires_at, record.can_reattest) = (expires_at, can_reattest);
        store.put_agent(record).await.unwrap();
    }
    store.ban_agent(&id("/spire/agent/banned")).await.unwrap();
    assert_eq!(store.prune_agents(at(500), false, 10).await.unwrap(), 1);
    assert_eq!(store.agent(&id("/spire/agent/old")).await.unwrap(), None);
    assert_eq!(store.prune_agents(at(500), true, 10).await.unwrap(), 1);
    let rows = store.list_agents(0, 10).await.unwrap();
    assert_eq!(rows.len(), 2);
    assert_eq!(store.list_agents(rows[0].row, 10).await.unwrap(), rows[1..]);
}

async fn a_join_token_is_taken_once(store: &dyn Store) {
    assert!(store.create_join_token("t", 42).await.unwrap());
    assert!(!store.create_join_token("t", 43).await.unwrap());
    assert_eq!(store.take_join_token("t").await.unwrap(), Some(42));
    assert_eq!(store.take_join_token("t").await.unwrap(), None);
    store.create_join_token("old", 10).await.unwrap();
    store.create_join_token("new", 99).await.unwrap();
    assert_eq!(store.prune_join_tokens(at(50)).await.unwrap(), 1);
    assert_eq!(store.take_join_token("new").await.unwrap(), Some(99));
}

async fn the_own_bundle_counts_effective_edits(store: &dyn Store) {
    let own = domain();
    let edited = update_bundle(store, &own, |bundle| {
        bundle.refresh_hint = 60;
        "done"
    });
    let (stored, value) = edited.await.unwrap().unwrap();
    assert_eq!((stored.bundle.sequence_number, value), (1, "done"));
    let revision = store.revision();
    let (same, ()) = update_bundle(store, &domain(), |_| ()).await.unwrap().unwrap();
    assert_eq!(same.bundle.sequence_number, 1);
    assert_eq!(store.revision(), revision);
    let (next, ()) = update_bundle(store, &domain(), |bundle| bundle.refresh_hint = 61)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(next.bundle.sequence_number, 2);
    assert_eq!(store.bundle(&domain()).await.unwrap(), Some(next));
}

async fn a_foreign_bundle_is_kept_as_it_is(store: &dyn Store) {
    let name = foreign("a.test");
    assert!(update_bundle(store, &name, |_| ()).await.unwrap().is_none());
    assert!(
        store
            .create_bundle(bundle("a.test", 5, 77))
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        store
            .create_bundle(bundle("a.test", 6, 78))
            .await
            .unwrap()
            .is_none()
    );
    let (edited, ()) = update_bundle(store, &name, |bundle| bundle.refresh_hint = 9)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (edited.bundle.refresh_hint, edited.bundle.sequence_number),
        (9, 77)
    );
    let put = store.put_bundle(bundle("a.test", 1, 3)).await.unwrap();
    assert_eq!(put.row, edited.row);
    assert_eq!(store.bundle(&name).await.unwrap().unwrap(), put);
    store.put_bundle(bundle("b.test", 0, 0)).await.unwrap();
    let names: Vec<String> = store
        .list_bundles(put.row, 10)
        .await
        .unwrap()
        .iter()
        .map(|s| s.bundle.trust_domain.to_string())
        .collect();
    assert_eq!(names, ["b.test"]);
}

async fn deleting_a_bundle_respects_the_mode(store: &dyn Store) {
    for name in ["a.test", "b.test", "c.test"] {
        store.put_bundle(bundle(name, 0, 0)).await.unwrap();
    }
    create(store, federated(1, &["a.test", "b.test"])).await;
    create(store, federated(2, &["b.test"])).await;
    let delete = async |name, mode| store.delete_bundle(&foreign(name), mode).await.unwrap();
    assert_eq!(
        delete("b.test", BundleDeleteMode::Restrict).await,
        BundleDeleted::InUse(2)
    );
    assert_eq!(
        delete("c.test", BundleDeleteMode::Restrict).await,
        BundleDeleted::Deleted(0)
    );
    assert_eq!(
        delete("c.test", BundleDeleteMode::Restrict).await,
        BundleDeleted::NotFound
    );
    assert_eq!(
        delete("a.test", BundleDeleteMode::Dissociate).await,
        BundleDeleted::Deleted(1)
    );
    let first = store.entry("e1").await.unwrap().unwrap().entry;
    assert_eq!(
        (first.federates_with.as_slice(), first.revision_number),
        ([foreign("b.test")].as_slice(), 1)
    );
    assert_eq!(
        delete("b.test", BundleDeleteMode::Delete).await,
        BundleDeleted::Deleted(2)
    );
    assert!(store.list_entries(0, 10).await.unwrap().is_empty());
}

fn relationship(name: &str, url: &str, profile: EndpointProfile) -> Relationship {
    Relationship {
        trust_domain: foreign(name),
        endpoint_url: EndpointUrl::parse(url).unwrap(),
        profile,
    }
}

async fn relationships_are_stored_with_the_bundles_that_come_with_them(store: &dyn Store) {
    let id = SpiffeId::parse("spiffe://b.test/spire/server").unwrap();
    let web = relationship("a.test", "https://a.test/b?x=1", EndpointProfile::HttpsWeb);
    let spiffe = relationship("b.test", "https://b.test", EndpointProfile::HttpsSpiffe(id));
    let a = store
        .create_relationship(web.clone(), None)
        .await
        .unwrap()
        .unwrap();
    let first = Some(bundle("b.test", 1, 1));
    let b = store
        .create_relationship(spiffe.clone(), first)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((&a.relationship, &b.relationship), (&web, &spiffe));
    assert_eq!(
        store.list_relationships(0, 10).await.unwrap(),
        [a.clone(), b.clone()]
    );
    assert_eq!(store.list_relationships(a.row, 10).await.unwrap(), [b.clone()]);
    assert_eq!(store.list_relationships(0, 1).await.unwrap(), [a.clone()]);
    assert_eq!(
        store.relationship(&foreign("b.test")).await.unwrap(),
        Some(b.clone())
    );

    // One that is refused leaves the bundle as it was.
    let hint = async || {
        store
            .bundle(&foreign("b.test"))
            .await
            .unwrap()
            .unwrap()
            .bundle
            .refresh_hint
    };
    let again = store.create_relationship(spiffe.clone(), Some(bundle("b.test", 2, 2)));
    assert_eq!(again.await.unwrap(), None);
    assert_eq!(hint().await, 1);
    let change: fn(Relationship) -> Relationship = |before| Relationship {
        trust_domain: foreign("stolen.test"),
        profile: EndpointProfile::HttpsWeb,
        ..before
    };
    let (missing, second) = (foreign("c.test"), bundle("b.test", 2, 2));
    let unknown = store.update_relationship(&missing, Box::new(change), Some(second));
    assert_eq!(unknown.await.unwrap(), None);
    assert_eq!(hint().await, 1);
    let updated = store
        .update_relationship(&foreign("b.test"), Box::new(change), Some(bundle("b.test", 2, 2)))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(hint().await, 2);
    assert_eq!(updated.row, b.row);
    let expected = relationship("b.test", "https://b.test", EndpointProfile::HttpsWeb);
    assert_eq!(updated.relationship, expected);
    assert_eq!(
        store.relationship(&foreign("b.test")).await.unwrap(),
        Some(updated)
    );

    assert!(store.delete_relationship(&foreign("b.test")).await.unwrap());
    assert!(!store.delete_relationship(&foreign("b.test")).await.unwrap());
    assert_eq!(store.relationship(&foreign("b.test")).await.unwrap(), None);
    assert_eq!(hint().await, 2, "the bundle stays");
    let anew = store.create_relationship(spiffe, None).await.unwrap().unwrap();
    assert!(anew.row > b.row, "rows are not given again");
}

async fn journals_are_replaced_by_key(store: &dyn Store) {
    store.save_journal("k1", b"one").await.unwrap();
    store.save_journal("k2", b"two").await.unwrap();
    store.save_journal("k1", b"three").await.unwrap();
    let expected = [
        ("k1".to_owned(), b"three".to_vec()),
        ("k2".to_owned(), b"two".to_vec()),
    ];
    assert_eq!(store.list_journals().await.unwrap(), expected);
    assert!(store.delete_journal("k1").await.unwrap());
    assert!(!store.delete_journal("k1").await.unwrap());
}

/// One letter and the key of each change after a revision.
async fn changes(store: &dyn Store, after: Revision) -> Vec<String> {
    let changes = store.changes_since(after).await.unwrap();
    for (n, change) in (after.n + 1..).zip(&changes) {
        assert_eq!(change.revision.n, n);
    }
    changes
        .into_iter()
        .map(|change| match change.what {
            What::EntryPut(stored) => format!("+{}", stored.entry.id),
            What::EntryDeleted(id) => format!("-{id}"),
            What::AgentPut(agent) => format!("+{}", agent.id),
            What::AgentDeleted(id) => format!("-{id}"),
            What::BundlePut(bundle) => format!("+{}", bundle.trust_domain),
            What::BundleDeleted(name) => format!("-{name}"),
        })
        .collect()
}

async fn revisions_are_dense_and_carry_what_changed(store: &dyn Store) {
    let committed = store.committed();
    assert_eq!(store.revision(), Revision::START);
    store.create_entries(vec![e(1), e(1), e(2)]).await.unwrap();
    assert_eq!(committed.borrow().n, 2);
    let middle = store.revision();
    store.put_agent(agent("/spire/agent/a", "1", &[])).await.unwrap();
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    store.delete_entry("e1").await.unwrap();
    store.delete_agent(&id("/spire/agent/a")).await.unwrap();
    store
        .delete_bundle(&foreign("a.test"), BundleDeleteMode::Restrict)
        .await
        .unwrap();
    let a = id("/spire/agent/a");
    let later = [
        format!("+{a}"),
        "+a.test".into(),
        "-e1".into(),
        format!("-{a}"),
        "-a.test".into(),
    ];
    assert_eq!(changes(store, middle).await, later);
    assert_eq!(changes(store, Revision::START).await[..2], ["+e1", "+e2"]);
    assert!(changes(store, store.revision()).await.is_empty());
    assert_eq!(store.entries_deleted_since(0).await.unwrap(), 1);
    assert_eq!(store.entries_deleted_since(store.revision().n).await.unwrap(), 0);
}

async fn what_changes_nothing_makes_no_revision(store: &dyn Store) {
    create(store, e(1)).await;
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    store.put_agent(agent("/spire/agent/a", "1", &[])).await.unwrap();
    let before = store.revision();
    store.create_entries(vec![e(1)]).await.unwrap();
    store.delete_entry("nobody").await.unwrap();
    store.put_bundle(bundle("a.test", 0, 0)).await.unwrap();
    store.set_agent_version(&id("/spire/agent/a"), "").await.unwrap();
    store.create_join_token("t", 1).await.unwrap();
    store.save_journal("k", b"j").await.unwrap();
    assert_eq!(store.revision(), before);
}

async fn another_history_is_recognised(store: &dyn Store) {
    store.create_entries(vec![e(1), e(2), e(3)]).await.unwrap();
    let head = store.revision();
    let is_other = async |n, mark| {
        matches!(
            store.changes_since(Revision { n, mark }).await,
            Err(HistoryError::Other { .. })
        )
    };
    assert!(is_other(head.n, head.mark ^ 1).await);
    assert!(is_other(head.n + 1, head.mark).await);
    assert!(is_other(1, 12_345).await);
    assert!(is_other(0, 1).await);
}

async fn many_writers_at_once_lose_nothing(store: Arc<dyn Store>) {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..20 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0..10 {
                let entry = e(writer * 10 + n);
                let id = entry.id.clone();
                create(&*store, entry).await;
                assert!(store.entry(&id).await.unwrap().is_some());
                if n % 3 == 0 {
                    store.delete_entry(&id).await.unwrap().unwrap();
                }
            }
        });
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert_eq!(store.list_entries(0, 1_000).await.unwrap().len(), 120);
    assert_eq!(store.revision().n, 280);
    assert_eq!(changes(&*store, Revision::START).await.len(), 280);
}

async fn long_batches_are_one_commit_of_dense_revisions(store: &dyn Store) {
    let created = store.create_entries((0..1_000).map(e).collect()).await.unwrap();
    assert!(
        created
            .iter()
            .all(|created| matches!(created, EntryCreated::Created(_)))
    );
    assert_eq!(store.revision().n, 1_000);
    let deleted = store
        .delete_entries((0..1_000).map(|n| format!("e{n}")).collect())
        .await
        .unwrap();
    assert_eq!(deleted.iter().flatten().count(), 1_000);
    assert_eq!(changes(store, Revision::START).await.len(), 2_000);
}
