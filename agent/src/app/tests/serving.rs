//! What a running agent serves, and when it stops.

use std::time::Duration;

use finial_proto::spire::api::types::permission_denied_details::Reason;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use tonic::{Code, Status, Streaming};

use super::*;
use crate::endpoints::client;
use crate::test_server::entry;

fn uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The agent's own process is never made to wait, so the first sync is waited for here.
async fn open(client: &mut client::WorkloadClient) -> Streaming<X509svidResponse> {
    loop {
        match client.fetch_x509svid(X509svidRequest {}).await {
            Ok(stream) => return stream.into_inner(),
            Err(status) => assert_eq!(status.code(), Code::Unavailable, "{status}"),
        }
        tokio::task::yield_now().await;
    }
}

async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<Vec<String>, Status> {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.message())
        .await
        .unwrap()?;
    let svids = message.expect("streams never end with OK").svids;
    Ok(svids.into_iter().map(|svid| svid.spiffe_id).collect())
}

#[tokio::test]
async fn a_whole_agent_serves_a_process_by_its_user_and_follows_the_server() {
    let setup = Setup::new();
    setup.server.put(entry("a", uid()));
    setup.server.put(entry("other", uid() + 1));
    let agent = setup.build().await;
    let (path, mut state) = (agent.socket_path().to_owned(), agent.state());
    during(agent, async {
        state.wait_for(NodeState::is_serving).await.unwrap();
        let mut client = client::workload(&path).await.unwrap();
        let mut stream = open(&mut client).await;
        assert_eq!(next(&mut stream).await.unwrap(), ["spiffe://example.org/a"]);
        setup.server.change(vec![entry("b", uid())], Vec::new());
        let both = ["spiffe://example.org/a", "spiffe://example.org/b"];
        assert_eq!(next(&mut stream).await.unwrap(), both);
        setup
            .server
            .change(Vec::new(), vec!["a".to_owned(), "b".to_owned()]);
        assert_eq!(
            next(&mut stream).await.unwrap_err().code(),
            Code::PermissionDenied
        );
    })
    .await;
    assert!(!path.exists());
}

#[tokio::test]
async fn a_ban_denies_open_streams_and_ends_the_agent() {
    let setup = Setup::new();
    setup.server.put(entry("a", uid()));
    let agent = setup.build().await;
    let (path, mut state) = (agent.socket_path().to_owned(), agent.state());
    let workload = async {
        state.wait_for(NodeState::is_serving).await.unwrap();
        let mut client = client::workload(&path).await.unwrap();
        let mut stream = open(&mut client).await;
        next(&mut stream).await.unwrap();
        setup.server.state().denied = Some(Reason::AgentBanned);
        setup.server.end_streams();
        assert_eq!(
            next(&mut stream).await.unwrap_err().code(),
            Code::PermissionDenied
        );
    };
    let (outcome, ()) = tokio::join!(agent.run(std::future::pending()), workload);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("banned"), "{error}");
}

#[tokio::test]
async fn the_sockets_directory_is_open_to_all_and_secrets_are_not() {
    use std::os::unix::fs::PermissionsExt as _;
    let setup = Setup::new();
    let agent = setup.build().await;
    let mode = |name: &str| {
        let metadata = std::fs::metadata(setup.dir.path().join(name)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode("agent"), mode("agent/public"), mode("agent/public/api.sock")),
        (0o755, 0o755, 0o777)
    );
    let mut state = agent.state();
    during(agent, async {
        state.wait_for(NodeState::is_serving).await.unwrap();
    })
    .await;
    assert_eq!(
        (mode("agent/agent-data.json"), mode("agent/keys.json")),
        (0o600, 0o600)
    );
}

#[tokio::test]
async fn an_agent_in_a_cluster_waits_for_the_bundle_that_the_server_has_yet_to_publish() {
    let setup = Setup::new();
    let path = |name: &str| setup.dir.path().join(name).display().to_string();
    std::fs::remove_file(path("bundle.pem")).unwrap();
    let config = setup.of_a_cluster("", "\"memory\" {}");
    let agent = build(config, Clock::system(), log()).await.unwrap();
    let mut state = agent.state();
    during(agent, async {
        let missing = path("bundle.pem");
        let told = |state: &NodeState| matches!(state, NodeState::Degraded(why) if why.contains(&missing));
        state.wait_for(told).await.unwrap();
        std::fs::write(&missing, setup.server.state().bundle.to_pem()).unwrap();
        state.wait_for(NodeState::is_serving).await.unwrap();
    })
    .await;
}
