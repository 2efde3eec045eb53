//! Traces: a fake collector gets one trace that goes from a workload's call through the
//! agent to the server's signature; a collector that cannot be reached does no harm.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use finial_tests::{Entry, Stack, StackOptions, free_port, wait_for, wait_until};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use crate::scrape::scrape;

const LIMIT: Duration = Duration::from_secs(60);

/// Spans with the name of the service that sent them.
type Spans = Arc<Mutex<Vec<(String, Span)>>>;

struct Collector(Spans);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock().expect("no test panics while it holds the lock");
        for group in request.into_inner().resource_spans {
            let attributes = group.resource.unwrap_or_default().attributes;
            let name = attributes
                .into_iter()
                .find(|attribute| attribute.key == "service.name");
            let name = match name.and_then(|name| name.value).and_then(|value| value.value) {
                Some(Value::StringValue(name)) => name,
                other => panic!("service.name is {other:?}"),
            };
            let of_group = group.scope_spans.into_iter().flat_map(|scope| scope.spans);
            spans.extend(of_group.map(|span| (name.clone(), span)));
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[test]
fn one_trace_goes_from_the_workloads_call_to_the_servers_signature() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let spans = Spans::default();
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(SocketAddr::from((
            [127, 0, 0, 1],
            0,
        ))))
        .expect("a free port on loopback");
    let address = listener.local_addr().expect("an address");
    runtime.spawn(
        tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(Collector(Arc::clone(&spans))))
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    let block =
        |more: &str| format!("telemetry {{ OpenTelemetry {{ endpoint = \"http://{address}\" {more} }} }}");
    let stack = Stack::start(StackOptions {
        server_blocks: block("service_name = \"corp-server\""),
        agent_blocks: block(""),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/web"));
    stack.wait_identity("/web");
    stack.agent_cli_ok(&["api", "fetch", "jwt", "-audience", "db"]);

    let trace = wait_for("the trace of the token", LIMIT, || {
        let spans = spans
            .lock()
            .expect("nobody panics while it holds the lock")
            .clone();
        joined(&spans)
    });
    let names: Vec<&str> = trace.iter().map(|(_, span)| span.name.as_str()).collect();
    assert!(
        names.contains(&"attest_workload") && names.contains(&"workload_attestor"),
        "{names:?}"
    );

    let collected = spans
        .lock()
        .expect("nobody panics while it holds the lock")
        .clone();
    let has = |service: &str, name: &str| {
        collected
            .iter()
            .any(|(of, span)| of == service && span.name == name)
    };
    assert!(has("spire-agent", "attest_agent") && has("corp-server", "attest_node"));
    assert!(has("spire-agent", "sign_batch") && has("corp-server", "sign_x509"));
    assert!(has("corp-server", "datastore_registration_entry_create"));
    let text = format!("{collected:?}");
    for secret in ["eyJ", "spiffe://", "BEGIN"] {
        assert!(!text.contains(secret), "a span holds {secret}");
    }
}

/// The spans of the trace that has a call of the workload, and in it the server's call and signature.
fn joined(spans: &[(String, Span)]) -> anyhow::Result<Vec<(String, Span)>> {
    let find = |service: &str, name: &str, parent: Option<&[u8]>| {
        let fits =
            |span: &&Span| span.name == name && parent.is_none_or(|parent| span.parent_span_id == parent);
        let mut of_service = spans.iter().filter(|(of, _)| of == service).map(|(_, span)| span);
        of_service
            .find(|span| fits(span))
            .ok_or_else(|| anyhow::anyhow!("{service} has no span {name} below {parent:?}"))
    };
    let call = find("spire-agent", "SpiffeWorkloadAPI/FetchJWTSVID", Some(&[]))?;
    let upstream = find("spire-agent", "sign JWT-SVID", Some(&call.span_id))?;
    let rpc = find(
        "corp-server",
        "spire.api.server.svid.v1.SVID/NewJWTSVID",
        Some(&upstream.span_id),
    )?;
    let signature = find("corp-server", "sign_jwt", Some(&rpc.span_id))?;
    anyhow::ensure!(signature.trace_id == call.trace_id);
    let of_trace = spans.iter().filter(|(_, span)| span.trace_id == call.trace_id);
    Ok(of_trace.cloned().collect())
}

#[test]
fn a_collector_that_is_away_harms_nothing() {
    let (nobody, metrics) = (free_port(), free_port());
    let mut stack = Stack::start(StackOptions {
        agent_blocks: format!(
            "telemetry {{\n Prometheus {{ host = \"127.0.0.1\" port = {metrics} }}\n OpenTelemetry {{ endpoint = \"http://127.0.0.1:{nobody}\" }}\n}}"
        ),
        server_blocks: format!(
            "telemetry {{ OpenTelemetry {{ endpoint = \"http://127.0.0.1:{nobody}\" }} }}"
        ),
        ..StackOptions::default()
    });
    stack.create_entry(&Entry::for_me("/web"));
    stack.wait_identity("/web");
    stack.agent().wait_for_line("traces cannot be sent", LIMIT);
    wait_until("lost spans to be counted", LIMIT, || {
        scrape(metrics).is_ok_and(|scraped| scraped.total("spire_agent_traces_dropped") > Some(0.0))
    });
    stack.agent_cli_ok(&["api", "fetch", "jwt", "-audience", "db"]);
    assert!(stack.agent().terminate().success());
    assert!(stack.server().terminate().success());
    let said = |lines: Vec<String>| {
        lines
            .iter()
            .filter(|line| line.contains("traces cannot be sent"))
            .count()
    };
    assert_eq!(said(stack.agent().lines()), 1, "told once");
}
