//! Join tokens, alone and beside another node attestor.

use super::*;

/// An agent of a cluster with this join token besides.
fn with_token(setup: &Setup, token: &str) -> Config {
    let keys = setup.dir.path().join("agent");
    setup.of_a_cluster(
        token,
        &format!("\"disk\" {{ plugin_data {{ directory = {keys:?} }} }}"),
    )
}

#[tokio::test]
async fn a_token_beside_another_attestor_is_for_the_first_time_alone() {
    let setup = Setup::new();
    let config = with_token(&setup, "join_token = \"token\"");
    for attestor in ["join_token", "k8s_psat"] {
        run(config.clone()).await;
        let calls = setup.server.calls("attest ");
        assert_eq!(calls.last().unwrap(), &format!("attest {attestor}"));
        // The next start must attest again, with the same configuration.
        std::fs::remove_file(setup.dir.path().join("agent/keys.json")).unwrap();
    }
    assert_eq!(setup.server.calls("attest ").len(), 2);
}

#[tokio::test]
async fn a_token_that_was_used_before_leaves_the_other_attestor() {
    let setup = Setup::new();
    setup.server.state().tokens.clear();
    run(with_token(&setup, "join_token = \"token\"")).await;
    let calls = setup.server.calls("attest ");
    assert_eq!(calls, ["attest join_token", "attest k8s_psat"]);
}

#[tokio::test]
async fn a_token_file_beside_another_attestor_may_be_gone() {
    let setup = Setup::new();
    let gone = setup.dir.path().join("gone");
    run(with_token(&setup, &format!("join_token_file = {gone:?}"))).await;
    assert_eq!(setup.server.calls("attest "), ["attest k8s_psat"]);
}

#[tokio::test]
async fn a_missing_token_file_is_told_before_anything_starts() {
    let setup = Setup::new();
    std::fs::remove_file(setup.dir.path().join("token")).unwrap();
    let error = build(Config::embedded(setup.essentials()), Clock::system(), log())
        .await
        .unwrap_err();
    assert!(matches!(error, BuildError::JoinToken(_)), "{error}");
    assert!(!setup.dir.path().join("agent/public/api.sock").exists());
}
