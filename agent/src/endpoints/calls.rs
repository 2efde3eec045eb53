//! Metrics and traces of calls: a layer before all services of a socket.
//!
//! The agent's own health checks are left out.

use std::collections::HashMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::LazyLock;
use std::task::{Context, Poll};

use bytes::Bytes;
use finial_identity::metrics::{CallTimer, method_segment, service_segments};
use futures_util::future::BoxFuture;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Layer;
use tower_service::Service;
use tracing::{Instrument, Span, field};

use super::listener::Caller;
use crate::telemetry::{TRACE_TARGET, metrics};

/// Puts [`Calls`] before services.
#[derive(Clone, Copy, Debug)]
pub struct CallsLayer;

/// Counts and times what passes.
#[derive(Clone, Debug)]
pub struct Calls<S> {
    inner: S,
}

impl<S> Layer<S> for CallsLayer {
    type Service = Calls<S>;

    fn layer(&self, inner: S) -> Calls<S> {
        Calls { inner }
    }
}

impl<S> Service<http::Request<Body>> for Calls<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let Some(method) = watched(&request) else {
            return Box::pin(self.inner.call(request));
        };
        let open = Open::new(method);
        let span = tracing::info_span!(
            target: TRACE_TARGET,
            "rpc",
            otel.name = method.path.as_str(),
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.grpc.status_code = field::Empty,
        );
        let answer = self.inner.call(request).instrument(span.clone());
        Box::pin(async move {
            let (parts, body) = answer.await?.into_parts();
            let mut body = ObservedBody {
                body,
                open: Some(open),
                span: Some(span),
            };
            // Refusals come without a body, with the status among the headers.
            if let Some(code) = code_of(&parts.headers) {
                body.end(code);
            }
            Ok(http::Response::from_parts(parts, Body::new(body)))
        })
    }
}

/// A method that an agent may serve.
#[derive(Debug)]
struct Method {
    /// `package.Service/Method`
    path: String,
    /// `rpc_workload_api_fetch_x509svid`
    metric: String,
    /// The counter of calls and the gauge of open ones that all methods of the API share.
    api: Option<(&'static str, &'static str)>,
}

/// The method of a request, unless it is one of those that are left out. Anybody can make up names.
fn watched(request: &http::Request<Body>) -> Option<&'static Method> {
    static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(methods);
    let method = METHODS.get(request.uri().path().strip_prefix('/')?)?;
    let caller = request.extensions().get::<Caller>();
    let is_own = caller.is_some_and(|caller| caller.peer.is_own_process());
    (!is_own).then_some(method)
}

fn methods() -> HashMap<String, Method> {
    let schema = FileDescriptorSet::decode(finial_proto::FILE_DESCRIPTOR_SET).unwrap_or_default();
    let mut methods = HashMap::new();
    for file in schema.file {
        let package = file.package().to_owned();
        for service in &file.service {
            let name = match package.as_str() {
                "" => service.name().to_owned(),
                package => format!("{package}.{}", service.name()),
            };
            if is_of_others(&name) {
                continue;
            }
            for method in &service.method {
                let path = format!("{name}/{}", method.name());
                let metric = format!(
                    "rpc_{}_{}",
                    service_segments(&name),
                    method_segment(method.name())
                );
                let api = api_of(&name);
                methods.insert(path.clone(), Method { path, metric, api });
            }
        }
    }
    methods
}

/// The services of servers, and of the CSI driver, which is another process.
fn is_of_others(service: &str) -> bool {
    let packages = [
        "spire.api.server.",
        "finial.server.",
        "csi.",
        "pluginregistration.",
    ];
    packages.iter().any(|package| service.starts_with(package))
}

fn api_of(service: &str) -> Option<(&'static str, &'static str)> {
    APIS.iter()
        .find(|(named, ..)| *named == service)
        .map(|(_, calls, open)| (*calls, *open))
}

/// Makes the numbers of all APIs known before the first call.
pub(super) fn declare() {
    for (_, calls, open) in APIS {
        metrics().count(calls, &[], 0);
        metrics().add(open, &[], 0.0);
    }
}

