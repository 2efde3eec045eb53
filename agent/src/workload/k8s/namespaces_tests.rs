#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use finial_identity::process::TaskSet;
use finial_identity::process::http_listener::{HttpListener, TlsSource};
use finial_identity::x509::Certificate;
use serde_json::{Value, json};

use super::*;
use crate::test_pki::NamedServer;

fn namespace(name: &str, labels: &Value) -> Value {
    json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name, "labels": labels}})
}

/// Gives these answers, the last one forever.
#[derive(Debug)]
struct Fake {
    answers: Vec<Option<Value>>,
    asked: AtomicUsize,
}

impl Fake {
    fn new(answers: Vec<Option<Value>>) -> Arc<Self> {
        Arc::new(Self {
            answers,
            asked: AtomicUsize::new(0),
        })
    }
}

#[async_trait]
impl FetchNamespace for Fake {
    async fn fetch(&self, _name: &str) -> Result<Bytes, AskError> {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        match &self.answers[number.min(self.answers.len() - 1)] {
            Some(answer) => Ok(answer.to_string().into()),
            None => Err(AskError::TimedOut),
        }
    }
}

fn labels(pairs: &[(&str, &str)]) -> Labels {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    pairs.iter().map(owned).collect()
}

#[tokio::test(start_paused = true)]
async fn all_who_ask_within_some_seconds_share_one_answer_a_failure_too() {
    let shop = |team: &str| Some(namespace("shop", &json!({"team": team})));
    let server = Fake::new(vec![shop("a"), None, shop("b")]);
    let namespaces = Namespaces::new(Arc::clone(&server) as Arc<dyn FetchNamespace>);
    for _time in 0..2 {
        let many = futures_util::future::join_all((0..20).map(|_| namespaces.labels("shop"))).await;
        for found in many {
            assert_eq!(*found.unwrap(), labels(&[("team", "a")]));
        }
        assert_eq!(server.asked.load(Ordering::Relaxed), 1);
        tokio::time::sleep(FRESH - Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(
        namespaces.labels("shop").await.is_err(),
        "what was known is too old"
    );
    assert!(namespaces.labels("shop").await.is_err());
    assert_eq!(server.asked.load(Ordering::Relaxed), 2);
    tokio::time::sleep(FRESH).await;
    assert_eq!(
        *namespaces.labels("shop").await.unwrap(),
        labels(&[("team", "b")])
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_something_else_is_none() {
    for other in [
        namespace("other", &json!({"team": "a"})),
        json!({"kind": "Status", "metadata": {"name": "shop"}}),
        json!({"kind": "Namespace", "metadata": {"name": "shop", "labels": ["a"]}}),
        json!({}),
    ] {
        let namespaces = Namespaces::new(Fake::new(vec![Some(other.clone())]));
        assert!(namespaces.labels("shop").await.is_err(), "{other}");
    }
    for none in [Value::Null, json!({})] {
        let namespaces = Namespaces::new(Fake::new(vec![Some(namespace("shop", &none))]));
        assert!(namespaces.labels("shop").await.unwrap().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn namespaces_that_nobody_asks_for_any_more_are_forgotten() {
    let namespaces = Namespaces::new(Fake::new(vec![None]));
    for number in 0..3 * MANY {
        let _missing = namespaces.labels(&format!("n{number}")).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(namespaces.known.lock().unwrap().len() <= MANY);
}

/// An API server whose certificate names 127.0.0.1; gives the place of its authority and of a good token.
async fn with_api_server(work: impl AsyncFnOnce(ApiServer, &std::path::Path)) {
    let NamedServer { authority, tls, .. } = NamedServer::new(&["127.0.0.1"]);
    let tokens = Arc::new(Mutex::new(Vec::<String>::new()));
    let routes = Router::new()
        .route("/api/v1/namespaces/{name}", get(answer))
        .with_state(Arc::clone(&tokens));
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let listener =
        HttpListener::new(listener, routes).with_tls(Some(TlsSource::new(move || Arc::clone(&tls))));
    let dir = tempfile::tempdir().unwrap();
    let server = ApiServer {
        host: Some("127.0.0.1".to_owned()),
        port: listener.local_addr().unwrap().port(),
        ca_path: dir.path().join("ca"),
        token_path: dir.path().join("token"),
    };
    std::fs::write(&server.ca_path, Certificate::parse(&authority).unwrap().to_pem()).unwrap();
    std::fs::write(&server.token_path, "good").unwrap();
    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("api server", listener.run(stop));
    let work = async {
        work(server, dir.path()).await;
    };
    tasks.run_until_first_exit(work).await.unwrap();
    assert!(
        tokens.lock().unwrap().iter().all(|token| token == "Bearer good"),
        "{tokens:?}"
    );
}

async fn answer(
    State(tokens): State<Arc<Mutex<Vec<String>>>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> (StatusCode, String) {
    tokens
        .lock()
        .unwrap()
        .push(headers["authorization"].to_str().unwrap().to_owned());
    match name.as_str() {
        "shop" => (
            StatusCode::OK,
            namespace("shop", &json!({"team": "web"})).to_string(),
        ),
        _ => (StatusCode::NOT_FOUND, "not found".to_owned()),
    }
}

#[tokio::test]
async fn the_api_server_is_verified_by_chain_and_name_before_it_sees_the_token() {
    with_api_server(async |server: ApiServer, dir: &std::path::Path| {
        let ask = async |server: &ApiServer, name: &str| {
            let asked = Namespaces::new(Arc::new(InCluster(server.clone())));
            asked
                .labels(name)
                .await
                .map(|labels| (*labels).clone())
                .map_err(|error| error.to_string())
        };
        assert_eq!(ask(&server, "shop").await.unwrap(), labels(&[("team", "web")]));
        let missing = ask(&server, "gone").await.unwrap_err();
        assert!(missing.contains("404"), "{missing}");
        for odd in ["", "../../secrets", "shop/pods", "Shop", "shop?x"] {
            assert!(
                ask(&server, odd).await.unwrap_err().contains("not a host name"),
                "{odd}"
            );
        }
        let by_name = ApiServer {
            host: Some("localhost".to_owned()),
            ..server.clone()
        };
        let error = ask(&by_name, "shop").await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        let nowhere = ApiServer {
            host: None,
            ..server.clone()
        };
        let error = ask(&nowhere, "shop").await.unwrap_err();
        assert!(error.contains("KUBERNETES_SERVICE_HOST"), "{error}");
        let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let stranger = Certificate::parse(stranger.cert.der()).unwrap().to_pem();
        std::fs::write(dir.join("stranger"), stranger).unwrap();
        std::fs::write(dir.join("bad"), "bad").unwrap();
        let of_stranger = ApiServer {
            ca_path: dir.join("stranger"),
            token_path: dir.join("bad"),
            ..server
        };
        let error = ask(&of_stranger, "shop").await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
    })
    .await;
}
