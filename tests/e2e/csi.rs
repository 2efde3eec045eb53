//! The CSI driver as a kubelet uses it, with real mounts in a mount namespace that nobody else has.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use finial_proto::csi::v1 as pb;
use finial_proto::csi::v1::identity_client::IdentityClient;
use finial_proto::csi::v1::node_client::NodeClient;
use finial_proto::csi::v1::volume_capability::access_mode::Mode;
use finial_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use finial_proto::pluginregistration::registration_client::RegistrationClient;
use finial_proto::pluginregistration::{InfoRequest, RegistrationStatus};
use finial_tests::{Entry, Program, Stack, StackOptions, absent, finial, run, wait_until};
use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::raw_http2::{Split, exchange};
use crate::wire::unix;

const PATIENCE: Duration = Duration::from_secs(60);
const UID: &str = "0a1b-2c";

/// A node: a stack whose agent has sockets for pods, a driver, and the kubelet's folder.
struct Node {
    driver: Program,
    stack: Stack,
    dir: TempDir,
}

impl Node {
    fn start() -> Self {
        let dir = TempDir::with_prefix("finial-").expect("a temporary directory");
        let kubelet = dir.path().join("k");
        for folder in ["plugins_registry", "pods/0a1b-2c/volumes/kubernetes.io~csi/v"] {
            std::fs::create_dir_all(kubelet.join(folder)).expect("the kubelet's folders");
        }
        let agent = format!(
            r#"csi {{ socket_dir = "{dir}/csi" kubelet_path = "{dir}/k" }}"#,
            dir = dir.path().display()
        );
        let stack = Stack::start(StackOptions {
            agent,
            ..StackOptions::default()
        });
        let driver = start_driver(&stack);
        let mut node = Node { driver, stack, dir };
        node.driver.wait_for_line("CSI driver started", PATIENCE);
        node
    }

    fn target(&self) -> PathBuf {
        self.dir
            .path()
            .join(format!("k/pods/{UID}/volumes/kubernetes.io~csi/v/mount"))
    }

    /// What is there for whoever shares the driver's mounts.
    fn seen(&self, path: &Path) -> PathBuf {
        let path = path.strip_prefix("/").expect("an absolute path");
        PathBuf::from(format!("/proc/{}/root", self.driver.pid())).join(path)
    }

    async fn channel(&self, socket: &str) -> Channel {
        unix(self.dir.path().join("k").join(socket))
            .await
            .expect("the driver listens")
    }

    async fn client(&self) -> NodeClient<Channel> {
        NodeClient::new(self.channel("plugins/csi.spiffe.io/csi.sock").await)
    }

    fn request(&self) -> pb::NodePublishVolumeRequest {
        let context = [
            ("ephemeral", "true"),
            ("pod.uid", UID),
            ("pod.namespace", "shop"),
            ("pod.name", "web-0"),
            ("serviceAccount.name", "web"),
        ];
        pb::NodePublishVolumeRequest {
            volume_id: "csi-1".to_owned(),
            target_path: self.target().display().to_string(),
            volume_capability: Some(pb::VolumeCapability {
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            volume_context: context
                .map(|(name, value)| (format!("csi.storage.k8s.io/{name}"), value.to_owned()))
                .into(),
        }
    }

    async fn condition(&self) -> pb::VolumeCondition {
        let request = pb::NodeGetVolumeStatsRequest {
            volume_id: "csi-1".to_owned(),
            volume_path: self.target().display().to_string(),
        };
        let stats = self.client().await.node_get_volume_stats(request).await;
        stats
            .expect("an answer")
            .into_inner()
            .volume_condition
            .expect("a condition")
    }

    async fn unpublish(&self) -> Result<(), Status> {
        let request = pb::NodeUnpublishVolumeRequest {
            volume_id: "csi-1".to_owned(),
            target_path: self.target().display().to_string(),
        };
        self.client().await.node_unpublish_volume(request).await.map(drop)
    }

    fn wait_identity_in_pod(&self) {
        let socket = self.seen(&self.target().join("socket"));
        let id = self.stack.id("/web");
        wait_until("the pod's identity", PATIENCE, || {
            let fetched = run([
                "agent",
                "api",
                "fetch",
                "x509",
                "-socketPath",
                &socket.display().to_string(),
            ]);
            assert!(!fetched.stdout.contains("/other"), "{}", fetched.stdout);
            fetched.stdout.contains(&id)
        });
    }
}

fn start_driver(stack: &Stack) -> Program {
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "--propagation", "private"])
        .arg(finial())
        .args(["agent", "csi", "-config"])
        .arg(stack.dir().join("agent.conf"))
        .env("MY_NODE_NAME", "node-a");
    Program::start("csi", &mut command)
}

/// Only root may mount.
fn may_mount() -> bool {
    let unshared = Command::new("unshare")
        .args(["--mount", "--propagation", "private", "true"])
        .status();
    if unshared.is_ok_and(|status| status.success()) && rustix::process::geteuid().is_root() {
        return true;
    }
    absent("mounts need root and unshare");
    false
}

