//! The kubelet's list of pods: those parts of `PodList` of the core API that facts are made of.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::super::listed::PodReference;
use super::super::pods::is_same_uid;
use crate::socket_tree::PodRecord;

/// The pods of this node.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PodList {
    #[serde(default, deserialize_with = "or_default")]
    items: Vec<Pod>,
}

/// A pod.
#[derive(Clone, Debug, Deserialize)]
pub struct Pod {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) metadata: Metadata,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) spec: PodSpec,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) status: PodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct Metadata {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) namespace: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) uid: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, rename = "ownerReferences", deserialize_with = "or_default")]
    pub(super) owners: Vec<Owner>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Owner {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) uid: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct PodSpec {
    #[serde(default, rename = "nodeName", deserialize_with = "or_default")]
    pub(super) node_name: String,
    #[serde(default, rename = "serviceAccountName", deserialize_with = "or_default")]
    pub(super) service_account: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct PodStatus {
    #[serde(default, deserialize_with = "or_default")]
    phase: String,
    /// When the kubelet took the pod on, by RFC 3339.
    #[serde(default, rename = "startTime", deserialize_with = "or_default")]
    start_time: String,
    #[serde(default, rename = "containerStatuses", deserialize_with = "or_default")]
    pub(super) containers: Vec<ContainerStatus>,
    #[serde(default, rename = "initContainerStatuses", deserialize_with = "or_default")]
    pub(super) init_containers: Vec<ContainerStatus>,
    #[serde(
        default,
        rename = "ephemeralContainerStatuses",
        deserialize_with = "or_default"
    )]
    pub(super) ephemeral_containers: Vec<ContainerStatus>,
}

/// A container as it runs, or ran last.
#[derive(Clone, Debug, Deserialize)]
pub struct ContainerStatus {
    #[serde(default, deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) image: String,
    #[serde(default, rename = "imageID", deserialize_with = "or_default")]
    pub(super) image_id: String,
    /// `containerd://<id>`
    #[serde(default, rename = "containerID", deserialize_with = "or_default")]
    container_id: String,
}

/// What is wrong with a list.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodsError {
    /// It is no list of pods. The text itself is not shown: specifications of pods hold secrets.
    #[error("malformed list of pods: line {line}, column {column}")]
    Malformed {
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
    /// A container is in another pod than its control group says.
    #[error("container {id} is in pod {listed}, and its cgroup in pod {cgroup}")]
    OtherPod {
        /// The container.
        id: String,
        /// The pod that lists it.
        listed: String,
        /// The pod that the control group names.
        cgroup: String,
    },
    /// Several pods have a container of this id.
    #[error("several pods list container {0}")]
    SeveralPods(String),
    /// Several pods have this name, or this UID.
    #[error("several pods are listed as {0}")]
    Ambiguous(String),
}

impl PodList {
    /// Reads a list.
    ///
    /// # Errors
    /// [`PodsError::Malformed`].
    pub fn parse(json: &[u8]) -> Result<Self, PodsError> {
        serde_json::from_slice(json).map_err(|error| PodsError::Malformed {
            line: error.line(),
            column: error.column(),
        })
    }

    /// The pod with this UID.
    pub fn pod(&self, uid: &str) -> Option<&Pod> {
        self.items.iter().find(|pod| pod.metadata.uid == uid)
    }

    /// The pod that is meant, unless it has ended.
    ///
    /// # Errors
    /// [`PodsError::Ambiguous`].
    pub fn meant(&self, reference: &PodReference) -> Result<Option<&Pod>, PodsError> {
        let mut found = self.items.iter().filter(|pod| pod.is(reference));
        let first = found.next();
        match (first, found.next()) {
            (Some(pod), Some(_)) => Err(PodsError::Ambiguous(pod.metadata.name.clone())),
            (first, _) => Ok(first.filter(|pod| !pod.has_ended())),
        }
    }

    /// The pod and the container that a control group names; the container may be too new to be listed. Where the
    /// group names no pod, it is the one that lists the container.
    ///
    /// # Errors
    /// When the list contradicts the control group, or itself.
    pub fn find(
        &self,
        pod_uid: Option<&str>,
        container_id: &str,
    ) -> Result<Option<(&Pod, Option<&ContainerStatus>)>, PodsError> {
        let mut listing = self
            .items
            .iter()
            .filter_map(|pod| Some((pod, pod.container(container_id)?)));
        let listed = listing.next();
        if listing.next().is_some() {
            return Err(PodsError::SeveralPods(container_id.to_owned()));
        }
        match (listed, pod_uid) {
            (Some((pod, _)), Some(uid)) if pod.metadata.uid != uid => Err(PodsError::OtherPod {
                id: container_id.to_owned(),
                listed: pod.metadata.uid.clone(),
                cgroup: uid.to_owned(),
            }),
            (Some((pod, container)), _) => Ok(Some((pod, Some(container)))),
            (None, Some(uid)) => Ok(self.pod(uid).map(|pod| (pod, None))),
            (None, None) => Ok(None),
        }
    }
}

impl Pod {
    /// Whether it has the name and the UID of the reference, whichever it has.
    fn is(&self, reference: &PodReference) -> bool {
        let Metadata {
            name, namespace, uid, ..
        } = &self.metadata;
        let PodReference {
            name: told_name,
            uid: told_uid,
        } = reference;
        let is_named = told_name
            .as_ref()
            .is_none_or(|(told_namespace, told_name)| told_namespace == namespace && told_name == name);
        let has_uid = told_uid.as_ref().is_none_or(|told| is_same_uid(told, uid));
        // A reference that says nothing is of no pod.
        (told_name.is_some() || told_uid.is_some()) && is_named && has_uid && !uid.is_empty()
    }

    /// None of its containers runs, and none will.
    fn has_ended(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    pub(super) fn started_at(&self) -> Option<OffsetDateTime> {
        OffsetDateTime::parse(&self.status.start_time, &Rfc3339).ok()
    }

    pub(super) fn record(&self) -> PodRecord {
        PodRecord {
            uid: self.metadata.uid.clone(),
            namespace: self.metadata.namespace.clone(),
            name: self.metadata.name.clone(),
            service_account: self.spec.service_account.clone(),
        }
    }

    /// The container with this id: a main, an init or an ephemeral one.
    fn container(&self, id: &str) -> Option<&ContainerStatus> {
        let status = &self.status;
        let all = [
            &status.containers,
            &status.init_containers,
            &status.ephemeral_containers,
        ];
        all.into_iter()
            .flatten()
            .find(|container| container.id() == Some(id))
    }
}

impl ContainerStatus {
    /// The id without the runtime's name.
    fn id(&self) -> Option<&str> {
        let (_runtime, id) = self.container_id.split_once("://")?;
        Some(id)
    }
}

/// Go writes an empty list as `null`.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(value: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(value)?.unwrap_or_default())
}
