//! Registration entries.

use finial_proto::spire::api::server::bundle::v1::BatchSetFederatedBundleRequest;
use finial_proto::spire::api::server::bundle::v1::bundle_client::BundleClient;
use finial_proto::spire::api::server::entry::v1 as pb;
use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::types;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use tonic::transport::Channel;

use crate::app::testing::{TestServer, entry_below, selector};

async fn create(
    client: &mut EntryClient<Channel>,
    entry: types::Entry,
) -> pb::batch_create_entry_response::Result {
    let request = pb::BatchCreateEntryRequest {
        entries: vec![entry],
        output_mask: None,
    };
    client
        .batch_create_entry(request)
        .await
        .unwrap()
        .into_inner()
        .results
        .pop()
        .unwrap()
}

#[tokio::test]
async fn creates_and_reads_back_an_entry_with_server_made_fields() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let wanted = types::Entry {
        revision_number: 7,
        created_at: 7,
        hint: "internal".to_owned(),
        dns_names: vec!["a.example.org".to_owned()],
        ..entry_below(server.id("/agent"), server.id("/web"))
    };
    let result = create(&mut client, wanted).await;
    assert_eq!(result.status.unwrap().message, "OK");
    let entry = result.entry.unwrap();
    assert_eq!(entry.id.len(), 36);
    assert_eq!(entry.revision_number, 0);
    assert!(entry.created_at > 1_600_000_000);
    let read = client
        .get_entry(pb::GetEntryRequest {
            id: entry.id.clone(),
            output_mask: None,
        })
        .await
        .unwrap()
        .into_inner();
    assert_eq!(read, entry);
    let masked = client
        .get_entry(pb::GetEntryRequest {
            id: entry.id.clone(),
            output_mask: Some(types::EntryMask {
                hint: true,
                ..types::EntryMask::default()
            }),
        })
        .await
        .unwrap()
        .into_inner();
    let expected = types::Entry {
        id: entry.id,
        hint: "internal".to_owned(),
        ..types::Entry::default()
    };
    assert_eq!(masked, expected);
}

#[tokio::test]
async fn a_similar_entry_is_returned_and_a_taken_id_is_not() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    let first = types::Entry {
        id: "one".to_owned(),
        ..entry_below(server.id("/agent"), server.id("/web"))
    };
    create(&mut client, first.clone()).await;
    let similar = create(
        &mut client,
        types::Entry {
            id: "two".to_owned(),
            ..first.clone()
        },
    )
    .await;
    let status = similar.status.unwrap();
    assert_eq!(
        (status.code, status.message.as_str()),
        (6, "similar entry already exists")
    );
    assert_eq!(similar.entry.unwrap().id, "one");
    let taken = create(
        &mut client,
        types::Entry {
            spiffe_id: Some(server.id("/other")),
            ..first
        },
    )
    .await;
    assert_eq!((taken.status.unwrap().code, taken.entry), (6, None));
}

#[tokio::test]
async fn a_change_is_in_force_when_its_caller_is_answered() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mut admin = EntryClient::new(server.local().await);
    let mut as_agent = EntryClient::new(server.as_agent(&agent).await);
    for n in 0..20 {
        let entry = entry_below(server.id(agent.id.path()), server.id(&format!("/w{n}")));
        let entry = create(&mut admin, entry).await.entry.unwrap();
        let got = authorized(&mut as_agent).await;
        assert_eq!(got.len(), 1, "round {n}: not there after its creation");
        let delete = pb::BatchDeleteEntryRequest { ids: vec![entry.id] };
        admin.batch_delete_entry(delete).await.unwrap();
        assert!(
            authorized(&mut as_agent).await.is_empty(),
            "round {n}: there after its deletion"
        );
    }
}

async fn authorized(client: &mut EntryClient<Channel>) -> Vec<types::Entry> {
    client
        .get_authorized_entries(pb::GetAuthorizedEntriesRequest::default())
        .await
        .unwrap()
        .into_inner()
        .entries
}

