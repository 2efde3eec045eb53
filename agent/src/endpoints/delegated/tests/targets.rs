//! Targets that are given by their pids.

use super::*;

#[tokio::test]
async fn a_pid_gets_what_holds_for_its_process_until_that_ends() {
    let stage = Stage::new();
    let mut workload = Workload::start();
    stage.facts.set(workload.pid(), &["unix:uid:1000"]);
    stage.publish(vec![
        stage.entry("a", "unix:uid:1000"),
        stage.entry("b", "unix:uid:1001"),
    ]);
    let mut stream = stage.svids(&[], workload.pid()).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a"]);
    let svids = stage
        .jwt(&["db"], &[], i32::try_from(workload.pid()).unwrap())
        .await;
    // The one process that this stage may hold is held by the stream.
    assert_eq!(svids.unwrap_err().code(), Code::Unavailable);
    workload.end();
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "the process with the given pid has ended")
    );
    let status = stage.svids(&[], workload.pid()).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::NotFound, "there is no process with the given pid")
    );
}

#[tokio::test]
async fn a_token_is_for_the_process_with_the_pid() {
    let stage = Stage::new();
    let workload = Workload::start();
    let pid = i32::try_from(workload.pid()).unwrap();
    assert_eq!(
        stage.jwt(&["db"], &[], pid).await.unwrap_err().code(),
        Code::Unavailable,
        "nothing can be told about it"
    );
    stage.facts.set(workload.pid(), &["unix:uid:1000"]);
    stage.publish(vec![stage.entry("a", "unix:uid:1000")]);
    let svids = stage.jwt(&["db"], &[], pid).await.unwrap();
    assert_eq!(svids[0].id.as_ref().unwrap().path, "/a");
}

#[tokio::test]
async fn a_process_is_attested_again_before_anything_new_is_given_for_it() {
    let stage = Stage::new();
    let workload = Workload::start();
    stage.facts.set(workload.pid(), &["unix:uid:1000"]);
    let entries = || {
        vec![
            stage.entry("a", "unix:uid:1000"),
            stage.entry("b", "unix:uid:1001"),
        ]
    };
    stage.publish(entries());
    let mut stream = stage.svids(&[], workload.pid()).await.unwrap();
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/a"]);
    stage.facts.set(workload.pid(), &["unix:uid:1001"]);
    // New SVIDs for all; those of user 1000 are not for this process any more.
    stage.publish(entries());
    assert_eq!(paths(&next(&mut stream).await.unwrap()), ["/b"]);
}

#[tokio::test]
async fn processes_are_held_no_longer_than_somebody_asks_for_them() {
    let stage = Stage::new();
    let workload = Workload::start();
    stage.facts.set(workload.pid(), &["unix:uid:1000"]);
    let first = stage.svids(&[], workload.pid()).await.unwrap();
    let status = stage.svids(&[], workload.pid()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("too many processes"), "{status}");
    drop(first);
    let again = async {
        while stage.svids(&[], workload.pid()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    in_time(again).await;
}
