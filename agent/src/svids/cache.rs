//! The agent's entries and SVIDs for its workloads: one immutable snapshot on a `watch`, one writer.
//!
//! Streams of workloads hold a [`Subscription`], which marks the entries that it matches as wanted once it is told to
//! ([`Subscription::want`]), read [`Snapshot::matching`] and wait for the next snapshot that concerns them. Entries and
//! SVIDs that did not change are shared between snapshots, so comparing them by `Arc::ptr_eq` tells what is new.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use finial_identity::bundle::Bundle;
use finial_identity::selector::Selector;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::{Certificate, X509Svid};
use time::{Duration, OffsetDateTime};
use tokio::sync::watch;
use zeroize::Zeroizing;

use super::counters::CacheCounters;
use super::entries::Entries;
use super::subscriptions::{News, Subscribers, Subscription};
use super::tokens::{JwtCache, JwtError, SignedJwt};
use super::wit::WitCache;

/// All that the agent can serve, at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Entries the agent is authorized for, sorted by entry id.
    pub entries: Entries,
    /// The bundle of the agent's trust domain. It has no JWT authorities until the first sync.
    pub own_bundle: Arc<Bundle>,
    /// Bundles of the trust domains that entries federate with, as far as the server has them.
    pub federated: BTreeMap<TrustDomain, Arc<Bundle>>,
    /// When the server last confirmed the entries; `None` before the first sync of this process.
    pub synced_at: Option<OffsetDateTime>,
    /// Grows by one with each snapshot published.
    pub version: u64,
}

/// A registration entry as agents get it, with the SVID issued for it.
#[derive(Clone, Debug)]
pub struct CachedEntry {
    /// The entry's id.
    pub entry_id: String,
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// Selectors a workload must all have, sorted, without duplicates.
    pub selectors: Vec<Selector>,
    /// Tells the workload what the identity is for; often empty.
    pub hint: String,
    /// Creation time in unix seconds.
    pub created_at: i64,
    /// Foreign trust domains whose bundles the workload gets, sorted.
    pub federates_with: Vec<TrustDomain>,
    /// The SVID gives admin rights on the server's API.
    pub admin: bool,
    /// The SVID may be used by a downstream server.
    pub downstream: bool,
    /// The SVID goes to an SVID store, never to a workload's socket.
    pub store_svid: bool,
    /// Each JWT-SVID of this entry has its own `jti`, so none is served twice.
    pub jwt_svid_include_jti: bool,
    /// The SVID, once issued and until it expires. An entry without one has been seen but not been signed.
    pub svid: Option<Arc<IssuedSvid>>,
    /// There is no SVID, and the last attempt to have one signed failed.
    pub signing_failed: bool,
}

/// An X509-SVID with its encodings made once and shared by all streams that send it.
pub struct IssuedSvid {
    /// The checked SVID.
    pub svid: X509Svid,
    /// Chain, leaf first, as concatenated DER (Workload API §5.2.1).
    pub chain_der: Bytes,
    /// The private key as PKCS#8 DER, zeroised when the last user drops it.
    pub key_pkcs8: Bytes,
}

/// The handle on the cache: cheap to clone, shared by all sockets.
#[derive(Clone, Debug)]
pub struct SvidCache {
    shared: Arc<Shared>,
}

impl Snapshot {
    /// A snapshot that holds nothing but the bundle known so far.
    pub fn empty(own_bundle: Arc<Bundle>) -> Self {
        Self {
            entries: Entries::default(),
            own_bundle,
            federated: BTreeMap::new(),
            synced_at: None,
            version: 0,
        }
    }

    /// The entries all of whose selectors are among `selectors`, ordered by entry id. Entries for SVID
    /// stores are left out: they never reach a workload's socket.
    pub fn matching(&self, selectors: &HashSet<Selector>) -> Vec<&Arc<CachedEntry>> {
        self.entries.matching(selectors)
    }

    /// The entry with this id.
    pub fn entry(&self, entry_id: &str) -> Option<&Arc<CachedEntry>> {
        self.entries.get(entry_id)
    }

