//! The SPIFFE Broker API as a broker uses it: this process is the broker, with an X509-SVID from the Workload API.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use finial_proto::spiffe::broker as pb;
use finial_proto::spiffe::broker::api_client::ApiClient;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use finial_proto::workload::{X509svidRequest, X509svidResponse};
use finial_tests::rpcs::{AGENT_SOCKETS, rows};
use finial_tests::{Entry, Stack, StackOptions, free_port};
use prost::Message;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::delegated::{SLEEP, Sleeper, this_program};
use crate::wire::{Identity, call_with, tls, tls_unix, unix};

const PATIENCE: Duration = Duration::from_secs(30);
const HEADER: (&str, &str) = ("broker.spiffe.io", "true");
const PID_REFERENCE: &str = "type.googleapis.com/spiffe.broker.WorkloadPIDReference";

/// A stack whose agent serves brokers, and the directory of their socket: it may not be the public one's.
struct WithBroker {
    stack: Stack,
    port: u16,
    dir: TempDir,
}

impl WithBroker {
    /// The broker is `/broker`. Programs are told apart by their paths.
    fn start() -> Self {
        let dir = TempDir::with_prefix("finial-broker-").expect("a temporary directory");
        let port = free_port();
        let agent = format!(
            r#"experimental {{ broker {{
              socket_path = "{socket}"
              bind_address = "127.0.0.1:{port}"
              brokers = [ {{
                id = "spiffe://example.org/broker"
                allowed_reference_types = [ {{ type_url = "{PID_REFERENCE}", allow_over_tcp = true }} ]
              }} ]
            }} }}"#,
            socket = dir.path().join("private/broker.sock").display()
        );
        let stack = Stack::start(StackOptions {
            agent,
            unix_attestor: "discover_workload_path = true\n workload_size_limit = -1".to_owned(),
            ..StackOptions::default()
        });
        WithBroker { stack, port, dir }
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("private/broker.sock")
    }

    /// Both ways to the agent, for whoever shows this.
    async fn channels(&self, identity: Option<Identity>) -> [anyhow::Result<Channel>; 2] {
        [
            tls_unix(self.socket(), identity.clone()).await,
            tls(self.port, identity).await,
        ]
    }

    /// This process's own SVID for a path, from the Workload API.
    async fn own_svid(&self, path: &str) -> Identity {
        let id = self.stack.id(path);
        let channel = unix(self.stack.agent_socket()).await.expect("the public socket");
        let mut client = SpiffeWorkloadApiClient::new(channel);
        let fetch = async {
            loop {
                let Ok(answer) = client.fetch_x509svid(workload_request()).await else {
                    continue;
                };
                let mut stream = answer.into_inner();
                while let Ok(Some(X509svidResponse { svids, .. })) = stream.message().await {
                    if let Some(svid) = svids.into_iter().find(|svid| svid.spiffe_id == id) {
                        return svid;
                    }
                }
            }
        };
        let svid = tokio::time::timeout(PATIENCE, fetch).await.expect("an own SVID");
        let chain = finial_identity::x509::Certificate::parse_many(&svid.x509_svid).expect("certificates");
        Identity {
            chain: chain
                .iter()
                .map(|certificate| certificate.der().clone())
                .collect(),
            key: PrivatePkcs8KeyDer::from(svid.x509_svid_key.to_vec()).into(),
        }
    }
}

#[tokio::test]
async fn a_broker_gets_what_a_process_has_until_that_ends_and_others_are_refused() {
    let mut with = WithBroker::start();
    let stack = &with.stack;
    let program = std::fs::canonicalize(SLEEP).expect("sleep is there");
    let of_sleepers = stack.create_entry(&Entry {
        path: "/sleeper",
        selectors: vec![format!("unix:path:{}", program.display())],
        extra: Vec::new(),
    });
    stack.create_entry(&this_program("/broker"));
    stack.create_entry(&this_program("/unlisted"));
    let broker = with.own_svid("/broker").await;

    let mut sleeper = Sleeper::start();
    for channel in with.channels(Some(broker.clone())).await {
        let channel = channel.expect("a broker may connect");
        let mut stream = until_served(&channel, sleeper.pid()).await;
        let message = next(&mut stream).await.expect("a message");
        assert_eq!(ids(&message), [stack.id("/sleeper")]);

        let tokens = ApiClient::new(channel.clone())
            .fetch_jwtsvid(secured(pb::FetchJwtsvidRequest {
                reference: pid(sleeper.pid()),
                audience: vec!["db".to_owned()],
                spiffe_id: String::new(),
            }))
            .await
            .expect("a token");
        let tokens = tokens.into_inner().svids;
        assert_eq!(tokens.len(), 1);
        assert_eq!(tokens[0].spiffe_id, stack.id("/sleeper"));

        let mut other = Sleeper::start();
        let mut of_other = until_served(&channel, other.pid()).await;
        next(&mut of_other).await.expect("a message");
        other.end();
        let ended = next(&mut of_other).await.expect_err("the process has ended");
        assert_eq!(ended.code(), Code::NotFound, "{ended}");

        // This very process has identities of its own, and a pid that nobody has is nobody's.
        let mut own = until_served(&channel, i32::try_from(std::process::id()).expect("a pid")).await;
        let own = next(&mut own).await.expect("a message");
        assert!(ids(&own).contains(&stack.id("/broker")), "{:?}", ids(&own));
        let nobody = subscribe(&channel, other.pid()).await.map(drop);
        assert_eq!(nobody.expect_err("it has ended").code(), Code::NotFound);

        let method = "/spiffe.broker.API/SubscribeToX509SVID";
        let request = pb::SubscribeToX509svidRequest {
            reference: pid(sleeper.pid()),
        };
        let without = call_with(&channel, method, request.encode_to_vec(), &[]).await;
        let without = without.expect_err("no header");
        assert_eq!(without.code(), Code::InvalidArgument, "{without}");
    }

    let channel = tls_unix(with.socket(), Some(broker)).await.expect("a broker");
    let mut stream = until_served(&channel, sleeper.pid()).await;
    next(&mut stream).await.expect("a message");
    stack.delete_entry(&of_sleepers);
    let denied = next(&mut stream).await.expect_err("no identity any more");
    assert_eq!(denied.code(), Code::PermissionDenied, "{denied}");
    sleeper.end();

    let unlisted = with.own_svid("/unlisted").await;
    for who in [None, Some(unlisted)] {
        // A client may learn of the refusal only when it first calls.
        for channel in with.channels(who).await.into_iter().flatten() {
            let refused = subscribe(&channel, 1).await.map(drop).expect_err("no broker");
            let cause = std::error::Error::source(&refused);
            assert!(cause.is_some(), "a broken connection, not an answer: {refused}");
        }
    }
    let agent = with.stack.agent();
    let line = agent.wait_for_line("a peer that is no broker is refused", PATIENCE);
    assert!(line.contains("spiffe://example.org/unlisted"), "{line}");
}

