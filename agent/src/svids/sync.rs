//! The single writer: applies the feed's changes, has SVIDs signed, and publishes snapshots.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::process::{Clock, Stop};
use finial_identity::x509::Certificate;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::batch::{BatchError, BatchOutcome, sign_batch, usable_svid};
use super::cache::{IssuedSvid, SvidCache};
use super::feed::{Feed, FeedSettings, SyncCounters, Update};
use super::keys::{KeyPool, SvidRequest};
use super::model::Model;
use super::trust::Forget;
use crate::node::{
    Backoff, Denial, Jitter, Moment, NodeHandle, Reminder, RenewalTime, Report, RotationStrategy, valid_for,
};
use crate::upstream::{BundleChanges, SignOutcome, UpstreamError};

/// How the agent syncs, checked.
#[derive(Clone, Debug)]
pub struct SyncSettings {
    /// Between polls of a server that cannot push (`sync_interval`).
    pub sync_interval: Duration,
    /// How many X509-SVIDs are held although nobody wants them now (`x509_svid_cache_max_size`).
    pub x509_svid_cache_max_size: usize,
    /// When X509-SVIDs are renewed (`availability_target`).
    pub rotation: RotationStrategy,
    /// Key type of workloads' SVIDs (`workload_x509_svid_key_type`).
    pub workload_key_type: KeyType,
    /// Told to the server.
    pub agent_version: String,
}

/// Keeps the cache as the server wants it.
#[derive(Debug)]
pub struct Synchronizer {
    cache: SvidCache,
    node: NodeHandle,
    settings: SyncSettings,
    clock: Clock,
    jitter: Jitter,
    counters: Arc<SyncCounters>,
}

impl Default for SyncSettings {
    fn default() -> Self {
        Self {
            sync_interval: Duration::from_secs(5),
            x509_svid_cache_max_size: 1000,
            rotation: RotationStrategy::default(),
            workload_key_type: KeyType::EcP256,
            agent_version: String::new(),
        }
    }
}

impl Synchronizer {
    /// Prepares syncing into `cache`. There must be one for each cache.
    pub fn new(
        cache: SvidCache,
        node: NodeHandle,
        settings: SyncSettings,
        clock: Clock,
        jitter: Jitter,
    ) -> Self {
        Self {
            cache,
            node,
            settings,
            clock,
            jitter,
            counters: Arc::default(),
        }
    }

    /// How syncing goes.
    pub fn counters(&self) -> Arc<SyncCounters> {
        Arc::clone(&self.counters)
    }

    /// Syncs until stopped. Waits by itself until the agent has an SVID.
    ///
    /// # Errors
    /// None; the type is what task sets expect.
    pub async fn run(self, stop: Stop) -> Result<(), Infallible> {
        let (sender, updates) = mpsc::channel(UPDATES);
        let resync = Arc::new(Notify::new());
        let feed = Feed::new(
            self.node.clone(),
            FeedSettings {
                sync_interval: self.settings.sync_interval,
                agent_version: self.settings.agent_version.clone(),
            },
            sender,
            Arc::clone(&resync),
            self.counters,
            self.jitter.clone(),
        );
        let jwt = self.cache.jwt_cache().clone();
        let wit = self.cache.wit_cache().cloned();
        let renew_wit = async {
            match wit {
                Some(wit) => wit.renew().await,
                None => std::future::pending().await,
            }
        };
        let writer = Writer {
            model: Model::new(
                self.node.own_bundle(),
                self.settings.x509_svid_cache_max_size,
                Arc::clone(self.cache.counters()),
                Moment::now(&self.clock),
            ),
            keys: Arc::new(KeyPool::new(self.settings.workload_key_type)),
            hold: Backoff::new(HOLD_FIRST, HOLD_LIMIT, self.jitter.clone()),
            held_until: None,
            is_failing: false,
            reminder: Reminder::default(),
            batch_limit: MAX_BATCH,
            batches: FuturesUnordered::new(),
            rotation: self.settings.rotation,
            is_falling_back: false,
            cache: self.cache,
            node: self.node,
            clock: self.clock,
            jitter: self.jitter,
            resync,
        };
        tokio::select! {
            () = stop.stopped() => {}
            () = feed.run() => {}
            () = writer.run(updates) => {}
            () = jwt.renew() => {}
            () = renew_wit => {}
        }
        Ok(())
    }
}

type Batch = Pin<Box<dyn Future<Output = BatchOutcome> + Send>>;

struct Writer {
    model: Model,
    cache: SvidCache,
    node: NodeHandle,
    keys: Arc<KeyPool>,
    clock: Clock,
    jitter: Jitter,
    resync: Arc<Notify>,
    rotation: RotationStrategy,
    /// The last SVID was too short-lived for the availability target.
    is_falling_back: bool,
    /// Halved when a batch fails, doubled when one succeeds.
    batch_limit: usize,
    batches: FuturesUnordered<Batch>,
    /// Nothing is signed before, after a batch failed.
    held_until: Option<Instant>,
    hold: Backoff,
    /// The last batch failed, and nothing was heard of the server since.
    is_failing: bool,
    /// Of batches that fail.
    reminder: Reminder,
}

