//! The connection to the collector of traces.

use std::time::Duration;

use finial_identity::settings::telemetry::OpenTelemetry;
use finial_identity::traces::{self, TraceExporter, TraceSettings, Traces};
use tonic::transport::{Channel, Endpoint};

/// How long connecting may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
const SERVICE: &str = "spire-server";

/// Where traces cannot be sent to.
#[derive(Debug, thiserror::Error)]
#[error("telemetry.OpenTelemetry.endpoint: {0}")]
pub struct CollectorError(String);

/// Sets tracing up. Nothing is connected before the first span is sent.
///
/// # Errors
/// When the endpoint, which a variable may have supplied, is none.
pub fn collector(settings: &OpenTelemetry) -> Result<(Traces, TraceExporter, Channel), CollectorError> {
    let endpoint = settings.collector().map_err(CollectorError)?;
    let endpoint = Endpoint::from_shared(endpoint).map_err(|error| CollectorError(error.to_string()))?;
    let (traces, exporter) = traces::prepare(
        &TraceSettings {
            service_name: settings
                .service_name
                .clone()
                .unwrap_or_else(|| SERVICE.to_owned()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sample_ratio: settings.sample_ratio,
        },
        super::metrics(),
    );
    Ok((
        traces,
        exporter,
        endpoint.connect_timeout(CONNECT_WITHIN).connect_lazy(),
    ))
}
