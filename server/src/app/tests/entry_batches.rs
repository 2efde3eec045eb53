//! Changes of several registration entries in one call.

use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;

use crate::app::testing::{TestServer, entry_below};

#[tokio::test]
async fn one_bad_item_of_a_batch_leaves_the_others() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let good = |path| entry_below(server.id("/agent"), server.id(path));
    let request = pb::BatchCreateEntryRequest {
        entries: vec![
            good("/a"),
            good("/spire/x"),
            types::Entry {
                selectors: Vec::new(),
                ..good("/b")
            },
            types::Entry {
                federates_with: vec!["foreign.org".to_owned()],
                ..good("/c")
            },
            good("/d"),
        ],
        output_mask: None,
    };
    let results = client
        .batch_create_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<i32> = results.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, 3, 3, 13, 0]);
    let missing = &results[3].status.as_ref().unwrap().message;
    assert!(
        missing.contains(r#"unable to find federated bundle "spiffe://foreign.org""#),
        "{missing}"
    );
    assert!(results[1].entry.is_none() && results[4].entry.is_some());
    let count = client
        .count_entries(pb::CountEntriesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .count;
    assert_eq!(count, 2);
}

#[tokio::test]
async fn an_update_changes_what_its_mask_names_and_counts() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let entry = server
        .entry(types::Entry {
            hint: "before".to_owned(),
            x509_svid_ttl: 60,
            ..entry_below(server.id("/agent"), server.id("/web"))
        })
        .await;
    let update = |entry: types::Entry, input_mask| pb::BatchUpdateEntryRequest {
        entries: vec![entry],
        input_mask,
        output_mask: None,
    };
    let mask = types::EntryMask {
        hint: true,
        ..types::EntryMask::default()
    };
    // Without IDs and selectors, which the mask leaves out.
    let partial = types::Entry {
        id: entry.id.clone(),
        hint: "after".to_owned(),
        ..types::Entry::default()
    };
    let mut results = client
        .batch_update_entry(update(partial, Some(mask)))
        .await
        .unwrap()
        .into_inner()
        .results;
    let updated = results.pop().unwrap().entry.unwrap();
    let expected = types::Entry {
        hint: "after".to_owned(),
        revision_number: 1,
        ..entry.clone()
    };
    assert_eq!(updated, expected);

    // Without a mask everything is replaced.
    let whole = types::Entry {
        id: entry.id.clone(),
        ..entry_below(server.id("/agent"), server.id("/web"))
    };
    let mut results = client
        .batch_update_entry(update(whole.clone(), None))
        .await
        .unwrap()
        .into_inner()
        .results;
    let updated = results.pop().unwrap().entry.unwrap();
    assert_eq!(
        (
            updated.hint.as_str(),
            updated.x509_svid_ttl,
            updated.revision_number
        ),
        ("", 0, 2)
    );
    assert_eq!(updated.created_at, entry.created_at);

    let unknown = types::Entry {
        id: "unknown".to_owned(),
        ..whole
    };
    for mask in [None, Some(mask)] {
        let mut results = client
            .batch_update_entry(update(unknown.clone(), mask))
            .await
            .unwrap()
            .into_inner()
            .results;
        let status = results.pop().unwrap().status.unwrap();
        assert_eq!(
            (status.code, status.message.as_str()),
            (5, "failed to update entry")
        );
    }
}

#[tokio::test]
async fn deletes_item_by_item_and_echoes_ids() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let entry = server
        .entry(entry_below(server.id("/agent"), server.id("/web")))
        .await;
    let request = pb::BatchDeleteEntryRequest {
        ids: vec![entry.id.clone(), entry.id.clone(), String::new()],
    };
    let results = client
        .batch_delete_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let codes: Vec<i32> = results.iter().map(|r| r.status.as_ref().unwrap().code).collect();
    assert_eq!(codes, [0, 5, 3]);
    assert_eq!(results[1].id, entry.id);
    assert_eq!(results[1].status.as_ref().unwrap().message, "entry not found");
}

#[tokio::test]
async fn a_refused_update_does_not_shift_the_outcomes_of_the_others() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let first = server
        .entry(entry_below(server.id("/agent"), server.id("/a")))
        .await;
    let last = server
        .entry(entry_below(server.id("/agent"), server.id("/b")))
        .await;
    let hinted = |entry: &types::Entry, hint: &str| types::Entry {
        hint: hint.to_owned(),
        ..entry.clone()
    };
    let unknown = types::Entry {
        id: "unknown".to_owned(),
        ..first.clone()
    };
    let request = pb::BatchUpdateEntryRequest {
        entries: vec![
            hinted(&first, "one"),
            hinted(&first, &"x".repeat(1025)),
            unknown,
            hinted(&last, "two"),
            hinted(&first, "three"),
        ],
        input_mask: None,
        output_mask: None,
    };
    let results = client
        .batch_update_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results;
    let seen: Vec<_> = results
        .iter()
        .map(|result| {
            let entry = result.entry.as_ref();
            (
                result.status.as_ref().unwrap().code,
                entry.map_or("", |entry| entry.hint.as_str()),
                entry.map_or(-1, |entry| entry.revision_number),
            )
        })
        .collect();
    assert_eq!(
        seen,
        [
            (0, "one", 1),
            (3, "", -1),
            (5, "", -1),
            (0, "two", 1),
            (0, "three", 2)
        ]
    );
}
