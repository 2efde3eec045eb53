//! Who may connect, and what every request must have.

use std::net::IpAddr;

use finial_identity::process::Clock;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpSocket;
use tonic::client::Grpc;
use tonic_prost::ProstCodec;

use super::*;

/// What becomes of somebody who shows this SVID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// Calls are answered.
    Calls,
    /// The agent ended the connection before any call, or at the handshake.
    GetsNoConnection,
}

/// A handshake that the agent refuses may end for the client before it hears of it: then the first call tells. Every
/// other answer is a mistake of this test's.
async fn fate(stage: &Stage, transport: Transport, shown: Option<X509Svid>) -> Fate {
    let channel = match stage.connect(transport, shown).await {
        Ok(channel) => channel,
        Err(error) => {
            assert!(is_refused_handshake(&error), "{error:?}");
            return Fate::GetsNoConnection;
        }
    };
    let mut client = ApiClient::with_interceptor(channel, Metadata(vec![BROKER_HEADER.1]));
    let status = svids(&mut client, None).await.map(drop).unwrap_err();
    match status.code() {
        // Without a reference, so who may call is told that.
        Code::InvalidArgument => Fate::Calls,
        Code::Unknown | Code::Unavailable if is_refused_handshake(&status) => Fate::GetsNoConnection,
        _ => panic!("{status:?}"),
    }
}

/// Whether the agent ended the connection: by a TLS alert, or by closing it after one that was not read.
fn is_refused_handshake(error: &(dyn std::error::Error + 'static)) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset, InvalidData, UnexpectedEof};
    let mut causes = std::iter::successors(Some(error), |error| error.source());
    causes.any(|cause| {
        let error = cause.downcast_ref::<std::io::Error>();
        error.is_some_and(|error| match error.kind() {
            BrokenPipe | ConnectionReset | UnexpectedEof => true,
            InvalidData => error.to_string().contains("received fatal alert"),
            _ => false,
        })
    })
}

async fn may_call(stage: &Stage, transport: Transport, shown: Option<X509Svid>) -> bool {
    fate(stage, transport, shown).await == Fate::Calls
}

/// Covers BEP-06, BEP-14.
#[tokio::test]
async fn only_brokers_of_the_list_get_in_whichever_way_they_come() {
    let stage = Stage::new().await;
    let other = Authority::new("other.org");
    let stranger = Authority::new(TRUST_DOMAIN);
    for transport in [Transport::Unix, Transport::Tcp] {
        let own = |path: &str| Some(stage.world.authority.svid(path));
        assert!(may_call(&stage, transport, own("/broker")).await);
        assert!(!may_call(&stage, transport, None).await);
        assert!(!may_call(&stage, transport, own("/web")).await);
        assert!(!may_call(&stage, transport, own("/broker/more")).await);
        assert!(!may_call(&stage, transport, Some(stranger.svid("/broker"))).await);
        assert!(!may_call(&stage, transport, Some(other.svid("/broker"))).await);
    }
    // With the bundle of its trust domain the listed foreigner is one, and the other is not.
    stage.world.publish(|snapshot| {
        let bundle = other.bundle();
        snapshot.federated = [(bundle.trust_domain.clone(), Arc::new(bundle))].into();
    });
    assert!(may_call(&stage, Transport::Tcp, Some(other.svid("/broker"))).await);
    assert!(!may_call(&stage, Transport::Tcp, Some(other.svid("/web"))).await);
}

#[tokio::test]
async fn the_agents_svid_and_the_bundles_are_those_of_the_moment() {
    let stage = Stage::new().await;
    stage.svid.send_replace(None);
    let own = |authority: &Authority| Some(authority.svid("/broker"));
    assert!(!may_call(&stage, Transport::Unix, own(&stage.world.authority)).await);
    let renewed = Arc::new(stage.world.authority.svid("/spire/agent/a"));
    stage.svid.send_replace(Some(renewed));
    assert!(may_call(&stage, Transport::Unix, own(&stage.world.authority)).await);

    let next = Authority::new(TRUST_DOMAIN);
    assert!(!may_call(&stage, Transport::Unix, own(&next)).await);
    stage.own_bundle.send_replace(Arc::new(bundles(&[&next])));
    assert!(may_call(&stage, Transport::Unix, own(&next)).await);
    assert!(!may_call(&stage, Transport::Unix, own(&stage.world.authority)).await);
}

#[tokio::test]
async fn handshakes_that_strangers_do_not_finish_do_not_end_those_of_a_broker_elsewhere() {
    let stage = Stage::new().await;
    let from = async |address: &str| {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind((address.parse::<IpAddr>().unwrap(), 0).into())
            .unwrap();
        socket.connect(stage.tcp).await.unwrap()
    };
    let broker = from("127.0.0.2").await;
    let mut strangers = Vec::new();
    // The agent closes the oldest of them once it has more than it waits for.
    let closed = loop {
        strangers.push(from("127.0.0.3").await);
        let wait = Duration::from_millis(if strangers.len() < 65 { 0 } else { 10 });
        if let Ok(read) = tokio::time::timeout(wait, strangers[0].read(&mut [0])).await {
            break read;
        }
        assert!(strangers.len() < 1000, "none makes room");
    };
    assert!(!matches!(closed, Ok(1..)), "{closed:?}");
    let svid = stage.world.authority.svid("/broker");
    let channel = stage
        .connect_over(Either::Right(broker), Some(svid))
        .await
        .unwrap();
    let mut client = ApiClient::with_interceptor(channel, Metadata(vec![BROKER_HEADER.1]));
    let status = svids(&mut client, None).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "it is known who calls");
}

