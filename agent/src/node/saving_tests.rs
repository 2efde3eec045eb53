//! A data directory that cannot be written for a while, in paused time unless a server is needed.
#![allow(clippy::disallowed_methods, reason = "tests own their tasks and files")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::key::manager::DiskKeyManager;
use finial_identity::key::{KeyError, KeyManager, KeyType, PrivateKey, PrivateKeyManager, Signer};
use finial_identity::process::{Clock, Stop};
use finial_identity::x509::X509Svid;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio::time::Instant;

use super::saving::Use;
use super::{AgentStorage, Denial, JoinTokenAttestor, Node, NodeSettings, NodeState, renew};
use crate::test_agent::{TestAgent, open, open_at};
use crate::test_log::TestLog;
use crate::test_server::TestServer;
use crate::test_world::World;
use crate::upstream::DenialReason;

const ID: &str = "/spire/agent/join_token/token";
const HOUR: Duration = Duration::from_secs(3600);
const MINUTE: Duration = Duration::from_secs(60);

/// A directory that can be taken away and given back; moved, because for root no mode forbids writing.
struct Disk {
    base: TempDir,
}

impl Disk {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        std::fs::create_dir(base.path().join("data")).unwrap();
        Self { base }
    }

    fn dir(&self) -> PathBuf {
        self.base.path().join("data")
    }

    fn fail(&self) {
        std::fs::rename(self.dir(), self.base.path().join("away")).unwrap();
    }

    fn recover(&self) {
        std::fs::rename(self.base.path().join("away"), self.dir()).unwrap();
    }

    /// Only `agent-data.json` cannot be replaced any more.
    fn fail_data_file(&self) {
        let path = self.dir().join("agent-data.json");
        std::fs::rename(&path, self.base.path().join("data-file")).unwrap();
        std::fs::create_dir(path).unwrap();
    }

    fn recover_data_file(&self) {
        let path = self.dir().join("agent-data.json");
        std::fs::remove_dir(&path).unwrap();
        std::fs::rename(self.base.path().join("data-file"), path).unwrap();
    }
}

/// Keys on a disk that does not answer before it is told to.
#[derive(Debug)]
struct Stalled {
    keys: Arc<dyn PrivateKeyManager>,
    answers: watch::Receiver<bool>,
}

#[async_trait]
impl KeyManager for Stalled {
    async fn generate_key(&self, id: &str, key_type: KeyType) -> Result<Arc<dyn Signer>, KeyError> {
        self.keys.generate_key(id, key_type).await
    }

    async fn key(&self, id: &str) -> Result<Option<Arc<dyn Signer>>, KeyError> {
        self.keys.key(id).await
    }

    async fn keys(&self) -> Result<Vec<(String, Arc<dyn Signer>)>, KeyError> {
        self.keys.keys().await
    }
}

#[async_trait]
impl PrivateKeyManager for Stalled {
    fn private_key(&self, id: &str) -> Option<Arc<PrivateKey>> {
        self.keys.private_key(id)
    }

    async fn set_private_key(&self, id: &str, key: Arc<PrivateKey>) -> Result<(), KeyError> {
        let answered = self.answers.clone().wait_for(|answers| *answers).await.is_ok();
        assert!(answered);
        self.keys.set_private_key(id, key).await
    }
}

/// A node with a saved SVID that lives for an hour from now, and a clock that follows tokio's.
struct Fixture {
    disk: Disk,
    server: TestServer,
    clock: Clock,
    node: Node,
    first: String,
}

