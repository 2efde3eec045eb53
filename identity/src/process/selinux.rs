//! Types of files where SELinux labels them: containers may open what has the type of their own files, and nothing else
//! of the node.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, openat, setxattr};
use rustix::io::Errno;

/// Where Linux keeps the label of a file.
const ATTRIBUTE: &str = "security.selinux";
/// Longest label that is read.
const MAX_LABEL: usize = 4096;
/// Deepest folder that is entered.
const MAX_DEPTH: u32 = 16;

/// Why a file keeps its label.
#[derive(Debug, thiserror::Error)]
#[error("{action}: {}: {source}", path.display())]
pub struct LabelError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Gives a folder and all that is in it this type, as `chcon -R -t` does; what is made in it later takes the type of its
/// folder. The rest of each label stays. Links are not followed, also those that take the place of a folder meanwhile. A
/// folder comes before what it holds, so that nothing that is made meanwhile is missed. Gives the number of files that
/// had another type: 0 where the kernel labels nothing.
///
/// # Errors
/// The first file whose label cannot be read or written. One that is gone is not missed.
pub fn set_type(tree: &Path, file_type: &str) -> Result<usize, LabelError> {
    Labels::selinux(file_type).apply(tree)
}

/// The same for one file or folder alone, whatever it holds.
///
/// # Errors
/// As [`set_type`].
pub fn set_type_alone(path: &Path, file_type: &str) -> Result<usize, LabelError> {
    let labels = Labels::selinux(file_type);
    match File::open(CWD, path.as_os_str(), path)? {
        Some(file) => Ok(labels.change(&file)?.map_or(0, usize::from)),
        None => Ok(0),
    }
}

/// `user:role:type:level` with another type; `None` for what is no label, or has that type.
fn with_type(label: &str, file_type: &str) -> Option<String> {
    let mut parts: Vec<&str> = label.splitn(4, ':').collect();
    let current = parts.get_mut(2)?;
    if *current == file_type {
        return None;
    }
    *current = file_type;
    Some(parts.join(":"))
}

struct Labels<'a> {
    attribute: &'static str,
    file_type: &'a str,
}

/// A file of any kind, held fast: what has its name by now does not matter. Not open for reading, which would do
/// something to devices and is impossible with sockets.
struct File {
    held: OwnedFd,
    /// Its name when it was opened, for errors.
    path: PathBuf,
}

impl<'a> Labels<'a> {
    fn selinux(file_type: &'a str) -> Self {
        Self {
            attribute: ATTRIBUTE,
            file_type,
        }
    }

    fn apply(&self, tree: &Path) -> Result<usize, LabelError> {
        match File::open(CWD, tree.as_os_str(), tree)? {
            Some(top) => self.walk(&top, 0),
            None => Ok(0),
        }
    }

    fn walk(&self, file: &File, depth: u32) -> Result<usize, LabelError> {
        let Some(is_changed) = self.change(file)? else {
            return Ok(0);
        };
        let mut changed = usize::from(is_changed);
        if depth < MAX_DEPTH && file.is_folder()? {
            for name in file.names()? {
                let name = OsStr::from_bytes(&name);
                if let Some(inner) = File::open(&file.held, name, &file.path.join(name))? {
                    changed += self.walk(&inner, depth + 1)?;
                }
            }
        }
        Ok(changed)
    }

    /// Whether it had another type; `None` for what has no label.
    fn change(&self, file: &File) -> Result<Option<bool>, LabelError> {
        let Some(label) = self.read(file)? else {
            return Ok(None);
        };
        let Some(new) = with_type(&label, self.file_type) else {
            return Ok(Some(false));
        };
        setxattr(file.link(), self.attribute, new.as_bytes(), XattrFlags::empty())
            .map_err(|error| failed("set SELinux type", &file.path, error))?;
        Ok(Some(true))
    }

    /// `None` where there is no label, which is everywhere when SELinux is off.
    fn read(&self, file: &File) -> Result<Option<String>, LabelError> {
        let mut buffer = vec![0; MAX_LABEL];
        match getxattr(file.link(), self.attribute, &mut buffer[..]) {
            Ok(length) => {
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                Ok(Some(text.trim_end_matches('\0').to_owned()))
            }
            Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
            Err(error) => Err(failed("read SELinux label", &file.path, error)),
        }
    }
}

impl File {
    /// What has this name in the folder, also if it is a link; `None` when nothing has.
    fn open(folder: impl AsFd, name: &OsStr, path: &Path) -> Result<Option<Self>, LabelError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(folder, name, flags, Mode::empty()) {
            Ok(held) => Ok(Some(Self {
                held,
                path: path.to_owned(),
            })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("look at file", path, error)),
        }
    }

    /// Leads the kernel to this very file: attributes have no calls that take such a descriptor.
    fn link(&self) -> String {
        format!("/proc/self/fd/{}", self.held.as_raw_fd())
    }

    fn is_folder(&self) -> Result<bool, LabelError> {
        let stat = fstat(&self.held).map_err(|error| failed("look at file", &self.path, error))?;
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    /// What is in the folder. One that was removed has nothing in it.
    fn names(&self) -> Result<Vec<Vec<u8>>, LabelError> {
        let unreadable = |error| failed("read folder", &self.path, error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = match openat(&self.held, ".", flags, Mode::empty()) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Ok(Vec::new()),
            Err(error) => return Err(unreadable(error)),
        };
        let mut names = Vec::new();
        for entry in Dir::new(folder).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        Ok(names)
    }
}

