//! Gets the agent's entries and bundles from the server: by push, or by polling a server that cannot push.
//!
//! The feed keeps an index of what it has passed on, so that the rest of the agent gets only the differences of a
//! snapshot, and so that its digest can be compared with the server's. A difference is never ignored: the
//! next stream starts without a cursor.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use finial_identity::wire::DigestSum;
use futures_util::{StreamExt, stream};
use tokio::sync::Notify;
use tokio::sync::mpsc::{self, OwnedPermit};

use super::index::Index;
use crate::node::{Backoff, Denial, Jitter, NodeHandle, Report};
use crate::upstream::{
    AuthorizedEntry, BundleChanges, Cursor, FederatedBundle, ReceivedEntry, UpstreamError, WatchEvent,
    WatchStream,
};

/// An update from the server.
#[derive(Debug)]
pub(super) enum Update {
    Entries {
        upserts: Vec<AuthorizedEntry>,
        removals: Vec<String>,
    },
    Bundles(BundleChanges),
    /// The server confirmed that what was passed on is what there is.
    Confirmed,
}

/// How syncing went so far.
#[derive(Debug, Default)]
pub struct SyncCounters {
    digest_mismatches: AtomicU64,
    snapshots: AtomicU64,
    deltas: AtomicU64,
    polls: AtomicU64,
    is_pushed: AtomicBool,
}

/// The side of syncing that reads.
#[derive(Debug)]
pub(super) struct Feed {
    node: NodeHandle,
    settings: FeedSettings,
    updates: mpsc::Sender<Update>,
    resync: Arc<Notify>,
    counters: Arc<SyncCounters>,
    jitter: Jitter,
    index: Index,
    cursor: Cursor,
    backoff: Backoff,
    /// Streams in a row that had to be started over.
    restarts: Backoff,
}

#[derive(Clone, Debug)]
pub(super) struct FeedSettings {
    pub(super) sync_interval: Duration,
    pub(super) agent_version: String,
}

/// Why a stream, or polling, ended.
#[derive(Debug)]
enum End {
    /// Start again at once: there is a new SVID, or another server at the other end.
    Again,
    /// The server does not know an entry that it has sent.
    Resync,
    /// What is held differs from what the server has: start again without a cursor.
    Differs(&'static str),
    Failed(UpstreamError),
    /// Nobody listens any more.
    Closed,
}

impl SyncCounters {
    /// How often the digest of what was held differed from the server's.
    pub fn digest_mismatches(&self) -> u64 {
        self.digest_mismatches.load(Ordering::Relaxed)
    }

    /// Snapshots that were pushed.
    pub fn snapshots(&self) -> u64 {
        self.snapshots.load(Ordering::Relaxed)
    }

    /// Deltas that were pushed.
    pub fn deltas(&self) -> u64 {
        self.deltas.load(Ordering::Relaxed)
    }

    /// Polls that succeeded.
    pub fn polls(&self) -> u64 {
        self.polls.load(Ordering::Relaxed)
    }

    /// Whether the server, as last connected to, says by itself what changes.
    pub fn is_pushed(&self) -> bool {
        self.is_pushed.load(Ordering::Relaxed)
    }
}

impl Feed {
    pub(super) fn new(
        node: NodeHandle,
        settings: FeedSettings,
        updates: mpsc::Sender<Update>,
        resync: Arc<Notify>,
        counters: Arc<SyncCounters>,
        jitter: Jitter,
    ) -> Self {
        let limit = (settings.sync_interval * 3).clamp(Duration::from_secs(1), Duration::from_secs(60));
        Self {
            node,
            updates,
            resync,
            counters,
            index: Index::default(),
            cursor: Cursor::default(),
            backoff: Backoff::new(FIRST_RETRY.min(limit), limit, jitter.clone()),
            restarts: Backoff::new(FIRST_RETRY.min(limit), limit, jitter.clone()),
            settings,
            jitter,
        }
    }

