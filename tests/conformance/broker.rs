//! SPIFFE_Broker_Endpoint.md and SPIFFE_Broker_API.md: the agent with a broker that is this very process, which asks for
//! itself and for processes that it starts.

use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use finial_identity::x509::Certificate;
use finial_proto::google::rpc;
use finial_proto::spiffe::broker as pb;
use finial_proto::spiffe::broker::api_client::ApiClient;
use finial_tests::{Entry, Stack, StackOptions, free_port};
use prost::Message;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::fixture::{FOREIGN, secured as for_workload_api};
use crate::fixture::{Foreign, audience, first, set_bundle, workload_api};
use crate::wire::{Identity, call_with, tls, tls_unix, unix};

const PATIENCE: Duration = Duration::from_secs(30);
const HEADER: (&str, &str) = ("broker.spiffe.io", "true");
const PID: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";
const OBJECT: &str = "type.googleapis.com/spiffe.broker.KubernetesObjectReference";
/// The identities of every process of this user, of which the first is the broker's.
const BROKER: &str = "/broker";
const TWINS: [&str; 2] = ["/twin/a", "/twin/b"];
const UNLISTED: &str = "/unlisted";

/// The program with its Broker Endpoint, for all tests here.
#[derive(Debug)]
struct Setup {
    stack: Stack,
    port: u16,
    dir: TempDir,
}

fn shared() -> Arc<Setup> {
    static SHARED: Mutex<Weak<Setup>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let setup = Arc::new(Setup::start());
        *shared = Arc::downgrade(&setup);
        setup
    })
}

impl Setup {
    fn start() -> Self {
        let dir = TempDir::with_prefix("finial-broker-").expect("a temporary directory");
        let port = free_port();
        let agent = format!(
            r#"experimental {{ broker {{
              socket_path = "{dir}/broker.sock"
              bind_address = "127.0.0.1:{port}"
              brokers = [
                {{ id = "spiffe://example.org/broker", allowed_reference_types = [ {{ type_url = "*", allow_over_tcp = true }} ] }},
                {{ id = "spiffe://example.org/twin/a", allowed_reference_types = [ {{ type_url = "{PID}" }} ] }},
              ]
            }} }}"#,
            dir = dir.path().display()
        );
        let stack = Stack::start(StackOptions {
            agent,
            ..StackOptions::default()
        });
        let foreign = Foreign::new();
        set_bundle(&stack, FOREIGN, &foreign.bundle().to_spiffe_json());
        let foreign_id = format!("spiffe://{FOREIGN}");
        stack.create_entry(&Entry::for_me(BROKER).with(&["-federatesWith", &foreign_id]));
        for path in TWINS {
            // Of those with one hint the oldest is given, and of equally old ones, as here, that of the lowest ID.
            let id = path.replace('/', "-");
            stack.create_entry(&Entry::for_me(path).with(&["-hint", "twin", "-entryID", &id]));
        }
        stack.create_entry(&Entry::for_me(UNLISTED));
        stack.wait_identity(UNLISTED);
        stack.wait_identity(BROKER);
        stack.wait_identity(TWINS[0]);
        Setup { stack, port, dir }
    }

    async fn identity(&self, path: &str) -> Identity {
        let request = for_workload_api(finial_proto::workload::X509svidRequest {});
        let stream = workload_api(&self.stack).await.fetch_x509svid(request).await;
        let svids = first(stream).await.expect("this user has identities").svids;
        let id = self.stack.id(path);
        let svid = svids
            .into_iter()
            .find(|svid| svid.spiffe_id == id)
            .expect("the identity was waited for");
        let chain = Certificate::parse_many(&svid.x509_svid).expect("DER certificates back to back");
        Identity {
            chain: chain.iter().map(|one| one.der().clone()).collect(),
            key: PrivatePkcs8KeyDer::from(svid.x509_svid_key.to_vec()).into(),
        }
    }

    async fn unix(&self, path: &str) -> Channel {
        let identity = self.identity(path).await;
        tls_unix(self.dir.path().join("broker.sock"), Some(identity))
            .await
            .expect("a broker may connect")
    }

    async fn client(&self) -> ApiClient<Channel> {
        ApiClient::new(self.unix(BROKER).await)
    }
}

/// A process of this user that does nothing, and ends with the test.
struct Workload(Child);

