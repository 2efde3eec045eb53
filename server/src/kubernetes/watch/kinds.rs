//! The kinds that are watched, with only the fields that rules need.

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

use super::follow::{Reading, Told, Watched, follow};
use super::{Kind, News};
use crate::kubernetes::derive::{Fact, NamespacedName, SCHEDULED, ServiceEndpoints};
use crate::kubernetes::objects::{Endpoint, EndpointSlice, Endpoints, Node, Pod};
use crate::kubernetes::resources::{ClusterFederatedTrustDomain, ClusterSPIFFEID, ClusterStaticEntry};

/// How many events may wait.
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
fn watched<K>(client: &Client, kind: Kind, reading: Reading) -> Watched
where
    K: Resource<DynamicType = ()>,
{
    let resource = ApiResource::erase::<K>(&());
    let api = Api::all_with(client.clone(), &resource);
    let asked = (client.clone(), resource);
    Watched {
        kind,
        api,
        reading,
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
        is_service_name(&service).then(|| behind(service, slice.endpoints.iter().flatten()))
    });
    Ok(News::Fact(Fact::Endpoints(name.clone(), endpoints)))
}

fn old_endpoints(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    let endpoints = read::<Endpoints>(told)?.filter(|_| is_service_name(&name.name));
    let endpoints = endpoints.map(|endpoints| {
        let all = endpoints.subsets.iter().flatten().flat_map(|subset| {
            let ready = subset.addresses.iter().flatten();
            ready.chain(subset.not_ready_addresses.iter().flatten())
        });
        behind(name.name.to_string(), all)
    });
    Ok(News::Fact(Fact::Endpoints(name.clone(), endpoints)))
}

/// Whether a service may be called so: a label of RFC 1123, as the API server demands of services alone. Objects of a
/// service are checked less, anybody may write them, and from the name come names in certificates.
fn is_service_name(name: &str) -> bool {
    let is_inside = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_lowercase() || first.is_ascii_digit())
        && name.bytes().all(is_inside)
        && !name.ends_with('-')
}

