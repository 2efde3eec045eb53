#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
use data_encoding::BASE64;
use tokio::sync::oneshot;
use tonic::Status;

use super::super::testing::{FakeAgent, eventually, holds};
use super::*;

/// Runs a daemon while `test` does.
async fn with_daemon(agent: &mut FakeAgent, extra: &str, test: impl AsyncFnOnce(&mut FakeAgent)) {
    let config = agent.config(extra);
    let daemon = build(config, Clock::system(), false).await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let running = daemon.run(async {
        drop(stopped.await);
        Signal::TERM
    });
    let testing = async {
        test(agent).await;
        drop(stop);
    };
    let (outcome, ()) = tokio::join!(running, testing);
    outcome.unwrap();
}

#[tokio::test]
async fn files_follow_the_agent_and_survive_its_crash_and_its_denial() {
    let mut agent = FakeAgent::start();
    with_daemon(&mut agent, "", async |agent| {
        let certs = agent.certs();
        let first = agent.send("/a");
        eventually(|| holds(&certs, &first), || agent.read("svid.pem")).await;
        assert_eq!(agent.read("ca.pem"), agent.authority.bundle().to_pem());
        let second = agent.send("/b");
        eventually(|| holds(&certs, &second), || agent.read("svid.pem")).await;

        agent.answer(Err(Status::permission_denied("no identity issued")));
        agent.crash();
        agent.listen();
        assert!(holds(&certs, &second));
        let third = agent.send("/c");
        eventually(|| holds(&certs, &third), || agent.read("svid.pem")).await;
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_changes_nothing() {
    let mut agent = FakeAgent::start();
    with_daemon(&mut agent, "", async |agent| {
        let certs = agent.certs();
        let first = agent.send("/a");
        eventually(|| holds(&certs, &first), || agent.read("svid.pem")).await;
        let mut wrong = agent.response(&agent.authority.svid("/b"));
        wrong.svids[0].x509_svid_key = agent.authority.svid("/c").pkcs8_der().to_vec().into();
        agent.answer(Ok(wrong));
        // A message that comes behind it shows that it was passed over.
        let last = agent.send("/d");
        eventually(|| holds(&certs, &last), || agent.read("svid.pem")).await;
    })
    .await;
}

#[tokio::test]
async fn the_jwt_bundle_is_an_object_of_jwk_sets_and_tokens_are_renewed() {
    let mut agent = FakeAgent::start();
    agent.grant_jwt(2);
    let extra = r#"
        jwt_bundle_file_name = "bundle.json"
        jwt_svids = [
            { jwt_audience = "a" jwt_extra_audiences = ["b"] jwt_svid_file_name = "ab.token" },
            { jwt_audience = "c" jwt_svid_file_name = "c.token" },
        ]
        jwt_svid_file_mode = 0640
    "#;
    with_daemon(&mut agent, extra, async |agent| {
        eventually(|| !agent.read("c.token").is_empty(), String::new).await;
        eventually(|| !agent.read("bundle.json").is_empty(), String::new).await;
        let bundle: serde_json::Value = serde_json::from_str(&agent.read("bundle.json")).unwrap();
        let jwks = BASE64
            .decode(bundle["example.org"].as_str().unwrap().as_bytes())
            .unwrap();
        let jwks: serde_json::Value = serde_json::from_slice(&jwks).unwrap();
        assert_eq!(jwks["keys"][0]["kid"], "key-1");
        eventually(|| !agent.read("ab.token").is_empty(), String::new).await;
        let first = agent.read("ab.token");
        eventually(|| agent.read("ab.token") != first, String::new).await;
        let asked = agent.asked_audiences();
        assert!(asked.contains(&vec!["a".to_owned(), "b".to_owned()]), "{asked:?}");
        assert!(asked.contains(&vec!["c".to_owned()]), "{asked:?}");
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = std::fs::metadata(agent.certs().join("c.token")).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o640);
        // What cannot be renewed stays.
        agent.refuse_jwt(Status::permission_denied("no identity issued"));
        let asked = agent.asked_audiences().len();
        eventually(|| agent.asked_audiences().len() > asked + 1, String::new).await;
        assert!(!agent.read("c.token").is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_directory_that_comes_late_is_written_to_and_the_command_starts_then() {
    let mut agent = FakeAgent::start();
    std::fs::remove_dir(agent.certs()).unwrap();
    let started = agent.socket().with_extension("started");
    let extra = format!(
        "cmd = \"/usr/bin/env\" cmd_args = \"touch {}\"",
        started.display()
    );
    with_daemon(&mut agent, &extra, async |agent| {
        let certs = agent.certs();
        let svid = agent.send("/a");
        std::fs::create_dir(&certs).unwrap();
        eventually(|| holds(&certs, &svid), || agent.read("svid.pem")).await;
        eventually(|| started.exists(), String::new).await;
    })
    .await;
}

#[tokio::test]
async fn probes_are_answered_on_every_address_and_a_taken_port_is_told() {
    let taken = listen(0).await.unwrap();
    let port = taken.local_addr().unwrap().port();
    assert!(tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok());
    let agent = FakeAgent::start();
    let extra = format!("health_checks {{ listener_enabled = true bind_port = {port} }}");
    let error = build(agent.config(&extra), Clock::system(), false)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), format!("health_checks: listen on port {port}"));
}
