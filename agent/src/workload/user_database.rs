//! Names of users and groups, read from `/etc/passwd` and `/etc/group` themselves.
//!
//! A static binary cannot load the modules of the name service switch, so users from other sources (LDAP, SSSD)
//! have no name here, only their number.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, statx};
use rustix::io::Errno;

/// The largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;

/// One of the two files, parsed again when it was replaced or changed.
#[derive(Debug)]
pub(super) struct NameFile {
    path: PathBuf,
    parsed: Mutex<Option<Parsed>>,
}

#[derive(Debug)]
struct Parsed {
    stamp: Stamp,
    names: Names,
}

/// What changes when the file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: (u32, u32),
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    changed_at: (i64, u32),
}

const STAMPED: StatxFlags = StatxFlags::INO.union(StatxFlags::SIZE).union(StatxFlags::CTIME);

impl From<Statx> for Stamp {
    fn from(told: Statx) -> Self {
        Self {
            device: (told.stx_dev_major, told.stx_dev_minor),
            inode: told.stx_ino,
            bytes: told.stx_size,
            changed_at: (told.stx_ctime.tv_sec, told.stx_ctime.tv_nsec),
        }
    }
}

/// Names by number.
pub(super) type Names = Arc<HashMap<u32, String>>;

impl NameFile {
    /// The file at `path`, whose lines have a name in the first and a number in the third field.
    pub(super) fn at(path: PathBuf) -> Self {
        Self {
            path,
            parsed: Mutex::new(None),
        }
    }

    /// The names by number, where the file is as it was when it was read; nothing is read for it, and nobody waited
    /// for. `None` is no answer.
    pub(super) fn unchanged(&self) -> Option<Names> {
        let told = match statx(CWD, &self.path, AtFlags::STATX_DONT_SYNC, STAMPED) {
            Ok(told) => told,
            Err(Errno::NOENT) => return Some(Names::default()),
            Err(_) => return None,
        };
        let parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = parsed.as_ref().filter(|known| known.stamp == told.into())?;
        Some(Arc::clone(&known.names))
    }

    /// The names by number. None when there is no such file, as in an image without a distribution.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub(super) fn names(&self) -> io::Result<Names> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Arc::default()),
            Err(error) => return Err(error),
        };
        let stamp = statx(&file, "", AtFlags::EMPTY_PATH, STAMPED)?.into();
        // Replaced whole, so a panic cannot leave it half-changed.
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = parsed.as_ref().filter(|known| known.stamp == stamp) {
            return Ok(Arc::clone(&known.names));
        }
        let mut bytes = Vec::new();
        file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?;
        let names = Arc::new(parse(&bytes));
        *parsed = Some(Parsed {
            stamp,
            names: Arc::clone(&names),
        });
        Ok(names)
    }
}

/// Names by number; the first line of a number counts, as everywhere.
fn parse(bytes: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let Ok(line) = std::str::from_utf8(line) else {
            continue;
        };
        let mut fields = line.trim_end().split(':');
        let (name, number) = (
            fields.next(),
            fields.nth(1).and_then(|number| number.parse().ok()),
        );
        if let (Some(name), Some(number)) = (name, number)
            && !name.is_empty()
            && !name.starts_with(['#', '+', '-'])
        {
            names.entry(number).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use super::*;

    #[test]
    fn reads_names_by_number_and_skips_what_is_no_line_of_it() {
        let text =
            b"root:x:0:0:root:/root:/bin/sh\n# note:x:5:\n+nis:x:6:\nbroken\n:x:7:\nalice:x:1000:1000::/:\n\
            bob:x:1000:1000::/:\nhuge:x:4294967296:0::/:\n\xff:x:8:\n";
        let names = parse(text);
        let expected = [(0, "root".to_owned()), (1000, "alice".to_owned())];
        assert_eq!(names, HashMap::from(expected));
    }

    #[test]
    fn sees_a_changed_file_and_knows_nobody_without_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        let file = NameFile::at(path.clone());
        assert!(file.names().unwrap().is_empty());
        assert!(file.unchanged().unwrap().is_empty());
        std::fs::write(&path, "alice:x:1:1::/:\n").unwrap();
        assert!(file.unchanged().is_none(), "a file that was never read");
        assert_eq!(file.names().unwrap().get(&1).unwrap(), "alice");
        assert_eq!(file.unchanged().unwrap().get(&1).unwrap(), "alice");
        std::fs::write(dir.path().join("new"), "bob:x:1:1::/:\n").unwrap();
        std::fs::rename(dir.path().join("new"), &path).unwrap();
        assert!(file.unchanged().is_none(), "it was replaced");
        assert_eq!(file.names().unwrap().get(&1).unwrap(), "bob");
        std::fs::remove_file(&path).unwrap();
        assert!(file.unchanged().unwrap().is_empty(), "it is gone");
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error_not_an_unknown_name() {
        let dir = tempfile::tempdir().unwrap();
        assert!(NameFile::at(dir.path().to_owned()).names().is_err());
    }
}
