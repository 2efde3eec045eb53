use std::time::Duration;

use finial_identity::process::tasks::{Stop, TaskSet};
use finial_identity::wire::DigestSum;
use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::store::testing::{agent, domain, entry, id};
use crate::store::*;

const AGENT: &str = "/spire/agent/a";

struct Setup {
    store: Arc<SqliteStore>,
    registry: Arc<Registry>,
}

async fn setup() -> Setup {
    let store = Arc::new(SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap());
    store
        .put_agent(agent(AGENT, "1", &["k8s:cluster:x"]))
        .await
        .unwrap();
    let registry = load(store.clone()).await;
    Setup { store, registry }
}

async fn load(store: Arc<SqliteStore>) -> Arc<Registry> {
    Registry::load(store, &domain(), Clock::system()).await.unwrap()
}

impl Setup {
    async fn create(&self, entries: Vec<Entry>) {
        for created in self.store.create_entries(entries).await.unwrap() {
            assert!(matches!(created, EntryCreated::Created(_)), "{created:?}");
        }
    }

    async fn feed(&self, resume: Option<Resume>) -> Feed {
        self.registry.subscribe(&id(AGENT), "1", resume).await.unwrap()
    }
}

/// The next event; a feed that has none fails the test instead of hanging it.
async fn next(feed: &mut Feed) -> FeedEvent {
    timeout(Duration::from_secs(10), feed.next()).await.unwrap()
}

/// Skips bundles, which come first.
async fn next_of_entries(feed: &mut Feed) -> FeedEvent {
    loop {
        match next(feed).await {
            FeedEvent::Bundles(_) => {}
            event => return event,
        }
    }
}

fn child(n: usize) -> Entry {
    entry(&format!("e{n}"), &format!("/w{n}"), AGENT, &["u:1"])
}

#[tokio::test]
async fn loads_what_is_stored() {
    let setup = setup().await;
    setup.create((0..20).map(child).collect()).await;
    let registry = load(setup.store.clone()).await;
    assert_eq!(registry.entry_count(), 20);
    assert_eq!(registry.authorized(&id(AGENT)).len(), 20);
    assert_eq!(registry.applied(), setup.store.revision());
    assert_eq!(registry.entry("e3"), setup.store.entry("e3").await.unwrap());
    assert_eq!(
        registry.entries(0, 7),
        setup.store.list_entries(0, 7).await.unwrap()
    );
    assert_eq!(registry.entries_with_parent(&id(AGENT)).len(), 20);
    assert_eq!(registry.entries_with_spiffe_id(&id("/w3")).len(), 1);
}

#[tokio::test]
async fn a_write_is_read_after_catching_up() {
    let setup = setup().await;
    setup.create(vec![child(1)]).await;
    assert!(setup.registry.entry("e1").is_none());
    setup.registry.catch_up().await.unwrap();
    assert!(setup.registry.entry("e1").is_some());
    assert_eq!(setup.registry.applied(), setup.store.revision());
}

#[tokio::test]
async fn a_refusal_asks_the_store_first() {
    let setup = setup().await;
    let agent_id = id(AGENT);
    setup.create(vec![child(1)]).await;
    assert!(
        setup
            .registry
            .authorized_entry(&agent_id, "e1")
            .await
            .unwrap()
            .is_some()
    );
    assert!(
        setup
            .registry
            .authorized_entry(&agent_id, "e2")
            .await
            .unwrap()
            .is_none()
    );
    setup
        .store
        .put_agent(agent("/spire/agent/new", "5", &[]))
        .await
        .unwrap();
    assert!(
        setup
            .registry
            .agent(&id("/spire/agent/new"))
            .await
            .unwrap()
            .is_some()
    );
    setup.store.set_new_serial(&agent_id, "2", 9).await.unwrap();
    let standing = setup.registry.agent_standing(&agent_id, "2").await.unwrap();
    assert!(matches!(standing, AgentStanding::Renewed(_)), "{standing:?}");
    let mut parts = entry("admin", "/admin", AGENT, &["u:9"]).into_parts();
    (parts.admin, parts.downstream) = (true, true);
    setup.create(vec![Entry::check(parts, &domain()).unwrap()]).await;
    assert!(setup.registry.has_admin(&id("/admin")).await.unwrap());
    assert!(setup.registry.has_downstream(&id("/admin")).await.unwrap());
    assert!(!setup.registry.has_admin(&id("/w1")).await.unwrap());
}

