//! What goes back to the cluster: statuses of objects ([`statuses`]) and Events on pods that something is wrong with
//! ([`events`]). What is newer replaces what waits. A few objects are written at once, and each once at a time. A write that
//! fails is tried again after a pause, which each object has for itself, and beside the others: an object that is refused, or
//! that the API server is silent about, takes one of the places once, for its first try.

mod events;
mod statuses;
#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use finial_identity::process::{Clock, Stop};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kube::Client;
use time::OffsetDateTime;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};

use super::derive::{PodProblem, RuleStatus, Settings, StaticStatus};
use super::federations::FederationStatus;
use super::until;
use events::Events;
pub(super) use statuses::{Before, Said};
use statuses::{NotWritten, Statuses, Target};

/// How long changes are collected before they are written.
const COLLECT: Duration = Duration::from_secs(1);
/// How many objects have their first try at once.
const AT_ONCE: usize = 8;

/// What waits to be written.
#[derive(Debug)]
pub(super) struct Outbox {
    /// Whose Events they are: the same of servers of one installation, and of no others.
    author: String,
    waiting: Mutex<Waiting>,
    news: Notify,
    problems: Notify,
    failures: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    rules: Statuses<RuleStatus>,
    statics: Statuses<StaticStatus>,
    federations: Statuses<FederationStatus>,
    events: Events,
}

impl Outbox {
    pub(super) fn new(settings: &Settings) -> Self {
        let class = settings.class_name.as_deref().unwrap_or_default();
        Self {
            author: format!("{}\n{}\n{class}", settings.trust_domain, settings.cluster_name),
            waiting: Mutex::default(),
            news: Notify::new(),
            problems: Notify::new(),
            failures: Notify::new(),
        }
    }

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
            self.problems.notify_one();
        }
    }

    /// All that is wrong with pods now: those of which nobody was told yet, as there were too many, have their turn.
    pub(super) fn offer_problems(&self, problems: Vec<PodProblem>, now: OffsetDateTime) {
        if self.lock().events.offer(problems, now) {
            self.problems.notify_one();
        }
    }

    /// Writes what waits, until `stop`.
    pub(super) async fn run(
        self: Arc<Self>,
        client: Client,
        clock: Clock,
        stop: Stop,
    ) -> Result<(), Infallible> {
        tokio::select! {
            () = stop.stopped() => {}
            () = self.write_news(&client, &clock) => {}
            () = self.write_failed(&client, &clock) => {}
            () = self.tell_problems(&client, &clock) => {}
        }
        Ok(())
    }

    async fn write_news(&self, client: &Client, clock: &Clock) {
        let places = Semaphore::new(AT_ONCE);
        let to = Target {
            client,
            clock,
            places: &places,
        };
        let mut writes = FuturesUnordered::new();
        let mut failed = Vec::new();
        let mut write_at = None;
        let mut report_at = None;
        loop {
            tokio::select! {
                () = self.news.notified(), if write_at.is_none() => write_at = Some(Instant::now() + COLLECT),
                () = until(write_at) => {
                    write_at = None;
                    writes.extend(self.first_tries(to, |waiting| &mut waiting.rules));
                    writes.extend(self.first_tries(to, |waiting| &mut waiting.statics));
                    writes.extend(self.first_tries(to, |waiting| &mut waiting.federations));
                }
                Some(written) = writes.next() => {
                    if let Err(error) = written {
                        failed.push(error);
                        report_at = report_at.or_else(|| Some(Instant::now() + COLLECT));
                    }
                }
                () = until(report_at) => {
                    report_at = None;
                    report(&mut failed);
                }
            }
        }
    }

    async fn tell_problems(&self, client: &Client, clock: &Clock) {
        loop {
            self.problems.notified().await;
            sleep(COLLECT).await;
            self.send_events(client, clock.now()).await;
        }
    }

    async fn write_failed(&self, client: &Client, clock: &Clock) {
        loop {
            let again_at = self.lock().again_at();
            tokio::select! {
                () = self.failures.notified() => continue,
                () = until(again_at) => {}
            }
            let now = clock.now();
            self.write_again(client, now, |waiting| &mut waiting.rules).await;
            self.write_again(client, now, |waiting| &mut waiting.statics)
                .await;
            self.write_again(client, now, |waiting| &mut waiting.federations)
                .await;
            if self.lock().again_at().is_none() {
                tracing::info!("statuses of objects are written again");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Those that fail may be all there are, for one reason.
fn report(failed: &mut Vec<NotWritten>) {
    if let [NotWritten { object, error }, others @ ..] = failed.as_slice() {
        let others = others.len();
        tracing::warn!(object, error, others, "failed to write the status of an object");
    }
    failed.clear();
}

impl Waiting {
    /// When the first object that failed is tried again.
    fn again_at(&self) -> Option<Instant> {
        let firsts = [
            self.rules.again_at(),
            self.statics.again_at(),
            self.federations.again_at(),
        ];
        firsts.into_iter().flatten().min()
    }
}