#[tokio::test]
async fn brokers_are_served_their_rpcs_and_nothing_else() {
    let with = WithBroker::start();
    with.stack.create_entry(&this_program("/broker"));
    let broker = with.own_svid("/broker").await;
    let mut checked = 0;
    for channel in with.channels(Some(broker)).await {
        let channel = channel.expect("a broker may connect");
        for (method, words) in rows(AGENT_SOCKETS) {
            let header = [HEADER, ("workload.spiffe.io", "true")];
            let code =
                |outcome: Result<Vec<u8>, Status>| outcome.map_or_else(|status| status.code(), |_| Code::Ok);
            let outcome = code(call_with(&channel, method, Vec::new(), &header).await);
            // Without a reference, so what is served says that.
            let expected = match words[0] {
                "broker" => Code::InvalidArgument,
                _ => Code::Unimplemented,
            };
            assert_eq!(outcome, expected, "{method}");
            let without = code(call_with(&channel, method, Vec::new(), &header[1..]).await);
            assert_eq!(without, Code::InvalidArgument, "{method}");
            checked += 1;
        }
    }
    assert!(checked > 40, "only {checked} methods were tried");
}

#[test]
fn the_brokers_socket_is_for_the_agents_user_and_group_and_goes_with_the_agent() {
    let mut with = WithBroker::start();
    let metadata = std::fs::metadata(with.socket()).expect("the brokers' socket");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o770);
    assert!(with.stack.agent().terminate().success());
    assert!(!with.socket().exists());
}

fn workload_request() -> Request<X509svidRequest> {
    let mut request = Request::new(X509svidRequest {});
    request
        .metadata_mut()
        .insert("workload.spiffe.io", "true".parse().expect("ASCII"));
    request
}

fn secured<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert(HEADER.0, HEADER.1.parse().expect("ASCII"));
    request
}

fn pid(pid: i32) -> Option<pb::WorkloadReference> {
    Some(pb::WorkloadReference {
        reference: Some(prost_types::Any {
            type_url: PID_REFERENCE.to_owned(),
            value: pb::WorkloadPidReference { pid }.encode_to_vec(),
        }),
    })
}

async fn subscribe(channel: &Channel, of: i32) -> Result<Streaming<pb::SubscribeToX509svidResponse>, Status> {
    let request = pb::SubscribeToX509svidRequest { reference: pid(of) };
    let mut client = ApiClient::new(channel.clone());
    let answer = tokio::time::timeout(PATIENCE, client.subscribe_to_x509svid(secured(request)));
    let answer = answer.await.expect("an answer in time")?;
    Ok(answer.into_inner())
}

/// Asks until there is an identity: entries take a moment to arrive.
async fn until_served(channel: &Channel, of: i32) -> Streaming<pb::SubscribeToX509svidResponse> {
    let ask = async {
        loop {
            match subscribe(channel, of).await {
                Ok(stream) => return stream,
                Err(status) => assert_eq!(status.code(), Code::PermissionDenied, "{status}"),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, ask)
        .await
        .expect("an identity in time")
}

async fn next<T>(stream: &mut Streaming<T>) -> Result<T, Status> {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await;
    message
        .expect("a message in time")
        .map(|message| message.expect("streams never end with OK"))
}

fn ids(message: &pb::SubscribeToX509svidResponse) -> Vec<String> {
    message.svids.iter().map(|svid| svid.spiffe_id.clone()).collect()
}
