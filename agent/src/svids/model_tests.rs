//! The model, step by step, with SVIDs of a test's own authority.

use std::collections::HashSet;
use std::sync::Arc;

use finial_identity::bundle::{Bundle, X509Authority};
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::cache::{CachedEntry, IssuedSvid, Snapshot};
use super::counters::CacheCounters;
use super::model::Model;
use super::tests::{authorized, identity, moment, selectors, sorted};
use crate::node::{Moment, RenewalTime};
use crate::test_pki::Authority;
use crate::upstream::{AuthorizedEntry, BundleChanges};

const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;
const NOW: OffsetDateTime = datetime!(2030-01-01 00:00 UTC);

fn entry(id: &str, values: &[&str]) -> AuthorizedEntry {
    authorized(id, sorted(values))
}

fn revised(id: &str, values: &[&str], revision_number: i64) -> AuthorizedEntry {
    AuthorizedEntry {
        revision_number,
        ..entry(id, values)
    }
}

fn on_demand(id: &str, values: &[&str]) -> AuthorizedEntry {
    AuthorizedEntry {
        disable_x509_svid_prefetch: true,
        ..entry(id, values)
    }
}

fn model_of(limit: usize, entries: Vec<AuthorizedEntry>) -> Model {
    let bundle = Bundle::new(identity("/x").trust_domain().clone());
    let mut model = Model::new(Arc::new(bundle), limit, Arc::default(), moment(START));
    apply(&mut model, entries);
    model
}

fn model(entries: Vec<AuthorizedEntry>) -> Model {
    model_of(10, entries)
}

/// With nobody who wants anything.
fn apply(model: &mut Model, entries: Vec<AuthorizedEntry>) {
    model.apply_entries(entries, &[], &|_entry| false);
}

/// These selectors are those of somebody who wants what matches, from now on or no more.
fn touch(model: &mut Model, values: &[&str], is_wanted: bool) {
    model.touched(&selectors(values), &|_entry| is_wanted);
}

/// What is to be signed at a time, the most urgent first. It is looked at only.
fn due(model: &mut Model, now: OffsetDateTime) -> Vec<String> {
    due_at(model, moment(now))
}

fn due_at(model: &mut Model, now: Moment) -> Vec<String> {
    model.advance(now);
    let requests = model.start_signing(usize::MAX);
    let ids: Vec<_> = requests.into_iter().map(|request| request.entry_id).collect();
    for id in &ids {
        model.stop_signing(id);
    }
    ids
}

/// Has an entry that is due signed, for an hour.
fn issue(model: &mut Model, authority: &Authority, id: &str) {
    issue_until(model, authority, id, Duration::minutes(30));
}

fn issue_until(model: &mut Model, authority: &Authority, id: &str, renew_in: Duration) {
    let requests = model.start_signing(usize::MAX);
    for request in &requests {
        model.stop_signing(&request.entry_id);
    }
    let request = requests
        .into_iter()
        .find(|request| request.entry_id == id)
        .unwrap();
    let svid = IssuedSvid::new(authority.svid(request.spiffe_id.path()));
    let renewal = RenewalTime::at(now() + renew_in);
    model
        .issued(&request, svid, renewal, moment(now()).passed)
        .unwrap();
}

/// The real time, at which test authorities sign.
fn now() -> OffsetDateTime {
    Authority::new("x.org").certificate().not_before() + Duration::days(1)
}

fn shown(snapshot: &Snapshot, id: &str) -> Arc<CachedEntry> {
    Arc::clone(snapshot.entry(id).unwrap())
}

fn with_svid(snapshot: &Snapshot) -> Vec<String> {
    let entries = snapshot.entries.iter().filter(|entry| entry.svid.is_some());
    entries.map(|entry| entry.entry_id.clone()).collect()
}

