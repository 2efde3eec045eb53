#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use finial_identity::key::{KeyType, PrivateKey};
use finial_identity::process::TaskSet;
use finial_identity::process::http_listener::{HttpListener, TlsSource};
use finial_identity::x509::Certificate;
use futures_util::future::join_all;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::super::{ContainerError, ProcFs};
use super::*;
use crate::config::{KubeletLogin, KubeletPort, KubeletVerification};

const A: &str = "6469646e742065787065637420616e796f6e6520746f20726561642074686973";
const B: &str = "cd3eb4e1fc2f5a7c6b5bbbd8bd1c8bc1b0ea3e6d9cb0c5e6f0a4f5ae5ab7d8b1";
const C: &str = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961";
const WEB: &str = "72f7f152-440c-66ac-9084-e0fc1d8a910c";
const OTHER: &str = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80";

fn web() -> Value {
    json!({
        "metadata": {
            "name": "web-7", "namespace": "shop", "uid": WEB, "labels": {"app": "web", "tier": ""},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u1"}],
        },
        "spec": {"nodeName": "node-a", "serviceAccountName": "web", "containers": [{"env": [{"value": "secret"}]}]},
        "status": {
            "containerStatuses": [
                {"name": "app", "image": "r/app:1", "imageID": "r/app@sha256:aa", "containerID": format!("containerd://{A}")},
                {"name": "side", "image": "r/side:2", "imageID": "", "containerID": ""},
            ],
            "initContainerStatuses": [
                {"name": "init", "image": "r/init:3", "imageID": "r/init@sha256:cc", "containerID": format!("containerd://{B}")},
            ],
        },
    })
}

/// A pod with the name and the account of the other, as a file on the node's disk would make one.
fn imitation() -> Value {
    let mut pod = web();
    pod["metadata"]["uid"] = json!("0b1c2d3e4f5061728394a5b6c7d8e9f0");
    pod["status"] = json!({"containerStatuses": [{"name": "app", "image": "r/app:1", "containerID": format!("containerd://{C}")}]});
    pod
}

fn list(pods: &[Value]) -> Value {
    json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods})
}

/// A kubelet that gives these answers, the last one for ever.
#[derive(Debug)]
struct Fake {
    answers: Vec<Result<Value, StatusCode>>,
    asked: AtomicUsize,
    under_way: AtomicUsize,
    takes: Duration,
}

impl Fake {
    fn new(answers: Vec<Result<Value, StatusCode>>) -> Arc<Self> {
        Self::slow(answers, Duration::ZERO)
    }

