//! From an event to a line, in the format of SPIRE's logs.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::sync::Arc;

use serde_json::Value;
use time::format_description::well_known::Rfc3339;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

use super::clock::Clock;
use super::log::LogFormat;
use super::log_sink::Sink;

/// Writes a line for every event.
#[derive(Debug)]
pub(super) struct LineLayer {
    format: LogFormat,
    source_location: bool,
    clock: Clock,
    sink: Arc<Sink>,
}

/// What is known of an event or a span, sorted by name.
#[derive(Debug, Default)]
struct Fields(BTreeMap<String, Value>);

impl LineLayer {
    pub(super) fn new(format: LogFormat, source_location: bool, clock: Clock, sink: Arc<Sink>) -> Self {
        Self {
            format,
            source_location,
            clock,
            sink,
        }
    }

    fn line(&self, metadata: &Metadata<'_>, fields: BTreeMap<String, Value>) -> String {
        let mut message = Value::String(String::new());
        let mut named = BTreeMap::new();
        for (name, value) in fields {
            match name.as_str() {
                "message" => message = value,
                // These three names are taken.
                "time" | "level" | "msg" => {
                    named.insert(format!("fields.{name}"), value);
                }
                _ => {
                    named.insert(name, value);
                }
            }
        }
        named
            .entry("subsystem_name".to_owned())
            .or_insert_with(|| Value::String(subsystem(metadata.target())));
        if let (true, Some(file), Some(line)) = (self.source_location, metadata.file(), metadata.line()) {
            named.insert("source".to_owned(), Value::String(format!("{file}:{line}")));
        }
        let now = self
            .clock
            .now()
            .replace_nanosecond(0)
            .unwrap_or_else(|_| self.clock.now());
        let time = now.format(&Rfc3339).unwrap_or_default();
        let level = level_name(*metadata.level());
        match self.format {
            LogFormat::Json => {
                named.insert("time".to_owned(), Value::String(time));
                named.insert("level".to_owned(), Value::String(level.to_owned()));
                named.insert("msg".to_owned(), message);
                // Text keys and JSON values can always be written.
                serde_json::to_string(&named).unwrap_or_default() + "\n"
            }
            LogFormat::Text => {
                let mut line = format!("time={time:?} level={level} msg={}", word(&message));
                for (name, value) in &named {
                    // Writing to a String cannot fail.
                    let _written = write!(line, " {name}={}", word(value));
                }
                line.push('\n');
                line
            }
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LineLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut fields = Fields::default();
            attributes.record(&mut fields);
            span.extensions_mut().insert(fields);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(fields) = span.extensions_mut().get_mut::<Fields>()
        {
            values.record(fields);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut all = Fields::default();
        // The nearer span says more, and the event most.
        for span in context
            .event_scope(event)
            .into_iter()
            .flat_map(|scope| scope.from_root())
        {
            if let Some(Fields(fields)) = span.extensions().get::<Fields>() {
                all.0
                    .extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
        }
        all.0.remove("message");
        event.record(&mut all);
        self.sink.write(self.line(event.metadata(), all.0).as_bytes());
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.put(field, Value::String(format!("{value:?}")));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, Value::String(value.to_owned()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, Value::Bool(value));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.put(field, Value::String(value.to_string()));
    }
}

impl Fields {
    fn put(&mut self, field: &Field, value: Value) {
        let name = field.name();
        self.0
            .insert(name.strip_prefix("r#").unwrap_or(name).to_owned(), value);
    }
}

/// `finial_server::authority::rotator` -> `authority.rotator`.
fn subsystem(target: &str) -> String {
    target
        .split_once("::")
        .map_or(target, |(_crate, module)| module)
        .replace("::", ".")
}

fn level_name(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warning",
        Level::INFO => "info",
        Level::DEBUG => "debug",
        Level::TRACE => "trace",
    }
}

/// A value of a text line: quoted and escaped unless it is plain.
fn word(value: &Value) -> String {
    let Value::String(text) = value else {
        return value.to_string();
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._/@^+".contains(&byte);
    if text.bytes().all(plain) && !text.is_empty() {
        text.clone()
    } else {
        format!("{text:?}")
    }
}

#[cfg(test)]
mod tests {
    use crate::process::clock::Clock;
    use crate::process::log::{LogFormat, LogLevel, LogOptions, build};

    fn logged(format: LogFormat, source_location: bool, say: impl FnOnce()) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let clock = Clock::paused_at(time::macros::datetime!(2030-01-02 03:04:05.678 UTC));
        let options = LogOptions {
            level: LogLevel::Trace,
            format,
            file: Some(path.clone()),
            source_location,
            clock,
        };
        let (dispatch, _control) = build(options).unwrap();
        tracing::dispatcher::with_default(&dispatch, say);
        std::fs::read_to_string(path).unwrap()
    }

    fn event() {
        let error = std::io::Error::other("disk \"full\"\nbadly");
        tracing::warn!(
            target: "finial_server::authority::rotator",
            serial = "1f3a", attempts = 3_u64, fresh = false, error = %error, level = 2_i64, empty = "",
            "cannot rotate"
        );
    }

    #[test]
    fn text_lines_have_spires_shape() {
        assert_eq!(
            logged(LogFormat::Text, false, event),
            "time=\"2030-01-02T03:04:05Z\" level=warning msg=\"cannot rotate\" attempts=3 empty=\"\" \
             error=\"disk \\\"full\\\"\\nbadly\" fields.level=2 fresh=false serial=1f3a \
             subsystem_name=authority.rotator\n"
        );
    }

    #[test]
    fn json_lines_are_one_object_with_typed_fields() {
        let line = logged(LogFormat::Json, false, event);
        assert_eq!(
            line,
            "{\"attempts\":3,\"empty\":\"\",\"error\":\"disk \\\"full\\\"\\nbadly\",\"fields.level\":2,\
             \"fresh\":false,\"level\":\"warning\",\"msg\":\"cannot rotate\",\"serial\":\"1f3a\",\
             \"subsystem_name\":\"authority.rotator\",\"time\":\"2030-01-02T03:04:05Z\"}\n"
        );
    }

    #[test]
    fn fields_of_spans_are_among_those_of_the_event() {
        let line = logged(LogFormat::Text, false, || {
            let outer = tracing::info_span!(target: "finial", "request", request_id = "r1", peer = "a");
            let _outer = outer.enter();
            let inner =
                tracing::info_span!(target: "finial", "sign", entry_id = tracing::field::Empty, peer = "b");
            let _inner = inner.enter();
            inner.record("entry_id", "e1");
            tracing::info!(target: "finial_audit", peer = "c", "signed");
        });
        let expected =
            " level=info msg=signed entry_id=e1 peer=c request_id=r1 subsystem_name=finial_audit\n";
        assert!(line.ends_with(expected), "{line}");
    }

    #[test]
    fn the_source_location_is_told_on_request() {
        let line = logged(LogFormat::Text, true, || tracing::error!(target: "finial", "x"));
        assert!(
            line.contains("source=\"") && line.contains("log_line.rs:"),
            "{line}"
        );
        assert!(!logged(LogFormat::Text, false, event).contains("source="));
    }

    #[test]
    fn no_value_can_begin_a_line_of_its_own() {
        let line = logged(LogFormat::Text, false, || {
            tracing::error!(target: "finial", name = "a\r\ntime=\"x\" level=info\u{2028}\u{1b}[31m", "a\nb");
        });
        assert_eq!(line.lines().count(), 1);
        assert!(!line.contains(['\u{1b}', '\u{2028}', '\r']));
    }
}
