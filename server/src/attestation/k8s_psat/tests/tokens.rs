//! Which tokens are good: what the API server says in its review, and what is not shown to it.

use finial_identity::process::Clock;

use super::*;
use crate::telemetry::LogSettings;

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
