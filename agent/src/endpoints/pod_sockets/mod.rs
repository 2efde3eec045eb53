//! Sockets for the CSI driver's folders: one for each pod, or one for all.
//!
//! The driver makes a folder with the pod's facts and mounts a part of it into the pod; this opens the Workload API's
//! socket in it, for as long as the folder exists. A caller there belongs to that pod: the agent need not see its
//! process.

mod names;
mod watch;

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::unix_listener::ListenError;
use finial_identity::process::{Stop, TaskError, TaskSet};
use time::OffsetDateTime;
use tokio::sync::watch as watch_channel;
use tokio::task::JoinSet;
use tonic::service::Routes;

use self::watch::FolderWatch;
use super::limits::Admission;
use super::listener::LocalSocket;
use crate::config::CsiSettings;
use crate::socket_tree::{PodRecord, RecordError, SocketTree, TreeError};
use crate::workload::ProcFs;
use crate::workload::pods::Pod;

/// How often the folders are read without a notification.
const RESCAN: Duration = Duration::from_secs(30);
/// Most pods with a socket, however many files may be open; a kubelet has 110 by default.
const MAX_PODS: usize = 2048;
/// Pods with a socket in a process that may open hardly any files.
const FEWEST_PODS: usize = 16;

/// Why there can be no sockets for pods.
#[derive(Debug, thiserror::Error)]
pub enum PodSocketsError {
    /// The tree cannot be used.
    #[error("agent.csi.socket_dir: {0}")]
    Tree(#[from] TreeError),
    /// There are no notifications of new folders.
    #[error("agent.csi.socket_dir: watch folder of pods: {0}")]
    Watch(io::Error),
    /// The socket of all pods cannot be opened.
    #[error("{0}")]
    Socket(#[from] SocketError),
}

/// Why one socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// It cannot be found out whose it is.
    #[error("record of pod: {0}")]
    Record(#[from] RecordError),
    /// The socket itself.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// Another name of it.
    #[error("name of socket: {name}: {source}")]
    Name {
        /// The name.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The folder is being removed.
    #[error("folder of pod: {0}")]
    Folder(io::Error),
}

/// The sockets of pods, not yet served.
#[derive(Debug)]
pub struct PodSockets {
    tree: SocketTree,
    names: Vec<String>,
    watch: FolderWatch,
    /// The socket of all pods.
    shared: Option<LocalSocket>,
}

/// What the sockets serve, and how many there may be.
#[derive(Debug)]
pub struct PodSocketParts {
    /// Most pods with a socket, each of which takes a file: see [`pods_for_open_files`].
    pub most: usize,
    /// Told why pods have no socket, while that is because there are too many.
    pub too_many: watch_channel::Sender<Option<String>>,
    /// The services.
    pub routes: Routes,
    /// The limits, the same as on the public socket.
    pub admission: Admission,
    /// Where processes are looked up, as far as they can be seen.
    pub procfs: ProcFs,
    /// When to stop.
    pub stop: Stop,
}

/// A folder that has its socket.
#[derive(Debug)]
struct Open {
    /// Which folder it was; a pod's may be made again.
    folder: (u64, u64),
    /// Ends the socket when dropped.
    _end: tokio::sync::oneshot::Sender<()>,
}

/// How many pods can have a socket in a process that may open so many files: so that there are enough for a kubelet's
/// default, and most are left to connections.
pub fn pods_for_open_files(files: u64) -> usize {
    let share = usize::try_from(files / 8).unwrap_or(usize::MAX);
    share.clamp(FEWEST_PODS, MAX_PODS)
}

impl PodSockets {
    /// Makes the tree where it is missing, and watches it. The socket of all pods is opened, pods' own by
    /// [`PodSockets::run`].
    ///
    /// # Errors
    /// [`PodSocketsError`].
    pub fn open(settings: &CsiSettings) -> Result<Self, PodSocketsError> {
        let tree = SocketTree::open(&settings.socket_dir)?;
        let watch = FolderWatch::open(&tree.pods()).map_err(PodSocketsError::Watch)?;
        let shared = if settings.per_pod {
            None
        } else {
            Some(bind(&tree.shared(), &settings.socket_names)?)
        };
        Ok(Self {
            tree,
            names: settings.socket_names.clone(),
            watch,
            shared,
        })
    }

    /// Opens and closes sockets as folders come and go, until stopped.
    ///
    /// # Errors
    /// None: what cannot be opened is logged, and tried again.
    pub async fn run(self, parts: PodSocketParts) -> Result<(), Infallible> {
        let Self {
            tree,
            names,
            mut watch,
            shared,
        } = self;
        let mut serving = JoinSet::new();
        if let Some(socket) = shared {
            let served = socket.serve(
                parts.routes.clone(),
                parts.admission.clone(),
                parts.procfs.clone(),
                parts.stop.clone(),
            );
            serving.spawn(async move {
                let Ok(()) = served.await;
            });
        }
        let mut pods = Pods {
            tree,
            names,
            parts,
            open: HashMap::new(),
            failing: HashMap::new(),
            next_place: 0,
        };
        let stop = pods.parts.stop.clone();
        loop {
            pods.rescan(&mut serving);
            tokio::select! {
                () = watch.changed() => {}
                () = tokio::time::sleep(RESCAN) => {}
                Some(_ended) = serving.join_next() => {}
                () = stop.stopped() => break,
            }
        }
        pods.open.clear();
        while serving.join_next().await.is_some() {}
        Ok(())
    }
}

/// The pods whose sockets are open.
struct Pods {
    tree: SocketTree,
    names: Vec<String>,
    parts: PodSocketParts,
    open: HashMap<String, Open>,
    /// What went wrong last with whom; said once.
    failing: HashMap<String, String>,
    next_place: u64,
}

impl Pods {
    fn rescan(&mut self, serving: &mut JoinSet<()>) {
        let uids = match self.tree.uids() {
            Ok(uids) => uids,
            Err(error) => return self.report("", &error.to_string()),
        };
        self.failing.remove("");
        let standing: HashSet<&String> = uids.iter().collect();
        let tree = &self.tree;
        self.open.retain(|uid, open| {
            // Its socket may have been removed, or the folder made again.
            let stays = standing.contains(uid)
                && identity(&tree.sockets_of(uid)).is_ok_and(|found| found == open.folder)
                && tree
                    .sockets_of(uid)
                    .join(self.names.first().map_or("", String::as_str))
                    .exists();
            if !stays {
                tracing::info!(pod_uid = uid, "socket of a pod is closed");
            }
            stays
        });
        self.failing
            .retain(|uid, _error| uid.is_empty() || standing.contains(uid));
        let mut has_too_many = false;
        for uid in &uids {
            if self.open.contains_key(uid) {
                continue;
            }
            // Those that have a socket keep it.
            if self.open.len() >= self.parts.most {
                has_too_many = true;
                break;
            }
            match self.begin(uid, serving) {
                Ok(open) => {
                    self.failing.remove(uid);
                    self.open.insert(uid.clone(), open);
                }
                // It goes while it is looked at.
                Err(_) if !self.tree.pod(uid).exists() => {}
                Err(error) => self.report(uid, &error.to_string()),
            }
        }
        self.note_too_many(has_too_many);
    }

    fn note_too_many(&self, has_too_many: bool) {
        let PodSocketParts { most, too_many, .. } = &self.parts;
        let why = match *most {
            MAX_PODS.. => "more are not supported",
            _ => "raise its limit of open files (LimitNOFILE)",
        };
        let trouble = has_too_many.then(|| {
            format!("pods have no socket, because this agent opens one for {most} pods at most: {why}")
        });
        too_many.send_if_modified(|told| {
            let is_news = *told != trouble;
            if is_news {
                *told = trouble;
            }
            is_news
        });
    }

    fn begin(&mut self, uid: &str, serving: &mut JoinSet<()>) -> Result<Open, SocketError> {
        let folder = self.tree.sockets_of(uid);
        let record = PodRecord::load(&self.tree, uid)?;
        let since = std::fs::metadata(self.tree.record_of(uid)).and_then(|metadata| metadata.modified());
        let identity = identity(&folder).map_err(SocketError::Folder)?;
        let socket = bind(&folder, &self.names)?;
        let mut tasks = TaskSet::new();
        self.next_place += 1;
        let since = since.ok().map(OffsetDateTime::from);
        let pod = Arc::new(Pod::new(record, since, self.next_place, tasks.stop_signal()));
        tracing::info!(
            pod_uid = uid,
            namespace = pod.record().namespace,
            pod = pod.record().name,
            "socket of a pod is open"
        );
        tasks.spawn(
            "pod-socket",
            socket.serve_pod(
                pod,
                self.parts.routes.clone(),
                self.parts.admission.clone(),
                self.parts.procfs.clone(),
                tasks.stop_signal(),
            ),
        );
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        let stop = self.parts.stop.clone();
        serving.spawn(async move {
            let until = async {
                tokio::select! {
                    _dropped = ended => {}
                    () = stop.stopped() => {}
                }
            };
            if let Err(error) = tasks.run_until_first_exit(until).await {
                log_end(&error);
            }
        });
        Ok(Open {
            folder: identity,
            _end: end,
        })
    }

    fn report(&mut self, uid: &str, error: &str) {
        if self.failing.get(uid).is_none_or(|said| said != error) {
            tracing::warn!(pod_uid = uid, error, "socket of a pod cannot be opened");
            self.failing.insert(uid.to_owned(), error.to_owned());
        }
    }
}

fn log_end(error: &TaskError) {
    tracing::error!(%error, "socket of a pod is served no more");
}

/// Opens the socket under the first name; the others lead to it.
fn bind(folder: &Path, names: &[String]) -> Result<LocalSocket, SocketError> {
    let (first, others) = names.split_first().expect("a checked configuration has a name");
    let socket = LocalSocket::public(&folder.join(first))?;
    for name in others {
        names::lead(folder, name, first).map_err(|source| SocketError::Name {
            name: name.clone(),
            source,
        })?;
    }
    Ok(socket)
}

fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::lstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests;
