//! The HTTP side.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{Method, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use super::path::Resource;
use super::state::{Continue, State, Watched};

const MAX_BODY: usize = 16 * 1024 * 1024;

pub(super) fn serve(listener: std::net::TcpListener, state: Arc<State>, stopped: oneshot::Receiver<()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime for the fake API server");
    runtime.block_on(async move {
        listener
            .set_nonblocking(true)
            .expect("a socket can be non-blocking");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a bound listener");
        let router = Router::new().fallback(move |request: Request| answer(Arc::clone(&state), request));
        tokio::select! {
            _ended = axum::serve(listener, router) => {}
            _stop = stopped => {}
        }
    });
}

async fn answer(state: Arc<State>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let query = query(parts.uri.query().unwrap_or_default());
    let Some(resource) = Resource::parse(parts.uri.path()) else {
        return failure(
            StatusCode::NOT_FOUND,
            "the server could not find the requested resource",
        );
    };
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return failure(StatusCode::PAYLOAD_TOO_LARGE, "request is too large");
    };
    if state.hangs() {
        return std::future::pending().await;
    }
    if state.is_out() {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "out of order");
    }
    if resource.plural.is_empty() {
        return object(&json!({
            "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": resource.api_version, "resources": []
        }));
    }
    let is_watch = query
        .get("watch")
        .is_some_and(|watch| watch == "true" || watch == "1");
    match parts.method {
        Method::GET if is_watch => watch(state, resource, &query),
        Method::GET if resource.name.is_empty() => list(&state, &resource, &query),
        Method::GET => found(state.get(&resource.plural, &resource.namespace, &resource.name)),
        Method::POST => create(&state, &resource, &body),
        Method::PATCH => patch(&state, &resource, &body, query.contains_key("force")),
        Method::PUT => match serde_json::from_slice(&body) {
            Ok(new) => object(&state.store(&resource.plural, new, resource.subresource != "status")),
            Err(error) => failure(StatusCode::BAD_REQUEST, &error.to_string()),
        },
        Method::DELETE => found(state.delete(&resource.plural, &resource.namespace, &resource.name)),
        _ => failure(StatusCode::METHOD_NOT_ALLOWED, "method is not allowed"),
    }
}

/// A page of a list, or all of it.
fn list(state: &State, resource: &Resource, query: &BTreeMap<String, String>) -> Response {
    let limit = query.get("limit").and_then(|limit| limit.parse().ok());
    let from = query.get("continue").map(|token| Continue::parse(token));
    if from == Some(None) {
        return failure(StatusCode::BAD_REQUEST, "continue token is not valid");
    }
    let limit = limit.filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let from = from.flatten();
    let Some(page) = state.shown(&resource.plural, &resource.namespace, limit, from.as_ref()) else {
        return failure(StatusCode::GONE, "continue token is too old");
    };
    let next = page.next.map(|next| next.token()).unwrap_or_default();
    let text = format!(
        r#"{{"kind":"List","apiVersion":{:?},"metadata":{{"resourceVersion":"{}","continue":{next:?}}},"items":[{}]}}"#,
        resource.api_version,
        page.version,
        page.items.join(",")
    );
    answer_text(StatusCode::OK, text)
}

fn watch(state: Arc<State>, resource: Resource, query: &BTreeMap<String, String>) -> Response {
    let version = query
        .get("resourceVersion")
        .and_then(|version| version.parse().ok());
    let mut after: u64 = version.unwrap_or_default();
    let generation = state.generation();
    let (sender, receiver) = mpsc::channel::<Value>(64);
    tokio::spawn(async move {
        loop {
            let news = state.news.notified();
            tokio::pin!(news);
            // Registered before looking, so that nothing is missed in between.
            news.as_mut().enable();
            match state.events(&resource.plural, &resource.namespace, after, generation) {
                Watched::Ended => return,
                Watched::Expired => {
                    let status = json!({
                        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                        "message": "too old resource version", "reason": "Expired", "code": 410
                    });
                    let _ = sender.send(json!({"type": "ERROR", "object": status})).await;
                    return;
                }
                Watched::Events(events, version) => {
                    for event in events {
                        if sender.send(event).await.is_err() {
                            return;
                        }
                    }
                    after = version;
                }
            }
            tokio::select! {
                () = news => {}
                () = sender.closed() => return,
            }
        }
    });
    let lines =
        ReceiverStream::new(receiver).map(|event| Ok::<_, Infallible>(Bytes::from(format!("{event}\n"))));
    Response::builder()
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from_stream(lines))
        .expect("a response of fixed parts")
}

fn create(state: &State, resource: &Resource, body: &Bytes) -> Response {
    let new: Value = match serde_json::from_slice(body) {
        Ok(new) => new,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    match state.answer(&resource.plural) {
        Some(answer) => object(&answer(new)),
        None => object(&state.store(&resource.plural, new, false)),
    }
}

/// A merge patch; a server-side apply is one that may create.
fn patch(state: &State, resource: &Resource, body: &Bytes, creates: bool) -> Response {
    let change: Value = match serde_json::from_slice(body) {
        Ok(change) => change,
        Err(error) => return failure(StatusCode::BAD_REQUEST, &error.to_string()),
    };
    let before = state.get(&resource.plural, &resource.namespace, &resource.name);
    let mut object_now = match before {
        Some(before) => before,
        None if creates => json!({}),
        None => return failure(StatusCode::NOT_FOUND, "not found"),
    };
    if resource.subresource == "status" {
        merge(&mut object_now["status"], &change["status"]);
    } else {
        merge(&mut object_now, &change);
    }
    object(&state.store(&resource.plural, object_now, false))
}

/// RFC 7396.
fn merge(target: &mut Value, change: &Value) {
    let Value::Object(members) = change else {
        *target = change.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in members {
        if value.is_null() {
            target.as_object_mut().expect("made an object above").remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text
        .split('&')
        .filter_map(|pair| pair.split_once('=').or(Some((pair, ""))));
    pairs
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn found(value: Option<Value>) -> Response {
    match value {
        Some(value) => object(&value),
        None => failure(StatusCode::NOT_FOUND, "not found"),
    }
}

fn object(value: &Value) -> Response {
    answer_with(StatusCode::OK, value)
}

fn failure(status: StatusCode, message: &str) -> Response {
    let reason = if status == StatusCode::NOT_FOUND {
        "NotFound"
    } else {
        "Failure"
    };
    answer_with(
        status,
        &json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": status.as_u16()
        }),
    )
}

fn answer_with(status: StatusCode, value: &Value) -> Response {
    answer_text(status, value.to_string())
}

fn answer_text(status: StatusCode, text: String) -> Response {
    Response::builder()
        .status(status)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(text))
        .expect("a response of fixed parts")
}
