//! Metrics and traces of calls.

use std::collections::HashMap;
use std::sync::LazyLock;

use finial_identity::metrics::{CallTimer, method_segment, service_segments};
use tracing::{Span, field};

use super::authorization;
use crate::telemetry::{TRACE_TARGET, metrics};

/// Begins to time a call. One of an unknown method is not counted, because callers can invent names.
pub fn start(method: &str) -> Option<CallTimer> {
    static NAMES: LazyLock<HashMap<&'static str, String>> = LazyLock::new(|| {
        let rows = authorization::table().iter();
        rows.map(|row| (row.method, metric_of(row.method))).collect()
    });
    let name = NAMES.get(method)?;
    Some(metrics().start(name))
}

/// The span of an admitted call.
pub fn span(method: &'static str) -> Span {
    let name = method.trim_start_matches('/');
    tracing::info_span!(
        target: TRACE_TARGET,
        "rpc",
        otel.name = name,
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.grpc.status_code = field::Empty,
    )
}

/// `/spire.api.server.svid.v1.SVID/NewJWTSVID` is `rpc_svid_v1_svid_new_jwtsvid`.
fn metric_of(path: &str) -> String {
    let (service, method) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    format!("rpc_{}_{}", service_segments(service), method_segment(method))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_has_a_metric_of_its_own() {
        let names: std::collections::BTreeSet<String> = authorization::table()
            .iter()
            .map(|row| metric_of(row.method))
            .collect();
        assert_eq!(names.len(), authorization::table().len());
        for name in [
            "rpc_agent_v1_agent_attest_agent",
            "rpc_bundle_v1_bundle_get_bundle",
            "rpc_entry_v1_entry_batch_create_entry",
            "rpc_svid_v1_svid_batch_new_x509svid",
            "rpc_svid_v1_svid_new_jwtsvid",
        ] {
            assert!(names.contains(name), "{name} in {names:?}");
        }
        assert!(start("/made.up.Service/Method").is_none());
    }
}