    /// The bundle of a trust domain: the own one or a federated one.
    pub fn bundle(&self, trust_domain: &TrustDomain) -> Option<&Arc<Bundle>> {
        if self.own_bundle.trust_domain == *trust_domain {
            Some(&self.own_bundle)
        } else {
            self.federated.get(trust_domain)
        }
    }
}

impl CachedEntry {
    /// Whether a workload with `selectors` gets this identity: it has all of the entry's selectors.
    pub fn matches(&self, selectors: &HashSet<Selector>) -> bool {
        !self.store_svid && self.fits(selectors)
    }

    /// Whether a workload with `selectors` has all that the entry asks for, be it for workloads or not.
    pub fn fits(&self, selectors: &HashSet<Selector>) -> bool {
        !self.selectors.is_empty() && self.selectors.iter().all(|wanted| selectors.contains(wanted))
    }
}

impl IssuedSvid {
    /// Encodes the SVID once for all who will send it.
    pub fn new(svid: X509Svid) -> Self {
        let chain_der = Bytes::from(svid.chain_der_concat());
        let key_pkcs8 = Bytes::from_owner(Zeroizing::new(svid.pkcs8_der().to_vec()));
        Self {
            svid,
            chain_der,
            key_pkcs8,
        }
    }

    /// When the leaf stops being valid.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.svid.leaf().not_after()
    }

    /// Until when it is served: until shortly before it expires, for the way to the workload takes time too.
    /// Snapshots drop it then; whoever holds an older snapshot compares.
    pub fn usable_until(&self) -> OffsetDateTime {
        usable_until(self.svid.leaf())
    }
}

/// Until when an SVID with this leaf is served.
pub(super) fn usable_until(leaf: &Certificate) -> OffsetDateTime {
    let life = leaf.not_after() - leaf.not_before();
    leaf.not_after() - LAST_MOMENT.min(life / 20)
}

impl fmt::Debug for IssuedSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedSvid")
            .field("spiffe_id", self.svid.spiffe_id())
            .finish_non_exhaustive()
    }
}

impl SvidCache {
    /// A cache that holds the bundle known so far and nothing else. JWT-SVIDs are obtained through `jwt`.
    pub fn new(own_bundle: Arc<Bundle>, jwt: JwtCache) -> Self {
        Self::with_wit(own_bundle, jwt, None)
    }

    /// The same with WIT-SVIDs, where they are switched on.
    pub fn with_wit(own_bundle: Arc<Bundle>, jwt: JwtCache, wit: Option<WitCache>) -> Self {
        let (snapshots, _first) = watch::channel(Arc::new(Snapshot::empty(own_bundle)));
        Self {
            shared: Arc::new(Shared {
                snapshots,
                signing_trouble: watch::Sender::new(false),
                subscribers: Arc::default(),
                synced_at: Mutex::new(None),
                jwt,
                wit,
            }),
        }
    }

    /// Follows all snapshots; the present one is there at once. Whoever serves one workload waits on a
    /// [`Subscription`] instead.
    pub fn snapshots(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.shared.snapshots.subscribe()
    }

    /// Whether nothing can be signed now: the server cannot be reached, or what was sent to it last failed. Then nobody
    /// who may have something that is cached is to wait for what is not.
    pub fn signing_trouble(&self) -> watch::Receiver<bool> {
        self.shared.signing_trouble.subscribe()
    }

