//! The folders that are mounted into pods.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use finial_identity::process::private_file::{self, FileError, FileMode};
use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::socket_tree::{PodRecord, RecordError, SocketTree, TreeError};

/// The driver's side of the tree of sockets.
#[derive(Debug)]
pub(super) struct Folders {
    tree: SocketTree,
}

/// Why a folder cannot be had, or not be removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum FolderError {
    /// The tree cannot be used.
    #[error("agent.csi.socket_dir: {0}")]
    Tree(#[from] TreeError),
    /// A file in it cannot be written.
    #[error("{0}")]
    File(#[from] FileError),
    /// A record cannot be written.
    #[error("record of pod: {0}")]
    Record(#[from] RecordError),
    /// There is a folder for this UID, and it is another pod's.
    #[error("folder exists for another pod of this uid: {0}")]
    Taken(String),
    /// The system refused.
    #[error("{action}: {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl Folders {
    /// The folders below `socket_dir`, which is made, or refused when others could change it.
    ///
    /// # Errors
    /// [`FolderError::Tree`].
    pub(super) fn open(socket_dir: &Path) -> Result<Self, FolderError> {
        Ok(Self {
            tree: SocketTree::open(socket_dir)?,
        })
    }

    /// The folder of all pods.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub(super) fn shared(&self) -> Result<OwnedFd, FolderError> {
        folder(&self.tree.shared())
    }

    /// The folder of a pod, which is made unless it stands already.
    ///
    /// # Errors
    /// [`FolderError`].
    pub(super) fn prepare(&self, pod: &PodRecord) -> Result<OwnedFd, FolderError> {
        match PodRecord::load(&self.tree, &pod.uid) {
            Ok(known) if known == *pod => {}
            Ok(_other) => return Err(FolderError::Taken(pod.uid.clone())),
            // Missing, or broken.
            Err(_) => self.make(pod)?,
        }
        folder(&self.tree.sockets_of(&pod.uid))
    }

    /// Removes the folder of a pod. One that is not there is not missed.
    ///
    /// # Errors
    /// [`FolderError::Io`].
    pub(super) fn release(&self, uid: &str) -> Result<(), FolderError> {
        let old = self.tree.pods().join(format!(".old-{uid}"));
        remove(&old)?;
        match std::fs::rename(self.tree.pod(uid), &old) {
            Ok(()) => remove(&old),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("move folder of pod away", &self.tree.pod(uid))(error)),
        }
    }

    /// Whether a mount with this root is of the pod's folder.
    pub(super) fn is_of(root: &Path, uid: &str) -> bool {
        root.ends_with(Path::new("pods").join(uid).join("sockets"))
    }

    /// Removes what an earlier driver left of pods that the kubelet does not know any more. Nothing, while the kubelet's own
    /// folder of pods cannot be seen.
    ///
    /// # Errors
    /// When the tree cannot be read. A folder that cannot be removed is logged.
    pub(super) fn prune(&self, kubelet_pods: &Path) -> Result<(), FolderError> {
        if !kubelet_pods.is_dir() {
            // Not mounted, or elsewhere: then no pod would seem to be there, and all would lose their sockets.
            let path = kubelet_pods.display();
            tracing::warn!(%path, "folders of pods are kept: the kubelet's folder of pods is not there");
            return Ok(());
        }
        let pods = self.tree.pods();
        let unreadable = failed("read folder of pods", &pods);
        for entry in std::fs::read_dir(&pods).map_err(&unreadable)? {
            let name = entry.map_err(&unreadable)?.file_name();
            let Some(name) = name.to_str() else { continue };
            let outcome = if name.starts_with('.') {
                remove(&pods.join(name))
            } else if matches!(kubelet_pods.join(name).try_exists(), Ok(false)) {
                self.release(name)
            } else {
                continue;
            };
            match outcome {
                Ok(()) => tracing::info!(pod = name, "folder of a pod that is gone was removed"),
                Err(error) => tracing::warn!(pod = name, %error, "folder of a pod cannot be removed"),
            }
        }
        Ok(())
    }

    /// It appears whole, under its name.
    fn make(&self, pod: &PodRecord) -> Result<(), FolderError> {
        self.release(&pod.uid)?;
        let new = format!(".new-{}", pod.uid);
        let stage = self.tree.pods().join(&new);
        remove(&stage)?;
        private_file::create_private_dir(&stage, FileMode::PRIVATE_DIR)?;
        private_file::create_private_dir(&stage.join("sockets"), FileMode::PUBLIC_DIR)?;
        private_file::write(&stage.join("pod.json"), &pod.to_json()?, FileMode::SECRET)?;
        let place = self.tree.pod(&pod.uid);
        std::fs::rename(&stage, &place).map_err(failed("put folder of pod into place", &place))
    }
}

