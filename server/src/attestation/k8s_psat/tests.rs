use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use finial_identity::process::Clock;
use http::{Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use super::*;
use crate::telemetry::LogSettings;

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

#[tokio::test]
async fn an_agent_is_named_after_its_node_and_gets_spires_selectors() {
    let server = ApiServer::new();
    let attested = attest(&server.attestor(), &payload("demo", TOKEN)).await.unwrap();
    assert_eq!(
        attested.agent_id.as_str(),
        format!("spiffe://example.org/spire/agent/k8s_psat/demo/{NODE_UID}")
    );
    assert!(attested.can_reattest);
    let found: BTreeSet<String> = attested.selectors.iter().map(ToString::to_string).collect();
    let expected = [
        "cluster:demo",
        "agent_ns:spire",
        "agent_sa:spire-agent",
        "agent_pod_name:agent-x7",
        &format!("agent_pod_uid:{POD_UID}"),
        "agent_node_ip:172.16.0.1",
        "agent_node_name:node-a",
        &format!("agent_node_uid:{NODE_UID}"),
        "agent_node_label:zone:z1",
        "agent_pod_label:pool:gpu",
    ];
    assert_eq!(found, expected.map(|value| format!("k8s_psat:{value}")).into());
    assert_eq!(
        server.reviews.lock().unwrap().as_slice(),
        [json!({"token": TOKEN, "audiences": ["spire-server"]})]
    );
}

#[tokio::test]
async fn an_agent_is_named_after_its_pod_where_that_is_asked_for() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.use_pod_uid_for_agent_id = true);
    let attested = attest(&attestor, &payload("demo", TOKEN)).await.unwrap();
    assert_eq!(
        attested.agent_id.as_str(),
        format!("spiffe://example.org/spire/agent/k8s_psat/demo/pod/{POD_UID}")
    );
}

#[tokio::test]
async fn an_empty_audience_leaves_the_choice_to_the_api_server() {
    let server = ApiServer::new();
    server.change(|facts| facts.review["audiences"] = Value::Null);
    let attestor = server.attestor_with(|settings| settings.audience.clear());
    attest(&attestor, &payload("demo", TOKEN)).await.unwrap();
    assert_eq!(
        server.reviews.lock().unwrap().as_slice(),
        [json!({"token": TOKEN})]
    );
}

#[tokio::test]
async fn a_token_of_another_audience_or_account_is_refused() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    let why = server
        .refusal(&attestor, |facts| {
            facts.review = json!({"error": format!("token audiences do not match: {TOKEN}")});
        })
        .await;
    assert_eq!(why, "k8s_psat: token is not good for this cluster and audience");
    // An API server that ignores audiences calls every token authenticated.
    for audiences in [json!(["api"]), Value::Null] {
        let change = |facts: &mut Facts| facts.review["audiences"] = audiences;
        let why = server.refusal(&attestor, change).await;
        assert!(why.contains("audience of this server"), "{why}");
    }
    for (name, why) in [
        ("system:serviceaccount:spire:other", "not allowed: spire:other"),
        (
            "system:serviceaccount:default:spire-agent",
            "not allowed: default:spire-agent",
        ),
        ("system:node:node-a", "not that of a service account"),
        ("system:serviceaccount:spire", "not that of a service account"),
    ] {
        let change = |facts: &mut Facts| facts.review["user"]["username"] = json!(name);
        let told = server.refusal(&attestor, change).await;
        assert!(told.contains(why), "{told}");
    }
}

#[tokio::test]
async fn a_token_that_is_bound_to_no_pod_is_refused() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    for key in ["pod-name", "pod-uid"] {
        for value in [json!([]), json!([""]), json!(["a", "b"])] {
            let change = |facts: &mut Facts| {
                facts.review["user"]["extra"][format!("authentication.kubernetes.io/{key}")] = value;
            };
            let why = server.refusal(&attestor, change).await;
            assert!(why.contains("not bound to a pod"), "{why}");
        }
    }
}

#[tokio::test]
async fn a_token_of_a_deleted_replaced_or_ended_pod_is_refused() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    let why = server.refusal(&attestor, |facts| facts.pod = Value::Null).await;
    assert!(why.contains("pod of the token is gone"), "{why}");
    let another = |facts: &mut Facts| facts.pod["metadata"]["uid"] = json!(NODE_UID);
    let why = server.refusal(&attestor, another).await;
    assert!(why.contains("another has its name"), "{why}");
    for phase in ["Succeeded", "Failed"] {
        let ended = |facts: &mut Facts| facts.pod["status"]["phase"] = json!(phase);
        let why = server.refusal(&attestor, ended).await;
        assert!(why.contains("has ended"), "{why}");
    }
    let other = |facts: &mut Facts| facts.pod["spec"]["serviceAccountName"] = json!("other");
    let why = server.refusal(&attestor, other).await;
    assert!(why.contains("another service account"), "{why}");
}

