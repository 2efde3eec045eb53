//! Over a real socket with a generated client.

use finial_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryResponse};
use finial_proto::envoy::service::secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use super::*;
use crate::endpoints::client;
use crate::endpoints::testing::Served;
use crate::node::NodeState;

async fn sds(served: &Served) -> SecretDiscoveryServiceClient<Channel> {
    SecretDiscoveryServiceClient::new(client::connect(&served.path).await.unwrap())
}

fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        type_url: SECRET_TYPE.to_owned(),
        ..Default::default()
    }
}

/// A stream as Envoy opens it.
struct Stream {
    requests: mpsc::Sender<DiscoveryRequest>,
    responses: Streaming<DiscoveryResponse>,
}

impl Stream {
    async fn open(served: &Served, names: &[&str]) -> Self {
        let (requests, receiver) = mpsc::channel(8);
        requests.send(request(names, "")).await.unwrap();
        let opened = sds(served)
            .await
            .stream_secrets(ReceiverStream::new(receiver))
            .await;
        Self {
            requests,
            responses: opened.unwrap().into_inner(),
        }
    }

    /// The next response, which is acknowledged.
    async fn next(&mut self, names: &[&str]) -> Result<DiscoveryResponse, Status> {
        let response = in_time(self.responses.message()).await?.expect("a response");
        self.requests.send(request(names, &response.nonce)).await.unwrap();
        Ok(response)
    }

    async fn has_no_news(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.responses.message())
            .await
            .is_err()
    }
}

fn leaf(response: &DiscoveryResponse) -> String {
    certificate(&decode(&response.resources[0])).0
}

#[tokio::test]
async fn one_socket_serves_envoy_without_the_security_header() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = Stream::open(&served, &["default"]).await;
    let first = stream.next(&["default"]).await.unwrap();
    assert_eq!(first.resources.len(), 1);
    assert!(stream.has_no_news().await);
    served.world.publish_entries(vec![served.world.entry("a")]);
    let second = stream.next(&["default"]).await.unwrap();
    assert_ne!(leaf(&first), leaf(&second));
    assert_ne!(first.nonce, second.nonce);
}

#[tokio::test]
async fn a_sidecar_that_is_early_gets_its_certificate_as_soon_as_the_entry_is_there() {
    let served = World::new().serve();
    served.world.publish(|snapshot| snapshot.synced_at = None);
    let mut stream = Stream::open(&served, &["default"]).await;
    assert!(stream.has_no_news().await);
    served
        .world
        .publish(|snapshot| snapshot.synced_at = Some(served.world.clock.now()));
    assert!(stream.has_no_news().await);
    served.world.publish_entries(vec![served.world.unissued("a")]);
    assert!(stream.has_no_news().await);
    served.world.publish_entries(vec![served.world.entry("a")]);
    assert_eq!(stream.next(&["default"]).await.unwrap().resources.len(), 1);
    served.world.publish_entries(Vec::new());
    assert!(stream.has_no_news().await, "the stream stays");
    served.world.publish_entries(vec![served.world.entry("a")]);
    stream.next(&["default"]).await.unwrap();
}

#[tokio::test]
async fn a_bundle_waits_for_the_first_sync_unless_the_caller_is_known() {
    let served = World::new().serve();
    served.world.publish(|snapshot| snapshot.synced_at = None);
    let mut stream = Stream::open(&served, &["ROOTCA"]).await;
    assert!(stream.has_no_news().await);
    served.world.publish_entries(vec![served.world.entry("a")]);
    let response = stream.next(&["ROOTCA"]).await.unwrap();
    assert_eq!(trust_domains(&decode(&response.resources[0])).len(), 1);
}

#[tokio::test]
async fn only_streams_that_ask_for_certificates_have_them_issued() {
    let served = World::new().serve();
    let mut bundles = Stream::open(&served, &["ROOTCA"]).await;
    bundles.next(&["ROOTCA"]).await.unwrap();
    assert_eq!(served.world.svids.subscription_count(), 0);
    let mut certificates = Stream::open(&served, &["default", "ROOTCA"]).await;
    certificates.next(&["default", "ROOTCA"]).await.unwrap();
    assert_eq!(served.world.svids.subscription_count(), 1);
}