/// An own bundle with these authorities, tainted or not.
fn bundle(authorities: &[(&Authority, bool)]) -> Arc<Bundle> {
    let mut bundle = authorities[0].0.bundle();
    bundle.x509_authorities = authorities
        .iter()
        .map(|(authority, tainted)| X509Authority {
            tainted: *tainted,
            ..X509Authority::new(authority.certificate())
        })
        .collect();
    Arc::new(bundle)
}

#[test]
fn unchanged_entries_are_shared_and_only_changed_ones_are_news() {
    let mut model = model(vec![entry("b", &["uid:2"]), entry("a", &["uid:1"])]);
    let (first, news) = model.snapshot().unwrap();
    assert_eq!((news.entries.len(), news.everyone), (2, false));
    assert!(model.snapshot().is_none());
    let changed = AuthorizedEntry {
        hint: "internal".to_owned(),
        ..entry("b", &["uid:2"])
    };
    apply(&mut model, vec![entry("a", &["uid:1"]), changed]);
    let (second, news) = model.snapshot().unwrap();
    assert!(Arc::ptr_eq(&shown(&first, "a"), &shown(&second, "a")));
    assert_eq!(shown(&second, "b").hint, "internal");
    assert_eq!(shown(&first, "b").hint, "");
    let concerned: Vec<_> = news.entries.iter().map(|entry| entry.entry_id.as_str()).collect();
    assert_eq!(concerned, ["b"]);
}

#[test]
fn entries_that_come_move_or_go_are_news_to_those_they_matched_and_those_they_match() {
    let mut model = model(vec![entry("a", &["uid:1"])]);
    model.snapshot();
    apply(&mut model, vec![entry("a", &["uid:2"])]);
    let (_snapshot, news) = model.snapshot().unwrap();
    let matched = |values: &[&str]| news.entries.iter().any(|entry| entry.matches(&selectors(values)));
    assert!(matched(&["uid:1"]) && matched(&["uid:2"]) && !matched(&["uid:3"]));
    model.apply_entries(Vec::new(), &["a".to_owned()], &|_entry| false);
    let (_snapshot, news) = model.snapshot().unwrap();
    assert!(news.entries.len() == 1 && news.entries[0].matches(&selectors(&["uid:2"])));
}

#[test]
fn bundles_are_news_to_those_whose_entries_federate_with_them_and_the_own_one_to_all() {
    let federating = |id: &str, names: &[&str]| AuthorizedEntry {
        federates_with: names
            .iter()
            .map(|name| TrustDomain::parse(name).unwrap())
            .collect(),
        ..entry(id, &["uid:1"])
    };
    let mut model = model(vec![
        federating("a", &["a.org"]),
        federating("ab", &["a.org", "b.org"]),
        entry("none", &["uid:1"]),
    ]);
    model.snapshot();
    let concerned = |model: &mut Model, names: &[&str], removed: &[&str]| -> Vec<String> {
        model.apply_federated(BundleChanges {
            federated: names.iter().map(|name| Authority::new(name).bundle()).collect(),
            removed: removed
                .iter()
                .map(|name| TrustDomain::parse(name).unwrap())
                .collect(),
            ..BundleChanges::default()
        });
        let (_snapshot, news) = model.snapshot().unwrap();
        assert!(!news.everyone);
        let ids: std::collections::BTreeSet<_> =
            news.entries.iter().map(|entry| entry.entry_id.clone()).collect();
        ids.into_iter().collect()
    };
    assert_eq!(concerned(&mut model, &["a.org"], &[]), ["a", "ab"]);
    assert_eq!(concerned(&mut model, &["b.org"], &[]), ["ab"]);
    apply(&mut model, vec![federating("a", &[])]);
    model.snapshot();
    assert_eq!(concerned(&mut model, &[], &["a.org"]), ["ab"]);
    assert!(concerned(&mut model, &["c.org"], &[]).is_empty());
    model.set_own_bundle(
        bundle(&[(&Authority::new("example.org"), false)]),
        moment(NOW).passed,
    );
    assert!(model.snapshot().unwrap().1.everyone);
    model.confirmed(NOW);
    assert!(model.snapshot().unwrap().1.everyone);
    model.confirmed(NOW);
    assert!(model.snapshot().is_none());
}

