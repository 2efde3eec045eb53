//! The fields of pods and nodes that are needed when an agent attests.

use std::error::Error;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::core::DynamicObject;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// An object of which only part is kept.
#[derive(Debug)]
pub(super) struct Found<T> {
    /// Name, UID, labels.
    pub(super) metadata: ObjectMeta,
    pub(super) part: T,
}

/// What is asked of a pod.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Pod {
    pub(super) spec: PodSpec,
    pub(super) status: PodStatus,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec {
    pub(super) host_network: Option<bool>,
    pub(super) node_name: Option<String>,
    pub(super) service_account_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct PodStatus {
    pub(super) phase: Option<String>,
    #[serde(rename = "hostIP")]
    pub(super) host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    pub(super) host_ips: Option<Vec<Ip>>,
    #[serde(rename = "podIP")]
    pub(super) pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pub(super) pod_ips: Option<Vec<Ip>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ip {
    pub(super) ip: String,
}

/// What is asked of a node.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Node {
    pub(super) spec: NodeSpec,
    pub(super) status: NodeStatus,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub(super) pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pub(super) pod_cidrs: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct NodeStatus {
    pub(super) addresses: Option<Vec<NodeAddress>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeAddress {
    pub(super) address: String,
}

/// Asks for one object. `None` when there is none of this name.
///
/// # Errors
/// When the API server does not answer, or not with such an object.
pub(super) async fn find<T: DeserializeOwned>(
    api: &Api<DynamicObject>,
    name: &str,
) -> Result<Option<Found<T>>, Box<dyn Error + Send + Sync>> {
    let Some(DynamicObject { metadata, data, .. }) = api.get_opt(name).await? else {
        return Ok(None);
    };
    let part = serde_json::from_value(data)?;
    Ok(Some(Found { metadata, part }))
}