#[tokio::test]
async fn lists_by_filter_and_page_in_order_of_creation() {
    let server = TestServer::start().await;
    let mut client = EntryClient::new(server.local().await);
    for n in 0..5 {
        let entry = types::Entry {
            id: format!("e{n}"),
            selectors: vec![selector("unix:uid:1"), selector(&format!("unix:gid:{n}"))],
            downstream: n == 3,
            ..entry_below(
                server.id(&format!("/agent{}", n % 2)),
                server.id(&format!("/w{n}")),
            )
        };
        server.entry(entry).await;
    }
    let list =
        |filter: pb::list_entries_request::Filter, page_size, page_token: &str| pb::ListEntriesRequest {
            filter: Some(filter),
            output_mask: Some(types::EntryMask::default()),
            page_size,
            page_token: page_token.to_owned(),
        };
    let ids = |response: &pb::ListEntriesResponse| -> Vec<String> {
        response.entries.iter().map(|entry| entry.id.clone()).collect()
    };
    let none = pb::list_entries_request::Filter::default;
    let page = client
        .list_entries(list(none(), 2, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e0", "e1"]);
    let page = client
        .list_entries(list(none(), 2, &page.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e2", "e3"]);
    let page = client
        .list_entries(list(none(), 2, &page.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e4"]);
    let page = client
        .list_entries(list(none(), 2, &page.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert!(page.entries.is_empty() && page.next_page_token.is_empty());

    let by_parent = pb::list_entries_request::Filter {
        by_parent_id: Some(server.id("/agent1")),
        ..none()
    };
    let page = client
        .list_entries(list(by_parent.clone(), 1, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e1"]);
    let page = client
        .list_entries(list(by_parent, 5, &page.next_page_token))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e3"]);
    let by_selectors = pb::list_entries_request::Filter {
        by_selectors: Some(types::SelectorMatch {
            selectors: vec![selector("unix:gid:2")],
            r#match: 2,
        }),
        ..none()
    };
    let page = client
        .list_entries(list(by_selectors, 0, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e2"]);
    let downstream = pb::list_entries_request::Filter {
        by_downstream: Some(true),
        ..none()
    };
    let page = client
        .list_entries(list(downstream, 0, ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(ids(&page), ["e3"]);

    let refusals = [
        pb::list_entries_request::Filter {
            by_selectors: Some(types::SelectorMatch::default()),
            ..none()
        },
        pb::list_entries_request::Filter {
            by_federates_with: Some(types::FederatesWithMatch::default()),
            ..none()
        },
        pb::list_entries_request::Filter {
            by_spiffe_id: Some(server.id("/spire/agent/a/b")),
            ..none()
        },
        pb::list_entries_request::Filter {
            by_parent_id: Some(server.id("")),
            ..none()
        },
    ];
    for filter in refusals {
        let refused = client
            .list_entries(list(filter.clone(), 0, ""))
            .await
            .unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{filter:?}");
    }
}

#[tokio::test]
async fn an_agent_gets_entries_below_it_and_below_its_aliases() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let below = server
        .entry(entry_below(server.id(agent.id.path()), server.id("/a")))
        .await;
    let deeper = server.entry(entry_below(server.id("/a"), server.id("/b"))).await;
    server
        .entry(entry_below(server.id("/elsewhere"), server.id("/c")))
        .await;
    let mut client = EntryClient::new(server.as_agent(&agent).await);
    // Until the registry has taken over the commits above.
    let mut found = Vec::new();
    for _ in 0..500 {
        let answer = client
            .get_authorized_entries(pb::GetAuthorizedEntriesRequest::default())
            .await;
        found = answer.unwrap().into_inner().entries;
        if found.len() == 2 {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut ids: Vec<_> = found.into_iter().map(|entry| entry.id).collect();
    ids.sort();
    let mut expected = vec![below.id, deeper.id];
    expected.sort();
    assert_eq!(ids, expected);
}

#[tokio::test]
async fn syncs_a_small_set_at_once_and_a_large_one_in_pages() {
    let server = TestServer::start().await;
    let agent = server.attest().await;
    let mask = Some(types::EntryMask {
        revision_number: true,
        spiffe_id: true,
        ..types::EntryMask::default()
    });
    let request = |ids: Vec<String>| pb::SyncAuthorizedEntriesRequest {
        output_mask: mask,
        ids,
    };
    let mut client = EntryClient::new(server.as_agent(&agent).await);
    let mut small = client
        .sync_authorized_entries(tokio_stream::once(request(Vec::new())))
        .await
        .unwrap()
        .into_inner();
    let only = small.message().await.unwrap().unwrap();
    assert!(only.entries.is_empty() && only.entry_revisions.is_empty() && !only.more);
    assert!(small.message().await.unwrap().is_none());

    let mut admin = EntryClient::new(server.local().await);
    let entries = (0..501)
        .map(|n| types::Entry {
            id: format!("e{n:03}"),
            ..entry_below(server.id(agent.id.path()), server.id(&format!("/w{n}")))
        })
        .collect();
    let batch = pb::BatchCreateEntryRequest {
        entries,
        output_mask: Some(types::EntryMask::default()),
    };
    admin.batch_create_entry(batch).await.unwrap();
    // Listing waits until memory has what was written.
    admin
        .count_entries(pb::CountEntriesRequest::default())
        .await
        .unwrap();

    let (sender, receiver) = mpsc::channel(4);
    sender.send(request(Vec::new())).await.unwrap();
    let mut large = client
        .sync_authorized_entries(ReceiverStream::new(receiver))
        .await
        .unwrap()
        .into_inner();
    let first = large.message().await.unwrap().unwrap();
    assert_eq!(
        (first.entry_revisions.len(), first.more, first.entries.len()),
        (500, true, 0)
    );
    let second = large.message().await.unwrap().unwrap();
    assert_eq!((second.entry_revisions.len(), second.more), (1, false));
    sender
        .send(request(vec![
            "e007".to_owned(),
            "unknown".to_owned(),
            "e007".to_owned(),
        ]))
        .await
        .unwrap();
    let wanted = large.message().await.unwrap().unwrap();
    assert_eq!((wanted.entries.len(), wanted.more), (1, false));
    assert_eq!(wanted.entries[0].spiffe_id.as_ref().unwrap().path, "/w7");
    sender.send(request(vec!["unknown".to_owned()])).await.unwrap();
    let nothing = large.message().await.unwrap().unwrap();
    assert!(nothing.entries.is_empty() && !nothing.more);
    drop(sender);
    assert!(large.message().await.unwrap().is_none());

    for wrong in [
        request(vec!["e007".to_owned()]),
        pb::SyncAuthorizedEntriesRequest {
            output_mask: Some(types::EntryMask::default()),
            ids: Vec::new(),
        },
    ] {
        let mut stream = client
            .sync_authorized_entries(tokio_stream::once(wrong))
            .await
            .unwrap()
            .into_inner();
        assert_eq!(stream.message().await.unwrap_err().code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn an_entry_federates_once_the_bundle_is_there() {
    let server = TestServer::start().await;
    let foreign = types::Bundle {
        trust_domain: "foreign.org".to_owned(),
        ..types::Bundle::default()
    };
    BundleClient::new(server.local().await)
        .batch_set_federated_bundle(BatchSetFederatedBundleRequest {
            bundle: vec![foreign],
            output_mask: None,
        })
        .await
        .unwrap();
    let entry = server
        .entry(types::Entry {
            federates_with: vec!["spiffe://foreign.org".to_owned()],
            ..entry_below(server.id("/agent"), server.id("/web"))
        })
        .await;
    assert_eq!(entry.federates_with, ["foreign.org"]);
}