impl Fixture {
    async fn new() -> Self {
        let (disk, server) = (Disk::new(), TestServer::start());
        let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        let svid = server
            .state()
            .authority
            .svid_for(ID, Arc::clone(&key), time::Duration::hours(1));
        let keys = DiskKeyManager::open(&disk.dir().join("keys.json")).unwrap();
        keys.set_private_key("agent-svid-A", key).await.unwrap();
        let bundle = server.state().bundle.x509_certificates();
        AgentStorage::open(&disk.dir())
            .unwrap()
            .update(|data| {
                data.svid = svid.chain().to_vec();
                data.bundle = bundle;
            })
            .unwrap();
        let clock = Clock::paused_at(Clock::system().now());
        let mut node = open_at(&server, &disk.dir(), None, clock.clone());
        node.status_posted = true;
        let first = svid.leaf().serial_hex();
        let fixture = Self {
            disk,
            server,
            clock,
            node,
            first,
        };
        assert_eq!(fixture.used(), fixture.first);
        fixture
    }

    /// Takes up an SVID for two hours, as after a renewal or an attestation; gives its serial.
    async fn take_up(&mut self, when: Use) -> String {
        let (slot, key) = self.node.next_key().await.unwrap();
        assert_eq!(slot, "agent-svid-B");
        let svid = self
            .server
            .state()
            .authority
            .svid_for(ID, key, time::Duration::hours(2));
        let serial = svid.leaf().serial_hex();
        self.node.take_up(slot, svid, false, when).await;
        serial
    }

    /// From now on keys are not written before this says so.
    fn stall_keys(&mut self) -> watch::Sender<bool> {
        let (sender, answers) = watch::channel(false);
        let keys = Arc::clone(&self.node.keys);
        self.node.keys = Arc::new(Stalled { keys, answers });
        sender
    }

    /// The loop of [`Node::run`] for some time; gives how often it looked.
    async fn live(&mut self, time: Duration) -> usize {
        let end = tokio::time::Instant::now() + time;
        let mut looks = 0;
        while tokio::time::Instant::now() < end {
            let wait = self.node.until_look();
            tokio::time::sleep(wait).await;
            self.node.look().await.unwrap();
            looks += 1;
        }
        looks
    }

    fn used(&self) -> String {
        serial(&self.node.svid().unwrap())
    }

    fn state(&self) -> String {
        self.node.handle().state().borrow().to_string()
    }

    /// What the next start takes up.
    fn after_restart(&self) -> Option<String> {
        let node = open_at(&self.server, &self.disk.dir(), None, self.clock.clone());
        node.svid().map(|svid| serial(&svid))
    }
}

fn serial(svid: &X509Svid) -> String {
    svid.leaf().serial_hex()
}

#[tokio::test(start_paused = true)]
async fn a_renewed_svid_is_held_back_until_it_is_saved() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let renewed = fixture.take_up(Use::OnceSaved).await;
    let looks = fixture.live(HOUR / 6).await;
    assert_eq!(fixture.used(), fixture.first);
    let state = fixture.state();
    assert!(
        state.starts_with("degraded: ") && state.contains("held back") && state.contains("write keys"),
        "{state}"
    );
    assert!((100..200).contains(&looks), "{looks} looks in ten minutes");
    fixture.disk.recover();
    assert_eq!(fixture.after_restart(), Some(fixture.first.clone()));
    fixture.live(Duration::from_secs(40)).await;
    assert_eq!(fixture.used(), renewed);
    assert_eq!(fixture.state(), "serving");
    assert_eq!(fixture.after_restart(), Some(renewed));
    assert!(fixture.node.saving.is_due() && fixture.node.held().is_none());
}

#[tokio::test(start_paused = true)]
async fn in_the_last_eighth_of_the_former_life_it_is_used_from_memory_and_saved_later() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let renewed = fixture.take_up(Use::OnceSaved).await;
    fixture.live(HOUR * 51 / 60).await;
    assert_eq!(fixture.used(), fixture.first);
    fixture.live(HOUR * 2 / 60).await;
    assert_eq!(fixture.used(), renewed);
    let state = fixture.state();
    assert!(
        state.contains("attest anew") && state.contains("write keys"),
        "{state}"
    );
    fixture.disk.recover();
    fixture.live(Duration::from_secs(40)).await;
    assert_eq!(fixture.state(), "serving");
    assert_eq!(fixture.used(), renewed);
    assert_eq!(fixture.after_restart(), Some(renewed));
}

