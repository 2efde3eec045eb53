//! Log levels on the wire.

use finial_proto::spire::api::types;

use crate::process::log::{LogControl, LogLevel};

/// A number that is no log level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LogLevelError {
    /// The field was not set.
    #[error("newLevel value cannot be LogLevel_UNSPECIFIED")]
    Unspecified,
    /// No level has this number.
    #[error("unsupported log level: {0}")]
    Unknown(i32),
}

/// Reads a level that must be set.
///
/// # Errors
/// [`LogLevelError`].
pub fn log_level_from_wire(level: i32) -> Result<LogLevel, LogLevelError> {
    match types::LogLevel::try_from(level) {
        Ok(types::LogLevel::Panic) => Ok(LogLevel::Panic),
        Ok(types::LogLevel::Fatal) => Ok(LogLevel::Fatal),
        Ok(types::LogLevel::Error) => Ok(LogLevel::Error),
        Ok(types::LogLevel::Warn) => Ok(LogLevel::Warn),
        Ok(types::LogLevel::Info) => Ok(LogLevel::Info),
        Ok(types::LogLevel::Debug) => Ok(LogLevel::Debug),
        Ok(types::LogLevel::Trace) => Ok(LogLevel::Trace),
        Ok(types::LogLevel::Unspecified) => Err(LogLevelError::Unspecified),
        Err(_unknown) => Err(LogLevelError::Unknown(level)),
    }
}

/// Writes the levels of a log: the one now and that of the start.
#[must_use]
pub fn logger_to_wire(log: &LogControl) -> types::Logger {
    types::Logger {
        current_level: log_level_to_wire(log.current()).into(),
        launch_level: log_level_to_wire(log.launch_level()).into(),
    }
}

/// Writes a level.
#[must_use]
pub fn log_level_to_wire(level: LogLevel) -> types::LogLevel {
    match level {
        LogLevel::Panic => types::LogLevel::Panic,
        LogLevel::Fatal => types::LogLevel::Fatal,
        LogLevel::Error => types::LogLevel::Error,
        LogLevel::Warn => types::LogLevel::Warn,
        LogLevel::Info => types::LogLevel::Info,
        LogLevel::Debug => types::LogLevel::Debug,
        LogLevel::Trace => types::LogLevel::Trace,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_comes_back_as_it_was_and_others_are_refused() {
        for number in 1..=7 {
            let level = log_level_from_wire(number).unwrap();
            assert_eq!(log_level_to_wire(level) as i32, number);
        }
        assert_eq!(log_level_from_wire(0), Err(LogLevelError::Unspecified));
        for number in [-1, 8, i32::MAX] {
            assert_eq!(log_level_from_wire(number), Err(LogLevelError::Unknown(number)));
        }
    }
}
