//! What is refused to brokers, and how they can tell.

use super::*;

fn reason(reason: &str) -> Option<String> {
    Some(reason.to_owned())
}

/// Covers BRK-09, BRK-15, BRK-42, BRK-45.
#[tokio::test]
async fn a_reference_that_is_missing_or_malformed_is_invalid() {
    let stage = Stage::new().await;
    let mut client = stage.client().await;
    let any = |type_url: &str, value: &[u8]| {
        Some(pb::WorkloadReference {
            reference: Some(Any {
                type_url: type_url.to_owned(),
                value: value.to_vec(),
            }),
        })
    };
    let negative = pb::WorkloadPidReference { pid: -1 };
    let no_name = pb::KubernetesObjectReference::default();
    for wrong in [
        None,
        Some(pb::WorkloadReference { reference: None }),
        any("", b""),
        any("", b"\x08\x01"),
        any(ReferenceType::Pid.url(), b""),
        any(ReferenceType::Pid.url(), b"\xff"),
        reference(ReferenceType::Pid, &negative),
        any(ReferenceType::KubernetesObject.url(), b""),
        reference(ReferenceType::KubernetesObject, &no_name),
    ] {
        for status in refusals(&mut client, wrong.clone()).await {
            assert_eq!(
                told(&status),
                (Code::InvalidArgument, reason("WORKLOAD_REFERENCE_INVALID")),
                "{wrong:?}"
            );
        }
    }
}

/// Covers BRK-26.
#[tokio::test]
async fn an_unknown_type_of_reference_is_invalid_whoever_uses_it() {
    let stage = Stage::new().await;
    for broker in ["/broker", "/local"] {
        let mut client = stage.broker(Transport::Unix, broker).await;
        for type_url in [
            "type.googleapis.com/spiffe.broker.X509SVID",
            "spiffe.broker.WorkloadPIDReference",
            "*",
        ] {
            let unknown = Some(pb::WorkloadReference {
                reference: Some(Any {
                    type_url: type_url.to_owned(),
                    value: vec![8, 1],
                }),
            });
            for status in refusals(&mut client, unknown.clone()).await {
                assert_eq!(status.code(), Code::InvalidArgument, "{type_url}");
            }
        }
    }
}

/// Covers BEP-20.
#[tokio::test]
async fn a_type_that_a_broker_may_not_use_is_denied_before_the_reference_is_looked_at() {
    let stage = Stage::new().await;
    let nobody = u32::try_from(i32::MAX).unwrap();
    let denied = (Code::PermissionDenied, None);
    let mut local = stage.broker(Transport::Unix, "/local").await;
    for status in refusals(&mut local, object()).await {
        assert_eq!(told(&status), denied);
        assert!(status.message().contains("is not allowed to use reference type"));
    }
    let broken = reference(ReferenceType::KubernetesObject, &pb::X509svid::default());
    for status in refusals(&mut local, broken).await {
        assert_eq!(told(&status), denied);
    }
    let mut over_tcp = stage.broker(Transport::Tcp, "/local").await;
    for status in refusals(&mut over_tcp, pid(nobody)).await {
        assert_eq!(told(&status), denied);
        assert!(status.message().ends_with("over TCP"), "{status}");
    }
    let mut objects = stage.broker(Transport::Tcp, "/objects").await;
    for status in refusals(&mut objects, pid(nobody)).await {
        assert_eq!(told(&status), denied);
    }
}

#[tokio::test]
async fn objects_of_kubernetes_are_known_to_no_attestor() {
    let stage = Stage::new().await;
    let mut client = stage.broker(Transport::Tcp, "/objects").await;
    for status in refusals(&mut client, object()).await {
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unimplemented, "no workload attestor handled reference")
        );
    }
}

/// Covers BRK-07, BRK-25, BRK-43.
#[tokio::test]
async fn a_process_that_is_not_there_is_not_found() {
    let stage = Stage::new().await;
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    let mut client = stage.client().await;
    // Above the highest pid that Linux gives.
    for status in refusals(&mut client, pid(1 << 23)).await {
        assert_eq!(told(&status), (Code::NotFound, reason("WORKLOAD_NOT_FOUND")));
    }
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let (tell, told_tid) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        tell.send(std::fs::read_link("/proc/thread-self").unwrap())
            .unwrap();
        let _over = ended.recv();
    });
    let task = told_tid.recv().unwrap();
    let tid = task.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let status = svids(&mut client, pid(tid)).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "a thread is no process: {status}");
    drop(end);
    thread.join().unwrap();
}

/// Covers BRK-44, BRK-55, BRK-59, BRK-70, BRK-75.
#[tokio::test]
async fn a_process_without_identity_is_not_entitled_also_where_its_own_calls_would_get_the_bundle() {
    let mut world = World::new();
    world.policy.allow_unauthenticated_verifiers = true;
    let stage = Stage::with(world, |_share| {}).await;
    let workload = stage.workload();
    let mut client = stage.client().await;
    let not_entitled = (Code::PermissionDenied, reason("WORKLOAD_NOT_ENTITLED"));
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(told(&status), not_entitled);
        assert_eq!(status.message(), "no identity issued");
        assert!(
            status.metadata().get("finial-reference").is_some(),
            "an operator can look it up"
        );
    }
    // One that loses it does so on its open streams too.
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    let mut stream = svids(&mut client, pid(workload.pid())).await.unwrap();
    let mut x509 = x509_bundles(&mut client, pid(workload.pid())).await.unwrap();
    next(&mut stream).await.unwrap();
    next(&mut x509).await.unwrap();
    stage.world.publish_entries(Vec::new());
    assert_eq!(told(&next(&mut stream).await.unwrap_err()), not_entitled);
    assert_eq!(told(&next(&mut x509).await.unwrap_err()), not_entitled);
}

/// Covers BEP-17.
#[tokio::test]
async fn an_agent_that_cannot_tell_yet_is_unavailable() {
    let stage = Stage::new().await;
    let workload = stage.workload();
    stage.facts.by_pid.lock().unwrap().clear();
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    let mut client = stage.client().await;
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(told(&status), (Code::Unavailable, None));
    }
    stage.facts.set(workload.pid(), &[FACT]);
    stage.world.publish(|snapshot| {
        snapshot.entries = Default::default();
        snapshot.synced_at = None;
    });
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(told(&status), (Code::Unavailable, None));
    }
}

#[tokio::test]
async fn a_broker_holds_no_more_workloads_than_its_part() {
    // One for each of the four.
    let stage = Stage::with(World::new(), |share| share.processes = 4).await;
    let workload = stage.workload();
    stage.world.publish_entries(vec![stage.world.entry("a")]);
    let mut client = stage.client().await;
    let held = svids(&mut client, pid(workload.pid())).await.unwrap();
    for status in refusals(&mut client, pid(workload.pid())).await {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("too many workloads"), "{status}");
    }
    let mut other = stage.broker(Transport::Unix, "/local").await;
    assert!(svids(&mut other, pid(workload.pid())).await.is_ok());
    drop(held);
    let again = async {
        while svids(&mut client, pid(workload.pid())).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    in_time(again).await;
}
