//! Pods that are named as objects of Kubernetes.

use super::*;

const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";
const OTHER: &str = "00000000-25a7-4c0b-9ab1-4e2f1bd4a9b1";
const OF_WEB: &[&str] = &["k8s:ns:shop", "k8s:pod-name:web", "k8s:pod-label:app:web"];

fn not_found() -> (Code, Option<String>) {
    (Code::NotFound, Some("WORKLOAD_NOT_FOUND".to_owned()))
}

fn pod(key: Option<(&str, &str)>, uid: &str) -> Option<pb::WorkloadReference> {
    of_kind("pods", "core", key, uid)
}

/// An agent whose kubelet lists the pod `shop/web`, which has the identity `/web`; nobody else has one.
async fn stage() -> (Stage, FakePods) {
    let pods = FakePods::default();
    pods.set(Some(&[("web", UID, OF_WEB), ("db", OTHER, &["k8s:ns:shop"])]));
    let stage = Stage::with_pods(&pods).await;
    stage.world.publish_entries(vec![of(&stage, "web", OF_WEB)]);
    (stage, pods)
}

fn of(stage: &Stage, id: &str, facts: &[&str]) -> CachedEntry {
    let selectors = facts.iter().map(|fact| Selector::parse(fact).unwrap());
    CachedEntry {
        selectors: selectors.collect(),
        ..stage.world.entry(id)
    }
}

/// Covers BRK-04, BRK-10, BRK-11, BRK-22, BRK-24, BRK-25.
#[tokio::test]
async fn a_pod_is_known_by_its_name_by_its_uid_or_by_both_when_they_agree() {
    let (stage, _pods) = stage().await;
    let mut client = stage.broker(Transport::Tcp, "/objects").await;
    for right in [
        pod(Some(("shop", "web")), ""),
        pod(None, UID),
        pod(Some(("shop", "web")), UID),
    ] {
        let mut stream = svids(&mut client, right.clone()).await.unwrap();
        assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/web"]);
        let token = tokens(&mut client, right.clone(), &["db"], "").await.unwrap();
        assert_eq!(token.len(), 1);
        let mut x509 = x509_bundles(&mut client, right.clone()).await.unwrap();
        assert!(!next(&mut x509).await.unwrap().bundles.is_empty());
        let mut jwt = jwt_bundles(&mut client, right).await.unwrap();
        assert!(!next(&mut jwt).await.unwrap().bundles.is_empty());
    }
    for wrong in [
        pod(Some(("shop", "web")), OTHER),
        pod(Some(("other", "web")), ""),
        pod(Some(("shop", "cache")), ""),
        pod(Some(("shop", "cache")), UID),
        pod(None, "11111111-25a7-4c0b-9ab1-4e2f1bd4a9b1"),
    ] {
        for status in refusals(&mut client, wrong.clone()).await {
            assert_eq!(told(&status), not_found(), "{wrong:?}");
        }
    }
}

/// Covers BRK-44.
#[tokio::test]
async fn a_pod_without_identity_is_not_entitled() {
    let (stage, _pods) = stage().await;
    let mut client = stage.client().await;
    for status in refusals(&mut client, pod(Some(("shop", "db")), "")).await {
        let not_entitled = (Code::PermissionDenied, Some("WORKLOAD_NOT_ENTITLED".to_owned()));
        assert_eq!(told(&status), not_entitled);
    }
}

/// Covers BRK-42.
#[tokio::test]
async fn a_pod_has_a_namespace_and_other_objects_are_known_to_nobody() {
    let (stage, _pods) = stage().await;
    let mut client = stage.client().await;
    for status in refusals(&mut client, pod(Some(("", "web")), UID)).await {
        let invalid = (
            Code::InvalidArgument,
            Some("WORKLOAD_REFERENCE_INVALID".to_owned()),
        );
        assert_eq!(told(&status), invalid);
    }
    for (plural, group) in [
        ("deployments", "apps"),
        ("nodes", "core"),
        ("pods", "metrics.k8s.io"),
    ] {
        let reference = of_kind(plural, group, Some(("shop", "web")), "");
        for status in refusals(&mut client, reference).await {
            assert_eq!(told(&status), (Code::Unimplemented, None), "{plural}.{group}");
        }
    }
}

#[tokio::test]
async fn a_kubelet_that_does_not_answer_is_no_pod_that_is_missing() {
    let (stage, pods) = stage().await;
    let mut client = stage.client().await;
    pods.set(None);
    for status in refusals(&mut client, pod(None, UID)).await {
        assert_eq!(told(&status), (Code::Unavailable, None));
    }
}

/// Covers BRK-33, BRK-47, BRK-49.
#[tokio::test]
async fn nothing_more_is_sent_for_a_pod_that_is_gone_even_if_another_has_its_name() {
    let (stage, pods) = stage().await;
    let mut client = stage.client().await;
    let mut stream = svids(&mut client, pod(Some(("shop", "web")), "")).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/web"]);
    // What holds for the pod is asked again before anything new is given.
    pods.set(Some(&[("web", UID, &["k8s:ns:shop", "k8s:pod-label:app:new"])]));
    let renamed = of(&stage, "new", &["k8s:pod-label:app:new"]);
    let web = || of(&stage, "web", OF_WEB);
    stage.world.publish_entries(vec![web(), renamed]);
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/new"]);
    pods.set(Some(&[("web", OTHER, OF_WEB)]));
    stage
        .world
        .publish_entries(vec![web(), of(&stage, "new/two", &["k8s:pod-label:app:new"])]);
    assert_eq!(told(&next(&mut stream).await.unwrap_err()), not_found());
    // The other pod is known by that name now.
    let mut stream = svids(&mut client, pod(Some(("shop", "web")), "")).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/web"]);
}

/// Covers BRK-47.
#[tokio::test]
async fn a_pod_that_goes_while_its_answer_is_made_gets_none() {
    let (stage, pods) = stage().await;
    let mut client = stage.client().await;
    // It is there when it is looked for, and when it is attested.
    pods.go_after(2);
    let token = tokens(&mut client, pod(None, UID), &["db"], "").await;
    assert_eq!(told(&token.unwrap_err()), not_found());
    pods.go_after(2);
    let mut stream = svids(&mut client, pod(None, UID)).await.unwrap();
    assert_eq!(told(&next(&mut stream).await.unwrap_err()), not_found());
}

#[tokio::test]
async fn pods_count_among_the_workloads_that_a_broker_may_hold() {
    let pods = FakePods::default();
    pods.set(Some(&[("web", UID, OF_WEB)]));
    // One for each of the four brokers.
    let stage = Stage::of(World::new(), |share| share.processes = 4, Some(pods)).await;
    stage.world.publish_entries(vec![of(&stage, "web", OF_WEB)]);
    let mut client = stage.client().await;
    let _held = svids(&mut client, pod(None, UID)).await.unwrap();
    for status in refusals(&mut client, pod(None, UID)).await {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("too many workloads"), "{status}");
    }
}
