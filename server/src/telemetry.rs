//! Logs of the server, and what changes them while it runs.

use std::path::PathBuf;

use finial_identity::process::Clock;
pub use finial_identity::process::log::{AUDIT_TARGET, LogControl, LogError, LogFormat, LogLevel as Level};
use finial_identity::process::log::{LogOptions, build, start};
use tracing::Dispatch;

/// What the configuration says about logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// A file to append to; standard output when `None`.
    pub file: Option<PathBuf>,
    /// The least severe level that is logged.
    pub level: Level,
    /// Text or JSON.
    pub format: LogFormat,
    /// Whether lines tell their place in the source.
    pub source_location: bool,
}

impl LogSettings {
    /// Sets up the log of the whole process.
    ///
    /// # Errors
    /// When the file cannot be opened or there is a log already.
    pub fn start(&self, clock: Clock) -> Result<LogControl, LogError> {
        start(self.options(clock))
    }

    /// Makes a log that is not that of the whole process.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn build(&self, clock: Clock) -> Result<(Dispatch, LogControl), LogError> {
        build(self.options(clock))
    }

    fn options(&self, clock: Clock) -> LogOptions {
        LogOptions {
            level: self.level,
            format: self.format,
            file: self.file.clone(),
            source_location: self.source_location,
            clock,
        }
    }
}
