use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::selector::Selector;
use finial_identity::x509::Certificate;
use finial_proto::workload::X509BundlesRequest;

use super::*;
use crate::node::NodeState;
use crate::svids::CachedEntry;

#[tokio::test]
async fn rule_4_a_caller_without_identity_hears_exactly_no_identity_issued() {
    let served = World::new().serve();
    let expected = (Code::PermissionDenied, "no identity issued".to_owned());
    assert_eq!(x509_refusal(&served).await, expected);
    let mut client = served.client().await;
    let status = client
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .unwrap_err();
    assert_eq!((status.code(), status.message().to_owned()), expected);
}

#[tokio::test]
async fn rule_6_failed_attestation_and_missing_sync_are_unavailable() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    *served.world.facts.lock().unwrap() = None;
    let expected = (Code::Unavailable, "workload attestation failed".to_owned());
    assert_eq!(x509_refusal(&served).await, expected);

    let served = World::new().serve();
    served.world.publish(|snapshot| snapshot.synced_at = None);
    assert_eq!(x509_refusal(&served).await.0, Code::Unavailable);
}

#[tokio::test]
async fn rule_7_the_loss_of_the_last_identity_ends_the_stream_with_permission_denied() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = x509_stream(&served).await;
    next(&mut stream).await.unwrap();
    served.world.publish_entries(Vec::new());
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "no identity issued")
    );
}

#[tokio::test]
async fn a_process_that_became_another_user_gets_nothing_new_of_the_former() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = x509_stream(&served).await;
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["a"]);
    *served.world.facts.lock().unwrap() = Some(vec!["unix:uid:2000"]);
    let other = CachedEntry {
        selectors: vec![Selector::parse("unix:uid:2000").unwrap()],
        ..served.world.entry("other")
    };
    let renewed = served.world.entry("a");
    served.world.publish_entries(vec![renewed.clone(), other]);
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["other"]);
    served.world.publish_entries(vec![renewed]);
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "no identity issued")
    );
}

#[tokio::test]
async fn an_open_stream_is_attested_for_new_content_alone_and_ends_when_that_fails() {
    let served = World::new().serve();
    let entry = served.world.entry("a");
    served.world.publish_entries(vec![entry.clone()]);
    let mut stream = x509_stream(&served).await;
    next(&mut stream).await.unwrap();
    *served.world.facts.lock().unwrap() = None;
    let unrelated = CachedEntry {
        selectors: vec![Selector::parse("unix:uid:2000").unwrap()],
        ..served.world.entry("unrelated")
    };
    served.world.publish_entries(vec![entry, unrelated]);
    let quiet = tokio::time::timeout(Duration::from_millis(100), stream.message()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    served.world.publish_entries(vec![served.world.entry("a")]);
    assert_eq!(next(&mut stream).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_ban_ends_open_streams_with_permission_denied() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = x509_stream(&served).await;
    next(&mut stream).await.unwrap();
    served.world.node.send_replace(NodeState::Banned);
    assert_eq!(
        next(&mut stream).await.unwrap_err().code(),
        Code::PermissionDenied
    );
    assert_eq!(x509_refusal(&served).await.0, Code::PermissionDenied);
}

#[tokio::test]
async fn trouble_with_the_server_keeps_streams_open() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let mut stream = x509_stream(&served).await;
    next(&mut stream).await.unwrap();
    served
        .world
        .node
        .send_replace(NodeState::Degraded("server is away".to_owned()));
    served.world.publish_entries(vec![served.world.entry("b")]);
    assert_eq!(ids(&next(&mut stream).await.unwrap()), ["b"]);
}

#[tokio::test]
async fn rule_8_chain_key_and_bundle_are_der_leaf_first() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    let svid = response.svids.first().unwrap();
    let chain = Certificate::parse_many(&svid.x509_svid).unwrap();
    let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
    assert_eq!(
        chain.first().unwrap().public_key(),
        finial_identity::key::Signer::public_key(&key)
    );
    let bundle = Certificate::parse_many(&svid.bundle).unwrap();
    assert_eq!(bundle, [served.world.authority.certificate()]);
    assert!(response.crl.is_empty());
}

#[tokio::test]
async fn rule_9_the_spiffe_id_is_the_only_uri_of_the_leaf() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    let svid = response.svids.first().unwrap();
    let leaf = Certificate::parse_many(&svid.x509_svid).unwrap().remove(0);
    assert_eq!(leaf.uri_sans(), std::slice::from_ref(&svid.spiffe_id));
}

