//! What streams and answers hold, and when they say something new.

use std::collections::BTreeMap;

use finial_identity::key::PrivateKey;
use finial_identity::process::Clock;
use finial_identity::x509::Certificate;
use tokio::time::advance;

use super::*;
use crate::endpoints::delegated::Shared;
use crate::endpoints::delegated::streams::{Content as _, Look, X509Svids};
use crate::endpoints::delegated::target::Target;
use crate::endpoints::testing::Foreign;
use crate::node::NodeState;

#[tokio::test]
async fn given_selectors_get_their_svids_with_chain_key_and_hint() {
    let stage = Stage::new();
    let (foreign, unwanted) = (Foreign::new("foreign.test"), Foreign::new("unwanted.test"));
    stage.world.publish(|snapshot| {
        snapshot.federated = foreign.federated();
        snapshot.federated.extend(unwanted.federated());
    });
    let entry = CachedEntry {
        hint: "internal".to_owned(),
        federates_with: vec![foreign.name.clone()],
        ..stage.entry("a", "k8s:ns:shop")
    };
    let issued = Arc::clone(entry.svid.as_ref().unwrap());
    stage.publish(vec![
        entry,
        stage.entry("b", "k8s:sa:web"),
        stage.entry("c", "k8s:ns:other"),
    ]);
    let mut stream = stage.svids(&["k8s:ns:shop", "k8s:sa:web"], 0).await.unwrap();
    let message = next(&mut stream).await.unwrap();
    assert_eq!(paths(&message), ["/a", "/b"]);
    assert_eq!(message.federates_with, ["spiffe://foreign.test"]);
    let first = message.x509_svids[0].clone();
    let svid = first.x509_svid.unwrap();
    assert_eq!(svid.hint, "internal");
    assert_eq!(svid.expires_at, issued.expires_at().unix_timestamp());
    let chain: Vec<_> = svid
        .cert_chain
        .iter()
        .map(|der| Certificate::parse(der).unwrap())
        .collect();
    assert_eq!(chain, issued.svid.chain());
    let key = PrivateKey::from_pkcs8_der(&first.x509_svid_key).unwrap();
    assert_eq!(key.public_key(), chain[0].public_key());
}

#[tokio::test]
async fn svids_of_administrators_and_downstream_servers_stay_where_they_are() {
    let stage = Stage::new();
    let admin = CachedEntry {
        admin: true,
        svid: None,
        ..stage.entry("admin", "k8s:ns:shop")
    };
    let downstream = CachedEntry {
        downstream: true,
        ..stage.entry("downstream", "k8s:ns:shop")
    };
    stage.publish(vec![admin, downstream, stage.entry("plain", "k8s:ns:shop")]);
    let mut stream = stage.svids(&["k8s:ns:shop"], 0).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/plain"]);
}

#[tokio::test]
async fn each_change_is_told_whole_and_nothing_else_is() {
    let stage = Stage::new();
    let mut stream = stage.svids(&["k8s:ns:shop"], 0).await.unwrap();
    let none: [&str; 0] = [];
    assert_eq!(
        paths(&next(&mut stream).await.unwrap()),
        none,
        "no identity is an answer"
    );
    let a = stage.entry("a", "k8s:ns:shop");
    stage.publish(vec![a.clone()]);
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a"]);
    stage.publish(vec![a.clone(), stage.entry("other", "k8s:ns:other")]);
    stage.publish(vec![a.clone(), stage.entry("b", "k8s:ns:shop")]);
    assert_eq!(
        paths(&next(&mut stream).await.unwrap()),
        ["/a", "/b"],
        "the other changed nothing"
    );
    let renewed = CachedEntry {
        svid: Some(stage.world.issue("a")),
        ..a.clone()
    };
    stage.publish(vec![renewed]);
    let message = next(&mut stream).await.unwrap();
    assert_eq!(paths(&message), ["/a"]);
    assert_ne!(message.x509_svids[0].x509_svid_key, a.svid.unwrap().key_pkcs8);
    stage.publish(Vec::new());
    assert_eq!(paths(&next(&mut stream).await.unwrap()), none);
}

