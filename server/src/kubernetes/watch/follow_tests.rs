use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use finial_identity::process::TaskSet;
use futures_util::future::BoxFuture;
use kube::core::DynamicObject;
use kube::runtime::watcher::{self, Event};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::follow::{Ask, Following, LIST_AGAIN, Told};
use super::{Fact, Kind, News};
use crate::kubernetes::derive::NamespacedName;
use crate::kubernetes::label_filter::Labels;

type Happens = watcher::Result<Event<DynamicObject>>;

/// A watch of namespaces of which a test says what happens and what the API server answers.
struct World {
    events: mpsc::UnboundedSender<Happens>,
    news: mpsc::Receiver<News>,
    asked: Arc<AtomicUsize>,
    _tasks: TaskSet,
}

/// What the API server answers to the question with this number, which counts from 0.
type Answers = fn(usize) -> BoxFuture<'static, kube::Result<Told>>;

impl World {
    fn new(answers: Answers) -> Self {
        let (events, happening) = mpsc::unbounded_channel();
        let (sender, news) = mpsc::channel(64);
        let asked = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&asked);
        let ask: Ask = Box::new(move |_name| answers(counter.fetch_add(1, Ordering::SeqCst)));
        let mut tasks = TaskSet::new();
        tasks.spawn("watch", async move {
            let mut following = Following::new(Kind::Namespaces, reading, sender);
            let _closed = following
                .run(UnboundedReceiverStream::new(happening), &ask, LIST_AGAIN)
                .await;
            Ok::<_, std::convert::Infallible>(())
        });
        Self {
            events,
            news,
            asked,
            _tasks: tasks,
        }
    }

    fn happens(&self, event: Event<DynamicObject>) {
        self.events.send(Ok(event)).unwrap();
    }

    fn list(&self, objects: Vec<DynamicObject>) {
        self.happens(Event::Init);
        objects
            .into_iter()
            .for_each(|object| self.happens(Event::InitApply(object)));
        self.happens(Event::InitDone);
    }

    /// What was told of namespaces until nothing has come for half a second: the label `v`, or that it is gone.
    async fn told(&mut self) -> BTreeMap<String, Option<String>> {
        let mut told = BTreeMap::new();
        while let Ok(Some(news)) = timeout(Duration::from_millis(500), self.news.recv()).await {
            if let News::Fact(Fact::Namespace(name, labels)) = news {
                told.insert(name.to_string(), labels.map(|labels| labels["v"].clone()));
            }
        }
        told
    }

    /// Whether the API server was understood to have no such kind.
    async fn is_absent(&mut self) -> bool {
        let mut is_absent = false;
        while let Ok(Some(news)) = timeout(Duration::from_millis(500), self.news.recv()).await {
            is_absent |= matches!(news, News::Absent(Kind::Namespaces));
        }
        is_absent
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn reading(name: &NamespacedName, told: Told) -> serde_json::Result<News> {
    let labels: Option<Labels> = told.map(|object| object.metadata.labels.unwrap_or_default());
    Ok(News::Fact(Fact::Namespace(
        name.name.clone(),
        labels.map(Arc::new),
    )))
}

/// A namespace whose label is its version.
fn object(name: &str, version: u64) -> DynamicObject {
    let object = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "uid": name, "resourceVersion": version.to_string(), "labels": {"v": version.to_string()}
        }
    });
    serde_json::from_value(object).unwrap()
}

fn of(pairs: &[(&str, Option<&str>)]) -> BTreeMap<String, Option<String>> {
    let owned = |(name, version): &(&str, Option<&str>)| ((*name).to_owned(), version.map(str::to_owned));
    pairs.iter().map(owned).collect()
}

fn failure() -> kube::Error {
    kube::Error::Service("connection refused".into())
}

fn gone(_: usize) -> BoxFuture<'static, kube::Result<Told>> {
    Box::pin(async { Ok(None) })
}

fn never(_: usize) -> BoxFuture<'static, kube::Result<Told>> {
    Box::pin(std::future::pending())
}

fn gone_at_the_second_try(n: usize) -> BoxFuture<'static, kube::Result<Told>> {
    Box::pin(async move { if n == 0 { Err(failure()) } else { Ok(None) } })
}