#[tokio::test]
async fn rule_9_an_svid_of_an_earlier_identity_of_the_entry_is_not_handed_out() {
    let served = World::new().serve();
    let (old, renamed) = (served.world.entry("old"), served.world.unissued("renamed"));
    let renamed = CachedEntry {
        svid: old.svid,
        ..renamed
    };
    let other = served.world.entry("z");
    served.world.publish_entries(vec![renamed, other]);
    let mut stream = x509_stream_later(&served);
    let issued = served.world.entry("renamed");
    served.world.publish_entries(vec![issued]);
    assert_eq!(ids(&stream.recv().await), ["renamed"]);
}

#[tokio::test]
async fn rule_11_keys_are_ecdsa_on_p256() {
    let served = World::new().serve();
    served.world.publish_entries(vec![served.world.entry("a")]);
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    let key = PrivateKey::from_pkcs8_der(&response.svids.first().unwrap().x509_svid_key).unwrap();
    assert_eq!(key.key_type(), Some(KeyType::EcP256));
}

#[tokio::test]
async fn rules_12_and_13_foreign_bundles_are_keyed_by_id_and_never_empty() {
    let served = World::new().serve();
    let (full, mut bare) = (Foreign::new("full.test"), Foreign::new("bare.test"));
    bare.bundle.x509_authorities.clear();
    let unrelated = Foreign::new("unrelated.test");
    let mut entry = served.world.entry("a");
    entry.federates_with = vec![bare.name.clone(), full.name.clone()];
    served.world.publish(|snapshot| {
        for foreign in [&full, &bare, &unrelated] {
            snapshot.federated.extend(foreign.federated());
        }
        snapshot.entries = std::iter::once(Arc::new(entry)).collect();
    });
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    let names: Vec<_> = response.federated_bundles.keys().collect();
    assert_eq!(names, ["spiffe://full.test"]);

    let mut client = served.client().await;
    let mut bundles = client
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .unwrap()
        .into_inner();
    let response = next(&mut bundles).await.unwrap();
    let names: Vec<_> = response.bundles.keys().collect();
    assert_eq!(names, ["spiffe://example.org", "spiffe://full.test"]);
    let own = response.bundles.get("spiffe://example.org").unwrap();
    assert_eq!(
        Certificate::parse_many(own).unwrap(),
        [served.world.authority.certificate()]
    );
}

#[tokio::test]
async fn rule_16_the_oldest_entry_keeps_a_hint_and_later_ones_are_left_out() {
    let served = World::new().serve();
    let hinted = |id: &str, created_at: i64| CachedEntry {
        hint: "db".to_owned(),
        created_at,
        ..served.world.entry(id)
    };
    served.world.publish_entries(vec![
        hinted("a", 20),
        hinted("b", 10),
        hinted("c", 10),
        served.world.entry("d"),
        served.world.entry("e"),
    ]);
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    assert_eq!(
        ids(&response),
        ["b", "d", "e"],
        "entries without hint are no duplicates"
    );
}

#[tokio::test]
async fn rule_17_identities_are_ordered_by_entry_id() {
    let served = World::new().serve();
    let mut entries: Vec<_> = ["a", "b", "c"].map(|id| served.world.entry(id)).into();
    for (entry, created_at) in entries.iter_mut().zip([30, 20, 10]) {
        entry.created_at = created_at;
        entry.hint = format!("hint-{created_at}");
    }
    served.world.publish_entries(entries);
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    assert_eq!(ids(&response), ["a", "b", "c"]);
}

