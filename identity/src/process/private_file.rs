//! State on disk: replaced atomically, with restricted modes.
//!
//! These calls block for as long as the disk takes; they are meant for small files, from start-up
//! code or a blocking thread.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use zeroize::Zeroizing;

/// Permission bits of a file or directory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileMode(u32);

/// A file that holds a secret, in memory that is zeroised.
pub struct SecretBytes {
    bytes: Zeroizing<Vec<u8>>,
    readable_by_others: bool,
}

/// Why a file could not be written or read. Says what was tried and the path.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The operating system refused.
    #[error("{action}: {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A symbolic link stands where the file should be; following it would write elsewhere.
    #[error("refused to write through a symbolic link: {}", path.display())]
    SymbolicLink {
        /// The link.
        path: PathBuf,
    },
    /// It is not a plain file, or not a directory, as the call needs.
    #[error("{expected} expected: {}", path.display())]
    WrongKind {
        /// What should be there.
        expected: &'static str,
        /// The path that is something else.
        path: PathBuf,
    },
    /// It is larger than the caller is ready to hold.
    #[error("file is larger than {max} bytes: {}", path.display())]
    TooLarge {
        /// The limit in bytes.
        max: usize,
        /// The file.
        path: PathBuf,
    },
}

/// Replaces the file at `path` by `bytes`: a reader sees the old content or the new, also after a
/// crash, and a full disk leaves the old. The new file has `mode` whatever the umask.
///
/// # Errors
/// [`FileError::SymbolicLink`] and [`FileError::WrongKind`] when `path` is not a plain file;
/// [`FileError::Io`] otherwise.
pub fn write(path: &Path, bytes: &[u8], mode: FileMode) -> Result<(), FileError> {
    let (parent, name) = split(path)?;
    match fs::lstat(path) {
        Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::Symlink => {
                return Err(FileError::SymbolicLink {
                    path: path.to_owned(),
                });
            }
            _ => {
                return Err(FileError::WrongKind {
                    expected: "plain file",
                    path: path.to_owned(),
                });
            }
        },
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("examine file", path, error)),
    }
    let directory = open_directory(parent)?;
    let temporary = temporary_name(name);
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = fs::openat(&directory, &temporary, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| failed("create temporary file beside", path, error))?;
    let replaced = fill(file, bytes, mode)
        .map_err(|error| failed("write file", path, error))
        .and_then(|()| {
            fs::renameat(&directory, &temporary, &directory, name)
                .map_err(|error| failed("replace file", path, error))
        });
    if replaced.is_err() {
        // What was asked has failed already; the leftover holds nothing that is of use to anybody.
        let _leftover = fs::unlinkat(&directory, &temporary, AtFlags::empty());
    }
    replaced?;
    fs::fsync(&directory).map_err(|error| failed("sync directory", parent, error))
}

/// Removes a file, durably. A file that is not there is not an error: returns false.
///
/// # Errors
/// [`FileError::Io`].
pub fn remove(path: &Path) -> Result<bool, FileError> {
    match fs::unlink(path) {
        Ok(()) => {}
        Err(Errno::NOENT) => return Ok(false),
        Err(error) => return Err(failed("remove file", path, error)),
    }
    let (parent, _name) = split(path)?;
    fs::fsync(open_directory(parent)?).map_err(|error| failed("sync directory", parent, error))?;
    Ok(true)
}

/// Gives a plain file another name beside it, `<name>.<why>-<unix time>`, and mode 0600, so that its own name is free.
/// A file that has such a name already is left alone: a number is added. Tells the new name.
///
/// # Errors
/// [`FileError::SymbolicLink`] and [`FileError::WrongKind`] when `path` is not a plain file;
/// [`FileError::Io`] otherwise, then it has its name still.
pub fn set_aside(path: &Path, why: &str, unix_time: i64) -> Result<PathBuf, FileError> {
    let (parent, name) = split(path)?;
    let stat = fs::lstat(path).map_err(|error| failed("examine file", path, error))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => {
            return Err(FileError::SymbolicLink {
                path: path.to_owned(),
            });
        }
        _ => {
            return Err(FileError::WrongKind {
                expected: "plain file",
                path: path.to_owned(),
            });
        }
    }
    let directory = open_directory(parent)?;
    for number in 1..=MOST_ASIDE {
        let mut aside = name.to_owned();
        aside.push(format!(".{why}-{unix_time}"));
        if number > 1 {
            aside.push(format!(".{number}"));
        }
        // A second name, then the first goes: unlike a rename, this takes nobody else's place.
        match fs::linkat(&directory, name, &directory, &aside, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => continue,
            Err(error) => return Err(failed("set file aside", path, error)),
        }
        let aside = parent.join(aside);
        let named = fs::chmod(&aside, FileMode::SECRET.bits())
            .and_then(|()| fs::unlinkat(&directory, name, AtFlags::empty()));
        if let Err(error) = named {
            // The first name is there still, so the second is one too many.
            let _leftover = fs::unlink(&aside);
            return Err(failed("set file aside", path, error));
        }
        fs::fsync(&directory).map_err(|error| failed("sync directory", parent, error))?;
        return Ok(aside);
    }
    Err(failed("set file aside under a free name", path, Errno::EXIST))
}

