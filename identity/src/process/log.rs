//! Logs in SPIRE's format: one line for each event, as text or JSON, with a level that can be
//! changed while running and a file that can be rotated.
//!
//! Text is `time="…" level=info msg="…" key=value`, JSON an object with the same keys; both sort
//! the fields by name. Fields of spans around an event are among its fields. Of libraries, events
//! from WARN on are logged, at level TRACE from DEBUG on.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use tracing::Dispatch;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry, reload};

use super::clock::Clock;
use super::log_line::LineLayer;
use super::log_sink::Sink;
use crate::traces::{self, Traces};

/// The target of audit events; other targets are the names of modules.
pub const AUDIT_TARGET: &str = "finial_audit";

/// What is logged, how and where.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// Text or JSON.
    pub format: LogFormat,
    /// A file to append to; standard output when `None`.
    pub file: Option<PathBuf>,
    /// Whether lines have the source file and line in `source`.
    pub source_location: bool,
    /// Gives the time of the lines.
    pub clock: Clock,
}

/// What the configuration says about logs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogSettings {
    /// A file to append to; standard output when `None`.
    pub file: Option<PathBuf>,
    /// The least severe level that is logged.
    pub level: LogLevel,
    /// Text or JSON.
    pub format: LogFormat,
    /// Whether lines contain their place in the source.
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

    /// The same, with traces.
    ///
    /// # Errors
    /// As [`LogSettings::start`].
    pub fn start_traced(&self, clock: Clock, traces: Option<Traces>) -> Result<LogControl, LogError> {
        globally(build_traced(self.options(clock), traces)?)
    }

    /// As [`LogSettings::start`], with standard error in the place of standard output.
    ///
    /// # Errors
    /// As [`LogSettings::start`].
    pub fn start_on_standard_error(&self, clock: Clock) -> Result<LogControl, LogError> {
        start_on_standard_error(self.options(clock))
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

/// The levels of SPIRE, most severe first. We log nothing as `Panic` or `Fatal`; set as the level
/// they silence everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// A programming error that ends the process.
    Panic,
    /// Trouble that ends the process.
    Fatal,
    /// Something failed.
    Error,
    /// Something is not as it should be.
    Warn,
    /// What an operator wants to know.
    #[default]
    Info,
    /// What a developer wants to know.
    Debug,
    /// Everything.
    Trace,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `key=value`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file cannot be opened.
    #[error("open log file: {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Logging was set up before in this process.
    #[error("logging is set up already")]
    AlreadyStarted,
}

/// A text that names no level or format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a log {what}: {text}")]
pub struct LogNameError {
    what: &'static str,
    text: String,
}

/// Changes the level and reopens the file while the process runs. Clones control the same log.
#[derive(Clone)]
pub struct LogControl {
    launch_level: LogLevel,
    current: Arc<Mutex<LogLevel>>,
    filter: reload::Handle<Targets, Registry>,
    sink: Arc<Sink>,
}

/// Sets up logging for the whole process.
///
/// # Errors
/// [`LogError`].
pub fn start(options: LogOptions) -> Result<LogControl, LogError> {
    globally(build(options)?)
}

/// As [`start`], with standard error in the place of standard output, for a process whose standard output is another
/// program's.
///
/// # Errors
/// [`LogError`].
pub fn start_on_standard_error(options: LogOptions) -> Result<LogControl, LogError> {
    globally(build_on(Sink::Stderr, options, None)?)
}

/// Makes a log that is not that of the whole process yet.
///
/// # Errors
/// [`LogError::File`].
pub fn build(options: LogOptions) -> Result<(Dispatch, LogControl), LogError> {
    build_traced(options, None)
}

/// The same, with traces: spans of [`crate::traces`] go there.
///
/// # Errors
/// [`LogError::File`].
pub fn build_traced(options: LogOptions, traces: Option<Traces>) -> Result<(Dispatch, LogControl), LogError> {
    build_on(Sink::stdout(), options, traces)
}

/// A log to the file of `options`, to `default` when there is none.
fn build_on(
    default: Sink,
    options: LogOptions,
    traces: Option<Traces>,
) -> Result<(Dispatch, LogControl), LogError> {
    let sink = match options.file {
        None => default,
        Some(path) => Sink::file(&path).map_err(|source| LogError::File { path, source })?,
    };
    let sink = Arc::new(sink);
    let (filter, handle) = reload::Layer::new(targets(options.level));
    let lines = LineLayer::new(
        options.format,
        options.source_location,
        options.clock,
        Arc::clone(&sink),
    );
    let control = LogControl {
        launch_level: options.level,
        current: Arc::new(Mutex::new(options.level)),
        filter: handle,
        sink,
    };
    // Each has a filter of its own: spans of traces do not depend on the level of the log, nor show in its lines.
    let log = Registry::default().with(lines.with_filter(filter));
    let dispatch = match traces {
        None => Dispatch::new(log),
        Some(traces) => Dispatch::new(log.with(traces.into_layer())),
    };
    Ok((dispatch, control))
}

