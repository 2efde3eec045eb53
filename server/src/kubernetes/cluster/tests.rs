use serde_json::json;

use super::*;
use crate::kubernetes::derive::tests::{namespace, node, pod, rule, settings};
use crate::kubernetes::orphans;
use crate::store::testing::{agent, domain};
use crate::store::{SqliteStore, Store};

fn outbox() -> Arc<Outbox> {
    Arc::new(Outbox::new(&settings()))
}

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

#[tokio::test]
async fn static_entries_reach_agents_outside_the_cluster_before_pods_were_listed() {
    let (mut cluster, registry) = cluster().await;
    let (inside, outside) = (
        agent("/spire/agent/k8s_psat/demo/u", "1", &[]).id,
        agent("/spire/agent/x509pop/vm", "1", &[]).id,
    );
    facts().into_iter().for_each(|news| cluster.take(news));
    cluster.take(News::Fact(fixed(1, true)));
    cluster.take(News::Synced(Kind::Rules));
    cluster.pass(None);
    assert!(registry.check_settled(&outside).is_err());
    cluster.take(News::Synced(Kind::Statics));
    cluster.pass(None);
    assert!(registry.check_settled(&outside).is_ok());
    assert!(registry.check_settled(&inside).is_err());
    let ids = || {
        let entries = registry.entries(0, 9).into_iter();
        let ids: Vec<_> = entries
            .map(|stored| stored.entry.spiffe_id.path().to_owned())
            .collect();
        ids
    };
    assert_eq!(ids(), ["/vm"], "pods wait for the other lists");
    cluster.take(News::Fact(fixed(1, false)));
    cluster.pass(None);
    assert!(ids().is_empty());
    cluster.take(News::Fact(fixed(1, true)));
    cluster.synced.extend(Kind::ALL);
    cluster.pass(None);
    assert_eq!(registry.entry_count(), 2);
    assert!(registry.check_settled(&inside).is_ok());
    assert!(cluster.deriver.derivation().statics["vm"].is_set);
}

#[tokio::test]
async fn a_cluster_without_a_kind_of_objects_settles_once_it_has_listed_others() {
    let (mut cluster, registry) = cluster().await;
    let outside = agent("/spire/agent/x509pop/vm", "1", &[]).id;
    for kind in Kind::ALL {
        cluster.take(News::Lost(kind, "404".to_owned()));
        cluster.take(News::Absent(kind));
    }
    cluster.pass(None);
    assert!(
        registry.check_settled(&outside).is_err(),
        "whoever answered has no pods either"
    );
    cluster.take(News::Synced(Kind::Namespaces));
    cluster.pass(None);
    assert!(
        registry.check_settled(&outside).is_err(),
        "what was said before is not the API server's word"
    );
    for kind in Kind::ALL {
        cluster.take(News::Absent(kind));
    }
    cluster.pass(None);
    assert!(registry.check_settled(&outside).is_ok());
    assert!(!registry.sources()["demo"].is_settled);
    for kind in [Kind::Nodes, Kind::Pods, Kind::Endpoints] {
        cluster.take(News::Synced(kind));
    }
    cluster.pass(None);
    let source = registry.sources()["demo"].clone();
    assert!(source.is_settled && source.trouble.unwrap().contains("clusterspiffeids: 404"));
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

#[tokio::test]
async fn an_identity_that_a_stored_entry_and_an_object_give_stays_when_the_stored_entry_goes() {
    let store = store().await;
    let (_own, registry) = cluster_on(Arc::clone(&store)).await;
    let same = crate::store::testing::entry("e1", "/vm", "/agent", &["unix:uid:1"]);
    store.create_entries(vec![same]).await.unwrap();
    registry.catch_up().await.unwrap();
    let mut cluster = declaring("a", &registry, 5);
    cluster.pass(None);
    let ids = || {
        let entries = registry.entries(0, 10).into_iter();
        let ids: Vec<String> = entries.map(|stored| stored.entry.id.clone()).collect();
        ids
    };
    assert_eq!(ids(), ["e1"]);
    store.delete_entry("e1").await.unwrap();
    registry.catch_up().await.unwrap();
    let derived = ids();
    assert!(
        derived.len() == 1 && derived[0].starts_with("k8s.a."),
        "{derived:?}, before the cluster looks"
    );
    // It goes with its object, whether the cluster has looked meanwhile or not.
    cluster.take(News::Fact(fixed(0, false)));
    cluster.pass(None);
    assert!(ids().is_empty());
    cluster.take(News::Fact(fixed(5, true)));
    cluster.pass(None);
    assert_eq!(ids(), derived);
}

#[tokio::test(start_paused = true)]
async fn clusters_that_declare_the_same_hear_of_each_other() {
    let (_own, registry) = cluster().await;
    let mut tasks = finial_identity::process::TaskSet::new();
    let (news_of_a, of_a) = mpsc::channel(64);
    let (_news_of_b, of_b) = mpsc::channel(64);
    let (a, b) = (declaring("a", &registry, 5), declaring("b", &registry, 5));
    let stop = tasks.stop_signal();
    tasks.spawn("b", b.run(of_b, outbox(), stop.clone()));
    _news_of_b.send(News::Heard(Kind::Pods)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let only = || {
        let entries = registry.entries(0, 10);
        assert_eq!(entries.len(), 1);
        entries[0].entry.id.clone()
    };
    assert!(only().starts_with("k8s.b."));
    tasks.spawn("a", a.run(of_a, outbox(), stop));
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
    tasks.spawn("cluster", cluster.run(watches, outbox(), tasks.stop_signal()));
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
    let nobody: orphans::AskNode = Box::new(|_name| Box::pin(async { Ok(None) }));
    orphans::evict_due(&cluster.orphans, &cluster.registry, "demo", &nobody).await;
}

#[tokio::test(start_paused = true)]
async fn entries_are_derived_while_agents_without_nodes_wait_for_their_eviction() {
    let (cluster, registry) = cluster().await;
    let (news, watches) = mpsc::channel(64);
    // As when the store takes long: nobody takes the first.
    let orphans = cluster.orphans();
    let mut tasks = finial_identity::process::TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("cluster", cluster.run(watches, outbox(), stop));
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

#[tokio::test]
async fn an_agent_whose_node_the_api_server_has_stays_though_the_watch_of_nodes_has_not_told() {
    let store = store().await;
    for (name, uid) in [("here", "u1"), ("anew", "u2"), ("gone", "u3"), ("unknown", "u4")] {
        let selector = format!("k8s_psat:agent_node_name:{name}");
        let agent = agent(&format!("/spire/agent/k8s_psat/demo/{uid}"), "1", &[&selector]);
        store.put_agent(agent).await.unwrap();
    }
    let (mut cluster, registry) = cluster_on(store).await;
    cluster.synced.extend(Kind::ALL);
    cluster.pass(None);
    cluster.compare();
    let ask: orphans::AskNode = Box::new(|name| {
        let answer = match name {
            "here" => Ok(Some("u1".to_owned())),
            "anew" => Ok(Some("another".to_owned())),
            "gone" => Ok(None),
            _ => Err(kube::Error::LinesCodecMaxLineLengthExceeded),
        };
        Box::pin(async move { answer })
    });
    orphans::evict_due(&cluster.orphans, &registry, "demo", &ask).await;
    let mut left = registry.agents_beginning("spiffe://example.test/spire/agent/");
    left.sort();
    let left: Vec<&str> = left
        .iter()
        .filter_map(|agent| agent.path().rsplit('/').next())
        .collect();
    assert_eq!(left, ["u1", "u4"]);
}
