//! What is held back, and the command that releases it.

use finial_identity::wire;
use finial_proto::finial::server::registry::v1::registry_client::RegistryClient;
use finial_proto::finial::server::registry::v1::{ReleaseRequest, ReleaseResponse};
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{BatchCreateEntryRequest, CountEntriesRequest};
use sqlx::Connection as _;
use tonic::Code;

use crate::app::testing::{TestServer, entry_below};

async fn release(server: &TestServer) -> ReleaseResponse {
    let mut client = RegistryClient::new(server.local().await);
    client.release(ReleaseRequest {}).await.unwrap().into_inner()
}

/// Makes the store's history another one, as a backup does that is put in its place.
async fn put_another_history(server: &TestServer) {
    let dir = server.socket.parent().unwrap().parent().unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(dir.join("data/datastore.sqlite3"));
    let mut store = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(
        "UPDATE changes SET mark = mark + 1 WHERE n = (SELECT n FROM revision);
         UPDATE revision SET mark = mark + 1;",
    )
    .execute(&mut store)
    .await
    .unwrap();
    store.close().await.unwrap();
}

#[tokio::test]
async fn what_is_held_back_is_taken_over_by_command() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    assert_eq!(release(&server).await.held, "", "nothing is held back");
    put_another_history(&server).await;
    let mut client = EntryClient::new(server.local().await);
    let create = BatchCreateEntryRequest {
        entries: vec![entry_below(wire::spiffe_id_to_wire(&agent.id), server.id("/web"))],
        ..Default::default()
    };
    // The first write finds that the store is not where it left it. The next one is stored, and held back.
    for expected in ["failed to create entry", "OK"] {
        let created = client
            .batch_create_entry(create.clone())
            .await
            .unwrap()
            .into_inner();
        assert_eq!(created.results[0].status.as_ref().unwrap().message, expected);
    }
    let counted = client.count_entries(CountEntriesRequest::default()).await;
    // No count of what was there before: it would pass for the count of what is stored.
    assert_eq!(counted.unwrap_err().message(), "failed to count entries");
    let released = release(&server).await;
    assert!(released.held.contains("another history"), "{released:?}");
    assert_eq!((released.entries, released.agents), (1, 1));
    let counted = client.count_entries(CountEntriesRequest::default()).await;
    assert_eq!(counted.unwrap().into_inner().count, 1);
    assert_eq!(release(&server).await.held, "");
}

#[tokio::test]
async fn nobody_releases_over_the_network() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    for channel in [server.anonymous().await, server.as_agent(&agent).await] {
        let refused = RegistryClient::new(channel).release(ReleaseRequest {}).await;
        assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    }
}