fn behind<'e>(service: String, endpoints: impl Iterator<Item = &'e Endpoint>) -> Arc<ServiceEndpoints> {
    let targets = endpoints.filter_map(|endpoint| endpoint.target_ref.as_ref());
    let pods = targets.filter_map(|target| Some((target.name.clone()?, target.uid.clone()?)));
    Arc::new(ServiceEndpoints {
        service,
        pods: pods.collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(object: Value) -> Told {
        Some(serde_json::from_value(object).unwrap())
    }

    fn name() -> NamespacedName {
        NamespacedName::new("shop", "web")
    }

    fn api_object(spec: Value, status: Value) -> Told {
        told(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u", "labels": {"app": "web"}, "creationTimestamp": null,
                "annotations": {"a": "b", LAST_APPLIED: "{}"}, "managedFields": [{"manager": "kubectl"}],
            },
            "spec": spec, "status": status,
        }))
    }

    fn pod_of(news: News) -> Arc<Pod> {
        match news {
            News::Fact(Fact::Pod(_, Some(pod))) => pod,
            other => panic!("{other:?} is no pod"),
        }
    }

    #[test]
    fn of_a_pod_what_rules_and_operators_ask_for_is_held() {
        let spec = json!({
            "nodeName": "a", "serviceAccountName": "web", "hostPID": true, "priority": 0, "enableServiceLinks": true,
            "tolerations": [{"key": "x"}], "nodeSelector": {"zone": "1"},
            "containers": [{
                "name": "app", "image": "i", "resources": {"limits": {"cpu": "1"}}, "env": [{"name": "A", "valueFrom": {}}],
                "ports": [{"containerPort": 80, "hostIP": "::"}],
            }],
            "volumes": [{"name": "c", "configMap": {"name": "m"}}, {"name": "s", "csi": {"driver": "csi.spiffe.io"}}],
        });
        let scheduled =
            json!({"type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = json!({
            "phase": "Running", "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": null}, scheduled],
        });
        let pod = pod_of(pod(&name(), api_object(spec, status)).unwrap());
        assert_eq!(pod.metadata.managed_fields, None);
        let annotations = pod.metadata.annotations.as_ref().unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(pod.metadata.uid.as_deref(), Some("u"));
        // As templates see it.
        assert_eq!(
            serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap(),
            json!({
                "nodeName": "a", "serviceAccountName": "web", "hostPID": true, "priority": 0, "nodeSelector": {"zone": "1"},
                "containers": [{
                    "name": "app", "image": "i", "env": [{"name": "A"}], "ports": [{"containerPort": 80, "hostIP": "::"}],
                }],
            })
        );
        let volumes = pod.spec.as_ref().unwrap().volumes.as_ref().unwrap();
        assert_eq!(volumes.len(), 1);
        assert_eq!(volumes[0].csi.as_ref().unwrap().driver, "csi.spiffe.io");
        let conditions = pod.status.as_ref().unwrap().conditions.as_ref().unwrap();
        assert_eq!(conditions.len(), 1);
        assert!(conditions[0].last_transition_time.is_some());
    }

    #[test]
    fn what_is_not_understood_is_an_error_and_not_a_pod_without_it() {
        for spec in [json!({"nodeName": 1}), json!({"containers": "none"})] {
            assert!(
                pod(&name(), api_object(spec.clone(), Value::Null)).is_err(),
                "{spec}"
            );
        }
        let without = pod_of(pod(&name(), api_object(Value::Null, Value::Null)).unwrap());
        assert_eq!((&without.spec, &without.status), (&None, &None));
    }

    #[test]
    fn pods_behind_a_service_are_told_alike_by_slices_and_by_what_they_replaced() {
        let target =
            |pod: &str| json!({"targetRef": {"kind": "Pod", "name": pod, "uid": format!("uid-{pod}")}});
        let of_slice = slice(
            &name(),
            told(json!({
                "metadata": {"name": "web-x", "labels": {SERVICE_NAME: "web"}}, "ports": [],
                "endpoints": [target("a"), target("b"), {"addresses": ["10.0.0.1"]}],
            })),
        );
        let of_old = old_endpoints(
            &name(),
            told(json!({
                "metadata": {"name": "web"},
                "subsets": [{"addresses": [target("a")], "notReadyAddresses": [target("b")], "ports": null}],
            })),
        );
        let expected = ServiceEndpoints {
            service: "web".to_owned(),
            pods: [("a", "uid-a"), ("b", "uid-b")]
                .map(|(name, uid)| (name.to_owned(), uid.to_owned()))
                .into(),
        };
        for news in [of_slice.unwrap(), of_old.unwrap()] {
            let News::Fact(Fact::Endpoints(_, Some(endpoints))) = &news else {
                panic!("{news:?} tells no pods")
            };
            assert_eq!(**endpoints, expected);
        }
        let empty = slice(
            &name(),
            told(json!({"metadata": {"labels": {SERVICE_NAME: "web"}}, "endpoints": null})),
        );
        let News::Fact(Fact::Endpoints(_, Some(endpoints))) = empty.unwrap() else {
            panic!("a service without pods is a service")
        };
        assert!(endpoints.pods.is_empty());
    }

    #[test]
    fn an_object_that_names_what_can_be_no_service_tells_of_none() {
        let long = "a".repeat(63);
        for (service, expected) in [
            ("web", true),
            ("a1-b", true),
            (long.as_str(), true),
            (&format!("{long}a"), false),
            ("", false),
            ("evil.example", false),
            ("*", false),
            ("Web", false),
            ("we_b", false),
            ("1web", true),
            ("-web", false),
            ("web-", false),
            ("wéb", false),
        ] {
            let endpoints = json!([{"targetRef": {"kind": "Pod", "name": "a", "uid": "u"}}]);
            let of_slice = slice(
                &name(),
                told(json!({
                    "metadata": {"name": "x", "labels": {SERVICE_NAME: service}}, "ports": [], "endpoints": endpoints,
                })),
            );
            let of_old = old_endpoints(
                &NamespacedName::new("shop", service),
                told(json!({"metadata": {"name": service}, "subsets": [{"addresses": endpoints}]})),
            );
            for news in [of_slice.unwrap(), of_old.unwrap()] {
                let News::Fact(Fact::Endpoints(_, told)) = news else {
                    panic!("{news:?} is not about endpoints")
                };
                assert_eq!(told.is_some(), expected, "{service}");
            }
        }
    }
}
