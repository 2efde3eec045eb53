//! The task of one cluster: news in, entries out.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::process::{Clock, Stop};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Declarations;
use super::derive::{Derivation, Deriver, Pass, Settings};
use super::federations::Federations;
use super::outbox::Outbox;
use super::watch::{Kind, News, Watches};
use crate::registry::{Registry, SourceState};
use crate::telemetry::metrics;

/// How often everything is derived anew and compared.
const COMPARE_EVERY: Duration = Duration::from_secs(5 * 60);
/// How many news are taken in before a pass.
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
    troubles: BTreeMap<Kind, String>,
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
            deriver: Deriver::new(settings),
            registry,
            declarations,
            clock,
            source,
            synced: BTreeSet::new(),
            troubles: BTreeMap::new(),
        }
    }

    /// Takes in news until `stop`. Nothing is published before all kinds were listed once.
    pub(super) async fn run(
        mut self,
        mut watches: Watches,
        outbox: Arc<Outbox>,
        stop: Stop,
    ) -> Result<(), Infallible> {
        let mut revisions = self.registry.revisions();
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
                Ok(()) = refreshes.changed() => self.federations.refreshed(),
                () = wait(masks_at) => {
                    revisions.mark_unchanged();
                    masks_at = None;
                    self.deriver.stored_changed();
                }
                _ = compare.tick() => self.compare(),
            }
            self.pass(Some(&outbox));
        }
    }

    /// Takes in objects that stay as they are, and follows the store's changes until `stop`.
    pub(super) async fn run_once(mut self, objects: Vec<News>, stop: Stop) -> Result<(), Infallible> {
        self.synced.extend(Kind::ALL);
        objects.into_iter().for_each(|object| self.take(object));
        let mut revisions = self.registry.revisions();
        loop {
            self.pass(None);
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                changed = revisions.changed() => if changed.is_err() {
                    return Ok(());
                },
            }
            self.deriver.stored_changed();
        }
    }

    fn take(&mut self, news: News) {
        match news {
            News::Fact(fact) => self.deriver.apply(fact),
            News::Federation(name, object) => self.federations.apply(name, object),
            News::Synced(kind) => {
                self.synced.insert(kind);
                self.troubles.remove(&kind);
            }
            News::Heard(kind) => {
                self.troubles.remove(&kind);
                self.source.heard_at = Some(self.clock.now());
            }
            News::Lost(kind, text) => {
                self.troubles.insert(kind, text);
            }
        }
    }

    fn pass(&mut self, outbox: Option<&Outbox>) {
        let waits = Kind::ALL
            .iter()
            .filter(|kind| kind.concerns_entries() && !self.synced.contains(kind));
        let waits: Vec<&str> = waits.map(|kind| kind.as_str()).collect();
        if waits.is_empty() {
            let began = Instant::now();
            let registry = &self.registry;
            let pass = self
                .deriver
                .pass(&|entry: &Entry| registry.has_similar_stored(entry));
            if !pass.upserts.is_empty() || !pass.removals.is_empty() || !self.source.is_settled {
                metrics().called("kubernetes_pass", &[], began.elapsed());
            }
            self.publish(pass, outbox);
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

    fn publish(&mut self, pass: Pass, outbox: Option<&Outbox>) {
        if !pass.upserts.is_empty() || !pass.removals.is_empty() {
            self.registry.apply_derived(&pass.upserts, &pass.removals);
        }
        if !self.source.is_settled {
            self.source.is_settled = true;
            tracing::info!(
                cluster = self.name(),
                pods = self.deriver.objects().pod_count(),
                entries = pass.upserts.len(),
                "objects of the cluster were taken in"
            );
        }
        self.source.passed_at = Some(self.clock.now());
        let totals = self.deriver.totals();
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
        if let Some(outbox) = outbox {
            let objects = self.deriver.objects();
            for (name, status) in pass.rules {
                let before = objects.rule(&name).and_then(|rule| rule.status.clone());
                outbox.put_rule(name, status, before);
            }
            for (name, status) in pass.statics {
                let before = objects.fixed(&name).and_then(|object| object.status.clone());
                outbox.put_static(name, status, before);
            }
            for problem in pass.problems {
                outbox.put_problem(problem);
            }
        }
    }

    /// Says which relationships are declared, and what became of each.
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

    /// Derives everything anew. A difference is a fault of ours: it is told, and what is new counts.
    fn compare(&mut self) {
        if !self.source.is_settled {
            return;
        }
        let registry = &self.registry;
        let is_stored = |entry: &Entry| registry.has_similar_stored(entry);
        self.deriver.stored_changed();
        let late = self.deriver.pass(&is_stored);
        registry.apply_derived(&late.upserts, &late.removals);
        let mut anew = Deriver::new(self.deriver.settings().clone());
        self.deriver.objects().facts().for_each(|fact| anew.apply(fact));
        anew.pass(&is_stored);
        let (held, right): (Derivation, Derivation) = (self.deriver.derivation(), anew.derivation());
        if held.entries == right.entries {
            return;
        }
        metrics().count("kubernetes_drift", &[], 1);
        tracing::error!(
            cluster = self.name(),
            "derived entries were not what the objects say"
        );
        let upserts: Vec<_> = right
            .entries
            .iter()
            .filter(|(id, entry)| held.entries.get(*id) != Some(*entry))
            .map(|(_, entry)| entry.clone())
            .collect();
        let gone = held.entries.keys().filter(|id| !right.entries.contains_key(*id));
        let removals: Vec<String> = gone.cloned().collect();
        registry.apply_derived(&upserts, &removals);
        self.deriver = anew;
    }

    fn name(&self) -> &str {
        &self.deriver.settings().cluster_name
    }
}

async fn wait(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tokio::sync::mpsc;

    use super::super::derive::tests::{namespace, node, pod, rule, settings};
    use super::super::derive::{Fact, NamespacedName};
    use super::*;
    use crate::store::testing::domain;
    use crate::store::{SqliteStore, Store};

    async fn cluster() -> (Cluster, Arc<Registry>) {
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap());
        let registry = Registry::load(store, &domain(), Clock::system()).await.unwrap();
        let source = SourceState {
            parent_prefix: "spiffe://example.test/spire/agent/k8s_psat/demo/".to_owned(),
            ..SourceState::default()
        };
        registry.set_source("demo", source.clone());
        let declarations = Declarations {
            sets: tokio::sync::watch::Sender::default(),
            states: tokio::sync::watch::channel(Default::default()).1,
        };
        let cluster = Cluster::new(
            settings(),
            Arc::clone(&registry),
            declarations,
            Clock::system(),
            source,
        );
        (cluster, registry)
    }

    fn facts() -> Vec<News> {
        [
            node("n1", "u"),
            namespace("shop", &[]),
            rule("r", 0, &json!({})),
            pod("shop", "a", &json!({})),
        ]
        .map(News::Fact)
        .to_vec()
    }

    #[tokio::test]
    async fn nothing_is_published_before_every_kind_was_listed_once() {
        let (mut cluster, registry) = cluster().await;
        facts().into_iter().for_each(|news| cluster.take(news));
        for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Namespaces) {
            cluster.take(News::Synced(kind));
            cluster.pass(None);
        }
        assert_eq!(registry.entry_count(), 0);
        let waits = registry.sources()["demo"].clone();
        assert!(!waits.is_settled && waits.trouble.unwrap().contains("namespaces"));
        cluster.take(News::Synced(Kind::Namespaces));
        cluster.pass(None);
        assert_eq!(registry.entry_count(), 1);
        assert!(registry.sources()["demo"].is_settled);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_is_lost_or_silent_for_long_changes_nothing_and_its_age_is_known() {
        let (cluster, registry) = cluster().await;
        let (news, watches) = mpsc::channel(64);
        let mut tasks = finial_identity::process::TaskSet::new();
        tasks.spawn(
            "cluster",
            cluster.run(watches, Arc::default(), tasks.stop_signal()),
        );
        for item in facts().into_iter().chain(Kind::ALL.map(News::Synced)) {
            news.send(item).await.unwrap();
        }
        for kind in Kind::ALL {
            news.send(News::Heard(kind)).await.unwrap();
            news.send(News::Lost(kind, "connection refused".to_owned()))
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_secs(30 * 60)).await;
        assert_eq!(registry.entry_count(), 1);
        let source = registry.sources()["demo"].clone();
        assert!(source.is_settled && source.heard_at.is_some());
        assert!(source.trouble.unwrap().contains("pods: connection refused"));
        let gone = Fact::Pod(NamespacedName::new("shop", "a"), None);
        news.send(News::Fact(gone)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(registry.entry_count(), 0);
    }
}
