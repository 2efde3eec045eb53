//! When the kubelet is asked: how long the attestor waits for a container, and which callers share an answer.

use futures_util::future::join_all;
use tokio::time::Instant;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_container_that_is_not_listed_yet_is_waited_for() {
    let mut early = web();
    early["status"] = json!({"containerStatuses": null});
    let kubelet = Fake::new(vec![Ok(list(&[])), Ok(list(&[early])), Ok(list(&[web()]))]);
    let begun = Instant::now();
    let found = facts(&attestor(&kubelet, |_| {}), &in_web(A)).await.unwrap();
    assert!(found.contains("k8s:container-name:app"), "{found:?}");
    assert_eq!(kubelet.asked(), 3);
    assert_eq!(begun.elapsed().as_millis(), 1000);
}

#[tokio::test(start_paused = true)]
async fn without_selectors_of_containers_the_pod_is_enough() {
    let mut early = web();
    early["status"] = json!({});
    let kubelet = Fake::new(vec![Ok(list(&[early])), Ok(list(&[web()]))]);
    let attestor = attestor(&kubelet, |settings| settings.disable_container_selectors = true);
    let found = facts(&attestor, &in_web(A)).await.unwrap();
    assert!(found.contains("k8s:pod-label:app:web"), "{found:?}");
    assert!(found.contains("k8s:pod-image-count:0"), "{found:?}");
    assert_eq!(kubelet.asked(), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = facts(&attestor, &in_web(A)).await.unwrap();
    assert_eq!(found, set(&of_web()));
}

#[tokio::test(start_paused = true)]
async fn a_container_that_never_appears_leaves_the_facts_unknown() {
    let kubelet = Fake::new(vec![Ok(list(&[web()]))]);
    let attestor = attestor(&kubelet, |settings| settings.max_poll_attempts = 3);
    let error = facts(&attestor, &in_web(C)).await.unwrap_err().to_string();
    assert!(
        error.contains(C) && error.contains("not listed after 3 answers"),
        "{error}"
    );
    assert_eq!(kubelet.asked(), 3);
}

#[tokio::test]
async fn a_kubelet_that_fails_leaves_the_facts_unknown() {
    let kubelet = Fake::new(vec![Err(StatusCode::UNAUTHORIZED)]);
    let error = facts(&attestor(&kubelet, |_| {}), &in_web(A))
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("answered 401"), "{error}");
    let kubelet = Fake::new(vec![Ok(json!({"items": "secret"}))]);
    let error = facts(&attestor(&kubelet, |_| {}), &in_web(A))
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("malformed list of pods") && !error.contains("secret"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn all_callers_share_one_request_in_an_interval() {
    let kubelet = Fake::slow(vec![Ok(list(&[web()]))], Duration::from_secs(2));
    let attestor = attestor(&kubelet, |_| {});
    let path = in_web(A);
    let many = (0..50).map(|_| facts(&attestor, &path));
    for found in join_all(many).await {
        assert!(found.unwrap().contains("k8s:container-name:app"));
    }
    assert_eq!(kubelet.asked(), 1);
    tokio::time::sleep(Duration::from_millis(499)).await;
    facts(&attestor, &path).await.unwrap();
    assert_eq!(kubelet.asked(), 1, "half a second has not passed");
    tokio::time::sleep(Duration::from_millis(2)).await;
    facts(&attestor, &path).await.unwrap();
    assert_eq!(kubelet.asked(), 2, "labels may have changed");
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_and_one_caller_who_leaves_is_no_loss() {
    let kubelet = Fake::slow(
        vec![Err(StatusCode::INTERNAL_SERVER_ERROR), Ok(list(&[web()]))],
        Duration::from_secs(2),
    );
    let attestor = attestor(&kubelet, |_| {});
    let path = in_web(A);
    let many = (0..10).map(|_| facts(&attestor, &path));
    assert!(join_all(many).await.iter().all(Result::is_err));
    assert_eq!(kubelet.asked(), 1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(facts(&attestor, &path).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_not_there_is_looked_for_once_more_and_not_waited_for() {
    let kubelet = Fake::new(vec![
        Ok(list(&[])),
        Ok(list(&[])),
        Ok(list(&[web()])),
        Ok(list(&[])),
    ]);
    let attestor = attestor(&kubelet, |_| {});
    let found = async |max_age| {
        let found = attestor.listed(&of_uid(WEB), max_age).await;
        found.unwrap().is_some()
    };
    assert!(!found(Duration::ZERO).await);
    assert_eq!(kubelet.asked(), 1, "what was just heard is not asked again");
    let begun = Instant::now();
    assert!(!found(Duration::ZERO).await);
    assert_eq!((kubelet.asked(), begun.elapsed().as_millis()), (2, 500));
    assert!(found(Duration::ZERO).await);
    // Who can do with an older list has the last one, until it is too old.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(found(Duration::from_secs(5)).await);
    assert_eq!(kubelet.asked(), 3);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(!found(Duration::from_secs(5)).await);
    assert_eq!(kubelet.asked(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_was_begun_before_the_question_does_not_say_that_a_pod_is_not_there() {
    let takes = Duration::from_millis(300);
    let kubelet = Fake::slow(vec![Ok(list(&[])), Ok(list(&[web()]))], takes);
    let attestor = attestor(&kubelet, |_| {});
    let meant = of_uid(WEB);
    let late = async {
        tokio::time::sleep(takes / 2).await;
        attestor.listed(&meant, Duration::ZERO).await
    };
    let (early, late) = tokio::join!(attestor.listed(&meant, Duration::ZERO), late);
    assert!(early.unwrap().is_none() && late.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn an_old_list_is_not_taken_for_what_holds_now() {
    let kubelet = Fake::new(vec![Ok(list(&[web()])), Err(StatusCode::SERVICE_UNAVAILABLE)]);
    let attestor = attestor(&kubelet, |_| {});
    assert!(attestor.by_uid(WEB).await.is_ok());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(attestor.by_uid(WEB).await.is_err());
    assert!(attestor.listed(&of_uid(WEB), Duration::ZERO).await.is_err());
    assert!(facts(&attestor, &in_web(A)).await.is_err());
}
