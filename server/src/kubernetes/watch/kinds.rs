//! What is watched, with as little of each object as rules need.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::{Stop, TaskSet};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Node, Pod, PodCondition, PodStatus};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::core::{ClusterResourceScope, NamespaceResourceScope};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::follow::{Watched, follow};
use super::{Kind, News};
use crate::kubernetes::derive::{Fact, NamespacedName, SCHEDULED, ServiceEndpoints};
use crate::kubernetes::resources::{ClusterFederatedTrustDomain, ClusterSPIFFEID, ClusterStaticEntry};

/// How many news may wait.
const CHANNEL: usize = 1024;
/// How long after a failure the API server's version is asked for again.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Which service a slice is about.
const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// The last configuration that was applied, a copy of the whole object.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// News of all kinds.
pub type Watches = mpsc::Receiver<News>;

/// Begins all watches of a cluster.
pub fn watches(client: &Client, tasks: &mut TaskSet) -> Watches {
    let (sender, receiver) = mpsc::channel(CHANNEL);
    let stop = tasks.stop_signal();
    let of = || (sender.clone(), stop.clone());
    let (news, end) = of();
    tasks.spawn("kubernetes pods", follow(pods(client), news, end));
    let (news, end) = of();
    tasks.spawn(
        "kubernetes nodes",
        follow(global(client, Kind::Nodes, reduce_node, node), news, end),
    );
    let (news, end) = of();
    tasks.spawn(
        "kubernetes namespaces",
        follow(
            global(client, Kind::Namespaces, reduce_namespace, namespace),
            news,
            end,
        ),
    );
    let (news, end) = of();
    tasks.spawn(
        "kubernetes rules",
        follow(global(client, Kind::Rules, |_| {}, rule), news, end),
    );
    let (news, end) = of();
    tasks.spawn(
        "kubernetes static entries",
        follow(global(client, Kind::Statics, |_| {}, fixed), news, end),
    );
    let (news, end) = of();
    tasks.spawn(
        "kubernetes federation",
        follow(global(client, Kind::Federations, |_| {}, federation), news, end),
    );
    tasks.spawn("kubernetes endpoints", endpoints(client.clone(), sender, stop));
    receiver
}

/// Slices, or on old API servers the objects that they replaced.
async fn endpoints(client: Client, news: mpsc::Sender<News>, stop: Stop) -> Result<(), Infallible> {
    let has_slices = loop {
        match client.list_api_group_resources("discovery.k8s.io/v1").await {
            Ok(_) => break true,
            Err(kube::Error::Api(status)) if status.code == 404 => break false,
            Err(error) => {
                if news
                    .send(News::Lost(Kind::Endpoints, error.to_string()))
                    .await
                    .is_err()
                {
                    return Ok(());
                }
            }
        }
        tokio::select! {
            () = stop.stopped() => return Ok(()),
            () = sleep(ASK_AGAIN) => {}
        }
    };
    if has_slices {
        follow(
            namespaced(&client, Kind::Endpoints, reduce_slice, slice),
            news,
            stop,
        )
        .await
    } else {
        tracing::info!(
            "API server is older than 1.21: Endpoints are watched in place of EndpointSlices, and the rules in CEL of the definitions are checked by this server alone"
        );
        follow(
            namespaced(&client, Kind::Endpoints, |_| {}, old_endpoints),
            news,
            stop,
        )
        .await
    }
}

fn pods(client: &Client) -> Watched<Pod> {
    namespaced(client, Kind::Pods, reduce_pod, |name, pod| {
        News::Fact(Fact::Pod(name.clone(), pod))
    })
}

fn global<K>(
    client: &Client,
    kind: Kind,
    reduce: fn(&mut K),
    news: fn(&NamespacedName, Option<Arc<K>>) -> News,
) -> Watched<K>
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let api = Api::<K>::all(client.clone());
    let asked = api.clone();
    Watched {
        kind,
        api,
        reduce,
        news,
        ask: Box::new(move |name| {
            let (api, name) = (asked.clone(), name.name.clone());
            Box::pin(async move { api.get_opt(&name).await })
        }),
    }
}

fn namespaced<K>(
    client: &Client,
    kind: Kind,
    reduce: fn(&mut K),
    news: fn(&NamespacedName, Option<Arc<K>>) -> News,
) -> Watched<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let asked = client.clone();
    Watched {
        kind,
        api: Api::all(client.clone()),
        reduce,
        news,
        ask: Box::new(move |name| {
            let api = Api::<K>::namespaced(asked.clone(), &name.namespace);
            let name = name.name.clone();
            Box::pin(async move { api.get_opt(&name).await })
        }),
    }
}

