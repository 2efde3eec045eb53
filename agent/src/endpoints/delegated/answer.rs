//! What a delegate gets of a snapshot, as messages.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use finial_identity::bundle::Bundle;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wire;
use finial_proto::spire::api::agent::delegatedidentity::v1 as pb;
use finial_proto::spire::api::types;
use time::OffsetDateTime;

use crate::endpoints::session::svid_of;
use crate::svids::{CachedEntry, IssuedSvid, Snapshot};

/// The identities of one workload, ordered by entry id.
#[derive(Debug)]
pub(super) struct Identities<'a> {
    snapshot: &'a Snapshot,
    entries: Vec<&'a Arc<CachedEntry>>,
}

impl<'a> Identities<'a> {
    pub(super) fn of(snapshot: &'a Snapshot, selectors: &HashSet<Selector>) -> Self {
        Self {
            snapshot,
            entries: snapshot.matching(selectors),
        }
    }

    pub(super) fn entries(&self) -> &[&'a Arc<CachedEntry>] {
        &self.entries
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many X509-SVIDs that may be served there are, and how many are yet to be issued.
    pub(super) fn issued_and_missing(&self, now: OffsetDateTime) -> (usize, usize) {
        let (mut issued, mut missing) = (0, 0);
        for entry in self.handed_out() {
            *(if usable(entry, now).is_some() {
                &mut issued
            } else {
                &mut missing
            }) += 1;
        }
        (issued, missing)
    }

    /// Whether there is one whose first SVID may come at any moment.
    pub(super) fn awaits_svid(&self, now: OffsetDateTime) -> bool {
        self.handed_out()
            .any(|entry| usable(entry, now).is_none() && !entry.signing_failed)
    }

    /// `SubscribeToX509SVIDsResponse`, of the identities that have an SVID.
    pub(super) fn x509_svids(&self, now: OffsetDateTime) -> pb::SubscribeToX509sviDsResponse {
        let svids = self.handed_out().filter_map(|entry| {
            let issued = usable(entry, now)?;
            Some(pb::X509svidWithKey {
                x509_svid: Some(types::X509svid {
                    cert_chain: issued
                        .svid
                        .chain()
                        .iter()
                        .map(|certificate| certificate.der().to_vec())
                        .collect(),
                    id: Some(wire::spiffe_id_to_wire(&entry.spiffe_id)),
                    expires_at: issued.expires_at().unix_timestamp(),
                    hint: entry.hint.clone(),
                }),
                x509_svid_key: issued.key_pkcs8.clone(),
            })
        });
        pb::SubscribeToX509sviDsResponse {
            x509_svids: svids.collect(),
            federates_with: self.federates_with(),
        }
    }

    /// The X509-SVIDs of administrators and of downstream servers are given only to themselves.
    fn handed_out(&self) -> impl Iterator<Item = &&'a Arc<CachedEntry>> {
        self.entries
            .iter()
            .filter(|entry| !entry.admin && !entry.downstream)
    }

    /// The IDs of the foreign trust domains whose bundles are there, sorted.
    fn federates_with(&self) -> Vec<String> {
        let wanted: HashSet<&TrustDomain> = self
            .entries
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .collect();
        let there = self.snapshot.federated.keys();
        there
            .filter(|name| wanted.contains(name) && **name != self.snapshot.own_bundle.trust_domain)
            .map(|name| name.id().to_string())
            .collect()
    }
}

/// The SVID of an entry, unless it is good no longer: a snapshot may be older than the end of what it holds.
fn usable(entry: &CachedEntry, now: OffsetDateTime) -> Option<&Arc<IssuedSvid>> {
    svid_of(entry).filter(|svid| svid.usable_until() > now)
}

/// `SubscribeToX509BundlesResponse`: every bundle there is. A trust domain without X.509 authorities is left out, as
/// in the Workload API: clients fail on an empty value.
pub(super) fn x509_bundles(snapshot: &Snapshot) -> pb::SubscribeToX509BundlesResponse {
    let ca_certificates = bundles(snapshot, |bundle| Bytes::from(bundle.x509_der_concat()))
        .filter(|(_id, authorities)| !authorities.is_empty())
        .collect();
    pb::SubscribeToX509BundlesResponse { ca_certificates }
}

/// `SubscribeToJWTBundlesResponse`: every bundle there is.
pub(super) fn jwt_bundles(snapshot: &Snapshot) -> pb::SubscribeToJwtBundlesResponse {
    let bundles = bundles(snapshot, |bundle| Bytes::from(bundle.to_jwks()));
    let bundles: BTreeMap<String, Bytes> = bundles.collect();
    pb::SubscribeToJwtBundlesResponse { bundles }
}

fn bundles<T>(snapshot: &Snapshot, encode: impl Fn(&Bundle) -> T) -> impl Iterator<Item = (String, T)> {
    let own = std::iter::once((&snapshot.own_bundle.trust_domain, &snapshot.own_bundle));
    let foreign = snapshot
        .federated
        .iter()
        .filter(|(name, _bundle)| **name != snapshot.own_bundle.trust_domain);
    own.chain(foreign)
        .map(move |(name, bundle)| (name.id().to_string(), encode(bundle)))
}
