//! Types of files where SELinux labels them: containers may open what has the type of their own files, and nothing else
//! of the node.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, lgetxattr, lsetxattr};
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
/// folder. The rest of each label stays. Links are not followed. A folder comes before what it holds, so that nothing
/// that is made meanwhile is missed. Gives the number of files that had another type: 0 where the kernel labels nothing.
///
/// # Errors
/// The first file whose label cannot be read or written. One that is gone is not missed.
pub fn set_type(tree: &Path, file_type: &str) -> Result<usize, LabelError> {
    Labels {
        attribute: ATTRIBUTE,
        file_type,
    }
    .apply(tree, 0)
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

impl Labels<'_> {
    fn apply(&self, path: &Path, depth: u32) -> Result<usize, LabelError> {
        let Some(label) = self.read(path)? else {
            return Ok(0);
        };
        let mut changed = 0;
        if let Some(new) = with_type(&label, self.file_type) {
            match lsetxattr(path, self.attribute, new.as_bytes(), XattrFlags::empty()) {
                Ok(()) => changed += 1,
                Err(Errno::NOENT) => return Ok(0),
                Err(error) => return Err(failed("set SELinux type", path)(error.into())),
            }
        }
        let is_folder = match path.symlink_metadata() {
            Ok(metadata) => metadata.is_dir(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed("look at file", path)(error)),
        };
        if is_folder && depth < MAX_DEPTH {
            for entry in std::fs::read_dir(path).map_err(failed("read folder", path))? {
                let entry = entry.map_err(failed("read folder", path))?;
                changed += self.apply(&entry.path(), depth + 1)?;
            }
        }
        Ok(changed)
    }

    /// `None` where there is no label, which is everywhere when SELinux is off, or no file.
    fn read(&self, path: &Path) -> Result<Option<String>, LabelError> {
        let mut buffer = vec![0; MAX_LABEL];
        match lgetxattr(path, self.attribute, &mut buffer[..]) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&buffer[..length]);
                Ok(Some(text.trim_end_matches('\0').to_owned()))
            }
            Err(Errno::NODATA | Errno::NOTSUP | Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("read SELinux label", path)(error.into())),
        }
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LabelError {
    let path = path.to_owned();
    move |source| LabelError { action, path, source }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

    use super::*;

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

    /// With an attribute that needs no SELinux.
    #[test]
    fn a_tree_is_labelled_whole_and_nothing_outside_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir_all(path("tree/pods/a")).unwrap();
        std::fs::write(path("tree/pods/a/file"), "").unwrap();
        std::fs::write(path("outside"), "").unwrap();
        std::os::unix::fs::symlink(path("outside"), path("tree/link")).unwrap();
        let labels = Labels {
            attribute: "user.finial-test",
            file_type: "container_file_t",
        };
        let before = b"system_u:object_r:var_run_t:s0\0";
        let all = ["tree", "tree/pods", "tree/pods/a", "tree/pods/a/file", "outside"];
        for name in all {
            let set = lsetxattr(path(name), labels.attribute, before, XattrFlags::empty());
            if set == Err(Errno::NOTSUP) {
                eprintln!("skipped: the temporary folder's file system keeps no attributes");
                return;
            }
            set.unwrap();
        }
        assert_eq!(labels.apply(&path("tree"), 0).unwrap(), 4);
        for name in all {
            let label = labels.read(&path(name)).unwrap().unwrap();
            let expected = if name == "outside" {
                "var_run_t"
            } else {
                "container_file_t"
            };
            assert_eq!(label, format!("system_u:object_r:{expected}:s0"), "{name}");
        }
        assert_eq!(labels.apply(&path("tree"), 0).unwrap(), 0, "again");
        assert_eq!(labels.apply(&path("absent"), 0).unwrap(), 0);
    }

    #[test]
    fn where_nothing_is_labelled_nothing_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let labels = Labels {
            attribute: "user.finial-absent",
            file_type: "container_file_t",
        };
        assert_eq!(labels.apply(dir.path(), 0).unwrap(), 0);
        assert_eq!(labels.read(dir.path()).unwrap(), None);
    }
}
