//! A whole cluster before an API server of a few lines, in paused time.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use finial_identity::process::{Clock, TaskSet};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use http_body::Frame;
use kube::Client;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tower_service::Service;

use super::cluster::Cluster;
use super::limits::Limited;
use super::outbox::Outbox;
use super::{Declarations, derive, watch};
use crate::registry::{Registry, SourceState};
use crate::store::SqliteStore;
use crate::store::testing::domain;

const HALF_AN_HOUR: Duration = Duration::from_secs(30 * 60);

/// An API server whose watches tell nothing by themselves.
#[derive(Clone, Debug, Default)]
struct Api(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    objects: BTreeMap<&'static str, Vec<Value>>,
    hangs: bool,
    /// Ends the next watch of each kind with the news that its history is forgotten.
    forgets: bool,
    lists: usize,
    watches: usize,
    hung: usize,
    open: Vec<(String, mpsc::UnboundedSender<Bytes>)>,
    /// Paths of what was changed.
    patched: Vec<String>,
}

impl Api {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What comes of a channel; ends when nothing can come any more.
struct Feed(mpsc::UnboundedReceiver<Bytes>);

impl http_body::Body for Feed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0
            .poll_recv(cx)
            .map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

impl Service<Request<kube::client::Body>> for Api {
    type Response = Response<Feed>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let parts: Vec<&str> = request.uri().path().trim_matches('/').split('/').collect();
        let is_patch = request.method() == http::Method::PATCH;
        let answer = self.with(|state| match is_patch {
            true => state.patch(&parts),
            false => state.answer(&parts, &query),
        });
        async move {
            match answer {
                Some(answer) => Ok(answer),
                None => std::future::pending().await,
            }
        }
        .boxed()
    }
}

impl State {
    /// Notes the path and stores nothing: watches tell what a test says.
    fn patch(&mut self, path: &[&str]) -> Option<Response<Feed>> {
        self.patched.push(path.join("/"));
        let (sender, receiver) = mpsc::unbounded_channel();
        let object = self.objects["clusterspiffeids"][0].to_string();
        drop(sender.send(object.into()));
        Some(Response::new(Feed(receiver)))
    }

    /// What the open watches of a kind tell.
    fn tell(&mut self, plural: &str, object: &Value) {
        let line = Bytes::from(format!("{}\n", json!({"type": "MODIFIED", "object": object})));
        for (_, sender) in self.open.iter().filter(|(of, _)| of == plural) {
            drop(sender.send(line.clone()));
        }
    }

    fn answer(&mut self, path: &[&str], query: &str) -> Option<Response<Feed>> {
        if self.hangs {
            self.hung += 1;
            return None;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let send = |value: &Value| drop(sender.send(format!("{value}\n").into()));
        let mut status = 200;
        if query.contains("watch=true") {
            self.watches += 1;
            if self.forgets {
                send(&json!({"type": "ERROR", "object": {
                    "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "too old", "reason": "Expired",
                    "code": 410
                }}));
            } else {
                let plural = path.last().copied().unwrap_or_default();
                self.open.push((plural.to_owned(), sender));
            }
        } else if path == ["apis", "discovery.k8s.io", "v1"] {
            send(&json!({"kind": "APIResourceList", "groupVersion": "discovery.k8s.io/v1", "resources": []}));
        } else if query.contains("limit=") {
            self.lists += 1;
            let plural = *path.last().unwrap_or(&"");
            let items = self.objects.get(plural).cloned().unwrap_or_default();
            send(
                &json!({"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "10"}, "items": items}),
            );
        } else {
            status = 404;
            send(&json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "none", "reason": "NotFound",
                "code": 404
            }));
        }
        let answer = Response::builder().status(status).body(Feed(receiver));
        Some(answer.expect("a response of fixed parts"))
    }
}

fn objects() -> BTreeMap<&'static str, Vec<Value>> {
    let meta = |name: &str, namespace: Option<&str>| {
        json!({
            "name": name, "namespace": namespace, "uid": format!("uid-{name}"), "resourceVersion": "5",
            "creationTimestamp": "2026-01-01T00:00:00Z"
        })
    };
    [
        (
            "pods",
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": meta("a", Some("shop")),
                "spec": {"serviceAccountName": "sa", "nodeName": "n1", "containers": [{"name": "app"}]}
            }),
        ),
        (
            "nodes",
            json!({"apiVersion": "v1", "kind": "Node", "metadata": meta("n1", None)}),
        ),
        (
            "namespaces",
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta("shop", None)}),
        ),
        (
            "clusterspiffeids",
            json!({
                "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": meta("r", None),
                "spec": {"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/web"}
            }),
        ),
    ]
    .map(|(plural, object)| (plural, vec![object]))
    .into()
}

