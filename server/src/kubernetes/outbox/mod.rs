//! What goes back to the cluster: statuses of objects ([`statuses`]) and Events on pods that something is wrong with
//! ([`events`]). What is newer replaces what waits; a write that fails is tried again.

mod events;
mod statuses;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use finial_identity::process::{Clock, Stop};
use kube::Client;
use time::OffsetDateTime;
use tokio::sync::Notify;
use tokio::time::sleep;

use super::derive::{PodProblem, RuleStatus, StaticStatus};
use super::federations::FederationStatus;
use events::Events;
pub(super) use statuses::{Before, Said};
use statuses::{NotWritten, Statuses};

/// How long changes are collected before they are written.
const COLLECT: Duration = Duration::from_secs(1);
/// The longest pause before what the API server did not take is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    rules: Statuses<RuleStatus>,
    statics: Statuses<StaticStatus>,
    federations: Statuses<FederationStatus>,
    events: Events,
}

impl Outbox {
    pub(super) fn put_rule(&self, name: Arc<str>, status: RuleStatus, before: Before<RuleStatus>) {
        self.lock().rules.put(name, status, before);
        self.news.notify_one();
    }

    pub(super) fn put_static(&self, name: Arc<str>, status: StaticStatus, before: Before<StaticStatus>) {
        self.lock().statics.put(name, status, before);
        self.news.notify_one();
    }

    pub(super) fn put_federation(
        &self,
        name: Arc<str>,
        status: FederationStatus,
        before: Before<FederationStatus>,
    ) {
        self.lock().federations.put(name, status, before);
        self.news.notify_one();
    }

    /// Everything that is to be said, against statuses that others wrote or that a restored cluster brought back.
    pub(super) fn put_all(
        &self,
        rules: Vec<Said<RuleStatus>>,
        statics: Vec<Said<StaticStatus>>,
        federations: Vec<Said<FederationStatus>>,
    ) {
        let mut waiting = self.lock();
        waiting.rules.put_all(rules);
        waiting.statics.put_all(statics);
        waiting.federations.put_all(federations);
        drop(waiting);
        self.news.notify_one();
    }

    /// Something is newly wrong with a pod.
    pub(super) fn put_problem(&self, problem: PodProblem, now: OffsetDateTime) {
        if self.lock().events.put(problem, now) {
            self.news.notify_one();
        }
    }

    /// All that is wrong with pods now: those of which nobody was told yet, as there were too many, have their turn.
    pub(super) fn offer_problems(&self, problems: Vec<PodProblem>, now: OffsetDateTime) {
        if self.lock().events.offer(problems, now) {
            self.news.notify_one();
        }
    }

    /// Writes what waits, until `stop`.
    pub(super) async fn run(
        self: Arc<Self>,
        client: Client,
        clock: Clock,
        stop: Stop,
    ) -> Result<(), Infallible> {
        let mut pause = COLLECT;
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.news.notified() => {}
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = sleep(pause) => {}
            }
            let written = tokio::select! {
                () = stop.stopped() => return Ok(()),
                written = self.write(&client, clock.now()) => written,
            };
            let was_well = pause == COLLECT;
            pause = match written {
                Ok(()) => COLLECT,
                Err(_) => (pause * 2).min(LONGEST_PAUSE),
            };
            match written {
                Err(NotWritten { object, error }) if was_well => {
                    tracing::warn!(object, error, "failed to write the status of an object");
                }
                Ok(()) if !was_well => tracing::info!("statuses of objects are written again"),
                _ => {}
            }
        }
    }

    async fn write(&self, client: &Client, now: OffsetDateTime) -> Result<(), NotWritten> {
        let rules = self.write_all(client, now, |waiting| &mut waiting.rules).await;
        let statics = self.write_all(client, now, |waiting| &mut waiting.statics).await;
        let federations = self
            .write_all(client, now, |waiting| &mut waiting.federations)
            .await;
        self.send_events(client, now).await;
        rules.and(statics).and(federations)
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
