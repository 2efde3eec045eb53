//! The task of one cluster: takes changes from the watches and publishes entries.

mod compare;
mod nodes;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::process::{Clock, Stop};
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::derive::{
    Deriver, Explained, Fact, NamespacedName, Objects, Pass, RuleStatus, Settings, StaticStatus,
};
use super::federations::Federations;
use super::orphans::Orphans;
use super::outbox::{Before, Outbox};
use super::times::Times;
use super::watch::{Kind, News, Watches};
use super::{Declarations, until};
use crate::registry::{PodQuestion, PodReport, Registry, SourceState};
use crate::telemetry::metrics;

/// How often everything is derived again and compared.
const COMPARE_EVERY: Duration = Duration::from_secs(5 * 60);
/// How many changes are processed before a pass.
const BATCH: usize = 4096;
/// How long changes of the store are collected before masking is looked at again.
const STORE_DELAY: Duration = Duration::from_millis(200);

/// One cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    deriver: Deriver,
    federations: Federations,
    declarations: Declarations,
    registry: Arc<Registry>,
    clock: Clock,
    source: SourceState,
    synced: BTreeSet<Kind>,
    /// Kinds of which the API server said that it has none.
    absent: BTreeSet<Kind>,
    troubles: BTreeMap<Kind, String>,
    orphans: Arc<Orphans>,
    questions: mpsc::Receiver<PodQuestion>,
    times: Times,
    /// When the API server last sent an event about pods, and when it listed them all.
    pods_heard_at: Option<OffsetDateTime>,
    pods_listed_at: Option<OffsetDateTime>,
}

impl Cluster {
    pub(super) fn new(
        settings: Settings,
        registry: Arc<Registry>,
        declarations: Declarations,
        clock: Clock,
        source: SourceState,
    ) -> Self {
        Self {
            federations: Federations::new(settings.clone()),
            questions: registry.questions(&settings.cluster_name),
            deriver: Deriver::new(settings),
            registry,
            declarations,
            clock,
            source,
            synced: BTreeSet::new(),
            absent: BTreeSet::new(),
            troubles: BTreeMap::new(),
            orphans: Arc::default(),
            times: Times::default(),
            pods_heard_at: None,
            pods_listed_at: None,
        }
    }

    /// The agents whose nodes are gone, as far as this task knows.
    pub(super) fn orphans(&self) -> Arc<Orphans> {
        Arc::clone(&self.orphans)
    }

