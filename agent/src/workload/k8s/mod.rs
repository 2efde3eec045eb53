//! The workload attestor `k8s`: what the node's kubelet knows about the pod that a process is in.
//!
//! Facts: those of the pod (`ns`, `sa`, `pod-label`, …), of the container (`container-name`, `container-image`), and,
//! if configured, of the namespace (`ns-label`), which only the API server knows.
//! The names of the process's control groups say which pod and container it is in; the kubelet's list has their
//! facts. Both must agree. Mounts of control groups are not used, unlike in SPIRE: any process can make them.
//!
//! A process in no container of a kubelet has no such facts. If the kubelet cannot be reached, or does not list the
//! container in time, or the API server does not know the namespace, attestation fails.

mod ask;
mod groups;
mod kubelet;
mod namespaces;
mod pod_list;
mod poller;
mod selectors;
mod trust;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use finial_identity::selector::{Selector, SelectorError};

pub use self::ask::AskError;
use self::kubelet::{FetchPods, Kubelet};
use self::namespaces::{FetchNamespace, InCluster, Namespaces};
pub use self::pod_list::{ContainerStatus, Pod, PodList, PodsError};
use self::poller::{Poller, Waited};
use super::container::{self, Cgroup, ContainerRef};
use super::{
    AttestorError, ListedPod, PodLookup, PodReference, ProcFs, Process, WorkloadAttestor, cgroups, off_thread,
};
use crate::config::K8sSettings;

const NAME: &str = "k8s";

/// Attests by what the kubelet of this node knows.
#[derive(Debug)]
pub struct K8sAttestor {
    settings: Arc<K8sSettings>,
    pods: Poller,
    /// With `enable_namespace_labels`.
    namespaces: Option<Namespaces>,
}

/// What holds for a pod, or a container of it, apart from its namespace's labels.
struct Found {
    namespace: String,
    facts: Result<Vec<Selector>, SelectorError>,
}

impl K8sAttestor {
    /// An attestor that asks the kubelet when it is asked itself.
    pub fn new(settings: K8sSettings) -> Self {
        let settings = Arc::new(settings);
        let api_server = settings.namespace_labels.clone().map(InCluster);
        let api_server = api_server.map(|server| Arc::new(server) as Arc<dyn FetchNamespace>);
        let kubelet = Arc::new(Kubelet::new(Arc::clone(&settings)));
        Self::asking(settings, kubelet, api_server)
    }

    fn asking(
        settings: Arc<K8sSettings>,
        kubelet: Arc<dyn FetchPods>,
        api_server: Option<Arc<dyn FetchNamespace>>,
    ) -> Self {
        Self {
            pods: Poller::new(kubelet, settings.poll_retry_interval, settings.max_poll_attempts),
            settings,
            namespaces: api_server.map(Namespaces::new),
        }
    }

    /// All facts, with those of the namespace where they are asked for.
    async fn complete(&self, found: Found) -> Result<Vec<Selector>, AttestorError> {
        let mut facts = found.facts?;
        if let Some(namespaces) = &self.namespaces {
            let labels = namespaces.labels(&found.namespace).await;
            let labels = labels.map_err(|error| {
                let asked = format!("ask the API server about namespace {}", found.namespace);
                AttestorError::service(asked)(error.to_string())
            })?;
            facts.extend(selectors::of_namespace(&labels)?);
        }
        Ok(facts)
    }

    async fn facts(&self, place: &ContainerRef) -> Result<Vec<Selector>, AttestorError> {
        let is_pod_enough = self.settings.disable_container_selectors;
        let found = self.pods.wait_for(|pods| {
            let Some((pod, container)) = pods.find(place.pod_uid.as_deref(), &place.id)? else {
                return Ok(None);
            };
            if is_pod_enough {
                return Ok(Some(Found::new(pod, selectors::of_pod(pod))));
            }
            Ok(container.map(|container| Found::new(pod, selectors::of_container(pod, container))))
        });
        let found = found
            .await
            .map_err(|waited| untold(waited, &format!("container {}", place.id)))?;
        self.complete(found).await
    }
}

