//! What a set of selectors gets of a snapshot, encoded once for all streams that get the same.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bytes::Bytes;
use finial_identity::bundle::Bundle;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::TrustDomain;
use finial_proto::workload::{JwtBundlesResponse, X509BundlesResponse, X509svid, X509svidResponse};
use prost::Message;
use zeroize::Zeroizing;

use crate::svids::{CachedEntry, IssuedSvid, Snapshot};

/// Clients refuse larger messages unless told otherwise.
const CLIENT_LIMIT: usize = 4 * 1024 * 1024;

/// Facts about a workload.
pub(super) type Selectors = HashSet<Selector>;

/// One caller's part of one snapshot.
#[derive(Debug)]
pub(super) struct View {
    snapshot: Arc<Snapshot>,
    /// Ordered by entry id, hints unique.
    entries: Vec<Arc<CachedEntry>>,
    /// How many of the entries have an SVID.
    issued: usize,
    x509_svids: OnceLock<Bytes>,
    x509_bundles: OnceLock<Bytes>,
    jwt_bundles: OnceLock<Bytes>,
}

impl View {
    fn new(snapshot: Arc<Snapshot>, matching: Vec<Arc<CachedEntry>>) -> Self {
        let entries = without_repeated_hints(matching);
        let issued = entries.iter().filter(|entry| svid_of(entry).is_some()).count();
        Self {
            snapshot,
            entries,
            issued,
            x509_svids: OnceLock::new(),
            x509_bundles: OnceLock::new(),
            jwt_bundles: OnceLock::new(),
        }
    }

    /// The identities of the caller, ordered by entry id; of entries with the same hint only the oldest.
    pub(super) fn entries(&self) -> &[Arc<CachedEntry>] {
        &self.entries
    }

    /// Whether the caller has no identity.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How many identities have an SVID, and how many have none yet.
    pub(super) fn issued_and_missing(&self) -> (usize, usize) {
        (self.issued, self.entries.len() - self.issued)
    }

    /// Bundles by which the caller verifies others: the own one and those its identities federate with.
    pub(super) fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        if self.snapshot.own_bundle.trust_domain == *trust_domain {
            return Some(&self.snapshot.own_bundle);
        }
        let federated = self
            .entries
            .iter()
            .any(|entry| entry.federates_with.contains(trust_domain));
        self.snapshot.federated.get(trust_domain).filter(|_| federated)
    }

    /// Whether the agent belongs to this trust domain.
    pub(super) fn is_own(&self, trust_domain: &TrustDomain) -> bool {
        self.snapshot.own_bundle.trust_domain == *trust_domain
    }

    /// `X509SVIDResponse`, of the identities that have an SVID.
    pub(super) fn x509_svids(&self) -> Bytes {
        let encode = || {
            let bundle = Bytes::from(self.snapshot.own_bundle.x509_der_concat());
            let svids = self
                .entries
                .iter()
                .filter_map(|entry| {
                    let issued = svid_of(entry)?;
                    Some(X509svid {
                        spiffe_id: entry.spiffe_id.to_string(),
                        x509_svid: issued.chain_der.clone(),
                        x509_svid_key: issued.key_pkcs8.clone(),
                        bundle: bundle.clone(),
                        hint: entry.hint.clone(),
                    })
                })
                .collect();
            secret(&X509svidResponse {
                svids,
                crl: Vec::new(),
                federated_bundles: x509(self.federated()),
            })
        };
        self.x509_svids.get_or_init(encode).clone()
    }

    /// `X509BundlesResponse`. A caller without identity gets the own bundle alone.
    pub(super) fn x509_bundles(&self) -> Bytes {
        let encode = || {
            let bundles = x509(self.all_bundles());
            let answer = X509BundlesResponse {
                crl: Vec::new(),
                bundles,
            };
            Bytes::from(answer.encode_to_vec())
        };
        self.x509_bundles.get_or_init(encode).clone()
    }

    /// `JWTBundlesResponse`. A caller without identity gets the own bundle alone.
    pub(super) fn jwt_bundles(&self) -> Bytes {
        let encode = || {
            let documents = self
                .all_bundles()
                .map(|(name, bundle)| (name.id().to_string(), Bytes::from(bundle.to_jwks())));
            let answer = JwtBundlesResponse {
                bundles: documents.collect(),
            };
            Bytes::from(answer.encode_to_vec())
        };
        self.jwt_bundles.get_or_init(encode).clone()
    }

    fn federated(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        let names: HashSet<&TrustDomain> = self
            .entries
            .iter()
            .flat_map(|entry| &entry.federates_with)
            .filter(|name| !self.is_own(name))
            .collect();
        self.snapshot
            .federated
            .iter()
            .filter(move |(name, _bundle)| names.contains(name))
    }

    fn all_bundles(&self) -> impl Iterator<Item = (&TrustDomain, &Arc<Bundle>)> {
        let own = &self.snapshot.own_bundle;
        std::iter::once((&own.trust_domain, own)).chain(self.federated())
    }
}

