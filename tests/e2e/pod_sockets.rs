//! What the agent serves on the sockets of pods: what the public socket has, whatever else the agent has elsewhere. The
//! folders are laid out as the driver does; its mounts are tested in `csi`.

use std::fs::{create_dir, rename, write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use finial_tests::rpcs::{AGENT_SOCKETS, rows};
use finial_tests::{Entry, Stack, StackOptions, run, wait_until};
use tempfile::TempDir;
use tonic::{Code, Status};

use crate::wire::{call, call_with, unix};

const UID: &str = "7d8fb3a5-25a7-4c0b-9ab1-4e2f1bd4a9b1";
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent with every kind of socket that there is.
fn start(dir: &Path, per_pod: bool) -> Stack {
    let dir = dir.display();
    let agent = format!(
        r#"csi {{ socket_dir = "{dir}/csi" per_pod = {per_pod} }}
        admin_socket_path = "{dir}/admin/admin.sock"
        authorized_delegates = ["spiffe://example.org/delegate"]
        experimental {{
          feature_flags = ["wit-svid"]
          broker {{
            socket_path = "{dir}/broker/broker.sock"
            brokers = [ {{ id = "spiffe://example.org/broker", allowed_reference_types = [ {{ type_url = "*" }} ] }} ]
          }}
        }}"#
    );
    Stack::start(StackOptions {
        agent,
        ..StackOptions::default()
    })
}

/// What the driver makes for a pod; gives the folder that is mounted into it.
fn publish(dir: &Path) -> PathBuf {
    let pods = dir.join("csi/pods");
    let stage = pods.join(".new");
    create_dir(&stage).expect("the agent made the folder of pods");
    create_dir(stage.join("sockets")).expect("a folder");
    let record =
        format!(r#"{{"uid": "{UID}", "namespace": "shop", "name": "web-0", "service_account": "web"}}"#);
    write(stage.join("pod.json"), record).expect("a record");
    rename(&stage, pods.join(UID)).expect("the folder appears whole");
    pods.join(UID).join("sockets")
}

#[test]
fn an_operator_is_told_how_whoever_calls_on_a_pods_socket_is_known() {
    let dir = TempDir::with_prefix("finial-pods-").expect("a temporary directory");
    let stack = start(dir.path(), true);
    let admin = dir.path().join("admin/admin.sock").display().to_string();
    let why = |uid: &str| run(["why", "-socketPath", &admin, "-output", "json", "-podUID", uid]);
    let unknown = why(UID);
    assert!(
        !unknown.status.success() && unknown.stderr.contains("no pod of this node"),
        "{}",
        unknown.stderr
    );
    publish(dir.path());
    stack.create_entry(&Entry {
        path: "/container",
        selectors: vec!["k8s:ns:shop".to_owned(), "k8s:container-name:web".to_owned()],
        extra: Vec::new(),
    });
    wait_until("the entry that nearly matches", PATIENCE, || {
        let pod = &why(UID).json()["pod"];
        pod["near_misses"][0]["differences"][0]["wanted"] == "k8s:container-name:web"
    });
    let pod = &why(UID).json()["pod"];
    assert_eq!(pod["name"], "web-0");
    assert_eq!(pod["verdict"], "NO_ENTRY_MATCHES");
    stack.create_entry(&Entry {
        path: "/web",
        selectors: vec!["k8s:ns:shop".to_owned(), "k8s:sa:web".to_owned()],
        extra: Vec::new(),
    });
    wait_until("the pod's identity", PATIENCE, || {
        why(UID).json()["pod"]["verdict"] == "HAS_IDENTITY"
    });
}

#[tokio::test]
async fn a_pods_socket_serves_what_the_table_calls_public_under_each_of_its_names() {
    for per_pod in [true, false] {
        let dir = TempDir::with_prefix("finial-pods-").expect("a temporary directory");
        let _stack = start(dir.path(), per_pod);
        let folder = match per_pod {
            true => publish(dir.path()),
            false => dir.path().join("csi/shared"),
        };
        for name in ["spire-agent.sock", "socket", "api.sock"] {
            let socket = folder.join(name);
            wait_until("the pod's socket", PATIENCE, || {
                std::os::unix::net::UnixStream::connect(&socket).is_ok()
            });
            let channel = unix(socket).await.expect("the pod's socket");
            let code =
                |outcome: Result<Vec<u8>, Status>| outcome.map_or_else(|status| status.code(), |_| Code::Ok);
            let mut wrong = Vec::new();
            let mut served = 0;
            for (method, words) in rows(AGENT_SOCKETS) {
                let header = [("workload.spiffe.io", "true"), ("broker.spiffe.io", "true")];
                let with = code(call_with(&channel, method, Vec::new(), &header).await);
                let is_here = matches!(words[0], "public" | "both");
                let mut right = (with != Code::Unimplemented) == is_here;
                if is_here && words.contains(&"header") {
                    right &= code(call(&channel, method, Vec::new()).await) == Code::InvalidArgument;
                }
                if !right {
                    wrong.push(format!("{method}: {with:?}"));
                }
                served += usize::from(is_here);
            }
            assert!(
                wrong.is_empty(),
                "per_pod {per_pod}, {name}:\n{}",
                wrong.join("\n")
            );
            assert!(served >= 11, "only {served} methods are served");
        }
    }
}
