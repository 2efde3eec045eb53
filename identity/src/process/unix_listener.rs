//! Opens a Unix socket so that no other user can replace it and no socket of a running process is replaced.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::net::UnixListener;

use super::private_file::{self, FileError, FileMode};

/// The longest path of a Unix socket, in bytes: `sun_path` less its final NUL.
pub const MAX_PATH_BYTES: usize = 107;

const BACKLOG: i32 = 1024;

/// Who may connect to a socket, and what its directory gets when it is missing.
#[derive(Clone, Copy, Debug)]
pub struct UnixListenerOptions {
    /// Mode of the socket, whatever the umask. Connecting needs the write bit.
    pub socket_mode: FileMode,
    /// Mode of directories that are created for it; existing ones keep their own.
    pub dir_mode: FileMode,
}

/// Removes the socket's file when dropped, if it is still the one that was bound.
#[derive(Debug)]
#[must_use = "dropping the guard removes the socket's file"]
pub struct SocketGuard {
    path: PathBuf,
    identity: (u64, u64),
}

/// Why a Unix socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Linux allows [`MAX_PATH_BYTES`].
    #[error("socket path has {length} bytes, more than the {MAX_PATH_BYTES} that the system allows: {}", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        length: usize,
    },
    /// The directory could not be made.
    #[error("socket directory: {0}")]
    Directory(#[from] FileError),
    /// Whoever owns the directory could put another socket in the place of ours.
    #[error("socket directory is, or is below, one owned by user {owner}, neither by root nor by us (user {us}): {}", path.display())]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Our effective user.
        us: u32,
    },
    /// Everybody could put another socket in the place of ours.
    #[error("socket directory is, or is below, one that everybody may write to and that has no sticky bit: {}", path.display())]
    WritableDirectory {
        /// The directory that everybody may write to.
        path: PathBuf,
    },
    /// Another process listens there.
    #[error("socket is already in use by another process: {}", path.display())]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// What has that name is not a socket, and will not be removed.
    #[error("a file that is not a socket stands in the place of the socket: {}", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
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
}

/// Listens at `path`. The socket of a process that has ended is replaced; that of a running one is not.
/// The socket never has more permissions than asked for, and nobody can connect before it has them.
/// Must be called within a tokio runtime.
///
/// # Errors
/// [`ListenError`].
pub fn bind(path: &Path, options: UnixListenerOptions) -> Result<(UnixListener, SocketGuard), ListenError> {
    let length = path.as_os_str().as_bytes().len();
    if length > MAX_PATH_BYTES {
        return Err(ListenError::PathTooLong {
            path: path.to_owned(),
            length,
        });
    }
    let address =
        SocketAddrUnix::new(path).map_err(|error| failed("read path as address of a socket", path, error))?;
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    // Before as well, so that nothing is made where others could take it away.
    refuse_unsafe(parent)?;
    private_file::create_private_dir(parent, options.dir_mode)?;
    refuse_unsafe(parent)?;
    remove_stale(path, &address)?;

    let socket = stream_socket().map_err(|error| failed("make socket", path, error))?;
    // The inode that `bind` makes takes this mode less the umask, so it is never wider than asked.
    fs::fchmod(&socket, options.socket_mode.bits())
        .map_err(|error| failed("set mode of socket", path, error))?;
    net::bind(&socket, &address).map_err(|error| match error {
        Errno::ADDRINUSE => ListenError::InUse {
            path: path.to_owned(),
        },
        error => failed("bind socket", path, error),
    })?;
    // Nobody can connect until `listen`.
    let guard =
        widen(path, options.socket_mode).map_err(|error| failed("set mode of socket", path, error))?;
    net::listen(&socket, BACKLOG).map_err(|error| failed("listen on socket", path, error))?;
    let listener =
        UnixListener::from_std(StdUnixListener::from(socket)).map_err(|source| ListenError::Io {
            action: "register socket",
            path: path.to_owned(),
            source,
        })?;
    Ok((listener, guard))
}

impl SocketGuard {
    /// Where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketGuard {
    fn drop(&mut self) {
        if fs::lstat(&self.path).is_ok_and(|stat| identity(&stat) == self.identity) {
            // Nobody is left to be told; the next start removes a stale file.
            let _removed = fs::unlink(&self.path);
        }
    }
}

