//! What brokers get.

use finial_identity::key::PrivateKey;
use finial_identity::x509::Certificate;

use tonic::metadata::MetadataMap;

use super::*;
use crate::endpoints::limits::Admission;
use crate::endpoints::session::Session;
use crate::endpoints::testing::Foreign;
use crate::endpoints::workload_api::{Content, Messages};
use crate::workload::Process;

/// Covers BRK-01, BRK-10, BRK-11, BRK-33, BRK-35, BRK-51.
#[tokio::test]
async fn a_broker_gets_what_the_process_has_and_every_change_of_it() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    let of_others = CachedEntry {
        selectors: vec![Selector::parse("unix:uid:1001").unwrap()],
        ..stage.world.entry("other")
    };
    stage
        .world
        .publish_entries(vec![stage.world.entry("a"), of_others.clone()]);
    for transport in [Transport::Unix, Transport::Tcp] {
        let mut client = stage.broker(transport, "/broker").await;
        let mut stream = svids(&mut client, pid(workload.pid())).await.unwrap();
        assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a"]);
    }
    let mut stream = svids(&mut stage.client().await, pid(workload.pid()))
        .await
        .unwrap();
    let first = next(&mut stream).await.unwrap();
    let [svid] = &first.svids[..] else {
        panic!("{first:?}")
    };
    let chain = Certificate::parse_many(&svid.x509_svid).unwrap();
    let key = PrivateKey::from_pkcs8_der(&svid.x509_svid_key).unwrap();
    assert_eq!(chain[0].spiffe_id().unwrap().as_str(), svid.spiffe_id);
    assert_eq!(chain[0].public_key(), key.public_key());
    assert_eq!(
        Certificate::parse_many(&svid.bundle).unwrap(),
        [stage.world.authority.certificate()]
    );

    // What concerns others is no news for this stream.
    let a = stage.world.entry("a");
    stage.world.publish_entries(vec![a.clone(), of_others.clone()]);
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a"], "a new SVID");
    stage.world.publish_entries(vec![a.clone()]);
    stage.world.publish_entries(vec![a, stage.world.entry("b")]);
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a", "/b"]);
}

/// Covers BRK-53, BRK-68.
#[tokio::test]
async fn identities_of_administrators_and_downstream_servers_and_repeated_hints_are_left_out() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    let hinted = |id: &str, hint: &str| CachedEntry {
        hint: hint.to_owned(),
        ..stage.world.entry(id)
    };
    let admin = CachedEntry {
        admin: true,
        ..hinted("admin", "one")
    };
    let downstream = CachedEntry {
        downstream: true,
        ..hinted("downstream", "")
    };
    let entries = vec![
        admin.clone(),
        hinted("b", "one"),
        hinted("c", "one"),
        downstream.clone(),
        hinted("e", ""),
    ];
    stage.world.publish_entries(entries);
    let mut client = stage.client().await;
    let mut stream = svids(&mut client, pid(workload.pid())).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/b", "/e"]);
    let of = |tokens: Vec<pb::Jwtsvid>| -> Vec<String> {
        tokens.into_iter().map(|token| token.spiffe_id).collect()
    };
    let all = tokens(&mut client, pid(workload.pid()), &["db"], "")
        .await
        .unwrap();
    assert_eq!(of(all), ["spiffe://example.org/b", "spiffe://example.org/e"]);

    stage.world.publish_entries(vec![admin, downstream]);
    let status = next(&mut stream).await.unwrap_err();
    let not_entitled = (Code::PermissionDenied, Some("WORKLOAD_NOT_ENTITLED".to_owned()));
    assert_eq!(told(&status), not_entitled);
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(told(&status), not_entitled);
    }
}

/// Covers BRK-58, BRK-73.
#[tokio::test]
async fn bundles_are_the_own_one_and_those_that_the_workload_federates_with() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    let (friend, stranger) = (Foreign::new("friend.org"), Foreign::new("stranger.org"));
    let entry = CachedEntry {
        federates_with: vec![friend.name.clone()],
        ..stage.world.entry("a")
    };
    stage.world.publish(|snapshot| {
        snapshot.entries = [Arc::new(entry)].into_iter().collect();
        snapshot.federated = friend.federated();
        snapshot.federated.extend(stranger.federated());
    });
    let mut client = stage.client().await;
    let mut x509 = x509_bundles(&mut client, pid(workload.pid())).await.unwrap();
    let both = ["spiffe://example.org", "spiffe://friend.org"];
    let bundles = next(&mut x509).await.unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), both);
    assert_eq!(
        Certificate::parse_many(&bundles[both[0]]).unwrap(),
        [stage.world.authority.certificate()]
    );
    let mut jwt = jwt_bundles(&mut client, pid(workload.pid())).await.unwrap();
    let bundles = next(&mut jwt).await.unwrap().bundles;
    assert_eq!(bundles.keys().collect::<Vec<_>>(), both);

    let mut stream = svids(&mut client, pid(workload.pid())).await.unwrap();
    let message = next(&mut stream).await.unwrap();
    assert_eq!(message.federated_bundles.keys().collect::<Vec<_>>(), [both[1]]);
}