/// Those of the pods of this node. Waits for the kubelet to list the pod, as an attestation does.
#[async_trait]
impl PodLookup for K8sAttestor {
    async fn by_uid(&self, pod_uid: &str) -> Result<Vec<Selector>, AttestorError> {
        let found = self.pods.wait_for(|pods| {
            let pod = pods.pod(pod_uid);
            Ok(pod.map(|pod| Found::new(pod, selectors::of_pod(pod))))
        });
        let found = found
            .await
            .map_err(|waited| untold(waited, &format!("pod {pod_uid}")))?;
        self.complete(found).await
    }

    async fn listed(
        &self,
        meant: &PodReference,
        max_age: Duration,
    ) -> Result<Option<ListedPod>, AttestorError> {
        let found = self.pods.look(max_age, |pods| {
            let pod = pods.meant(meant)?;
            Ok(pod.map(|pod| {
                let found = Found::new(pod, selectors::of_pod(pod));
                (pod.record(), pod.started_at(), found)
            }))
        });
        let found = found.await.map_err(|waited| untold(waited, "a pod"))?;
        let Some((record, started_at, found)) = found else {
            return Ok(None);
        };
        Ok(Some(ListedPod {
            record,
            started_at,
            facts: self.complete(found).await?,
        }))
    }
}

#[async_trait]
impl WorkloadAttestor for K8sAttestor {
    fn name(&self) -> &'static str {
        NAME
    }

    async fn attest(&self, process: &Arc<Process>) -> Result<Vec<Selector>, AttestorError> {
        let (who, verbose) = (Arc::clone(process), self.settings.verbose);
        match off_thread(move || locate(&who, verbose)).await? {
            Some(place) => self.facts(&place).await,
            None => Ok(Vec::new()),
        }
    }
}

impl Found {
    fn new(pod: &Pod, facts: Result<Vec<Selector>, SelectorError>) -> Self {
        Self {
            namespace: pod.metadata.namespace.clone(),
            facts,
        }
    }
}

/// The kubelet's container that the process is in.
///
/// # Errors
/// When its groups contradict each other, or are such as others than a kubelet may have made.
fn locate(process: &Process, verbose: bool) -> Result<Option<ContainerRef>, AttestorError> {
    let groups = cgroups(process, process.pid())?;
    if verbose {
        tracing::debug!(pid = process.pid(), ?groups, "cgroups of a workload");
    }
    place_in(&groups, process.procfs())
}

/// The UID of the pod whose groups a process is in, if they are such as a kubelet made. The kubelet is not asked.
pub fn pod_uid(procfs: &ProcFs, pid: u32) -> Option<String> {
    let groups = container::parse_cgroups(&procfs.cgroup(pid).ok()?).ok()?;
    place_in(&groups, procfs).ok()??.pod_uid
}

fn place_in(groups: &[Cgroup], procfs: &ProcFs) -> Result<Option<ContainerRef>, AttestorError> {
    let Some(place) = container::in_cgroups(groups)?.filter(is_named_by_kubelet) else {
        return Ok(None);
    };
    // Who may make groups within a container, or is delegated a part of the tree, may name one after the container
    // of another: then the names that the kubelet gave stand further out, or there are none.
    let is_within_another = groups.iter().any(|group| container::names_several(&group.path));
    if is_within_another || !groups::may_be_kubelets(&place, procfs.own_cgroups()) {
        return Err(AttestorError::ForeignCgroup(place.group));
    }
    Ok(Some(place))
}

/// Whether it has the name of a container that a kubelet's runtime made; Docker's and Podman's own have not.
fn is_named_by_kubelet(place: &ContainerRef) -> bool {
    let marks = ["kubepods", "crio-", "cri-containerd"];
    place.pod_uid.is_some() || marks.iter().any(|mark| place.group.contains(mark))
}

fn untold(waited: Waited, what: &str) -> AttestorError {
    AttestorError::service(format!("ask the kubelet about {what}"))(waited)
}