/// Refuses a directory that others could replace: one that is not ours (or root's) or that everybody may write to,
/// or that is below such a directory. What does not exist yet is passed over.
fn refuse_unsafe(parent: &Path) -> Result<(), ListenError> {
    let unreadable = |source| ListenError::Io {
        action: "find socket directory",
        path: parent.to_owned(),
        source,
    };
    let absolute = std::path::absolute(parent).map_err(unreadable)?;
    // As named, for links on the way may belong to somebody else too; then where they lead.
    for ancestor in absolute.ancestors() {
        refuse_unsafe_step(ancestor)?;
    }
    match absolute.ancestors().find(|ancestor| fs::stat(*ancestor).is_ok()) {
        Some(existing) => existing
            .canonicalize()
            .map_err(unreadable)?
            .ancestors()
            .try_for_each(refuse_unsafe_step),
        None => Ok(()),
    }
}

fn refuse_unsafe_step(path: &Path) -> Result<(), ListenError> {
    let stat = match fs::lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(failed("examine socket directory", path, error)),
    };
    let us = rustix::process::geteuid().as_raw();
    if stat.st_uid != us && stat.st_uid != 0 {
        return Err(ListenError::ForeignDirectory {
            path: path.to_owned(),
            owner: stat.st_uid,
            us,
        });
    }
    // In a sticky directory only the owner of a name may take it away. The mode of a link means nothing.
    let mode = Mode::from_raw_mode(stat.st_mode);
    let directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
    if directory && mode.contains(Mode::WOTH) && !mode.contains(Mode::SVTX) {
        return Err(ListenError::WritableDirectory {
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Removes the file of a socket on which no process listens.
fn remove_stale(path: &Path, address: &SocketAddrUnix) -> Result<(), ListenError> {
    let before = match fs::lstat(path) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("examine socket", path, error)),
    };
    if FileType::from_raw_mode(before.st_mode) != FileType::Socket {
        return Err(ListenError::NotASocket {
            path: path.to_owned(),
        });
    }
    let probe = stream_socket().map_err(|error| failed("make socket", path, error))?;
    match net::connect(&probe, address) {
        // A full backlog (would block) is a living listener too; so is one of another type.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => {
            return Err(ListenError::InUse {
                path: path.to_owned(),
            });
        }
        Err(Errno::CONNREFUSED) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(failed("find out whether the socket is in use", path, error)),
    }
    // Another process that starts now may have replaced it since.
    if fs::lstat(path).is_ok_and(|now| identity(&now) != identity(&before)) {
        return Err(ListenError::InUse {
            path: path.to_owned(),
        });
    }
    match fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed("remove stale socket", path, error)),
    }
}

