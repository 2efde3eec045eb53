//! What the tests of these modules share.

use std::collections::HashSet;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use time::OffsetDateTime;
use tokio::time::Instant;

use super::cache::{CachedEntry, Snapshot};
use super::subscriptions::News;
use crate::node::Moment;
use crate::upstream::AuthorizedEntry;

/// `unix` selectors with these values.
pub(super) fn selectors(values: &[&str]) -> HashSet<Selector> {
    let selectors = values.iter().map(|value| Selector::new("unix", value).unwrap());
    selectors.collect()
}

/// The same in order.
pub(super) fn sorted(values: &[&str]) -> Vec<Selector> {
    let mut sorted: Vec<_> = selectors(values).into_iter().collect();
    sorted.sort();
    sorted
}

/// An entry without SVID.
pub(super) fn cached(id: &str, values: &[&str]) -> Arc<CachedEntry> {
    Arc::new(unissued(id, sorted(values)))
}

/// An entry without SVID, whose SPIFFE ID ends in its id.
pub(crate) fn unissued(id: &str, selectors: Vec<Selector>) -> CachedEntry {
    CachedEntry {
        entry_id: id.to_owned(),
        spiffe_id: identity(&format!("/{id}")),
        selectors,
        hint: String::new(),
        created_at: 1,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        store_svid: false,
        jwt_svid_include_jti: false,
        svid: None,
        signing_failed: false,
    }
}

/// The same as the server sends it.
pub(super) fn authorized(id: &str, selectors: Vec<Selector>) -> AuthorizedEntry {
    AuthorizedEntry {
        id: id.to_owned(),
        spiffe_id: identity(&format!("/{id}")),
        selectors,
        federates_with: Vec::new(),
        admin: false,
        downstream: false,
        revision_number: 0,
        store_svid: false,
        hint: String::new(),
        created_at: 1,
        disable_x509_svid_prefetch: false,
        jwt_svid_include_jti: false,
    }
}

/// The identity with this path.
pub(super) fn identity(path: &str) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://example.org{path}")).unwrap()
}

/// Whom it concerns that `after` follows on `before`.
pub(super) fn news_between(before: &Snapshot, after: &Snapshot) -> News {
    let mut news = News {
        everyone: !Arc::ptr_eq(&before.own_bundle, &after.own_bundle)
            || before.synced_at.is_some() != after.synced_at.is_some(),
        entries: Vec::new(),
    };
    let bundle = |snapshot: &Snapshot, name| snapshot.federated.get(name).map(Arc::as_ptr);
    for (one, other) in [(before, after), (after, before)] {
        let changed = one.entries.iter().filter(|entry| {
            let is_same = |same: &Arc<CachedEntry>| Arc::ptr_eq(entry, same);
            !other.entry(&entry.entry_id).is_some_and(is_same)
                || entry
                    .federates_with
                    .iter()
                    .any(|name| bundle(one, name) != bundle(other, name))
        });
        news.entries.extend(changed.map(Arc::clone));
    }
    news
}

/// When this clock is shown, if it was never set.
pub(super) fn moment(clock: OffsetDateTime) -> Moment {
    static START: OnceLock<Instant> = OnceLock::new();
    let age = Duration::try_from(clock - OffsetDateTime::UNIX_EPOCH).unwrap();
    Moment {
        clock,
        passed: *START.get_or_init(Instant::now) + age,
    }
}
