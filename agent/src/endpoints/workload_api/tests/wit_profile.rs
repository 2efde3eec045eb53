//! The WIT profile (Workload API §7).

use std::collections::HashSet;

use finial_identity::bundle::WitAuthority;
use finial_identity::key::PublicKey;
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::wit::{self, DEFAULT_SKEW};
use finial_proto::workload::{WitBundlesRequest, Witsvid, WitsvidRequest, WitsvidResponse};
use serde_json::Value;

use super::*;
use crate::endpoints::codec::Framed;
use crate::endpoints::testing::WIT_KEY_ID;

fn request(spiffe_id: &str) -> WitsvidRequest {
    WitsvidRequest {
        spiffe_id: spiffe_id.to_owned(),
    }
}

async fn wit_stream(served: &Served) -> Streaming<WitsvidResponse> {
    let mut client = served.client().await;
    let stream = in_time(client.fetch_witsvid(request(""))).await;
    stream.unwrap().into_inner()
}

fn named(response: &WitsvidResponse) -> Vec<(&str, &str)> {
    let svids = response.svids.iter();
    svids
        .map(|svid| (svid.spiffe_id.rsplit('/').next().unwrap(), svid.hint.as_str()))
        .collect()
}

/// Token and key belong together and the bundle vouches for the token.
fn check(world: &World, svid: &Witsvid) {
    let keys = |_: &TrustDomain| Some(world.own_bundle().wit_authorities);
    let unproven = wit::validate(&svid.wit_svid, &keys, world.clock.now(), DEFAULT_SKEW).unwrap();
    let jwk: serde_json::Map<String, Value> = serde_json::from_str(&svid.wit_svid_key).unwrap();
    assert_eq!(&PublicKey::from_jwk(&jwk).unwrap(), unproven.confirmation_key());
    assert!(jwk.contains_key("d"));
    let read = wit::parse_unverified(&svid.wit_svid).unwrap();
    assert_eq!(read.claims["sub"], svid.spiffe_id.as_str());
}

