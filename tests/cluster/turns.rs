//! A second cluster, for tests that restart, change or take away what others rely on. They take turns.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use finial_tests::{Output, wait_until};
use serde_json::Value;

use crate::cluster::{Cluster, READY};
use crate::installation::{Installation, SERVER_NAMESPACE};

/// The installation of the second cluster, for one test at a time.
#[derive(Debug)]
pub struct Turn {
    pub installation: &'static Installation<'static>,
    _alone: MutexGuard<'static, ()>,
}

impl Turn {
    /// Waits for the tests before; then everything is installed with the values of tests, and ready.
    pub fn take() -> Option<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        static CLUSTER: OnceLock<Option<Cluster>> = OnceLock::new();
        static INSTALLATION: OnceLock<Installation<'static>> = OnceLock::new();
        // A test that failed left nothing that the next one could not set right.
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cluster = CLUSTER.get_or_init(|| Cluster::start(2)).as_ref()?;
        let installation = INSTALLATION.get_or_init(|| Installation::prepared(cluster));
        installation.install()?;
        installation.wait_ready();
        Some(Self {
            installation,
            _alone: alone,
        })
    }
}

/// The trust bundle as the server tells it: equal bundles, equal authorities.
pub fn bundle(installation: &Installation<'_>) -> Value {
    let mut bundle = installation.server_json(&["bundle", "show"]);
    // Counts changes; the authorities are what matters.
    bundle["sequence_number"] = Value::Null;
    bundle
}

/// The UID of an object.
pub fn uid(cluster: &Cluster, args: &[&str]) -> String {
    let object = cluster.get(args);
    object["metadata"]["uid"]
        .as_str()
        .unwrap_or_else(|| panic!("no UID: {object}"))
        .to_owned()
}

/// The UID of the server's pod, which another pod of the same name has not.
pub fn server_uid(cluster: &Cluster) -> String {
    uid(cluster, &["-n", SERVER_NAMESPACE, "pod", "finial-server-0"])
}

/// Ends the pods of a test's namespace, so that the next test finds none of them; the namespace follows.
pub fn end(cluster: &Cluster, space: &str) {
    cluster.kubectl_ok(&["-n", space, "delete", "pods", "--all", "--timeout=120s"]);
    cluster.kubectl_ok(&["delete", "namespace", space, "--wait=false"]);
}

/// Ends a node's kubelet, starts it anew and waits until it answers the apiserver.
pub fn restart_kubelet(cluster: &Cluster, node: &str) {
    replace_kubelet(cluster, node);
    wait_until("the kubelet to answer", READY, || {
        let ready = cluster.kubectl(&["get", "--raw", &format!("/api/v1/nodes/{node}/proxy/healthz")]);
        ready.stdout == "ok"
    });
}

/// Ends a node's kubelet; `inside/node` starts another one.
pub fn replace_kubelet(cluster: &Cluster, node: &str) {
    // The file is empty while it is written.
    let pid = || {
        let read = Output::of(cluster.enter_node(node, "cat").args(["/run/kubelet.pid"]));
        read.stdout.trim().parse::<u32>().ok()
    };
    let before = pid().expect("the pid of the kubelet");
    let told = Output::of(
        cluster
            .enter_node(node, "sh")
            .args(["-c", &format!("touch /run/kubelet.again && kill {before}")]),
    );
    assert!(told.status.success(), "{}", told.stderr);
    wait_until("another kubelet", READY, || {
        pid().is_some_and(|now| now != before)
    });
}
