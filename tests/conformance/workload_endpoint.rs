//! SPIFFE_Workload_Endpoint.md: the agent's socket.

use std::collections::BTreeSet;

use prost::Message;
use tonic::{Code, Status};

use crate::fixture::{Fixture, shared};
use crate::wire::{call, call_with, unix};

const SECURITY: (&str, &str) = ("workload.spiffe.io", "true");

/// The methods of the standard, and whether a request without content is answered.
const METHODS: [(&str, Code); 7] = [
    ("FetchX509SVID", Code::Ok),
    ("FetchX509Bundles", Code::Ok),
    ("FetchJWTSVID", Code::InvalidArgument),
    ("FetchJWTBundles", Code::Ok),
    ("ValidateJWTSVID", Code::InvalidArgument),
    ("FetchWITSVID", Code::Unimplemented),
    ("FetchWITBundles", Code::Unimplemented),
];

/// §3, §3.1, §5, §7: gRPC in the clear over the socket; no certificate, token or other act of the caller.
/// Covers WEP-03, WEP-09, WEP-18, WEP-20, WEP-28, WL-04.
#[tokio::test]
async fn the_workload_api_is_served_over_grpc_to_callers_without_any_credential() {
    let fixture = shared();
    for (method, expected) in METHODS {
        let outcome = plain(&fixture, &format!("/SpiffeWorkloadAPI/{method}"), Some(SECURITY)).await;
        assert_eq!(
            outcome.as_ref().err().map_or(Code::Ok, Status::code),
            expected,
            "{method}: {outcome:?}"
        );
    }
}

/// §3: each method demands the metadata, before it looks at anything else.
/// Covers WEP-08.
#[tokio::test]
async fn no_method_answers_without_the_security_metadata() {
    let fixture = shared();
    for (method, _) in METHODS {
        for metadata in [
            None,
            Some(("workload.spiffe.io", "True")),
            Some(("workload.spiffe.io", "1")),
            Some(("workload.spiffe.io", "")),
            Some(("workload-spiffe-io", "true")),
        ] {
            let path = format!("/SpiffeWorkloadAPI/{method}");
            let status = plain(&fixture, &path, metadata)
                .await
                .expect_err("no metadata, no answer");
            assert_eq!(
                status.code(),
                Code::InvalidArgument,
                "{method} with {metadata:?}: {status:?}"
            );
        }
    }
}

/// §3: the program's own command is a client as the standard wants it: the agent answers nobody else.
/// Covers WEP-04, WEP-07.
#[test]
fn the_programs_own_client_speaks_grpc_with_the_metadata() {
    let fixture = shared();
    let fetched = fixture.stack.agent_cli_ok(&["api", "fetch", "x509"]).stdout;
    assert!(fetched.contains(&fixture.longest_id), "{fetched}");
}

/// §3: the agent identifies callers by their socket's peer, so it listens on no TCP port.
/// Covers WEP-05, WEP-06.
#[test]
fn the_agent_listens_on_no_tcp_port() {
    let fixture = shared();
    let own = fixture.stack.port();
    assert!(
        tcp_ports(fixture.server_pid).contains(&own),
        "the server's port is seen, so the agent's would be"
    );
    assert_eq!(tcp_ports(fixture.agent_pid), BTreeSet::new());
}

