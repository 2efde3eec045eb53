//! SHA-256 of the programs that processes execute, cached as long as the file is the same.
//!
//! A hash is cached by everything that changes when a file does: its mount, device, inode, size, time of last
//! write and time of last change. The last cannot be set by a program. Its resolution is low, so a file that was
//! changed very recently is hashed again next time; and it is trusted only on file systems of this machine's kernel,
//! not on those of a remote server or of a user's program (FUSE). Numbers of devices that have no disk, such as the
//! overlay of a container, are used again after they are unmounted: there the mount's own number, which is not
//! (Linux 6.8), must be known.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use finial_identity::process::Clock;
use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, fstatfs, statx};
use time::{Duration, OffsetDateTime};
use tokio::sync::Semaphore;

use super::permits::Permits;
use super::unix::same_program;
use super::{AttestorError, FileId, PodNumber, Process, off_thread};

/// Hashes of one holder's programs at a time.
const HASHES_OF_ONE: usize = 1;
/// How many programs are hashed at the same time; one of a holder at most.
const MAX_HASHES: usize = 4;

/// How much of a program is read at a time.
const READ_SIZE: usize = 64 * 1024;

/// How many hashes are remembered.
const MAX_KNOWN: usize = 1024;

/// How long a file must have been unchanged for its hash to be remembered: far more than what the kernel's times
/// are coarse by.
const SETTLED: Duration = Duration::seconds(2);

/// `STATX_MNT_ID_UNIQUE` of statx(2): a number of the mount that is never used again.
const UNIQUE_MOUNT: StatxFlags = StatxFlags::from_bits_retain(0x4000);

/// File systems whose times this machine's kernel keeps, by the number that statfs(2) tells: ext4, XFS, Btrfs,
/// F2FS, ZFS, tmpfs, overlay, SquashFS, EROFS.
const KEPT_HERE: &[u64] = &[
    0xef53,
    0x5846_5342,
    0x9123_683e,
    0xf2f5_2010,
    0x2fc1_2fc1,
    0x0102_1994,
    0x794c_7630,
    0x7371_7368,
    0xe0f5_e1e2,
];

/// Hashes programs, each once.
#[derive(Debug)]
pub(super) struct ProgramHashes {
    known: Arc<Mutex<Known>>,
    per_holder: Permits<Holder>,
    all: Arc<Semaphore>,
    clock: Clock,
    tells_pods: bool,
}

/// Whose turn a hash takes. Pods of several tenants have one user, so of a process of a pod the pod alone counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Holder {
    User(u32),
    Pod(PodNumber),
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Stamp {
    mount: Option<u64>,
    device: (u32, u32),
    inode: u64,
    size: u64,
    written: (i64, u32),
    changed: (i64, u32),
}

/// Hashes by stamp, the oldest forgotten first.
#[derive(Debug, Default)]
struct Known {
    hashes: HashMap<Stamp, String>,
    order: VecDeque<Stamp>,
}