#[tokio::test(start_paused = true)]
async fn an_attested_svid_is_used_at_once_and_saved_later() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let attested = fixture.take_up(Use::AtOnce).await;
    assert_eq!(fixture.used(), attested);
    assert!(fixture.state().contains("attest anew"), "{}", fixture.state());
    fixture.disk.recover();
    fixture.live(Duration::from_secs(10)).await;
    assert_eq!(fixture.state(), "serving");
    assert_eq!(fixture.after_restart(), Some(attested));
}

#[tokio::test(start_paused = true)]
async fn a_key_written_without_its_svid_does_no_harm() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail_data_file();
    fixture.take_up(Use::OnceSaved).await;
    assert_eq!(fixture.used(), fixture.first);
    let state = fixture.state();
    assert!(
        state.contains("held back") && state.contains("agent-data.json"),
        "{state}"
    );
    fixture.disk.recover_data_file();
    assert_eq!(fixture.after_restart(), Some(fixture.first.clone()));
}

#[tokio::test(start_paused = true)]
async fn a_later_renewal_takes_the_place_of_one_that_was_never_saved() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail_data_file();
    fixture.take_up(Use::AtOnce).await;
    let latest = fixture.take_up(Use::AtOnce).await;
    assert_eq!(fixture.used(), latest);
    fixture.disk.recover_data_file();
    fixture.live(Duration::from_secs(40)).await;
    assert_eq!(fixture.after_restart(), Some(latest));
    assert_eq!(fixture.node.next_key().await.unwrap().0, "agent-svid-A");
}

#[tokio::test(start_paused = true)]
async fn a_denial_of_the_former_brings_the_one_held_back() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let renewed = fixture.take_up(Use::OnceSaved).await;
    fixture.node.denied(DenialReason::AgentExpired).await.unwrap();
    assert_eq!(fixture.used(), renewed);
    // Another one of the former says nothing new, unless it is a ban.
    let of = |reason, serial: &String| Denial {
        reason,
        serial: Some(serial.clone()),
    };
    let former = fixture.first.clone();
    assert!(
        !fixture
            .node
            .is_present(&of(DenialReason::AgentNotActive, &former))
    );
    assert!(fixture.node.is_present(&of(DenialReason::AgentBanned, &former)));
    assert!(
        fixture
            .node
            .is_present(&of(DenialReason::AgentNotActive, &renewed))
    );
    // A second denial is about the new one.
    fixture.node.denied(DenialReason::AgentExpired).await.unwrap();
    assert!(fixture.state().contains("denied"), "{}", fixture.state());
}

#[tokio::test(start_paused = true)]
async fn what_a_tainted_authority_signed_is_replaced_from_memory() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let renewed = fixture.take_up(Use::OnceSaved).await;
    assert_eq!(fixture.used(), fixture.first);
    let mut bundle = (*fixture.node.handle().own_bundle()).clone();
    for authority in &mut bundle.x509_authorities {
        authority.tainted = true;
    }
    fixture.node.handle().adopt_bundle(bundle);
    fixture.node.catch_up().await;
    assert_eq!(fixture.used(), renewed);
}

