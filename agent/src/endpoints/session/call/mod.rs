//! One call of a workload, from the process that made it to the view that it has now.

mod verdict;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::grpc_timeout;
use futures_util::future::{Either, select};
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Status};

use self::verdict::Verdict;
use super::attestation::{attest, describe};
use super::recent::{Found, News};
use super::refusals::{Refused, refuse_unknown};
use super::statuses::{ending, stopping};
use super::view::{Selectors, View};
use super::{Access, SessionParts, Sessions, Shared};
use crate::endpoints::jwt_svids::signing_turns;
use crate::endpoints::limits::Admitted;
use crate::endpoints::listener::Caller;
use crate::node::NodeState;
use crate::svids::{CachedEntry, Snapshot, Subscription};
use crate::workload::Workload;

/// An attested call that lasts as long as its stream.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
    access: Access,
    workload: Workload,
    admitted: Arc<Admitted>,
    selectors: Arc<Selectors>,
    node: watch::Receiver<NodeState>,
    /// Tells of what concerns these selectors, and marks the identities as wanted when SVIDs are asked for.
    subscription: Subscription,
    opened: Instant,
    /// When the attestation that the selectors are from was begun, or later.
    attested: Instant,
    /// Nothing that was found out about the process before counts for what the caller gets next.
    new_since: Instant,
    /// The snapshot that was looked at last.
    seen: u64,
    /// How long the caller itself is going to wait.
    patience: Option<Duration>,
    /// Since when an identity has been waiting for its SVID.
    incomplete_since: Option<Instant>,
    /// Since then: whether it waits in vain.
    signing_trouble: Option<watch::Receiver<bool>>,
    /// Something was sent to the caller.
    answered: bool,
    /// Somebody else asks for the process.
    is_on_behalf: bool,
}

impl Session {
    /// Finds out who calls. The process is watched from then on, and attested again before it gets anything
    /// new: it may have given up the user or the groups that the first answer was for.
    ///
    /// # Errors
    /// `Unavailable` when it cannot be found out who calls; `PermissionDenied` on the socket of a pod when the caller is
    /// in another.
    pub async fn open<M>(sessions: &Sessions, request: &Request<M>, access: Access) -> Result<Self, Status> {
        let Some(Caller { peer, admitted }) = request.extensions().get() else {
            return Err(Status::internal("connection has no peer"));
        };
        let workload = match peer.workload() {
            Ok(workload) => workload,
            Err(error) => {
                let process = peer.process().ok();
                let refused = Refused {
                    at: sessions.shared.parts.clock.now(),
                    access,
                    pid: process.map_or(0, |process| process.pid()),
                    started_at: process.and_then(|process| process.started_at()),
                    selectors: None,
                    reason: error.to_string(),
                };
                let (refusals, holder) = (&sessions.shared.parts.refusals, admitted.accountable());
                let status = refuse_unknown(&error, refusals.is_repeated(holder, &refused));
                return Err(refusals.note(holder, refused, status));
            }
        };
        Self::of(sessions, workload, admitted, request.metadata(), access, false).await
    }

    /// A session about a workload for which an authorized delegate or broker asks. Identities
    /// that are only for the workload itself are left out, and without any the answer is a refusal.
    ///
    /// # Errors
    /// `Unavailable` when the workload cannot be attested.
    pub async fn on_behalf_of(
        sessions: &Sessions,
        workload: Workload,
        admitted: &Arc<Admitted>,
        metadata: &MetadataMap,
        access: Access,
    ) -> Result<Self, Status> {
        Self::of(sessions, workload, admitted, metadata, access, true).await
    }

    async fn of(
        sessions: &Sessions,
        workload: Workload,
        admitted: &Arc<Admitted>,
        metadata: &MetadataMap,
        access: Access,
        is_on_behalf: bool,
    ) -> Result<Self, Status> {
        let shared = Arc::clone(&sessions.shared);
        let selectors = attest(&shared, admitted, &workload, access, is_on_behalf).await?;
        let mut subscription = shared.parts.svids.observe(Arc::clone(&selectors));
        if access == Access::X509Svids {
            subscription.want();
        }
        Ok(Self {
            node: shared.parts.node.clone(),
            shared,
            access,
            workload,
            admitted: Arc::clone(admitted),
            selectors,
            subscription,
            opened: Instant::now(),
            attested: Instant::now(),
            new_since: Instant::now(),
            seen: 0,
            patience: grpc_timeout(metadata.as_ref()),
            incomplete_since: None,
            signing_trouble: None,
            answered: false,
            is_on_behalf,
        })
    }

