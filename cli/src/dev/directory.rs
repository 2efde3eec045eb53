//! The one directory of `finial dev`: which process uses it, and the paths in it.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use finial_identity::process::private_file::{self, FileMode};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

/// Largest `state.json` that is read, in bytes.
const MAX_STATE: usize = 4096;

#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// Loopback port of the server.
    port: u16,
}

/// A directory that no other instance uses while this value exists.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    state: State,
    _lock: File,
}

impl Directory {
    /// Creates the directory (0700) if it is missing and locks it.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        private_file::create_private_dir(path, FileMode::new(0o700))?;
        let path = path
            .canonicalize()
            .with_context(|| format!("resolve {}", path.display()))?;
        let lock_path = path.join("lock");
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&lock_path)
            .with_context(|| format!("open {}", lock_path.display()))?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("{} is in use by another `finial dev`", path.display());
        }
        let state_path = path.join("state.json");
        let state = match state_path.exists() {
            true => serde_json::from_slice(&private_file::read_bounded(&state_path, MAX_STATE)?)
                .with_context(|| format!("parse {}", state_path.display()))?,
            false => State::default(),
        };
        let directory = Directory {
            path,
            state,
            _lock: lock,
        };
        for part in [directory.server(), directory.agent()] {
            private_file::create_private_dir(&part, FileMode::new(0o700))?;
        }
        Ok(directory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn log(&self) -> PathBuf {
        self.path.join("finial.log")
    }

    pub fn server(&self) -> PathBuf {
        self.path.join("server")
    }

    pub fn agent(&self) -> PathBuf {
        self.path.join("agent")
    }

    pub fn server_socket(&self) -> PathBuf {
        self.path.join("server.sock")
    }

    pub fn agent_socket(&self) -> PathBuf {
        self.path.join("agent.sock")
    }

    pub fn bundle(&self) -> PathBuf {
        self.path.join("bundle.pem")
    }

    /// The port of the last run; 0 in a new directory.
    pub fn port(&self) -> u16 {
        self.state.port
    }

    pub fn remember_port(&mut self, port: u16) -> anyhow::Result<()> {
        self.state.port = port;
        let text = serde_json::to_vec(&self.state).context("write the state as JSON")?;
        private_file::write(&self.path.join("state.json"), &text, FileMode::new(0o600))?;
        Ok(())
    }

    /// Whether an agent of an earlier run left its SVID.
    pub fn has_agent(&self) -> bool {
        self.agent_data().exists()
    }

    /// Removes the files of an agent that cannot continue: its SVID has expired or the server has deleted it.
    pub fn forget_agent(&self) -> anyhow::Result<()> {
        for path in [self.agent_data(), self.agent().join("keys.json")] {
            private_file::remove(&path)?;
        }
        Ok(())
    }

    fn agent_data(&self) -> PathBuf {
        self.agent().join("agent-data.json")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_second_instance_and_remembers_the_port() {
        let parent = tempfile::TempDir::new().unwrap();
        let path = parent.path().join("dev");
        let mut first = Directory::open(&path).unwrap();
        first.remember_port(4711).unwrap();
        let error = Directory::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use"), "{error}");
        drop(first);
        assert_eq!(Directory::open(&path).unwrap().port(), 4711);
    }

    #[test]
    fn names_a_broken_state_file() {
        let parent = tempfile::TempDir::new().unwrap();
        let path = parent.path().join("dev");
        drop(Directory::open(&path).unwrap());
        private_file::write(&path.join("state.json"), b"{", FileMode::new(0o600)).unwrap();
        let error = format!("{:#}", Directory::open(&path).unwrap_err());
        assert!(error.contains("state.json"), "{error}");
    }
}
