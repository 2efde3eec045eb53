//! What is mounted where, from `/proc/self/mountinfo` (proc(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

/// Fields before the optional ones.
const FIXED_FIELDS: usize = 6;

/// A line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// What of its file system is mounted.
    pub root: PathBuf,
    /// Where.
    pub point: PathBuf,
}

/// A line is not what the kernel writes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed line in mountinfo: {0:?}")]
pub struct MountInfoError(String);

/// All mounts, in the order of the file.
///
/// # Errors
/// [`MountInfoError`].
pub fn parse(text: &[u8]) -> Result<Vec<Mount>, MountInfoError> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| read(line).ok_or_else(|| MountInfoError(String::from_utf8_lossy(line).into_owned())))
        .collect()
}

/// How many mounts stand on this very place, one on top of the other.
pub fn count_at(mounts: &[Mount], point: &Path) -> usize {
    mounts.iter().filter(|mount| mount.point == point).count()
}

/// Number, parent, device, root, mount point, options, any number of tags, `-`, type, source, options.
fn read(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let dash = fields.iter().position(|field| *field == b"-")?;
    if dash < FIXED_FIELDS || fields.len() < dash + 2 {
        return None;
    }
    Some(Mount {
        root: unescape(fields.get(3)?),
        point: unescape(fields.get(4)?),
    })
}

/// Spaces, tabs, line ends and backslashes in names are written as three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut name = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                name.push(byte);
                rest = rest.get(4..).unwrap_or_default();
            }
            None => {
                name.push(*first);
                rest = after;
            }
        }
    }
    PathBuf::from(OsString::from_vec(name))
}

fn octal(text: &[u8]) -> Option<u8> {
    let [b'\\', digits @ ..] = text.get(..4)? else {
        return None;
    };
    digits.iter().try_fold(0_u8, |value, digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 8)?;
        value.checked_mul(8)?.checked_add(digit)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        40 22 0:34 /finial/csi/pods/u/sockets /var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/a\\040b/mount rw shared:5 master:3 - tmpfs tmpfs rw\n\
        41 22 0:35 / /mnt/\\134040 rw - tmpfs  rw\n";

    #[test]
    fn mount_points_and_roots_are_read_with_escapes_undone() {
        let mounts = parse(TEXT.as_bytes()).unwrap();
        assert_eq!(mounts[1].root, Path::new("/finial/csi/pods/u/sockets"));
        assert_eq!(
            mounts[1].point,
            Path::new("/var/lib/kubelet/pods/u/volumes/kubernetes.io~csi/a b/mount")
        );
        // A backslash that the name has is escaped itself, and what follows is not undone twice.
        assert_eq!(mounts[2].point, Path::new("/mnt/\\040"));
        assert_eq!(count_at(&mounts, Path::new("/")), 1);
        assert_eq!(count_at(&mounts, Path::new("/mnt")), 0);
    }

    #[test]
    fn what_is_no_escape_stays() {
        for (text, name) in [
            ("\\04", "\\04"),
            ("\\08x", "\\08x"),
            ("\\777", "\\777"),
            ("a\\", "a\\"),
        ] {
            assert_eq!(unescape(text.as_bytes()), Path::new(name));
        }
    }

    #[test]
    fn lines_that_the_kernel_would_not_write_are_refused() {
        for line in ["x", "1 2 3 / /", "1 2 3 / / rw -", "1 2 3 - / / rw ext4"] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
        assert!(parse(b"\n").unwrap().is_empty());
        let own = std::fs::read("/proc/self/mountinfo").unwrap();
        assert!(count_at(&parse(&own).unwrap(), Path::new("/proc")) > 0);
    }
}