#[tokio::test(start_paused = true)]
async fn an_svid_that_is_being_signed_is_waited_for_but_not_for_ever() {
    let (world, facts) = (World::new(), FactsByPid::default());
    let unissued = world.unissued("a");
    let shared = Arc::new(Shared::from(parts(&world, &facts)));
    let selectors = wire_selectors(&["unix:uid:1000"]);
    let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
    let mut content = X509Svids::new(
        &shared,
        Target::of(&shared, &admitted, &selectors, 0).await.unwrap(),
    );
    world.publish_entries(vec![unissued.clone()]);
    let snapshot = world.svids.snapshot();
    let Look::Wait(Some(until)) = content.look(&snapshot, true) else {
        panic!("it is waited for");
    };
    advance(until - tokio::time::Instant::now()).await;
    assert!(matches!(content.look(&snapshot, true), Look::End(status) if status.code() == Code::Unavailable));
    assert!(
        matches!(content.look(&snapshot, false), Look::Wait(None)),
        "later ones may come"
    );
    world.publish_entries(vec![unissued, world.entry("b")]);
    let Look::Ready(message) = content.look(&world.svids.snapshot(), true) else {
        panic!("what there is is given");
    };
    assert_eq!(paths(&message), ["/b"]);

    // A new stream waits neither for a server that is gone nor for what could not be signed.
    let target = Target::of(&shared, &admitted, &selectors, 0).await.unwrap();
    let mut content = X509Svids::new(&shared, target);
    let mut is_ready = |world: &World| {
        let look = content.look(&world.svids.snapshot(), true);
        matches!(look, Look::Ready(message) if paths(&message) == ["/b"])
    };
    assert!(!is_ready(&world));
    world.svids.note_signing_trouble(true);
    assert!(is_ready(&world));
    world.svids.note_signing_trouble(false);
    assert!(!is_ready(&world));
    let failed = CachedEntry {
        signing_failed: true,
        ..world.unissued("a")
    };
    world.publish_entries(vec![failed, world.entry("b")]);
    assert!(is_ready(&world));
}

#[tokio::test(start_paused = true)]
async fn what_expired_while_the_machine_slept_is_not_handed_out() {
    let clock = Clock::paused_at(Clock::system().now());
    let (world, facts) = (World::at(clock.clone()), FactsByPid::default());
    let shared = Arc::new(Shared::from(parts(&world, &facts)));
    let selectors = wire_selectors(&["unix:uid:1000"]);
    let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
    let target = Target::of(&shared, &admitted, &selectors, 0).await.unwrap();
    let mut content = X509Svids::new(&shared, target);
    world.publish_entries(vec![world.entry("a")]);
    let snapshot = world.svids.snapshot();
    assert!(matches!(content.look(&snapshot, true), Look::Ready(_)));
    // The cache has not noticed yet.
    clock.shift(time::Duration::hours(2));
    assert!(matches!(content.look(&snapshot, false), Look::Wait(Some(_))));
}

#[tokio::test]
async fn what_concerns_others_does_not_wake_a_stream() {
    use futures_util::FutureExt as _;
    let (world, facts) = (World::new(), FactsByPid::default());
    let shared = Arc::new(Shared::from(parts(&world, &facts)));
    let selectors = wire_selectors(&["unix:uid:1000"]);
    let admitted = Arc::new(Admission::new(8).admit(0).unwrap());
    let mut content = X509Svids::new(
        &shared,
        Target::of(&shared, &admitted, &selectors, 0).await.unwrap(),
    );
    let of_another = CachedEntry {
        selectors: vec![Selector::parse("unix:uid:7").unwrap()],
        ..world.entry("b")
    };
    world.publish_entries(vec![of_another.clone()]);
    assert!(content.news().now_or_never().is_none());
    world.publish_entries(vec![of_another.clone(), world.entry("a")]);
    assert!(content.news().now_or_never().is_some());
    world.publish_entries(vec![of_another, world.entry("a")]);
    content.mark_seen();
    assert!(content.news().now_or_never().is_none());
}

