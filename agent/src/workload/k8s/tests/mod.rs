//! Processes in invented control groups, with a fake kubelet whose answers the test decides.
#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

mod kubelet;
mod pod_list;
mod polling;
mod processes;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::StatusCode;
use bytes::Bytes;
use serde_json::{Value, json};

use super::*;
use crate::workload::ProcFs;

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

/// A kubelet that gives these answers, the last one forever.
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

fn of_uid(uid: &str) -> PodReference {
    PodReference {
        name: None,
        uid: Some(uid.to_owned()),
    }
}