fn failed(action: &'static str, path: &Path, error: Errno) -> LabelError {
    LabelError {
        action,
        path: path.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

    use std::os::unix::fs::symlink;

    use super::*;

    /// With an attribute that needs no SELinux.
    const LABELS: Labels<'static> = Labels {
        attribute: "user.finial-test",
        file_type: "container_file_t",
    };

    /// Labels these; false where the temporary folder's file system keeps no attributes.
    fn label(paths: impl IntoIterator<Item = PathBuf>) -> bool {
        for path in paths {
            let before = b"system_u:object_r:var_run_t:s0\0";
            match setxattr(&path, LABELS.attribute, before, XattrFlags::empty()) {
                Err(Errno::NOTSUP) => {
                    eprintln!("skipped: the temporary folder's file system keeps no attributes");
                    return false;
                }
                set => set.unwrap(),
            }
        }
        true
    }

    fn open(path: &Path) -> File {
        File::open(CWD, path.as_os_str(), path).unwrap().unwrap()
    }

    fn type_of(path: &Path) -> String {
        let label = LABELS.read(&open(path)).unwrap().unwrap();
        label.split(':').nth(2).unwrap().to_owned()
    }

    #[test]
    fn only_the_type_of_a_label_changes() {
        let new = |label| with_type(label, "container_file_t");
        let expected = Some("system_u:object_r:container_file_t:s0".to_owned());
        assert_eq!(new("system_u:object_r:var_run_t:s0"), expected);
        assert_eq!(
            new("system_u:object_r:var_run_t:s0:c1,c2").as_deref(),
            Some("system_u:object_r:container_file_t:s0:c1,c2")
        );
        assert_eq!(new("system_u:object_r:container_file_t:s0"), None);
        for no_label in ["", "unlabeled", "a:b"] {
            assert_eq!(new(no_label), None, "{no_label}");
        }
    }

    #[test]
    fn a_tree_is_labelled_whole_and_nothing_outside_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("tree/pods/a")).unwrap();
        std::fs::create_dir_all(path("outside/folder")).unwrap();
        std::fs::write(path("tree/pods/a/file"), "").unwrap();
        std::fs::write(path("outside/file"), "").unwrap();
        symlink(path("outside/file"), path("tree/link")).unwrap();
        symlink(path("outside"), path("tree/pods/link")).unwrap();
        let inside = ["tree", "tree/pods", "tree/pods/a", "tree/pods/a/file"];
        let outside = ["outside", "outside/folder", "outside/file"];
        if !label(inside.iter().chain(&outside).map(|name| path(name))) {
            return;
        }
        assert_eq!(LABELS.apply(&path("tree")).unwrap(), 4);
        for name in inside {
            assert_eq!(type_of(&path(name)), "container_file_t", "{name}");
        }
        for name in outside {
            assert_eq!(type_of(&path(name)), "var_run_t", "{name}");
        }
        assert_eq!(LABELS.apply(&path("tree")).unwrap(), 0, "again");
        assert_eq!(LABELS.apply(&path("absent")).unwrap(), 0);
    }

    #[test]
    fn what_takes_the_place_of_a_folder_meanwhile_is_not_labelled() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("tree/pods/a")).unwrap();
        std::fs::create_dir_all(path("outside/a")).unwrap();
        let all = ["tree", "tree/pods", "tree/pods/a", "outside", "outside/a"];
        if !label(all.iter().map(|name| path(name))) {
            return;
        }
        // Between the look at the folder and what is done with it.
        let pods = open(&path("tree/pods"));
        std::fs::rename(path("tree/pods"), path("moved")).unwrap();
        symlink(path("outside"), path("tree/pods")).unwrap();
        assert_eq!(LABELS.walk(&pods, 1).unwrap(), 2);
        let types = ["moved", "moved/a", "outside", "outside/a"].map(|name| type_of(&path(name)));
        assert_eq!(
            types,
            ["container_file_t", "container_file_t", "var_run_t", "var_run_t"]
        );
    }

    #[test]
    fn where_nothing_is_labelled_nothing_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let labels = Labels {
            attribute: "user.finial-absent",
            file_type: "container_file_t",
        };
        assert_eq!(labels.apply(dir.path()).unwrap(), 0);
        assert_eq!(labels.read(&open(dir.path())).unwrap(), None);
        assert_eq!(
            set_type_alone(&dir.path().join("absent"), "container_file_t").unwrap(),
            0
        );
    }
}
