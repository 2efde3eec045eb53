//! Request in, response out, for `DeltaSecrets`.

use finial_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use finial_proto::google::rpc;
use tonic::Code;

use super::*;
use crate::svids::CachedEntry;

fn protocol(world: &World) -> Delta {
    Delta::new(Arc::new(world.sds.clone()))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn request(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        resource_names_subscribe: names(subscribe),
        resource_names_unsubscribe: names(unsubscribe),
        ..Default::default()
    }
}

fn next(protocol: &mut Delta, world: &World) -> Option<DeltaDiscoveryResponse> {
    let response = DeltaDiscoveryResponse::decode(step(protocol, world, "n")?).unwrap();
    assert_eq!(
        (response.nonce.as_str(), response.type_url.as_str()),
        ("n", SECRET_TYPE)
    );
    for one in &response.resources {
        assert_eq!(decode(one.resource.as_ref().unwrap()).name, one.name);
        assert!(!one.version.is_empty());
    }
    Some(response)
}

/// Names that came and names that went.
fn news(protocol: &mut Delta, world: &World) -> (Vec<String>, Vec<String>) {
    let response = next(protocol, world).unwrap_or_default();
    let given = response.resources.into_iter().map(|one| one.name);
    (given.collect(), response.removed_resources)
}

fn nothing() -> (Vec<String>, Vec<String>) {
    (Vec::new(), Vec::new())
}

#[test]
fn only_what_is_new_is_sent() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut protocol = protocol(&world);
    assert!(next(&mut protocol, &world).is_none());
    protocol.receive(request(&["default", "ROOTCA"], &[])).unwrap();
    assert_eq!(news(&mut protocol, &world).0, ["ROOTCA", "default"]);
    // An acknowledgement.
    protocol.receive(request(&[], &[])).unwrap();
    assert_eq!(news(&mut protocol, &world), nothing());
    world.publish_entries(vec![world.entry("a")]);
    assert_eq!(news(&mut protocol, &world).0, ["default"]);
    protocol.receive(request(&[A], &["default"])).unwrap();
    assert_eq!(news(&mut protocol, &world).0, [A]);
    world.publish_entries(vec![world.entry("a")]);
    assert_eq!(news(&mut protocol, &world).0, [A], "default was unsubscribed");
}

#[test]
fn a_reconnected_client_gets_what_it_does_not_have() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut earlier = protocol(&world);
    earlier.receive(request(&["default", "ROOTCA"], &[])).unwrap();
    let held = next(&mut earlier, &world).unwrap().resources;
    let held = held.into_iter().map(|one| (one.name, one.version)).collect();
    world.publish_entries(vec![world.entry("a")]);
    let mut later = protocol(&world);
    let first = DeltaDiscoveryRequest {
        initial_resource_versions: held,
        ..request(&["default", "ROOTCA"], &[])
    };
    later.receive(first).unwrap();
    assert_eq!(news(&mut later, &world).0, ["default"]);
}

#[test]
fn a_client_that_has_more_than_a_stream_may_name_can_reconnect() {
    let world = World::new();
    let ids: Vec<String> = (0..300).map(|number| format!("a{number:03}")).collect();
    world.publish_entries(ids.iter().map(|id| world.entry(id)).collect());
    let mut earlier = protocol(&world);
    earlier.receive(request(&[], &[])).unwrap();
    let held = next(&mut earlier, &world).unwrap().resources;
    assert!(held.len() > 300);
    let held = held.into_iter().map(|one| (one.name, one.version));
    let mut later = protocol(&world);
    let first = DeltaDiscoveryRequest {
        initial_resource_versions: held
            .chain([(String::from("x").repeat(40_000), String::new())])
            .collect(),
        ..request(&[], &[])
    };
    later.receive(first).unwrap();
    let (again, removed) = news(&mut later, &world);
    assert_eq!(
        (again.len(), removed.len()),
        (0, 1),
        "it has all, and one that is not its own"
    );
    assert_eq!(news(&mut later, &world), nothing());
    world.publish_entries(ids[1..].iter().map(|id| world.entry(id)).collect());
    let removed = news(&mut later, &world).1;
    assert_eq!(removed.len(), 1, "{removed:?}");
    assert!(removed[0].ends_with("/a000"), "{removed:?}");
}

