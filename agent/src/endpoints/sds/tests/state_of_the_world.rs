//! Request in, response out, for `StreamSecrets`.

use finial_proto::envoy::config::core::v3::Node;
use finial_proto::envoy::service::discovery::v3::DiscoveryResponse;
use finial_proto::google::rpc;
use tonic::Code;

use super::*;

fn protocol(world: &World) -> StateOfTheWorld {
    StateOfTheWorld::new(Arc::new(world.sds.clone()))
}

fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
    DiscoveryRequest {
        resource_names: names.iter().map(ToString::to_string).collect(),
        response_nonce: nonce.to_owned(),
        ..Default::default()
    }
}

fn next(protocol: &mut StateOfTheWorld, world: &World, nonce: &str) -> Option<DiscoveryResponse> {
    step(protocol, world, nonce).map(|bytes| DiscoveryResponse::decode(bytes).unwrap())
}

fn names(response: &DiscoveryResponse) -> Vec<String> {
    response.resources.iter().map(|one| decode(one).name).collect()
}

#[test]
fn the_first_request_is_answered_also_after_a_reconnect() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut earlier = protocol(&world);
    assert!(next(&mut earlier, &world, "1").is_none(), "nothing was asked yet");
    earlier.receive(request(&["default"], "")).unwrap();
    let before = next(&mut earlier, &world, "1").unwrap();
    assert_eq!(
        (names(&before), before.nonce.as_str()),
        (vec!["default".to_owned()], "1")
    );
    assert_eq!(before.type_url, SECRET_TYPE);
    assert!(!before.version_info.is_empty());
    // The client comes back with the version that it has, which happens to be the present one.
    for nonce in ["", "1"] {
        let mut later = protocol(&world);
        let again = DiscoveryRequest {
            version_info: before.version_info.clone(),
            ..request(&["default"], nonce)
        };
        later.receive(again).unwrap();
        let after = next(&mut later, &world, "2").unwrap();
        assert_eq!(after.version_info, before.version_info);
    }
}

#[test]
fn an_acknowledged_response_is_followed_by_nothing_until_the_content_changes() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut protocol = protocol(&world);
    protocol.receive(request(&["default"], "")).unwrap();
    let first = next(&mut protocol, &world, "1").unwrap();
    assert!(next(&mut protocol, &world, "2").is_none());
    protocol.receive(request(&["default"], "1")).unwrap();
    assert!(next(&mut protocol, &world, "2").is_none());
    // What others ask for does not concern it.
    let a = (**world.svids.snapshot().entry("a").unwrap()).clone();
    world.publish_entries(vec![a, world.entry("b")]);
    assert!(next(&mut protocol, &world, "2").is_none());
    world.publish_entries(vec![world.entry("a")]);
    let second = next(&mut protocol, &world, "2").unwrap();
    assert_ne!(first.version_info, second.version_info);
    assert_ne!(
        certificate(&decode(&first.resources[0])),
        certificate(&decode(&second.resources[0]))
    );
}

#[test]
fn a_refused_response_is_not_sent_again_and_the_next_one_is() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut protocol = protocol(&world);
    protocol.receive(request(&["default"], "")).unwrap();
    next(&mut protocol, &world, "1").unwrap();
    let refusal = DiscoveryRequest {
        error_detail: Some(rpc::Status {
            code: 13,
            message: "Failed to load certificate chain".to_owned(),
            details: Vec::new(),
        }),
        ..request(&["default"], "1")
    };
    protocol.receive(refusal).unwrap();
    assert!(next(&mut protocol, &world, "2").is_none());
    world.publish_entries(vec![world.entry("a")]);
    assert!(next(&mut protocol, &world, "2").is_some());
}

