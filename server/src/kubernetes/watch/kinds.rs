//! What is watched, with as little of each object as rules need.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::{Stop, TaskSet};
use k8s_openapi::api::{core, discovery};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::follow::{Told, Watched, follow};
use super::{Kind, News};
use crate::kubernetes::derive::{Fact, NamespacedName, SCHEDULED, ServiceEndpoints};
use crate::kubernetes::objects::{Endpoint, EndpointSlice, Endpoints, Node, Pod};
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
    let all = [
        (
            "kubernetes pods",
            watched::<core::v1::Pod>(client, Kind::Pods, pod),
        ),
        (
            "kubernetes nodes",
            watched::<core::v1::Node>(client, Kind::Nodes, node),
        ),
        (
            "kubernetes namespaces",
            watched::<core::v1::Namespace>(client, Kind::Namespaces, namespace),
        ),
        (
            "kubernetes rules",
            watched::<ClusterSPIFFEID>(client, Kind::Rules, rule),
        ),
        (
            "kubernetes static entries",
            watched::<ClusterStaticEntry>(client, Kind::Statics, fixed),
        ),
        (
            "kubernetes federation",
            watched::<ClusterFederatedTrustDomain>(client, Kind::Federations, federation),
        ),
    ];
    for (name, watched) in all {
        tasks.spawn(name, follow(watched, sender.clone(), stop.clone()));
    }
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
    let watched = if has_slices {
        watched::<discovery::v1::EndpointSlice>(&client, Kind::Endpoints, slice)
    } else {
        tracing::info!(
            "API server is older than 1.21: Endpoints are watched in place of EndpointSlices, and the rules in CEL of the definitions are checked by this server alone"
        );
        watched::<core::v1::Endpoints>(&client, Kind::Endpoints, old_endpoints)
    };
    follow(watched, news, stop).await
}

/// The watch of a kind. Objects are taken as they come, so all kinds share the code that follows them, and one
/// object that cannot be understood is no reason to miss the others.
fn watched<K>(
    client: &Client,
    kind: Kind,
    news: fn(&NamespacedName, Told) -> serde_json::Result<News>,
) -> Watched
where
    K: Resource<DynamicType = ()>,
{
    let resource = ApiResource::erase::<K>(&());
    let api = Api::all_with(client.clone(), &resource);
    let asked = (client.clone(), resource);
    Watched {
        kind,
        api,
        news,
        ask: Box::new(move |name| {
            let (client, resource) = asked.clone();
            let api: Api<DynamicObject> = if name.namespace.is_empty() {
                Api::all_with(client, &resource)
            } else {
                Api::namespaced_with(client, &name.namespace, &resource)
            };
            let name = name.name.clone();
            Box::pin(async move { api.get_opt(&name).await })
        }),
    }
}

/// An object as its kind; `None` stays none.
fn read<K: DeserializeOwned>(told: Told) -> serde_json::Result<Option<Arc<K>>> {
    let Some(DynamicObject {
        mut metadata, data, ..
    }) = told
    else {
        return Ok(None);
    };
    metadata.managed_fields = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    let mut whole = match data {
        serde_json::Value::Object(fields) => fields,
        _ => serde_json::Map::new(),
    };
    whole.insert("metadata".to_owned(), serde_json::to_value(metadata)?);
    serde_json::from_value(serde_json::Value::Object(whole)).map(|object| Some(Arc::new(object)))
}

fn pod(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    let mut pod = read::<Pod>(told)?;
    if let Some(pod) = pod.as_mut().and_then(Arc::get_mut) {
        reduce(pod);
    }
    Ok(News::Fact(Fact::Pod(name.clone(), pod)))
}

/// Leaves the volumes of CSI drivers, and since when the pod is bound.
fn reduce(pod: &mut Pod) {
    if let Some(volumes) = pod.spec.as_mut().and_then(|spec| spec.volumes.as_mut()) {
        volumes.retain(|volume| volume.csi.is_some());
        volumes.shrink_to_fit();
    }
    if let Some(conditions) = pod.status.as_mut().and_then(|status| status.conditions.as_mut()) {
        conditions.retain(|condition| condition.type_ == SCHEDULED);
        conditions.truncate(1);
        conditions.shrink_to_fit();
    }
}

fn node(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    Ok(News::Fact(Fact::Node(name.name.clone(), read::<Node>(told)?)))
}

fn namespace(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    let labels = told.map(|namespace| Arc::new(namespace.metadata.labels.unwrap_or_default()));
    Ok(News::Fact(Fact::Namespace(name.name.clone(), labels)))
}

fn rule(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    Ok(News::Fact(Fact::Rule(name.name.clone(), read(told)?)))
}

fn fixed(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    Ok(News::Fact(Fact::Static(name.name.clone(), read(told)?)))
}

fn federation(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    Ok(News::Federation(name.name.clone(), read(told)?))
}

/// Pods behind a service, ready or not.
fn slice(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    let endpoints = read::<EndpointSlice>(told)?.and_then(|slice| {
        let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?.clone();
        Some(behind(service, slice.endpoints.iter().flatten()))
    });
    Ok(News::Fact(Fact::Endpoints(name.clone(), endpoints)))
}

fn old_endpoints(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    let endpoints = read::<Endpoints>(told)?.map(|endpoints| {
        let all = endpoints.subsets.iter().flatten().flat_map(|subset| {
            let ready = subset.addresses.iter().flatten();
            ready.chain(subset.not_ready_addresses.iter().flatten())
        });
        behind(name.name.to_string(), all)
    });
    Ok(News::Fact(Fact::Endpoints(name.clone(), endpoints)))
}

fn behind<'e>(service: String, endpoints: impl Iterator<Item = &'e Endpoint>) -> Arc<ServiceEndpoints> {
    let targets = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref());
    let pods = targets.filter_map(|target| Some((target.name.clone()?, target.uid.clone()?)));
    Arc::new(ServiceEndpoints {
        service,
        pods: pods.collect(),
    })
}
