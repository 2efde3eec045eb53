//! The log of a test that runs on one thread.
#![allow(
    clippy::disallowed_methods,
    reason = "tests read the log that they had written"
)]

use finial_identity::process::Clock;
use finial_identity::process::log::{self, LogFormat, LogLevel, LogOptions};
use tempfile::TempDir;
use tracing::dispatcher::DefaultGuard;

/// What is logged while it lives, warnings and errors.
#[derive(Debug)]
pub(crate) struct TestLog {
    dir: TempDir,
    _writing: DefaultGuard,
}

impl TestLog {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = LogOptions {
            level: LogLevel::Warn,
            format: LogFormat::Text,
            file: Some(dir.path().join(FILE)),
            source_location: false,
            clock: Clock::system(),
        };
        let (dispatch, _control) = log::build(options).unwrap();
        Self {
            dir,
            _writing: tracing::dispatcher::set_default(&dispatch),
        }
    }

    /// The lines with this text, in order.
    pub(crate) fn lines(&self, text: &str) -> Vec<String> {
        let log = std::fs::read_to_string(self.dir.path().join(FILE)).unwrap();
        let lines = log.lines().filter(|line| line.contains(text));
        lines.map(str::to_owned).collect()
    }
}

const FILE: &str = "log";
