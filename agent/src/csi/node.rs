//! The services `csi.v1.Node` and `csi.v1.Identity` (Container Storage Interface 1).

use std::sync::{Arc, Mutex, PoisonError};

use finial_proto::csi::v1 as pb;
use finial_proto::csi::v1::identity_server::Identity;
use finial_proto::csi::v1::node_server::Node;
use finial_proto::csi::v1::node_service_capability::rpc::Type as Rpc;
use finial_proto::csi::v1::node_service_capability::{Rpc as RpcMessage, Type};
use tonic::{Request, Response, Status};

use super::folders::{FolderError, Folders};
use super::request::{self, Refused};
use super::target::{self, Place, TargetError};
use crate::config::CsiSettings;

/// What the driver is built from.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Mounts folders for the kubelet. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Driver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    settings: CsiSettings,
    node_name: String,
    folders: Folders,
    /// One volume at a time: whether a pod's folder is still needed depends on what else is mounted.
    turn: Mutex<()>,
}

/// Why a call fails.
#[derive(Debug, thiserror::Error)]
enum CallError {
    #[error("{0}")]
    Refused(#[from] Refused),
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{0}")]
    Folder(#[from] FolderError),
    #[error("target path does not exist: {0:?}")]
    Missing(String),
    #[error("call was cut off")]
    CutOff,
}

impl Driver {
    /// A driver for these folders.
    pub(super) fn new(settings: CsiSettings, node_name: String, folders: Folders) -> Self {
        Self {
            shared: Arc::new(Shared {
                settings,
                node_name,
                folders,
                turn: Mutex::default(),
            }),
        }
    }

    /// System calls may wait for disks, so they do it elsewhere.
    async fn apart<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shared) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let shared = Arc::clone(&self.shared);
        let done = tokio::task::spawn_blocking(move || {
            // Nothing is guarded but the order.
            let _turn = shared.turn.lock().unwrap_or_else(PoisonError::into_inner);
            work(&shared)
        });
        match done.await {
            Ok(outcome) => outcome,
            Err(_cut_off) => Err(CallError::CutOff),
        }
    }
}

impl Shared {
    fn publish(&self, request: &pb::NodePublishVolumeRequest) -> Result<(), CallError> {
        request::check_publish(request)?;
        let pods = self.settings.kubelet_pods();
        let place = Place::parse(&pods, &request.target_path)?;
        let pod = if self.settings.per_pod {
            Some(request::pod(request)?)
        } else {
            None
        };
        if let Some(pod) = pod.as_ref().filter(|pod| pod.uid != place.pod_uid) {
            return Err(Refused(format!(
                "target path is another pod's: volume context tells {}, the path {}",
                pod.uid, place.pod_uid
            ))
            .into());
        }
        let target = place.open(&pods)?;
        let target = target.ok_or_else(|| CallError::Missing(request.target_path.clone()))?;
        let source = match &pod {
            Some(pod) => self.folders.prepare(pod)?,
            None => self.folders.shared()?,
        };
        Ok(target.mount(source)?)
    }

    fn unpublish(&self, request: &pb::NodeUnpublishVolumeRequest) -> Result<(), CallError> {
        request::check_unpublish(&request.volume_id, &request.target_path)?;
        let pods = self.settings.kubelet_pods();
        let place = Place::parse(&pods, &request.target_path)?;
        if let Some(target) = place.open(&pods)? {
            target.unmount()?;
        }
        // A pod may have the volume several times.
        let mounts = target::mounts()?;
        let in_use = mounts
            .iter()
            .any(|mount| Folders::is_of(&mount.root, place.pod_uid));
        if !in_use {
            self.folders.release(place.pod_uid)?;
        }
        Ok(())
    }