#[tokio::test(start_paused = true)]
async fn a_bundle_that_could_not_be_saved_is_saved_later() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let mut bundle = (*fixture.node.handle().own_bundle()).clone();
    let other = crate::test_pki::Authority::new("example.org").bundle();
    bundle.x509_authorities.extend(other.x509_authorities);
    fixture.node.handle().adopt_bundle(bundle);
    fixture.node.bundle_changed().await;
    let state = fixture.state();
    assert!(state.contains("agent data cannot be saved"), "{state}");
    fixture.disk.recover();
    fixture.live(Duration::from_secs(10)).await;
    assert_eq!(fixture.state(), "serving");
    let saved = AgentStorage::open(&fixture.disk.dir()).unwrap().data();
    assert_eq!(saved.bundle.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_svid_in_memory_survives_a_clock_that_was_ahead() {
    let mut fixture = Fixture::new().await;
    fixture.disk.fail();
    let attested = fixture.take_up(Use::AtOnce).await;
    fixture.clock.shift(time::Duration::hours(3));
    let establishing = tokio::time::timeout(HOUR / 60, fixture.node.look()).await;
    assert!(establishing.is_err());
    assert!(fixture.node.svid().is_none());
    fixture.clock.shift(time::Duration::hours(-3));
    fixture.node.look().await.unwrap();
    assert_eq!(fixture.used(), attested);
}

#[tokio::test(start_paused = true)]
async fn an_evicted_agent_does_not_look_without_pause() {
    let mut fixture = Fixture::new().await;
    fixture.node.renewal.failed();
    fixture.node.reattestation.failed();
    fixture.node.denied(DenialReason::AgentNotAttested).await.unwrap();
    tokio::time::advance(HOUR / 60).await;
    assert_eq!(fixture.node.until_look(), renew::CHECK_INTERVAL);
}

#[tokio::test]
async fn a_single_use_token_is_not_shown_before_its_outcome_can_be_saved() {
    let (disk, server) = (Disk::new(), TestServer::start());
    let attestor = Arc::new(JoinTokenAttestor::new("token"));
    let node = open(&server, &disk.dir(), Some(attestor));
    let bundle = std::fs::read(disk.dir().join("bundle.pem")).unwrap();
    disk.fail();
    // The directory is there and takes the bundle, and nothing under the names that the agent writes.
    std::fs::create_dir_all(disk.dir().join("keys.json")).unwrap();
    std::fs::write(disk.dir().join("bundle.pem"), bundle).unwrap();
    let mut states = node.handle().state();
    let run = tokio::spawn(node.run(Stop::never()));
    let refused = |state: &NodeState| state.to_string().contains("works once and is not used");
    tokio::time::timeout(Duration::from_secs(20), states.wait_for(refused))
        .await
        .unwrap()
        .unwrap();
    assert!(server.calls("attest").is_empty());
    std::fs::remove_dir_all(disk.dir()).unwrap();
    disk.recover();
    tokio::time::timeout(Duration::from_secs(20), states.wait_for(NodeState::is_serving))
        .await
        .unwrap()
        .unwrap();
    run.abort();
    assert!(open(&server, &disk.dir(), None).svid().is_some());
}

#[tokio::test]
async fn an_attested_svid_outlives_an_agent_that_ends_while_it_asks_for_the_bundle() {
    let (disk, server) = (Disk::new(), TestServer::start());
    server.state().is_silent_about_bundles = true;
    let agent = TestAgent::start(&server, &disk.dir());
    tokio::time::timeout(Duration::from_secs(20), async {
        while server.calls("bundle").is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert!(agent.node.svid().borrow().is_none());
    drop(agent);
    server.state().is_silent_about_bundles = false;
    let agent = TestAgent::start_with(&server, &disk.dir(), None);
    agent.state(NodeState::is_serving).await;
    assert_eq!(server.calls("attest").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn renewals_go_on_while_the_disk_fails_and_the_last_one_is_saved() {
    let (world, disk) = (World::new(), Disk::new());
    let settings = NodeSettings {
        data_dir: disk.dir(),
        ..world.settings()
    };
    let agent = world.start_as(settings, JoinTokenAttestor::new("token"));
    let is_serving = || agent.node.state().borrow().is_serving();
    let used = || agent.node.svid().borrow().as_deref().map(serial);
    world.until("an SVID", &agent, is_serving).await;
    disk.fail();
    let mut former = used();
    let first = former.clone();
    // Each is renewed at half of its hour, and the next one used when an eighth is left.
    for minutes in [51, 29] {
        world.pass(minutes * MINUTE, MINUTE).await;
        let is_next = || used() != former;
        world.pass_until("renewal", &agent, 5 * MINUTE, is_next).await;
        former = used();
    }
    let said = || agent.node.state().borrow().to_string();
    assert!(said().contains("write keys"), "{}", said());
    disk.recover();
    world.pass_until("recovery", &agent, 2 * MINUTE, is_serving).await;
    let saved = AgentStorage::open(&disk.dir()).unwrap().data();
    let saved = saved.svid.first().map(|leaf| leaf.serial_hex());
    assert!(saved == used() && saved != first);
    assert_eq!(world.server.calls("attest").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn while_the_disk_does_not_answer_the_agent_says_so_and_does_as_if_it_had_failed() {
    let log = TestLog::start();
    let mut fixture = Fixture::new().await;
    let disk = fixture.stall_keys();
    let begun = Instant::now();
    let renewed = fixture.take_up(Use::OnceSaved).await;
    assert_eq!(begun.elapsed().as_secs(), 10);
    fixture.live(HOUR / 2).await;
    assert_eq!(fixture.used(), fixture.first);
    let state = fixture.state();
    assert!(
        state.starts_with("degraded: ") && state.contains("held back") && state.contains("no answer"),
        "{state}"
    );
    // As long as the former one lasts.
    fixture.live(HOUR * 24 / 60).await;
    assert_eq!(fixture.used(), renewed);
    assert_eq!(log.lines("the disk does not answer").len(), 1);
    disk.send_replace(true);
    fixture.live(MINUTE).await;
    assert_eq!(fixture.state(), "serving");
    assert_eq!(fixture.after_restart(), Some(renewed));
    let ended = log.lines("the disk answers again");
    assert!(ended.len() == 1 && ended[0].contains("after=3"), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_renewed_svid_is_used_as_soon_as_the_disk_answers() {
    let mut fixture = Fixture::new().await;
    let disk = fixture.stall_keys();
    let renewed = fixture.take_up(Use::OnceSaved).await;
    let handle = fixture.node.handle();
    let run = tokio::spawn(fixture.node.run(Stop::never()));
    tokio::time::sleep(MINUTE).await;
    let used = |svid: &Option<Arc<X509Svid>>| svid.as_deref().map(serial);
    assert_eq!(used(&handle.svid().borrow()), Some(fixture.first));
    disk.send_replace(true);
    let mut svids = handle.svid();
    let is_used = svids.wait_for(|svid| used(svid).as_ref() == Some(&renewed));
    let waited = tokio::time::timeout(Duration::from_millis(10), is_used).await;
    assert!(waited.is_ok(), "{:?}", handle.state());
    let mut states = handle.state();
    states.wait_for(NodeState::is_serving).await.unwrap();
    run.abort();
}

#[tokio::test(start_paused = true)]
async fn while_the_data_file_is_written_for_long_the_data_can_be_read() {
    let mut fixture = Fixture::new().await;
    // What is tested is the other file.
    fixture.node.next_key().await.unwrap();
    let storage = Arc::clone(&fixture.node.storage);
    let (release, released) = std::sync::mpsc::channel::<()>();
    let (hold, is_held) = std::sync::mpsc::channel();
    let holder = std::thread::spawn(move || {
        storage.update(|_data| {
            hold.send(()).unwrap();
            released.recv().unwrap_err();
        })
    });
    is_held.recv().unwrap();
    let passing = async {
        // Time does not pass by itself while a thread waits for the disk.
        loop {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    };
    let renewed = tokio::select! {
        serial = fixture.take_up(Use::OnceSaved) => serial,
        () = passing => unreachable!("it never ends"),
    };
    assert_eq!(fixture.used(), fixture.first);
    let state = fixture.state();
    assert!(
        state.contains("write agent data") && state.contains("no answer"),
        "{state}"
    );
    // What is asked for next does not wait.
    assert_eq!(fixture.node.next_key().await.unwrap().0, "agent-svid-B");
    drop(release);
    holder.join().unwrap().unwrap();
    fixture.node.disk.answered().await;
    fixture.node.persist().await;
    assert_eq!(fixture.used(), renewed);
    assert_eq!(fixture.after_restart(), Some(renewed));
    assert_eq!(fixture.state(), "serving");
}
