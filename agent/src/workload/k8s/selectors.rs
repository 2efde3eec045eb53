//! The facts of a pod and of a container as selectors, as SPIRE has them.

use finial_identity::selector::{Selector, SelectorError};

use super::NAME;
use super::namespaces::Labels;
use super::pod_list::{ContainerStatus, Pod};

/// The facts of a pod.
pub(super) fn of_pod(pod: &Pod) -> Result<Vec<Selector>, SelectorError> {
    of(pod_values(pod))
}

/// The facts of a pod and of one of its containers.
pub(super) fn of_container(pod: &Pod, container: &ContainerStatus) -> Result<Vec<Selector>, SelectorError> {
    let mut values = pod_values(pod);
    values.push(format!("container-name:{}", container.name));
    values.extend(images("container-image", container));
    of(values)
}

/// The facts of a namespace.
pub(super) fn of_namespace(labels: &Labels) -> Result<Vec<Selector>, SelectorError> {
    of(labels
        .iter()
        .map(|(key, value)| format!("ns-label:{key}:{value}"))
        .collect())
}

fn pod_values(pod: &Pod) -> Vec<String> {
    let (metadata, spec, status) = (&pod.metadata, &pod.spec, &pod.status);
    let mut values = vec![
        format!("sa:{}", spec.service_account),
        format!("ns:{}", metadata.namespace),
        format!("node-name:{}", spec.node_name),
        format!("pod-uid:{}", metadata.uid),
        format!("pod-name:{}", metadata.name),
        format!("pod-image-count:{}", status.containers.len()),
        format!("pod-init-image-count:{}", status.init_containers.len()),
    ];
    values.extend(
        status
            .containers
            .iter()
            .flat_map(|container| images("pod-image", container)),
    );
    let init = status.init_containers.iter();
    values.extend(init.flat_map(|container| images("pod-init-image", container)));
    let labels = metadata.labels.iter();
    values.extend(labels.map(|(key, value)| format!("pod-label:{key}:{value}")));
    for owner in &metadata.owners {
        values.push(format!("pod-owner:{}:{}", owner.kind, owner.name));
        values.push(format!("pod-owner-uid:{}:{}", owner.kind, owner.uid));
    }
    values
}

/// An image by its name and by its id, which a container has once its image is there.
fn images(kind: &str, container: &ContainerStatus) -> impl Iterator<Item = String> {
    [&container.image, &container.image_id]
        .into_iter()
        .filter(|image| !image.is_empty())
        .map(move |image| format!("{kind}:{image}"))
}

fn of(values: Vec<String>) -> Result<Vec<Selector>, SelectorError> {
    values.iter().map(|value| Selector::new(NAME, value)).collect()
}