#[tokio::test]
async fn a_refusal_fails_when_the_store_cannot_be_asked() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(&directory).await;
    store.create_entries((0..3).map(child).collect()).await.unwrap();
    store.close().await;
    drop(store);
    let store = open(&directory).await;
    let registry = load(store.clone()).await;
    // Far behind, so that only the file can tell, which is closed.
    registry.applied.send_replace(Revision::START);
    store.close().await;
    assert!(
        registry
            .authorized_entry(&id("/spire/agent/b"), "e1")
            .await
            .is_err()
    );
    assert!(
        registry
            .authorized_entry(&id(AGENT), "e1")
            .await
            .unwrap()
            .is_some()
    );
}

#[tokio::test]
async fn an_agents_standing_follows_its_record() {
    let setup = setup().await;
    let agent_id = id(AGENT);
    let standing = async |serial| setup.registry.agent_standing(&agent_id, serial).await.unwrap();
    assert!(matches!(standing("1").await, AgentStanding::Active(_)));
    assert_eq!(standing("7").await, AgentStanding::NotActive);
    assert_eq!(standing("").await, AgentStanding::NotActive);
    setup.store.ban_agent(&agent_id).await.unwrap();
    setup.registry.catch_up().await.unwrap();
    assert_eq!(standing("1").await, AgentStanding::Banned);
    assert_eq!(standing("").await, AgentStanding::Banned);
    let unknown = setup
        .registry
        .agent_standing(&id("/spire/agent/x"), "1")
        .await
        .unwrap();
    assert_eq!(unknown, AgentStanding::Unknown);
}

#[tokio::test]
async fn a_commit_reaches_the_feed_through_the_running_registry() {
    let setup = setup().await;
    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("registry", setup.registry.clone().run(stop));
    let mut feed = setup.feed(None).await;
    assert!(
        matches!(next_of_entries(&mut feed).await, FeedEvent::Snapshot { entries, .. } if entries.is_empty())
    );
    setup.create(vec![child(1)]).await;
    let FeedEvent::Delta {
        upserts, removals, ..
    } = next(&mut feed).await
    else {
        panic!()
    };
    assert_eq!((upserts[0].id.as_str(), removals.len()), ("e1", 0));
    setup
        .store
        .update_entry("e1", Box::new(|parts| parts))
        .await
        .unwrap();
    let FeedEvent::Delta { upserts, .. } = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(upserts[0].revision_number, 1);
    setup.store.delete_entry("e1").await.unwrap();
    let FeedEvent::Delta {
        upserts,
        removals,
        digest,
        ..
    } = next(&mut feed).await
    else {
        panic!()
    };
    assert_eq!((upserts.len(), removals), (0, vec!["e1".to_owned()]));
    assert_eq!(digest, Default::default());
}

