//! What is looked up of the token's pod and its node, and an API server that does not answer.

use super::*;

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