/// Leaves what templates can address, the volumes of the SPIFFE driver, and what operators ask for: the phase, and since
/// when the pod is bound.
fn reduce_pod(pod: &mut Pod) {
    pod.status = pod.status.take().map(|status| PodStatus {
        phase: status.phase,
        conditions: status.conditions.map(|conditions| {
            let scheduled = conditions
                .into_iter()
                .filter(|condition| condition.type_ == SCHEDULED);
            let reduced = scheduled.take(1).map(|condition| PodCondition {
                type_: condition.type_,
                status: condition.status,
                last_transition_time: condition.last_transition_time,
                ..PodCondition::default()
            });
            reduced.collect()
        }),
        ..PodStatus::default()
    });
    drop_last_applied(&mut pod.metadata.annotations);
    let Some(spec) = &mut pod.spec else { return };
    if let Some(volumes) = &mut spec.volumes {
        volumes.retain(|volume| volume.csi.is_some());
    }
    spec.affinity = None;
    spec.tolerations = None;
    spec.topology_spread_constraints = None;
    spec.ephemeral_containers = None;
    spec.security_context = None;
    spec.image_pull_secrets = None;
    spec.host_aliases = None;
    spec.readiness_gates = None;
    for container in spec
        .containers
        .iter_mut()
        .chain(spec.init_containers.iter_mut().flatten())
    {
        container.volume_mounts = None;
        container.volume_devices = None;
        container.liveness_probe = None;
        container.readiness_probe = None;
        container.startup_probe = None;
        container.lifecycle = None;
        container.security_context = None;
        container.resources = None;
        container.env_from = None;
        for variable in container.env.iter_mut().flatten() {
            variable.value_from = None;
        }
    }
}

fn reduce_node(node: &mut Node) {
    node.status = None;
    drop_last_applied(&mut node.metadata.annotations);
}

fn reduce_namespace(namespace: &mut Namespace) {
    namespace.spec = None;
    namespace.status = None;
    namespace.metadata.annotations = None;
}

fn reduce_slice(slice: &mut EndpointSlice) {
    slice.ports = None;
    slice.metadata.annotations = None;
}

fn drop_last_applied(annotations: &mut Option<BTreeMap<String, String>>) {
    if let Some(annotations) = annotations {
        annotations.remove(LAST_APPLIED);
    }
}

fn node(name: &NamespacedName, node: Option<Arc<Node>>) -> News {
    News::Fact(Fact::Node(name.name.clone(), node))
}

fn namespace(name: &NamespacedName, namespace: Option<Arc<Namespace>>) -> News {
    let labels = namespace.map(|namespace| Arc::new(namespace.metadata.labels.clone().unwrap_or_default()));
    News::Fact(Fact::Namespace(name.name.clone(), labels))
}

fn rule(name: &NamespacedName, rule: Option<Arc<ClusterSPIFFEID>>) -> News {
    News::Fact(Fact::Rule(name.name.clone(), rule))
}

fn fixed(name: &NamespacedName, object: Option<Arc<ClusterStaticEntry>>) -> News {
    News::Fact(Fact::Static(name.name.clone(), object))
}

fn federation(name: &NamespacedName, object: Option<Arc<ClusterFederatedTrustDomain>>) -> News {
    News::Federation(name.name.clone(), object)
}

/// Pods behind a service, ready or not.
fn slice(name: &NamespacedName, slice: Option<Arc<EndpointSlice>>) -> News {
    let endpoints = slice.and_then(|slice| {
        let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
        let targets = slice
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.target_ref.as_ref());
        let pods = targets.filter_map(|target| Some((target.name.clone()?, target.uid.clone()?)));
        Some(Arc::new(ServiceEndpoints {
            service,
            pods: pods.collect(),
        }))
    });
    News::Fact(Fact::Endpoints(name.clone(), endpoints))
}

fn old_endpoints(name: &NamespacedName, endpoints: Option<Arc<Endpoints>>) -> News {
    let endpoints = endpoints.map(|endpoints| {
        let subsets = endpoints.subsets.iter().flatten();
        let addresses = subsets.flat_map(|subset| {
            let ready = subset.addresses.iter().flatten();
            ready.chain(subset.not_ready_addresses.iter().flatten())
        });
        let targets = addresses.filter_map(|address| address.target_ref.as_ref());
        let pods = targets.filter_map(|target| Some((target.name.clone()?, target.uid.clone()?)));
        Arc::new(ServiceEndpoints {
            service: name.name.to_string(),
            pods: pods.collect(),
        })
    });
    News::Fact(Fact::Endpoints(name.clone(), endpoints))
}