/// Reads a file of at most `max` bytes, of any kind: one that is piped is waited for.
///
/// # Errors
/// [`FileError::TooLarge`], [`FileError::Io`].
pub fn read_bounded(path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let file = File::open(path).map_err(|error| failed("open file", path, error))?;
    read_rest(file, path, max)
}

/// Reads a text file of at most `max` bytes, of any kind.
///
/// # Errors
/// As [`read_bounded`]; [`FileError::Io`] when it is not UTF-8.
pub fn read_text(path: &Path, max: usize) -> Result<String, FileError> {
    utf8(read_bounded(path, max)?, path)
}

/// Reads a plain text file of at most `max` bytes. Waits for nobody: a FIFO, a socket or a device that has the name is
/// refused.
///
/// # Errors
/// [`FileError::WrongKind`], [`FileError::TooLarge`]; [`FileError::Io`], also when it is not UTF-8.
pub fn read_plain_text(path: &Path, max: usize) -> Result<String, FileError> {
    let (file, _stat) = open_plain(path)?;
    utf8(read_rest(file, path, max)?, path)
}

/// Reads a plain file of at most `max` bytes that holds a secret.
///
/// # Errors
/// [`FileError::WrongKind`], [`FileError::TooLarge`], [`FileError::Io`].
pub fn read_secret(path: &Path, max: usize) -> Result<SecretBytes, FileError> {
    let (mut file, stat) = open_plain(path)?;
    let size = usize::try_from(stat.st_size).unwrap_or(usize::MAX);
    if size > max {
        return Err(FileError::TooLarge {
            max,
            path: path.to_owned(),
        });
    }
    // One byte more than the size, in one piece: growing would leave copies of the secret behind.
    let mut bytes = Zeroizing::new(vec![0; size.saturating_add(1)]);
    let mut filled = 0;
    while let Some(space) = bytes.get_mut(filled..).filter(|space| !space.is_empty()) {
        match file.read(space) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed("read file", path, error)),
        }
    }
    if filled > size {
        return Err(failed(
            "read file that grew meanwhile",
            path,
            io::Error::from(io::ErrorKind::Other),
        ));
    }
    bytes.truncate(filled);
    Ok(SecretBytes {
        bytes,
        readable_by_others: stat.st_mode & 0o044 != 0,
    })
}

/// Makes sure that a directory exists. What is created (missing parents as well) gets `mode`,
/// whatever the umask; what exists keeps its own.
///
/// # Errors
/// [`FileError::WrongKind`] when something else has that name; [`FileError::Io`].
pub fn create_private_dir(path: &Path, mode: FileMode) -> Result<(), FileError> {
    match fs::stat(path) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => return Ok(()),
        Ok(_other) => {
            return Err(FileError::WrongKind {
                expected: "directory",
                path: path.to_owned(),
            });
        }
        Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("examine directory", path, error)),
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_private_dir(parent, mode)?;
    }
    match fs::mkdir(path, Mode::RWXU) {
        // Nobody else could enter it until now.
        Ok(()) => fs::chmod(path, mode.bits()).map_err(|error| failed("set mode of directory", path, error)),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(failed("create directory", path, error)),
    }
}

/// How many files of one name and second are kept beside each other.
const MOST_ASIDE: u32 = 100;

impl FileMode {
    /// 0600: keys, tokens, state.
    pub const SECRET: Self = Self(0o600);
    /// 0640: certificates that a group of programs shares.
    pub const GROUP: Self = Self(0o640);
    /// 0644: what everybody may read.
    pub const PUBLIC: Self = Self(0o644);
    /// 0700: a directory for ourselves.
    pub const PRIVATE_DIR: Self = Self(0o700);
    /// 0750: a directory that our group may enter.
    pub const GROUP_DIR: Self = Self(0o750);
    /// 0755: a directory that everybody may enter.
    pub const PUBLIC_DIR: Self = Self(0o755);

    /// Takes the lower nine bits of `mode`.
    pub const fn new(mode: u32) -> Self {
        Self(mode & 0o777)
    }

    /// The nine permission bits.
    pub const fn as_u32(self) -> u32 {
        self.0
    }