#[test]
fn a_new_revision_keeps_the_svid_until_the_next_and_another_identity_does_not() {
    let authority = Authority::new("example.org");
    let mut model = model(vec![entry("a", &["uid:1"])]);
    issue(&mut model, &authority, "a");
    assert!(due(&mut model, now()).is_empty());
    apply(&mut model, vec![revised("a", &["uid:1"], 1)]);
    assert_eq!(due(&mut model, now()), ["a"]);
    assert!(shown(&model.snapshot().unwrap().0, "a").svid.is_some());
    issue(&mut model, &authority, "a");
    assert!(due(&mut model, now()).is_empty());
    let created_anew = AuthorizedEntry {
        created_at: 2,
        ..revised("a", &["uid:1"], 1)
    };
    apply(&mut model, vec![created_anew]);
    assert_eq!(due(&mut model, now()), ["a"]);
    let other = AuthorizedEntry {
        spiffe_id: identity("/other"),
        ..entry("a", &["uid:1"])
    };
    apply(&mut model, vec![other]);
    assert!(shown(&model.snapshot().unwrap().0, "a").svid.is_none());
}

#[test]
fn an_svid_signed_for_what_the_entry_was_does_not_count_for_what_it_is() {
    let authority = Authority::new("example.org");
    let mut model = model(vec![entry("a", &["uid:1"])]);
    let request = model.start_signing(1).pop().unwrap();
    apply(&mut model, vec![revised("a", &["uid:1"], 1)]);
    model.stop_signing("a");
    let svid = || IssuedSvid::new(authority.svid("/a"));
    let later = RenewalTime::at(now() + Duration::minutes(30));
    let passed = moment(now()).passed;
    model.issued(&request, svid(), later, passed).unwrap();
    assert_eq!(due(&mut model, now()), ["a"]);
    let other = AuthorizedEntry {
        spiffe_id: identity("/other"),
        ..entry("a", &["uid:1"])
    };
    apply(&mut model, vec![other]);
    model.issued(&request, svid(), later, passed).unwrap();
    assert!(shown(&model.snapshot().unwrap().0, "a").svid.is_none());
}

#[test]
fn an_svid_is_due_when_it_is_to_be_renewed_and_gone_before_it_expires() {
    let authority = Authority::new("example.org");
    let mut model = model(vec![entry("a", &["uid:1"])]);
    issue_until(&mut model, &authority, "a", Duration::minutes(20));
    assert!(due(&mut model, now() + Duration::minutes(19)).is_empty());
    assert!(model.next().unwrap() <= now() + Duration::minutes(20));
    assert_eq!(due(&mut model, now() + Duration::minutes(21)), ["a"]);
    let snapshot = model.snapshot().unwrap().0;
    let issued = shown(&snapshot, "a").svid.clone().unwrap();
    assert_eq!(issued.expires_at() - issued.usable_until(), Duration::SECOND);
    model.advance(moment(issued.usable_until() - Duration::milliseconds(1)));
    assert!(model.snapshot().is_none());
    model.advance(moment(issued.usable_until()));
    let (snapshot, news) = model.snapshot().unwrap();
    assert!(shown(&snapshot, "a").svid.is_none());
    assert_eq!(news.entries.len(), 1);
}