impl ProgramHashes {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            known: Arc::default(),
            per_holder: Permits::default(),
            all: Arc::new(Semaphore::new(MAX_HASHES)),
            clock,
            tells_pods: false,
        }
    }

    /// Processes of pods count for their pods and not for their users, if so.
    pub(super) fn telling_pods(self, tells_pods: bool) -> Self {
        Self { tells_pods, ..self }
    }

    /// The hash of the very file that the process executes, whatever its path leads to by now, in lower-case
    /// hexadecimal digits. A `limit` of 0 bytes is none. Waits for other hashes of the same holder.
    ///
    /// # Errors
    /// When the file is larger, cannot be read, is written to meanwhile, or is another than when the process
    /// connected.
    pub(super) async fn sha256(
        &self,
        process: &Arc<Process>,
        uid: u32,
        limit: u64,
    ) -> Result<String, AttestorError> {
        if let Some(hash) = self.look_up(process, limit).await? {
            return Ok(hash);
        }
        let holder = self.holder(process, uid).await?;
        let turn = self.per_holder.acquire(holder, HASHES_OF_ONE).await;
        // Another call may have been about the same program.
        if let Some(hash) = self.look_up(process, limit).await? {
            return Ok(hash);
        }
        let permit = Arc::clone(&self.all).acquire_owned().await;
        let permit = permit.map_err(|_closed| AttestorError::CutOff)?;
        let unwanted = CancelOnDrop::default();
        let (who, known, now) = (Arc::clone(process), Arc::clone(&self.known), self.clock.now());
        let cancelled = Arc::clone(&unwanted.0);
        off_thread(move || {
            let _until_done = (turn, permit);
            let program = Program::open(&who)?;
            let hash = program.hash(&who, limit, &cancelled)?;
            if program.is_settled(now).map_err(read_failed)? {
                lock(&known).insert(program.stamp, hash.clone());
            }
            Ok(hash)
        })
        .await
    }

    async fn holder(&self, process: &Arc<Process>, uid: u32) -> Result<Holder, AttestorError> {
        if !self.tells_pods {
            return Ok(Holder::User(uid));
        }
        let who = Arc::clone(process);
        off_thread(move || {
            let pod = PodNumber::of_process(who.procfs(), who.pid());
            Ok(pod.map_or(Holder::User(uid), Holder::Pod))
        })
        .await
    }

    /// Whoever serves the file system is not asked, so this does not wait.
    async fn look_up(&self, process: &Arc<Process>, limit: u64) -> Result<Option<String>, AttestorError> {
        let (who, known) = (Arc::clone(process), Arc::clone(&self.known));
        off_thread(move || {
            let exe = who.procfs().folder(who.pid()).join("exe");
            let told = Stamp::ask(CWD, &exe, AtFlags::STATX_DONT_SYNC).map_err(read_failed)?;
            same_program(&who, told.file())?;
            let hash = lock(&known).hashes.get(&told).cloned();
            if hash.is_some() {
                check_size(told.size, limit)?;
            }
            Ok(hash)
        })
        .await
    }
}

/// The program of a process, open.
struct Program {
    file: File,
    stamp: Stamp,
}

impl Program {
    fn open(process: &Process) -> Result<Self, AttestorError> {
        let exe = process.procfs().folder(process.pid()).join("exe");
        let file = File::open(exe).map_err(read_failed)?;
        let stamp = Stamp::of(&file).map_err(read_failed)?;
        same_program(process, stamp.file())?;
        Ok(Self { file, stamp })
    }

    fn hash(&self, process: &Process, limit: u64, cancelled: &AtomicBool) -> Result<String, AttestorError> {
        check_size(self.stamp.size, limit)?;
        let mut context = ring::digest::Context::new(&ring::digest::SHA256);
        let mut buffer = vec![0; READ_SIZE];
        let mut seen: u64 = 0;
        loop {
            let count = match (&self.file).read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(read_failed(error)),
            };
            seen = seen.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
            check_size(seen, limit)?;
            context.update(buffer.get(..count).unwrap_or_default());
            if cancelled.load(Ordering::Relaxed) || !process.is_alive() {
                // Nobody waits for the answer, and the rest may be large.
                return Err(AttestorError::CutOff);
            }
        }
        if Stamp::of(&self.file).map_err(read_failed)? != self.stamp {
            return Err(AttestorError::ProgramRewritten(process.pid()));
        }
        Ok(data_encoding::HEXLOWER.encode(context.finish().as_ref()))
    }

    /// Whether a file with this stamp will have these bytes.
    fn is_settled(&self, now: OffsetDateTime) -> io::Result<bool> {
        let Ok(changed) = OffsetDateTime::from_unix_timestamp(self.stamp.changed.0) else {
            return Ok(false);
        };
        let is_unique = self.stamp.mount.is_some() || self.stamp.device.0 != 0;
        // Its type differs between architectures; these numbers have 32 bits.
        let kind = fstatfs(&self.file)?.f_type as u64 & 0xffff_ffff;
        // The stamp leaves out parts of a second.
        Ok(is_unique && now - changed > SETTLED + Duration::SECOND && KEPT_HERE.contains(&kind))
    }
}

