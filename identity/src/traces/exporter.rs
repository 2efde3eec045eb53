//! Sends spans to a collector over OTLP. While the collector cannot be reached, spans are dropped.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use tokio::sync::mpsc;
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::{Body as HttpBody, StdError};

use crate::metrics::Recorder;
use crate::process::Stop;

/// Spans that were lost, because the collector did not take them or they came too fast.
const DROPPED: &str = "traces_dropped";
/// Spans that wait at most; more are dropped and counted.
const QUEUE: usize = 4096;
/// Spans that one request carries at most.
const BATCH: usize = 512;
/// How long the first span of a batch waits for others.
const LINGER: Duration = Duration::from_secs(1);
/// How long the collector may take for a request.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long the last request may take, once the process stops.
const LAST_ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// The side of tracing that sends; the owner runs its task.
#[derive(Debug)]
pub struct TraceExporter {
    spans: mpsc::Receiver<SpanData>,
    resource: ResourceAttributesWithSchema,
    recorder: &'static Recorder,
    failing: bool,
}

/// Puts finished spans into the queue, without ever waiting.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    recorder: &'static Recorder,
}

pub(super) fn queue(resource: &Resource, recorder: &'static Recorder) -> (Queue, TraceExporter) {
    let (sender, receiver) = mpsc::channel(QUEUE);
    recorder.count(DROPPED, &[], 0);
    let exporter = TraceExporter {
        spans: receiver,
        resource: resource.into(),
        recorder,
        failing: false,
    };
    let queue = Queue {
        spans: sender,
        recorder,
    };
    (queue, exporter)
}

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _context: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.recorder.count(DROPPED, &[], 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl TraceExporter {
    /// Sends spans over `channel` until `stop`, and then what is left.
    ///
    /// # Errors
    /// None: failures of the collector are logged when they begin and when they end.
    pub async fn run<T>(mut self, channel: T, stop: Stop) -> Result<(), Infallible>
    where
        T: GrpcService<Body> + Send,
        T::Future: Send,
        T::Error: Into<StdError>,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        let mut client = TraceServiceClient::new(channel);
        let mut batch = Vec::new();
        while let Some(span) = self.next(&stop).await {
            batch.push(span);
            tokio::select! {
                () = stop.stopped() => {}
                () = self.fill(&mut batch) => {}
            }
            let given_up = async {
                stop.stopped().await;
                tokio::time::sleep(LAST_ANSWER_WITHIN).await;
            };
            tokio::select! {
                () = self.send(&mut client, std::mem::take(&mut batch), ANSWER_WITHIN) => {}
                () = given_up => {}
            }
        }
        while let Ok(span) = self.spans.try_recv() {
            batch.push(span);
        }
        if !batch.is_empty() {
            self.send(&mut client, batch, LAST_ANSWER_WITHIN).await;
        }
        Ok(())
    }

    /// Name and trace of the next span, if there is one.
    #[cfg(test)]
    pub(super) fn next_now(&mut self) -> Option<(String, u128)> {
        let span = self.spans.try_recv().ok()?;
        let trace = u128::from_be_bytes(span.span_context.trace_id().to_bytes());
        Some((span.name.into_owned(), trace))
    }

    /// The first span of a batch; `None` once the process stops.
    async fn next(&mut self, stop: &Stop) -> Option<SpanData> {
        tokio::select! {
            biased;
            () = stop.stopped() => None,
            span = self.spans.recv() => span,
        }
    }

    async fn fill(&mut self, batch: &mut Vec<SpanData>) {
        let filling = async {
            while batch.len() < BATCH
                && let Some(span) = self.spans.recv().await
            {
                batch.push(span);
            }
        };
        let _full_or_waited_enough = tokio::time::timeout(LINGER, filling).await;
    }

    async fn send<T>(&mut self, client: &mut TraceServiceClient<T>, batch: Vec<SpanData>, within: Duration)
    where
        T: GrpcService<Body> + Send,
        T::Future: Send,
        T::Error: Into<StdError>,
        T::ResponseBody: HttpBody<Data = Bytes> + Send + 'static,
        <T::ResponseBody as HttpBody>::Error: Into<StdError> + Send,
    {
        let count = batch.len() as u64;
        let request = ExportTraceServiceRequest {
            resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
        };
        let error = match tokio::time::timeout(within, client.export(request)).await {
            Ok(Ok(_answer)) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("traces are sent to the collector again");
                }
                return;
            }
            Ok(Err(status)) => format!("{:?}: {}", status.code(), status.message()),
            Err(_elapsed) => "no answer in time".to_owned(),
        };
        self.recorder.count(DROPPED, &[], count);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(error, "traces cannot be sent to the collector; spans are dropped");
        }
    }
}