#[test]
fn entries_are_issued_on_demand_while_somebody_wants_them_wherever_they_move() {
    let mut model = model(vec![on_demand("a", &["uid:1"])]);
    assert!(due(&mut model, NOW).is_empty());
    touch(&mut model, &["uid:1"], true);
    assert_eq!(due(&mut model, NOW), ["a"]);
    let wants_one = |entry: &CachedEntry| entry.matches(&selectors(&["uid:1"]));
    model.apply_entries(vec![on_demand("a", &["uid:2"])], &[], &wants_one);
    assert!(due(&mut model, NOW).is_empty());
    touch(&mut model, &["uid:2"], true);
    assert_eq!(due(&mut model, NOW), ["a"]);
    touch(&mut model, &["uid:1"], false);
    assert_eq!(due(&mut model, NOW), ["a"]);
    touch(&mut model, &["uid:2"], false);
    assert!(due(&mut model, NOW).is_empty());
    model.apply_entries(vec![on_demand("b", &["uid:1"])], &[], &wants_one);
    assert_eq!(due(&mut model, NOW), ["b"]);
}

#[test]
fn the_least_recently_wanted_svid_is_evicted_and_one_in_use_never_is() {
    let authority = Authority::new("example.org");
    let counters = Arc::new(CacheCounters::default());
    let bundle = Bundle::new(identity("/x").trust_domain().clone());
    let mut model = Model::new(Arc::new(bundle), 2, Arc::clone(&counters), moment(START));
    let id = |n: usize| (format!("e{n}"), format!("uid:{n}"));
    apply(
        &mut model,
        (0..4).map(|n| on_demand(&id(n).0, &[&id(n).1])).collect(),
    );
    for n in [2, 0, 1, 3] {
        touch(&mut model, &[&id(n).1], true);
        issue(&mut model, &authority, &id(n).0);
    }
    model.advance(moment(now()));
    assert_eq!(with_svid(&model.snapshot().unwrap().0).len(), 4);
    for n in [1, 0] {
        touch(&mut model, &[&id(n).1], false);
    }
    model.advance(moment(now()));
    assert_eq!(with_svid(&model.snapshot().unwrap().0), ["e2", "e3"]);
    touch(&mut model, &["uid:2"], false);
    model.advance(moment(now()));
    assert!(model.snapshot().is_none());
    assert_eq!(counters.x509_evicted.value(), 2);
    touch(&mut model, &["uid:1"], true);
    assert_eq!(due(&mut model, now()), ["e1"]);
    issue(&mut model, &authority, "e1");
    touch(&mut model, &["uid:1"], false);
    touch(&mut model, &["uid:3"], false);
    touch(&mut model, &["uid:0"], true);
    issue(&mut model, &authority, "e0");
    model.advance(moment(now()));
    assert_eq!(with_svid(&model.snapshot().unwrap().0), ["e0", "e3"]);
    assert_eq!(counters.x509_svids.value(), 2);
}

#[test]
fn entries_are_issued_ahead_up_to_the_limit_and_those_that_ask_not_to_be_are_not() {
    let many = |n: usize| entry(&format!("e{n}"), &[&format!("uid:{n}")]);
    let mut entries: Vec<_> = (0..5).map(many).collect();
    entries.push(on_demand("a", &["uid:9"]));
    let mut model = model_of(3, entries);
    assert_eq!(due(&mut model, NOW), ["e0", "e1", "e2"]);
    touch(&mut model, &["uid:9"], true);
    assert_eq!(due(&mut model, NOW), ["a", "e0", "e1"]);
}