#[tokio::test]
async fn a_token_of_another_node_or_of_none_is_refused() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    for nowhere in [Value::Null, json!("")] {
        let unbound = |facts: &mut Facts| facts.pod["spec"]["nodeName"] = nowhere;
        let why = server.refusal(&attestor, unbound).await;
        assert!(why.contains("on no node"), "{why}");
    }
    let nameless = |facts: &mut Facts| facts.node["metadata"]["uid"] = Value::Null;
    let why = server.refusal(&attestor, nameless).await;
    assert!(why.contains("has no UID"), "{why}");
    let why = server.refusal(&attestor, |facts| facts.node = Value::Null).await;
    assert!(why.contains("node of the pod does not exist: node-a"), "{why}");
    for (key, value) in [("node-name", "node-b"), ("node-uid", POD_UID)] {
        let other = |facts: &mut Facts| {
            facts.review["user"]["extra"][format!("authentication.kubernetes.io/{key}")] = json!([value]);
        };
        let why = server.refusal(&attestor, other).await;
        assert!(why.contains("made for a pod on another node"), "{why}");
    }
}

#[tokio::test]
async fn a_token_that_is_replayed_from_another_node_is_refused() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    let from = |address: [u8; 4]| Caller(Some(Ipv4Addr::from(address).into()));
    for fine in [[172, 16, 0, 1], [10, 1, 2, 3]] {
        attestor
            .attest(&payload("demo", TOKEN), &mut from(fine))
            .await
            .unwrap();
    }
    let mapped: IpAddr = "::ffff:172.16.0.2".parse().unwrap();
    for (mut stranger, why) in [
        (
            from([172, 16, 0, 2]),
            "token was sent from 172.16.0.2, which is neither",
        ),
        (
            Caller(Some(mapped)),
            "token was sent from 172.16.0.2, which is neither",
        ),
        (Caller(None), "token was sent from no address"),
    ] {
        let error = attestor
            .attest(&payload("demo", TOKEN), &mut stranger)
            .await
            .unwrap_err();
        assert!(matches!(error, AttestError::Denied(_)), "{error:?}");
        let shown = format!("{error} {error:?}");
        assert!(
            shown.contains(why) && shown.contains("verify_client_ip"),
            "{shown}"
        );
        assert!(!shown.contains("c2VjcmV0"), "shows the token: {shown}");
    }
    // Off, as it is unless asked for, the same token is as good from there as from its own node.
    let mut elsewhere = from([172, 16, 0, 2]);
    let taken = server
        .attestor()
        .attest(&payload("demo", TOKEN), &mut elsewhere)
        .await;
    assert!(taken.unwrap().agent_id.as_str().ends_with(NODE_UID));
}

/// The agent begins to run a moment before its kubelet reports its address, and need not give up.
#[tokio::test]
async fn a_pod_that_has_no_address_yet_is_no_refusal() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    let mut own = Caller(Some(Ipv4Addr::new(10, 1, 2, 3).into()));
    server.change(|facts| facts.pod["status"] = json!({"phase": "Pending"}));
    let error = attestor
        .attest(&payload("demo", TOKEN), &mut own)
        .await
        .unwrap_err();
    assert!(matches!(error, AttestError::Unavailable { .. }), "{error:?}");
    server.change(|facts| facts.pod["status"] = json!({"phase": "Running", "podIP": "10.1.2.3"}));
    attestor.attest(&payload("demo", TOKEN), &mut own).await.unwrap();
}

/// What an agent in the network of its node sends to a pod leaves through the node's bridge or tunnel.
#[tokio::test]
async fn agents_with_the_nodes_network_may_call_from_the_range_of_its_pods_and_others_may_not() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    server.change(|facts| {
        facts.node["spec"] = json!({"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24", "fd00:1:2::/64"]});
    });
    let is_taken = async |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let attested = attestor
            .attest(&payload("demo", TOKEN), &mut Caller(Some(address)))
            .await;
        attested.is_ok()
    };
    let of_range = ["10.1.2.0", "10.1.2.1", "fd00:1:2::1"];
    for neighbour in of_range {
        assert!(
            !is_taken(neighbour).await,
            "{neighbour} is another pod, or the node's bridge"
        );
    }
    assert!(is_taken("10.1.2.3").await);
    server.change(|facts| facts.pod["spec"]["hostNetwork"] = json!(true));
    for own in of_range {
        assert!(is_taken(own).await, "{own}");
    }
    // Of another node.
    for stranger in ["10.1.3.1", "fd00:1:3::1", "172.16.0.2"] {
        assert!(!is_taken(stranger).await, "{stranger}");
    }
}

