//! Stopping the server.

use finial_proto::finial::server::sync::v1::WatchRequest;
use finial_proto::finial::server::sync::v1::sync_client::SyncClient;
use tonic::Code;

use crate::app::testing::TestServer;

#[tokio::test]
async fn a_stop_tells_streams_to_go_elsewhere_and_removes_the_socket() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut stream = SyncClient::new(server.as_agent(&agent).await)
        .watch(WatchRequest::default())
        .await
        .unwrap()
        .into_inner();
    stream.message().await.unwrap();
    stream.message().await.unwrap();
    let socket = server.socket.clone();
    assert!(socket.exists());
    let (stopped, ended) = tokio::join!(server.stop(), stream.message());
    stopped.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::Unavailable);
    assert!(!socket.exists());
}