    /// Reads until the receiver is dropped.
    pub(super) async fn run(mut self) {
        let mut svid = self.node.svid();
        let mut given_up = self.node.upstream().given_up();
        loop {
            if svid.wait_for(Option::is_some).await.is_err() {
                return;
            }
            given_up.mark_unchanged();
            let end = tokio::select! {
                // First: what the old connection does in the same turn is not to be held against the next one.
                biased;
                Ok(()) = given_up.changed() => End::Again,
                changed = svid.changed() => if changed.is_ok() { End::Again } else { End::Closed },
                end = self.session() => end,
            };
            let wait = match end {
                End::Closed => return,
                End::Again | End::Failed(UpstreamError::Superseded) => continue,
                End::Resync => {
                    self.cursor = Cursor::default();
                    continue;
                }
                End::Differs(what) => self.start_over(what),
                End::Failed(error) => {
                    let is_given_up = given_up.has_changed().unwrap_or(true);
                    self.failed(&error, is_given_up)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                _changed = svid.changed() => {}
            }
        }
    }

    async fn session(&mut self) -> End {
        let digest = (!self.cursor.is_empty()).then(|| self.index.sum());
        let upstream = self.node.upstream().clone();
        let opened = upstream
            .watch(&self.cursor, digest, &self.settings.agent_version)
            .await;
        match opened {
            Ok(stream) => {
                self.node.report(Report::Reachable);
                self.counters.is_pushed.store(true, Ordering::Relaxed);
                self.follow(stream).await
            }
            Err(UpstreamError::Unimplemented(_)) => {
                self.counters.is_pushed.store(false, Ordering::Relaxed);
                self.poll().await
            }
            Err(error) => End::Failed(error),
        }
    }

    /// Follows a push stream to its end.
    async fn follow(&mut self, mut stream: WatchStream) -> End {
        let resync = Arc::clone(&self.resync);
        let mut parts = Vec::new();
        let mut silence = FIRST_SILENCE;
        loop {
            let event = tokio::select! {
                () = resync.notified() => return End::Resync,
                event = tokio::time::timeout(silence, stream.next()) => event,
            };
            let event = match event {
                Ok(Ok(event)) => event,
                Ok(Err(error)) => return End::Failed(error),
                Err(_elapsed) => {
                    self.node.upstream().prefer_another_address();
                    return End::Failed(UpstreamError::Unavailable(
                        "watch: the stream fell silent".to_owned(),
                    ));
                }
            };
            if let WatchEvent::Heartbeat { interval, .. } = &event {
                silence = *interval * SILENT_BEATS + Duration::from_secs(1);
            }
            if let Err(end) = self.apply(event, &mut parts).await {
                return end;
            }
        }
    }

    async fn apply(&mut self, event: WatchEvent, parts: &mut Vec<ReceivedEntry>) -> Result<(), End> {
        match event {
            WatchEvent::Snapshot { mut entries, end } => {
                parts.append(&mut entries);
                if parts.len() > MAX_ENTRIES {
                    return Err(End::Failed(UpstreamError::Malformed(format!(
                        "more than {MAX_ENTRIES} entries"
                    ))));
                }
                let Some((cursor, digest)) = end else {
                    return Ok(());
                };
                let received = std::mem::take(parts);
                let permit = self.permit().await?;
                if DigestSum::of(received.iter().map(|entry| entry.digest)).value() != digest {
                    return Err(End::Differs("digest of a snapshot"));
                }
                self.counters.snapshots.fetch_add(1, Ordering::Relaxed);
                permit.send(self.index.replace(received));
                self.cursor = cursor;
                self.confirm().await
            }
            WatchEvent::Delta {
                from,
                to,
                upserts,
                removals,
                digest,
            } => {
                if from != self.cursor {
                    return Err(End::Differs("a delta does not follow on what is held"));
                }
                if self.index.sum_after(&upserts, &removals) != digest {
                    return Err(End::Differs("digest after a delta"));
                }
                let permit = self.permit().await?;
                self.counters.deltas.fetch_add(1, Ordering::Relaxed);
                permit.send(self.index.step(upserts, removals));
                self.cursor = to;
                self.confirm().await
            }
            WatchEvent::Bundles(changes) => {
                self.permit().await?.send(Update::Bundles(changes));
                Ok(())
            }
            WatchEvent::Heartbeat { cursor, digest, .. } => {
                if self.cursor.is_empty() {
                    return Ok(());
                }
                if self.index.sum() != digest {
                    return Err(End::Differs("digest of a heartbeat"));
                }
                self.cursor = cursor;
                self.confirm().await
            }
        }
    }

    /// Polls for as long as the connection lasts; another connection may lead to a server that pushes.
    async fn poll(&mut self) -> End {
        let resync = Arc::clone(&self.resync);
        let upstream = self.node.upstream().clone();
        let connection = upstream.connections();
        self.cursor = Cursor::default();
        loop {
            if let Err(end) = self.poll_once().await {
                return end;
            }
            let interval = self.jitter.around(self.settings.sync_interval);
            tokio::select! {
                () = tokio::time::sleep(interval) => {}
                () = resync.notified() => {}
            }
            if upstream.connections() != connection {
                return End::Again;
            }
        }
    }

    async fn poll_once(&mut self) -> Result<(), End> {
        let upstream = self.node.upstream().clone();
        let index = &self.index;
        let polled = upstream
            .authorized_entries(|id| index.stamp(id))
            .await
            .map_err(End::Failed)?;
        self.node.report(Report::Reachable);
        let permit = self.permit().await?;
        permit.send(self.index.merge(polled));
        let own = upstream.bundle().await.map_err(End::Failed)?;
        let names = self.index.federates_with();
        let mut fetches = stream::iter(names)
            .map(|name| {
                let upstream = upstream.clone();
                async move {
                    let fetched = upstream.federated_bundle(&name).await;
                    (name, fetched)
                }
            })
            .buffer_unordered(CONCURRENT_BUNDLES);
        let (mut federated, mut kept) = (Vec::new(), Vec::new());
        while let Some((name, fetched)) = fetches.next().await {
            match fetched.map_err(End::Failed)? {
                FederatedBundle::Present(bundle) => federated.push(*bundle),
                FederatedBundle::Absent => {}
                FederatedBundle::Unusable => kept.push(name),
            }
        }
        drop(fetches);
        self.permit().await?.send(Update::Bundles(BundleChanges {
            own: Some(own),
            federated,
            kept,
            removed: Vec::new(),
            complete: true,
        }));
        self.counters.polls.fetch_add(1, Ordering::Relaxed);
        self.confirm().await
    }

    /// What is held is what the server has. Nothing less tells that there is no need to wait before another try.
    async fn confirm(&mut self) -> Result<(), End> {
        self.backoff.reset();
        self.restarts.reset();
        self.node.report(Report::Reachable);
        self.permit().await?.send(Update::Confirmed);
        Ok(())
    }

    /// Room for an update. Asked for before the index changes, because a session can be dropped at any await:
    /// what the index says was passed on must have been.
    async fn permit(&self) -> Result<OwnedPermit<Update>, End> {
        let updates = self.updates.clone();
        updates.reserve_owned().await.map_err(|_closed| End::Closed)
    }

    /// The next stream brings a snapshot: at once, unless the last one did not help either.
    fn start_over(&mut self, what: &'static str) -> Duration {
        self.counters.digest_mismatches.fetch_add(1, Ordering::Relaxed);
        self.cursor = Cursor::default();
        let first = self.restarts.failures() == 0;
        let wait = self.restarts.failed();
        tracing::warn!(
            what,
            "the agent asks for a snapshot because what it holds may differ from what the server has"
        );
        if first { Duration::ZERO } else { wait }
    }

    /// Failures in a row take the agent to another server, unless the connection was given up already.
    fn failed(&mut self, error: &UpstreamError, is_given_up: bool) -> Duration {
        // A stream that ended with its connection is opened again at once; the server may have moved on.
        let first = self.backoff.failures() == 0;
        match Denial::of(error) {
            Some(denial) => self.node.report(Report::Denied(denial)),
            None if first => {}
            None => {
                self.node.report(Report::Unreachable(error.clone()));
                // When what all of them share fails, each new connection would be as good as the last.
                let is_due = self.backoff.failures().is_power_of_two();
                if is_due && error.may_be_of_one_server() && !is_given_up {
                    self.node.upstream().prefer_another_address();
                }
            }
        }
        if matches!(error, UpstreamError::Malformed(_)) {
            self.cursor = Cursor::default();
        }
        let wait = self.backoff.failed();
        if first {
            self.jitter.around(QUICK_RETRY)
        } else {
            wait
        }
    }
}

const FIRST_RETRY: Duration = Duration::from_millis(500);
/// After the first failure in a row.
const QUICK_RETRY: Duration = Duration::from_millis(50);
/// How long a stream may send nothing before its first heartbeat, which has the interval.
const FIRST_SILENCE: Duration = Duration::from_secs(100);
/// How many heartbeats may be missed.
const SILENT_BEATS: u32 = 3;
const CONCURRENT_BUNDLES: usize = 10;
const MAX_ENTRIES: usize = 1_000_000;