impl Workload {
    fn start() -> Self {
        let mut command = Command::new("sleep");
        command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
        Workload(command.spawn().expect("sleep starts"))
    }

    fn reference(&self) -> Option<pb::WorkloadReference> {
        pid(self.0.id())
    }

    fn end(&mut self) {
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

impl Drop for Workload {
    fn drop(&mut self) {
        self.end();
    }
}

/// Covers BEP-02, BEP-22, BRK-01.
#[tokio::test]
async fn the_api_is_served_over_grpc_on_a_unix_socket_and_on_tcp() {
    let setup = shared();
    let over_tcp = tls(setup.port, Some(setup.identity(BROKER).await))
        .await
        .expect("TCP");
    let workload = Workload::start();
    for channel in [setup.unix(BROKER).await, over_tcp] {
        let mut client = ApiClient::new(channel);
        let svids = client.subscribe_to_x509svid(secured(pb::SubscribeToX509svidRequest {
            reference: workload.reference(),
        }));
        assert!(!first(svids.await).await.expect("SVIDs").svids.is_empty());
        let bundles = client.subscribe_to_x509_bundles(secured(pb::SubscribeToX509BundlesRequest {
            reference: workload.reference(),
        }));
        assert!(!first(bundles.await).await.expect("bundles").bundles.is_empty());
        let bundles = client.subscribe_to_jwt_bundles(secured(pb::SubscribeToJwtBundlesRequest {
            reference: workload.reference(),
        }));
        assert!(!first(bundles.await).await.expect("bundles").bundles.is_empty());
        assert!(!tokens(&mut client, workload.reference(), "").await.is_empty());
    }
}

/// Covers BEP-05.
#[tokio::test]
async fn bep_05_a_request_without_the_metadata_is_refused() {
    let setup = shared();
    let channel = setup.unix(BROKER).await;
    let request = pb::SubscribeToX509svidRequest {
        reference: pid(std::process::id()),
    };
    let method = "/spiffe.broker.API/SubscribeToX509SVID";
    for metadata in [
        &[][..],
        &[(HEADER.0, "TRUE")],
        &[HEADER, HEADER],
        &[("workload.spiffe.io", "true")],
    ] {
        let status = call_with(&channel, method, request.encode_to_vec(), metadata).await;
        assert_eq!(status.expect_err("refused").code(), Code::InvalidArgument);
    }
}

/// Covers BEP-06, BEP-14, BRK-28.
#[tokio::test]
async fn bep_06_only_listed_brokers_with_an_x509_svid_get_in() {
    let setup = shared();
    let unlisted = setup.identity(UNLISTED).await;
    let socket = setup.dir.path().join("broker.sock");
    for who in [None, Some(unlisted)] {
        for channel in [
            tls_unix(socket.clone(), who.clone()).await,
            tls(setup.port, who.clone()).await,
        ] {
            let Ok(channel) = channel else { continue };
            let mut client = ApiClient::new(channel);
            let request = secured(pb::SubscribeToX509svidRequest { reference: None });
            let status = client.subscribe_to_x509svid(request).await.map(drop);
            let refused = status.expect_err("refused");
            let cause = std::error::Error::source(&refused);
            assert!(cause.is_some(), "a broken connection, not an answer: {refused}");
        }
    }
    if let Ok(plain) = unix(socket).await {
        let status = call_with(&plain, "/a.B/C", Vec::new(), &[HEADER]).await;
        let refused = status.expect_err("nothing is said in plain text");
        assert_ne!(refused.code(), Code::Unimplemented, "{refused}");
    }
}

/// Covers BRK-07, BRK-09, BRK-15, BRK-26, BRK-42, BRK-43, BRK-45.
#[tokio::test]
async fn brk_42_and_43_tell_references_that_are_wrong_from_workloads_that_are_not_there() {
    let setup = shared();
    let mut client = setup.client().await;
    let mut gone = Workload::start();
    gone.end();
    let invalid = (Code::InvalidArgument, "WORKLOAD_REFERENCE_INVALID".to_owned());
    for (reference, expected) in [
        (None, invalid.clone()),
        (any("", &[]), invalid.clone()),
        (
            any(PID, &pb::WorkloadPidReference { pid: 0 }.encode_to_vec()),
            invalid.clone(),
        ),
        (
            any(PID, &pb::WorkloadPidReference { pid: -5 }.encode_to_vec()),
            invalid.clone(),
        ),
        (any(PID, b"\xff\xff"), invalid.clone()),
        (any(OBJECT, &[]), invalid.clone()),
        (any("type.googleapis.com/google.protobuf.Empty", &[]), invalid),
        (
            gone.reference(),
            (Code::NotFound, "WORKLOAD_NOT_FOUND".to_owned()),
        ),
    ] {
        let request = secured(pb::SubscribeToX509svidRequest { reference });
        let status = client.subscribe_to_x509svid(request).await.map(drop);
        let status = status.expect_err("refused");
        assert_eq!((status.code(), reason(&status)), expected);
    }
}

/// Covers BRK-04, BRK-10, BRK-11, BRK-25, BRK-47.
#[tokio::test]
async fn brk_04_a_pid_names_one_process_and_brk_47_its_stream_ends_with_it() {
    let setup = shared();
    let mut client = setup.client().await;
    let (mut one, two) = (Workload::start(), Workload::start());
    let mut of_one = subscribe(&mut client, one.reference()).await;
    let mut of_two = subscribe(&mut client, two.reference()).await;
    next(&mut of_one).await.expect("a message");
    next(&mut of_two).await.expect("a message");
    one.end();
    let status = next(&mut of_one).await.expect_err("it has ended");
    assert_eq!(
        (status.code(), reason(&status).as_str()),
        (Code::NotFound, "WORKLOAD_NOT_FOUND")
    );
    let nothing = tokio::time::timeout(Duration::from_millis(200), of_two.message()).await;
    assert!(nothing.is_err(), "the other lives: {nothing:?}");
}

/// Covers BRK-33, BRK-35, BRK-51, BRK-52, BRK-53, BRK-58, BRK-73, BRK-74.
#[tokio::test]
async fn brk_51_the_first_message_is_the_whole_state_at_once() {
    let setup = shared();
    let mut client = setup.client().await;
    let workload = Workload::start();
    let mut stream = subscribe(&mut client, workload.reference()).await;
    let message = next(&mut stream).await.expect("a message");
    let ids: Vec<&str> = message.svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
    let twin = setup.stack.id(TWINS[0]);
    assert!(ids.contains(&setup.stack.id(BROKER).as_str()), "{ids:?}");
    // Of two identities with one hint the older stays.
    let hinted: Vec<_> = message
        .svids
        .iter()
        .filter(|svid| !svid.hint.is_empty())
        .collect();
    assert_eq!(hinted.len(), 1);
    assert_eq!(
        (hinted[0].spiffe_id.as_str(), hinted[0].hint.as_str()),
        (twin.as_str(), "twin")
    );
    for svid in &message.svids {
        let chain = Certificate::parse_many(&svid.x509_svid).expect("DER certificates back to back");
        assert_eq!(chain[0].spiffe_id().expect("an SVID").as_str(), svid.spiffe_id);
        assert!(!svid.x509_svid_key.is_empty());
        assert!(Certificate::parse_many(&svid.bundle).is_ok_and(|bundle| !bundle.is_empty()));
    }
    let (own, foreign) = ("spiffe://example.org", format!("spiffe://{FOREIGN}"));
    assert_eq!(message.federated_bundles.keys().collect::<Vec<_>>(), [&foreign]);

    let request = secured(pb::SubscribeToX509BundlesRequest {
        reference: workload.reference(),
    });
    let x509 = first(client.subscribe_to_x509_bundles(request).await)
        .await
        .expect("bundles");
    assert!(Certificate::parse_many(&x509.bundles[own]).is_ok_and(|bundle| !bundle.is_empty()));
    assert!(x509.bundles.contains_key(&foreign));
    let request = secured(pb::SubscribeToJwtBundlesRequest {
        reference: workload.reference(),
    });
    let jwt = first(client.subscribe_to_jwt_bundles(request).await)
        .await
        .expect("bundles");
    let keys: serde_json::Value = serde_json::from_slice(&jwt.bundles[own]).expect("a JWK Set");
    let keys = keys["keys"].as_array().expect("keys");
    assert!(!keys.is_empty());
    assert!(
        keys.iter()
            .all(|key| key["use"].as_str().is_none_or(|uses| uses == "jwt-svid")),
        "{keys:?}"
    );
}

/// Covers BRK-64, BRK-65, BRK-66, BRK-67, BRK-68.
#[tokio::test]
async fn brk_64_tokens_are_for_the_audience_and_for_all_identities_or_the_one_named() {
    let setup = shared();
    let mut client = setup.client().await;
    let workload = Workload::start();
    let all = tokens(&mut client, workload.reference(), "").await;
    let mut ids: Vec<&str> = all.iter().map(|token| token.spiffe_id.as_str()).collect();
    ids.sort_unstable();
    let expected = [BROKER, TWINS[0], UNLISTED].map(|path| setup.stack.id(path));
    assert_eq!(ids, expected);
    for token in &all {
        assert_eq!(
            audience(&token.svid),
            ["cache".to_owned(), "db".to_owned()].into()
        );
    }
    let one = tokens(&mut client, workload.reference(), &setup.stack.id(BROKER)).await;
    assert_eq!(one.len(), 1);
    assert_eq!(one[0].spiffe_id, setup.stack.id(BROKER));
    let request = secured(pb::FetchJwtsvidRequest {
        reference: workload.reference(),
        audience: Vec::new(),
        spiffe_id: String::new(),
    });
    let status = client
        .fetch_jwtsvid(request)
        .await
        .map(drop)
        .expect_err("no audience");
    assert_eq!(status.code(), Code::InvalidArgument);
}

/// Covers BEP-20.
#[tokio::test]
async fn bep_20_a_broker_that_is_known_and_may_not_is_denied() {
    let setup = shared();
    let object = any(OBJECT, &[]);
    let mut client = ApiClient::new(setup.unix(TWINS[0]).await);
    let request = secured(pb::SubscribeToX509svidRequest { reference: object });
    let status = client.subscribe_to_x509svid(request).await.map(drop);
    assert_eq!(status.expect_err("not this type").code(), Code::PermissionDenied);
    let identity = setup.identity(TWINS[0]).await;
    let channel = tls(setup.port, Some(identity))
        .await
        .expect("a broker may connect");
    let request = secured(pb::SubscribeToX509svidRequest {
        reference: pid(std::process::id()),
    });
    let status = ApiClient::new(channel)
        .subscribe_to_x509svid(request)
        .await
        .map(drop);
    assert_eq!(status.expect_err("not over TCP").code(), Code::PermissionDenied);
}

pub fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(HEADER.0, HEADER.1.parse().expect("ASCII"));
    request
}

fn any(type_url: &str, value: &[u8]) -> Option<pb::WorkloadReference> {
    Some(pb::WorkloadReference {
        reference: Some(prost_types::Any {
            type_url: type_url.to_owned(),
            value: value.to_vec(),
        }),
    })
}

fn pid(pid: u32) -> Option<pb::WorkloadReference> {
    let pid = i32::try_from(pid).expect("a pid");
    any(PID, &pb::WorkloadPidReference { pid }.encode_to_vec())
}

pub async fn subscribe(
    client: &mut ApiClient<Channel>,
    reference: Option<pb::WorkloadReference>,
) -> Streaming<pb::SubscribeToX509svidResponse> {
    let request = secured(pb::SubscribeToX509svidRequest { reference });
    let answer = tokio::time::timeout(PATIENCE, client.subscribe_to_x509svid(request)).await;
    answer
        .expect("an answer in time")
        .expect("this user's processes have identities")
        .into_inner()
}

async fn tokens(
    client: &mut ApiClient<Channel>,
    reference: Option<pb::WorkloadReference>,
    spiffe_id: &str,
) -> Vec<pb::Jwtsvid> {
    let request = secured(pb::FetchJwtsvidRequest {
        reference,
        audience: vec!["db".to_owned(), "cache".to_owned()],
        spiffe_id: spiffe_id.to_owned(),
    });
    let answer = client.fetch_jwtsvid(request).await.expect("tokens");
    answer.into_inner().svids
}

pub async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    message
        .expect("a message in time")
        .map(|message| message.expect("streams never end with OK"))
}

/// The reason in the details of a status.
pub fn reason(status: &Status) -> String {
    let details = rpc::Status::decode(status.details()).expect("google.rpc.Status");
    let [detail] = &details.details[..] else {
        panic!("one detail: {details:?}")
    };
    let info = rpc::ErrorInfo::decode(&*detail.value).expect("google.rpc.ErrorInfo");
    assert_eq!(info.domain, "spiffe.io");
    info.reason
}
