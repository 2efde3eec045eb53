//! The HTTP listeners: health checks (`health_checks`) and metrics (`telemetry.Prometheus`).
//!
//! Health is 200 when healthy, 500 otherwise, with a JSON object of the subsystems. The ready path also answers
//! 503 while the registry holds back the store's content. The live path does not: a supervisor would restart the
//! server, which would release the content without an operator's decision.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;
use finial_identity::metrics::{Exposition, Polled, Scrape};
use finial_identity::process::http_listener::health_answer;

use crate::api::Services;
use crate::telemetry::metrics;

/// Answers health checks on the two paths, which must begin with a slash.
pub fn health_routes(live_path: &str, ready_path: &str, services: Arc<Services>) -> Router {
    let mut routes = Router::new().route(live_path, get(live));
    if ready_path != live_path {
        routes = routes.route(ready_path, get(ready));
    }
    routes.with_state(services)
}

/// What Prometheus gets: what was counted, and what the server holds at the moment.
pub fn scrape(exposition: Exposition, services: Arc<Services>) -> Scrape {
    Scrape::new(exposition, metrics()).polled(move |polled| poll(polled, &services))
}

fn poll(polled: &mut Polled, services: &Services) {
    let now = services.clock.now();
    let trust_domain = services.trust_domain.as_str();
    let version = env!("CARGO_PKG_VERSION");
    let started = [("version", version), ("trust_domain_id", trust_domain)];
    polled.gauge("started", &started, 1.0);
    let uptime = (now - services.started_at).as_seconds_f64() * 1000.0;
    polled.gauge("uptime_in_ms", &[], uptime.max(0.0).round());
    if let Some(expires_at) = services.ca_expires_at() {
        let labels = [("trust_domain_id", trust_domain)];
        polled.gauge("manager_x509_ca_rotate_expiration", &labels, expires_at as f64);
        let left = expires_at - now.unix_timestamp();
        polled.gauge("manager_x509_ca_rotate_ttl", &labels, left as f64);
    }
    let registry = &services.registry;
    for (name, value) in [
        ("entry_entries_by_entryid_cache_count", registry.entry_count()),
        ("node_agents_by_id_cache_count", registry.agent_count()),
        ("registry_watches", registry.watch_count()),
        ("registry_held", usize::from(registry.held().is_some())),
    ] {
        polled.gauge(name, &[], value as f64);
    }
    for (trust_domain, state) in services.federation.states().borrow().iter() {
        let labels = [("trust_domain_id", trust_domain.as_str())];
        polled.gauge("federation_failing", &labels, f64::from(state.trouble.is_some()));
        if let Some(at) = state.refreshed_at {
            polled.gauge("federation_last_success", &labels, at.unix_timestamp() as f64);
        }
    }
    for (cluster, source) in registry.sources() {
        let cluster = ("cluster", &*cluster);
        polled.gauge("kubernetes_settled", &[cluster], f64::from(source.is_settled));
        for (kind, state, count) in &source.counts {
            let labels = [cluster, ("kind", *kind), ("state", *state)];
            polled.gauge("kubernetes_entries", &labels, *count as f64);
        }
        for (name, at) in [
            ("kubernetes_last_success", source.passed_at),
            ("kubernetes_last_heard", source.heard_at),
        ] {
            if let Some(at) = at {
                polled.gauge(name, &[cluster], at.unix_timestamp() as f64);
            }
        }
    }
}

async fn live(State(services): State<Arc<Services>>) -> Response {
    answer(services.health().await, None, sources(&services))
}

async fn ready(State(services): State<Arc<Services>>) -> Response {
    answer(services.health().await, services.unready(), sources(&services))
}

/// The state of the clusters from which entries are derived, and of the refresh of foreign bundles. Their failures do
/// not make the server unhealthy: what is known stays in effect, and after a restart the server would know less.
fn sources(services: &Services) -> Vec<(String, serde_json::Value)> {
    let now = services.clock.now();
    let clusters = services.registry.sources().into_iter().map(|(name, source)| {
        let age = source.heard_at.map(|heard_at| (now - heard_at).whole_seconds());
        let details = serde_json::json!({
            "settled": source.is_settled, "heard_seconds_ago": age, "trouble": source.trouble,
        });
        (format!("server.kubernetes.{name}"), details)
    });
    let states = services.federation.states().borrow().clone();
    let partners = states.into_iter().map(|(trust_domain, state)| {
        let age = state
            .refreshed_at
            .map(|refreshed_at| (now - refreshed_at).whole_seconds());
        let details = serde_json::json!({
            "refreshed_seconds_ago": age, "trouble": state.trouble.as_deref(),
        });
        (format!("server.federation.{trust_domain}"), details)
    });
    clusters.chain(partners).collect()
}

fn answer(
    mut report: Vec<(&'static str, Option<String>)>,
    unready: Option<String>,
    informed: Vec<(String, serde_json::Value)>,
) -> Response {
    let status = if report.iter().any(|(_, trouble)| trouble.is_some()) {
        StatusCode::INTERNAL_SERVER_ERROR
    } else if unready.is_some() {
        StatusCode::SERVICE_UNAVAILABLE
    } else {
        StatusCode::OK
    };
    if unready.is_some() {
        report.push(("server.registry", unready));
    }
    let parts = report.into_iter().map(|(subsystem, trouble)| {
        let details = match trouble {
            None => serde_json::json!({}),
            Some(error) => serde_json::json!({ "error": error }),
        };
        (subsystem.to_owned(), details)
    });
    health_answer(status, parts.chain(informed).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(trouble: Option<&str>, unready: Option<&str>) -> (u16, String) {
        let report = vec![("server.ca", trouble.map(str::to_owned))];
        let answer = answer(report, unready.map(str::to_owned), Vec::new());
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 4096).await.unwrap();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn what_is_held_back_makes_unready_with_its_reason() {
        assert_eq!(told(None, None).await, (200, r#"{"server.ca":{}}"#.to_owned()));
        let (status, body) = told(None, Some("held back")).await;
        assert_eq!(status, 503);
        assert!(
            body.contains(r#""server.registry":{"error":"held back"}"#),
            "{body}"
        );
        assert_eq!(told(Some("bad"), Some("held back")).await.0, 500);
    }
}