    pub(super) fn bits(self) -> Mode {
        Mode::from_raw_mode(self.0)
    }
}

impl fmt::Debug for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

impl SecretBytes {
    /// The content.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The content, in memory that is zeroised when dropped.
    pub fn into_bytes(self) -> Zeroizing<Vec<u8>> {
        self.bytes
    }

    /// Whether group or others may read the file, which deserves a warning.
    pub fn is_readable_by_others(&self) -> bool {
        self.readable_by_others
    }
}

impl fmt::Debug for SecretBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SecretBytes")
            .field("readable_by_others", &self.readable_by_others)
            .finish_non_exhaustive()
    }
}

fn fill(file: OwnedFd, bytes: &[u8], mode: FileMode) -> io::Result<()> {
    let mut file = File::from(file);
    file.write_all(bytes)?;
    fs::fchmod(&file, mode.bits())?;
    file.sync_all()
}

/// Opens a plain file for reading. What else has the name is not opened, because opening some devices does something.
fn open_plain(path: &Path) -> Result<(File, Stat), FileError> {
    let plain = |stat: Stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(stat),
        _ => Err(FileError::WrongKind {
            expected: "plain file",
            path: path.to_owned(),
        }),
    };
    plain(fs::stat(path).map_err(|error| failed("open file", path, error))?)?;
    // Non-blocking, so that a FIFO that takes its place just now cannot hang us; it means nothing for plain files.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = fs::open(path, flags, Mode::empty()).map_err(|error| failed("open file", path, error))?;
    let stat = plain(fs::fstat(&fd).map_err(|error| failed("examine file", path, error))?)?;
    Ok((File::from(fd), stat))
}

fn read_rest(file: File, path: &Path, max: usize) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let limit = u64::try_from(max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(|error| failed("read file", path, error))?;
    if bytes.len() > max {
        return Err(FileError::TooLarge {
            max,
            path: path.to_owned(),
        });
    }
    Ok(bytes)
}

fn utf8(bytes: Vec<u8>, path: &Path) -> Result<String, FileError> {
    String::from_utf8(bytes).map_err(|_not_text| {
        failed(
            "read file as UTF-8 text",
            path,
            io::Error::from(io::ErrorKind::InvalidData),
        )
    })
}

fn split(path: &Path) -> Result<(&Path, &OsStr), FileError> {
    let name = path.file_name().ok_or_else(|| FileError::WrongKind {
        expected: "file name",
        path: path.to_owned(),
    })?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    Ok((parent, name))
}

fn open_directory(path: &Path) -> Result<OwnedFd, FileError> {
    fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|error| failed("open directory", path, error))
}

fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}.tmp", uuid::Uuid::new_v4().simple()));
    temporary
}