#[tokio::test]
async fn callers_are_attested_and_refused_alike() {
    let served = World::new().serve();
    *served.world.facts.lock().unwrap() = None;
    let (_requests, receiver) = mpsc::channel::<DiscoveryRequest>(1);
    let refusal = sds(&served)
        .await
        .stream_secrets(ReceiverStream::new(receiver))
        .await;
    assert_eq!(refusal.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_process_that_became_another_gets_nothing_of_what_it_was() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = Stream::open(&served, &["default"]).await;
    stream.next(&["default"]).await.unwrap();
    *served.world.facts.lock().unwrap() = Some(vec!["unix:uid:2000"]);
    served.world.publish_entries(vec![served.world.entry("a")]);
    assert!(stream.has_no_news().await);
}

#[tokio::test]
async fn streams_end_when_the_agent_stops_and_are_denied_when_it_is_banned() {
    let served = World::new().serve();
    let mut stream = Stream::open(&served, &["ROOTCA"]).await;
    stream.next(&["ROOTCA"]).await.unwrap();
    served.world.node.send_replace(NodeState::Banned);
    assert_eq!(stream.next(&[]).await.unwrap_err().code(), Code::PermissionDenied);
    served.world.node.send_replace(NodeState::Serving);
    let mut stream = Stream::open(&served, &["ROOTCA"]).await;
    stream.next(&["ROOTCA"]).await.unwrap();
    let (stopped, status) = tokio::join!(served.stop(), stream.next(&[]));
    let () = stopped;
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_client_that_says_no_more_gets_its_answer_and_the_end() {
    let served = World::new().serve();
    let once = tokio_stream::once(request(&["ROOTCA"], ""));
    let mut responses = sds(&served)
        .await
        .stream_secrets(once)
        .await
        .unwrap()
        .into_inner();
    assert!(in_time(responses.message()).await.unwrap().is_some());
    assert!(in_time(responses.message()).await.unwrap().is_none());
}

#[tokio::test]
async fn all_bundles_need_the_spiffe_validator() {
    let mut world = World::new();
    world.sds.disable_spiffe_cert_validation = true;
    let served = world.serve();
    let mut stream = Stream::open(&served, &["ALL"]).await;
    assert_eq!(
        stream.next(&[]).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
}

#[tokio::test]
async fn two_hundred_envoys_hear_of_a_renewal() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut streams = Vec::new();
    for _ in 0..200 {
        let mut stream = Stream::open(&served, &["default"]).await;
        let first = stream.next(&["default"]).await.unwrap();
        streams.push((stream, leaf(&first)));
    }
    served.world.publish_entries(vec![served.world.entry("a")]);
    for (stream, before) in &mut streams {
        assert_ne!(leaf(&stream.next(&["default"]).await.unwrap()), *before);
    }
}

#[tokio::test]
async fn increments_come_over_the_same_socket() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let (requests, receiver) = mpsc::channel(8);
    let subscribe = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["default".to_owned(), "ROOTCA".to_owned()],
        ..Default::default()
    };
    requests.send(subscribe).await.unwrap();
    let mut client = sds(&served).await;
    let opened = client.delta_secrets(ReceiverStream::new(receiver)).await;
    let mut responses = opened.unwrap().into_inner();
    let first = in_time(responses.message()).await.unwrap().unwrap();
    assert_eq!(first.resources.len(), 2);
    served.world.publish_entries(Vec::new());
    let second = in_time(responses.message()).await.unwrap().unwrap();
    assert_eq!(
        (second.resources.len(), second.removed_resources),
        (0, vec!["default".to_owned()])
    );
}

#[tokio::test]
async fn fetch_answers_once_and_names_what_the_caller_may_not_have() {
    let served = World::new().serve();
    let mut client = sds(&served).await;
    let denied = client
        .fetch_secrets(request(&["ROOTCA", "default", A], ""))
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::InvalidArgument);
    assert_eq!(
        denied.message(),
        "workload is not authorized for the requested identities [\"default\" \"spiffe://example.org/a\"]"
    );
    served.world.publish_entries(vec![served.world.unissued("a")]);
    let mut early = client.clone();
    // It waits for the SVID that is being signed.
    let (answer, ()) = in_time(async {
        tokio::join!(early.fetch_secrets(request(&[], "")), async {
            while served.world.svids.subscription_count() == 0 {
                tokio::task::yield_now().await;
            }
            served.world.publish_entries(vec![served.world.entry("a")]);
        })
    })
    .await;
    let answer = answer.unwrap().into_inner();
    assert_eq!((answer.resources.len(), answer.nonce.as_str()), (2, ""));
    let answer = client
        .fetch_secrets(request(&["default"], ""))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(decode(&answer.resources[0]).name, "default");
}

#[tokio::test]
async fn what_is_no_discovery_request_is_an_invalid_argument() {
    let served = World::new().serve();
    let cluster = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..Default::default()
    };
    let refusal = sds(&served).await.fetch_secrets(cluster).await.unwrap_err();
    assert_eq!(refusal.code(), Code::InvalidArgument);
}
