//! What the kubelet must have sent, in the order in which SPIFFE's own driver says what is missing.

use finial_proto::csi::v1::volume_capability::AccessType;
use finial_proto::csi::v1::volume_capability::access_mode::Mode;
use finial_proto::csi::v1::{NodePublishVolumeRequest, VolumeCapability};

use crate::socket_tree::PodRecord;

/// Most bytes of a volume's id (CSI, size limits).
const MAX_VOLUME_ID: usize = 128;
/// How the kubelet calls the facts about a pod in the volume's context (`podInfoOnMount`).
const CONTEXT: &str = "csi.storage.k8s.io/";

/// A request that is refused, in words that operators find in the pod's events.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(pub(super) String);

/// Checks a request to publish. The place itself is checked when it is found.
pub(super) fn check_publish(request: &NodePublishVolumeRequest) -> Result<(), Refused> {
    check_place(&request.volume_id, &request.target_path)?;
    let Some(capability) = &request.volume_capability else {
        return refuse("request missing required volume capability");
    };
    if capability.access_type.is_none() {
        return refuse("request missing required volume capability access type");
    }
    if !is_plain_mount(capability) {
        return refuse("request volume capability access type must be a simple mount");
    }
    let Some(mode) = capability.access_mode else {
        return refuse("request missing required volume capability access mode");
    };
    if mode.mode() == Mode::SingleNodeReaderOnly {
        return refuse("request volume capability access mode is not valid");
    }
    if !request.readonly {
        return refuse("pod.spec.volumes[].csi.readOnly must be set to 'true'");
    }
    if context(request, "ephemeral") != "true" {
        return refuse("only ephemeral volumes are supported");
    }
    check_volume_id(&request.volume_id)
}

/// Checks a request to take a volume away.
pub(super) fn check_unpublish(volume_id: &str, target_path: &str) -> Result<(), Refused> {
    check_place(volume_id, target_path)?;
    check_volume_id(volume_id)
}

/// Whose volume it is.
pub(super) fn pod(request: &NodePublishVolumeRequest) -> Result<PodRecord, Refused> {
    let record = PodRecord {
        uid: context(request, "pod.uid").to_owned(),
        namespace: context(request, "pod.namespace").to_owned(),
        name: context(request, "pod.name").to_owned(),
        service_account: context(request, "serviceAccount.name").to_owned(),
    };
    record.checked().map_err(|error| {
        Refused(format!(
            "volume context does not tell the pod (podInfoOnMount): {error}"
        ))
    })
}

fn check_place(volume_id: &str, target_path: &str) -> Result<(), Refused> {
    if volume_id.is_empty() {
        return refuse("request missing required volume id");
    }
    if target_path.is_empty() {
        return refuse("request missing required target path");
    }
    Ok(())
}

/// It names nothing here; what could, somewhere, lead elsewhere is refused all the same.
fn check_volume_id(volume_id: &str) -> Result<(), Refused> {
    let harmless = |character: char| !character.is_control() && character != '/';
    if volume_id.len() > MAX_VOLUME_ID || !volume_id.chars().all(harmless) || volume_id.starts_with('.') {
        return refuse("request volume id is not valid");
    }
    Ok(())
}

fn context<'a>(request: &'a NodePublishVolumeRequest, name: &str) -> &'a str {
    let value = request.volume_context.get(&format!("{CONTEXT}{name}"));
    value.map_or("", String::as_str)
}

fn is_plain_mount(capability: &VolumeCapability) -> bool {
    match &capability.access_type {
        Some(AccessType::Mount(mount)) => mount.fs_type.is_empty() && mount.mount_flags.is_empty(),
        Some(AccessType::Block(_)) | None => false,
    }
}