#[tokio::test]
async fn stop_ends_the_running_registry() {
    let setup = setup().await;
    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("registry", setup.registry.clone().run(stop));
    tasks.run_until_first_exit(std::future::ready(())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn expired_entries_are_deleted_every_five_minutes() {
    let clock = Clock::paused_at(time::OffsetDateTime::from_unix_timestamp(1_800_000_000).unwrap());
    let store = Arc::new(SqliteStore::in_memory(&domain(), clock.clone()).await.unwrap());
    let mut parts = child(1).into_parts();
    parts.expires_at = 1_800_000_060;
    store
        .create_entries(vec![Entry::check(parts, &domain()).unwrap(), child(2)])
        .await
        .unwrap();
    let registry = Registry::load(store.clone(), &domain(), clock).await.unwrap();
    let mut committed = store.committed();
    committed.mark_unchanged();
    let running = registry.clone().run(Stop::never());
    tokio::select! {
        _ = running => panic!("runs until stopped"),
        changed = committed.changed() => changed.unwrap(),
    }
    registry.catch_up().await.unwrap();
    assert!(registry.entry("e1").is_none() && registry.entry("e2").is_some());
}

#[tokio::test]
async fn only_the_agents_concerned_are_woken() {
    let setup = setup().await;
    setup
        .store
        .put_agent(agent("/spire/agent/b", "1", &["k8s:cluster:y"]))
        .await
        .unwrap();
    let mut one = setup.feed(None).await;
    let mut other = setup
        .registry
        .subscribe(&id("/spire/agent/b"), "1", None)
        .await
        .unwrap();
    next_of_entries(&mut one).await;
    next_of_entries(&mut other).await;
    let alias = entry("alias", "/nodes", "/spire/server", &["k8s:cluster:x"]);
    setup
        .create(vec![entry("below", "/w", "/nodes", &["u:1"]), alias])
        .await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Delta { upserts, .. } = next(&mut one).await else {
        panic!()
    };
    assert_eq!(
        upserts.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
        ["below"]
    );
    assert!(other.heartbeat().is_some());
}

#[tokio::test]
async fn a_slow_agent_gets_a_snapshot_instead_of_a_long_delta() {
    let setup = setup().await;
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    for step in 0..3 {
        setup
            .create((step * 1_000..(step + 1) * 1_000).map(child).collect())
            .await;
        setup.registry.catch_up().await.unwrap();
    }
    let FeedEvent::Snapshot { entries, .. } = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(entries.len(), 3_000);
    assert!(feed.heartbeat().is_some());
}

#[tokio::test]
async fn an_agent_that_holds_its_set_is_told_so_also_by_another_server() {
    let setup = setup().await;
    setup.create(vec![child(1), child(2)]).await;
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    drop(feed);
    assert_eq!(setup.registry.watch_count(), 0);
    let resume = Some(Resume { cursor, digest });
    let restarted = load(setup.store.clone()).await;
    for registry in [&setup.registry, &restarted] {
        let mut feed = registry.subscribe(&id(AGENT), "1", resume).await.unwrap();
        assert!(
            matches!(next_of_entries(&mut feed).await, FeedEvent::Current { digest: now, .. } if now == digest)
        );
    }
}

#[tokio::test]
async fn an_agent_that_was_away_hears_what_it_missed() {
    let setup = setup().await;
    setup.create((0..10).map(child).collect()).await;
    let mut feed = setup.feed(None).await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    drop(feed);
    setup.store.delete_entry("e3").await.unwrap();
    setup
        .create(vec![child(11), entry("other", "/o", "/spire/agent/b", &["u:1"])])
        .await;
    setup.store.delete_entry("other").await.unwrap();
    setup.registry.catch_up().await.unwrap();
    let resume = Some(Resume { cursor, digest });
    let mut feed = setup.feed(resume).await;
    let FeedEvent::Delta {
        from,
        upserts,
        removals,
        ..
    } = next_of_entries(&mut feed).await
    else {
        panic!()
    };
    assert_eq!(from, cursor);
    assert_eq!(
        upserts.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
        ["e11"]
    );
    assert_eq!(removals, ["e3"], "the other agent's entry is not spoken of");
    // A restarted server knows no changes before itself.
    let restarted = load(setup.store.clone()).await;
    let mut feed = restarted.subscribe(&id(AGENT), "1", resume).await.unwrap();
    assert!(matches!(
        next_of_entries(&mut feed).await,
        FeedEvent::Snapshot { .. }
    ));
}

#[tokio::test]
async fn an_agent_that_was_away_hears_of_a_branch_that_was_cut_leaf_by_leaf() {
    let setup = setup().await;
    let middle = entry("middle", "/m", AGENT, &["u:1"]);
    setup
        .create(vec![middle, entry("leaf", "/l", "/m", &["u:1"]), child(1)])
        .await;
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    let FeedEvent::Snapshot { cursor, digest, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    drop(feed);
    for id in ["leaf", "middle"] {
        setup.store.delete_entry(id).await.unwrap();
    }
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(Some(Resume { cursor, digest })).await;
    let FeedEvent::Delta { mut removals, .. } = next_of_entries(&mut feed).await else {
        panic!()
    };
    removals.sort_unstable();
    assert_eq!(removals, ["leaf", "middle"]);
}

#[tokio::test]
async fn a_watch_ends_with_the_reason() {
    let (banned, deleted, superseded) = (setup().await, setup().await, setup().await);
    let mut feeds = [
        banned.feed(None).await,
        deleted.feed(None).await,
        superseded.feed(None).await,
    ];
    let agent_id = id(AGENT);
    banned.store.ban_agent(&agent_id).await.unwrap();
    deleted.store.delete_agent(&agent_id).await.unwrap();
    superseded.store.set_new_serial(&agent_id, "2", 9).await.unwrap();
    superseded.registry.catch_up().await.unwrap();
    assert!(
        !matches!(next(&mut feeds[2]).await, FeedEvent::AgentGone(_)),
        "both serials are valid"
    );
    superseded.store.promote_new_serial(&agent_id, "2").await.unwrap();
    for (setup, (feed, expected)) in [banned, deleted, superseded].iter().zip(feeds.iter_mut().zip([
        AgentGone::Banned,
        AgentGone::Deleted,
        AgentGone::Superseded,
    ])) {
        setup.registry.catch_up().await.unwrap();
        assert!(matches!(next(feed).await, FeedEvent::AgentGone(reason) if reason == expected));
        let again = setup.registry.subscribe(&agent_id, "1", None).await;
        assert!(matches!(again, Err(SubscribeError::Agent(reason)) if reason == expected));
    }
}

#[tokio::test]
async fn a_ban_that_is_learned_while_a_watch_opens_refuses_it() {
    let agent_id = id(AGENT);
    for (is_ban, reason) in [(true, AgentGone::Banned), (false, AgentGone::Deleted)] {
        let setup = setup().await;
        if is_ban {
            setup.store.ban_agent(&agent_id).await.unwrap();
        } else {
            setup.store.delete_agent(&agent_id).await.unwrap();
        }
        // Memory still admits the agent; its cursor, which is ahead, makes memory catch up.
        let ahead = load(setup.store.clone()).await;
        let resume = Resume {
            cursor: ahead.read().cursor(),
            digest: DigestSum::default(),
        };
        let refused = setup.registry.subscribe(&agent_id, "1", Some(resume)).await;
        let Err(SubscribeError::Agent(found)) = refused else {
            panic!("{refused:?}");
        };
        assert_eq!(found, reason);
        assert_eq!(setup.registry.watch_count(), 0);
    }
}

#[tokio::test]
async fn bundles_come_first_and_follow_what_the_entries_need() {
    let setup = setup().await;
    let foreign = TrustDomain::parse("f.test").unwrap();
    update_bundle(&*setup.store, &domain(), |bundle| bundle.refresh_hint = 1)
        .await
        .unwrap();
    setup
        .store
        .put_bundle(Bundle::new(foreign.clone()))
        .await
        .unwrap();
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    let FeedEvent::Bundles(first) = next(&mut feed).await else {
        panic!()
    };
    assert!(first.is_complete && first.own.is_some() && first.federated.is_empty());
    assert!(matches!(next(&mut feed).await, FeedEvent::Snapshot { .. }));

    let mut parts = child(1).into_parts();
    parts.federates_with = vec![foreign.clone()];
    setup.create(vec![Entry::check(parts, &domain()).unwrap()]).await;
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Bundles(joined) = next(&mut feed).await else {
        panic!()
    };
    assert!(!joined.is_complete && joined.own.is_none());
    assert_eq!(joined.federated[0].trust_domain, foreign);
    assert!(matches!(next(&mut feed).await, FeedEvent::Delta { .. }));

    update_bundle(&*setup.store, &domain(), |bundle| bundle.refresh_hint = 2)
        .await
        .unwrap();
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Bundles(own) = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(own.own.unwrap().sequence_number, 2);
    assert_eq!(setup.registry.bundles().borrow()[&domain()].refresh_hint, 2);

    setup
        .store
        .delete_bundle(&foreign, BundleDeleteMode::Delete)
        .await
        .unwrap();
    setup.registry.catch_up().await.unwrap();
    let FeedEvent::Bundles(left) = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(left.removed, [foreign]);
    assert!(matches!(next(&mut feed).await, FeedEvent::Delta { removals, .. } if removals == ["e1"]));
    assert!(feed.heartbeat().is_some());
}

fn of_rule(entry: Entry) -> Derived {
    Derived {
        entry: Arc::new(entry),
        origin: "ClusterSPIFFEID r".into(),
    }
}

#[tokio::test]
async fn derived_entries_know_their_rule_and_what_is_like_them() {
    let setup = setup().await;
    let derived = entry("k8s.c.1", "/pod", AGENT, &["k8s:pod-uid:1"]);
    setup.registry.apply_derived(&[of_rule(derived.clone())], &[]);
    assert_eq!(
        setup.registry.origin("k8s.c.1").as_deref(),
        Some("ClusterSPIFFEID r")
    );
    let like = entry("other", "/pod", AGENT, &["k8s:pod-uid:1"]);
    let found = setup.registry.similar_derived(&like).unwrap();
    assert_eq!(found.0.entry.id, "k8s.c.1");
    assert!(
        setup.registry.gives_way(&like),
        "to the derived one of another id"
    );
    let unlike = entry("other", "/pod", AGENT, &["k8s:pod-uid:2"]);
    assert!(setup.registry.similar_derived(&unlike).is_none());
    setup.registry.apply_derived(&[], &["k8s.c.1".into()]);
    assert!(setup.registry.origin("k8s.c.1").is_none());
}

#[tokio::test]
async fn an_agent_of_a_cluster_whose_rules_are_not_known_yet_is_not_told_a_smaller_set() {
    let setup = setup().await;
    let agent = id(AGENT);
    let waits = SourceState {
        parent_prefix: agent.to_string(),
        ..SourceState::default()
    };
    setup.registry.set_source("demo", waits.clone());
    assert!(setup.registry.check_settled(&agent).is_err());
    assert!(
        setup
            .registry
            .check_settled(&id("/spire/agent/elsewhere"))
            .is_ok()
    );
    assert!(
        setup
            .registry
            .authorized_entry(&agent, "k8s.demo.1")
            .await
            .is_err()
    );
    let settled = SourceState {
        is_settled: true,
        ..waits
    };
    setup.registry.set_source("demo", settled);
    assert!(setup.registry.check_settled(&agent).is_ok());
    assert!(
        setup
            .registry
            .authorized_entry(&agent, "k8s.demo.1")
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn derived_entries_are_pushed_listed_last_and_never_stored() {
    let setup = setup().await;
    setup.create(vec![child(1)]).await;
    setup.registry.catch_up().await.unwrap();
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    let derived = entry("k8s.c.1", "/pod", AGENT, &["k8s:pod-uid:1"]);
    let clash = entry("e1", "/stolen", AGENT, &["u:2"]);
    setup.registry.apply_derived(&[derived, clash].map(of_rule), &[]);
    let FeedEvent::Delta { upserts, .. } = next(&mut feed).await else {
        panic!()
    };
    assert_eq!(
        upserts.iter().map(|entry| entry.id.as_str()).collect::<Vec<_>>(),
        ["k8s.c.1"]
    );
    setup.create(vec![child(2)]).await;
    setup.registry.catch_up().await.unwrap();
    let ids: Vec<String> = setup
        .registry
        .entries(0, 9)
        .iter()
        .map(|stored| stored.entry.id.clone())
        .collect();
    assert_eq!(ids, ["e1", "e2", "k8s.c.1"]);
    setup.registry.release().await.unwrap();
    assert!(
        setup.registry.entry("k8s.c.1").is_some(),
        "a reload keeps what is derived"
    );
    setup
        .registry
        .apply_derived(&[], &["k8s.c.1".into(), "e2".into()]);
    assert!(setup.registry.entry("k8s.c.1").is_none() && setup.registry.entry("e2").is_some());
    assert!(setup.store.entry("k8s.c.1").await.unwrap().is_none());
}

#[tokio::test]
async fn the_way_of_an_entry_to_its_agent_is_known() {
    let setup = setup().await;
    let agent = id(AGENT);
    let derived = entry("k8s.c.1", "/pod", "/node/1", &["k8s:pod-uid:1"]);
    setup.registry.apply_derived(&[of_rule(derived.clone())], &[]);
    assert!(setup.registry.agents_below(&id("/node/1"), 9).is_empty());
    // The agent is that node.
    setup
        .create(vec![entry("node", "/node/1", AGENT, &["k8s:node:1"])])
        .await;
    setup.registry.catch_up().await.unwrap();
    let below = |parent: &str| -> Vec<SpiffeId> {
        let agents = setup.registry.agents_below(&id(parent), 9);
        agents.iter().map(|agent| agent.id.clone()).collect()
    };
    assert_eq!(
        (below("/node/1"), below(AGENT)),
        (vec![agent.clone()], vec![agent.clone()])
    );
    assert!(!setup.registry.is_held(&agent, "k8s.c.1") && !setup.registry.connection(&agent).is_watching);

    let mut feed = setup.feed(None).await;
    assert!(setup.registry.connection(&agent).is_watching);
    assert!(!setup.registry.is_held(&agent, "k8s.c.1"), "a snapshot waits");
    next_of_entries(&mut feed).await;
    let hop = setup.registry.hop(&agent, "k8s.c.1");
    assert!(
        setup.registry.is_held(&agent, "k8s.c.1") && hop.sent_at >= hop.derived_at && hop.sent_at.is_some()
    );

    let mut parts = derived.into_parts();
    parts.hint = "changed".to_owned();
    let changed = Entry::check(parts, &domain()).unwrap();
    setup.registry.apply_derived(&[of_rule(changed)], &[]);
    assert!(!setup.registry.is_held(&agent, "k8s.c.1"), "a delta waits");
    assert_eq!(setup.registry.hop(&agent, "k8s.c.1").sent_at, None);
    next_of_entries(&mut feed).await;
    assert!(setup.registry.is_held(&agent, "k8s.c.1"));
    assert!(setup.registry.hop(&agent, "k8s.c.1").sent_at.is_some());
    drop(feed);
    assert!(!setup.registry.is_held(&agent, "k8s.c.1"));

    let all = setup.registry.authorized(&agent);
    setup.registry.note_fetched(&agent, &all);
    assert!(setup.registry.connection(&agent).polled_at.is_some());
    setup.registry.note_signed(&agent, "k8s.c.1", 77);
    assert_eq!(setup.registry.hop(&agent, "k8s.c.1").svid_expires_at, 77);
    setup.registry.apply_derived(&[], &["k8s.c.1".into()]);
    assert_eq!(setup.registry.hop(&agent, "k8s.c.1"), Hop::default());
}

#[tokio::test]
async fn another_history_is_held_back_until_released() {
    let setup = setup().await;
    setup.create(vec![child(1)]).await;
    setup.registry.catch_up().await.unwrap();
    let foreign = Revision {
        n: setup.registry.applied().n,
        mark: 1,
    };
    setup.registry.write().loaded_at(foreign);
    setup.registry.applied.send_replace(foreign);
    setup.store.delete_entry("e1").await.unwrap();
    assert!(matches!(
        setup.registry.catch_up().await,
        Err(RegistryError::Held(_))
    ));
    assert!(matches!(
        &*setup.registry.following().borrow(),
        Following::Held(_)
    ));
    assert!(setup.registry.held().is_some());
    assert!(setup.registry.entry("e1").is_some(), "memory stays as it was");
    assert!(
        setup
            .registry
            .authorized_entry(&id(AGENT), "nobody")
            .await
            .is_err(),
        "no refusal while held"
    );
    let mut feed = setup.feed(None).await;
    next_of_entries(&mut feed).await;
    setup.registry.release().await.unwrap();
    assert_eq!(*setup.registry.following().borrow(), Following::Yes);
    assert!(setup.registry.entry("e1").is_none());
    assert!(
        matches!(next_of_entries(&mut feed).await, FeedEvent::Snapshot { entries, .. } if entries.is_empty())
    );
}

async fn open(directory: &TempDir) -> Arc<SqliteStore> {
    let path = directory.path().join("datastore.sqlite3");
    Arc::new(
        SqliteStore::open(&path, &domain(), Clock::system())
            .await
            .unwrap(),
    )
}

/// A registry that stands at the revision of an earlier life of the store.
async fn stale(directory: &TempDir, meanwhile: &'static str) -> Arc<Registry> {
    let store = open(directory).await;
    store.create_entries((0..10).map(child).collect()).await.unwrap();
    let core = super::tail::load(&*store, &domain()).await.unwrap();
    store
        .delete_entries((0..8).map(|n| format!("e{n}")).collect())
        .await
        .unwrap();
    store.close().await;
    drop(store);
    let path = directory.path().join("datastore.sqlite3");
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(path);
    let mut connection = <sqlx::SqliteConnection as sqlx::Connection>::connect_with(&options)
        .await
        .unwrap();
    sqlx::raw_sql(meanwhile).execute(&mut connection).await.unwrap();
    sqlx::Connection::close(connection).await.unwrap();
    let store = open(directory).await;
    Arc::new(Registry {
        sources: sources::Sources::default(),
        askable: RwLock::default(),
        hops: Mutex::default(),
        store,
        trust_domain: domain(),
        clock: Clock::system(),
        tail: Tail::new(),
        applied: watch::Sender::new(core.applied()),
        bundles: watch::Sender::new(core.bundles.clone()),
        core: RwLock::new(core),
    })
}

#[tokio::test]
async fn a_reload_that_loses_most_entries_needs_an_explanation_in_the_log() {
    // Row 10 of the log is the one that the registry stands at; rows 11 to 18 are the deletions.
    let directory = tempfile::tempdir().unwrap();
    let explained = stale(&directory, "DELETE FROM changes WHERE n <= 10").await;
    explained.catch_up().await.unwrap();
    assert_eq!(explained.entry_count(), 2);

    let directory = tempfile::tempdir().unwrap();
    let unexplained = stale(&directory, "DELETE FROM changes WHERE n <= 15").await;
    assert!(matches!(
        unexplained.catch_up().await,
        Err(RegistryError::Held(_))
    ));
    assert_eq!(unexplained.entry_count(), 10);
    unexplained.release().await.unwrap();
    assert_eq!(unexplained.entry_count(), 2);
}