#[test]
fn what_is_subscribed_once_more_is_sent_once_more() {
    let world = World::new();
    let mut protocol = protocol(&world);
    for _ in 0..2 {
        protocol.receive(request(&["ROOTCA"], &[])).unwrap();
        assert_eq!(news(&mut protocol, &world).0, ["ROOTCA"]);
    }
}

#[test]
fn an_identity_that_is_taken_away_is_named_as_removed_once() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut protocol = protocol(&world);
    protocol.receive(request(&["default", A, "x"], &[])).unwrap();
    assert_eq!(news(&mut protocol, &world), (names(&["default", A]), Vec::new()));
    world.publish_entries(vec![world.unissued("a")]);
    assert_eq!(
        news(&mut protocol, &world),
        nothing(),
        "an SVID that ran out is renewed later"
    );
    world.publish_entries(Vec::new());
    assert_eq!(news(&mut protocol, &world), (Vec::new(), names(&["default", A])));
    assert_eq!(news(&mut protocol, &world), nothing());
    world.publish_entries(vec![world.entry("a")]);
    assert_eq!(news(&mut protocol, &world).0, ["default", A]);
}

#[test]
fn an_agent_that_was_restarted_removes_nothing_before_it_knows_the_entries() {
    let world = World::new();
    let mut protocol = protocol(&world);
    let first = DeltaDiscoveryRequest {
        initial_resource_versions: [("default".to_owned(), "old".to_owned())].into(),
        ..request(&["default"], &[])
    };
    protocol.receive(first).unwrap();
    let synced_at = world.svids.snapshot().synced_at;
    world.publish(|snapshot| snapshot.synced_at = None);
    assert_eq!(news(&mut protocol, &world), nothing());
    world.publish(|snapshot| snapshot.synced_at = synced_at);
    assert_eq!(news(&mut protocol, &world), (Vec::new(), names(&["default"])));
}

#[test]
fn a_stream_that_begins_without_names_gets_everything() {
    let world = World::new();
    let foreign = Foreign::new("z.test");
    let a = CachedEntry {
        federates_with: vec![foreign.name.clone()],
        ..world.entry("a")
    };
    world.publish_entries(vec![a]);
    world.publish(|snapshot| snapshot.federated = foreign.federated());
    let mut protocol = protocol(&world);
    protocol.receive(request(&[], &[])).unwrap();
    assert_eq!(news(&mut protocol, &world).0, [OWN, A, "spiffe://z.test"]);
    world.publish_entries(Vec::new());
    assert_eq!(news(&mut protocol, &world).1, [A, "spiffe://z.test"]);
    protocol.receive(request(&["default"], &["*"])).unwrap();
    world.publish_entries(vec![world.entry("b")]);
    assert_eq!(news(&mut protocol, &world).0, ["default"]);
    protocol.receive(request(&["*"], &[])).unwrap();
    assert_eq!(news(&mut protocol, &world).0, [OWN, B]);
}

#[test]
fn a_refused_resource_is_not_sent_again_until_it_is_another() {
    let world = World::new();
    world.publish_entries(vec![world.entry("a")]);
    let mut protocol = protocol(&world);
    protocol.receive(request(&["default"], &[])).unwrap();
    next(&mut protocol, &world).unwrap();
    let refusal = DeltaDiscoveryRequest {
        response_nonce: "n".to_owned(),
        error_detail: Some(rpc::Status::default()),
        ..Default::default()
    };
    protocol.receive(refusal).unwrap();
    assert_eq!(news(&mut protocol, &world), nothing());
    world.publish_entries(vec![world.entry("a")]);
    assert_eq!(news(&mut protocol, &world).0, ["default"]);
}

#[test]
fn names_do_not_pile_up_without_bound() {
    let world = World::new();
    let mut protocol = protocol(&world);
    let batch = |n: usize, length: usize| {
        let batch: Vec<String> = (0..100).map(|i| format!("{n}-{i:0length$}")).collect();
        DeltaDiscoveryRequest {
            resource_names_subscribe: batch,
            ..Default::default()
        }
    };
    for n in 0..2 {
        protocol.receive(batch(n, 8)).unwrap();
        // What is unsubscribed makes room.
        let mut again = batch(n + 10, 8);
        again.resource_names_unsubscribe = again.resource_names_subscribe.clone();
        protocol.receive(again).unwrap();
    }
    assert_eq!(
        protocol.receive(batch(2, 8)).unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut protocol = self::protocol(&world);
    assert_eq!(
        protocol.receive(batch(0, 400)).unwrap_err().code(),
        Code::InvalidArgument
    );
}
