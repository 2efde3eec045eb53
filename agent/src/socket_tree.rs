//! The tree of sockets that the driver makes and the agent fills.
//!
//! ```text
//! <socket_dir>/shared/                     the socket of all pods, with `per_pod = false`
//! <socket_dir>/pods/                       0700
//! <socket_dir>/pods/<uid>/pod.json         0600, whose pod this is
//! <socket_dir>/pods/<uid>/sockets/         0755, mounted into the pod
//! ```
//!
//! A pod's folder appears and disappears atomically, by `rename` from and to a name that begins with a dot. Only its
//! owner can enter `pods`, so a socket can be reached only through the mount in its pod.

use std::io;
use std::path::{Path, PathBuf};

use finial_identity::process::private_file::{self, FileError, FileMode};
use rustix::fs::{FileType, Mode};
use serde::{Deserialize, Serialize};

/// Most bytes of a record: four names of at most 253 characters.
const MAX_RECORD: usize = 4096;
/// Most characters of a name in Kubernetes.
const MAX_NAME: usize = 253;

/// The tree, as it stands or is going to.
#[derive(Clone, Debug)]
pub struct SocketTree {
    root: PathBuf,
}

/// The pod of this folder, from the kubelet's request to the driver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodRecord {
    /// The pod's UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
}

/// What is wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// It is not JSON with these members.
    #[error("malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// A name is none of Kubernetes'.
    #[error("{field} is no name in Kubernetes: {value:?}")]
    Name {
        /// Which one.
        field: &'static str,
        /// What is there.
        value: String,
    },
    /// The folder has another pod's UID.
    #[error("is of another pod: {0}")]
    OtherPod(String),
}

/// Why the tree cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    /// It could not be made.
    #[error("{0}")]
    File(#[from] FileError),
    /// It could not be examined.
    #[error("examine {}: {source}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a link or a file.
    #[error("is not a directory: {}", .0.display())]
    NotADirectory(PathBuf),
    /// Others could replace what is in it.
    #[error("is owned by user {owner}, neither by root nor by us: {}", path.display())]
    Foreign {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
    },
    /// Others may write to it.
    #[error("others may write to it, mode {mode:o}: {}", path.display())]
    Writable {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
}

impl SocketTree {
    /// Names alone; nothing is looked at.
    pub fn layout(socket_dir: &Path) -> Self {
        Self {
            root: socket_dir.to_owned(),
        }
    }

    /// Makes what is missing, and refuses folders that others could change.
    ///
    /// # Errors
    /// [`TreeError`].
    pub fn open(socket_dir: &Path) -> Result<Self, TreeError> {
        let tree = Self::layout(socket_dir);
        private_file::create_private_dir(&tree.root, FileMode::PUBLIC_DIR)?;
        check(&tree.root)?;
        private_file::create_private_dir(&tree.shared(), FileMode::PUBLIC_DIR)?;
        check(&tree.shared())?;
        private_file::create_private_dir(&tree.pods(), FileMode::PRIVATE_DIR)?;
        check(&tree.pods())?;
        Ok(tree)
    }

    /// The folder of the socket of all pods.
    pub fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    /// The folder of the pods' folders.
    pub fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// The folder of a pod.
    pub fn pod(&self, uid: &str) -> PathBuf {
        self.pods().join(uid)
    }

    /// What is mounted into a pod.
    pub fn sockets_of(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("sockets")
    }

    /// Says whose a pod's folder is.
    pub fn record_of(&self, uid: &str) -> PathBuf {
        self.pod(uid).join("pod.json")
    }

    /// The pods that have a folder, sorted. What has another name than a pod's UID is passed over.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn uids(&self) -> io::Result<Vec<String>> {
        let mut uids = Vec::new();
        for entry in std::fs::read_dir(self.pods())? {
            let name = entry?.file_name();
            uids.extend(name.to_str().filter(|name| is_pod_uid(name)).map(str::to_owned));
        }
        uids.sort_unstable();
        Ok(uids)
    }
}

impl PodRecord {
    /// Reads the record of a pod's folder.
    ///
    /// # Errors
    /// [`RecordError`], also when the record is another pod's.
    pub fn load(tree: &SocketTree, uid: &str) -> Result<Self, RecordError> {
        let bytes = private_file::read_bounded(&tree.record_of(uid), MAX_RECORD)?;
        let record = Self::parse(&bytes)?;
        if record.uid == uid {
            Ok(record)
        } else {
            Err(RecordError::OtherPod(record.uid))
        }
    }

