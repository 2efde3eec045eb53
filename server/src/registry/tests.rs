mod feeds;
mod held_back;
mod masked;

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

fn of_rule(entry: Entry) -> Derived {
    Derived {
        entry: Arc::new(entry),
        origin: "ClusterSPIFFEID r".into(),
    }
}

async fn open(directory: &TempDir) -> Arc<SqliteStore> {
    let path = directory.path().join("datastore.sqlite3");
    Arc::new(
        SqliteStore::open(&path, &domain(), Clock::system())
            .await
            .unwrap(),
    )
}
