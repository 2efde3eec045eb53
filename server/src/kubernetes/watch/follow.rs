//! One watch: list, then changes, then again, as long as the server runs.

use std::convert::Infallible;
use std::time::Duration;

use finial_identity::process::Stop;
use futures_util::future::BoxFuture;
use futures_util::{Stream, StreamExt};
use kube::Api;
use kube::core::DynamicObject;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::doubts::Doubts;
use super::tracker::Tracker;
use super::{Kind, News};
use crate::kubernetes::derive::NamespacedName;
use crate::telemetry::metrics;

/// How long changes are believed to be all that happens. A watch may be silent although it misses changes: after etcd was
/// restored from a backup it waits for versions that are yet to come.
pub(super) const LIST_AGAIN: Duration = Duration::from_secs(3600);

/// An object as the API server wrote it, or that it is gone.
pub(super) type Told = Option<DynamicObject>;

/// Asks for one object.
pub(super) type Ask = Box<dyn Fn(&NamespacedName) -> BoxFuture<'static, kube::Result<Told>> + Send + Sync>;

/// What is watched, and what is made of it.
pub(super) struct Watched {
    pub(super) kind: Kind,
    pub(super) api: Api<DynamicObject>,
    pub(super) reading: Reading,
    pub(super) ask: Ask,
}

/// What an object tells.
pub(super) type Reading = fn(&NamespacedName, Told) -> serde_json::Result<News>;

/// Follows a watch until `stop`.
pub(super) async fn follow(watched: Watched, news: mpsc::Sender<News>, stop: Stop) -> Result<(), Infallible> {
    let Watched {
        kind,
        api,
        reading,
        ask,
    } = watched;
    let mut following = Following::new(kind, reading, news);
    let following = async {
        loop {
            let events = Box::pin(watcher(api.clone(), watcher::Config::default()).default_backoff());
            if following.run(events, &ask, LIST_AGAIN).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = stop.stopped() => {}
        () = following => {}
    }
    Ok(())
}

/// What was made of one watch so far.
pub(super) struct Following {
    kind: Kind,
    reading: Reading,
    news: mpsc::Sender<News>,
    tracker: Tracker,
    is_lost: bool,
}

/// Nobody listens any more.
pub(super) struct Closed;

impl Following {
    pub(super) fn new(kind: Kind, reading: Reading, news: mpsc::Sender<News>) -> Self {
        Self {
            kind,
            reading,
            news,
            tracker: Tracker::default(),
            is_lost: false,
        }
    }

    /// Takes in events, and asks for what lists lacked, for so long or until nobody listens.
    pub(super) async fn run<E>(&mut self, mut events: E, ask: &Ask, long: Duration) -> Result<(), Closed>
    where
        E: Stream<Item = watcher::Result<Event<DynamicObject>>> + Unpin,
    {
        let mut doubts = Doubts::default();
        let end = Instant::now() + long;
        loop {
            tokio::select! {
                () = sleep_until(end) => return Ok(()),
                event = events.next() => match event {
                    None => return Ok(()),
                    Some(Err(error)) => self.lost(&error).await?,
                    Some(Ok(event)) => self.take(event, &mut doubts).await?,
                },
                (name, told) = doubts.next(ask) => self.answered(&name, told).await?,
            }
        }
    }

    async fn lost(&mut self, error: &watcher::Error) -> Result<(), Closed> {
        let kind = self.kind;
        metrics().count("kubernetes_watch_lost", &[("kind", kind.as_str())], 1);
        if !self.is_lost {
            tracing::warn!(kind = kind.as_str(), %error, "watch of Kubernetes was lost");
        }
        self.is_lost = true;
        self.tell(News::Lost(kind, error.to_string())).await?;
        match error {
            watcher::Error::InitialListFailed(kube::Error::Api(answer)) if answer.code == 404 => {
                self.tell(News::Absent(kind)).await
            }
            _ => Ok(()),
        }
    }

    async fn take(&mut self, event: Event<DynamicObject>, doubts: &mut Doubts) -> Result<(), Closed> {
        let kind = self.kind;
        if self.is_lost && !matches!(event, Event::Init) {
            tracing::info!(kind = kind.as_str(), "watch of Kubernetes works again");
            self.is_lost = false;
        }
        match event {
            Event::Init => {
                // What is answered from now on may be older than the list.
                doubts.raise(Vec::new());
                self.tracker.list_began();
                // Nothing was heard yet: this comes before the API server is asked.
                return Ok(());
            }
            Event::InitApply(object) => {
                let name = name_of(&object);
                self.tracker.listed(&name, &object.metadata);
                self.tell_of(&name, Some(object)).await?;
            }
            Event::Apply(object) => {
                let name = name_of(&object);
                if self.tracker.applied(&name, &object.metadata) {
                    doubts.settle(&name);
                    self.tell_of(&name, Some(object)).await?;
                } else {
                    stale(kind);
                }
            }
            Event::Delete(object) => {
                let name = name_of(&object);
                if self.tracker.deleted(&name, &object.metadata) {
                    doubts.settle(&name);
                    self.tell_of(&name, None).await?;
                } else {
                    stale(kind);
                }
            }
            Event::InitDone => {
                doubts.raise(self.tracker.list_done());
                self.tell(News::Synced(kind)).await?;
            }
        }
        self.tell(News::Heard(kind)).await
    }

    /// Takes in what the API server says of an object that a list lacked.
    async fn answered(&mut self, name: &NamespacedName, told: Told) -> Result<(), Closed> {
        match told {
            Some(object) => {
                self.tracker.found(name, &object.metadata);
                self.tell_of(name, Some(object)).await
            }
            None if self.tracker.is_not_there(name) => self.tell_of(name, None).await,
            None => Ok(()),
        }
    }

    /// Reports a change of an object. One that cannot be parsed counts as absent: what follows from objects
    /// must not depend on what they were before.
    async fn tell_of(&self, name: &NamespacedName, told: Told) -> Result<(), Closed> {
        let news = match (self.reading)(name, told) {
            Ok(news) => news,
            Err(error) => {
                let kind = self.kind.as_str();
                metrics().count("kubernetes_unreadable_objects", &[("kind", kind)], 1);
                tracing::warn!(
                    kind,
                    object = %name,
                    %error,
                    "object of Kubernetes cannot be understood and counts as not there"
                );
                (self.reading)(name, None).map_err(|_unreadable| Closed)?
            }
        };
        self.tell(news).await
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
