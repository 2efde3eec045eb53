//! The collector that traces are sent to.

use std::time::Duration;

use http::Uri;

use super::{TraceExporter, TraceSettings, Traces, prepare};
use crate::metrics::Recorder;
use crate::settings::telemetry::OpenTelemetry;

/// How long connecting to it may take.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Where traces cannot be sent to.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.OpenTelemetry.endpoint: {0}")]
pub struct CollectorError(String);

/// Sets tracing up for a process that is called `service` unless its settings say otherwise, and tells where the collector
/// is. Nothing is connected.
///
/// # Errors
/// When the endpoint, which a variable may have supplied, is none.
pub fn to_collector(
    settings: &OpenTelemetry,
    service: &str,
    recorder: &'static Recorder,
) -> Result<(Traces, TraceExporter, Uri), CollectorError> {
    let endpoint = settings.collector().map_err(CollectorError)?;
    let endpoint = Uri::try_from(endpoint).map_err(|error| CollectorError(error.to_string()))?;
    let settings = TraceSettings {
        service_name: settings
            .service_name
            .clone()
            .unwrap_or_else(|| service.to_owned()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        sample_ratio: settings.sample_ratio,
    };
    let (traces, exporter) = prepare(&settings, recorder);
    Ok((traces, exporter, endpoint))
}
