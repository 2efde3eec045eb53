//! What `/proc` says about a process. The root path is a parameter, so that tests can use a directory of their own.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use time::{Duration, OffsetDateTime};

/// Room that most files of a process fit into, so that they take one read, not eight.
const ONE_READ: usize = 4096;

/// Most bytes of `status` and `stat` that are read; the kernel writes far fewer, except for thousands of groups.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Most bytes of `cgroup` and `mountinfo`. A hundred thousand mounts, which is the kernel's limit, may need more; a
/// process that has so many is not told about.
const MAX_LIST_BYTES: u64 = 16 * 1024 * 1024;

/// Units of the start time in `/proc/<pid>/stat` per second: `USER_HZ`, which is 100 on every Linux.
const TICKS_PER_SECOND: i64 = 100;

/// A mounted `proc` file system.
#[derive(Clone, Debug)]
pub struct ProcFs {
    root: PathBuf,
    /// This program's pid namespace, which it never leaves.
    own_pid_namespace: Arc<OnceLock<Option<u64>>>,
}

/// Identity of a process as `/proc/<pid>/status` shows it, in effective ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Supplementary group ids, in the kernel's order.
    pub groups: Vec<u32>,
}

/// Which file this is, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileId {
    device: (u32, u32),
    inode: u64,
}

impl FileId {
    /// The file with this inode number on this device (major, minor).
    pub(super) fn new(device: (u32, u32), inode: u64) -> Self {
        Self { device, inode }
    }

    /// Whoever serves the file system, perhaps the workload itself, is not asked: an inode number is known.
    fn at(dir: impl std::os::fd::AsFd, path: &Path, flags: AtFlags) -> io::Result<Self> {
        let told = statx(dir, path, flags | AtFlags::STATX_DONT_SYNC, StatxFlags::INO)?;
        Ok(Self::new((told.stx_dev_major, told.stx_dev_minor), told.stx_ino))
    }
}

impl ProcFs {
    /// The file system mounted at `root`, usually `/proc`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self {
            root: root.into(),
            own_pid_namespace: Arc::default(),
        }
    }

    /// The folder of a process.
    pub fn folder(&self, pid: u32) -> PathBuf {
        self.root.join(pid.to_string())
    }

    /// When a process started, in ticks since the machine was started. With the pid it names the process.
    ///
    /// # Errors
    /// When there is no such process or the file cannot be understood.
    pub fn start_ticks(&self, pid: u32) -> io::Result<u64> {
        let stat = read_text(&self.folder(pid).join("stat"))?;
        // The name of the program may hold spaces and parentheses; the last `)` ends it. Field 3 follows.
        let after_name = stat.rsplit_once(')').map(|(_, rest)| rest);
        after_name
            .and_then(|rest| rest.split_ascii_whitespace().nth(22 - 3))
            .and_then(|ticks| ticks.parse().ok())
            .ok_or_else(|| malformed(format!("/proc/{pid}/stat has no start time")))
    }

    /// The program that a process executes.
    ///
    /// # Errors
    /// When there is no such process or it may not be looked at.
    pub fn program(&self, pid: u32) -> io::Result<FileId> {
        FileId::at(CWD, &self.folder(pid).join("exe"), AtFlags::empty())
    }

    /// The user and the groups that a process acts as.
    ///
    /// # Errors
    /// When there is no such process, it may not be looked at, or the file cannot be understood.
    pub fn ids(&self, pid: u32) -> io::Result<Ids> {
        let status = read_text(&self.folder(pid).join("status"))?;
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .ok_or_else(|| malformed(format!("/proc/{pid}/status has no {name}")))
        };
        // Real, effective, saved, file system.
        let effective = |name: &str| {
            field(name)?
                .split_ascii_whitespace()
                .nth(1)
                .and_then(|id| id.parse().ok())
                .ok_or_else(|| malformed(format!("/proc/{pid}/status has no effective {name}")))
        };
        let groups: Result<Vec<u32>, _> = field("Groups")?
            .split_ascii_whitespace()
            .map(str::parse)
            .collect();
        Ok(Ids {
            uid: effective("Uid")?,
            gid: effective("Gid")?,
            groups: groups.map_err(|_| malformed(format!("/proc/{pid}/status has malformed groups")))?,
        })
    }

    /// The control groups of a process, in the format of cgroups(7).
    ///
    /// # Errors
    /// When there is no such process or the file is too large.
    pub fn cgroup(&self, pid: u32) -> io::Result<String> {
        read_whole(&self.folder(pid).join("cgroup"))
    }

    /// What a process has mounted, in the format of proc(5).
    ///
    /// # Errors
    /// When there is no such process, it may not be looked at, or the file is too large.
    pub fn mountinfo(&self, pid: u32) -> io::Result<String> {
        read_whole(&self.folder(pid).join("mountinfo"))
    }

    /// The mount namespace of a process; the same text for the same namespace.
    ///
    /// # Errors
    /// When there is no such process or it may not be looked at.
    pub fn mount_namespace(&self, pid: u32) -> io::Result<PathBuf> {
        std::fs::read_link(self.folder(pid).join("ns/mnt"))
    }

    /// The pid namespace of a process, by its inode. `None` where it may not be read, as for an agent that is not
    /// root.
    pub fn pid_namespace(&self, pid: u32) -> Option<u64> {
        // Only the name of the link is read, `pid:[4026531836]`: to follow it the kernel would have to make a file.
        let link = rustix::fs::readlink(self.folder(pid).join("ns/pid"), Vec::new()).ok()?;
        let number = link.to_str().ok()?.strip_prefix("pid:[")?.strip_suffix(']')?;
        number.parse().ok()
    }

    /// The pid namespace of this program.
    pub fn own_pid_namespace(&self) -> Option<u64> {
        let look = || self.pid_namespace(std::process::id());
        *self.own_pid_namespace.get_or_init(look)
    }

    /// The instant that `ticks` after the start of the machine is. `None` when `/proc/stat` does not say.
    pub fn instant_of(&self, ticks: u64) -> Option<OffsetDateTime> {
        let stat = read_text(&self.root.join("stat")).ok()?;
        let booted = stat.lines().find_map(|line| line.strip_prefix("btime "))?;
        let booted = OffsetDateTime::from_unix_timestamp(booted.trim().parse().ok()?).ok()?;
        let since = Duration::milliseconds(i64::try_from(ticks).ok()?.checked_mul(1000 / TICKS_PER_SECOND)?);
        booted.checked_add(since)
    }
}