#[tokio::test]
async fn both_calls_are_unimplemented_where_the_profile_is_off() {
    let world = World::new();
    world.publish_entries(vec![world.entry("web")]);
    let served = world.serve();
    let mut client = served.client().await;
    let refused = in_time(client.fetch_witsvid(request(""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let refused = in_time(client.fetch_wit_bundles(WitBundlesRequest {}))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    served.stop().await;
}

#[tokio::test]
async fn every_identity_has_a_token_of_its_own_in_a_stable_order_with_unique_hints() {
    let world = World::with_wit(Clock::system());
    let hinted = |id: &str, hint: &str, created_at: i64| CachedEntry {
        hint: hint.to_owned(),
        created_at,
        ..world.unissued(id)
    };
    world.publish_entries(vec![
        hinted("c", "twin", 5),
        hinted("a", "", 1),
        hinted("b", "twin", 4),
        hinted("d", "own", 9),
    ]);
    let served = world.serve();
    let mut stream = wit_stream(&served).await;
    let response = next(&mut stream).await.unwrap();
    assert_eq!(named(&response), [("a", ""), ("b", "twin"), ("d", "own")]);
    response.svids.iter().for_each(|svid| check(&served.world, svid));
    let keys: HashSet<_> = response.svids.iter().map(|svid| &svid.wit_svid_key).collect();
    assert_eq!(keys.len(), 3);
    let again = next(&mut wit_stream(&served).await).await.unwrap();
    assert_eq!(again, response, "the cache holds them");
    served.stop().await;
}

#[tokio::test]
async fn one_identity_can_be_asked_for_and_none_is_denied() {
    let world = World::with_wit(Clock::system());
    world.publish_entries(vec![world.unissued("a"), world.unissued("b")]);
    let served = world.serve();
    let mut client = served.client().await;
    let only = format!("spiffe://{TRUST_DOMAIN}/b");
    let mut stream = in_time(client.fetch_witsvid(request(&only)))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(named(&next(&mut stream).await.unwrap()), [("b", "")]);
    for (id, code) in [
        ("spiffe://example.org/elsewhere", Code::PermissionDenied),
        ("x", Code::InvalidArgument),
    ] {
        let refused = in_time(client.fetch_witsvid(request(id))).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
    }
    served.world.publish_entries(vec![]);
    let refused = next(&mut stream).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    assert!(refused.message().starts_with("no identity issued"), "{refused}");
    let refused = in_time(client.fetch_witsvid(request(""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    let refused = in_time(client.fetch_wit_bundles(WitBundlesRequest {}))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    served.stop().await;
}

#[tokio::test]
async fn an_open_stream_gets_what_was_added_and_keeps_the_rest() {
    let world = World::with_wit(Clock::system());
    world.publish_entries(vec![world.unissued("a")]);
    let served = world.serve();
    let mut stream = wit_stream(&served).await;
    let first = next(&mut stream).await.unwrap();
    let entries = vec![served.world.unissued("a"), served.world.unissued("b")];
    served.world.publish_entries(entries);
    let second = next(&mut stream).await.unwrap();
    assert_eq!(named(&second), [("a", ""), ("b", "")]);
    assert_eq!(second.svids[0], first.svids[0]);
    served.stop().await;
}

#[tokio::test]
async fn an_identity_that_cannot_be_signed_leaves_the_others_and_alone_is_unavailable() {
    let world = World::with_wit(Clock::system());
    world.publish_entries(vec![world.unissued("unsignable")]);
    let served = world.serve();
    let mut client = served.client().await;
    let refused = in_time(client.fetch_witsvid(request(""))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    let entries = vec![served.world.unissued("a"), served.world.unissued("unsignable")];
    served.world.publish_entries(entries);
    let mut stream = wit_stream(&served).await;
    assert_eq!(named(&next(&mut stream).await.unwrap()), [("a", "")]);
    served.stop().await;
}

#[tokio::test(start_paused = true)]
async fn tokens_are_renewed_with_new_keys_at_half_of_their_life() {
    let world = World::with_wit(Clock::paused_at(Clock::system().now()));
    world.publish_entries(vec![world.unissued("a")]);
    let workload = Workload::start();
    let sessions = sessions(&world);
    let request = workload.request_of(request(""));
    let mut messages = super::super::wit::Messages::open(&sessions, &request)
        .await
        .unwrap();
    let decode = |framed: Framed| <WitsvidResponse as prost::Message>::decode(framed.message()).unwrap();
    let first = decode(messages.next().await.unwrap());
    check(&world, &first.svids[0]);
    let started = tokio::time::Instant::now();
    let second = decode(messages.next().await.unwrap());
    let waited = started.elapsed().as_secs();
    assert!((149..=152).contains(&waited), "half of five minutes: {waited}");
    check(&world, &second.svids[0]);
    assert_ne!(first.svids[0].wit_svid_key, second.svids[0].wit_svid_key);
}

/// A stream that has its token, and then has another.
async fn token_is_replaced(world: World, change: impl FnOnce(&World)) {
    world.publish_entries(vec![world.unissued("a")]);
    let served = world.serve();
    let mut stream = wit_stream(&served).await;
    let first = next(&mut stream).await.unwrap();
    change(&served.world);
    let second = next(&mut stream).await.unwrap();
    assert_ne!(first.svids[0].wit_svid, second.svids[0].wit_svid);
    served.stop().await;
}

/// As the sync task does it: first the cache forgets, then the bundle is published.
fn forget_authority(world: &World) {
    let cache = world.svids.wit_cache().unwrap();
    cache.forget_authorities(&HashSet::from([WIT_KEY_ID.to_owned()]));
    assert!(cache.is_empty());
}

#[tokio::test]
async fn what_an_authority_signed_that_the_bundle_calls_tainted_is_replaced_at_once() {
    // Nobody told the cache, which keeps nothing: the bundle alone says it.
    token_is_replaced(World::with_wit_not_kept(Clock::system()), |world| {
        let mut bundle = world.own_bundle();
        bundle.taint_wit(WIT_KEY_ID).unwrap();
        world.publish(|snapshot| snapshot.own_bundle = Arc::new(bundle));
    })
    .await;
}

#[tokio::test]
async fn what_an_authority_signed_that_was_tainted_and_revoked_in_one_step_is_replaced_at_once() {
    for world in [World::with_wit, World::with_wit_not_kept] {
        token_is_replaced(world(Clock::system()), |world| {
            forget_authority(world);
            let mut bundle = world.own_bundle();
            bundle.wit_authorities.clear();
            world.publish(|snapshot| snapshot.own_bundle = Arc::new(bundle));
        })
        .await;
    }
}

#[tokio::test]
async fn bundles_are_text_with_the_wit_keys_alone_and_the_own_one_is_among_them() {
    let mut world = World::with_wit(Clock::system());
    world.policy.allow_unauthenticated_verifiers = true;
    let served = world.serve();
    let mut client = served.client().await;
    let mut stream = in_time(client.fetch_wit_bundles(WitBundlesRequest {}))
        .await
        .unwrap()
        .into_inner();
    let first = next(&mut stream).await.unwrap().bundles;
    let own = &first[&format!("spiffe://{TRUST_DOMAIN}")];
    let keys: Value = serde_json::from_str(own).unwrap();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 1);
    assert_eq!(keys["keys"][0]["kid"], WIT_KEY_ID);
    let mut bundle = served.world.own_bundle();
    let WitAuthority(mut other) = bundle.wit_authorities[0].clone();
    other.key_id = "next".to_owned();
    assert!(bundle.append_wit(vec![WitAuthority(other)]));
    served
        .world
        .publish(|snapshot| snapshot.own_bundle = Arc::new(bundle));
    let second = next(&mut stream).await.unwrap().bundles;
    assert!(second[&format!("spiffe://{TRUST_DOMAIN}")].contains("\"next\""));
    served.stop().await;
}