    /// What the caller may have, as soon as there is something.
    ///
    /// # Errors
    /// `PermissionDenied` for a caller without identity, `Unavailable` for all other trouble.
    pub async fn view(&mut self) -> Result<Arc<View>, Status> {
        loop {
            let snapshot = self.present();
            let until = match self.judge(&snapshot) {
                Verdict::Ready(view) => return Ok(view),
                Verdict::End(status) => return Err(self.refused(status)),
                Verdict::Wait(until) => until,
            };
            drop(snapshot);
            self.changed_until(until).await?;
        }
    }

    /// What the caller may have now, without waiting for it.
    ///
    /// # Errors
    /// As [`Session::view`].
    pub fn glance(&mut self) -> Result<Option<Arc<View>>, Status> {
        let snapshot = self.present();
        match self.judge(&snapshot) {
            Verdict::Ready(view) => Ok(Some(view)),
            Verdict::Wait(_) => Ok(None),
            Verdict::End(status) => Err(self.refused(status)),
        }
    }

    /// From now on the caller's SVIDs are issued and renewed as long as the session exists.
    pub fn want_svids(&mut self) {
        self.subscription.want();
        self.subscription.hurry();
    }

    /// Waits for the caller's turns to have JWT-SVIDs signed, one for each entry that has none cached.
    pub async fn signing_turns(&self, entries: &[Arc<CachedEntry>], audience: &[String]) {
        signing_turns(&self.admitted, &self.shared.parts.svids, entries, audience).await;
    }

    /// Waits for the caller's turn to have one token signed.
    pub async fn signing_turn(&self) {
        self.admitted.signature().await;
    }

    /// How long ago the process was attested.
    pub fn attested_ago(&self) -> Duration {
        self.attested.elapsed()
    }

    /// The process that made the call; 0 when only its pod is known.
    pub fn pid(&self) -> u32 {
        self.workload.pid()
    }

    /// Notes that the caller has got an answer. A stream that has given something is not ended for want of an
    /// identity that may yet come.
    pub fn mark_answered(&mut self) {
        self.answered = true;
    }

    /// Whether the same holds for the process as before; to be asked before it gets anything new. If not, what
    /// holds now is taken up, and [`Session::view`] shows it.
    ///
    /// # Errors
    /// When the process has ended or cannot be attested, or no more can be sent.
    pub async fn attest_again(&mut self) -> Result<bool, Status> {
        let known = match &self.workload {
            Workload::Process(process) => self.shared.recent.find(process, self.news()),
            Workload::Pod(_) => None,
        };
        let found = match known {
            Some(found) => found,
            // Seldom, so the room for it is not in each stream.
            None => Box::pin(self.find_out()).await?,
        };
        Ok(self.take_up(found))
    }

    /// What the caller gets next did not exist until now, or it has asked for it only now: what was found out about the
    /// process before proves nothing for it. Snapshots need no such mark.
    pub fn mark_new(&mut self) {
        self.new_since = Instant::now();
    }

    fn news(&self) -> News {
        News {
            since: self.attested.max(self.new_since),
            version: self.seen,
        }
    }

    /// What holds for the workload now, by an attestation that is under way for another stream, or by its own.
    async fn find_out(&self) -> Result<Found, Status> {
        let Workload::Process(process) = &self.workload else {
            let begun = Instant::now();
            let selectors = self.attest_alone().await?;
            return Ok(Found { selectors, begun });
        };
        let (recent, news) = (&self.shared.recent, self.news());
        if let Some(mut end) = recent.under_way(process, news) {
            self.during(async { while end.changed().await.is_ok() {} })
                .await?;
            if let Some(found) = recent.find(process, news) {
                return Ok(found);
            }
        }
        let turn = recent.begin(process, news);
        match self.attest_alone().await {
            Ok(selectors) => Ok(turn.succeeded(selectors)),
            Err(status) => {
                turn.failed();
                Err(status)
            }
        }
    }