fn globally((dispatch, control): (Dispatch, LogControl)) -> Result<LogControl, LogError> {
    tracing::dispatcher::set_global_default(dispatch).map_err(|_already| LogError::AlreadyStarted)?;
    Ok(control)
}

impl LogControl {
    /// The level that the process was started with.
    pub fn launch_level(&self) -> LogLevel {
        self.launch_level
    }

    /// The level now.
    pub fn current(&self) -> LogLevel {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the level.
    pub fn set(&self, level: LogLevel) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        // Fails only when the log itself is gone, and then nobody can tell the difference.
        let _gone = self.filter.reload(targets(level));
        *current = level;
    }

    /// Returns to the level that the process was started with.
    pub fn reset(&self) {
        self.set(self.launch_level);
    }

    /// Opens the log file again under its name, after a rotation (SIGUSR2). Returns whether there is
    /// a file.
    ///
    /// # Errors
    /// [`LogError::File`]; then the old file stays in use.
    pub fn reopen(&self) -> Result<bool, LogError> {
        self.sink
            .reopen()
            .map_err(|(path, source)| LogError::File { path, source })
    }
}

impl fmt::Debug for LogControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogControl")
            .field("launch_level", &self.launch_level)
            .field("current", &self.current())
            .finish_non_exhaustive()
    }
}

impl LogLevel {
    /// The level's name as configuration files have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Panic => "PANIC",
            Self::Fatal => "FATAL",
            Self::Error => "ERROR",
            Self::Warn => "WARN",
            Self::Info => "INFO",
            Self::Debug => "DEBUG",
            Self::Trace => "TRACE",
        }
    }

    fn filter(self) -> LevelFilter {
        match self {
            Self::Panic | Self::Fatal => LevelFilter::OFF,
            Self::Error => LevelFilter::ERROR,
            Self::Warn => LevelFilter::WARN,
            Self::Info => LevelFilter::INFO,
            Self::Debug => LevelFilter::DEBUG,
            Self::Trace => LevelFilter::TRACE,
        }
    }
}

impl fmt::Display for LogLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for LogLevel {
    type Err = LogNameError;

    /// In any case; `WARNING` too.
    fn from_str(text: &str) -> Result<Self, LogNameError> {
        Ok(match text.to_ascii_uppercase().as_str() {
            "PANIC" => Self::Panic,
            "FATAL" => Self::Fatal,
            "ERROR" => Self::Error,
            "WARN" | "WARNING" => Self::Warn,
            "INFO" => Self::Info,
            "DEBUG" => Self::Debug,
            "TRACE" => Self::Trace,
            _ => {
                return Err(LogNameError {
                    what: "level",
                    text: text.to_owned(),
                });
            }
        })
    }
}

impl FromStr for LogFormat {
    type Err = LogNameError;

    /// In any case.
    fn from_str(text: &str) -> Result<Self, LogNameError> {
        match text.to_ascii_lowercase().as_str() {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err(LogNameError {
                what: "format",
                text: text.to_owned(),
            }),
        }
    }
}