/// Covers BEP-18.
#[tokio::test]
async fn a_broker_that_is_not_believed_any_more_gets_nothing_new_on_its_connection() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    let mut client = stage.client().await;
    let mut stream = svids(&mut client, pid(workload.pid())).await.unwrap();
    next(&mut stream).await.unwrap();
    stage
        .own_bundle
        .send_replace(Arc::new(bundles(&[&Authority::new(TRUST_DOMAIN)])));
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::Unauthenticated);
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(status.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn an_expired_certificate_is_of_no_use_on_an_open_connection() {
    let clock = Clock::offset(time::Duration::ZERO);
    let stage = Stage::with(World::at(clock.clone()), |_share| {}).await;
    let mut client = stage.client().await;
    let status = svids(&mut client, None).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    clock.shift(time::Duration::hours(2));
    let status = svids(&mut client, None).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

/// Covers BEP-05.
#[tokio::test]
async fn every_request_has_the_header_once_whichever_service_it_is_for() {
    let stage = Stage::new().await;
    let svid = Some(stage.world.authority.svid("/broker"));
    let channel = stage.connect(Transport::Unix, svid).await.unwrap();
    let methods = [
        "/spiffe.broker.API/SubscribeToX509SVID",
        "/spiffe.broker.API/SubscribeToX509Bundles",
        "/spiffe.broker.API/FetchJWTSVID",
        "/spiffe.broker.API/SubscribeToJWTBundles",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.health.v1.Health/Check",
        "/no.such.Service/Method",
    ];
    for method in methods {
        for wrong in [&[][..], &["True"], &["true", "true"], &["true", "false"], &["1"]] {
            let status = call(&channel, method, wrong).await.unwrap_err();
            assert_eq!(
                (status.code(), status.message()),
                (Code::InvalidArgument, "security header missing from request"),
                "{method} {wrong:?}"
            );
        }
    }
    let health = call(&channel, "/grpc.health.v1.Health/Check", &["true"]).await;
    assert_eq!(health.unwrap_err().code(), Code::Unimplemented);
}

/// Covers BRK-02, BRK-03.
#[tokio::test]
async fn reflection_shows_the_one_service_and_only_on_the_unix_socket() {
    let stage = Stage::new().await;
    let method = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let svid = || Some(stage.world.authority.svid("/broker"));
    let unix = stage.connect(Transport::Unix, svid()).await.unwrap();
    let answer = call(&unix, method, &["true"]).await.unwrap();
    let names = String::from_utf8_lossy(&answer);
    assert!(names.contains("spiffe.broker.API"), "{names}");
    assert!(
        !names.contains("SpiffeWorkloadAPI") && !names.contains("DelegatedIdentity"),
        "{names}"
    );
    let tcp = stage.connect(Transport::Tcp, svid()).await.unwrap();
    let status = call(&tcp, method, &["true"]).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (
            Code::PermissionDenied,
            "server reflection is only available over Unix sockets"
        )
    );
    let status = call(&tcp, "/SpiffeWorkloadAPI/FetchX509SVID", &["true"]).await;
    assert_eq!(status.unwrap_err().code(), Code::Unimplemented);
}

/// Asks a method, for reflection with `list_services`, and gives the first answer as it is.
async fn call(channel: &Channel, method: &str, header: &[&str]) -> Result<Vec<u8>, Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let mut request = Request::new(ListServices {
        everything: Some("*".to_owned()),
    });
    for value in header {
        request
            .metadata_mut()
            .append(BROKER_HEADER.0, value.parse().unwrap());
    }
    let codec = ProstCodec::<ListServices, Answer>::default();
    let answer = in_time(grpc.server_streaming(request, method.parse().unwrap(), codec)).await?;
    let message = in_time(answer.into_inner().message()).await?;
    Ok(message.unwrap().encode_to_vec())
}

/// `grpc.reflection.v1.ServerReflectionRequest`
#[derive(Clone, PartialEq, Message)]
struct ListServices {
    #[prost(string, optional, tag = "7")]
    everything: Option<String>,
}

/// `grpc.reflection.v1.ServerReflectionResponse`
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(bytes = "vec", optional, tag = "6")]
    services: Option<Vec<u8>>,
}
