//! Places below the kubelet's folder of pods, where volumes are mounted.
//!
//! A path comes from the kubelet, and its parent folders may be writable for others. So each part of it is opened
//! separately, no link is followed, and everything is done with the descriptor of the last folder.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::path::{Component, Path, PathBuf};

use finial_identity::process::private_file::{self, FileError};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, unlinkat};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::mountinfo::{self, Mount, MountInfoError};
use crate::socket_tree::is_pod_uid;

/// Mode of the folder on which a volume is mounted, until it is.
const TARGET_MODE: Mode = Mode::from_raw_mode(0o750);
/// Most bytes of the list of mounts: the kernel allows a hundred thousand of them.
const MAX_MOUNTINFO: usize = 64 * 1024 * 1024;
/// Most mounts on one place that are taken away.
const MOST_STACKED: usize = 64;

/// A place for a volume, whose parent exists.
#[derive(Debug)]
pub(super) struct Target {
    parent: OwnedFd,
    name: OsString,
    /// As the kernel names it, with the links on the way to the kubelet's folder followed.
    path: PathBuf,
}

/// Why a place cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum TargetError {
    /// It is not the kubelet's.
    #[error("path must lie below {}, without `..`: {path:?}", pods.display())]
    Outside {
        /// The kubelet's folder of pods.
        pods: PathBuf,
        /// What was asked for.
        path: String,
    },
    /// A link stands on the way, or something that is not a folder.
    #[error("path leads through something that is not a folder: {part:?} in {path:?}")]
    NotAFolder {
        /// Which part.
        part: OsString,
        /// What was asked for.
        path: String,
    },
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
    /// The list of mounts cannot be read.
    #[error("{0}")]
    File(#[from] FileError),
    /// The list of mounts cannot be understood.
    #[error("{0}")]
    MountInfo(#[from] MountInfoError),
}

/// What a path says, before anything is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Place<'a> {
    /// The first folder below that of the pods.
    pub(super) pod_uid: &'a str,
    parts: Vec<&'a OsStr>,
    path: &'a str,
}

impl<'a> Place<'a> {
    /// Reads a path of the kubelet's.
    ///
    /// # Errors
    /// [`TargetError::Outside`].
    pub(super) fn parse(pods: &Path, path: &'a str) -> Result<Self, TargetError> {
        let outside = || TargetError::Outside {
            pods: pods.to_owned(),
            path: path.to_owned(),
        };
        // Components would pass over `.` and double slashes; neither is a kubelet's, and neither is refused by
        // accident: what is opened is what is left.
        let below = Path::new(path).strip_prefix(pods).map_err(|_error| outside())?;
        let parts: Option<Vec<&OsStr>> = below
            .components()
            .map(|component| match component {
                Component::Normal(part) => Some(part),
                _ => None,
            })
            .collect();
        let parts = parts.filter(|parts| parts.len() >= 2).ok_or_else(outside)?;
        let first = parts.first().and_then(|part| part.to_str());
        let pod_uid = first.filter(|uid| is_pod_uid(uid)).ok_or_else(outside)?;
        Ok(Self { pod_uid, parts, path })
    }

    /// Opens the folder in which the last part stands. `None` when that does not exist.
    ///
    /// # Errors
    /// [`TargetError`].
    pub(super) fn open(&self, pods: &Path) -> Result<Option<Target>, TargetError> {
        let failed = |action, source: Errno| TargetError::Io {
            action,
            path: PathBuf::from(self.path),
            source: source.into(),
        };
        let (name, way) = self.parts.split_last().expect("a place has two parts or more");
        // The kubelet's own folder may be reached over links; it is the operator's choice.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut parent = match openat(CWD, pods, flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(error) => return Err(failed("open the kubelet's folder of pods", error)),
        };
        for part in way {
            parent = match openat(&parent, *part, flags | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(folder) => folder,
                Err(Errno::NOENT) => return Ok(None),
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    return Err(TargetError::NotAFolder {
                        part: (*part).to_owned(),
                        path: self.path.to_owned(),
                    });
                }
                Err(error) => return Err(failed("open folder", error)),
            };
        }
        let real = std::fs::read_link(in_proc(&parent)).map_err(|source| TargetError::Io {
            action: "find folder",
            path: PathBuf::from(self.path),
            source,
        })?;
        Ok(Some(Target {
            parent,
            path: real.join(name),
            name: (*name).to_owned(),
        }))
    }
}

impl Target {
    /// Whether something is mounted here.
    ///
    /// # Errors
    /// When the list of mounts cannot be read.
    pub(super) fn is_mounted(&self) -> Result<bool, TargetError> {
        Ok(mountinfo::count_at(&mounts()?, &self.path) > 0)
    }

    /// Mounts `source` here, for reading and writing, unless something is mounted already. The folder is made.
    ///
    /// # Errors
    /// [`TargetError`].
    pub(super) fn mount(&self, source: impl AsFd) -> Result<(), TargetError> {
        match mkdirat(&self.parent, &self.name, TARGET_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(self.failed("make folder", error)),
        }
        if self.is_mounted()? {
            return Ok(());
        }
        let target = self.folder(OFlags::PATH)?;
        mount_bind(in_proc(&source), in_proc(&target)).map_err(|error| self.failed("mount volume", error))
    }