fn folder(path: &Path) -> Result<OwnedFd, FolderError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = openat(CWD, path, flags, Mode::empty());
    opened.map_err(|error| failed("open folder", path)(error.into()))
}

/// Links in it are removed, not followed.
fn remove(path: &Path) -> Result<(), FolderError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove folder", path)(error)),
        _ => Ok(()),
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(io::Error) -> FolderError + use<> {
    let path = path.to_owned();
    move |source| FolderError::Io {
        action,
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use super::*;

    fn pod(name: &str) -> PodRecord {
        PodRecord {
            uid: "0a1b".to_owned(),
            namespace: "ns".to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
        }
    }

    #[test]
    fn a_pods_folder_is_whole_stays_and_goes_with_what_is_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::open(dir.path()).unwrap();
        folders.prepare(&pod("a")).unwrap();
        let tree = &folders.tree;
        let inode = |path: PathBuf| std::fs::metadata(path).unwrap().ino();
        let first = inode(tree.sockets_of("0a1b"));
        folders.prepare(&pod("a")).unwrap();
        assert_eq!(inode(tree.sockets_of("0a1b")), first, "a pod has one folder");
        let mode = |path: PathBuf| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(tree.record_of("0a1b")), 0o600);
        assert_eq!(
            (mode(tree.pod("0a1b")), mode(tree.sockets_of("0a1b"))),
            (0o700, 0o755)
        );
        assert!(matches!(folders.prepare(&pod("b")), Err(FolderError::Taken(_))));

        let kept = dir.path().join("kept");
        std::fs::create_dir(&kept).unwrap();
        symlink(&kept, tree.sockets_of("0a1b").join("link")).unwrap();
        folders.release("0a1b").unwrap();
        folders.release("0a1b").unwrap();
        assert!(kept.exists() && std::fs::read_dir(tree.pods()).unwrap().next().is_none());
    }

    #[test]
    fn a_link_in_place_of_a_pods_folder_is_not_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::open(&dir.path().join("csi")).unwrap();
        folders.prepare(&pod("a")).unwrap();
        let elsewhere = dir.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        for place in [folders.tree.sockets_of("0a1b"), folders.tree.shared()] {
            std::fs::remove_dir(&place).unwrap();
            symlink(&elsewhere, &place).unwrap();
        }
        assert!(matches!(folders.prepare(&pod("a")), Err(FolderError::Io { .. })));
        assert!(matches!(folders.shared(), Err(FolderError::Io { .. })));
    }

    #[test]
    fn a_folder_without_a_whole_record_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::open(dir.path()).unwrap();
        std::fs::create_dir(folders.tree.pod("0a1b")).unwrap();
        std::fs::write(folders.tree.record_of("0a1b"), "{").unwrap();
        folders.prepare(&pod("a")).unwrap();
        assert_eq!(PodRecord::load(&folders.tree, "0a1b").unwrap(), pod("a"));
    }

    #[test]
    fn what_is_left_of_pods_that_are_gone_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (folders, kubelet) = (
            Folders::open(&dir.path().join("csi")).unwrap(),
            dir.path().join("pods"),
        );
        let gone = PodRecord {
            uid: "gone".to_owned(),
            ..pod("gone")
        };
        folders.prepare(&gone).unwrap();
        folders.prepare(&pod("a")).unwrap();
        std::fs::create_dir_all(kubelet.join("0a1b")).unwrap();
        std::fs::create_dir(folders.tree.pods().join(".new-x")).unwrap();
        folders.prune(&dir.path().join("elsewhere")).unwrap();
        assert_eq!(folders.tree.uids().unwrap().len(), 2, "nobody can tell");
        folders.prune(&kubelet).unwrap();
        assert_eq!(folders.tree.uids().unwrap(), ["0a1b"]);
        assert!(!folders.tree.pods().join(".new-x").exists());
    }

    #[test]
    fn a_mount_is_known_by_what_it_shows() {
        assert!(Folders::is_of(Path::new("/finial/csi/pods/u/sockets"), "u"));
        assert!(!Folders::is_of(Path::new("/finial/csi/pods/uu/sockets"), "u"));
        assert!(!Folders::is_of(
            Path::new("/finial/csi/pods/u/sockets//deleted"),
            "u"
        ));
    }
}