impl Writer {
    async fn run(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut own_bundle = self.node.bundle();
        let mut svid = self.node.svid();
        let mut state = self.node.state();
        own_bundle.mark_changed();
        loop {
            let wait = self.work();
            self.keys.refill();
            tokio::select! {
                biased;
                update = updates.recv() => match update {
                    Some(update) => self.apply(update),
                    None => return,
                },
                Some(outcome) = self.batches.next() => self.finish(outcome),
                () = self.cache.subscribers().touched() => {}
                Ok(()) = own_bundle.changed() => {
                    let bundle = Arc::clone(&own_bundle.borrow_and_update());
                    let forget = self.model.set_own_bundle(bundle, Instant::now());
                    self.forget(&forget);
                }
                Ok(()) = svid.changed() => {}
                Ok(()) = state.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
            // What came together is published together.
            while let Ok(update) = updates.try_recv() {
                self.apply(update);
            }
        }
    }

    /// Does what is due, publishes what came of it, and returns how long there is nothing to do.
    fn work(&mut self) -> Duration {
        self.note_subscriptions();
        let now = Moment::now(&self.clock);
        self.model.advance(now);
        let pause = self
            .held_until
            .map(|until| until.saturating_duration_since(now.passed));
        let may_sign = self.node.svid().borrow().is_some() && pause.is_none_or(|left| left.is_zero());
        // Expensive keys are ordered a few at a time, so that the first SVID does not wait for the last key.
        let most = if self.keys.is_cheap() {
            MAX_BATCH
        } else {
            EXPENSIVE_BATCH
        };
        while may_sign && self.model.ready() > 0 && self.batches.len() < MAX_CONCURRENT {
            self.sign(self.batch_limit.min(most));
        }
        if let Some((snapshot, news)) = self.model.snapshot() {
            self.cache.publish_news(snapshot, &news);
        }
        let held = pause.filter(|_| self.model.ready() > 0 && !may_sign);
        self.cache
            .note_signing_trouble(self.is_failing || self.node.is_cut_off());
        let next = self.model.next();
        let next = next.map(|at| Duration::try_from(at - now.clock).unwrap_or(Duration::ZERO));
        let wait = [next, held].into_iter().flatten().min();
        let wait = wait.unwrap_or(LONGEST_SLEEP);
        // Not too long, for the clock may be set; not too short, for what is due now may have to wait.
        wait.clamp(SHORTEST_SLEEP, LONGEST_SLEEP)
    }

    fn apply(&mut self, update: Update) {
        match update {
            Update::Entries { upserts, removals } => {
                let subscribers = self.cache.subscribers();
                let forget = self
                    .model
                    .apply_entries(upserts, &removals, &|entry| subscribers.is_wanted(entry));
                self.forget(&forget);
            }
            Update::Bundles(mut changes) => {
                if let Some(own) = changes.own.take() {
                    // It comes back by the watch, like the bundle of an attestation.
                    self.node.adopt_bundle(own);
                }
                self.model.apply_federated(BundleChanges { own: None, ..changes });
            }
            Update::Confirmed => {
                self.is_failing = false;
                if self.held_until.take().is_some() {
                    self.model.retry_now();
                }
                let now = self.clock.now();
                self.model.confirmed(now);
                self.cache.confirm_sync(now);
            }
        }
    }

    /// Takes up who began or ceased to want something.
    fn note_subscriptions(&mut self) {
        let subscribers = self.cache.subscribers();
        for selectors in subscribers.take_touched() {
            self.model
                .touched(&selectors, &|entry| subscribers.is_wanted(entry));
        }
    }

    fn sign(&mut self, most: usize) {
        let wanted = self.model.start_signing(most);
        let batch = sign_batch(self.node.upstream().clone(), Arc::clone(&self.keys), wanted);
        self.batches.push(Box::pin(batch));
    }

    fn finish(&mut self, outcome: BatchOutcome) {
        for wanted in &outcome.wanted {
            self.model.stop_signing(&wanted.entry_id);
        }
        let answers = match outcome.answer {
            Ok(answers) => answers,
            Err(error) => return self.batch_failed(&error),
        };
        self.batch_limit = (self.batch_limit * 2).min(MAX_BATCH);
        self.hold.reset();
        self.held_until = None;
        self.is_failing = false;
        if self.reminder.end() {
            tracing::info!("X509-SVIDs are signed again");
        }
        let mut repeated = 0;
        for (wanted, (key, answer)) in outcome.wanted.into_iter().zip(answers) {
            let done = match answer {
                SignOutcome::Signed(chain) => self.issued(&wanted, chain, key),
                SignOutcome::NotFound(why) => {
                    if self.model.needs_resync(&wanted.entry_id) {
                        self.resync.notify_one();
                    }
                    Err(why)
                }
                SignOutcome::Failed(failure) => Err(failure.why),
            };
            if let Err(why) = done {
                self.item_failed(&wanted, &why, &mut repeated);
            }
        }
        if let Some(others) = repeated.checked_sub(MOST_REPEATED).filter(|others| *others > 0) {
            tracing::warn!(others, "more X509-SVIDs could not be signed, as before");
        }
    }

    /// Takes up what was signed, if it is of use.
    fn issued(
        &mut self,
        wanted: &SvidRequest,
        chain: Vec<Certificate>,
        key: Arc<PrivateKey>,
    ) -> Result<(), String> {
        let now = Moment::now(&self.clock);
        let svid = usable_svid(wanted, chain, key, now.clock)?;
        let leaf = svid.leaf().clone();
        let renewal = RenewalTime::of_new(self.rotation, &leaf, now, self.jitter.draw());
        self.model
            .issued(wanted, IssuedSvid::new(svid), renewal, now.passed)?;
        tracing::debug!(
            entry_id = wanted.entry_id, spiffe_id = %wanted.spiffe_id,
            serial = leaf.serial_hex(), expires_at = %leaf.not_after(),
            "X509-SVID issued"
        );
        self.note_fallback(wanted, &leaf);
        Ok(())
    }

    /// Says once that SVIDs are too short-lived for the availability target, and again after it was reached.
    fn note_fallback(&mut self, wanted: &SvidRequest, leaf: &Certificate) {
        let falls_back = self.rotation.falls_back(leaf);
        if falls_back && !self.is_falling_back {
            tracing::warn!(
                entry_id = wanted.entry_id, spiffe_id = %wanted.spiffe_id,
                "X509-SVIDs do not live long enough for availability_target; they are renewed at half of their life"
            );
        }
        self.is_falling_back = falls_back;
    }

    /// Has an entry tried again. What goes on for long is told of a few at a time, the most urgent first.
    fn item_failed(&mut self, wanted: &SvidRequest, why: &str, repeated: &mut usize) {
        let now = Moment::now(&self.clock);
        let failure = self.model.sign_failed(&wanted.entry_id, now.passed);
        let Some(failure) = failure.filter(|failure| failure.is_to_tell) else {
            return;
        };
        *repeated += usize::from(!failure.is_first);
        if *repeated <= MOST_REPEATED {
            let valid_for = failure.expires_at.map(|end| valid_for(end, now.clock));
            tracing::warn!(
                entry_id = wanted.entry_id, spiffe_id = %wanted.spiffe_id, error = why,
                expires_at = failure.expires_at.map(tracing::field::display),
                valid_for = valid_for.map(tracing::field::debug),
                "X509-SVID could not be signed; it is tried again"
            );
        }
    }

    fn batch_failed(&mut self, error: &BatchError) {
        if let BatchError::Upstream(error) = error {
            if matches!(error, UpstreamError::Superseded) {
                return;
            }
            if let Some(denial) = Denial::of(error) {
                self.node.report(Report::Denied(denial));
            }
        }
        self.is_failing = true;
        self.batch_limit = (self.batch_limit / 2).max(1);
        let now = Moment::now(&self.clock);
        if self.reminder.is_due(now.passed) {
            let expires_at = self.model.first_end();
            let valid_for = expires_at.map(|end| valid_for(end, now.clock));
            tracing::warn!(
                %error, waiting = self.model.ready(),
                expires_at = expires_at.map(tracing::field::display),
                valid_for = valid_for.map(tracing::field::debug),
                "X509-SVIDs could not be signed; they are tried again"
            );
        }
        // Not by the clock, which may be set back.
        self.held_until = now.passed.checked_add(self.hold.failed());
    }

    fn forget(&self, forget: &Forget) {
        if !forget.entries.is_empty() {
            self.cache.jwt_cache().forget_entries(&forget.entries);
        }
        if !forget.jwt_key_ids.is_empty() {
            self.cache.jwt_cache().forget_authorities(&forget.jwt_key_ids);
        }
        let Some(wit) = self.cache.wit_cache() else { return };
        if !forget.entries.is_empty() {
            wit.forget_entries(&forget.entries);
        }
        if !forget.wit_key_ids.is_empty() {
            wit.forget_authorities(&forget.wit_key_ids);
        }
    }
}

/// Updates that may wait for the writer.
const UPDATES: usize = 16;
/// As many as servers sign in one call.
const MAX_BATCH: usize = 500;
const EXPENSIVE_BATCH: usize = 4;
/// So that what was just pushed does not wait for a batch of renewals.
const MAX_CONCURRENT: usize = 3;
/// Entries of one batch of which is told again that they fail.
const MOST_REPEATED: usize = 10;
const HOLD_FIRST: Duration = Duration::from_millis(250);
const HOLD_LIMIT: Duration = Duration::from_secs(5);
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
const SHORTEST_SLEEP: Duration = Duration::from_millis(10);