    /// Reads a record.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, RecordError> {
        serde_json::from_slice::<Self>(bytes)?.checked()
    }

    /// The record, if its names are such as Kubernetes has.
    ///
    /// # Errors
    /// [`RecordError::Name`].
    pub fn checked(self) -> Result<Self, RecordError> {
        let wrong = |field, value: &str| RecordError::Name {
            field,
            value: value.chars().take(MAX_NAME).collect(),
        };
        if !is_pod_uid(&self.uid) {
            return Err(wrong("uid", &self.uid));
        }
        for (field, value) in [
            ("namespace", &self.namespace),
            ("name", &self.name),
            ("service_account", &self.service_account),
        ] {
            if !is_name(value) {
                return Err(wrong(field, value));
            }
        }
        Ok(self)
    }

    /// The text of `pod.json`.
    ///
    /// # Errors
    /// None that a record could cause.
    pub fn to_json(&self) -> Result<Vec<u8>, RecordError> {
        Ok(serde_json::to_vec_pretty(self)?)
    }
}

/// Whether this can be a pod's UID: a UUID, or for static pods whatever their source gave, as long as it is the name
/// of a file that leads nowhere else.
pub fn is_pod_uid(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Names in Kubernetes are subdomains in the sense of RFC 1123 (Kubernetes, "Object Names and IDs").
fn is_name(text: &str) -> bool {
    let characters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-".contains(&byte);
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(characters)
}

fn check(path: &Path) -> Result<(), TreeError> {
    let stat = rustix::fs::lstat(path).map_err(|error| TreeError::Io {
        path: path.to_owned(),
        source: error.into(),
    })?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(TreeError::NotADirectory(path.to_owned()));
    }
    if stat.st_uid != 0 && stat.st_uid != rustix::process::geteuid().as_raw() {
        return Err(TreeError::Foreign {
            path: path.to_owned(),
            owner: stat.st_uid,
        });
    }
    let mode = Mode::from_raw_mode(stat.st_mode);
    // A sticky bit does not help: whoever may write can make a pod's folder before the driver does.
    let group = mode.contains(Mode::WGRP) && stat.st_gid != 0;
    if mode.contains(Mode::WOTH) || group {
        return Err(TreeError::Writable {
            path: path.to_owned(),
            mode: mode.bits(),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    use super::*;

    fn record() -> PodRecord {
        PodRecord {
            uid: "0a1b".to_owned(),
            namespace: "ns".to_owned(),
            name: "pod".to_owned(),
            service_account: "default".to_owned(),
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written_and_names_that_are_none_are_refused() {
        let bytes = record().to_json().unwrap();
        assert_eq!(PodRecord::parse(&bytes).unwrap(), record());
        for wrong in ["", "../x", "A", "a:b", "a b", &"a".repeat(254)] {
            let broken = PodRecord {
                namespace: wrong.to_owned(),
                ..record()
            };
            assert!(broken.checked().is_err(), "{wrong}");
        }
        for wrong in ["", "..", "a/b", ".new", &"a".repeat(65)] {
            assert!(!is_pod_uid(wrong), "{wrong}");
        }
        assert!(PodRecord::parse(b"{}").is_err() && PodRecord::parse(b"").is_err());
    }

    #[test]
    fn a_folder_with_another_pods_record_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let tree = SocketTree::open(dir.path()).unwrap();
        std::fs::create_dir(tree.pod("other")).unwrap();
        std::fs::write(tree.record_of("other"), record().to_json().unwrap()).unwrap();
        let error = PodRecord::load(&tree, "other").unwrap_err();
        assert!(
            matches!(error, RecordError::OtherPod(ref uid) if uid == "0a1b"),
            "{error}"
        );
    }

    #[test]
    fn the_tree_is_private_and_only_names_of_pods_count() {
        let dir = tempfile::tempdir().unwrap();
        let tree = SocketTree::open(&dir.path().join("csi")).unwrap();
        let mode = std::fs::metadata(tree.pods()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for name in ["b", "a", ".new-c", "d.e"] {
            std::fs::create_dir(tree.pods().join(name)).unwrap();
        }
        assert_eq!(tree.uids().unwrap(), ["a", "b"]);
    }

    #[test]
    fn folders_that_others_could_change_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("csi");
        let pods = SocketTree::open(&root).unwrap().pods();
        let permit = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        for path in [&root, &pods] {
            permit(path, 0o1777);
            assert!(matches!(SocketTree::open(&root), Err(TreeError::Writable { .. })));
            permit(path, 0o755);
        }
        if rustix::process::geteuid().is_root() {
            chown(&pods, Some(1000), None).unwrap();
            let error = SocketTree::open(&root).unwrap_err();
            assert!(matches!(error, TreeError::Foreign { owner: 1000, .. }), "{error}");
        }
        std::fs::remove_dir(&pods).unwrap();
        symlink(dir.path(), &pods).unwrap();
        let error = SocketTree::open(&root).unwrap_err();
        assert!(matches!(error, TreeError::NotADirectory(_)), "{error}");
    }
}