#[test]
fn what_a_tainted_authority_signed_is_replaced_at_once_and_what_a_revoked_one_signed_is_dropped() {
    let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
    let mut model = model(vec![entry("a", &["uid:1"]), entry("b", &["uid:1"])]);
    model.set_own_bundle(bundle(&[(&new, false), (&old, false)]), moment(now()).passed);
    issue(&mut model, &old, "a");
    issue(&mut model, &new, "b");
    assert!(due(&mut model, now()).is_empty());
    model.set_own_bundle(bundle(&[(&new, false), (&old, true)]), moment(now()).passed);
    assert_eq!(due(&mut model, now()), ["a"]);
    assert_eq!(with_svid(&model.snapshot().unwrap().0), ["a", "b"]);
    // The server still signs with the tainted authority: it is not asked without pause.
    issue(&mut model, &old, "a");
    assert!(due(&mut model, now() + Duration::seconds(30)).is_empty());
    assert_eq!(due(&mut model, now() + Duration::seconds(61)), ["a"]);
    let request = model.start_signing(1).pop().unwrap();
    model.set_own_bundle(bundle(&[(&new, false)]), moment(now()).passed);
    assert_eq!(with_svid(&model.snapshot().unwrap().0), ["b"]);
    let late = model.issued(
        &request,
        IssuedSvid::new(old.svid("/a")),
        RenewalTime::at(now() + Duration::HOUR),
        moment(now()).passed,
    );
    assert!(late.unwrap_err().contains("revoked"));
    model.stop_signing("a");
    assert_eq!(due(&mut model, now()), ["a"]);
    issue(&mut model, &new, "a");
    assert_eq!(with_svid(&model.snapshot().unwrap().0), ["a", "b"]);
}

#[test]
fn many_svids_of_a_tainted_authority_are_replaced_a_part_at_a_time_those_in_use_first() {
    let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
    let many: Vec<_> = (0..250)
        .map(|n| entry(&format!("e{n:03}"), &[&format!("uid:{n}")]))
        .collect();
    let mut model = model_of(1000, many);
    model.set_own_bundle(bundle(&[(&new, false), (&old, false)]), moment(now()).passed);
    let svid = old.svid("/x");
    for request in model.start_signing(usize::MAX) {
        let key = Arc::clone(svid.key());
        let svid = old.svid_for(request.spiffe_id.path(), key, Duration::hours(1));
        model.stop_signing(&request.entry_id);
        let later = RenewalTime::at(now() + Duration::minutes(30));
        model
            .issued(&request, IssuedSvid::new(svid), later, moment(now()).passed)
            .unwrap();
    }
    for n in 200..240 {
        touch(&mut model, &[&format!("uid:{n}")], true);
    }
    assert!(due(&mut model, now()).is_empty());
    let tainted_at = now();
    model.set_own_bundle(bundle(&[(&new, false), (&old, true)]), moment(tainted_at).passed);
    let first = due(&mut model, tainted_at);
    assert_eq!(first.len(), 100);
    assert!(
        first[..40]
            .iter()
            .all(|id| ("e200".."e240").contains(&id.as_str())),
        "{first:?}"
    );
    assert_eq!(model.next(), Some(tainted_at + Duration::seconds(5)));
    assert_eq!(due(&mut model, tainted_at + Duration::seconds(5)).len(), 200);
    assert_eq!(due(&mut model, tainted_at + Duration::seconds(10)).len(), 250);
    assert_eq!(with_svid(&model.snapshot().unwrap().0).len(), 250);
}

#[test]
fn a_failed_entry_waits_longer_each_time_and_not_at_all_when_the_server_is_back() {
    let mut model = model(vec![entry("a", &["uid:1"])]);
    model.advance(moment(NOW));
    for (at, millis) in [500, 1000, 2000, 4000, 5000, 5000].into_iter().enumerate() {
        let failure = model.sign_failed("a", moment(NOW).passed).unwrap();
        assert_eq!((failure.is_first, failure.is_to_tell), (at == 0, at == 0));
        assert!(due(&mut model, NOW).is_empty());
        assert_eq!(model.next(), Some(NOW + Duration::milliseconds(millis)));
    }
    model.retry_now();
    assert_eq!(due(&mut model, NOW), ["a"]);
    let later = moment(NOW + Duration::MINUTE).passed;
    let failure = model.sign_failed("a", later).unwrap();
    assert!(!failure.is_first && failure.is_to_tell && failure.expires_at.is_none());
    assert!(model.sign_failed("gone", later).is_none());
}