fn refuse<T>(text: &str) -> Result<T, Refused> {
    Err(Refused(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use finial_proto::csi::v1::volume_capability::{AccessMode, BlockVolume, MountVolume};

    use super::*;

    fn right() -> NodePublishVolumeRequest {
        let context = [
            ("ephemeral", "true"),
            ("pod.uid", "0a1b"),
            ("pod.namespace", "ns"),
            ("pod.name", "web-0"),
            ("serviceAccount.name", "default"),
        ];
        NodePublishVolumeRequest {
            volume_id: "csi-1".to_owned(),
            target_path: "/var/lib/kubelet/pods/0a1b/volumes/kubernetes.io~csi/v/mount".to_owned(),
            volume_capability: Some(VolumeCapability {
                access_mode: Some(AccessMode {
                    mode: Mode::SingleNodeWriter.into(),
                }),
                access_type: Some(AccessType::Mount(MountVolume::default())),
            }),
            readonly: true,
            volume_context: context
                .map(|(name, value)| (format!("{CONTEXT}{name}"), value.to_owned()))
                .into(),
        }
    }

    #[test]
    fn a_request_of_a_kubelet_passes_and_tells_the_pod() {
        check_publish(&right()).unwrap();
        let pod = pod(&right()).unwrap();
        assert_eq!(
            (&*pod.uid, &*pod.namespace, &*pod.name, &*pod.service_account),
            ("0a1b", "ns", "web-0", "default")
        );
    }

    /// Each request lacks what the line says, and all that later lines say.
    #[test]
    fn what_is_wrong_is_said_in_this_order() {
        let mut request = right();
        let mut refusals = Vec::new();
        let mut refused = |request: &NodePublishVolumeRequest| {
            refusals.push(check_publish(request).unwrap_err().0);
        };
        request.volume_context.clear();
        refused(&request);
        request.readonly = false;
        refused(&request);
        let capability = request.volume_capability.as_mut().unwrap();
        capability.access_mode = Some(AccessMode {
            mode: Mode::SingleNodeReaderOnly.into(),
        });
        refused(&request);
        request.volume_capability.as_mut().unwrap().access_mode = None;
        refused(&request);
        for access_type in [
            Some(AccessType::Block(BlockVolume {})),
            Some(AccessType::Mount(MountVolume {
                fs_type: "ext4".to_owned(),
                ..MountVolume::default()
            })),
            Some(AccessType::Mount(MountVolume {
                mount_flags: vec!["ro".to_owned()],
                ..MountVolume::default()
            })),
            None,
        ] {
            request.volume_capability.as_mut().unwrap().access_type = access_type;
            refused(&request);
        }
        request.volume_capability = None;
        refused(&request);
        request.target_path.clear();
        refused(&request);
        request.volume_id.clear();
        refused(&request);
        assert_eq!(
            refusals,
            [
                "only ephemeral volumes are supported",
                "pod.spec.volumes[].csi.readOnly must be set to 'true'",
                "request volume capability access mode is not valid",
                "request missing required volume capability access mode",
                "request volume capability access type must be a simple mount",
                "request volume capability access type must be a simple mount",
                "request volume capability access type must be a simple mount",
                "request missing required volume capability access type",
                "request missing required volume capability",
                "request missing required target path",
                "request missing required volume id",
            ]
        );
    }

    #[test]
    fn ids_and_names_that_could_lead_elsewhere_are_refused() {
        for id in ["../x", "a/b", "..", "a\n", &"a".repeat(129)] {
            let request = NodePublishVolumeRequest {
                volume_id: id.to_owned(),
                ..right()
            };
            assert!(check_publish(&request).is_err(), "{id}");
            assert!(check_unpublish(id, "/x").is_err(), "{id}");
        }
        for name in ["pod.uid", "pod.namespace", "pod.name", "serviceAccount.name"] {
            for value in ["", "../../etc"] {
                let mut request = right();
                request
                    .volume_context
                    .insert(format!("{CONTEXT}{name}"), value.to_owned());
                assert!(pod(&request).is_err(), "{name}={value}");
            }
        }
    }
}