    /// Takes away what is mounted here, and the folder. What is not there is not missed.
    ///
    /// # Errors
    /// [`TargetError`].
    pub(super) fn unmount(&self) -> Result<(), TargetError> {
        let stacked = mountinfo::count_at(&mounts()?, &self.path).min(MOST_STACKED);
        let path = in_proc(&self.parent).join(&self.name);
        for _ in 0..stacked {
            match unmount(&path, UnmountFlags::NOFOLLOW) {
                // Somebody has it open; for whoever has, it stays until it is closed.
                Err(Errno::BUSY) => unmount(&path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)
                    .map_err(|error| self.failed("detach volume", error))?,
                // Not mounted any more.
                Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
                Err(error) => return Err(self.failed("unmount volume", error)),
            }
        }
        match unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(self.failed("remove folder", error)),
        }
    }

    /// Reads the folder, which fails when what is mounted is broken.
    ///
    /// # Errors
    /// [`TargetError`].
    pub(super) fn list(&self) -> Result<(), TargetError> {
        let folder = self.folder(OFlags::RDONLY)?;
        let mut entries =
            rustix::fs::Dir::read_from(&folder).map_err(|error| self.failed("list folder", error))?;
        entries.try_for_each(|entry| entry.map(drop).map_err(|error| self.failed("list folder", error)))
    }

    fn folder(&self, access: OFlags) -> Result<OwnedFd, TargetError> {
        let flags = access | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.parent, &self.name, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOTDIR | Errno::LOOP => TargetError::NotAFolder {
                part: self.name.clone(),
                path: self.path.display().to_string(),
            },
            error => self.failed("open folder", error),
        })
    }

    fn failed(&self, action: &'static str, error: Errno) -> TargetError {
        TargetError::Io {
            action,
            path: self.path.clone(),
            source: error.into(),
        }
    }
}

/// Everything that is mounted in the driver's namespace.
///
/// # Errors
/// When the list cannot be read.
pub(super) fn mounts() -> Result<Vec<Mount>, TargetError> {
    let text = private_file::read_bounded(Path::new("/proc/self/mountinfo"), MAX_MOUNTINFO)?;
    Ok(mountinfo::parse(&text)?)
}

/// The name under which the system calls find what a descriptor is of, whatever has been put in its place since.
fn in_proc(descriptor: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::os::unix::fs::symlink;

    use super::*;

    const PODS: &str = "/var/lib/kubelet/pods";

    #[test]
    fn only_places_below_the_folder_of_pods_count() {
        let path = format!("{PODS}/0a1b/volumes/kubernetes.io~csi/v/mount");
        assert_eq!(Place::parse(Path::new(PODS), &path).unwrap().pod_uid, "0a1b");
        for path in [
            "/etc/shadow",
            "/var/lib/kubelet/podsx/a/b",
            PODS,
            "/var/lib/kubelet/pods/0a1b",
            "/var/lib/kubelet/pods/0a1b/../../../../../etc",
            "/var/lib/kubelet/pods/../pods/a/b",
            "/var/lib/kubelet/pods/../a/b",
            "/var/lib/kubelet/pods/.x/b",
            "var/lib/kubelet/pods/a/b",
            "a/b",
            "",
        ] {
            assert!(
                matches!(
                    Place::parse(Path::new(PODS), path),
                    Err(TargetError::Outside { .. })
                ),
                "{path}"
            );
        }
    }

    #[test]
    fn no_link_on_the_way_or_at_the_end_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().join("pods");
        std::fs::create_dir_all(pods.join("u/volumes")).unwrap();
        std::fs::create_dir(dir.path().join("elsewhere")).unwrap();
        symlink(dir.path().join("elsewhere"), pods.join("u/link")).unwrap();
        let path = |last: &str| pods.join(last).display().to_string();
        let through = path("u/link/mount");
        let error = Place::parse(&pods, &through).unwrap().open(&pods).unwrap_err();
        assert!(matches!(error, TargetError::NotAFolder { .. }), "{error}");

        let last = path("u/link");
        let target = Place::parse(&pods, &last).unwrap().open(&pods).unwrap().unwrap();
        let source = std::fs::File::open(dir.path()).unwrap();
        let error = target.mount(&source).unwrap_err();
        assert!(matches!(error, TargetError::NotAFolder { .. }), "{error}");
        assert!(target.unmount().is_err(), "a link is not ours to remove");
        assert!(pods.join("u/link").is_symlink());
    }

    #[test]
    fn what_is_not_there_is_not_missed() {
        let dir = tempfile::tempdir().unwrap();
        let pods = dir.path().to_owned();
        let gone = pods.join("u/volumes/v/mount").display().to_string();
        assert!(Place::parse(&pods, &gone).unwrap().open(&pods).unwrap().is_none());
        std::fs::create_dir_all(pods.join("u/volumes/v/mount")).unwrap();
        let target = Place::parse(&pods, &gone).unwrap().open(&pods).unwrap().unwrap();
        assert!(!target.is_mounted().unwrap());
        target.list().unwrap();
        target.unmount().unwrap();
        assert!(!pods.join("u/volumes/v/mount").exists());
        target.unmount().unwrap();
        assert!(target.list().is_err());
    }
}
