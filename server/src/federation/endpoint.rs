//! The bundle endpoint: serves the own bundle over HTTPS (SPIFFE Federation §5.2). Only GET of `/`; clients
//! are not authenticated.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use finial_identity::bundle::Bundle;

/// Gives the own bundle as it is now.
pub type OwnBundle = Box<dyn Fn() -> Option<Arc<Bundle>> + Send + Sync>;

struct Endpoint {
    own_bundle: OwnBundle,
    refresh_hint: Duration,
    wit_svids: bool,
    /// The document that was written last, and of which bundle.
    written: Mutex<Option<(Arc<Bundle>, Bytes)>>,
}

/// Answers with the own bundle, with this hint for how often others should ask. Authorities of WIT-SVIDs are left out
/// unless `wit_svids` are on: readers that do not know their `use` may refuse the whole bundle.
pub fn routes(own_bundle: OwnBundle, refresh_hint: Duration, wit_svids: bool) -> Router {
    let endpoint = Endpoint {
        own_bundle,
        refresh_hint,
        wit_svids,
        written: Mutex::new(None),
    };
    Router::new()
        .route("/", get(answer))
        .with_state(Arc::new(endpoint))
}

async fn answer(State(endpoint): State<Arc<Endpoint>>) -> Response {
    match endpoint.document() {
        Some(document) => ([(header::CONTENT_TYPE, "application/json")], document).into_response(),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "unable to retrieve the bundle").into_response(),
    }
}

impl Endpoint {
    fn document(&self) -> Option<Bytes> {
        let bundle = (self.own_bundle)()?;
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, document)) = &*written
            && Arc::ptr_eq(of, &bundle)
        {
            return Some(document.clone());
        }
        let mut shown = Bundle::clone(&bundle);
        shown.refresh_hint = i64::try_from(self.refresh_hint.as_secs()).unwrap_or(i64::MAX);
        if !self.wit_svids {
            shown.wit_authorities.clear();
        }
        let document = Bytes::from(shown.to_spiffe_json());
        *written = Some((bundle, document.clone()));
        Some(document)
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Request;
    use tower::ServiceExt as _;

    use super::super::testing::bundle;
    use super::*;

    async fn ask(routes: Router, method: &str, path: &str) -> (u16, Option<String>, String) {
        let request = Request::builder().method(method).uri(path).body(Body::empty());
        let answer = routes.oneshot(request.unwrap()).await.unwrap();
        let kind = answer.headers().get(header::CONTENT_TYPE);
        let kind = kind.map(|kind| kind.to_str().unwrap().to_owned());
        let status = answer.status().as_u16();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        (status, kind, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn the_root_answers_get_with_the_present_bundle_and_nothing_else_does() {
        let held = Arc::new(Mutex::new(Arc::new(Bundle {
            sequence_number: 7,
            refresh_hint: 60,
            ..bundle("a.test", 1)
        })));
        let source = Arc::clone(&held);
        let own: OwnBundle = Box::new(move || Some(Arc::clone(&source.lock().unwrap())));
        let routes = routes(own, Duration::from_secs(300), false);
        let (status, kind, body) = ask(routes.clone(), "GET", "/").await;
        assert_eq!((status, kind.as_deref()), (200, Some("application/json")));
        let expected = Bundle {
            refresh_hint: 300,
            ..Bundle::clone(&held.lock().unwrap())
        };
        let trust_domain = expected.trust_domain.clone();
        assert_eq!(
            Bundle::parse_spiffe_json(trust_domain, body.as_bytes()).unwrap(),
            expected
        );
        *held.lock().unwrap() = Arc::new(Bundle {
            sequence_number: 8,
            ..expected
        });
        assert!(
            ask(routes.clone(), "GET", "/")
                .await
                .2
                .contains("\"spiffe_sequence\": 8")
        );
        assert_eq!(ask(routes.clone(), "GET", "/other").await.0, 404);
        assert_eq!(ask(routes.clone(), "POST", "/").await.0, 405);
    }

    #[tokio::test]
    async fn without_a_bundle_the_endpoint_says_so() {
        let routes = routes(Box::new(|| None), Duration::from_secs(300), false);
        assert_eq!(ask(routes, "GET", "/").await.0, 500);
    }
}
