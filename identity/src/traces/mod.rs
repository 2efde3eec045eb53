//! Traces for OpenTelemetry: spans of [`TARGET`] go to a collector, and the context of a trace travels from an
//! agent's call to the server.
//!
//! Spans contain methods, attestors, counts and outcomes, but no identity, token or key. Without
//! [`Traces`] among the log's options, tracing is off and has no cost.

mod collector;
mod context;
mod exporter;

pub use collector::{CONNECT_WITHIN, CollectorError, to_collector};
pub use context::{TraceContext, continue_from};
pub use exporter::TraceExporter;

use std::fmt;

use opentelemetry::trace::TracerProvider;
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracer, SdkTracerProvider, SpanLimits};
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::metrics::Recorder;

/// The target of spans that belong to traces. No module is named so.
pub const TARGET: &str = "otel_span";

/// What is traced, and as whom.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceSettings {
    /// `service.name`
    pub service_name: String,
    /// `service.version`
    pub version: String,
    /// The share of traces begun here that is kept, 0 to 1. One that a caller began is kept if the caller says so.
    pub sample_ratio: f64,
}

/// The side of tracing that takes spans up; a part of the log's options.
#[derive(Clone)]
pub struct Traces {
    tracer: SdkTracer,
    /// Spans end up in its queue.
    provider: SdkTracerProvider,
}

/// Sets tracing up: what takes spans up, and what sends them. Spans that are lost count as `traces_dropped`.
pub fn prepare(settings: &TraceSettings, recorder: &'static Recorder) -> (Traces, TraceExporter) {
    let resource = Resource::builder_empty()
        .with_attributes([
            KeyValue::new("service.name", settings.service_name.clone()),
            KeyValue::new("service.version", settings.version.clone()),
        ])
        .build();
    let (processor, exporter) = exporter::queue(&resource, recorder);
    let ratio = Sampler::TraceIdRatioBased(settings.sample_ratio);
    let provider = SdkTracerProvider::builder()
        .with_sampler(Sampler::ParentBased(Box::new(ratio)))
        .with_span_limits(SpanLimits::default())
        .with_resource(resource)
        .with_span_processor(processor)
        .build();
    let scope = InstrumentationScope::builder("finial")
        .with_version(settings.version.clone())
        .build();
    let traces = Traces {
        tracer: provider.tracer_with_scope(scope),
        provider,
    };
    (traces, exporter)
}

impl Traces {
    /// The layer below which spans of [`TARGET`] are traced.
    pub(crate) fn into_layer<S>(self) -> impl Layer<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        let provider = self.provider;
        tracing_opentelemetry::layer()
            .with_tracer(self.tracer)
            .with_location(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_context_activation(false)
            // Events are the log's business; they may say more than a trace should.
            .with_filter(filter_fn(move |metadata| {
                let _lives_as_long_as_the_layer = &provider;
                metadata.is_span() && metadata.target() == TARGET
            }))
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Traces")
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use tonic::Request;
    use tonic::service::Interceptor;
    use tracing::dispatcher::with_default;

    use super::*;
    use crate::process::Clock;
    use crate::process::log::{LogFormat, LogLevel, LogOptions, build_traced};

    /// What the log says and which spans come out of `work`, with a log that shows `level`.
    fn traced(level: LogLevel, work: impl FnOnce()) -> (String, Vec<(String, u128)>) {
        static RECORDER: Recorder = Recorder::new();
        let settings = TraceSettings {
            service_name: "test".to_owned(),
            version: "0".to_owned(),
            sample_ratio: 1.0,
        };
        let (traces, mut exporter) = prepare(&settings, &RECORDER);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let options = LogOptions {
            level,
            format: LogFormat::Text,
            file: Some(file.clone()),
            source_location: false,
            clock: Clock::system(),
        };
        let (dispatch, _control) = build_traced(options, Some(traces)).unwrap();
        with_default(&dispatch, work);
        let spans = std::iter::from_fn(|| exporter.next_now()).collect();
        (std::fs::read_to_string(file).unwrap(), spans)
    }

    #[test]
    fn spans_are_traced_at_every_level_of_the_log_and_do_not_show_in_it() {
        for (level, lines) in [(LogLevel::Trace, 1), (LogLevel::Error, 0)] {
            let (log, spans) = traced(level, || {
                let span = tracing::info_span!(target: TARGET, "work", attestor = "unix");
                let _other = tracing::info_span!(target: "finial_test", "other", field = 1).entered();
                span.in_scope(|| tracing::info!(target: "finial_test", "said"));
            });
            assert_eq!(log.lines().count(), lines, "{log}");
            assert!(!log.contains("attestor"), "{log}");
            let names: Vec<&str> = spans.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(names, ["work"]);
        }
    }

    #[test]
    fn a_trace_goes_on_at_the_other_end_of_a_call() {
        let mut headers = HeaderMap::new();
        let (_log, near) = traced(LogLevel::Error, || {
            let untraced = TraceContext.call(Request::new(())).unwrap();
            assert!(
                untraced.metadata().is_empty(),
                "outside of a trace nothing is added"
            );
            let span = tracing::info_span!(target: TARGET, "near");
            let request = span.in_scope(|| TraceContext.call(Request::new(()))).unwrap();
            headers = request.metadata().clone().into_headers();
        });
        assert!(headers.contains_key("traceparent"));
        let (_log, far) = traced(LogLevel::Error, || {
            let span = tracing::info_span!(target: TARGET, "far");
            continue_from(&headers, &span);
            span.in_scope(|| tracing::info_span!(target: TARGET, "child").in_scope(|| {}));
        });
        let traces: Vec<u128> = near.iter().chain(&far).map(|(_, trace)| *trace).collect();
        assert_eq!(traces.len(), 3);
        assert!(traces.iter().all(|trace| *trace == traces[0]), "{near:?} {far:?}");
    }

    #[test]
    fn a_context_that_is_none_begins_a_new_trace() {
        for value in [
            "",
            "00-0-0-01",
            "\u{e9}",
            "ff-00000000000000000000000000000000-0000000000000000-01",
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(
                "traceparent",
                http::HeaderValue::from_bytes(value.as_bytes()).unwrap(),
            );
            let (_log, spans) = traced(LogLevel::Error, || {
                let span = tracing::info_span!(target: TARGET, "far");
                continue_from(&headers, &span);
                span.in_scope(|| {});
            });
            assert!(matches!(spans.as_slice(), [(_, trace)] if *trace != 0), "{value}");
        }
    }
}
