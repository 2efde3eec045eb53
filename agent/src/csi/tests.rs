//! The driver with real mounts, in a separate mount namespace.
#![allow(clippy::disallowed_methods)] // Tests lay out files by hand.

use std::path::Path;
use std::process::Command;

use finial_proto::csi::v1 as pb;
use finial_proto::csi::v1::node_server::Node;
use finial_proto::csi::v1::volume_capability::access_mode::Mode;
use finial_proto::csi::v1::volume_capability::{AccessMode, AccessType, MountVolume};
use tonic::{Code, Request};

use super::*;

const UID: &str = "0a1b-2c";

fn publish(uid: &str, target: &Path) -> Request<pb::NodePublishVolumeRequest> {
    let context = [
        ("ephemeral", "true"),
        ("pod.uid", uid),
        ("pod.namespace", "shop"),
        ("pod.name", "web-0"),
        ("serviceAccount.name", "web"),
    ];
    Request::new(pb::NodePublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: target.display().to_string(),
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
    })
}

fn unpublish(target: &Path) -> Request<pb::NodeUnpublishVolumeRequest> {
    Request::new(pb::NodeUnpublishVolumeRequest {
        volume_id: "csi-1".to_owned(),
        target_path: target.display().to_string(),
    })
}

async fn condition(driver: &Driver, target: &Path) -> (bool, String) {
    let request = pb::NodeGetVolumeStatsRequest {
        volume_id: "csi-1".to_owned(),
        volume_path: target.display().to_string(),
    };
    let answer = driver.node_get_volume_stats(Request::new(request)).await;
    let condition = answer.unwrap().into_inner().volume_condition.unwrap();
    (condition.abnormal, condition.message)
}

/// Runs the test below where its mounts hurt nobody. Without root there is nothing to be tested.
#[test]
fn volumes_are_mounted_and_taken_away_in_a_namespace_of_their_own() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]);
    command.arg(std::env::current_exe().unwrap());
    command.args(["--exact", "--include-ignored", "csi::tests::within_the_namespace"]);
    let Ok(output) = command.output() else {
        return; // A machine without the program.
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "mounts; the test above runs it in a mount namespace of its own"]
async fn within_the_namespace() {
    let dir = tempfile::tempdir().unwrap();
    let settings = CsiSettings {
        socket_dir: dir.path().join("csi"),
        kubelet_path: dir.path().join("k"),
        ..CsiSettings::default()
    };
    let volumes = settings
        .kubelet_pods()
        .join(UID)
        .join("volumes/kubernetes.io~csi");
    let (one, two) = (volumes.join("a b/mount"), volumes.join("c/mount"));
    for target in [&one, &two] {
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
    }
    let folders = Folders::open(&settings.socket_dir).unwrap();
    let driver = Driver::new(settings.clone(), "node".to_owned(), folders);
    assert_eq!(
        condition(&driver, &one).await,
        (true, "volume path is not mounted".to_owned())
    );

    for target in [&one, &one, &two] {
        driver.node_publish_volume(publish(UID, target)).await.unwrap();
        assert_eq!(condition(&driver, target).await, (false, "mounted".to_owned()));
    }
    let mounted = || {
        let mounts = target::mounts().unwrap();
        mounts
            .into_iter()
            .filter(|mount| mount.point.starts_with(dir.path()))
            .count()
    };
    assert_eq!(mounted(), 2, "a volume is mounted once");
    // What the agent makes in the folder is in the pod, and can be written to from the node.
    let pod = settings.socket_dir.join("pods").join(UID);
    std::fs::write(pod.join("sockets/socket"), "").unwrap();
    assert!(one.join("socket").exists() && two.join("socket").exists());
    assert!(!one.join("pod.json").exists() && !one.join("../pod.json").exists());
    std::fs::write(two.join("written"), "").unwrap();

    let other = driver.node_publish_volume(publish("other", &one)).await;
    assert_eq!(other.unwrap_err().code(), Code::InvalidArgument);

    driver.node_unpublish_volume(unpublish(&one)).await.unwrap();
    assert!(!one.exists() && pod.exists(), "the pod has another volume");
    for _again in 0..2 {
        driver.node_unpublish_volume(unpublish(&two)).await.unwrap();
        assert!(!two.exists() && !pod.exists());
    }
    assert_eq!(mounted(), 0);
    // Its folder may be gone altogether.
    std::fs::remove_dir_all(settings.kubelet_pods().join(UID)).unwrap();
    driver.node_unpublish_volume(unpublish(&one)).await.unwrap();

    let shared = CsiSettings {
        per_pod: false,
        ..settings
    };
    std::fs::create_dir_all(one.parent().unwrap()).unwrap();
    let folders = Folders::open(&shared.socket_dir).unwrap();
    std::fs::write(shared.socket_dir.join("shared/socket"), "").unwrap();
    let driver = Driver::new(shared, "node".to_owned(), folders);
    driver.node_publish_volume(publish(UID, &one)).await.unwrap();
    assert!(one.join("socket").exists() && !pod.exists());
    driver.node_unpublish_volume(unpublish(&one)).await.unwrap();
    assert_eq!(mounted(), 0);
}

#[tokio::test]
async fn a_driver_needs_the_name_of_its_node_and_leaves_no_socket_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let settings = CsiSettings {
        socket_dir: dir.path().join("csi"),
        kubelet_path: dir.path().join("k"),
        ..CsiSettings::default()
    };
    let error = build(&settings).await.unwrap_err();
    assert!(matches!(error, DriverError::NoNodeName), "{error}");
    assert!(!settings.plugin_socket().exists());
}

#[tokio::test]
async fn a_kubelet_that_refuses_ends_the_driver_and_its_sockets_go() {
    use finial_proto::pluginregistration as registration;
    use finial_proto::pluginregistration::registration_client::RegistrationClient;
    let dir = tempfile::tempdir().unwrap();
    let settings = CsiSettings {
        socket_dir: dir.path().join("csi"),
        kubelet_path: dir.path().join("k"),
        node_name: Some("node".to_owned()),
        ..CsiSettings::default()
    };
    let driver = build(&settings).await.unwrap();
    let path = settings.registration_socket();
    let kubelet = async {
        let channel = finial_identity::command::dial::connect(&path).await.unwrap();
        let mut client = RegistrationClient::new(channel);
        let info = client
            .get_info(registration::InfoRequest {})
            .await
            .unwrap()
            .into_inner();
        assert_eq!(info.endpoint, settings.plugin_socket().display().to_string());
        assert_eq!((&*info.r#type, &*info.name), ("CSIPlugin", "csi.spiffe.io"));
        for plugin_registered in [true, false] {
            let status = registration::RegistrationStatus {
                plugin_registered,
                error: "no such luck".to_owned(),
            };
            // The last answer may be cut off.
            let _answer = client.notify_registration_status(status).await;
        }
    };
    let (outcome, ()) = tokio::join!(driver.run(std::future::pending()), kubelet);
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("no such luck"), "{error}");
    assert!(!path.exists() && !settings.plugin_socket().exists());
}