impl Stamp {
    fn of(file: &File) -> io::Result<Self> {
        Self::ask(file, Path::new(""), AtFlags::EMPTY_PATH)
    }

    fn ask(dir: impl AsFd, path: &Path, flags: AtFlags) -> io::Result<Self> {
        let told: Statx = statx(dir, path, flags, StatxFlags::BASIC_STATS | UNIQUE_MOUNT)?;
        let knows_mount = told.stx_mask & UNIQUE_MOUNT.bits() != 0;
        Ok(Self {
            mount: knows_mount.then_some(told.stx_mnt_id),
            device: (told.stx_dev_major, told.stx_dev_minor),
            inode: told.stx_ino,
            size: told.stx_size,
            written: (told.stx_mtime.tv_sec, told.stx_mtime.tv_nsec),
            changed: (told.stx_ctime.tv_sec, told.stx_ctime.tv_nsec),
        })
    }

    fn file(&self) -> FileId {
        FileId::new(self.device, self.inode)
    }
}

impl Known {
    fn insert(&mut self, stamp: Stamp, hash: String) {
        if self.hashes.insert(stamp, hash).is_some() {
            return;
        }
        self.order.push_back(stamp);
        if self.order.len() > MAX_KNOWN
            && let Some(oldest) = self.order.pop_front()
        {
            self.hashes.remove(&oldest);
        }
    }
}

/// Tells a hash that nobody waits for it any more, as after the deadline: it holds a permit that others need.
#[derive(Default)]
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn check_size(size: u64, limit: u64) -> Result<(), AttestorError> {
    if limit > 0 && size > limit {
        return Err(AttestorError::ProgramTooLarge { size, limit });
    }
    Ok(())
}

fn read_failed(source: impl Into<io::Error>) -> AttestorError {
    AttestorError::Io {
        action: "read program".to_owned(),
        source: source.into(),
    }
}

