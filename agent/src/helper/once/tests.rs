use tonic::Status;

use super::super::testing::{FakeAgent, holds};
use super::*;

const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

#[tokio::test]
async fn everything_is_written_and_done() {
    let agent = FakeAgent::start();
    let svid = agent.send("/a");
    agent.grant_jwt(300);
    let extra = r#"
        daemon_mode = false
        jwt_bundle_file_name = "bundle.json"
        jwt_svids = [{ jwt_audience = "a" jwt_extra_audiences = ["b"] jwt_svid_file_name = "a.token" }]
    "#;
    once(&agent.config(extra), &Clock::system(), LIMIT).await.unwrap();
    assert!(holds(&agent.certs(), &svid));
    assert!(agent.read("bundle.json").starts_with("{\"example.org\":\""));
    assert_eq!(agent.read("a.token").split('.').count(), 3);
    assert_eq!(agent.asked_audiences(), [["a", "b"]]);
}

#[tokio::test]
async fn an_identity_that_comes_late_is_waited_for() {
    let agent = FakeAgent::start();
    let config = agent.config("");
    let clock = Clock::system();
    let grant = async {
        tokio::task::yield_now().await;
        agent.send("/a")
    };
    let (outcome, svid) = tokio::join!(once(&config, &clock, LIMIT), grant);
    outcome.unwrap();
    assert!(holds(&agent.certs(), &svid));
}

#[tokio::test]
async fn no_identity_in_time_says_what_the_agent_said() {
    let agent = FakeAgent::start();
    let limit = Duration::from_millis(200);
    let error = once(&agent.config(""), &Clock::system(), Some(limit))
        .await
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "no X.509-SVID within 200ms: agent answers PermissionDenied: no identity issued"
    );
    assert_eq!(std::fs::read_dir(agent.certs()).unwrap().count(), 0);
}

#[tokio::test]
async fn no_agent_in_time_names_the_trouble() {
    let mut agent = FakeAgent::start();
    agent.crash();
    let limit = Duration::from_millis(200);
    let error = once(&agent.config(""), &Clock::system(), Some(limit))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("no X.509-SVID within 200ms: connect to the agent: "),
        "{error}"
    );
    assert!(error.contains("No such file or directory"), "{error}");
}

#[tokio::test]
async fn what_can_never_succeed_is_not_tried_again() {
    let agent = FakeAgent::start();
    agent.send("/a");
    agent.refuse_jwt(Status::invalid_argument("audience must be specified"));
    let config = agent.config("jwt_svids = [{ jwt_audience = \"a\" jwt_svid_file_name = \"a.token\" }]");
    let error = once(&config, &Clock::system(), None).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "JWT-SVID: agent answers InvalidArgument: audience must be specified"
    );
    std::fs::remove_dir_all(agent.certs()).unwrap();
    let error = once(&config, &Clock::system(), None).await.unwrap_err();
    assert!(matches!(error, OnceError::Swap(_)), "{error}");
}