/// Covers BRK-64, BRK-65, BRK-66, BRK-67.
#[tokio::test]
async fn tokens_are_for_all_identities_or_the_one_that_is_named() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    stage
        .world
        .publish_entries(vec![stage.world.entry("a"), stage.world.entry("b")]);
    let mut client = stage.client().await;
    let of_workload = || pid(workload.pid());
    let ids = |tokens: Vec<pb::Jwtsvid>| -> Vec<String> {
        tokens.into_iter().map(|token| token.spiffe_id).collect()
    };
    let (a, b) = ("spiffe://example.org/a", "spiffe://example.org/b");
    let all = tokens(&mut client, of_workload(), &["db"], "").await.unwrap();
    assert!(all.iter().all(|token| token.svid.split('.').count() == 3));
    assert_eq!(ids(all), [a, b]);
    assert_eq!(
        ids(tokens(&mut client, of_workload(), &["db"], b).await.unwrap()),
        [b]
    );
    let other = tokens(&mut client, of_workload(), &["db"], "spiffe://example.org/c").await;
    assert_eq!(
        told(&other.unwrap_err()),
        (Code::PermissionDenied, Some("WORKLOAD_NOT_ENTITLED".to_owned()))
    );
    for (audience, spiffe_id) in [(&[][..], ""), (&[""], ""), (&["db"], "nobody")] {
        let status = tokens(&mut client, of_workload(), audience, spiffe_id).await;
        assert_eq!(status.unwrap_err().code(), Code::InvalidArgument);
    }
}

/// Covers BRK-43, BRK-47, BRK-55, BRK-59, BRK-70, BRK-75.
#[tokio::test]
async fn every_stream_ends_with_the_process() {
    let stage = Stage::new().await;
    let mut workload = stage.workload();
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    let mut client = stage.client().await;
    let mut stream = svids(&mut client, pid(workload.pid())).await.unwrap();
    let mut x509 = x509_bundles(&mut client, pid(workload.pid())).await.unwrap();
    let mut jwt = jwt_bundles(&mut client, pid(workload.pid())).await.unwrap();
    next(&mut stream).await.unwrap();
    next(&mut x509).await.unwrap();
    next(&mut jwt).await.unwrap();
    workload.end();
    let not_found = (Code::NotFound, Some("WORKLOAD_NOT_FOUND".to_owned()));
    assert_eq!(told(&next(&mut stream).await.unwrap_err()), not_found);
    assert_eq!(told(&next(&mut x509).await.unwrap_err()), not_found);
    assert_eq!(told(&next(&mut jwt).await.unwrap_err()), not_found);
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(told(&status), not_found);
    }
}

#[tokio::test]
async fn a_process_is_attested_again_before_anything_new_is_given_for_it() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    let of = |id: &str, fact: &str| CachedEntry {
        selectors: vec![Selector::parse(fact).unwrap()],
        ..stage.world.entry(id)
    };
    let publish = || {
        stage
            .world
            .publish_entries(vec![of("a", FACT), of("b", "unix:uid:1001")]);
    };
    publish();
    let mut stream = svids(&mut stage.client().await, pid(workload.pid()))
        .await
        .unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a"]);
    stage.facts.set(workload.pid(), &["unix:uid:1001"]);
    publish();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/b"]);
}

/// The messages of both APIs have the same fields under the same numbers, so one encoding serves both.
///
/// Covers BRK-52.
#[tokio::test]
async fn the_encoding_of_the_workload_api_is_that_of_this_api() {
    use finial_proto::workload;
    let world = World::new();
    let entry = CachedEntry {
        hint: "hint".to_owned(),
        ..world.entry("a")
    };
    world.publish_entries(vec![entry]);
    let process = Process::open(std::process::id().into(), &ProcFs::default()).unwrap();
    let admitted = Admission::new(8).admit(0).unwrap();
    let session = Session::on_behalf_of(
        &Sessions::new(world.parts()),
        crate::workload::Workload::Process(Arc::new(process)),
        &Arc::new(admitted),
        &MetadataMap::new(),
        Content::X509Svids.access(),
    )
    .await
    .unwrap();
    let encoded = Messages::of(session, Content::X509Svids).next().await.unwrap();
    let encoded = encoded.message();
    let theirs = workload::X509svidResponse::decode(encoded.clone()).unwrap();
    let ours = pb::SubscribeToX509svidResponse::decode(encoded.clone()).unwrap();
    assert_eq!(ours.encode_to_vec(), encoded);
    let (ours, theirs) = (&ours.svids[0], &theirs.svids[0]);
    assert_eq!(
        (&ours.spiffe_id, &ours.hint, &ours.x509_svid[..], &ours.bundle[..]),
        (
            &theirs.spiffe_id,
            &theirs.hint,
            &theirs.x509_svid[..],
            &theirs.bundle[..]
        )
    );
    assert!(!ours.x509_svid_key.is_empty() && ours.x509_svid_key == theirs.x509_svid_key);
}
