//! The task of one cluster: takes changes from the watches and publishes entries.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::entry::Entry;
use finial_identity::process::{Clock, Stop};
use finial_identity::spiffe_id::SpiffeId;
use time::OffsetDateTime;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::derive::{
    Derivation, Deriver, Explained, Fact, NamespacedName, Objects, Pass, RuleStatus, Settings, StaticStatus,
};
use super::federations::Federations;
use super::objects::Node;
use super::orphans::Orphans;
use super::outbox::{Before, Outbox};
use super::times::Times;
use super::watch::{Kind, News, Watches};
use super::{Declarations, until};
use crate::config::psat_agent_path;
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

    /// Processes changes until `stop`. Nothing is published before all kinds were listed once.
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
            let pass = self.deriver.pass(&|entry: &Entry| registry.gives_way(entry));
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
            self.look_for_orphans();
            self.registry.note_from_before(&pass.upserts);
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
    }

    /// Writes everything again: others may have overwritten a status, and there may have been too many Events.
    fn repeat(&self, outbox: &Outbox) {
        if !self.source.is_settled {
            return;
        }
        let objects = self.deriver.objects();
        let Derivation {
            rules,
            statics,
            problems,
            ..
        } = self.deriver.derivation();
        let rules = rules.into_iter().map(|(name, status)| {
            let before = rule_before(objects, &name);
            (name, status, before)
        });
        let statics = statics.into_iter().map(|(name, status)| {
            let before = static_before(objects, &name);
            (name, status, before)
        });
        outbox.put_all(rules.collect(), statics.collect(), self.federations.statuses());
        outbox.offer_problems(problems.into_values().collect(), self.clock.now());
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

    /// A node's object is there, or it is gone: deleted, or made again under its name. What runs on the machine then has
    /// the parent of nothing.
    fn note_node(&self, name: &str, now: Option<&Node>) {
        let before = self.deriver.objects().node(name);
        let before = before.and_then(|before| before.metadata.uid.as_deref());
        let now = now.and_then(|now| now.metadata.uid.as_deref());
        if let Some(agent) = before
            .filter(|before| now != Some(*before))
            .and_then(|uid| self.agent_of(uid))
        {
            self.orphans.left(agent);
        }
        if let Some(agent) = now.and_then(|uid| self.agent_of(uid)) {
            self.orphans.has_node(&agent);
        }
    }

    /// The agent that stands for the node's object with this UID, as `k8s_psat` names it.
    fn agent_of(&self, uid: &str) -> Option<SpiffeId> {
        SpiffeId::new(self.registry.trust_domain(), &psat_agent_path(self.name(), uid)).ok()
    }

    /// Looks for agents whose nodes were deleted while there was no watch, or that could not be evicted.
    fn look_for_orphans(&mut self) {
        if self.troubles.contains_key(&Kind::Nodes) {
            return; // A node that is new would be missing.
        }
        let nodes: HashSet<&str> = self
            .deriver
            .objects()
            .nodes()
            .filter_map(|node| node.metadata.uid.as_deref())
            .collect();
        let path = psat_agent_path(self.name(), "");
        let prefix = format!("spiffe://{}{path}", self.registry.trust_domain());
        let agents = self.registry.agents_beginning(&prefix).into_iter();
        let without_node = agents.filter(|agent| {
            let uid = agent.as_str().strip_prefix(prefix.as_str());
            uid.is_some_and(|uid| !nodes.contains(uid))
        });
        self.orphans.look(without_node.collect());
    }

    /// Derives everything again. A difference is a bug: it is logged, and the new result is used.
    fn compare(&mut self) {
        if !self.source.is_settled {
            return;
        }
        self.look_for_orphans();
        let registry = &self.registry;
        let is_taken = |entry: &Entry| registry.gives_way(entry);
        self.deriver.others_changed();
        let late = self.deriver.pass(&is_taken);
        registry.apply_derived(&late.upserts, &late.removals);
        let mut anew = Deriver::new(self.deriver.settings().clone());
        self.deriver.objects().facts().for_each(|fact| anew.apply(fact));
        anew.pass(&is_taken);
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::derive::tests::{namespace, node, pod, rule, settings};
    use super::super::orphans;
    use super::*;
    use crate::store::testing::{agent, domain};
    use crate::store::{SqliteStore, Store};

    async fn store() -> Arc<dyn Store> {
        Arc::new(SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap())
    }

    /// Nobody takes in what is declared.
    fn declarations() -> Declarations {
        Declarations {
            sets: tokio::sync::watch::Sender::default(),
            states: tokio::sync::watch::channel(Default::default()).1,
        }
    }

    async fn cluster() -> (Cluster, Arc<Registry>) {
        cluster_on(store().await).await
    }

    async fn cluster_on(store: Arc<dyn Store>) -> (Cluster, Arc<Registry>) {
        let registry = Registry::load(store, &domain(), Clock::system()).await.unwrap();
        let source = SourceState {
            parent_prefix: "spiffe://example.test/spire/agent/k8s_psat/demo/".to_owned(),
            ..SourceState::default()
        };
        registry.set_source("demo", source.clone());
        let cluster = Cluster::new(
            settings(),
            Arc::clone(&registry),
            declarations(),
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

    /// A cluster of this name with one static entry, the same for all clusters, that was made at this second.
    fn declaring(name: &str, registry: &Arc<Registry>, second: u32) -> Cluster {
        let settings = Settings {
            cluster_name: name.to_owned(),
            ..settings()
        };
        let mut cluster = Cluster::new(
            settings,
            Arc::clone(registry),
            declarations(),
            Clock::system(),
            SourceState::default(),
        );
        cluster.synced.extend(Kind::ALL);
        cluster.take(News::Fact(fixed(second, true)));
        cluster
    }

    fn fixed(second: u32, is_there: bool) -> Fact {
        let object = json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterStaticEntry",
            "metadata": {"name": "vm", "uid": "u", "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {"spiffeID": "spiffe://example.test/vm", "parentID": "spiffe://example.test/agent", "selectors": ["unix:uid:1"]},
        });
        let object = serde_json::from_value(object).unwrap();
        Fact::Static("vm".into(), is_there.then(|| Arc::new(object)))
    }

    fn looks_again(cluster: &mut Cluster) {
        cluster.deriver.others_changed();
        cluster.pass(None);
    }

    #[tokio::test]
    async fn an_entry_that_two_clusters_declare_is_one_whichever_was_heard_first() {
        for first in ["a", "b"] {
            for (seconds, winner, loser) in [((5, 5), "a", "b"), ((5, 6), "a", "b"), ((6, 5), "b", "a")] {
                let (_own, registry) = cluster().await;
                let mut clusters = BTreeMap::from([
                    ("a", declaring("a", &registry, seconds.0)),
                    ("b", declaring("b", &registry, seconds.1)),
                ]);
                let mut contests = registry.contests();
                clusters.get_mut(first).unwrap().pass(None);
                let second = if first == "a" { "b" } else { "a" };
                clusters.get_mut(second).unwrap().pass(None);
                if first == loser {
                    assert!(contests.has_changed().unwrap(), "the loser is told");
                }
                contests.mark_unchanged();
                clusters.values_mut().for_each(looks_again);
                let entries = registry.entries(0, 10);
                let ids: Vec<&str> = entries.iter().map(|stored| &*stored.entry.id).collect();
                assert_eq!(ids.len(), 1, "{first} first, {seconds:?}: {ids:?}");
                assert!(ids[0].starts_with(&format!("k8s.{winner}.")), "{ids:?}");
                let told = |name: &str| clusters[name].deriver.derivation().statics["vm"].clone();
                assert!(told(winner).is_set && !told(winner).is_masked);
                assert!(told(loser).is_masked && !told(loser).is_set);
                assert_eq!(clusters[loser].deriver.totals().statics, [0, 1, 0]);

                let cluster = clusters.get_mut(winner).unwrap();
                cluster.take(News::Fact(fixed(0, false)));
                cluster.pass(None);
                assert!(contests.has_changed().unwrap(), "the loser may come back");
                looks_again(clusters.get_mut(loser).unwrap());
                let entries = registry.entries(0, 10);
                assert!(entries[0].entry.id.starts_with(&format!("k8s.{loser}.")));
                assert_eq!(entries.len(), 1);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clusters_that_declare_the_same_hear_of_each_other() {
        let (_own, registry) = cluster().await;
        let mut tasks = finial_identity::process::TaskSet::new();
        let (news_of_a, of_a) = mpsc::channel(64);
        let (_news_of_b, of_b) = mpsc::channel(64);
        let (a, b) = (declaring("a", &registry, 5), declaring("b", &registry, 5));
        let stop = tasks.stop_signal();
        tasks.spawn("b", b.run(of_b, Arc::default(), stop.clone()));
        _news_of_b.send(News::Heard(Kind::Pods)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let only = || {
            let entries = registry.entries(0, 10);
            assert_eq!(entries.len(), 1);
            entries[0].entry.id.clone()
        };
        assert!(only().starts_with("k8s.b."));
        tasks.spawn("a", a.run(of_a, Arc::default(), stop));
        news_of_a.send(News::Heard(Kind::Pods)).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(only().starts_with("k8s.a."));
        news_of_a.send(News::Fact(fixed(0, false))).await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(only().starts_with("k8s.b."));
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

    /// As the task beside it does.
    async fn evict_orphans(cluster: &Cluster) {
        orphans::evict_due(&cluster.orphans, &cluster.registry, "demo").await;
    }

    #[tokio::test(start_paused = true)]
    async fn entries_are_derived_while_agents_without_nodes_wait_for_their_eviction() {
        let (cluster, registry) = cluster().await;
        let (news, watches) = mpsc::channel(64);
        // As when the store takes long: nobody takes the first.
        let orphans = cluster.orphans();
        let mut tasks = finial_identity::process::TaskSet::new();
        let stop = tasks.stop_signal();
        tasks.spawn("cluster", cluster.run(watches, Arc::default(), stop));
        for (name, uid) in [("n2", "u2"), ("n3", "u3"), ("n4", "u4")] {
            news.send(News::Fact(node(name, uid))).await.unwrap();
            news.send(News::Fact(Fact::Node(name.into(), None)))
                .await
                .unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for item in facts().into_iter().chain(Kind::ALL.map(News::Synced)) {
            news.send(item).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(registry.entry_count(), 1);
        let left: Vec<String> = std::iter::from_fn(|| orphans.take())
            .map(|agent| agent.to_string())
            .collect();
        let of = |uid: &str| format!("spiffe://example.test/spire/agent/k8s_psat/demo/{uid}");
        assert_eq!(left, ["u2", "u3", "u4"].map(of));
    }

    #[tokio::test]
    async fn the_agent_of_a_node_object_that_is_gone_is_evicted_and_a_banned_one_stays_banned() {
        let store = store().await;
        let (mut cluster, registry) = cluster_on(Arc::clone(&store)).await;
        let agent = |uid: &str| agent(&format!("/spire/agent/k8s_psat/demo/{uid}"), "1", &[]);
        for (name, uid) in [
            ("n1", "u1"),
            ("n2", "u2"),
            ("n3", "u3"),
            ("n4", "u4"),
            ("n5", "u5"),
        ] {
            store.put_agent(agent(uid)).await.unwrap();
            if uid == "u3" {
                store.ban_agent(&agent(uid).id).await.unwrap();
            }
            cluster.take(News::Fact(node(name, uid)));
        }
        for fact in [
            Fact::Node("n1".into(), None),
            node("n2", "new"),
            Fact::Node("n3".into(), None),
            node("n4", "u4"),
            // A list of a moment ago did not have it.
            Fact::Node("n5".into(), None),
            node("n5", "u5"),
        ] {
            cluster.take(News::Fact(fact));
        }
        evict_orphans(&cluster).await;
        let mut left = Vec::new();
        for uid in ["u1", "u2", "u3", "u4", "u5"] {
            let found = registry.agent(&agent(uid).id).await.unwrap();
            left.extend(found.map(|agent| (uid, agent.is_banned())));
        }
        assert_eq!(left, [("u3", true), ("u4", false), ("u5", false)]);
    }

    #[tokio::test]
    async fn the_agent_of_a_node_that_went_unseen_is_evicted_after_a_second_look() {
        let store = store().await;
        for uid in ["gone", "here"] {
            let agent = agent(&format!("/spire/agent/k8s_psat/demo/{uid}"), "1", &[]);
            store.put_agent(agent).await.unwrap();
        }
        let elsewhere = agent("/spire/agent/k8s_psat/other/gone", "1", &[]);
        store.put_agent(elsewhere).await.unwrap();
        let (mut cluster, registry) = cluster_on(store).await;
        cluster.take(News::Fact(node("n1", "here")));
        cluster.synced.extend(Kind::ALL);
        cluster.pass(None);
        evict_orphans(&cluster).await;
        assert_eq!(registry.agent_count(), 3, "the node may have come just now");
        cluster.take(News::Lost(Kind::Nodes, "silent".to_owned()));
        cluster.compare();
        cluster.compare();
        evict_orphans(&cluster).await;
        assert_eq!(
            registry.agent_count(),
            3,
            "nodes that came meanwhile were not told"
        );
        cluster.take(News::Heard(Kind::Nodes));
        cluster.compare();
        evict_orphans(&cluster).await;
        let left = registry.agents_beginning("spiffe://example.test/spire/agent/k8s_psat/demo/");
        assert_eq!(left.len(), 1);
        assert!(left[0].as_str().ends_with("/here"));
        assert_eq!(registry.agent_count(), 2);
    }
}