#[test]
fn a_request_about_an_earlier_response_is_ignored() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a"), world.entry("b")]);
    let mut protocol = protocol(&world);
    protocol.receive(request(&[A], "")).unwrap();
    next(&mut protocol, &world, "1").unwrap();
    world.publish_entries(vec![world.entry("a"), world.entry("b")]);
    next(&mut protocol, &world, "2").unwrap();
    for stale in ["1", "", "3"] {
        protocol.receive(request(&[B], stale)).unwrap();
        assert!(next(&mut protocol, &world, "3").is_none(), "{stale:?}");
    }
    protocol.receive(request(&[B], "2")).unwrap();
    assert_eq!(names(&next(&mut protocol, &world, "3").unwrap()), [B]);
}

#[test]
fn other_names_are_answered_at_once() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut protocol = protocol(&world);
    protocol.receive(request(&[A], "")).unwrap();
    next(&mut protocol, &world, "1").unwrap();
    protocol.receive(request(&["ROOTCA", A], "1")).unwrap();
    assert_eq!(names(&next(&mut protocol, &world, "2").unwrap()), ["ROOTCA", A]);
    protocol.receive(request(&[A, "ROOTCA"], "2")).unwrap();
    assert!(next(&mut protocol, &world, "3").is_none(), "order is no change");
    protocol.receive(request(&["x", "ROOTCA", A], "2")).unwrap();
    assert!(
        next(&mut protocol, &world, "3").is_some(),
        "the client waits for an answer"
    );
    protocol.receive(request(&[], "3")).unwrap();
    assert_eq!(names(&next(&mut protocol, &world, "4").unwrap()), [OWN, A]);
}

#[test]
fn unknown_names_are_answered_when_the_identity_appears_and_kept_when_it_goes() {
    let world = World::new();
    let mut protocol = protocol(&world);
    protocol.receive(request(&["default"], "")).unwrap();
    assert!(
        next(&mut protocol, &world, "1").is_none(),
        "never an empty response"
    );
    // The client may ask for something else meanwhile; it has no nonce to show.
    protocol.receive(request(&[A], "")).unwrap();
    world.publish_entries(vec![world.entry("a")]);
    assert_eq!(names(&next(&mut protocol, &world, "1").unwrap()), [A]);
    world.publish_entries(Vec::new());
    assert!(
        next(&mut protocol, &world, "2").is_none(),
        "there is no way to take it back"
    );
    world.publish_entries(vec![world.entry("a")]);
    assert_eq!(names(&next(&mut protocol, &world, "2").unwrap()), [A]);
}

#[test]
fn the_node_is_remembered_for_requests_that_leave_it_out() {
    let world = World::new();
    let mut protocol = protocol(&world);
    let metadata = prost_types::Struct {
        fields: [(
            "disable_spiffe_cert_validation".to_owned(),
            prost_types::Value {
                kind: Some(prost_types::value::Kind::BoolValue(true)),
            },
        )]
        .into(),
    };
    let first = DiscoveryRequest {
        node: Some(Node {
            metadata: Some(metadata),
            ..Default::default()
        }),
        ..request(&["ROOTCA"], "")
    };
    protocol.receive(first).unwrap();
    let response = next(&mut protocol, &world, "1").unwrap();
    assert!(context(&decode(&response.resources[0])).trusted_ca.is_some());
    protocol.receive(request(&[OWN], "1")).unwrap();
    let response = next(&mut protocol, &world, "2").unwrap();
    assert!(context(&decode(&response.resources[0])).trusted_ca.is_some());
}

#[test]
fn other_types_and_senseless_names_are_refused() {
    let world = World::new();
    let other = DiscoveryRequest {
        type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
        ..request(&["default"], "")
    };
    let long = "x".repeat(32 * 1024 + 1);
    let many = vec!["x"; 257];
    for request in [other, request(&[&long], ""), request(&many, "")] {
        let refusal = protocol(&world).receive(request).unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument);
    }
    let fine = DiscoveryRequest {
        type_url: SECRET_TYPE.to_owned(),
        ..request(&["default"], "")
    };
    assert!(protocol(&world).receive(fine).is_ok());
}
