//! Further names of a socket: relative links in the same folder, which work wherever the folder is mounted.

use std::io;
use std::path::Path;

use rustix::fs::{CWD, FileType, lstat, readlinkat, symlink, unlink};
use rustix::io::Errno;

/// Makes `name` lead to `socket` in the same folder. A link that leads elsewhere is replaced, nothing else is.
///
/// # Errors
/// When something else has the name, or the folder cannot be written to.
pub(super) fn lead(folder: &Path, name: &str, socket: &str) -> io::Result<()> {
    let path = folder.join(name);
    match lstat(&path) {
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
            if readlinkat(CWD, &path, Vec::new())?.as_bytes() == socket.as_bytes() {
                return Ok(());
            }
            unlink(&path)?;
        }
        Ok(_other) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something else than a link has this name",
            ));
        }
    }
    symlink(socket, &path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use super::*;

    #[test]
    fn a_name_leads_to_the_socket_and_takes_no_files_place() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("api.sock"), "").unwrap();
        for socket in ["other.sock", "api.sock", "api.sock"] {
            lead(dir.path(), "socket", socket).unwrap();
            let led = std::fs::read_link(dir.path().join("socket")).unwrap();
            assert_eq!(led, Path::new(socket));
        }
        assert!(lead(dir.path(), "api.sock", "socket").is_err());
        assert!(dir.path().join("api.sock").is_file());
    }
}