/// The SVID of an entry, if it is for the identity that the entry has now.
fn svid_of(entry: &CachedEntry) -> Option<&Arc<IssuedSvid>> {
    entry
        .svid
        .as_ref()
        .filter(|issued| *issued.svid.spiffe_id() == entry.spiffe_id)
}

/// Of the entries with the same hint the oldest stays, among equally old ones that of the lowest id.
fn without_repeated_hints(mut entries: Vec<Arc<CachedEntry>>) -> Vec<Arc<CachedEntry>> {
    let mut owners: HashMap<&str, &Arc<CachedEntry>> = HashMap::new();
    for entry in entries.iter().filter(|entry| !entry.hint.is_empty()) {
        let owner = owners.entry(&entry.hint).or_insert(entry);
        if entry.created_at < owner.created_at {
            *owner = entry;
        }
    }
    let losers: HashSet<String> = entries
        .iter()
        .filter(|entry| {
            owners
                .get(entry.hint.as_str())
                .is_some_and(|owner| !Arc::ptr_eq(owner, entry))
        })
        .map(|entry| entry.entry_id.clone())
        .collect();
    entries.retain(|entry| !losers.contains(&entry.entry_id));
    entries
}

/// X.509 authorities by trust domain ID. A trust domain without any is left out: clients fail on an empty value.
fn x509<'a>(bundles: impl Iterator<Item = (&'a TrustDomain, &'a Arc<Bundle>)>) -> BTreeMap<String, Bytes> {
    bundles
        .map(|(name, bundle)| (name.id().to_string(), Bytes::from(bundle.x509_der_concat())))
        .filter(|(_id, authorities)| !authorities.is_empty())
        .collect()
}

/// Encodes a message with private keys, into memory that is zeroised when its last user drops it.
fn secret(message: &impl Message) -> Bytes {
    let encoded = Zeroizing::new(message.encode_to_vec());
    if encoded.len() > CLIENT_LIMIT {
        tracing::warn!(
            bytes = encoded.len(),
            "answer to a workload exceeds what most clients accept; give it fewer identities or bundles"
        );
    }
    Bytes::from_owner(encoded)
}

/// The views of the present snapshot, by selectors and by matching entries.
#[derive(Debug, Default)]
pub(super) struct Views {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// By the address of the set, which is held beside the view and so cannot be another's.
    by_selectors: HashMap<usize, (Arc<Selectors>, Arc<View>)>,
    /// By the addresses of the entries, which the view holds.
    by_entries: HashMap<Vec<usize>, Arc<View>>,
    /// Sets in use, so that streams of the same workload share one.
    sets: HashMap<Vec<Selector>, Weak<Selectors>>,
    sets_after_sweep: usize,
}

impl Views {
    /// The one set that all callers with these selectors share.
    pub(super) fn share(&self, selectors: Selectors) -> Arc<Selectors> {
        let mut sorted: Vec<Selector> = selectors.iter().cloned().collect();
        sorted.sort_unstable();
        let mut state = self.lock();
        if let Some(set) = state.sets.get(&sorted).and_then(Weak::upgrade) {
            return set;
        }
        if state.sets.len() > 2 * state.sets_after_sweep + 64 {
            state.sets.retain(|_key, set| set.strong_count() > 0);
            state.sets_after_sweep = state.sets.len();
        }
        let set = Arc::new(selectors);
        state.sets.insert(sorted, Arc::downgrade(&set));
        set
    }

    /// What `selectors` get of `snapshot`.
    pub(super) fn view(&self, snapshot: &Arc<Snapshot>, selectors: &Arc<Selectors>) -> Arc<View> {
        let mut state = self.lock();
        if snapshot.version > state.version {
            state.version = snapshot.version;
            state.by_selectors.clear();
            state.by_entries.clear();
        }
        let is_present = snapshot.version == state.version;
        let set = Arc::as_ptr(selectors).addr();
        if let Some((_set, view)) = state.by_selectors.get(&set).filter(|_| is_present) {
            return Arc::clone(view);
        }
        let matching: Vec<Arc<CachedEntry>> =
            snapshot.matching(selectors).into_iter().map(Arc::clone).collect();
        let addresses: Vec<usize> = matching.iter().map(|entry| Arc::as_ptr(entry).addr()).collect();
        let known = state.by_entries.get(&addresses).filter(|_| is_present);
        let view = known.map_or_else(|| Arc::new(View::new(Arc::clone(snapshot), matching)), Arc::clone);
        if is_present {
            state.by_entries.insert(addresses, Arc::clone(&view));
            state
                .by_selectors
                .insert(set, (Arc::clone(selectors), Arc::clone(&view)));
        }
        view
    }

    /// What a caller without any identity gets of `snapshot`.
    pub(super) fn nobody(&self, snapshot: &Arc<Snapshot>) -> Arc<View> {
        Arc::new(View::new(Arc::clone(snapshot), Vec::new()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever is in the maps is right on its own, so a panic leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