/// Gives the bound inode the bits that the umask took, without following what may be put in its place.
fn widen(path: &Path, mode: FileMode) -> rustix::io::Result<SocketGuard> {
    let inode = fs::openat(
        CWD,
        path,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat = fs::statat(&inode, "", AtFlags::EMPTY_PATH)?;
    let ours = stat.st_uid == rustix::process::geteuid().as_raw();
    if FileType::from_raw_mode(stat.st_mode) != FileType::Socket || !ours {
        return Err(Errno::EXIST);
    }
    let guard = SocketGuard {
        path: path.to_owned(),
        identity: identity(&stat),
    };
    if stat.st_mode & 0o777 != mode.as_u32() {
        // An O_PATH descriptor cannot be changed itself, but by its name in /proc.
        let name = format!(
            "/proc/self/fd/{}",
            std::os::fd::AsRawFd::as_raw_fd(&inode.as_fd())
        );
        match fs::chmod(&name, mode.bits()) {
            Err(Errno::NOENT) => fs::chmod(path, mode.bits())?, // No /proc here.
            outcome => outcome?,
        }
    }
    Ok(guard)
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

#[allow(clippy::useless_conversion)] // The width of these fields depends on the target.
fn identity(stat: &Stat) -> (u64, u64) {
    (u64::from(stat.st_dev), u64::from(stat.st_ino))
}

fn failed(action: &'static str, path: &Path, source: Errno) -> ListenError {
    ListenError::Io {
        action,
        path: path.to_owned(),
        source: source.into(),
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)] // Tests put files in the way by hand.
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use tokio::net::UnixStream;

    const OPTIONS: UnixListenerOptions = UnixListenerOptions {
        socket_mode: FileMode::new(0o777),
        dir_mode: FileMode::PUBLIC_DIR,
    };

    fn mode_of(path: &Path) -> u32 {
        std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn accepts_connections_with_the_modes_asked_for_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("spire-agent/public/api.sock");
        let (listener, guard) = bind(&path, OPTIONS).unwrap();
        assert_eq!((mode_of(&path), mode_of(path.parent().unwrap())), (0o777, 0o755));
        let (connected, accepted) = tokio::join!(UnixStream::connect(&path), listener.accept());
        connected.unwrap();
        accepted.unwrap();
        assert_eq!(guard.path(), path);
        drop(guard);
        assert!(!path.exists());
        let narrow = UnixListenerOptions {
            socket_mode: FileMode::new(0o600),
            ..OPTIONS
        };
        let (_listener, _guard) = bind(&path, narrow).unwrap();
        assert_eq!(mode_of(&path), 0o600);
    }

    #[tokio::test]
    async fn a_live_socket_is_in_use_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (_listener, _guard) = bind(&path, OPTIONS).unwrap();
        assert!(matches!(bind(&path, OPTIONS), Err(ListenError::InUse { .. })));
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn the_socket_of_a_dead_process_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        drop(StdUnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (_listener, _guard) = bind(&path, OPTIONS).unwrap();
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_not_a_socket_is_never_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "precious").unwrap();
        symlink(&file, &link).unwrap();
        for path in [&file, &link] {
            assert!(matches!(bind(path, OPTIONS), Err(ListenError::NotASocket { .. })));
        }
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        assert!(link.is_symlink());
    }

    #[tokio::test]
    async fn the_guard_leaves_the_socket_of_a_successor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("api.sock");
        let (first, guard) = bind(&path, OPTIONS).unwrap();
        std::fs::rename(&path, dir.path().join("moved")).unwrap();
        let (_second, _successor) = bind(&path, OPTIONS).unwrap();
        drop((first, guard));
        assert!(UnixStream::connect(&path).await.is_ok());
    }

    #[tokio::test]
    async fn a_path_of_108_bytes_is_a_clear_error() {
        let path = PathBuf::from(format!("/tmp/{}", "a".repeat(103)));
        let error = bind(&path, OPTIONS).unwrap_err().to_string();
        assert!(
            error.starts_with("socket path has 108 bytes, more than the 107"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_directory_of_another_user_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let foreign = dir.path().join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        if chown(&foreign, Some(12345), None).is_err() {
            return; // Only root can give a directory away.
        }
        let error = bind(&foreign.join("api.sock"), OPTIONS).unwrap_err();
        let us = rustix::process::geteuid().as_raw();
        assert!(matches!(error, ListenError::ForeignDirectory { owner: 12345, us: ours, .. } if ours == us));
    }

    #[tokio::test]
    async fn nothing_is_made_below_the_directory_or_the_link_of_another_user() {
        let dir = tempfile::tempdir().unwrap();
        let (foreign, ours) = (dir.path().join("foreign"), dir.path().join("ours"));
        std::fs::create_dir(&foreign).unwrap();
        std::fs::create_dir(&ours).unwrap();
        if chown(&foreign, Some(12345), None).is_err() {
            return; // Only root can give a directory away.
        }
        let (link, alias) = (dir.path().join("link"), dir.path().join("alias"));
        symlink(&ours, &link).unwrap();
        std::os::unix::fs::lchown(&link, Some(12345), None).unwrap();
        symlink(&foreign, &alias).unwrap();
        for (parent, culprit) in [(&foreign, &foreign), (&link, &link), (&alias, &foreign)] {
            let error = bind(&parent.join("private/api.sock"), OPTIONS).unwrap_err();
            assert!(
                matches!(&error, ListenError::ForeignDirectory { path, owner: 12345, .. } if path == culprit),
                "{error}"
            );
            assert!(!parent.join("private").exists());
        }
    }

    #[tokio::test]
    async fn nothing_is_made_below_what_everybody_may_write_to_unless_it_is_sticky() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        let set_mode = |mode| std::fs::set_permissions(&open, PermissionsExt::from_mode(mode)).unwrap();
        set_mode(0o777);
        let path = open.join("private/api.sock");
        let error = bind(&path, OPTIONS).unwrap_err();
        assert!(matches!(&error, ListenError::WritableDirectory { path } if *path == open));
        assert!(error.to_string().ends_with("open"), "{error}");
        assert!(!open.join("private").exists());
        for mode in [0o775, 0o1777] {
            set_mode(mode);
            drop(bind(&path, OPTIONS).unwrap());
        }
    }

    #[tokio::test]
    async fn a_file_in_the_place_of_the_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(matches!(
            bind(&dir.path().join("file/api.sock"), OPTIONS),
            Err(ListenError::Directory(_))
        ));
    }
}