#[test]
fn what_was_put_off_does_not_wait_for_a_clock_that_was_set_back() {
    let (old, new) = (Authority::new("example.org"), Authority::new("example.org"));
    let mut model = model(vec![entry("failed", &["uid:1"]), entry("tainted", &["uid:1"])]);
    let own = bundle(&[(&new, false), (&old, true)]);
    model.set_own_bundle(own, moment(now()).passed);
    model.advance(moment(now()));
    issue(&mut model, &old, "tainted");
    model.sign_failed("failed", moment(now()).passed);
    let after = |millis| {
        let moment = moment(now() + Duration::milliseconds(millis));
        Moment {
            clock: moment.clock - Duration::hours(1),
            ..moment
        }
    };
    assert!(due_at(&mut model, after(499)).is_empty());
    assert_eq!(due_at(&mut model, after(500)), ["failed"]);
    assert_eq!(due_at(&mut model, after(59_999)), ["failed"]);
    assert_eq!(due_at(&mut model, after(60_000)), ["failed", "tainted"]);
}

#[test]
fn one_snapshot_is_asked_for_per_revision_that_the_server_does_not_know() {
    let mut model = model(vec![entry("a", &["uid:1"])]);
    assert!(model.needs_resync("a"));
    assert!(!model.needs_resync("a"));
    assert!(!model.needs_resync("gone"));
    apply(&mut model, vec![revised("a", &["uid:1"], 1)]);
    assert!(model.needs_resync("a"));
}

#[test]
fn a_complete_list_of_foreign_bundles_replaces_the_others() {
    let mut model = model(vec![]);
    let changes = |names: &[&str], complete| BundleChanges {
        federated: names.iter().map(|name| Authority::new(name).bundle()).collect(),
        complete,
        ..BundleChanges::default()
    };
    let held = |model: &mut Model| -> Vec<String> {
        let (snapshot, _news) = model.snapshot().unwrap();
        snapshot.federated.keys().map(ToString::to_string).collect()
    };
    model.apply_federated(changes(&["a.org", "b.org"], true));
    assert_eq!(held(&mut model), ["a.org", "b.org"]);
    model.apply_federated(changes(&["c.org"], false));
    assert_eq!(held(&mut model), ["a.org", "b.org", "c.org"]);
    let a = BundleChanges {
        kept: vec![TrustDomain::parse("b.org").unwrap()],
        ..changes(&["a.org"], true)
    };
    model.apply_federated(a);
    assert_eq!(held(&mut model), ["a.org", "b.org"]);
    model.apply_federated(changes(&["a.org"], true));
    assert_eq!(held(&mut model), ["a.org"]);
    model.apply_federated(BundleChanges {
        removed: vec![TrustDomain::parse("a.org").unwrap()],
        ..Default::default()
    });
    assert!(held(&mut model).is_empty());
}

#[test]
fn tokens_of_changed_and_removed_entries_are_to_be_forgotten() {
    let mut model = model(vec![entry("a", &["uid:1"]), entry("b", &["uid:1"])]);
    let forget = model.apply_entries(
        vec![revised("a", &["uid:1"], 9), entry("new", &["uid:1"])],
        &["b".to_owned(), "gone".to_owned()],
        &|_entry| false,
    );
    assert_eq!(forget.entries, HashSet::from(["a".to_owned(), "b".to_owned()]));
}

#[test]
fn entries_for_svid_stores_are_shown_and_never_signed() {
    let stored = AuthorizedEntry {
        store_svid: true,
        ..entry("a", &["uid:1"])
    };
    let mut model = model(vec![entry("a", &["uid:1"])]);
    apply(&mut model, vec![stored]);
    touch(&mut model, &["uid:1"], true);
    assert!(due(&mut model, NOW).is_empty());
    let (snapshot, _news) = model.snapshot().unwrap();
    let workload: HashSet<Selector> = selectors(&["uid:1"]);
    assert!(snapshot.entry("a").is_some() && snapshot.matching(&workload).is_empty());
}