#[tokio::test]
async fn a_pod_has_its_identity_by_the_volume_until_it_is_taken_away() {
    if !may_mount() {
        return;
    }
    let mut node = Node::start();
    for (path, selectors) in [
        ("/web", vec!["k8s:ns:shop", "k8s:sa:web", "k8s:pod-uid:0a1b-2c"]),
        ("/other", vec!["k8s:ns:shop", "k8s:sa:db"]),
        ("/other/container", vec!["k8s:ns:shop", "k8s:container-name:web"]),
        ("/other/process", vec!["unix:uid:0"]),
    ] {
        node.stack.create_entry(&Entry {
            path,
            selectors: selectors.into_iter().map(str::to_owned).collect(),
            extra: Vec::new(),
        });
    }

    // The kubelet finds the driver.
    let registry = node.channel("plugins_registry/csi.spiffe.io-reg.sock").await;
    let mut registration = RegistrationClient::new(registry);
    let info = registration
        .get_info(InfoRequest {})
        .await
        .expect("info")
        .into_inner();
    let socket = node.dir.path().join("k/plugins/csi.spiffe.io/csi.sock");
    assert_eq!(
        (&*info.r#type, &*info.name, &*info.endpoint),
        ("CSIPlugin", "csi.spiffe.io", &*socket.display().to_string())
    );
    assert_eq!(info.supported_versions, ["1.0.0"]);
    let registered = RegistrationStatus {
        plugin_registered: true,
        error: String::new(),
    };
    registration
        .notify_registration_status(registered)
        .await
        .expect("noted");
    let mut client = node.client().await;
    let told = client.node_get_info(pb::NodeGetInfoRequest {}).await;
    assert_eq!(told.expect("info").into_inner().node_id, "node-a");

    assert_eq!(node.condition().await.message, "volume path is not mounted");
    for _again in 0..2 {
        client
            .node_publish_volume(node.request())
            .await
            .expect("published");
    }
    let condition = node.condition().await;
    assert_eq!((condition.abnormal, &*condition.message), (false, "mounted"));
    node.wait_identity_in_pod();

    // The folder is the same, the socket in it a new one.
    node.stack.agent().kill_hard();
    node.stack.start_agent(&[]);
    node.stack.wait_agent();
    node.wait_identity_in_pod();

    // A driver that is started again finds what is mounted in the namespace of the kubelet; here it is gone with its own.
    for _again in 0..2 {
        node.unpublish().await.expect("unpublished");
        assert!(!node.seen(&node.target()).exists());
        let pods = std::fs::read_dir(node.dir.path().join("csi/pods")).expect("the folder of pods");
        assert_eq!(pods.count(), 0, "the pod's folder goes with its volume");
    }
    assert!(node.condition().await.abnormal);
    assert!(node.driver.terminate().success());
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said_and_nothing_is_mounted() {
    if !may_mount() {
        return;
    }
    let node = Node::start();
    let mut client = node.client().await;
    let right = node.request();
    let elsewhere = node.dir.path().join("elsewhere");
    std::fs::create_dir(&elsewhere).expect("a folder");
    let link = node.dir.path().join(format!("k/pods/{UID}/link"));
    std::os::unix::fs::symlink(&elsewhere, &link).expect("a link");
    let at = |path: String| pb::NodePublishVolumeRequest {
        target_path: path,
        ..right.clone()
    };
    let pods = node.dir.path().join("k/pods");
    let mut other = right.clone();
    other
        .volume_context
        .insert("csi.storage.k8s.io/pod.uid".to_owned(), "other".to_owned());
    for (request, text) in [
        (
            pb::NodePublishVolumeRequest::default(),
            "request missing required volume id",
        ),
        (at(String::new()), "request missing required target path"),
        (
            pb::NodePublishVolumeRequest {
                readonly: false,
                ..right.clone()
            },
            "pod.spec.volumes[].csi.readOnly must be set to 'true'",
        ),
        (
            pb::NodePublishVolumeRequest {
                volume_context: std::collections::BTreeMap::new(),
                ..right.clone()
            },
            "only ephemeral volumes are supported",
        ),
        (at(elsewhere.display().to_string()), "path must lie below"),
        (
            at(format!("{}/{UID}/../../../elsewhere/x", pods.display())),
            "path must lie below",
        ),
        (at(format!("{}/x", link.display())), "not a folder"),
        (other, "target path is another pod's"),
    ] {
        let status = client.node_publish_volume(request).await.expect_err(text);
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    assert!(!node.seen(&elsewhere.join("x")).exists());
    assert!(!node.seen(&node.target()).exists());
}

#[tokio::test]
async fn an_old_kubelet_s_authority_is_accepted_and_a_refusal_ends_the_driver() {
    if !may_mount() {
        return;
    }
    let mut node = Node::start();
    let socket = node.dir.path().join("k/plugins/csi.spiffe.io/csi.sock");
    let authority = socket.display().to_string();
    let answer = exchange(
        &socket,
        Some(&authority),
        "/csi.v1.Identity/GetPluginInfo",
        &[],
        Split::Whole,
    );
    assert!(answer.data_bytes > 5, "{answer:?}");
    let registry = node.channel("plugins_registry/csi.spiffe.io-reg.sock").await;
    let refused = RegistrationStatus {
        plugin_registered: false,
        error: "no such luck".to_owned(),
    };
    // The driver may be gone before it has answered.
    let _answer = RegistrationClient::new(registry)
        .notify_registration_status(refused)
        .await;
    assert!(!node.driver.wait_exit(PATIENCE).success());
    let lines = node.driver.lines().join("\n");
    assert!(lines.contains("no such luck"), "{lines}");
    let mut identity = start_driver(&node.stack);
    identity.wait_for_line("CSI driver started", PATIENCE);
    node.driver = identity;
    let mut client = IdentityClient::new(node.channel("plugins/csi.spiffe.io/csi.sock").await);
    let info = client.get_plugin_info(pb::GetPluginInfoRequest {}).await;
    assert_eq!(info.expect("info").into_inner().name, "csi.spiffe.io");
}
