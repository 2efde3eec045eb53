//! Attestation before an API server of a few lines.

mod addresses;
mod api_server;
mod tokens;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;

const TOKEN: &str = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOlsic3BpcmUtc2VydmVyIl19.c2VjcmV0";
const POD_UID: &str = "11111111-1111-1111-1111-111111111111";
const NODE_UID: &str = "22222222-2222-2222-2222-222222222222";

/// What an API server knows. A missing object is `null`.
#[derive(Clone, Debug)]
struct Facts {
    review: Value,
    pod: Value,
    node: Value,
    is_down: bool,
}

/// An API server that knows an agent's pod on a node, and remembers what it was asked to review.
#[derive(Clone, Debug)]
struct ApiServer {
    facts: Arc<Mutex<Facts>>,
    reviews: Arc<Mutex<Vec<Value>>>,
}

impl ApiServer {
    fn new() -> Self {
        let facts = Facts {
            review: json!({
                "authenticated": true,
                "audiences": ["spire-server"],
                "user": {
                    "username": "system:serviceaccount:spire:spire-agent",
                    "extra": {
                        "authentication.kubernetes.io/pod-name": ["agent-x7"],
                        "authentication.kubernetes.io/pod-uid": [POD_UID],
                    },
                },
            }),
            pod: json!({
                "metadata": {"name": "agent-x7", "namespace": "spire", "uid": POD_UID,
                             "labels": {"app": "agent", "pool": "gpu"}},
                "spec": {"containers": [], "nodeName": "node-a", "serviceAccountName": "spire-agent"},
                "status": {"phase": "Running", "hostIP": "172.16.0.1", "podIP": "10.1.2.3"},
            }),
            node: json!({
                "metadata": {"name": "node-a", "uid": NODE_UID, "labels": {"zone": "z1", "secret": "x"}},
                "status": {"addresses": [{"type": "InternalIP", "address": "172.16.0.1"},
                                         {"type": "Hostname", "address": "node-a"}]},
            }),
            is_down: false,
        };
        Self {
            facts: Arc::new(Mutex::new(facts)),
            reviews: Arc::default(),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        change(&mut self.facts.lock().unwrap());
    }

    fn client(&self) -> Client {
        let routes = Router::new()
            .route("/apis/authentication.k8s.io/v1/tokenreviews", post(review))
            .route("/api/v1/namespaces/{namespace}/pods/{name}", get(pod))
            .route("/api/v1/nodes/{name}", get(node))
            .with_state(self.clone());
        let answer = move |request: Request<kube::client::Body>| {
            routes.clone().oneshot(request.map(axum::body::Body::new))
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn attestor(&self) -> K8sPsatAttestor {
        self.attestor_with(|_settings| {})
    }

    fn attestor_with(&self, change: impl FnOnce(&mut K8sPsatCluster)) -> K8sPsatAttestor {
        let mut settings = K8sPsatCluster {
            name: "demo".to_owned(),
            service_accounts: BTreeSet::from(["spire:spire-agent".to_owned()]),
            audience: vec!["spire-server".to_owned()],
            kube_config_file: None,
            node_label_keys: BTreeSet::from(["zone".to_owned()]),
            pod_label_keys: BTreeSet::from(["pool".to_owned(), "absent".to_owned()]),
            use_pod_uid_for_agent_id: false,
            verify_client_ip: false,
        };
        change(&mut settings);
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        K8sPsatAttestor::new(trust_domain, vec![(settings, self.client())])
    }

    /// Why the attestor says no to a change of the facts, in the words that the agent gets.
    async fn refusal(&self, attestor: &K8sPsatAttestor, change: impl FnOnce(&mut Facts)) -> String {
        let before = self.facts.lock().unwrap().clone();
        self.change(change);
        let error = attest(attestor, &payload("demo", TOKEN)).await.unwrap_err();
        self.change(|facts| *facts = before);
        assert!(matches!(error, AttestError::Denied(_)), "{error:?}");
        error.to_string()
    }
}

async fn review(State(server): State<ApiServer>, asked: Bytes) -> Response {
    let asked: Value = serde_json::from_slice(&asked).unwrap();
    server.reviews.lock().unwrap().push(asked["spec"].clone());
    let mut review = asked;
    review["status"] = server.facts.lock().unwrap().review.clone();
    answer(&server, review)
}

async fn pod(State(server): State<ApiServer>, Path((namespace, name)): Path<(String, String)>) -> Response {
    assert_eq!((namespace.as_str(), name.as_str()), ("spire", "agent-x7"));
    let pod = server.facts.lock().unwrap().pod.clone();
    answer(&server, pod)
}

async fn node(State(server): State<ApiServer>, Path(name): Path<String>) -> Response {
    assert_eq!(name, "node-a");
    let node = server.facts.lock().unwrap().node.clone();
    answer(&server, node)
}

fn answer(server: &ApiServer, object: Value) -> Response {
    let status = |code: u16, reason: &str| {
        let text = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "metadata": {},
                          "message": reason, "reason": reason, "code": code});
        (StatusCode::from_u16(code).unwrap(), text.to_string()).into_response()
    };
    if server.facts.lock().unwrap().is_down {
        return status(503, "ServiceUnavailable");
    }
    if object.is_null() {
        return status(404, "NotFound");
    }
    object.to_string().into_response()
}

#[derive(Debug)]
struct Caller(Option<IpAddr>);

#[async_trait]
impl Challenge for Caller {
    async fn challenge(&mut self, _challenge: Vec<u8>) -> Result<Vec<u8>, AttestError> {
        unreachable!("this attestor sends no challenge")
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        self.0
    }
}

fn payload(cluster: &str, token: &str) -> Vec<u8> {
    json!({"cluster": cluster, "token": token})
        .to_string()
        .into_bytes()
}

async fn attest(attestor: &K8sPsatAttestor, payload: &[u8]) -> Result<Attested, AttestError> {
    let attested = attestor.attest(payload, &mut Caller(None)).await;
    if let Err(error) = &attested {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("c2VjcmV0"), "shows the token: {shown}");
    }
    attested
}
