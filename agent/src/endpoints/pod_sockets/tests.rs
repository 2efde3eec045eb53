//! Folders as the driver makes them, and callers on the sockets in them.
#![allow(clippy::disallowed_methods)] // Tests lay out files by hand, and end their tasks themselves.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::{Code, Status, Streaming};

use super::*;
use crate::endpoints::client;
use crate::endpoints::health::Probe;
use crate::endpoints::listener::Caller;
use crate::endpoints::peer::{Peer, StrangerError, UnknownCaller};
use crate::endpoints::routes::LocalRoutes;
use crate::endpoints::session::{Access, Session, Sessions};
use crate::endpoints::testing::World;
use crate::endpoints::workload_api::WorkloadApi;
use crate::svids::CachedEntry;
use crate::workload::pods::Mismatch;
use crate::workload::{Process, Workload};

const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";

/// An agent's sockets over a tree that the test fills as the driver would.
struct Tree {
    tree: SocketTree,
    world: World,
    served: JoinHandle<Result<(), Infallible>>,
    settings: CsiSettings,
    too_many: watch_channel::Sender<Option<String>>,
    _dir: tempfile::TempDir,
}

impl Tree {
    fn serve(per_pod: bool) -> Self {
        Self::serve_for(64, per_pod)
    }

    /// Sockets for so many pods at most.
    fn serve_for(most: usize, per_pod: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let settings = CsiSettings {
            socket_dir: dir.path().join("csi"),
            per_pod,
            ..CsiSettings::default()
        };
        let (world, too_many) = (World::new(), watch_channel::Sender::new(None));
        let served = tokio::spawn(Self::run(&world, &settings, most, &too_many));
        Self {
            tree: SocketTree::layout(&settings.socket_dir),
            world,
            served,
            settings,
            too_many,
            _dir: dir,
        }
    }

    fn run(
        world: &World,
        settings: &CsiSettings,
        most: usize,
        too_many: &watch_channel::Sender<Option<String>>,
    ) -> impl Future<Output = Result<(), Infallible>> + use<> {
        let probe = Probe::new(None, world.node.subscribe());
        let routes = LocalRoutes::new(probe)
            .with(WorkloadApi::new(Sessions::new(world.parts())))
            .build()
            .unwrap();
        let parts = PodSocketParts {
            most,
            too_many: too_many.clone(),
            routes,
            admission: Admission::new(64),
            procfs: ProcFs::default(),
            stop: world.tasks.stop_signal(),
        };
        PodSockets::open(settings).unwrap().run(parts)
    }

    /// What the driver does.
    fn publish(&self, uid: &str, record_uid: &str) {
        let stage = self.tree.pods().join(".new");
        std::fs::create_dir_all(stage.join("sockets")).unwrap();
        let record = PodRecord {
            uid: record_uid.to_owned(),
            namespace: "shop".to_owned(),
            name: "web-0".to_owned(),
            service_account: "web".to_owned(),
        };
        std::fs::write(stage.join("pod.json"), record.to_json().unwrap()).unwrap();
        std::fs::rename(stage, self.tree.pod(uid)).unwrap();
    }

    fn unpublish(&self, uid: &str) {
        let old = self.tree.pods().join(".old");
        std::fs::rename(self.tree.pod(uid), &old).unwrap();
        std::fs::remove_dir_all(old).unwrap();
    }

    fn socket(&self, uid: &str, name: &str) -> PathBuf {
        self.tree.sockets_of(uid).join(name)
    }

    fn entry(&self, id: &str, selectors: &[&str]) -> CachedEntry {
        CachedEntry {
            selectors: selectors
                .iter()
                .map(|text| Selector::parse(text).unwrap())
                .collect(),
            ..self.world.entry(id)
        }
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        self.served.abort();
    }
}

