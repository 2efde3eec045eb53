//! The kubelet's list of pods: how it is read, and which pod of it a reference names.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_pod_is_known_by_its_uid_alone() {
    let kubelet = Fake::new(vec![Ok(list(&[])), Ok(list(&[web()]))]);
    let attestor = attestor(&kubelet, |settings| settings.max_poll_attempts = 3);
    let found = attestor.by_uid(WEB).await.unwrap();
    let found: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, set(&of_web()));
    let error = attestor.by_uid(OTHER).await.unwrap_err().to_string();
    assert!(error.contains(OTHER), "{error}");
}

fn named(namespace: &str, name: &str) -> PodReference {
    PodReference {
        name: Some((namespace.to_owned(), name.to_owned())),
        uid: None,
    }
}

#[tokio::test]
async fn a_pod_that_somebody_names_is_one_that_the_kubelet_lists_and_that_runs() {
    let mut running = web();
    running["status"]["startTime"] = json!("2026-01-02T03:04:05Z");
    let mut ended = web();
    ended["metadata"]["name"] = json!("job");
    ended["metadata"]["uid"] = json!(OTHER);
    ended["status"]["phase"] = json!("Succeeded");
    let kubelet = Fake::new(vec![Ok(list(&[running, ended, imitation()]))]);
    let attestor = attestor(&kubelet, |settings| {
        settings.poll_retry_interval = Duration::from_millis(1);
    });
    let found = async |meant: &PodReference| attestor.listed(meant, Duration::ZERO).await;
    let pod = found(&of_uid(WEB)).await.unwrap().unwrap();
    assert_eq!(
        (
            &*pod.record.namespace,
            &*pod.record.name,
            &*pod.record.service_account
        ),
        ("shop", "web-7", "web")
    );
    assert_eq!(pod.started_at.unwrap().unix_timestamp(), 1_767_323_045);
    let facts: BTreeSet<String> = pod.facts.iter().map(ToString::to_string).collect();
    assert_eq!(facts, set(&of_web()));
    // A static pod's UID has no dashes; the reference has them.
    let dashed = of_uid("0b1c2d3e-4f50-6172-8394-a5b6c7d8e9f0");
    assert!(found(&dashed).await.unwrap().is_some());
    let both = PodReference {
        uid: Some(WEB.to_owned()),
        ..named("shop", "web-7")
    };
    assert!(found(&both).await.unwrap().is_some());
    for missing in [
        named("shop", "job"),
        of_uid(OTHER),
        named("other", "web-7"),
        PodReference {
            uid: Some(OTHER.to_owned()),
            ..named("shop", "web-7")
        },
        of_uid(""),
        PodReference::default(),
    ] {
        assert!(found(&missing).await.unwrap().is_none(), "{missing:?}");
    }
    let ambiguous = found(&named("shop", "web-7")).await.unwrap_err().to_string();
    assert!(ambiguous.contains("several pods"), "{ambiguous}");
}

#[test]
fn a_list_of_five_hundred_pods_is_read_and_what_is_null_is_empty() {
    let pods: Vec<_> = (0..500)
        .map(|number| {
            let mut pod = web();
            pod["metadata"]["uid"] = json!(format!("uid-{number}"));
            pod["status"]["containerStatuses"][0]["containerID"] = json!(format!("containerd://{number}"));
            pod
        })
        .collect();
    let read = PodList::parse(list(&pods).to_string().as_bytes()).unwrap();
    assert!(read.find(None, "499").unwrap().is_some() && read.pod("uid-0").is_some());
    let empty = br#"{"items": null}"#;
    assert!(PodList::parse(empty).unwrap().pod("").is_none());
    let nulls =
        br#"{"items": [{"metadata": {"uid": "u", "labels": null, "ownerReferences": null}, "spec": null}]}"#;
    assert!(PodList::parse(nulls).unwrap().pod("u").is_some());
    assert_eq!(
        PodList::parse(nulls).unwrap().find(None, "").unwrap().map(|_| ()),
        None
    );
}