/// What is behind it is changed in one step, so a panic cannot leave it half-changed.
fn lock(known: &Mutex<Known>) -> std::sync::MutexGuard<'_, Known> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use std::process::{Child, Command, Stdio};

    use super::*;
    use crate::workload::ProcFs;

    const LATER: Duration = Duration::hours(1);

    /// A copy of `cat`, executed, in a directory of its own.
    struct Workload {
        child: Child,
        process: Arc<Process>,
        program: std::path::PathBuf,
        _dir: tempfile::TempDir,
    }

    impl Workload {
        fn start() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let program = dir.path().join("program");
            let found = ["/usr/bin/cat", "/bin/cat"]
                .into_iter()
                .find(|path| Path::new(path).exists());
            std::fs::copy(found.unwrap(), &program).unwrap();
            let (child, process) = spawn(&program);
            Self {
                child,
                process,
                program,
                _dir: dir,
            }
        }

        fn stop(&mut self) {
            let _dead = self.child.kill();
            let _reaped = self.child.wait();
        }

        fn restart(&mut self) {
            (self.child, self.process) = spawn(&self.program);
        }

        fn digest(&self) -> String {
            let digest = ring::digest::digest(&ring::digest::SHA256, &std::fs::read(&self.program).unwrap());
            data_encoding::HEXLOWER.encode(digest.as_ref())
        }
    }

    impl Drop for Workload {
        fn drop(&mut self) {
            self.stop();
        }
    }

    fn spawn(program: &Path) -> (Child, Arc<Process>) {
        let child = loop {
            let mut command = Command::new(program);
            command.stdin(Stdio::piped()).stdout(Stdio::null());
            match command.spawn() {
                // Another test forked while the copy was open for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                child => break child.unwrap(),
            }
        };
        let process = Process::open(i64::from(child.id()), &ProcFs::default()).unwrap();
        (child, Arc::new(process))
    }

    fn hashes_at(now: OffsetDateTime) -> ProgramHashes {
        ProgramHashes::new(Clock::paused_at(now))
    }

    fn known(hashes: &ProgramHashes) -> usize {
        lock(&hashes.known).hashes.len()
    }

    #[tokio::test]
    async fn a_program_that_stays_the_same_is_hashed_once() {
        let workload = Workload::start();
        let hashes = hashes_at(Clock::system().now() + LATER);
        let hash = hashes.sha256(&workload.process, 0, 0).await.unwrap();
        assert_eq!(hash, workload.digest());
        let stamp = Program::open(&workload.process).unwrap().stamp;
        // Another answer than the file would give shows that it is not read again.
        lock(&hashes.known).hashes.insert(stamp, "remembered".to_owned());
        assert_eq!(
            hashes.sha256(&workload.process, 0, 0).await.unwrap(),
            "remembered"
        );
        let size = std::fs::metadata(&workload.program).unwrap().len();
        let error = hashes.sha256(&workload.process, 0, size - 1).await.unwrap_err();
        assert!(matches!(error, AttestorError::ProgramTooLarge { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_rewritten_program_is_hashed_again() {
        let mut workload = Workload::start();
        let hashes = hashes_at(Clock::system().now() + LATER);
        let before = hashes.sha256(&workload.process, 0, 0).await.unwrap();
        workload.stop();
        // The same inode, size and time of writing.
        let written = std::fs::metadata(&workload.program).unwrap().modified().unwrap();
        let mut bytes = std::fs::read(&workload.program).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&workload.program, bytes).unwrap();
        let file = File::options().write(true).open(&workload.program).unwrap();
        file.set_modified(written).unwrap();
        drop(file);
        workload.restart();
        let after = hashes.sha256(&workload.process, 0, 0).await.unwrap();
        assert_ne!(after, before);
        assert_eq!(after, workload.digest());
    }

    #[tokio::test]
    async fn a_program_changed_just_now_is_not_remembered() {
        let workload = Workload::start();
        let hashes = hashes_at(Clock::system().now());
        assert_eq!(
            hashes.sha256(&workload.process, 0, 0).await.unwrap(),
            workload.digest()
        );
        assert_eq!(known(&hashes), 0);
    }

    #[tokio::test]
    async fn a_change_while_it_is_hashed_fails() {
        let workload = Workload::start();
        let program = Program::open(&workload.process).unwrap();
        let other = program.file.try_clone().unwrap();
        let stale = Program {
            file: other,
            stamp: Stamp {
                changed: (0, 0),
                ..program.stamp
            },
        };
        let outcome = stale.hash(&workload.process, 0, &AtomicBool::new(false));
        assert!(
            matches!(outcome, Err(AttestorError::ProgramRewritten(_))),
            "{outcome:?}"
        );
        assert!(
            program
                .hash(&workload.process, 0, &AtomicBool::new(false))
                .is_ok()
        );
    }

    #[tokio::test]
    async fn a_user_hashes_one_program_at_a_time_and_a_call_that_waited_reads_nothing() {
        let workload = Workload::start();
        let hashes = hashes_at(Clock::system().now() + LATER);
        let turn = hashes.per_holder.acquire(Holder::User(7), HASHES_OF_ONE).await;
        let mut waiting = Box::pin(hashes.sha256(&workload.process, 7, 0));
        tokio::select! {
            biased;
            answer = &mut waiting => panic!("did not wait: {answer:?}"),
            answer = hashes.sha256(&workload.process, 8, 0) => drop(answer.unwrap()),
        }
        let stamp = Program::open(&workload.process).unwrap().stamp;
        lock(&hashes.known).hashes.insert(stamp, "remembered".to_owned());
        drop(turn);
        assert_eq!(waiting.await.unwrap(), "remembered");
    }

    /// The same process, as if it were in this control group.
    fn in_group(workload: &Workload, group: &str) -> (tempfile::TempDir, Arc<Process>) {
        let dir = tempfile::tempdir().unwrap();
        let pid = workload.child.id();
        let folder = dir.path().join(pid.to_string());
        std::fs::create_dir(&folder).unwrap();
        for name in ["stat", "exe"] {
            std::os::unix::fs::symlink(format!("/proc/{pid}/{name}"), folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("cgroup"), format!("0::{group}\n")).unwrap();
        let process = Process::open(i64::from(pid), &ProcFs::at(dir.path())).unwrap();
        (dir, Arc::new(process))
    }

    #[tokio::test]
    async fn pods_of_one_user_wait_for_themselves_alone_where_pods_are_told_apart() {
        const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";
        let workload = Workload::start();
        let of = |pod: &str| format!("/kubepods/besteffort/pod{pod}/{}", "0".repeat(64));
        let (_dir, slow) = in_group(&workload, &of(UID));
        let (_other_dir, other) = in_group(&workload, &of(&UID.replace('7', "0")));
        let (_beside_dir, beside) = in_group(&workload, "/user.slice");
        let named_so = format!("/system.slice/build.service{}", of(UID));
        let (_forged_dir, forged) = in_group(&workload, &named_so);
        // What was written just now is not remembered, so each has to be hashed.
        let hashes = hashes_at(Clock::system().now()).telling_pods(true);
        let pod = Holder::Pod(PodNumber::parse(UID).unwrap());
        let turn = hashes.per_holder.acquire(pod, HASHES_OF_ONE).await;
        let mut waiting = Box::pin(hashes.sha256(&slow, 7, 0));
        for free in [&other, &beside, &forged] {
            tokio::select! {
                biased;
                answer = &mut waiting => panic!("did not wait: {answer:?}"),
                answer = hashes.sha256(free, 7, 0) => drop(answer.unwrap()),
            }
        }
        drop(turn);
        waiting.await.unwrap();
        // Where they are not told apart, all of a user wait for each other.
        let hashes = hashes_at(Clock::system().now());
        let _turn = hashes.per_holder.acquire(Holder::User(7), HASHES_OF_ONE).await;
        tokio::select! {
            biased;
            answer = hashes.sha256(&slow, 7, 0) => panic!("did not wait: {answer:?}"),
            answer = hashes.sha256(&slow, 8, 0) => drop(answer.unwrap()),
        }
    }

    #[test]
    fn a_hash_that_nobody_waits_for_stops() {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let workload = Workload::start();
        let unwanted = CancelOnDrop::default();
        let cancelled = Arc::clone(&unwanted.0);
        let hash = || Program::open(&workload.process)?.hash(&workload.process, 0, &cancelled);
        assert!(hash().is_ok());
        drop(unwanted);
        let outcome = hash();
        assert!(matches!(outcome, Err(AttestorError::CutOff)), "{outcome:?}");
    }

    #[test]
    fn the_oldest_hash_is_forgotten_first() {
        let mut known = Known::default();
        let stamp = |inode: usize| Stamp {
            mount: None,
            device: (8, 1),
            inode: inode as u64,
            size: 0,
            written: (0, 0),
            changed: (0, 0),
        };
        for inode in 0..=MAX_KNOWN {
            known.insert(stamp(inode), String::new());
            known.insert(stamp(inode), String::new());
        }
        assert_eq!((known.hashes.len(), known.order.len()), (MAX_KNOWN, MAX_KNOWN));
        assert!(!known.hashes.contains_key(&stamp(0)) && known.hashes.contains_key(&stamp(1)));
    }
}