    /// Processes changes until `stop`. Nothing but static entries is published before all kinds were listed once.
    pub(super) async fn run(
        mut self,
        mut watches: Watches,
        outbox: Arc<Outbox>,
        stop: Stop,
    ) -> Result<(), Infallible> {
        let mut revisions = self.registry.revisions();
        let mut contests = self.registry.contests();
        let mut refreshes = self.declarations.states.clone();
        let mut compare = interval(COMPARE_EVERY);
        compare.set_missed_tick_behavior(MissedTickBehavior::Delay);
        compare.reset();
        let mut masks_at: Option<Instant> = None;
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                news = watches.recv() => {
                    let Some(news) = news else { return Ok(()) };
                    self.take(news);
                    for _ in 0..BATCH {
                        match watches.try_recv() {
                            Ok(news) => self.take(news),
                            Err(_) => break,
                        }
                    }
                }
                Ok(()) = revisions.changed(), if masks_at.is_none() => {
                    masks_at = Some(Instant::now() + STORE_DELAY);
                    continue;
                }
                Ok(()) = contests.changed(), if masks_at.is_none() => {
                    masks_at = Some(Instant::now() + STORE_DELAY);
                    continue;
                }
                Ok(()) = refreshes.changed() => self.federations.refreshed(),
                () = until(masks_at) => {
                    revisions.mark_unchanged();
                    contests.mark_unchanged();
                    masks_at = None;
                    self.deriver.others_changed();
                }
                Some(question) = self.questions.recv() => {
                    self.answer(question);
                    continue;
                }
                _ = compare.tick() => {
                    self.compare();
                    self.repeat(&outbox);
                }
            }
            self.pass(Some(&outbox));
        }
    }

    /// Takes in objects that stay as they are, and follows the store's changes until `stop`.
    pub(super) async fn run_once(mut self, objects: Vec<News>, stop: Stop) -> Result<(), Infallible> {
        self.synced.extend(Kind::ALL);
        objects.into_iter().for_each(|object| self.take(object));
        let mut revisions = self.registry.revisions();
        let mut contests = self.registry.contests();
        let mut refreshes = self.declarations.states.clone();
        loop {
            self.pass(None);
            let changed = tokio::select! {
                () = stop.stopped() => return Ok(()),
                changed = revisions.changed() => changed,
                changed = contests.changed() => changed,
                Ok(()) = refreshes.changed() => {
                    self.federations.refreshed();
                    continue;
                }
                Some(question) = self.questions.recv() => {
                    self.answer(question);
                    continue;
                }
            };
            if changed.is_err() {
                return Ok(());
            }
            self.deriver.others_changed();
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Fact(fact) => {
                if let Fact::Node(name, now) = &fact {
                    self.note_node(name, now.as_deref());
                }
                if let Fact::Pod(name, pod) = &fact {
                    let before = self.deriver.objects().pod(name).map(AsRef::as_ref);
                    self.times.saw(name, before, pod.as_deref(), self.clock.now());
                }
                self.deriver.apply(fact);
            }
            News::Federation(name, object) => self.federations.apply(name, object),
            News::Synced(kind) => {
                self.synced.insert(kind);
                self.troubles.remove(&kind);
                if kind == Kind::Pods {
                    self.pods_listed_at = Some(self.clock.now());
                }
            }
            News::Heard(kind) => {
                self.troubles.remove(&kind);
                let now = Some(self.clock.now());
                self.source.heard_at = now;
                if kind == Kind::Pods {
                    self.pods_heard_at = now;
                }
            }
            News::Lost(kind, text) => {
                self.troubles.insert(kind, text);
            }
            News::Absent(kind) => {
                // Whoever answers for an API server that is away may know no kind at all.
                if !self.synced.is_empty() {
                    self.absent.insert(kind);
                }
            }
        }
    }

    /// Whether all objects of a kind are known. Of a kind that the API server says that it does not have, after it has
    /// listed another, there are none.
    fn is_listed(&self, kind: Kind) -> bool {
        self.synced.contains(&kind) || (kind.may_be_absent() && self.absent.contains(&kind))
    }

    fn pass(&mut self, outbox: Option<&Outbox>) {
        let waits = Kind::ALL
            .iter()
            .filter(|kind| kind.concerns_entries() && !self.is_listed(**kind));
        let waits: Vec<&str> = waits.map(|kind| kind.as_str()).collect();
        if waits.is_empty() {
            let began = Instant::now();
            let registry = &self.registry;
            let pass = self.deriver.pass(&|entry: &Entry| registry.gives_way(entry));
            if !pass.upserts.is_empty() || !pass.removals.is_empty() || !self.source.is_settled {
                metrics().called("kubernetes_pass", &[], began.elapsed());
            }
            self.publish(pass, outbox);
        } else if self.is_listed(Kind::Statics) {
            self.publish_statics();
        }
        self.publish_federations(outbox);
        let lost = self
            .troubles
            .iter()
            .map(|(kind, text)| format!("{}: {text}", kind.as_str()));
        let lost: Vec<String> = lost.collect();
        self.source.trouble = match (waits.as_slice(), lost.as_slice()) {
            ([], []) => None,
            ([], lost) => Some(lost.join("; ")),
            (waits, []) => Some(format!("waits for the first list of {}", waits.join(", "))),
            (waits, lost) => Some(format!("waits for {}; {}", waits.join(", "), lost.join("; "))),
        };
        self.registry.set_source(self.name(), self.source.clone());
    }

    /// Publishes the static entries while other objects are awaited: agents outside the cluster need no others.
    fn publish_statics(&mut self) {
        let registry = &self.registry;
        let pass = self
            .deriver
            .pass_statics(&|entry: &Entry| registry.gives_way(entry));
        self.apply(&pass);
        if !self.source.has_statics {
            self.source.has_statics = true;
            self.registry.note_from_before(&pass.upserts);
        }
    }

    pub(super) fn apply(&self, pass: &Pass) {
        if !pass.upserts.is_empty() || !pass.removals.is_empty() {
            self.registry.apply_derived(&pass.upserts, &pass.removals);
        }
        if !pass.masked.is_empty() || !pass.unmasked.is_empty() {
            self.registry.mask(&pass.masked, &pass.unmasked);
        }
    }

    fn publish(&mut self, pass: Pass, outbox: Option<&Outbox>) {
        self.apply(&pass);
        let totals = self.deriver.totals();
        if !self.source.is_settled {
            self.source.is_settled = true;
            self.source.has_statics = true;
            self.look_for_orphans();
            self.registry.note_from_before(&pass.upserts);
            tracing::info!(
                cluster = self.name(),
                pods = self.deriver.objects().pod_count(),
                entries = totals.rules[0] + totals.statics[0],
                "objects of the cluster were taken in"
            );
        }
        self.source.passed_at = Some(self.clock.now());
        self.source.counts = [
            ("ClusterSPIFFEID", totals.rules),
            ("ClusterStaticEntry", totals.statics),
        ]
        .into_iter()
        .flat_map(|(kind, counts)| {
            let states = ["declared", "masked", "failed"];
            states
                .into_iter()
                .zip(counts)
                .map(move |(state, count)| (kind, state, count))
        })
        .collect();
        let Some(outbox) = outbox else {
            pass.statics.iter().for_each(|(name, status)| status.warn(name));
            return;
        };
        let objects = self.deriver.objects();
        for (name, status) in pass.rules {
            let before = rule_before(objects, &name);
            outbox.put_rule(name, status, before);
        }
        for (name, status) in pass.statics {
            let before = static_before(objects, &name);
            outbox.put_static(name, status, before);
        }
        for problem in pass.problems {
            outbox.put_problem(problem, self.clock.now());
        }
    }

    /// Publishes which relationships are declared, and the state of each.
    fn publish_federations(&mut self, outbox: Option<&Outbox>) {
        if !self.synced.contains(&Kind::Federations) {
            return;
        }
        let states = self.declarations.states.borrow().clone();
        let pass = self.federations.pass(&states);
        if let Some(declared) = pass.declared {
            let cluster: Arc<str> = self.name().into();
            self.declarations.sets.send_modify(|sets| {
                sets.insert(cluster, declared);
            });
        }
        for (name, status, before) in pass.told {
            match outbox {
                Some(outbox) => outbox.put_federation(name, status, before),
                None => status.warn(&name),
            }
        }
    }

    /// Tells an operator about a pod.
    fn answer(&self, question: PodQuestion) {
        let PodQuestion {
            namespace,
            name,
            answer,
        } = question;
        let name = NamespacedName::new(&namespace, &name);
        let name_rival = |entry: &Entry| {
            if let Some(stored) = self.registry.similar_stored(entry) {
                return Some(format!("stored entry {}", stored.entry.id));
            }
            let (_, origin) = self.registry.similar_derived(entry)?;
            Some(origin.to_string())
        };
        let Explained { mut pod, node, rules } = self.deriver.explain(&name, &name_rival);
        if let (Some(facts), Some(seen)) = (&mut pod, self.times.of(&name)) {
            facts.seen_at = Some(seen.at);
            facts.seen_bound_at = seen.bound_at;
            facts.seen_changed_at = Some(seen.changed_at);
        }
        let report = PodReport {
            heard_at: self.pods_heard_at,
            listed_at: self.pods_listed_at,
            pods: self.deriver.objects().pod_count(),
            pod,
            node,
            rules,
        };
        // Whoever asked may have left.
        let _left = answer.send(report);
    }

    fn name(&self) -> &str {
        &self.deriver.settings().cluster_name
    }
}

fn rule_before(objects: &Objects, name: &str) -> Before<RuleStatus> {
    let object = objects.rule(name);
    Before {
        uid: object
            .and_then(|object| object.metadata.uid.clone())
            .unwrap_or_default(),
        status: object.and_then(|object| object.status.clone()),
    }
}

fn static_before(objects: &Objects, name: &str) -> Before<StaticStatus> {
    let object = objects.fixed(name);
    Before {
        uid: object
            .and_then(|object| object.metadata.uid.clone())
            .unwrap_or_default(),
        status: object.and_then(|object| object.status.clone()),
    }
}