/// §7, and §2 of SPIFFE_Workload_API.md: the service has the methods of the standard, others are in services of their own.
/// Covers WEP-27, WEP-29, WL-03.
#[tokio::test]
async fn the_service_has_exactly_the_methods_of_the_standard() {
    let fixture = shared();
    let symbol = reflection(
        &fixture,
        Asked {
            symbol: Some("SpiffeWorkloadAPI".into()),
            list: None,
        },
    )
    .await;
    let services: Vec<prost_types::ServiceDescriptorProto> = symbol
        .files
        .expect("a file answers for the symbol")
        .files
        .iter()
        .flat_map(|file| {
            prost_types::FileDescriptorProto::decode(&file[..])
                .expect("a descriptor")
                .service
        })
        .collect();
    let service = services
        .iter()
        .find(|service| service.name() == "SpiffeWorkloadAPI")
        .expect("the service");
    let methods: Vec<&str> = service
        .method
        .iter()
        .map(prost_types::MethodDescriptorProto::name)
        .collect();
    let sorted = |mut names: Vec<&'static str>| {
        names.sort_unstable();
        names
    };
    let mut found = methods.clone();
    found.sort_unstable();
    assert_eq!(found, sorted(METHODS.iter().map(|(name, _)| *name).collect()));

    let listed = reflection(
        &fixture,
        Asked {
            symbol: None,
            list: Some(String::new()),
        },
    )
    .await;
    let names: Vec<String> = listed
        .services
        .expect("a list")
        .services
        .into_iter()
        .map(|service| service.name)
        .collect();
    assert!(names.iter().any(|name| name == "SpiffeWorkloadAPI"), "{names:?}");

    for method in ["FetchSSHSVID", "FetchX509Svid", "fetchX509SVID", ""] {
        let status = plain(&fixture, &format!("/SpiffeWorkloadAPI/{method}"), Some(SECURITY)).await;
        assert_eq!(
            status.expect_err("no such method").code(),
            Code::Unimplemented,
            "{method:?}"
        );
    }
}

/// One call on a new connection with an empty message and no other metadata than given.
async fn plain(
    fixture: &Fixture,
    method: &str,
    metadata: Option<(&'static str, &str)>,
) -> Result<Vec<u8>, Status> {
    let channel = unix(fixture.stack.agent_socket())
        .await
        .expect("the agent's socket");
    let metadata: Vec<_> = metadata.into_iter().collect();
    call_with(&channel, method, Vec::new(), &metadata).await
}

/// The ports on which a process listens.
fn tcp_ports(pid: u32) -> BTreeSet<u16> {
    let sockets: BTreeSet<String> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .expect("a process of this user")
        .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
        .filter_map(|target| {
            Some(
                target
                    .to_str()?
                    .strip_prefix("socket:[")?
                    .trim_end_matches(']')
                    .to_owned(),
            )
        })
        .collect();
    assert!(!sockets.is_empty(), "the process has sockets");
    let tables = ["tcp", "tcp6"]
        .map(|name| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap_or_default());
    const LISTEN: &str = "0A";
    tables
        .iter()
        .flat_map(|table| table.lines().skip(1))
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let listens = fields.get(3) == Some(&LISTEN) && sockets.contains(*fields.get(9)?);
            let port = fields.get(1)?.rsplit(':').next()?;
            listens.then(|| u16::from_str_radix(port, 16).ok()).flatten()
        })
        .collect()
}

async fn reflection(fixture: &Fixture, asked: Asked) -> Answered {
    let channel = unix(fixture.stack.agent_socket())
        .await
        .expect("the agent's socket");
    let method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let answer = call(&channel, method, asked.encode_to_vec())
        .await
        .expect("reflection needs no metadata");
    Answered::decode(&answer[..]).expect("a reflection response")
}

/// `grpc.reflection.v1.ServerReflectionRequest`
#[derive(Clone, PartialEq, Message)]
struct Asked {
    #[prost(string, optional, tag = "4")]
    symbol: Option<String>,
    #[prost(string, optional, tag = "7")]
    list: Option<String>,
}

/// `grpc.reflection.v1.ServerReflectionResponse`
#[derive(Clone, PartialEq, Message)]
struct Answered {
    #[prost(message, optional, tag = "4")]
    files: Option<Files>,
    #[prost(message, optional, tag = "6")]
    services: Option<Services>,
}

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    files: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Services {
    #[prost(message, repeated, tag = "1")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, Message)]
struct Service {
    #[prost(string, tag = "1")]
    name: String,
}