fn failed(action: &'static str, path: &Path, source: impl Into<io::Error>) -> FileError {
    FileError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests prepare files by hand, and some wrongly on purpose.

    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    fn mode_of(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    fn names_in(path: &Path) -> Vec<OsString> {
        std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect()
    }

    #[test]
    fn replaces_content_and_mode_and_leaves_no_temporary_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keys.json");
        write(&path, b"old, and longer than the new", FileMode::PUBLIC).unwrap();
        assert_eq!(mode_of(&path), 0o644);
        write(&path, b"new", FileMode::SECRET).unwrap();
        assert_eq!(read_bounded(&path, 3).unwrap(), b"new");
        assert_eq!(mode_of(&path), 0o600);
        assert_eq!(names_in(dir.path()), ["keys.json"]);
    }

    #[test]
    fn refuses_to_write_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let (victim, link) = (dir.path().join("victim"), dir.path().join("link"));
        std::fs::write(&victim, "untouched").unwrap();
        symlink(&victim, &link).unwrap();
        assert!(matches!(
            write(&link, b"x", FileMode::SECRET),
            Err(FileError::SymbolicLink { .. })
        ));
        assert_eq!(std::fs::read(&victim).unwrap(), b"untouched");
    }

    #[test]
    fn refuses_a_directory_in_the_place_of_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = write(dir.path(), b"x", FileMode::SECRET).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("plain file expected: {}", dir.path().display())
        );
        assert!(write(Path::new("/"), b"x", FileMode::SECRET).is_err());
    }

    #[test]
    fn a_failed_write_keeps_the_old_file_and_names_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("svid.pem");
        write(&path, b"old", FileMode::SECRET).unwrap();
        // Like a full disk: the bytes cannot be written, because the file is open for reading only.
        let read_only = fs::open(&path, OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(fill(read_only, b"new", FileMode::SECRET).is_err());
        let missing = dir.path().join("absent/svid.pem");
        let error = write(&missing, b"new", FileMode::SECRET).unwrap_err().to_string();
        assert!(error.contains("absent"), "{error}");
        assert_eq!(read_bounded(&path, 10).unwrap(), b"old");
        assert_eq!(names_in(dir.path()), ["svid.pem"]);
    }

    #[test]
    fn reads_up_to_the_limit_and_refuses_one_byte_more() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bundle");
        std::fs::write(&path, [7; 5]).unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), [7; 5]);
        assert!(matches!(
            read_bounded(&path, 4),
            Err(FileError::TooLarge { max: 4, .. })
        ));
        assert!(matches!(
            read_secret(&path, 4),
            Err(FileError::TooLarge { max: 4, .. })
        ));
        assert!(read_text(&path, 5).is_ok());
        std::fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 5).is_err());
    }

    #[test]
    fn tells_when_a_secret_is_readable_by_others_and_prints_none_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, b"hunter2", FileMode::SECRET).unwrap();
        let secret = read_secret(&path, 100).unwrap();
        assert_eq!(secret.as_bytes(), b"hunter2");
        assert!(!secret.is_readable_by_others());
        assert!(!format!("{secret:?}").contains("104"));
        write(&path, b"", FileMode::GROUP).unwrap();
        let empty = read_secret(&path, 100).unwrap();
        assert!(empty.is_readable_by_others());
        assert!(empty.into_bytes().is_empty());
    }

    #[test]
    fn secrets_and_plain_texts_are_read_from_plain_files_only_and_nobody_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // Nobody will ever write to it.
        fs::mknodat(CWD, at("fifo"), FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        symlink(at("fifo"), at("link")).unwrap();
        let devices = ["/dev/zero", "/dev/null"].map(PathBuf::from);
        let others = [dir.path().to_owned(), at("fifo"), at("socket"), at("link")];
        for path in others.iter().chain(&devices) {
            let refused = [
                read_secret(path, 10).map(drop),
                read_plain_text(path, 10).map(drop),
            ];
            for outcome in refused {
                let is_refused = matches!(outcome, Err(FileError::WrongKind { .. }));
                assert!(is_refused, "{}: {outcome:?}", path.display());
            }
        }
        std::fs::write(at("file"), "abc").unwrap();
        symlink(at("file"), at("leads")).unwrap();
        assert_eq!(read_plain_text(&at("leads"), 3).unwrap(), "abc");
        let larger = read_plain_text(&at("file"), 2);
        assert!(
            matches!(larger, Err(FileError::TooLarge { max: 2, .. })),
            "{larger:?}"
        );
    }

    #[test]
    fn creates_missing_directories_with_the_mode_and_keeps_existing_ones() {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("a/b");
        create_private_dir(&inner, FileMode::PUBLIC_DIR).unwrap();
        assert_eq!((mode_of(&dir.path().join("a")), mode_of(&inner)), (0o755, 0o755));
        create_private_dir(&inner, FileMode::PRIVATE_DIR).unwrap();
        assert_eq!(mode_of(&inner), 0o755);
        std::fs::write(inner.join("file"), "").unwrap();
        assert!(matches!(
            create_private_dir(&inner.join("file"), FileMode::PRIVATE_DIR),
            Err(FileError::WrongKind { .. })
        ));
    }

    #[test]
    fn what_is_set_aside_is_kept_whole_and_private_and_takes_nobodys_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.json");
        let mut kept = Vec::new();
        for content in ["first", "second", "third"] {
            write(&path, content.as_bytes(), FileMode::PUBLIC).unwrap();
            let aside = set_aside(&path, "corrupt", 1_800_000_000).unwrap();
            assert!(!path.exists());
            kept.push((aside, content));
        }
        let names: Vec<_> = kept
            .iter()
            .map(|(path, _)| path.file_name().unwrap().to_str().unwrap())
            .collect();
        let expected = ["", ".2", ".3"].map(|end| format!("data.json.corrupt-1800000000{end}"));
        assert_eq!(names, expected);
        for (path, content) in kept {
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
            assert_eq!(mode_of(&path), 0o600);
        }
        assert_eq!(names_in(dir.path()).len(), 3);
        assert!(set_aside(&path, "corrupt", 0).is_err(), "there is no such file");
        symlink(dir.path().join("victim"), &path).unwrap();
        assert!(matches!(
            set_aside(&path, "corrupt", 0),
            Err(FileError::SymbolicLink { .. })
        ));
    }

    #[test]
    fn removal_is_idempotent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("svid");
        write(&path, b"x", FileMode::SECRET).unwrap();
        assert!(remove(&path).unwrap());
        assert!(!remove(&path).unwrap());
    }
}