async fn listens(path: &Path) {
    tokio::time::timeout(Duration::from_secs(20), async {
        while UnixStream::connect(path).await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

async fn open(path: &Path) -> Result<Streaming<X509svidResponse>, Status> {
    listens(path).await;
    let mut client = client::workload(path).await.unwrap();
    let answer = client.fetch_x509svid(X509svidRequest {}).await?;
    Ok(answer.into_inner())
}

async fn ids(path: &Path) -> Vec<String> {
    let message = open(path).await.unwrap().message().await.unwrap().unwrap();
    message.svids.into_iter().map(|svid| svid.spiffe_id).collect()
}

#[tokio::test]
async fn a_caller_is_the_pod_whose_socket_it_calls_on_and_nothing_more_is_known() {
    let tree = Tree::serve(true);
    let uid = format!("k8s:pod-uid:{UID}");
    tree.world.publish_entries(vec![
        tree.entry("pod", &["k8s:ns:shop", "k8s:sa:web", &uid, "k8s:pod-name:web-0"]),
        tree.entry("container", &["k8s:ns:shop", "k8s:container-name:web"]),
        // The process is not looked at, although it could be.
        tree.entry("process", &["unix:uid:1000"]),
    ]);
    *tree.world.facts.lock().unwrap() = None;
    tree.publish(UID, UID);
    for name in ["spire-agent.sock", "socket", "api.sock"] {
        assert_eq!(ids(&tree.socket(UID, name)).await, ["spiffe://example.org/pod"]);
    }
    let mode = std::fs::metadata(tree.socket(UID, "api.sock")).unwrap();
    assert_eq!(mode.permissions().mode() & 0o777, 0o777);
}

#[tokio::test]
async fn streams_end_with_the_folder_and_a_folder_made_anew_has_its_socket_again() {
    let tree = Tree::serve(true);
    tree.world
        .publish_entries(vec![tree.entry("pod", &["k8s:ns:shop"])]);
    tree.publish(UID, UID);
    let path = tree.socket(UID, "spire-agent.sock");
    let mut stream = open(&path).await.unwrap();
    stream.message().await.unwrap().unwrap();
    tree.unpublish(UID);
    let ended = stream.message().await.unwrap_err();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::Unavailable, "the pod has lost its volume")
    );
    tree.publish(UID, UID);
    assert_eq!(ids(&path).await, ["spiffe://example.org/pod"]);
}

#[tokio::test]
async fn a_folder_made_anew_has_a_socket_of_its_own_whatever_stands_in_it() {
    let tree = Tree::serve(true);
    tree.world
        .publish_entries(vec![tree.entry("pod", &["k8s:ns:shop"])]);
    tree.publish(UID, UID);
    let path = tree.socket(UID, "spire-agent.sock");
    listens(&path).await;
    // One that an agent left behind, in the folder that takes the other's place between two looks.
    tree.publish("0a1b", UID);
    let stale = tree.socket("0a1b", "spire-agent.sock");
    drop(std::os::unix::net::UnixListener::bind(stale).unwrap());
    let away = tree.tree.pods().join(".old");
    std::fs::rename(tree.tree.pod(UID), &away).unwrap();
    std::fs::rename(tree.tree.pod("0a1b"), tree.tree.pod(UID)).unwrap();
    std::fs::remove_dir_all(away).unwrap();
    assert_eq!(ids(&path).await, ["spiffe://example.org/pod"]);
}

#[tokio::test]
async fn an_agent_that_starts_finds_the_folders_and_their_old_sockets() {
    let mut tree = Tree::serve(true);
    tree.world
        .publish_entries(vec![tree.entry("pod", &["k8s:ns:shop"])]);
    tree.publish(UID, UID);
    let path = tree.socket(UID, "api.sock");
    listens(&path).await;
    // Killed, it leaves its sockets behind.
    tree.served.abort();
    drop((&mut tree.served).await);
    tree.served = tokio::spawn(Tree::run(&tree.world, &tree.settings, 64, &tree.too_many));
    assert_eq!(ids(&path).await, ["spiffe://example.org/pod"]);
}

#[tokio::test]
async fn a_folder_that_says_it_is_another_pods_has_no_socket() {
    let tree = Tree::serve(true);
    tree.world
        .publish_entries(vec![tree.entry("pod", &["k8s:ns:shop"])]);
    tree.publish("0a1b", UID);
    tree.publish(UID, UID);
    // Both were looked at by the time one of them listens.
    listens(&tree.socket(UID, "api.sock")).await;
    assert!(!tree.socket("0a1b", "spire-agent.sock").exists());
}

#[tokio::test]
async fn more_pods_than_there_are_files_for_wait_until_others_have_gone() {
    const LATER: &str = "0a1b";
    let tree = Tree::serve_for(1, true);
    let mut told = tree.too_many.subscribe();
    let within = Duration::from_secs(20);
    tree.publish(UID, UID);
    listens(&tree.socket(UID, "api.sock")).await;
    assert_eq!(*told.borrow(), None);
    // Its name comes before the other's.
    tree.publish(LATER, LATER);
    let is_told = tokio::time::timeout(within, told.wait_for(Option::is_some)).await;
    let why = is_told.unwrap().unwrap().clone().unwrap();
    assert!(
        why.contains("1 pods at most") && why.contains("open files"),
        "{why}"
    );
    assert!(UnixStream::connect(tree.socket(UID, "api.sock")).await.is_ok());
    assert!(!tree.socket(LATER, "api.sock").exists());
    tree.unpublish(UID);
    listens(&tree.socket(LATER, "api.sock")).await;
    let is_over = tokio::time::timeout(within, told.wait_for(Option::is_none)).await;
    assert!(is_over.unwrap().is_ok());
}

#[test]
fn pods_leave_most_files_to_connections() {
    let pods = [10, 1024, 4096, u64::MAX].map(pods_for_open_files);
    assert_eq!(pods, [16, 128, 512, MAX_PODS]);
}

#[tokio::test]
async fn one_socket_for_all_knows_its_callers_by_their_processes() {
    let tree = Tree::serve(false);
    tree.world
        .publish_entries(vec![tree.entry("process", &["unix:uid:1000"])]);
    *tree.world.facts.lock().unwrap() = Some(vec!["unix:uid:1000"]);
    let path = tree.tree.shared().join("socket");
    assert_eq!(ids(&path).await, ["spiffe://example.org/process"]);
}

fn procfs_of(dir: &Path, cgroup: &str) -> ProcFs {
    let folder = dir.join(std::process::id().to_string());
    std::fs::create_dir_all(&folder).unwrap();
    let stat = std::fs::read("/proc/self/stat").unwrap();
    std::fs::write(folder.join("stat"), stat).unwrap();
    std::fs::write(folder.join("cgroup"), cgroup).unwrap();
    ProcFs::at(dir)
}

#[tokio::test]
async fn a_process_of_another_pod_is_refused_on_this_pods_socket() {
    let dir = tempfile::tempdir().unwrap();
    let pod = Arc::new(crate::workload::pods::tests::pod(UID));
    let id = "c".repeat(64);
    let peer = |cgroup: &str| {
        let procfs = procfs_of(dir.path(), cgroup);
        let process = Process::open(i64::from(std::process::id()), &procfs).unwrap();
        Peer::of_process(process).on_socket_of(&pod).workload()
    };
    let own = peer(&format!("0::/kubepods/pod{UID}/{id}\n"));
    assert!(matches!(own, Ok(Workload::Pod(_))), "{own:?}");
    let other = peer(&format!("0::/kubepods/pod0{}/{id}\n", &UID[1..]));
    let Err(UnknownCaller::Stranger(stranger)) = other else {
        panic!("{other:?}");
    };
    assert!(
        matches!(*stranger, StrangerError::Mismatch(Mismatch::OtherPod { .. })),
        "{stranger}"
    );
    let unclear = peer("nonsense");
    let Err(UnknownCaller::Stranger(stranger)) = unclear else {
        panic!("{unclear:?}");
    };
    assert!(
        matches!(*stranger, StrangerError::Mismatch(Mismatch::Unclear(_))),
        "{stranger}"
    );
    // Where it belongs cannot be read.
    let procfs = procfs_of(dir.path(), "");
    let process = Process::open(i64::from(std::process::id()), &procfs).unwrap();
    std::fs::remove_file(dir.path().join(std::process::id().to_string()).join("cgroup")).unwrap();
    let unreadable = Peer::of_process(process).on_socket_of(&pod).workload();
    let Err(UnknownCaller::Stranger(stranger)) = unreadable else {
        panic!("{unreadable:?}");
    };
    assert!(
        matches!(*stranger, StrangerError::Unreadable { .. }),
        "{stranger}"
    );
}

#[tokio::test]
async fn a_process_of_another_pod_gets_a_code_that_an_operator_can_look_up() {
    let (dir, world) = (tempfile::tempdir().unwrap(), World::new());
    let pod = Arc::new(crate::workload::pods::tests::pod(UID));
    let procfs = procfs_of(
        dir.path(),
        &format!("0::/kubepods/pod0{}/{}\n", &UID[1..], "c".repeat(64)),
    );
    let process = Process::open(i64::from(std::process::id()), &procfs).unwrap();
    let mut request = tonic::Request::new(());
    request.extensions_mut().insert(Caller {
        peer: Peer::of_process(process).on_socket_of(&pod),
        admitted: Arc::new(Admission::new(4).admit(0).unwrap()),
    });
    let parts = world.parts();
    let refusals = parts.refusals.clone();
    let refused = Session::open(&Sessions::new(parts), &request, Access::X509Svids).await;
    let status = refused.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "no identity issued")
    );
    let code = status.metadata().get("finial-reference").unwrap();
    let noted = refusals.find(code.to_str().unwrap()).unwrap();
    assert!(noted.reason.contains("another pod"), "{}", noted.reason);
    assert_eq!(noted.pid, std::process::id());
}

#[tokio::test]
async fn a_process_that_has_ended_is_nobody_on_a_pods_socket_too() {
    let pod = Arc::new(crate::workload::pods::tests::pod(UID));
    let ended = Peer::ended().on_socket_of(&pod).workload();
    assert!(matches!(ended, Err(UnknownCaller::Process(_))), "{ended:?}");
}

#[tokio::test]
async fn a_process_that_cannot_be_seen_is_known_by_its_pods_socket_alone() {
    let hidden = Peer::hidden();
    assert!(hidden.workload().is_err());
    let pod = Arc::new(crate::workload::pods::tests::pod(UID));
    let known = hidden.on_socket_of(&pod).workload();
    assert!(matches!(known, Ok(Workload::Pod(_))), "{known:?}");
}
