//! Whether the files are written, for probes over HTTP.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use finial_identity::process::Stop;
use finial_identity::process::http_listener::HttpListener;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::config::{HealthChecks, HelperConfig};

/// The state of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing came yet.
    Not,
    /// The last attempt failed.
    Failed,
    /// It is there.
    Yes,
}

/// Which file, or set of files.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Which {
    /// The X.509-SVID with its key and bundle.
    X509,
    /// A JWT file, by its name below `cert_dir`.
    Jwt(String),
}

/// The state of all configured files. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Statuses(Arc<Mutex<BTreeMap<Which, Written>>>);

impl Statuses {
    pub(super) fn new(config: &HelperConfig) -> Self {
        let x509 = config.x509.iter().map(|_| Which::X509);
        let bundle = config.jwt_bundle.iter();
        let jwt = bundle.chain(config.jwt_svids.iter().map(|svid| &svid.file));
        let all = x509.chain(jwt.map(|file| Which::Jwt(file.shown.clone())));
        let statuses = all.map(|which| (which, Written::Not)).collect();
        Self(Arc::new(Mutex::new(statuses)))
    }

    pub(super) fn set(&self, which: &Which, written: Written) {
        let mut statuses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        statuses.insert(which.clone(), written);
    }

    #[cfg(test)]
    pub(super) fn get(&self, which: &Which) -> Option<Written> {
        self.snapshot().get(which).copied()
    }

    /// No attempt has failed.
    fn is_live(&self) -> bool {
        !self
            .snapshot()
            .values()
            .any(|written| *written == Written::Failed)
    }

    /// Everything is there.
    fn is_ready(&self) -> bool {
        self.snapshot().values().all(|written| *written == Written::Yes)
    }

    /// In spiffe-helper's format.
    fn details(&self, is_good: bool) -> Value {
        let mut jwt = serde_json::Map::new();
        let mut files = json!({});
        for (which, written) in self.snapshot() {
            match which {
                Which::X509 => files["x509_write_status"] = written.as_str().into(),
                Which::Jwt(name) => {
                    jwt.insert(name, written.as_str().into());
                }
            }
        }
        files["jwt_write_status"] = jwt.into();
        let status = if is_good { "OK" } else { "Service Unavailable" };
        json!({"status": status, "health": {"file_write_statuses": files}})
    }

    fn snapshot(&self) -> BTreeMap<Which, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Display for Which {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::X509 => "X.509-SVID",
            Self::Jwt(name) => name,
        })
    }
}

impl Written {
    fn as_str(self) -> &'static str {
        match self {
            Self::Not => "unwritten",
            Self::Failed => "failed",
            Self::Yes => "written",
        }
    }
}

/// Serves probes until `stop`: 200 when well, else 503, with the details as JSON.
///
/// # Errors
/// None: a connection's trouble ends that connection.
pub(super) async fn serve(
    listener: TcpListener,
    checks: HealthChecks,
    statuses: Statuses,
    stop: Stop,
) -> Result<(), Infallible> {
    let routes = axum::Router::new()
        .route(&checks.liveness_path, get(live))
        .route(&checks.readiness_path, get(ready))
        .with_state(statuses);
    HttpListener::new(listener, routes).run(stop).await
}

async fn live(State(statuses): State<Statuses>) -> Response {
    answer(&statuses, statuses.is_live())
}

async fn ready(State(statuses): State<Statuses>) -> Response {
    answer(&statuses, statuses.is_ready())
}

fn answer(statuses: &Statuses, is_good: bool) -> Response {
    let code = if is_good {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    let headers = [(CONTENT_TYPE, "application/json")];
    (code, headers, statuses.details(is_good).to_string()).into_response()
}

#[cfg(test)]
mod tests {
    use finial_identity::process::TaskSet;

    use super::super::testing::config;
    use super::*;
    use crate::test_http;

    fn both() -> Statuses {
        Statuses::new(&config(
            "/c",
            "jwt_svids = [{ jwt_audience = \"a\" jwt_svid_file_name = \"a.token\" }]",
        ))
    }

    #[test]
    fn unwritten_is_live_but_not_ready_and_failed_is_neither() {
        let statuses = both();
        assert!(statuses.is_live() && !statuses.is_ready());
        statuses.set(&Which::X509, Written::Yes);
        assert!(statuses.is_live() && !statuses.is_ready());
        statuses.set(&Which::Jwt("/c/a.token".to_owned()), Written::Yes);
        assert!(statuses.is_live() && statuses.is_ready());
        statuses.set(&Which::X509, Written::Failed);
        assert!(!statuses.is_live() && !statuses.is_ready());
    }

    #[tokio::test]
    async fn probes_read_what_spiffe_helper_tells() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let checks = HealthChecks {
            port: 0,
            liveness_path: "/l".to_owned(),
            readiness_path: "/r".to_owned(),
        };
        let statuses = both();
        statuses.set(&Which::X509, Written::Yes);
        let mut tasks = TaskSet::new();
        let stop = tasks.stop_signal();
        tasks.spawn("health", serve(listener, checks, statuses, stop));
        let ask = |path| test_http::get(address, path);
        let live = ask("/l").await;
        assert!(live.starts_with("HTTP/1.1 200 OK"), "{live}");
        assert!(live.contains("content-type: application/json"), "{live}");
        let ready = ask("/r").await;
        assert!(ready.starts_with("HTTP/1.1 503 Service Unavailable"), "{ready}");
        let body: Value = serde_json::from_str(ready.lines().last().unwrap()).unwrap();
        let files = json!({"x509_write_status": "written", "jwt_write_status": {"/c/a.token": "unwritten"}});
        assert_eq!(
            body,
            json!({"status": "Service Unavailable", "health": {"file_write_statuses": files}})
        );
        tasks.run_until_first_exit(std::future::ready(())).await.unwrap();
    }
}