    async fn attest_alone(&self) -> Result<Arc<Selectors>, Status> {
        let attested = attest(
            &self.shared,
            &self.admitted,
            &self.workload,
            self.access,
            self.is_on_behalf,
        );
        self.during(attested).await?
    }

    /// Whether the selectors are those as before.
    fn take_up(&mut self, found: Found) -> bool {
        self.attested = found.begun;
        let selectors = found.selectors;
        if Arc::ptr_eq(&selectors, &self.selectors) || *selectors == *self.selectors {
            return true;
        }
        tracing::info!(
            pid = self.workload.pid(),
            "other facts hold for a workload than when it opened its stream"
        );
        // The new subscription comes before the old one goes: what both want is kept.
        self.subscription = self.subscription.with_selectors(Arc::clone(&selectors));
        self.selectors = selectors;
        (self.incomplete_since, self.signing_trouble) = (None, None);
        false
    }

    /// Completes when the view may be another.
    ///
    /// # Errors
    /// When no more can be sent.
    pub async fn changed(&mut self) -> Result<(), Status> {
        self.changed_until(None).await
    }

    /// Does work for the caller, for as long as something can be sent to it.
    ///
    /// # Errors
    /// When no more can be sent.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> Result<T, Status> {
        match select(pin!(ended(&self.workload, &self.shared)), pin!(work)).await {
            Either::Left((status, _)) => Err(status),
            Either::Right((done, _)) => Ok(done),
        }
    }

    /// The present snapshot; changes of it from now on are waited for.
    fn present(&mut self) -> Arc<Snapshot> {
        self.subscription.mark_seen();
        let snapshot = self.shared.parts.svids.snapshot();
        self.seen = snapshot.version;
        snapshot
    }

    /// Gives a denial the code by which an operator finds out more. Other statuses stay as they are.
    pub fn refused(&self, status: Status) -> Status {
        if status.code() != Code::PermissionDenied || self.is_own_process() {
            return status;
        }
        let refused = Refused {
            selectors: Some(Arc::clone(&self.selectors)),
            ..describe(&self.shared, &self.workload, self.access, status.message())
        };
        let SessionParts { policy, refusals, .. } = &self.shared.parts;
        if let Some(selectors) = policy.logged_selectors.among(&self.selectors)
            && !refusals.is_repeated(self.admitted.accountable(), &refused)
        {
            let method = self.access.method();
            tracing::warn!(
                pid = refused.pid,
                method,
                registered = false,
                selectors,
                "no identity issued"
            );
        }
        refusals.note(self.admitted.accountable(), refused, status)
    }

    /// The agent itself asks for its health, and must not wait long for an identity that it may never have.
    fn is_own_process(&self) -> bool {
        self.workload.pid() == self.shared.parts.own_pid && !self.is_on_behalf
    }

    /// Completes when the content may be another, or at `until`.
    ///
    /// # Errors
    /// When no more can be sent.
    pub async fn changed_until(&mut self, until: Option<Instant>) -> Result<(), Status> {
        let trouble = &mut self.signing_trouble;
        // Nearly all streams wait for neither, so the room for it is not in each of them.
        let mut seldom = (until.is_some() || trouble.is_some()).then(|| Box::pin(seldom(until, trouble)));
        let seldom = async {
            match &mut seldom {
                Some(seldom) => seldom.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            status = ended(&self.workload, &self.shared) => Err(status),
            () = self.subscription.changed() => Ok(()),
            outcome = self.node.changed() => outcome.map_err(|_gone| stopping()),
            () = seldom => Ok(()),
        }
    }
}

/// Completes at `until`, or when it becomes or ceases to be worth while to wait for signatures.
async fn seldom(until: Option<Instant>, trouble: &mut Option<watch::Receiver<bool>>) {
    let elapsed = async {
        match until {
            Some(until) => tokio::time::sleep_until(until).await,
            None => std::future::pending().await,
        }
    };
    let trouble = async {
        match trouble {
            // The cache lives as long as the session.
            Some(trouble) => {
                let _gone = trouble.changed().await;
            }
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = elapsed => {}
        () = trouble => {}
    }
}

/// Completes when no more can be sent, with the reason.
async fn ended(workload: &Workload, shared: &Shared) -> Status {
    tokio::select! {
        how = workload.ended() => Status::unavailable(how),
        () = shared.parts.stop.stopped() => ending(&shared.parts.node),
    }
}