const APIS: &[(&str, &str, &str)] = &[
    (
        "SpiffeWorkloadAPI",
        "workload_api_connection",
        "workload_api_connections",
    ),
    (
        "envoy.service.secret.v3.SecretDiscoveryService",
        "sds_api_connection",
        "sds_api_connections",
    ),
    (
        "spire.api.agent.delegatedidentity.v1.DelegatedIdentity",
        "delegated_identity_api_connection",
        "delegated_identity_api_connections",
    ),
    (
        "spiffe.broker.API",
        "broker_api_connection",
        "broker_api_connections",
    ),
    (
        "spire.agent.debug.v1.Debug",
        "debug_api_connection",
        "debug_api_connections",
    ),
];

/// A call under way.
#[derive(Debug)]
struct Open {
    timer: CallTimer,
    _held: Option<Held>,
}

/// Counts as an open call of an API.
#[derive(Debug)]
struct Held(&'static str);

impl Open {
    fn new(method: &'static Method) -> Self {
        let held = method.api.map(|(calls, open)| {
            metrics().count(calls, &[], 1);
            metrics().add(open, &[], 1.0);
            Held(open)
        });
        Self {
            timer: metrics().start(&method.metric),
            _held: held,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        metrics().add(self.0, &[], -1.0);
    }
}

/// An answer's body, which records how the call ended.
#[derive(Debug)]
struct ObservedBody {
    body: Body,
    open: Option<Open>,
    /// Until the first message is there: a stream may last as long as its workload.
    span: Option<Span>,
}

impl ObservedBody {
    fn end(&mut self, code: Code) {
        if let Some(span) = self.span.take() {
            span.record("rpc.grpc.status_code", code as i64);
        }
        if let Some(open) = self.open.take() {
            open.timer.end(code);
        }
    }
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let span = self.span.clone().unwrap_or_else(Span::none);
        let polled = span.in_scope(|| Pin::new(&mut self.body).poll_frame(cx));
        match &polled {
            Poll::Ready(Some(Ok(frame))) => match frame.trailers_ref() {
                Some(trailers) => {
                    if let Some(code) = code_of(trailers) {
                        self.end(code);
                    }
                }
                None => self.span = None,
            },
            Poll::Ready(Some(Err(status))) => self.end(status.code()),
            Poll::Ready(None) | Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn code_of(headers: &HeaderMap) -> Option<Code> {
    Status::from_header_map(headers).map(|status| status.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_have_the_names_of_spires_dashboards() {
        let methods = methods();
        let metric = |path: &str| methods.get(path).map(|method| method.metric.as_str());
        for (path, name) in [
            (
                "SpiffeWorkloadAPI/FetchX509SVID",
                "rpc_workload_api_fetch_x509svid",
            ),
            ("SpiffeWorkloadAPI/FetchJWTSVID", "rpc_workload_api_fetch_jwtsvid"),
            (
                "SpiffeWorkloadAPI/FetchX509Bundles",
                "rpc_workload_api_fetch_x509_bundles",
            ),
            (
                "SpiffeWorkloadAPI/FetchJWTBundles",
                "rpc_workload_api_fetch_jwt_bundles",
            ),
            (
                "envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
                "rpc_sds_v3_stream_secrets",
            ),
            ("grpc.health.v1.Health/Check", "rpc_health_check"),
        ] {
            assert_eq!(metric(path), Some(name));
        }
        assert_eq!(metric("spire.api.server.entry.v1.Entry/GetEntry"), None);
    }

    #[test]
    fn every_api_that_is_counted_exists() {
        let methods = methods();
        for (service, calls, open) in APIS {
            let counted = methods
                .values()
                .filter(|method| method.api == Some((calls, open)));
            assert!(counted.count() > 0, "{service}");
        }
    }

    #[tokio::test]
    async fn a_call_is_open_until_its_last_message_and_counted_with_its_status() {
        let path = "/spire.agent.debug.v1.Debug/GetInfo";
        let inner = tower::service_fn(|_request: http::Request<Body>| async {
            let mut response = http::Response::new(Body::empty());
            let refusal = Status::permission_denied("no");
            let _added = refusal.add_header(response.headers_mut());
            Ok::<_, Infallible>(response)
        });
        let mut calls = CallsLayer.layer(inner);
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        let answer = calls.call(request);
        let shown = |name: &str| {
            let text = finial_identity::metrics::Exposition::default()
                .render(metrics(), finial_identity::metrics::Polled::default());
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        assert_eq!(shown("debug_api_connections").as_deref(), Some("1"));
        drop(answer.await);
        assert_eq!(shown("debug_api_connections").as_deref(), Some("0"));
        let counted = shown("rpc_debug_get_info{status=\"PermissionDenied\"}");
        assert_eq!(counted.as_deref(), Some("1"));
    }
}