#[tokio::test]
async fn addresses_are_the_same_however_they_are_written_and_there_may_be_several() {
    let server = ApiServer::new();
    let attestor = server.attestor_with(|settings| settings.verify_client_ip = true);
    server.change(|facts| {
        facts.pod["status"] = json!({
            "phase": "Running", "podIP": "::ffff:10.1.2.3",
            "podIPs": [{"ip": "fd00:1:0::0003"}],
            "hostIPs": [{"ip": "fd00:2::1"}],
        });
        facts.node["status"]["addresses"] = json!([
            {"type": "InternalIP", "address": "172.16.0.1"}, {"type": "ExternalIP", "address": "2001:db8::1"}
        ]);
    });
    let attest_from = async |address: &str| {
        let address: IpAddr = address.parse().unwrap();
        let mut caller = Caller(Some(address));
        attestor
            .attest(&payload("demo", TOKEN), &mut caller)
            .await
            .is_ok()
    };
    for fine in ["10.1.2.3", "fd00:1::3", "fd00:2::1", "172.16.0.1", "2001:db8::1"] {
        assert!(attest_from(fine).await, "{fine}");
    }
    for stranger in ["10.1.2.4", "fd00:1::4", "::", "0.0.0.0"] {
        assert!(!attest_from(stranger).await, "{stranger}");
    }
}

/// What an API server says about a token may have the token in it.
#[test]
fn the_log_tells_why_a_token_is_not_good_and_not_the_token() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let settings = LogSettings {
        file: Some(path.clone()),
        ..LogSettings::default()
    };
    let (dispatch, _control) = settings.build(Clock::system()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tracing::dispatcher::with_default(&dispatch, || {
        runtime.block_on(async {
            let server = ApiServer::new();
            server.change(|facts| {
                facts.review =
                    json!({"error": format!("no audience of {TOKEN} fits"), "authenticated": false});
            });
            let attestor = server.attestor();
            attest(&attestor, &payload("demo", TOKEN)).await.unwrap_err();
        });
    });
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains("no audience of"), "{text}");
    assert!(!text.contains("c2VjcmV0"), "{text}");
}

#[tokio::test]
async fn a_token_for_another_cluster_is_not_even_shown_to_this_one() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    let error = attest(&attestor, &payload("other", TOKEN)).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "k8s_psat: not configured for cluster \"other\""
    );
    assert!(server.reviews.lock().unwrap().is_empty());
}

#[tokio::test]
async fn what_is_no_token_is_not_passed_on() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    let long = format!("a.{}.c2VjcmV0", "b".repeat(MAX_TOKEN));
    for bad in [
        payload("demo", ""),
        payload("", TOKEN),
        payload("demo", "c2VjcmV0"),
        payload("demo", "a.b c.c2VjcmV0"),
        payload("demo", &long),
        payload("demo", &"c2VjcmV0".repeat(MAX_PAYLOAD)),
        br#"{"cluster": "demo", "token": ["c2VjcmV0"]}"#.to_vec(),
        b"c2VjcmV0".to_vec(),
        br#""c2VjcmV0""#.to_vec(),
        json!({"cluster": "demo", "token": TOKEN, "more": "x".repeat(MAX_PAYLOAD)})
            .to_string()
            .into_bytes(),
        br#"{"cluster": "demo", "token": "a.b.c2VjcmV0", "token": "a.b.c2VjcmV0"}"#.to_vec(),
    ] {
        let error = attest(&attestor, &bad).await.unwrap_err();
        assert!(matches!(error, AttestError::Invalid(_)), "{error:?}");
    }
    assert!(server.reviews.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_api_server_that_is_away_is_no_refusal() {
    let server = ApiServer::new();
    let attestor = server.attestor();
    server.change(|facts| facts.is_down = true);
    let error = attest(&attestor, &payload("demo", TOKEN)).await.unwrap_err();
    assert!(matches!(error, AttestError::Unavailable { .. }), "{error:?}");
    server.change(|facts| facts.is_down = false);
    attest(&attestor, &payload("demo", TOKEN)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_hangs_is_given_up() {
    let hanging = tower::service_fn(|_request: Request<kube::client::Body>| {
        std::future::pending::<Result<Response, std::convert::Infallible>>()
    });
    let settings = ApiServer::new().attestor().clusters["demo"].settings().clone();
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    let attestor = K8sPsatAttestor::new(trust_domain, vec![(settings, Client::new(hanging, "default"))]);
    let begun = tokio::time::Instant::now();
    let error = attest(&attestor, &payload("demo", TOKEN)).await.unwrap_err();
    assert!(matches!(error, AttestError::Unavailable { .. }), "{error:?}");
    assert_eq!(begun.elapsed().as_secs(), 10);
}
