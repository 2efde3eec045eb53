//! Who is refused, and what is.

use super::*;
use crate::svids::Entries;

fn all(code: Code, text: &str) -> [(Code, String); 4] {
    std::array::from_fn(|_| (code, text.to_owned()))
}

#[tokio::test]
async fn who_has_no_identity_or_is_not_listed_gets_nothing() {
    let stage = Stage::new();
    let myself = std::process::id();
    stage.facts.set(myself, &["unix:uid:8"]);
    assert_eq!(
        stage.refusals().await,
        all(Code::PermissionDenied, "no identity issued")
    );
    stage.publish(vec![stage.entry("unlisted", "unix:uid:8")]);
    assert_eq!(
        stage.refusals().await,
        all(
            Code::PermissionDenied,
            "caller not configured as an authorized delegate"
        )
    );
    stage.facts.by_pid.lock().unwrap().clear();
    assert_eq!(
        stage.refusals().await,
        all(Code::Unavailable, "workload attestation failed")
    );
    stage.facts.set(myself, &["unix:uid:8", DELEGATE]);
    stage.x509_bundles().await.unwrap();
}

#[tokio::test]
async fn a_refused_caller_learns_nothing_about_its_arguments() {
    let stage = Stage::new();
    stage.facts.set(std::process::id(), &["unix:uid:8"]);
    let status = stage.svids(&[], 0).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    let status = stage.jwt(&[], &[], 0).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn who_is_no_delegate_any_more_loses_open_streams() {
    let stage = Stage::new();
    let mut svids = stage.svids(&["k8s:ns:shop"], 0).await.unwrap();
    let mut x509 = stage.x509_bundles().await.unwrap();
    let mut jwt = stage.jwt_bundles().await.unwrap();
    next(&mut svids).await.unwrap();
    next(&mut x509).await.unwrap();
    next(&mut jwt).await.unwrap();
    // Nothing of what the streams show has changed.
    stage
        .world
        .publish_entries(vec![stage.entry("another", DELEGATE)]);
    let expected = (
        Code::PermissionDenied,
        "caller not configured as an authorized delegate".to_owned(),
    );
    let told = |status: Status| (status.code(), status.message().to_owned());
    assert_eq!(told(next(&mut svids).await.unwrap_err()), expected);
    assert_eq!(told(next(&mut x509).await.unwrap_err()), expected);
    assert_eq!(told(next(&mut jwt).await.unwrap_err()), expected);
}

#[tokio::test]
async fn a_delegate_is_attested_again_before_it_gets_anything_new() {
    let stage = Stage::new();
    let mut stream = stage.svids(&["k8s:ns:shop"], 0).await.unwrap();
    next(&mut stream).await.unwrap();
    stage.facts.set(std::process::id(), &["unix:uid:8"]);
    stage.publish(vec![stage.entry("a", "k8s:ns:shop")]);
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "no identity issued")
    );
}

#[tokio::test]
async fn what_changes_while_a_delegate_is_attested_counts() {
    let stage = Stage::new();
    let mut stream = stage.svids(&["k8s:ns:shop"], 0).await.unwrap();
    next(&mut stream).await.unwrap();
    let mut without = (*stage.world.svids.snapshot()).clone();
    without.entries = Entries::default();
    *stage.facts.meanwhile.lock().unwrap() = Some((stage.world.svids.clone(), without));
    stage.publish(vec![stage.entry("a", "k8s:ns:shop")]);
    let status = next(&mut stream).await.expect_err("the delegate's entry is gone");
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test]
async fn before_the_first_sync_callers_are_told_to_come_again() {
    let stage = Stage::new();
    stage.world.publish(|snapshot| {
        snapshot.synced_at = None;
        snapshot.entries = Entries::default();
    });
    let text = "agent has not been told its entries by the server yet";
    assert_eq!(stage.refusals().await, all(Code::Unavailable, text));
    // Of what an earlier run left, what is known is given, and what is not is not denied.
    stage.publish(vec![stage.entry("a", "k8s:ns:shop")]);
    assert!(stage.svids(&["k8s:ns:shop"], 0).await.is_ok());
    let status = stage.svids(&["k8s:ns:new"], 0).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
    let status = stage.jwt(&["a"], &["k8s:ns:new"], 0).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
    let status = stage.jwt_bundles().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, text));
}

#[tokio::test]
async fn arguments_that_can_never_do_are_refused_as_such() {
    let stage = Stage::new();
    let either = "must provide either selectors or non-zero PID, but not both";
    let myself = std::process::id();
    for status in [
        stage.svids(&[], 0).await.unwrap_err(),
        stage.svids(&["unix:uid:1"], myself).await.unwrap_err(),
        stage.jwt(&["a"], &[], 0).await.unwrap_err(),
    ] {
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, either));
    }
    for audience in [&[][..], &[""]] {
        let status = stage.jwt(audience, &["unix:uid:1"], 0).await.unwrap_err();
        let expected = (Code::InvalidArgument, "audience must be specified");
        assert_eq!((status.code(), status.message()), expected);
    }
    let many: Vec<String> = (0..65).map(|number| format!("a{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let status = stage.jwt(&many, &["unix:uid:1"], 0).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = stage.jwt(&["a"], &[], -1).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let status = stage.jwt(&["a"], &["unix:uid:1"], 0).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::PermissionDenied, "no identity issued")
    );
}

#[tokio::test]
async fn selectors_are_counted_measured_and_checked() {
    let stage = Stage::new();
    let selector = |kind: &str, value: String| types::Selector {
        r#type: kind.to_owned(),
        value,
    };
    let numbered = |count| {
        (0..count)
            .map(|number| selector("unix", format!("uid:{number}")))
            .collect()
    };
    let refused = async |selectors: Vec<types::Selector>| {
        let request = pb::SubscribeToX509sviDsRequest { selectors, pid: 0 };
        let answer = stage.client().await.subscribe_to_x509svi_ds(request).await;
        answer.err().map(|status| status.code())
    };
    assert_eq!(refused(numbered(1024)).await, None);
    assert_eq!(refused(numbered(1025)).await, Some(Code::InvalidArgument));
    let long = (0..10).map(|_| selector("unix", "x".repeat(14_000))).collect();
    assert_eq!(refused(long).await, Some(Code::InvalidArgument));
    for (kind, value) in [("", "a"), ("unix", ""), ("a:b", "c")] {
        let bad = vec![selector(kind, value.to_owned())];
        assert_eq!(refused(bad).await, Some(Code::InvalidArgument), "{kind}:{value}");
    }
}
