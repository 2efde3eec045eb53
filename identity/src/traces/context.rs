//! The W3C trace context (`traceparent`) in the metadata of calls. `tracestate` is neither sent nor read: it is
//! long, and only for vendors of tracing systems.

use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tonic::metadata::{MetadataKey, MetadataMap, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: &str = "traceparent";

/// Adds the context of the current span to every call. Outside of a trace it adds nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceContext;

impl Interceptor for TraceContext {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let span = Span::current();
        if !span.is_disabled() {
            let context = span.context();
            TraceContextPropagator::new().inject_context(&context, &mut Outgoing(request.metadata_mut()));
        }
        Ok(request)
    }
}

/// Makes a span part of the trace that a caller's headers name, if they name one. Must come before the span is
/// entered.
pub fn continue_from(headers: &HeaderMap, span: &Span) {
    if span.is_disabled() || !headers.contains_key(TRACEPARENT) {
        return;
    }
    let context = TraceContextPropagator::new().extract(&Incoming(headers));
    // Fails only when nobody traces.
    let _untraced = span.set_parent(context);
}

struct Outgoing<'m>(&'m mut MetadataMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        if key != TRACEPARENT {
            return;
        }
        let name = MetadataKey::from_bytes(key.as_bytes());
        if let (Ok(name), Ok(value)) = (name, MetadataValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

struct Incoming<'h>(&'h HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key).filter(|_| key == TRACEPARENT)?;
        value.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        vec![TRACEPARENT]
    }
}
