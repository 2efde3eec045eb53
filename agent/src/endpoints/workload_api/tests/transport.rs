use finial_proto::grpc::health::v1::HealthCheckRequest;
use finial_proto::workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::MetadataValue;

use super::*;
use crate::endpoints::client;

#[tokio::test]
async fn rule_1_every_call_carries_the_header_exactly_once() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let channel = client::connect(&served.path).await.unwrap();
    for values in [
        &[][..],
        &["TRUE"],
        &["1"],
        &[""],
        &["true", "true"],
        &["true", "false"],
        &["true,true"],
    ] {
        let mut request = Request::new(X509svidRequest {});
        for value in values {
            let value = MetadataValue::from_static(value);
            request.metadata_mut().append("workload.spiffe.io", value);
        }
        let mut client = SpiffeWorkloadApiClient::new(channel.clone());
        let status = client.fetch_x509svid(request).await.unwrap_err();
        let expected = (Code::InvalidArgument, "security header missing from request");
        assert_eq!((status.code(), status.message()), expected, "{values:?}");
    }
}

#[tokio::test]
async fn rule_1_health_and_reflection_need_no_header() {
    let mut world = World::new();
    world.own_pid = std::process::id();
    let served = world.serve();
    let mut health = client::health(&served.path).await.unwrap();
    let check = |service: &str| HealthCheckRequest {
        service: service.to_owned(),
    };
    let answer = in_time(health.check(check(""))).await.unwrap().into_inner();
    assert_eq!(answer.status, 1, "no identity for the agent itself is healthy");
    let status = health.check(check("SpiffeWorkloadAPI")).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        health.watch(check("")).await.unwrap_err().code(),
        Code::Unimplemented
    );
    served.world.publish(|snapshot| snapshot.synced_at = None);
    // An agent that cannot serve is not, as soon as the last answer is no longer told.
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    tokio::time::resume();
    let answer = in_time(health.check(check(""))).await.unwrap().into_inner();
    assert_eq!(answer.status, 2);

    for version in ["v1", "v1alpha"] {
        // A ServerReflectionRequest: list_services = "*", field 7.
        let path = format!("/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo");
        let answer = raw_call(&served, "localhost", &path, &[], &[0x3a, 1, b'*']).await;
        for name in [
            "SpiffeWorkloadAPI",
            "grpc.health.v1.Health",
            "envoy.service.secret.v3.SecretDiscoveryService",
        ] {
            assert!(contains(&answer, name.as_bytes()), "{name} by {version}");
        }
        assert!(
            !contains(&answer, b"spire.api.server"),
            "only what is served is named"
        );
    }
}

#[tokio::test]
async fn rule_2_a_stopping_agent_ends_streams_with_unavailable() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = x509_stream(&served).await;
    next(&mut stream).await.unwrap();
    let (stopped, status) = tokio::join!(served.stop(), next(&mut stream));
    let () = stopped;
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn rule_3_a_huge_request_is_refused() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.unissued("a")]);
    let request = finial_proto::workload::ValidateJwtsvidRequest {
        audience: "x".to_owned(),
        svid: "a".repeat(1 << 20),
    };
    let status = in_time(served.client().await.validate_jwtsvid(request))
        .await
        .unwrap_err();
    assert!(
        matches!(status.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{status}"
    );
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented_and_needs_the_header_too() {
    let served = World::new().serve();
    for (header, expected) in [(true, Code::Unimplemented), (false, Code::InvalidArgument)] {
        let mut request = Request::new(X509svidRequest {});
        if header {
            let value = MetadataValue::from_static("true");
            request.metadata_mut().insert("workload.spiffe.io", value);
        }
        let channel = client::connect(&served.path).await.unwrap();
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await.unwrap();
        let codec = tonic_prost::ProstCodec::<X509svidRequest, X509svidResponse>::default();
        let path = http::uri::PathAndQuery::from_static("/SpiffeWorkloadAPI/FetchNothing");
        let status = client.unary(request, path, codec).await.unwrap_err();
        assert_eq!(status.code(), expected);
    }
}

#[tokio::test]
async fn every_form_of_authority_is_served() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    for authority in [
        "tmp%2Fa.sock",
        "/tmp/a.sock",
        "localhost",
        "[::]:50051",
        "agent|1",
    ] {
        let path = "/SpiffeWorkloadAPI/FetchX509SVID";
        let header = [("workload.spiffe.io", "true")];
        let answer = raw_call(&served, authority, path, &header, &[]).await;
        assert!(contains(&answer, b"spiffe://example.org/a"), "{authority}");
    }
}

#[tokio::test]
async fn rule_22_many_connections_and_many_streams_are_served() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut streams = Vec::new();
    for _connection in 0..20 {
        let client = served.client().await;
        for _stream in 0..30 {
            let mut client = client.clone();
            let answer = in_time(client.fetch_x509svid(X509svidRequest {})).await.unwrap();
            streams.push(answer.into_inner());
        }
    }
    served.world.publish_entries(vec![served.world.entry("b")]);
    for stream in &mut streams {
        assert_eq!(ids(&next(stream).await.unwrap()), ["a"]);
        assert_eq!(ids(&next(stream).await.unwrap()), ["b"]);
    }
}

#[tokio::test]
async fn rule_22_pings_are_answered() {
    let served = World::new().serve();
    let mut socket = UnixStream::connect(&served.path).await.unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    for index in 0..50_u8 {
        bytes.extend(frame(6, 0, 0, &[index; 8]));
    }
    socket.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let last = frame(6, 1, 0, &[49; 8]);
    while !contains(&answer, &last) {
        let count = in_time(socket.read_buf(&mut answer)).await.unwrap();
        assert_ne!(count, 0, "the connection was closed");
    }
}

/// Sends one request as bytes, as no client of ours would, and reads until its message or its end has come.
async fn raw_call(
    served: &Served,
    authority: &str,
    path: &str,
    headers: &[(&str, &str)],
    message: &[u8],
) -> Vec<u8> {
    let mut block = Vec::new();
    let pseudo = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in pseudo.iter().chain(headers) {
        block.push(0); // A literal that is not indexed, with a literal name (RFC 7541 §6.2.2).
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend(frame(4, 0, 0, &[]));
    bytes.extend(frame(1, 0x4, 1, &block)); // END_HEADERS
    bytes.extend(frame(0, 0x1, 1, &body)); // END_STREAM
    let mut socket = UnixStream::connect(&served.path).await.unwrap();
    socket.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    loop {
        let count = in_time(socket.read_buf(&mut answer)).await.unwrap();
        if count == 0 || ended(&answer) {
            return answer;
        }
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// Whether a whole DATA frame with content, the end of stream 1 or its reset is among the frames.
fn ended(mut bytes: &[u8]) -> bool {
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let Some(next) = rest.get(length..) else {
            return false;
        };
        let (kind, flags) = (head[3], head[4]);
        let of_stream = head[8] == 1;
        if of_stream && ((kind == 0 && length > 0) || kind == 3 || (kind <= 1 && flags & 1 != 0)) {
            return true;
        }
        bytes = next;
    }
    false
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
