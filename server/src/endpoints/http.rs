//! The optional HTTP health listener (`health_checks`): 200 when healthy, 500 otherwise, with a JSON
//! object of the subsystems. The ready path also answers 503 while the registry holds back the store's
//! content. The live path does not: a supervisor would restart the server and so release it unseen.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use finial_identity::process::Stop;
use tokio::net::TcpListener;

use crate::api::Services;

/// A bound health listener, not yet served.
#[derive(Debug)]
pub struct HttpEndpoint {
    listener: TcpListener,
    routes: Router,
}

impl HttpEndpoint {
    /// Answers on the two paths, which must begin with a slash.
    pub fn new(listener: TcpListener, live_path: &str, ready_path: &str, services: Arc<Services>) -> Self {
        let mut routes = Router::new().route(live_path, get(live));
        if ready_path != live_path {
            routes = routes.route(ready_path, get(ready));
        }
        Self {
            listener,
            routes: routes.with_state(services),
        }
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn run(self, stop: Stop) -> io::Result<()> {
        axum::serve(self.listener, self.routes)
            .with_graceful_shutdown(stop.stopped_owned())
            .await
    }
}

async fn live(State(services): State<Arc<Services>>) -> Response {
    answer(services.health().await, None)
}

async fn ready(State(services): State<Arc<Services>>) -> Response {
    answer(services.health().await, services.unready())
}

fn answer(mut report: Vec<(&'static str, Option<String>)>, unready: Option<String>) -> Response {
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
    let body: serde_json::Map<String, serde_json::Value> = report
        .into_iter()
        .map(|(subsystem, trouble)| {
            let details = match trouble {
                None => serde_json::json!({}),
                Some(error) => serde_json::json!({ "error": error }),
            };
            (subsystem.to_owned(), details)
        })
        .collect();
    let body = serde_json::Value::Object(body).to_string();
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(trouble: Option<&str>, unready: Option<&str>) -> (u16, String) {
        let report = vec![("server.ca", trouble.map(str::to_owned))];
        let answer = answer(report, unready.map(str::to_owned));
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