    /// What is wrong with a volume.
    fn examine(&self, path: &str) -> Result<(), String> {
        let pods = self.settings.kubelet_pods();
        let place = Place::parse(&pods, path).map_err(|error| error.to_string())?;
        let not_mounted = || "volume path is not mounted".to_owned();
        let target = place.open(&pods).map_err(|error| error.to_string())?;
        let target = target.ok_or_else(not_mounted)?;
        let mounted = target
            .is_mounted()
            .map_err(|error| format!("failed to determine root for volume path mount: {error}"))?;
        if !mounted {
            return Err(not_mounted());
        }
        target
            .list()
            .map_err(|error| format!("unable to list contents of volume path: {error}"))
    }
}

#[tonic::async_trait]
impl Node for Driver {
    async fn node_publish_volume(
        &self,
        request: Request<pb::NodePublishVolumeRequest>,
    ) -> Result<Response<pb::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, path) = (request.volume_id.clone(), request.target_path.clone());
        match self.apart(move |shared| shared.publish(&request)).await {
            Ok(()) => {
                tracing::info!(volume, path, "volume published");
                Ok(Response::new(pb::NodePublishVolumeResponse {}))
            }
            Err(error) => {
                tracing::error!(volume, path, %error, "volume cannot be published");
                Err(error.into())
            }
        }
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<pb::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<pb::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let (volume, path) = (request.volume_id.clone(), request.target_path.clone());
        match self.apart(move |shared| shared.unpublish(&request)).await {
            Ok(()) => {
                tracing::info!(volume, path, "volume unpublished");
                Ok(Response::new(pb::NodeUnpublishVolumeResponse {}))
            }
            Err(error) => {
                tracing::error!(volume, path, %error, "volume cannot be unpublished");
                Err(error.into())
            }
        }
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<pb::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<pb::NodeGetVolumeStatsResponse>, Status> {
        let path = request.into_inner().volume_path;
        let examined = self.apart(move |shared| Ok(shared.examine(&path))).await?;
        let condition = match examined {
            Ok(()) => pb::VolumeCondition {
                abnormal: false,
                message: "mounted".to_owned(),
            },
            Err(message) => pb::VolumeCondition {
                abnormal: true,
                message,
            },
        };
        Ok(Response::new(pb::NodeGetVolumeStatsResponse {
            volume_condition: Some(condition),
        }))
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<pb::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<pb::NodeGetCapabilitiesResponse>, Status> {
        let capability = |rpc: Rpc| pb::NodeServiceCapability {
            r#type: Some(Type::Rpc(RpcMessage { r#type: rpc.into() })),
        };
        Ok(Response::new(pb::NodeGetCapabilitiesResponse {
            capabilities: [Rpc::VolumeCondition, Rpc::GetVolumeStats]
                .map(capability)
                .to_vec(),
        }))
    }

    async fn node_get_info(
        &self,
        _request: Request<pb::NodeGetInfoRequest>,
    ) -> Result<Response<pb::NodeGetInfoResponse>, Status> {
        Ok(Response::new(pb::NodeGetInfoResponse {
            node_id: self.shared.node_name.clone(),
        }))
    }
}

#[tonic::async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _request: Request<pb::GetPluginInfoRequest>,
    ) -> Result<Response<pb::GetPluginInfoResponse>, Status> {
        Ok(Response::new(pb::GetPluginInfoResponse {
            name: self.shared.settings.plugin_name.clone(),
            vendor_version: VERSION.to_owned(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<pb::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<pb::GetPluginCapabilitiesResponse>, Status> {
        Ok(Response::new(pb::GetPluginCapabilitiesResponse {}))
    }

    async fn probe(
        &self,
        _request: Request<pb::ProbeRequest>,
    ) -> Result<Response<pb::ProbeResponse>, Status> {
        Ok(Response::new(pb::ProbeResponse {}))
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        let text = error.to_string();
        match error {
            CallError::Refused(_)
            | CallError::Target(TargetError::Outside { .. } | TargetError::NotAFolder { .. }) => {
                Self::invalid_argument(text)
            }
            CallError::Missing(_) => Self::not_found(text),
            CallError::CutOff => Self::unavailable(text),
            CallError::Target(_) | CallError::Folder(_) => Self::internal(text),
        }
    }
}
