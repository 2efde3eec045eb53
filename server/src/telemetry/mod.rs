//! What operators watch the server by: logs, metrics, traces. Every module may use it.

mod collector;
mod names;

use finial_identity::metrics::Recorder;

pub use collector::{CollectorError, collector};
pub use finial_identity::process::log::{
    AUDIT_TARGET, LogControl, LogError, LogFormat, LogLevel as Level, LogSettings,
};
pub use finial_identity::traces::TARGET as TRACE_TARGET;
pub use names::{HELP, PREFIX};

/// What this process counts and measures.
pub fn metrics() -> &'static Recorder {
    static METRICS: Recorder = Recorder::new();
    &METRICS
}
