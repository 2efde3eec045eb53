//! From the commit of an entry to the new SVID in an open stream: pushed, not polled.

use std::time::{Duration, Instant};

use finial_proto::spire::api::server::entry::v1::entry_client::EntryClient;
use finial_proto::spire::api::server::entry::v1::{BatchUpdateEntryRequest, GetEntryRequest};
use finial_proto::spire::api::types::EntryMask;
use finial_proto::workload::X509svidRequest;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_tests::{Entry, Stack, StackOptions};
use tonic::Request;

use crate::wire::unix;

const CHANGES: usize = 200;

/// How often an agent of the default configuration polls a server that can not push.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

/// An agent that polled would see a change after half an interval in the mean, so 99 of 100 changes within a fifth of
/// one can only have been pushed.
#[tokio::test]
async fn a_change_reaches_an_open_stream_by_push() {
    let stack = Stack::start(StackOptions::default());
    let id = stack.create_entry(&Entry::for_me("/me"));
    stack.wait_identity("/me");

    let mut entries = EntryClient::new(unix(stack.server_socket()).await.expect("the private socket"));
    let mut workload =
        SpiffeWorkloadApiClient::new(unix(stack.agent_socket()).await.expect("the Workload API"));
    let mut request = Request::new(X509svidRequest {});
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().expect("an ASCII value"));
    let mut stream = workload
        .fetch_x509svid(request)
        .await
        .expect("a stream")
        .into_inner();
    let mut last = leaf(&mut stream).await;

    let mut entry = entries
        .get_entry(GetEntryRequest {
            id,
            output_mask: None,
        })
        .await
        .expect("the entry is there")
        .into_inner();
    let mut times = Vec::with_capacity(CHANGES);
    for change in 0..CHANGES {
        entry.dns_names = vec![format!("change-{change}.example.org")];
        let start = Instant::now();
        let answer = entries
            .batch_update_entry(BatchUpdateEntryRequest {
                entries: vec![entry.clone()],
                input_mask: Some(EntryMask {
                    dns_names: true,
                    ..EntryMask::default()
                }),
                output_mask: None,
            })
            .await
            .expect("an update")
            .into_inner();
        assert_eq!(answer.results[0].status.as_ref().expect("a status").code, 0);
        loop {
            let now = leaf(&mut stream).await;
            if now != last {
                last = now;
                break;
            }
        }
        times.push(start.elapsed());
    }
    let trip = round_trip(&mut entries, &entry.id).await;
    times.sort();
    let (p50, p99) = (times[CHANGES / 2], times[CHANGES * 99 / 100]);
    println!(
        "update sent -> new SVID in the open stream, {CHANGES} changes: p50 {p50:?}, p99 {p99:?}, round trip {trip:?}, worst {:?}",
        times[CHANGES - 1]
    );
    assert!(
        p99 < SYNC_INTERVAL / 5,
        "p99 {p99:?} against a sync interval of {SYNC_INTERVAL:?}: changes are not pushed"
    );
}

/// The median time of a call that changes nothing.
async fn round_trip(entries: &mut EntryClient<tonic::transport::Channel>, id: &str) -> Duration {
    let mut times = Vec::with_capacity(CHANGES);
    for _ in 0..CHANGES {
        let start = Instant::now();
        let request = GetEntryRequest {
            id: id.to_owned(),
            output_mask: None,
        };
        entries.get_entry(request).await.expect("the entry is there");
        times.push(start.elapsed());
    }
    times.sort();
    times[CHANGES / 2]
}

async fn leaf(stream: &mut tonic::Streaming<finial_proto::workload::X509svidResponse>) -> Vec<u8> {
    let message = tokio::time::timeout(Duration::from_secs(30), stream.message())
        .await
        .expect("an answer in time");
    let message = message
        .expect("the stream stays open")
        .expect("the stream does not end");
    message.svids[0].x509_svid.to_vec()
}