#[tokio::test(start_paused = true)]
async fn what_a_list_lacks_is_gone_when_the_api_server_says_so() {
    let mut world = World::new(gone);
    world.list(vec![object("a", 1), object("b", 1)]);
    assert_eq!(world.told().await, of(&[("a", Some("1")), ("b", Some("1"))]));
    assert_eq!(world.asked(), 0);
    world.list(vec![object("a", 2)]);
    assert_eq!(world.told().await, of(&[("a", Some("2")), ("b", None)]));
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_hole_in_a_list_is_filled_by_what_the_api_server_says() {
    let mut world = World::new(|_| Box::pin(async { Ok(Some(object("b", 3))) }));
    world.list(vec![object("b", 1)]);
    world.told().await;
    world.list(Vec::new());
    assert_eq!(world.told().await, of(&[("b", Some("3"))]));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_could_not_be_asked_for_is_asked_for_again_while_events_trickle_in() {
    let mut world = World::new(gone_at_the_second_try);
    world.list(vec![object("a", 1), object("b", 1)]);
    world.told().await;
    world.list(vec![object("a", 1)]);
    world.told().await;
    assert_eq!(world.asked(), 1);
    let began = Instant::now();
    let mut version = 2;
    // An event each second or so.
    loop {
        version += 1;
        world.happens(Event::Apply(object("a", version)));
        let told = world.told().await;
        if told.get("b") == Some(&None) {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(10),
            "asked {} times",
            world.asked()
        );
    }
    assert_eq!(world.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_is_never_answered_does_not_stop_the_watch() {
    let mut world = World::new(never);
    world.list(vec![object("a", 1), object("b", 1)]);
    world.told().await;
    world.list(vec![object("a", 1)]);
    world.happens(Event::Apply(object("a", 2)));
    assert_eq!(world.told().await, of(&[("a", Some("2"))]));
    assert_eq!(world.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn no_more_than_a_few_objects_are_asked_for_at_once_and_all_in_turn() {
    let mut world = World::new(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(None)
        })
    });
    let all: Vec<String> = (0..20).map(|n| format!("n{n}")).collect();
    world.list(all.iter().map(|name| object(name, 1)).collect());
    world.told().await;
    world.list(Vec::new());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(world.asked(), 8);
    let told = world.told().await;
    assert_eq!((told.len(), world.asked()), (20, 20));
    assert!(told.values().all(Option::is_none));
}

#[tokio::test(start_paused = true)]
async fn what_the_watch_tells_is_newer_than_what_was_asked_before() {
    let mut world = World::new(|_| {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok(None)
        })
    });
    world.list(vec![object("b", 1)]);
    world.told().await;
    world.list(Vec::new());
    assert!(world.told().await.is_empty());
    world.happens(Event::Apply(object("b", 5)));
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(world.told().await, of(&[("b", Some("5"))]));
}

#[tokio::test(start_paused = true)]
async fn a_list_of_a_store_that_was_restored_counts_and_so_do_the_changes_after_it() {
    let mut world = World::new(never);
    world.list(vec![object("a", 90), object("b", 91)]);
    world.happens(Event::Delete(object("b", 92)));
    world.told().await;
    world.list(vec![object("a", 10), object("b", 11)]);
    assert_eq!(world.told().await, of(&[("a", Some("10")), ("b", Some("11"))]));
    world.happens(Event::Apply(object("a", 12)));
    world.happens(Event::Apply(object("a", 11)));
    assert_eq!(world.told().await, of(&[("a", Some("12"))]));
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_is_lost_tells_so_and_nothing_of_objects() {
    let mut world = World::new(gone);
    world.list(vec![object("a", 1)]);
    world.told().await;
    for _ in 0..3 {
        world
            .events
            .send(Err(watcher::Error::WatchStartFailed(failure())))
            .unwrap();
        // The next attempt begins before anything is asked.
        world.happens(Event::Init);
        let News::Lost(Kind::Namespaces, text) = world.news.recv().await.unwrap() else {
            panic!("a failure is told first")
        };
        assert!(text.contains("connection refused"), "{text}");
        let next = timeout(Duration::from_secs(1), world.news.recv()).await;
        assert!(next.is_err(), "an attempt is no answer: {next:?}");
    }
    assert_eq!(world.asked(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_not_found_tells_that_there_is_no_such_kind_and_no_other_failure_does() {
    let mut world = World::new(|_| Box::pin(async { Ok(None) }));
    for (code, expected) in [(403, false), (404, true), (503, false)] {
        let answer = kube::core::Status::failure("no", "reason").with_code(code);
        let error = watcher::Error::InitialListFailed(kube::Error::Api(Box::new(answer)));
        world.events.send(Err(error)).unwrap();
        assert_eq!(world.is_absent().await, expected, "{code}");
    }
}