#[tokio::test]
async fn rule_18_a_message_comes_only_when_content_for_this_caller_changed() {
    let served = World::new().serve();
    let entry = served.world.entry("a");
    served.world.publish_entries(vec![entry.clone()]);
    let mut stream = x509_stream(&served).await;
    next(&mut stream).await.unwrap();
    let mut bundles = served
        .client()
        .await
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .unwrap()
        .into_inner();
    next(&mut bundles).await.unwrap();
    // Nothing, an entry of somebody else, and a time of synchronisation are no news.
    let mut other = served.world.entry("b");
    other.selectors = vec![finial_identity::selector::Selector::parse("unix:uid:5").unwrap()];
    served.world.publish(|_same| ());
    served.world.publish_entries(vec![entry.clone(), other]);
    served
        .world
        .publish(|snapshot| snapshot.synced_at = Some(served.world.clock.now()));
    // A renewal is.
    let renewed = CachedEntry {
        svid: Some(served.world.issue("a")),
        ..entry
    };
    let chain = renewed.svid.as_ref().unwrap().chain_der.clone();
    served.world.publish_entries(vec![renewed]);
    let response = next(&mut stream).await.unwrap();
    assert_eq!(response.svids.first().unwrap().x509_svid, chain);
    // And a new authority, on both streams; for the bundle stream the renewal was none.
    let other_authority = crate::test_pki::Authority::new(TRUST_DOMAIN);
    let mut bundle = served.world.own_bundle();
    bundle
        .x509_authorities
        .extend(other_authority.bundle().x509_authorities);
    let expected = bundle.x509_der_concat();
    served
        .world
        .publish(|snapshot| snapshot.own_bundle = Arc::new(bundle));
    let response = next(&mut stream).await.unwrap();
    assert_eq!(response.svids.first().unwrap().bundle, expected);
    let response = next(&mut bundles).await.unwrap();
    assert_eq!(response.bundles.get("spiffe://example.org").unwrap(), &expected);
}

#[tokio::test]
async fn rule_19_an_identity_whose_svid_is_being_signed_is_waited_for() {
    let served = World::new().serve();
    served
        .world
        .publish_entries(vec![served.world.entry("a"), served.world.unissued("b")]);
    let mut stream = x509_stream_later(&served);
    // Both, although one of them could have been sent before.
    served
        .world
        .publish_entries(vec![served.world.entry("a"), served.world.entry("b")]);
    assert_eq!(ids(&stream.recv().await), ["a", "b"]);
}

#[tokio::test]
async fn rule_20_an_answer_may_exceed_four_megabytes() {
    let served = World::new().serve();
    let one = served.world.entry("a");
    let entries = (0..6000).map(|index| CachedEntry {
        entry_id: format!("entry-{index:05}"),
        hint: format!("hint-{index}"),
        ..one.clone()
    });
    served.world.publish_entries(entries.collect());
    let response = next(&mut x509_stream(&served).await).await.unwrap();
    assert_eq!(response.svids.len(), 6000);
    assert!(prost::Message::encoded_len(&response) > 4 << 20);
}

#[tokio::test]
async fn rule_21_the_socket_is_there_as_soon_as_it_is_bound_and_gone_when_stopped() {
    let served = World::new().serve(); // Checks the modes.
    let path = served.path.clone();
    assert!(path.exists());
    served.stop().await;
    assert!(!path.exists());
}

#[tokio::test]
async fn verifiers_without_identity_get_the_own_bundle_alone_where_that_is_allowed() {
    let mut world = World::new();
    world.policy.allow_unauthenticated_verifiers = true;
    let served = world.serve();
    let foreign = Foreign::new("full.test");
    served
        .world
        .publish(|snapshot| snapshot.federated = foreign.federated());
    let mut client = served.client().await;
    let mut bundles = client
        .fetch_x509_bundles(X509BundlesRequest {})
        .await
        .unwrap()
        .into_inner();
    let response = next(&mut bundles).await.unwrap();
    let names: Vec<_> = response.bundles.keys().collect();
    assert_eq!(names, ["spiffe://example.org"]);
    assert_eq!(
        x509_refusal(&served).await.0,
        Code::PermissionDenied,
        "identities are another matter"
    );
}

#[tokio::test]
async fn entries_for_svid_stores_never_reach_a_workload() {
    let served = World::new().serve();
    let stored = CachedEntry {
        store_svid: true,
        ..served.world.entry("a")
    };
    served.world.publish_entries(vec![stored]);
    assert_eq!(x509_refusal(&served).await.0, Code::PermissionDenied);
}

/// The first message of a stream that is opened now and answered later.
struct Later(tokio::task::JoinHandle<finial_proto::workload::X509svidResponse>);

impl Later {
    async fn recv(&mut self) -> finial_proto::workload::X509svidResponse {
        in_time(&mut self.0).await.unwrap()
    }
}

#[allow(clippy::disallowed_methods)] // The test waits for the task.
fn x509_stream_later(served: &Served) -> Later {
    let path = served.path.clone();
    Later(tokio::spawn(async move {
        let mut client = crate::endpoints::client::workload(&path).await.unwrap();
        let stream = client
            .fetch_x509svid(finial_proto::workload::X509svidRequest {})
            .await
            .unwrap();
        next(&mut stream.into_inner()).await.unwrap()
    }))
}
