//! Logs of the agent, and what changes them while it runs.

use std::path::PathBuf;

use finial_identity::process::Clock;
pub use finial_identity::process::log::{LogControl, LogError, LogFormat, LogLevel};
use finial_identity::process::log::{LogOptions, start, start_on_standard_error};

/// What the configuration says about logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// A file to append to; standard output when `None`.
    pub file: Option<PathBuf>,
    /// The least severe level that is logged.
    pub level: LogLevel,
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

    /// As [`LogSettings::start`], with standard error in the place of standard output.
    ///
    /// # Errors
    /// When the file cannot be opened or there is a log already.
    pub fn start_on_standard_error(&self, clock: Clock) -> Result<LogControl, LogError> {
        start_on_standard_error(self.options(clock))
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
