//! Where the lines of the log go.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

/// Standard output or error, or a file that can be opened again.
#[derive(Debug)]
pub(super) enum Sink {
    Stdout,
    Stderr,
    File { path: PathBuf, file: Mutex<File> },
}

impl Sink {
    pub(super) fn stdout() -> Self {
        Self::Stdout
    }

    pub(super) fn file(path: &Path) -> io::Result<Self> {
        Ok(Self::File {
            path: path.to_owned(),
            file: Mutex::new(open(path)?),
        })
    }

    /// Writes a complete line. A failure cannot be reported anywhere.
    pub(super) fn write(&self, line: &[u8]) {
        let _lost = match self {
            Self::Stdout => io::stdout().lock().write_all(line),
            Self::Stderr => io::stderr().lock().write_all(line),
            Self::File { file, .. } => file
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .write_all(line),
        };
    }

    pub(super) fn reopen(&self) -> Result<bool, (PathBuf, io::Error)> {
        match self {
            Self::Stdout | Self::Stderr => Ok(false),
            Self::File { path, file } => {
                let fresh = open(path).map_err(|error| (path.clone(), error))?;
                *file.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
                Ok(true)
            }
        }
    }
}

/// Appending, so that several processes and a rotation by copying do no harm.
fn open(path: &Path) -> io::Result<File> {
    File::options().append(true).create(true).mode(0o640).open(path)
}
