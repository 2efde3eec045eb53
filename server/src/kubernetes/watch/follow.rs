//! One watch: list, then changes, then again, as long as the server runs.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use finial_identity::process::Stop;
use futures_util::StreamExt;
use futures_util::stream;
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::tracker::Tracker;
use super::{Kind, News};
use crate::kubernetes::derive::NamespacedName;
use crate::telemetry::metrics;

/// How many objects are asked for at once.
const ASKED_AT_ONCE: usize = 8;
/// How long after a failure the API server is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// An object as the API server wrote it, or that it is gone.
pub(super) type Told = Option<DynamicObject>;

/// The answer to a question about one object.
pub(super) type Answer = Pin<Box<dyn Future<Output = kube::Result<Told>> + Send>>;

/// What is watched, and what is made of it.
pub(super) struct Watched {
    pub(super) kind: Kind,
    pub(super) api: Api<DynamicObject>,
    /// The fact in an object.
    pub(super) news: fn(&NamespacedName, Told) -> serde_json::Result<News>,
    /// Asks for one object.
    pub(super) ask: Box<dyn Fn(&NamespacedName) -> Answer + Send + Sync>,
}

/// Follows a watch until `stop`.
pub(super) async fn follow(watched: Watched, news: mpsc::Sender<News>, stop: Stop) -> Result<(), Infallible> {
    let mut following = Following {
        tracker: Tracker::default(),
        doubtful: Vec::new(),
        news,
        watched,
    };
    tokio::select! {
        () = stop.stopped() => {}
        _closed = following.run() => {}
    }
    Ok(())
}

struct Following {
    tracker: Tracker,
    /// Objects that a complete list lacked.
    doubtful: Vec<NamespacedName>,
    news: mpsc::Sender<News>,
    watched: Watched,
}

/// Nobody listens any more.
struct Closed;

impl Following {
    async fn run(&mut self) -> Result<(), Closed> {
        let config = watcher::Config::default();
        let mut events = Box::pin(watcher(self.watched.api.clone(), config).default_backoff());
        let kind = self.watched.kind;
        let mut is_lost = false;
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                () = sleep(ASK_AGAIN), if !self.doubtful.is_empty() => {
                    self.resolve_doubts().await?;
                    continue;
                }
            };
            match event {
                None => return Ok(()),
                Some(Err(error)) => {
                    metrics().count("kubernetes_watch_lost", &[("kind", kind.as_str())], 1);
                    if !is_lost {
                        tracing::warn!(kind = kind.as_str(), %error, "watch of Kubernetes was lost");
                    }
                    is_lost = true;
                    self.tell(News::Lost(kind, error.to_string())).await?;
                }
                Some(Ok(event)) => {
                    if is_lost && !matches!(event, Event::Init) {
                        tracing::info!(kind = kind.as_str(), "watch of Kubernetes works again");
                        is_lost = false;
                    }
                    self.take(event).await?;
                }
            }
        }
    }

    async fn take(&mut self, event: Event<DynamicObject>) -> Result<(), Closed> {
        let kind = self.watched.kind;
        match event {
            Event::Init => self.tracker.list_began(),
            Event::InitApply(object) | Event::Apply(object) => self.apply(object).await?,
            Event::Delete(object) => {
                let name = name_of(&object);
                if self.tracker.deleted(&name, &object.metadata) {
                    self.tell_of(&name, None).await?;
                } else {
                    stale(kind);
                }
            }
            Event::InitDone => {
                self.doubtful = self.tracker.list_done();
                self.resolve_doubts().await?;
                self.tell(News::Synced(kind)).await?;
            }
        }
        self.tell(News::Heard(kind)).await
    }

    async fn apply(&mut self, object: DynamicObject) -> Result<(), Closed> {
        let name = name_of(&object);
        if !self.tracker.applied(&name, &object.metadata) {
            stale(self.watched.kind);
            return Ok(());
        }
        self.tell_of(&name, Some(object)).await
    }

    /// Reports a change of an object. One that cannot be parsed counts as absent: what follows from objects
    /// must not depend on what they were before.
    async fn tell_of(&self, name: &NamespacedName, told: Told) -> Result<(), Closed> {
        let news = match (self.watched.news)(name, told) {
            Ok(news) => news,
            Err(error) => {
                let kind = self.watched.kind.as_str();
                metrics().count("kubernetes_unreadable_objects", &[("kind", kind)], 1);
                tracing::warn!(
                    kind,
                    object = %name,
                    %error,
                    "object of Kubernetes cannot be understood and counts as not there"
                );
                (self.watched.news)(name, None).map_err(|_unreadable| Closed)?
            }
        };
        self.tell(news).await
    }

    /// Asks for each object that a list lacked. One that cannot be asked for stays as it is.
    async fn resolve_doubts(&mut self) -> Result<(), Closed> {
        let doubtful = std::mem::take(&mut self.doubtful);
        let questions = doubtful.into_iter().map(|name| {
            let answer = (self.watched.ask)(&name);
            async move { (name, answer.await) }
        });
        let questions: Vec<_> = questions.collect();
        let mut answers = stream::iter(questions).buffer_unordered(ASKED_AT_ONCE);
        let mut unanswered = Vec::new();
        while let Some((name, answer)) = answers.next().await {
            match answer {
                Ok(Some(object)) => self.apply(object).await?,
                Ok(None) => {
                    if self.tracker.is_not_there(&name) {
                        self.tell_of(&name, None).await?;
                    }
                }
                Err(error) => {
                    tracing::debug!(object = %name, %error, "failed to ask for an object that a list lacked");
                    unanswered.push(name);
                }
            }
        }
        self.doubtful = unanswered;
        Ok(())
    }

    async fn tell(&self, news: News) -> Result<(), Closed> {
        self.news.send(news).await.map_err(|_closed| Closed)
    }
}

fn stale(kind: Kind) {
    metrics().count("kubernetes_stale_events", &[("kind", kind.as_str())], 1);
}

fn name_of(object: &DynamicObject) -> NamespacedName {
    let meta = &object.metadata;
    NamespacedName::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}