fn targets(level: LogLevel) -> Targets {
    let others = match level {
        LogLevel::Trace => LevelFilter::DEBUG,
        _ => level.filter().min(LevelFilter::WARN),
    };
    // A target begins with the name of its crate, and all of ours begin like this.
    Targets::new()
        .with_default(others)
        .with_target("finial", level.filter())
        .with_target(traces::TARGET, LevelFilter::OFF)
        // It repeats answers that it cannot parse, and that to a TokenReview has the token. The error comes back to who asked.
        .with_target("kube_client::client", LevelFilter::OFF)
        .with_target("kube_client::client::builder", others)
        .with_target("kube_client::client::tls", others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use tracing::{debug, error, info, trace, warn};

    fn log_to(path: &Path, level: LogLevel, format: LogFormat) -> (Dispatch, LogControl) {
        let clock = Clock::paused_at(time::macros::datetime!(2030-01-02 03:04:05.678 UTC));
        build(LogOptions {
            level,
            format,
            file: Some(path.to_owned()),
            source_location: false,
            clock,
        })
        .unwrap()
    }

    fn messages(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .map(|line| line.split("msg=").nth(1).unwrap().to_owned())
            .collect()
    }

    fn say_all() {
        error!(target: "finial_server::a", "e");
        warn!(target: "finial_server::a", "w");
        info!(target: "finial_agent::b", "i");
        debug!(target: "finial", "d");
        trace!(target: "finial_identity", "t");
        error!(target: "kube_client::client", "answer");
        warn!(target: "kube_client::client", "answer");
        trace!(target: "kube_client::client", "answer");
        warn!(target: "kube_client::client::tls", "tls_w");
        warn!(target: "h2::proto", "other_w");
        info!(target: "h2::proto", "other_i");
        debug!(target: "h2::proto", "other_d");
        trace!(target: "h2::proto", "other_t");
    }

    fn heard(level: LogLevel) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (dispatch, _control) = log_to(&path, level, LogFormat::Text);
        tracing::dispatcher::with_default(&dispatch, say_all);
        messages(&path)
            .iter()
            .map(|message| message.split(' ').next().unwrap())
            .collect::<Vec<_>>()
            .join(" ")
    }

    #[test]
    fn each_level_lets_the_right_events_through() {
        assert_eq!(heard(LogLevel::Panic), "");
        assert_eq!(heard(LogLevel::Fatal), "");
        assert_eq!(heard(LogLevel::Error), "e");
        assert_eq!(heard(LogLevel::Warn), "e w tls_w other_w");
        assert_eq!(heard(LogLevel::Info), "e w i tls_w other_w");
        assert_eq!(heard(LogLevel::Debug), "e w i d tls_w other_w");
        assert_eq!(heard(LogLevel::Trace), "e w i d t tls_w other_w other_i other_d");
    }

    #[test]
    fn the_level_changes_while_running_and_returns() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let (dispatch, control) = log_to(&path, LogLevel::Warn, LogFormat::Text);
        tracing::dispatcher::with_default(&dispatch, || {
            let say = |text: &str| debug!(target: "finial_server", "{text}");
            say("before");
            control.set(LogLevel::Debug);
            assert_eq!(
                (control.current(), control.launch_level()),
                (LogLevel::Debug, LogLevel::Warn)
            );
            say("during");
            control.clone().reset();
            assert_eq!(control.current(), LogLevel::Warn);
            say("after");
        });
        assert_eq!(messages(&path), ["during subsystem_name=finial_server"]);
    }

    #[test]
    fn reopening_follows_a_rotation_and_a_failure_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("logs");
        std::fs::create_dir(&folder).unwrap();
        let (path, rotated) = (folder.join("log"), folder.join("log.1"));
        let (dispatch, control) = log_to(&path, LogLevel::Info, LogFormat::Text);
        tracing::dispatcher::with_default(&dispatch, || {
            let say = |text: &str| info!(target: "finial", "{text}");
            say("one");
            std::fs::rename(&path, &rotated).unwrap();
            say("two");
            assert!(control.reopen().unwrap());
            say("three");
            std::fs::rename(&folder, dir.path().join("moved")).unwrap();
            assert!(
                control
                    .reopen()
                    .unwrap_err()
                    .to_string()
                    .starts_with("open log file: ")
            );
            say("four");
        });
        let moved = dir.path().join("moved");
        assert_eq!(messages(&moved.join("log.1")).len(), 2);
        assert_eq!(messages(&moved.join("log")).len(), 2);
    }

    #[test]
    fn appends_to_a_file_that_exists() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        for _ in 0..2 {
            let (dispatch, _control) = log_to(&path, LogLevel::Info, LogFormat::Text);
            tracing::dispatcher::with_default(&dispatch, || info!(target: "finial", "again"));
        }
        assert_eq!(messages(&path).len(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_opened_is_an_error_with_its_path() {
        let options = LogOptions {
            level: LogLevel::Info,
            format: LogFormat::Text,
            file: Some(PathBuf::from("/proc/absent/log")),
            source_location: false,
            clock: Clock::system(),
        };
        assert!(
            build(options)
                .unwrap_err()
                .to_string()
                .starts_with("open log file: /proc/absent/log: ")
        );
    }

    #[test]
    fn names_are_read_in_any_case() {
        for level in [
            LogLevel::Panic,
            LogLevel::Fatal,
            LogLevel::Error,
            LogLevel::Warn,
            LogLevel::Trace,
        ] {
            assert_eq!(level.as_str().to_lowercase().parse(), Ok(level));
        }
        assert_eq!("Warning".parse(), Ok(LogLevel::Warn));
        assert_eq!("JSON".parse(), Ok(LogFormat::Json));
        assert_eq!(
            "loud".parse::<LogLevel>().unwrap_err().to_string(),
            "is not a log level: loud"
        );
        assert_eq!(
            "xml".parse::<LogFormat>().unwrap_err().to_string(),
            "is not a log format: xml"
        );
        assert!(LogLevel::Error < LogLevel::Info);
    }
}