    /// The present snapshot.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.shared.snapshots.borrow())
    }

    /// Hears of what concerns a workload with `selectors`, and marks the entries that match as wanted for as long
    /// as it lives: they are issued whatever the size limit says, and their SVIDs are kept fresh.
    pub fn subscribe(&self, selectors: Arc<HashSet<Selector>>) -> Subscription {
        self.shared.subscribers.subscribe(selectors, true)
    }

    /// Hears of what concerns a workload with `selectors`, also of its first entry, and has nothing issued for it.
    pub fn observe(&self, selectors: Arc<HashSet<Selector>>) -> Subscription {
        self.shared.subscribers.subscribe(selectors, false)
    }

    /// How many subscriptions want SVIDs now.
    pub fn subscription_count(&self) -> usize {
        self.shared.subscribers.count().1
    }

    /// How many subscriptions there are, those that only observe among them.
    pub fn stream_count(&self) -> usize {
        self.shared.subscribers.count().0
    }

    /// What the caches hold and did.
    pub fn counters(&self) -> &Arc<CacheCounters> {
        self.shared.jwt.counters()
    }

    /// A JWT-SVID for an entry: a cached one while more than about half of its lifetime remains, else a new
    /// one from the server; concurrent calls for the same share one request.
    ///
    /// # Errors
    /// [`JwtError`] when there is no valid cached token and the server gave none.
    pub async fn jwt(
        &self,
        entry_id: &str,
        spiffe_id: &SpiffeId,
        audiences: &[String],
    ) -> Result<SignedJwt, JwtError> {
        let reuse = !self
            .snapshot()
            .entry(entry_id)
            .is_some_and(|entry| entry.jwt_svid_include_jti);
        self.shared.jwt.fetch(entry_id, spiffe_id, audiences, reuse).await
    }

    /// Whether [`SvidCache::jwt`] needs no new signature for this entry.
    pub fn holds_jwt(&self, entry: &CachedEntry, audiences: &[String]) -> bool {
        let jwt = &self.shared.jwt;
        !entry.jwt_svid_include_jti && jwt.holds(&entry.entry_id, &entry.spiffe_id, audiences)
    }

    /// The cache of JWT-SVIDs.
    pub fn jwt_cache(&self) -> &JwtCache {
        &self.shared.jwt
    }

    /// The cache of WIT-SVIDs, where they are switched on.
    pub fn wit_cache(&self) -> Option<&WitCache> {
        self.shared.wit.as_ref()
    }

    /// When the server last confirmed the entries; between snapshots this moves on while
    /// [`Snapshot::synced_at`] stands still.
    pub fn synced_at(&self) -> Option<OffsetDateTime> {
        let synced_at = self.shared.synced_at.lock();
        *synced_at.unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `next` in the place of the present snapshot, gives it the next version and tells those whom it
    /// concerns. There is one writer, the sync task.
    pub(super) fn publish_news(&self, mut next: Snapshot, news: &News) {
        let mut version = 0;
        self.shared.snapshots.send_modify(|present| {
            version = present.version.saturating_add(1);
            next.version = version;
            *present = Arc::new(next);
        });
        // After the snapshot: whoever subscribes in between reads the new one, or hears of it.
        self.shared.subscribers.tell(version, news);
        self.counters().snapshots.add(1);
    }

    /// Publishes a snapshot that a test made, and finds out whom it concerns.
    #[cfg(test)]
    pub(crate) fn publish(&self, next: Snapshot) {
        let news = super::tests::news_between(&self.snapshot(), &next);
        self.publish_news(next, &news);
    }

    pub(crate) fn note_signing_trouble(&self, is_there: bool) {
        let note = |noted: &mut bool| std::mem::replace(noted, is_there) != is_there;
        self.shared.signing_trouble.send_if_modified(note);
    }

    pub(super) fn confirm_sync(&self, at: OffsetDateTime) {
        let synced_at = self.shared.synced_at.lock();
        *synced_at.unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    pub(super) fn subscribers(&self) -> &Subscribers {
        &self.shared.subscribers
    }
}

#[derive(Debug)]
struct Shared {
    snapshots: watch::Sender<Arc<Snapshot>>,
    signing_trouble: watch::Sender<bool>,
    subscribers: Arc<Subscribers>,
    synced_at: Mutex<Option<OffsetDateTime>>,
    jwt: JwtCache,
    wit: Option<WitCache>,
}

/// An SVID is served until so long before it expires, at most.
const LAST_MOMENT: Duration = Duration::SECOND;