struct World {
    api: Api,
    registry: Arc<Registry>,
    _tasks: TaskSet,
}

impl World {
    /// A cluster that runs, with what writes back to it.
    async fn new() -> Self {
        let api = Api::default();
        api.with(|state| state.objects = objects());
        let store = SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap();
        let registry = Registry::load(Arc::new(store), &domain(), Clock::system())
            .await
            .unwrap();
        let cluster = Cluster::new(
            derive::tests::settings(),
            Arc::clone(&registry),
            Declarations {
                sets: tokio::sync::watch::Sender::default(),
                states: tokio::sync::watch::channel(Default::default()).1,
            },
            Clock::system(),
            SourceState::default(),
        );
        let mut tasks = TaskSet::new();
        let client = Client::new(Limited(api.clone()), "default");
        let watches = watch::watches(&client, &mut tasks);
        let stop = tasks.stop_signal();
        let outbox = Arc::new(Outbox::new(&derive::tests::settings()));
        let writing = Arc::clone(&outbox).run(client, Clock::system(), stop.clone());
        tasks.spawn("outbox", writing);
        tasks.spawn("cluster", cluster.run(watches, outbox, stop));
        Self {
            api,
            registry,
            _tasks: tasks,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_silent_or_hangs_takes_nothing_away_and_is_heard_again_by_itself() {
    let World {
        api,
        registry,
        _tasks,
    } = World::new().await;
    let minute = Duration::from_secs(60);
    tokio::time::sleep(minute).await;
    assert_eq!(registry.entry_count(), 1);

    // Silent: each of the seven watches is begun anew every five minutes, without a list.
    let (lists, watches) = api.with(|state| (state.lists, state.watches));
    tokio::time::sleep(HALF_AN_HOUR).await;
    assert_eq!(registry.entry_count(), 1);
    assert_eq!(api.with(|state| state.lists), lists);
    let begun = api.with(|state| state.watches) - watches;
    assert!((5 * 7..=7 * 7).contains(&begun), "{begun}");
    assert_eq!(registry.sources()["demo"].trouble, None);

    // Whatever is asked is never answered.
    api.with(|state| {
        state.hangs = true;
        state.open.clear();
    });
    tokio::time::sleep(HALF_AN_HOUR).await;
    assert_eq!(registry.entry_count(), 1);
    let trouble = registry.sources()["demo"].trouble.clone().unwrap_or_default();
    assert!(
        trouble.contains("pods: ") && trouble.contains("took longer"),
        "{trouble}"
    );
    assert!(
        api.with(|state| state.hung) > 7 * 10,
        "it was asked again and again"
    );

    // What happened meanwhile is found as soon as it answers, and the pod's end is asked for.
    api.with(|state| {
        state.hangs = false;
        state.forgets = true;
        state.objects.remove("pods");
    });
    tokio::time::sleep(2 * minute).await;
    assert_eq!(registry.entry_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_silent_watch_never_told_is_found_by_the_next_list() {
    let World {
        api,
        registry,
        _tasks,
    } = World::new().await;
    tokio::time::sleep(HALF_AN_HOUR).await;
    assert_eq!(registry.entry_count(), 1);
    api.with(|state| state.objects.remove("pods"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(registry.entry_count(), 1);
    tokio::time::sleep(HALF_AN_HOUR).await;
    assert_eq!(registry.entry_count(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_status_that_somebody_overwrote_is_written_again() {
    let World {
        api,
        registry: _,
        _tasks,
    } = World::new().await;
    let written = || {
        api.with(|state| {
            let path = "apis/spire.spiffe.io/v1alpha1/clusterspiffeids/r/status";
            state.patched.iter().filter(|patched| *patched == path).count()
        })
    };
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(written(), 1);
    let mut rule = api.with(|state| state.objects["clusterspiffeids"][0].clone());
    rule["metadata"]["resourceVersion"] = json!("20");
    rule["status"] = json!({"stats": {
        "namespacesSelected": 0, "namespacesIgnored": 0, "podsSelected": 77, "podEntryRenderFailures": 0,
        "entriesMasked": 0, "entriesToSet": 0, "entryFailures": 0
    }});
    api.with(|state| state.tell("clusterspiffeids", &rule));
    tokio::time::sleep(Duration::from_secs(5 * 60)).await;
    assert_eq!(written(), 2);
}
