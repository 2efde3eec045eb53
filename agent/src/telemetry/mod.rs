//! Logs, metrics and traces of the agent. Every module may use it.

mod names;

use finial_identity::metrics::Recorder;
use finial_identity::settings::telemetry::OpenTelemetry;
use finial_identity::traces::{self, CONNECT_WITHIN, CollectorError, TraceExporter, Traces};
use tonic::transport::Channel;

pub use finial_identity::process::log::{LogControl, LogError, LogFormat, LogLevel, LogSettings};
pub use finial_identity::traces::TARGET as TRACE_TARGET;
pub use names::{HELP, PREFIX};

/// What this process counts and measures.
pub fn metrics() -> &'static Recorder {
    static METRICS: Recorder = Recorder::new();
    &METRICS
}

/// Sets tracing up. Nothing is connected before the first span is sent.
///
/// # Errors
/// When the endpoint, which a variable may have supplied, is none.
pub fn collector(settings: &OpenTelemetry) -> Result<(Traces, TraceExporter, Channel), CollectorError> {
    let (traces, exporter, endpoint) = traces::to_collector(settings, "spire-agent", metrics())?;
    let channel = Channel::builder(endpoint).connect_timeout(CONNECT_WITHIN);
    Ok((traces, exporter, channel.connect_lazy()))
}