impl Default for ProcFs {
    fn default() -> Self {
        Self::at("/proc")
    }
}

/// A file with one record, as `status` and `stat`: a read that does not fill its room has read all of it.
fn read_text(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut text = vec![0; ONE_READ];
    let count = loop {
        match file.read(&mut text) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => break read?,
        }
    };
    text.truncate(count);
    if count == ONE_READ {
        file.take(MAX_FILE_BYTES).read_to_end(&mut text)?;
    }
    // A program may put any bytes into its name, which is of no interest here.
    Ok(
        String::from_utf8(text)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()),
    )
}

/// A part of a list would be fewer facts, so a list that is too long is an error.
fn read_whole(path: &Path) -> io::Result<String> {
    let mut text = Vec::with_capacity(ONE_READ);
    File::open(path)?
        .take(MAX_LIST_BYTES + 1)
        .read_to_end(&mut text)?;
    if text.len() as u64 > MAX_LIST_BYTES {
        return Err(malformed(format!(
            "{} has more than {MAX_LIST_BYTES} bytes",
            path.display()
        )));
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn malformed(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use super::*;

    const STATUS: &str =
        "Name:\tfoo\nUid:\t1000\t1001\t1002\t1003\nGid:\t10\t11\t12\t13\nGroups:\t11 4 27 \n";

    fn layout(pid: u32, files: &[(&str, &str)]) -> (tempfile::TempDir, ProcFs) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(pid.to_string())).unwrap();
        for (name, text) in files {
            std::fs::write(dir.path().join(pid.to_string()).join(name), text).unwrap();
        }
        let procfs = ProcFs::at(dir.path());
        (dir, procfs)
    }

    #[test]
    fn reads_effective_ids_and_all_supplementary_groups() {
        let (_dir, procfs) = layout(7, &[("status", STATUS)]);
        let expected = Ids {
            uid: 1001,
            gid: 11,
            groups: vec![11, 4, 27],
        };
        assert_eq!(procfs.ids(7).unwrap(), expected);
    }

    #[test]
    fn a_status_without_ids_is_an_error_not_fewer_facts() {
        for missing in ["Uid", "Gid", "Groups"] {
            let status: String = STATUS
                .lines()
                .filter(|line| !line.starts_with(missing))
                .map(|line| format!("{line}\n"))
                .collect();
            let (_dir, procfs) = layout(7, &[("status", &status)]);
            assert_eq!(
                procfs.ids(7).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{missing}"
            );
        }
    }

    #[test]
    fn a_program_cannot_forge_its_start_time_by_its_name() {
        let fields = "S 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        let stat = format!("7 (x) R 1 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 0) {fields}");
        let (_dir, procfs) = layout(7, &[("stat", &stat)]);
        assert_eq!(procfs.start_ticks(7).unwrap(), 4711);
    }

    #[test]
    fn a_process_of_thousands_of_groups_has_all_of_them() {
        for count in [0, 700, 900, 1000, 5000] {
            let groups: Vec<u32> = (10_000..10_000 + count).collect();
            let list: String = groups.iter().map(|group| format!("{group} ")).collect();
            let status = format!("Name:\tfoo\nUid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t{list}\n");
            let (_dir, procfs) = layout(7, &[("status", &status)]);
            assert_eq!(procfs.ids(7).unwrap().groups, groups, "{} bytes", status.len());
        }
    }

    #[test]
    fn a_list_that_is_too_long_is_an_error_not_a_part_of_it() {
        let limit = usize::try_from(MAX_LIST_BYTES).unwrap();
        for (length, fine) in [(limit, true), (limit + 1, false)] {
            let (_dir, procfs) = layout(7, &[("cgroup", &"x".repeat(length))]);
            assert_eq!(procfs.cgroup(7).is_ok(), fine);
        }
    }

    #[test]
    fn tells_when_a_process_started() {
        let (dir, procfs) = layout(7, &[]);
        std::fs::write(dir.path().join("stat"), "cpu 1 2\nbtime 1000\nprocesses 1\n").unwrap();
        let at = procfs.instant_of(250).unwrap();
        assert_eq!(at.unix_timestamp_nanos(), 1_002_500_000_000);
        assert_eq!(ProcFs::at("/nonexistent").instant_of(250), None);
    }

    #[test]
    fn this_very_process_is_found() {
        let procfs = ProcFs::default();
        assert!(procfs.start_ticks(std::process::id()).unwrap() > 0);
        let ids = procfs.ids(std::process::id()).unwrap();
        assert_eq!(ids.uid, rustix::process::geteuid().as_raw());
    }
}