    fn slow(answers: Vec<Result<Value, StatusCode>>, takes: Duration) -> Arc<Self> {
        Arc::new(Self {
            answers,
            asked: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            takes,
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }
}

#[async_trait]
impl FetchPods for Fake {
    async fn fetch(&self) -> Result<Bytes, AskError> {
        assert_eq!(
            self.under_way.fetch_add(1, Ordering::Relaxed),
            0,
            "one request at a time"
        );
        tokio::time::sleep(self.takes).await;
        self.under_way.fetch_sub(1, Ordering::Relaxed);
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        match &self.answers[number.min(self.answers.len() - 1)] {
            Ok(list) => Ok(list.to_string().into()),
            Err(status) => Err(AskError::Refused {
                status: *status,
                text: String::new(),
            }),
        }
    }
}

fn attestor(kubelet: &Arc<Fake>, change: impl FnOnce(&mut K8sSettings)) -> K8sAttestor {
    let mut settings = K8sSettings::default();
    change(&mut settings);
    K8sAttestor::asking(
        Arc::new(settings),
        Arc::clone(kubelet) as Arc<dyn FetchPods>,
        None,
    )
}

/// This process, as if it were in these control groups.
fn process(cgroup: &str) -> (tempfile::TempDir, Arc<Process>) {
    let dir = tempfile::tempdir().unwrap();
    let own = dir.path().join(std::process::id().to_string());
    std::fs::create_dir(&own).unwrap();
    std::os::unix::fs::symlink("/proc/self/stat", own.join("stat")).unwrap();
    std::fs::write(own.join("cgroup"), cgroup).unwrap();
    // Mounts that a process made prove nothing; they would name a container.
    std::fs::write(
        own.join("mountinfo"),
        format!("1 2 0:3 /kubepods/pod{WEB}/{A} /x rw - cgroup2 c rw\n"),
    )
    .unwrap();
    let process = Process::open(i64::from(std::process::id()), &ProcFs::at(dir.path())).unwrap();
    (dir, Arc::new(process))
}

async fn facts(attestor: &K8sAttestor, path: &str) -> Result<BTreeSet<String>, AttestorError> {
    let (_dir, process) = process(&format!("0::{path}\n"));
    let facts = attestor.attest(&process).await?;
    Ok(facts.iter().map(ToString::to_string).collect())
}

fn in_web(container: &str) -> String {
    format!("/kubepods/besteffort/pod{WEB}/{container}")
}

fn set(values: &[&str]) -> BTreeSet<String> {
    values.iter().map(|value| format!("k8s:{value}")).collect()
}

fn of_web() -> Vec<&'static str> {
    vec![
        "sa:web",
        "ns:shop",
        "node-name:node-a",
        "pod-uid:72f7f152-440c-66ac-9084-e0fc1d8a910c",
        "pod-name:web-7",
        "pod-image-count:2",
        "pod-init-image-count:1",
        "pod-image:r/app:1",
        "pod-image:r/app@sha256:aa",
        "pod-image:r/side:2",
        "pod-init-image:r/init:3",
        "pod-init-image:r/init@sha256:cc",
        "pod-label:app:web",
        "pod-label:tier:",
        "pod-owner:ReplicaSet:web",
        "pod-owner-uid:ReplicaSet:u1",
    ]
}

#[tokio::test]
async fn a_container_is_known_by_itself_and_its_pod() {
    let kubelet = Fake::new(vec![Ok(list(&[imitation(), web()]))]);
    let attestor = attestor(&kubelet, |_| {});
    let of_app = [
        "container-name:app",
        "container-image:r/app:1",
        "container-image:r/app@sha256:aa",
    ];
    let app = [of_web(), of_app.to_vec()].concat();
    assert_eq!(facts(&attestor, &in_web(A)).await.unwrap(), set(&app));
    let of_init = [
        "container-name:init",
        "container-image:r/init:3",
        "container-image:r/init@sha256:cc",
    ];
    let init = [of_web(), of_init.to_vec()].concat();
    assert_eq!(facts(&attestor, &in_web(B)).await.unwrap(), set(&init));
    // Some runtimes name no pod.
    let crio = format!("/kubepods.slice/crio-{A}.scope");
    assert_eq!(facts(&attestor, &crio).await.unwrap(), set(&app));
}

#[tokio::test]
async fn an_ephemeral_container_has_its_own_name_and_its_pods_facts() {
    let mut pod = web();
    pod["status"]["ephemeralContainerStatuses"] =
        json!([{"name": "debug", "image": "r/sh", "containerID": format!("cri-o://{C}")}]);
    let kubelet = Fake::new(vec![Ok(list(&[pod]))]);
    let expected = [of_web(), vec!["container-name:debug", "container-image:r/sh"]].concat();
    let found = facts(&attestor(&kubelet, |_| {}), &in_web(C)).await.unwrap();
    assert_eq!(found, set(&expected));
}

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

#[tokio::test]
async fn a_process_in_no_pod_is_known_to_have_no_facts() {
    let kubelet = Fake::new(vec![Ok(list(&[web()]))]);
    let attestor = attestor(&kubelet, |_| {});
    for path in [
        "/".to_owned(),
        "/user.slice/user-1000.slice/session-1.scope".to_owned(),
        format!("/system.slice/docker-{A}.scope"),
        format!("/machine.slice/libpod-{A}.scope"),
    ] {
        assert_eq!(facts(&attestor, &path).await.unwrap(), BTreeSet::new(), "{path}");
    }
    assert_eq!(kubelet.asked(), 0);
}

/// A pod that shares the node's pid namespace is what its own group says, whatever else it sees.
#[tokio::test]
async fn a_pod_in_the_nodes_pid_namespace_is_attested_by_its_own_group() {
    let mut spy = web();
    spy["metadata"] = json!({"name": "spy", "namespace": "kube-system", "uid": OTHER});
    spy["spec"]["hostPID"] = json!(true);
    spy["status"] =
        json!({"containerStatuses": [{"name": "spy", "containerID": format!("containerd://{C}")}]});
    let kubelet = Fake::new(vec![Ok(list(&[web(), spy]))]);
    let attestor = attestor(&kubelet, |_| {});
    let found = facts(&attestor, &format!("/kubepods/pod{OTHER}/{C}"))
        .await
        .unwrap();
    assert!(
        found.contains("k8s:pod-name:spy") && !found.contains("k8s:pod-name:web-7"),
        "{found:?}"
    );
}

/// Of a static pod the kubelet's own UID is shown; name, namespace and account can be copied from another.
#[tokio::test]
async fn a_static_pod_that_imitates_another_has_another_uid() {
    let kubelet = Fake::new(vec![Ok(list(&[web(), imitation()]))]);
    let attestor = attestor(&kubelet, |_| {});
    let path = format!("/kubepods/besteffort/pod0b1c2d3e4f5061728394a5b6c7d8e9f0/{C}");
    let found = facts(&attestor, &path).await.unwrap();
    assert!(
        found.contains("k8s:pod-uid:0b1c2d3e4f5061728394a5b6c7d8e9f0"),
        "{found:?}"
    );
    assert!(!found.contains(&format!("k8s:pod-uid:{WEB}")), "{found:?}");
}

#[tokio::test]
async fn groups_that_contradict_each_other_or_the_list_are_refused() {
    let mut own = web();
    own["metadata"]["uid"] = json!(OTHER);
    own["status"] =
        json!({"containerStatuses": [{"name": "own", "containerID": format!("containerd://{C}")}]});
    let kubelet = Fake::new(vec![Ok(list(&[web(), own]))]);
    let attestor = attestor(&kubelet, |_| {});
    // The container of one pod below the name of another.
    let error = facts(&attestor, &format!("/kubepods/pod{OTHER}/{A}"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("its cgroup in pod"), "{error}");
    // Groups that a container made in its own, and a user in the part that is delegated to users.
    for path in [
        format!("/kubepods/pod{OTHER}/{C}/kubepods/pod{WEB}/{A}"),
        format!("/kubepods/pod{OTHER}/{C}/{A}"),
        format!("/user.slice/user-1000.slice/user@1000.service/kubepods/pod{WEB}/{A}"),
    ] {
        let error = facts(&attestor, &path).await.unwrap_err();
        assert!(
            matches!(error, AttestorError::ForeignCgroup(_)),
            "{path}: {error}"
        );
    }
    // Hierarchies that differ.
    let (_dir, process) = process(&format!(
        "2:cpu:{}\n1:memory:/kubepods/pod{OTHER}/{C}\n",
        in_web(A)
    ));
    let error = attestor.attest(&process).await.unwrap_err();
    assert!(
        matches!(error, AttestorError::Container(ContainerError::SeveralPods(..))),
        "{error}"
    );
    // A list that has a container twice.
    let mut twin = web();
    twin["metadata"]["uid"] = json!(OTHER);
    let kubelet = Fake::new(vec![Ok(list(&[web(), twin]))]);
    let error = facts(&self::attestor(&kubelet, |_| {}), &in_web(A))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("several pods"), "{error}");
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
async fn a_pod_is_known_by_its_uid_alone() {
    let kubelet = Fake::new(vec![Ok(list(&[])), Ok(list(&[web()]))]);
    let attestor = attestor(&kubelet, |settings| settings.max_poll_attempts = 3);
    let found = attestor.by_uid(WEB).await.unwrap();
    let found: BTreeSet<String> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found, set(&of_web()));
    let error = attestor.by_uid(OTHER).await.unwrap_err().to_string();
    assert!(error.contains(OTHER), "{error}");
}

/// Knows one namespace, or none.
#[derive(Debug)]
struct OneNamespace(&'static str);

#[async_trait]
impl FetchNamespace for OneNamespace {
    async fn fetch(&self, name: &str) -> Result<Bytes, AskError> {
        if self.0 != name {
            return Err(AskError::Refused {
                status: StatusCode::FORBIDDEN,
                text: "no".to_owned(),
            });
        }
        let labels = json!({"team": "web", "kubernetes.io/metadata.name": name});
        let namespace = json!({"kind": "Namespace", "metadata": {"name": name, "labels": labels}});
        Ok(namespace.to_string().into())
    }
}

#[tokio::test]
async fn labels_of_namespaces_are_facts_where_they_are_asked_for_and_missing_ones_leave_all_unknown() {
    let with = |known: &'static str| {
        let kubelet = Fake::new(vec![Ok(list(&[web()]))]);
        K8sAttestor::asking(
            Arc::new(K8sSettings::default()),
            kubelet,
            Some(Arc::new(OneNamespace(known))),
        )
    };
    let told = ["ns-label:kubernetes.io/metadata.name:shop", "ns-label:team:web"];
    let attestor = with("shop");
    let found = facts(&attestor, &in_web(A)).await.unwrap();
    assert!(found.is_superset(&set(&told)), "{found:?}");
    assert!(found.is_superset(&set(&of_web())), "{found:?}");
    let strings =
        |facts: Vec<Selector>| -> BTreeSet<String> { facts.iter().map(ToString::to_string).collect() };
    let pod = [of_web(), told.to_vec()].concat();
    assert_eq!(strings(attestor.by_uid(WEB).await.unwrap()), set(&pod));
    let listed = attestor
        .listed(&of_uid(WEB), Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(strings(listed.facts), set(&pod));
    // A process in no pod is in no namespace, so nobody is asked.
    assert_eq!(
        facts(&with("none"), "/user.slice").await.unwrap(),
        BTreeSet::new()
    );

    let attestor = with("other");
    let error = facts(&attestor, &in_web(A)).await.unwrap_err().to_string();
    assert!(
        error.contains("namespace shop") && error.contains("403"),
        "{error}"
    );
    assert!(attestor.by_uid(WEB).await.is_err());
    assert!(attestor.listed(&of_uid(WEB), Duration::ZERO).await.is_err());
}

fn named(namespace: &str, name: &str) -> PodReference {
    PodReference {
        name: Some((namespace.to_owned(), name.to_owned())),
        uid: None,
    }
}

fn of_uid(uid: &str) -> PodReference {
    PodReference {
        name: None,
        uid: Some(uid.to_owned()),
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

/// A kubelet over TLS that lets in who shows this header.
struct Served {
    dir: tempfile::TempDir,
    port: u16,
    certificate: CertificateDer<'static>,
    tokens: Arc<Mutex<Vec<String>>>,
}

impl Served {
    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn settings(&self) -> K8sSettings {
        K8sSettings {
            port: KubeletPort::Secure(self.port),
            verification: self.trusting("ca", &[]),
            login: KubeletLogin::Token(self.path("token")),
            ..K8sSettings::default()
        }
    }

    fn trusting(&self, authorities: &str, own: &[&str]) -> KubeletVerification {
        KubeletVerification::Certificates {
            authorities: self.path(authorities),
            own: own.iter().map(|name| self.path(name)).collect(),
        }
    }

    async fn facts(&self, settings: K8sSettings) -> Result<BTreeSet<String>, String> {
        let attestor = K8sAttestor::new(settings);
        facts(&attestor, &in_web(A))
            .await
            .map_err(|error| error.to_string())
    }
}

async fn pods(State(tokens): State<Arc<Mutex<Vec<String>>>>, headers: HeaderMap) -> (StatusCode, String) {
    let shown = headers
        .get("authorization")
        .map(|value| value.to_str().unwrap().to_owned());
    tokens.lock().unwrap().push(shown.clone().unwrap_or_default());
    match shown.as_deref() {
        Some("Bearer good") => (StatusCode::OK, list(&[web()]).to_string()),
        _ => (StatusCode::UNAUTHORIZED, "Unauthorized".to_owned()),
    }
}

/// A kubelet whose certificate, of an authority in the file `ca`, names `node-a` and not 127.0.0.1.
async fn with_kubelet(work: impl AsyncFnOnce(&Served)) {
    let key = || rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_key = key();
    let ca = authority.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, ca_key);
    let own_key = key();
    let params = rcgen::CertificateParams::new(vec!["node-a".to_owned(), "localhost".to_owned()]).unwrap();
    let own = params.signed_by(&own_key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![own.der().clone()],
            PrivateKeyDer::try_from(own_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let tls = Arc::new(tls);

    let tokens = Arc::new(Mutex::new(Vec::new()));
    let routes = Router::new()
        .route("/pods", get(pods))
        .with_state(Arc::clone(&tokens));
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .unwrap();
    let listener =
        HttpListener::new(listener, routes).with_tls(Some(TlsSource::new(move || Arc::clone(&tls))));
    let served = Served {
        dir: tempfile::tempdir().unwrap(),
        port: listener.local_addr().unwrap().port(),
        certificate: own.der().clone(),
        tokens,
    };
    std::fs::write(served.path("ca"), pem(ca.der())).unwrap();
    std::fs::write(served.path("token"), "good\n").unwrap();
    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("kubelet", listener.run(stop));
    tasks.run_until_first_exit(work(&served)).await.unwrap();
}

fn pem(der: &[u8]) -> String {
    Certificate::parse(der).unwrap().to_pem()
}

#[tokio::test]
async fn the_kubelet_is_verified_by_its_chain_and_where_it_has_a_name_by_that() {
    with_kubelet(async |served: &Served| {
        let found = served.facts(served.settings()).await.unwrap();
        assert!(found.contains("k8s:container-name:app"), "{found:?}");
        let named = |name: &str| K8sSettings {
            node_name: Some(name.to_owned()),
            ..served.settings()
        };
        served.facts(named("127.0.0.1")).await.unwrap();
        served.facts(named("localhost")).await.unwrap();
        let error = served.facts(named("no name")).await.unwrap_err();
        assert!(error.contains("not a host name"), "{error}");
    })
    .await;
}

#[test]
fn another_nodes_certificate_does_not_do_at_this_nodes_name() {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca = authority.self_signed(&key).unwrap();
    let issuer = rcgen::Issuer::new(authority, key);
    let params = rcgen::CertificateParams::new(vec!["node-a".to_owned()]).unwrap();
    let own = params
        .signed_by(&rcgen::KeyPair::generate().unwrap(), &issuer)
        .unwrap();
    let verifier = trust::of_certificates(vec![ca.der().clone()], Vec::new());
    for (name, fine) in [("node-a", true), ("node-b", false), ("10.0.0.1", true)] {
        let name = ServerName::try_from(name).unwrap();
        let verified = verifier.verify_server_cert(own.der(), &[], &name, &[], UnixTime::now());
        assert_eq!(verified.is_ok(), fine, "{name:?}");
    }
}

#[tokio::test]
async fn who_is_not_the_kubelet_is_not_shown_the_token() {
    with_kubelet(async |served: &Served| {
        let stranger = rcgen::generate_simple_self_signed(["node-a".to_owned()]).unwrap();
        std::fs::write(served.path("stranger"), pem(stranger.cert.der())).unwrap();
        let trusting = |file: &str| K8sSettings {
            verification: served.trusting(file, &[]),
            ..served.settings()
        };
        let error = served.facts(trusting("stranger")).await.unwrap_err();
        assert!(error.contains("invalid peer certificate"), "{error}");
        let error = served.facts(trusting("absent")).await.unwrap_err();
        assert!(error.contains("absent"), "{error}");
        std::fs::write(served.path("empty"), "").unwrap();
        assert!(served.facts(trusting("empty")).await.is_err());
        assert!(served.tokens.lock().unwrap().is_empty());
        // Its own certificate in the file is enough, and so is not to care.
        std::fs::write(served.path("own"), pem(&served.certificate)).unwrap();
        served.facts(trusting("own")).await.unwrap();
        let anybody = K8sSettings {
            verification: KubeletVerification::Skip,
            ..served.settings()
        };
        served.facts(anybody).await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn the_kubelets_own_certificate_on_the_node_does_beside_the_clusters_authority_or_without_it() {
    with_kubelet(async |served: &Served| {
        let stranger = rcgen::generate_simple_self_signed(["node-a".to_owned()]).unwrap();
        std::fs::write(served.path("stranger"), pem(stranger.cert.der())).unwrap();
        std::fs::write(served.path("broken"), "nothing").unwrap();
        // As kubelets keep it: the certificate, and its key beside it.
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        std::fs::write(served.path("own"), pem(&served.certificate) + &key.to_pem()).unwrap();
        let trusting = |authorities: &str, own: &[&str]| K8sSettings {
            verification: served.trusting(authorities, own),
            ..served.settings()
        };
        for (authorities, own) in [
            ("stranger", &["own"][..]),
            ("stranger", &["absent", "broken", "own"]),
            ("absent", &["own"]),
            ("ca", &["stranger"]),
            ("ca", &["absent", "broken"]),
        ] {
            let facts = served.facts(trusting(authorities, own)).await;
            assert!(facts.is_ok(), "{authorities} {own:?}: {facts:?}");
        }
        let shown = served.tokens.lock().unwrap().len();
        for (authorities, own) in [
            ("stranger", &["stranger"][..]),
            ("stranger", &["absent"]),
            ("absent", &["stranger"]),
            ("absent", &["absent"]),
            ("absent", &["broken"]),
            // What stands there for the kubelet itself vouches for nobody else.
            ("stranger", &["ca"]),
        ] {
            let facts = served.facts(trusting(authorities, own)).await;
            assert!(facts.is_err(), "{authorities} {own:?}");
        }
        assert_eq!(
            served.tokens.lock().unwrap().len(),
            shown,
            "nobody else sees the token"
        );
    })
    .await;
}

/// Shows a certificate without having its key.
#[derive(Debug)]
struct Borrowed(Arc<rustls::sign::CertifiedKey>);

impl rustls::server::ResolvesServerCert for Borrowed {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[tokio::test]
async fn who_shows_the_kubelets_certificate_without_its_key_is_not_the_kubelet() {
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let kubelet = rcgen::generate_simple_self_signed(["node-a".to_owned()]).unwrap();
        let own = PrivateKeyDer::try_from(rcgen::KeyPair::generate().unwrap().serialize_der()).unwrap();
        let key = rustls::crypto::ring::sign::any_supported_type(&own).unwrap();
        let shown = rustls::sign::CertifiedKey::new(vec![kubelet.cert.der().clone()], key);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Borrowed(Arc::new(shown))));
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("own"), pem(kubelet.cert.der())).unwrap();
        std::fs::write(dir.path().join("token"), "good").unwrap();
        let kubelet = Kubelet::new(Arc::new(K8sSettings {
            port: KubeletPort::Secure(listener.local_addr().unwrap().port()),
            verification: KubeletVerification::Certificates {
                authorities: dir.path().join("own"),
                own: Vec::new(),
            },
            login: KubeletLogin::Token(dir.path().join("token")),
            ..K8sSettings::default()
        }));
        let accepted = async {
            let (stream, _address) = listener.accept().await.unwrap();
            acceptor.accept(stream).await.is_ok()
        };
        let (asked, accepted) = tokio::join!(kubelet.fetch(), accepted);
        let error = asked.unwrap_err().to_string();
        assert!(error.contains("connect to"), "{error}");
        assert!(!accepted, "no handshake, and so no token");
    }
}

#[test]
fn urls_have_ipv6_addresses_in_brackets() {
    for (host, expected) in [
        ("fd00::1", "[fd00::1]:10250"),
        ("::1", "[::1]:10250"),
        ("FD00:0:0::1", "[fd00::1]:10250"),
        ("::ffff:10.0.0.1", "[::ffff:10.0.0.1]:10250"),
        ("10.0.0.1", "10.0.0.1:10250"),
        ("node-a.example", "node-a.example:10250"),
    ] {
        assert_eq!(ask::authority(host, 10250), expected);
        assert!(ServerName::try_from(host).is_ok(), "{host}");
    }
}

#[tokio::test]
async fn a_renewed_token_is_read_after_a_refusal_at_once() {
    with_kubelet(async |served: &Served| {
        std::fs::write(served.path("token"), "stale").unwrap();
        let kubelet = Kubelet::new(Arc::new(served.settings()));
        let error = kubelet.fetch().await.unwrap_err().to_string();
        assert!(error.contains("401") && !error.contains("stale"), "{error}");
        std::fs::write(served.path("token"), "good").unwrap();
        kubelet.fetch().await.unwrap();
        assert!(!format!("{kubelet:?}").contains("good"));
        // What works is not read again before its time.
        std::fs::remove_file(served.path("token")).unwrap();
        kubelet.fetch().await.unwrap();
        let anonymous = K8sSettings {
            login: KubeletLogin::Anonymous,
            ..served.settings()
        };
        let error = served.facts(anonymous).await.unwrap_err();
        assert!(error.contains("401 Unauthorized: Unauthorized"), "{error}");
    })
    .await;
}
