//! Rotates the authorities: a step that does what is due, and the loop around it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::tasks::Stop;
use finial_identity::process::with_causes;
use time::OffsetDateTime;
use tonic::Code;
use tracing::{error, info};

use super::journal::{AuthorityKind, Journal};
use super::lifecycle::{Action, next_action};
use super::records::BundleChange;
use super::{AuthorityError, AuthorityManager, Working};
use crate::telemetry::metrics;

/// The longest pause between two looks at the clock.
const INTERVAL: Duration = Duration::from_secs(10);
const PRUNE_BUNDLE_EVERY: time::Duration = time::Duration::hours(6);
const PRUNE_JOURNALS_EVERY: time::Duration = time::Duration::hours(8);
/// Authorities stay in the bundle for a while after they expired, for peers whose clocks run late.
const KEPT_IN_BUNDLE: time::Duration = time::Duration::hours(24);
/// An authority changes at most from nothing over prepared to active, and once more.
const MOST_ACTIONS: usize = 4;

/// What the loop remembers between its steps.
#[derive(Debug, Default)]
pub(super) struct Rotation {
    bundle_pruned: Option<OffsetDateTime>,
    journals_pruned: Option<OffsetDateTime>,
    /// The last failure of each task, so that it is logged when it changes and not each time.
    failures: [Option<String>; 6],
}

#[derive(Clone, Copy)]
enum Task {
    X509,
    Jwt,
    Wit,
    ServerSvid,
    PruneBundle,
    PruneJournals,
}

impl AuthorityManager {
    /// Works until `stop`.
    pub async fn run(self: Arc<Self>, stop: Stop) -> Result<(), Infallible> {
        loop {
            let due = self.step().await;
            let pause = Duration::try_from(due - self.clock.now()).unwrap_or(Duration::ZERO);
            // A moment that has just come is looked at a little later, not in a busy loop.
            let pause = pause.clamp(Duration::from_millis(100), INTERVAL);
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does whatever is due and returns when to be called next. Failures are logged and tried again at the next call.
    pub async fn step(self: &Arc<Self>) -> OffsetDateTime {
        let mut working = self.working.lock().await;
        let mut next = self.clock.now() + INTERVAL;
        for kind in self.kinds() {
            let result = self.rotate(&mut working, kind).await;
            next = next.min(working.rotation.note(Task::of(kind), result).unwrap_or(next));
        }
        let result = self.renew_server_svid().await;
        next = next.min(working.rotation.note(Task::ServerSvid, result).unwrap_or(next));
        self.prune(&mut working).await;
        next
    }

    /// The first step after recovery. It may fail only where there is nothing to continue with.
    pub(super) async fn initialize(self: &Arc<Self>) -> Result<(), AuthorityError> {
        let mut working = self.working.lock().await;
        for kind in self.kinds() {
            let result = self.rotate(&mut working, kind).await;
            if working.slots(kind).current.is_none() {
                result?;
            } else {
                working.rotation.note(Task::of(kind), result);
            }
        }
        self.renew_server_svid().await?;
        Ok(())
    }

    /// Prepares and activates what is due and returns when the next thing will be.
    async fn rotate(
        &self,
        working: &mut Working,
        kind: AuthorityKind,
    ) -> Result<OffsetDateTime, AuthorityError> {
        for _ in 0..MOST_ACTIONS {
            match next_action(working.slots(kind).lifecycle(), self.clock.now()) {
                Action::Prepare => self.prepare_authority(working, kind).await?,
                Action::Activate => self.activate_authority(working, kind).await?,
                Action::Wait(until) => return Ok(until),
            }
        }
        Ok(self.clock.now() + INTERVAL)
    }

    async fn prune(&self, working: &mut Working) {
        let now = self.clock.now();
        // At once after a start: the server may never run for long.
        let pruned = working.rotation.bundle_pruned;
        if pruned.is_none_or(|pruned| now - pruned >= PRUNE_BUNDLE_EVERY) {
            working.rotation.bundle_pruned = Some(now);
            let timer = metrics().start("ca_manager_bundle_prune");
            let result = timer.around(self.prune_bundle(now), |_| Code::Internal).await;
            working.rotation.note(Task::PruneBundle, result);
        }
        let started = *working.rotation.journals_pruned.get_or_insert(now);
        if now - started >= PRUNE_JOURNALS_EVERY {
            working.rotation.journals_pruned = Some(now);
            let result = self.prune_journals(now, &working.journal).await;
            working.rotation.note(Task::PruneJournals, result);
        }
    }

    /// Removes what expired more than a day ago from the bundle.
    async fn prune_bundle(&self, now: OffsetDateTime) -> Result<(), AuthorityError> {
        self.records
            .change_bundle(BundleChange::Prune(now.saturating_sub(KEPT_IN_BUNDLE)))
            .await
            .map_err(|error| AuthorityError::internal("prune the bundle", error))
    }

    /// Removes the journals of servers that are long gone.
    async fn prune_journals(&self, now: OffsetDateTime, own: &Journal) -> Result<(), AuthorityError> {
        let failed = |error| AuthorityError::internal("prune the journals of authorities", error);
        for journal in self.records.journals().await.map_err(failed)? {
            if journal.is_forgettable(now) && journal.id != own.id {
                self.records.delete_journal(&journal.id).await.map_err(failed)?;
                info!(journal_id = journal.id, "journal of an absent server removed");
            }
        }
        Ok(())
    }
}

impl Rotation {
    /// Logs a failure on its first time and on change, and the recovery from it.
    fn note<T>(&mut self, task: Task, result: Result<T, AuthorityError>) -> Option<T> {
        let last = &mut self.failures[task as usize];
        match result {
            Ok(value) => {
                if last.take().is_some() {
                    info!(task = task.name(), "works again");
                }
                Some(value)
            }
            Err(failure) => {
                let text = with_causes(&failure);
                if last.as_deref() != Some(text.as_str()) {
                    error!(task = task.name(), error = text, "failed, will be tried again");
                    *last = Some(text);
                }
                None
            }
        }
    }
}

impl Task {
    fn of(kind: AuthorityKind) -> Self {
        match kind {
            AuthorityKind::X509 => Self::X509,
            AuthorityKind::Jwt => Self::Jwt,
            AuthorityKind::Wit => Self::Wit,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::X509 => "rotate the X.509 authority",
            Self::Jwt => "rotate the JWT authority",
            Self::Wit => "rotate the WIT authority",
            Self::ServerSvid => "renew the server's SVID",
            Self::PruneBundle => "prune the bundle",
            Self::PruneJournals => "prune the journals",
        }
    }
}