#[tokio::test]
async fn bundles_of_all_trust_domains_come_whole_and_follow_changes() {
    let stage = Stage::new();
    let (own, foreign) = ("spiffe://example.org", Foreign::new("foreign.test"));
    stage
        .world
        .publish(|snapshot| snapshot.federated = foreign.federated());
    let (mut x509, mut jwt) = (
        stage.x509_bundles().await.unwrap(),
        stage.jwt_bundles().await.unwrap(),
    );
    let certificates = next(&mut x509).await.unwrap().ca_certificates;
    assert_eq!(
        certificates,
        BTreeMap::from([
            (own.to_owned(), stage.world.own_bundle().x509_der_concat().into()),
            (
                "spiffe://foreign.test".to_owned(),
                foreign.bundle.x509_der_concat().into()
            ),
        ])
    );
    let keys = next(&mut jwt).await.unwrap().bundles;
    assert_eq!(keys.keys().collect::<Vec<_>>(), [own, "spiffe://foreign.test"]);
    assert_eq!(keys[own], stage.world.own_bundle().to_jwks().as_bytes());

    // A trust domain without X.509 authorities is left out: clients fail on an empty value.
    let mut empty = foreign.bundle.clone();
    empty.x509_authorities.clear();
    stage.world.publish(|snapshot| {
        snapshot.federated = BTreeMap::from([(foreign.name.clone(), Arc::new(empty))]);
    });
    let certificates = next(&mut x509).await.unwrap().ca_certificates;
    assert_eq!(certificates.into_keys().collect::<Vec<_>>(), [own]);
    stage.world.publish(|snapshot| snapshot.federated.clear());
    assert_eq!(
        next(&mut jwt)
            .await
            .unwrap()
            .bundles
            .into_keys()
            .collect::<Vec<_>>(),
        [own]
    );
}

#[tokio::test]
async fn a_token_for_each_identity_of_the_target() {
    let stage = Stage::new();
    let hinted = CachedEntry {
        hint: "external".to_owned(),
        ..stage.entry("b", "k8s:ns:shop")
    };
    stage.publish(vec![
        stage.entry("a", "k8s:ns:shop"),
        hinted,
        stage.entry("c", "k8s:ns:other"),
    ]);
    let svids = stage.jwt(&["db"], &["k8s:ns:shop"], 0).await.unwrap();
    let shown: Vec<_> = svids
        .iter()
        .map(|svid| (svid.id.as_ref().unwrap().path.as_str(), svid.hint.as_str()))
        .collect();
    assert_eq!(shown, [("/a", ""), ("/b", "external")]);
    for svid in &svids {
        assert_eq!(svid.expires_at - svid.issued_at, 300);
        let token = finial_identity::jwt::parse_unverified(&svid.token).unwrap();
        assert_eq!(token.kid, crate::endpoints::testing::KEY_ID);
    }
    stage.publish(vec![stage.entry("unsignable", "k8s:ns:shop")]);
    let status = stage.jwt(&["db"], &["k8s:ns:shop"], 0).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "could not fetch JWT-SVID")
    );
}

#[tokio::test]
async fn a_ban_denies_open_streams() {
    let stage = Stage::new();
    let mut svids = stage.svids(&["k8s:ns:shop"], 0).await.unwrap();
    next(&mut svids).await.unwrap();
    stage.world.node.send_replace(NodeState::Banned);
    assert_eq!(next(&mut svids).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(
        stage
            .refusals()
            .await
            .iter()
            .all(|(code, _)| *code == Code::PermissionDenied)
    );
}

#[tokio::test]
async fn a_stopping_agent_ends_streams_with_unavailable() {
    let stage = Stage::new();
    let mut bundles = stage.x509_bundles().await.unwrap();
    next(&mut bundles).await.unwrap();
    let stop = stage.world.tasks.run_until_first_exit(std::future::ready(()));
    let (stopped, status) = tokio::join!(stop, next(&mut bundles));
    stopped.unwrap();
    assert_eq!(status.unwrap_err().code(), Code::Unavailable);
}
