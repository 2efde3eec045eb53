//! An outbox before an API server of a few lines, in paused time.

use std::sync::PoisonError;

use axum::response::{IntoResponse, Response};
use finial_identity::process::TaskSet;
use finial_identity::spiffe_id::TrustDomain;
use http::{Method, Request, StatusCode};
use serde_json::json;
use time::macros::datetime;

use super::*;
use crate::kubernetes::derive::tests::settings;
use crate::kubernetes::derive::{NamespacedName, ProblemKind};
use crate::kubernetes::limits::Limited;
use crate::kubernetes::resources::ClusterSPIFFEIDStats;

const NOON: OffsetDateTime = datetime!(2030-01-01 12:00 UTC);

/// How the API server treats the status of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Treatment {
    Takes,
    Refuses,
    /// It answers after five seconds.
    Delays,
    /// It never answers.
    Hangs,
}

/// What an API server was asked to write, and how it treats rules whose names begin with `bad`.
#[derive(Debug)]
struct Asked {
    bad: Treatment,
    /// Names of rules, with the number of pods that their status says.
    writes: Vec<(String, i64)>,
    /// Names of the Events that there are.
    events: Vec<String>,
    /// How many were there already when they were to be made.
    events_again: usize,
}

struct World {
    outbox: Arc<Outbox>,
    asked: Arc<Mutex<Asked>>,
    clock: Clock,
    _tasks: TaskSet,
}

impl World {
    fn new(bad: Treatment) -> Self {
        let asked = Asked {
            bad,
            writes: Vec::new(),
            events: Vec::new(),
            events_again: 0,
        };
        Self::of(Arc::new(Mutex::new(asked)), Clock::paused_at(NOON))
    }

    /// Another server of the installation.
    fn another(&self) -> Self {
        Self::of(Arc::clone(&self.asked), self.clock.clone())
    }

    fn of(asked: Arc<Mutex<Asked>>, clock: Clock) -> Self {
        let outbox = Arc::new(Outbox::new(&settings()));
        let mut tasks = TaskSet::new();
        let at = Arc::clone(&asked);
        let server = tower::service_fn(move |request| answer(Arc::clone(&at), request));
        let client = Client::new(Limited(server), "default");
        let stop = tasks.stop_signal();
        tasks.spawn("outbox", Arc::clone(&outbox).run(client, clock.clone(), stop));
        Self {
            outbox,
            asked,
            clock,
            _tasks: tasks,
        }
    }

    fn with<T>(&self, look: impl FnOnce(&mut Asked) -> T) -> T {
        look(&mut self.asked.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn put(&self, name: &str, pods: i64) {
        let status = RuleStatus {
            stats: ClusterSPIFFEIDStats {
                pods_selected: pods,
                ..ClusterSPIFFEIDStats::default()
            },
            ready: Ok(()),
            generation: Some(1),
        };
        let before = Before {
            uid: format!("uid-{name}"),
            status: None,
        };
        self.outbox.put_rule(name.into(), status, before);
    }

    /// What the API server was asked to write to a rule.
    fn writes(&self, name: &str) -> Vec<i64> {
        self.with(|asked| {
            let writes = asked.writes.iter().filter(|(of, _)| of == name);
            writes.map(|(_, pods)| *pods).collect()
        })
    }
}

async fn answer(
    asked: Arc<Mutex<Asked>>,
    request: Request<kube::client::Body>,
) -> Result<Response, axum::Error> {
    let (parts, body) = request.into_parts();
    let name = parts.uri.path().rsplit('/').nth(1).unwrap_or_default().to_owned();
    let body = axum::body::to_bytes(axum::body::Body::new(body), usize::MAX).await?;
    let patch: serde_json::Value = serde_json::from_slice(&body).unwrap();
    if parts.method == Method::POST {
        return Ok(create_event(&asked, &patch));
    }
    let treatment = {
        let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let pods = patch["status"]["stats"]["podsSelected"].as_i64().unwrap();
        asked.writes.push((name.clone(), pods));
        match name.starts_with("bad") {
            true => asked.bad,
            false => Treatment::Takes,
        }
    };
    if treatment == Treatment::Delays {
        seconds(5).await;
    }
    let object = match treatment {
        Treatment::Hangs => std::future::pending().await,
        Treatment::Refuses => json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "InternalError",
            "code": 500
        }),
        Treatment::Takes | Treatment::Delays => json!({
            "apiVersion": "spire.spiffe.io/v1alpha1", "kind": "ClusterSPIFFEID", "metadata": {"name": name},
            "spec": {"spiffeIDTemplate": "spiffe://{{ .TrustDomain }}/web"}
        }),
    };
    let status = match treatment {
        Treatment::Refuses => StatusCode::INTERNAL_SERVER_ERROR,
        _ => StatusCode::OK,
    };
    Ok((status, object.to_string()).into_response())
}

fn create_event(asked: &Mutex<Asked>, event: &serde_json::Value) -> Response {
    let mut asked = asked.lock().unwrap_or_else(PoisonError::into_inner);
    let name = event["metadata"]["name"].as_str().unwrap().to_owned();
    if asked.events.contains(&name) {
        asked.events_again += 1;
        let there = json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "it is there", "reason": "AlreadyExists",
            "code": 409
        });
        return (StatusCode::CONFLICT, there.to_string()).into_response();
    }
    asked.events.push(name);
    (StatusCode::CREATED, event.to_string()).into_response()
}

async fn seconds(count: u64) {
    tokio::time::sleep(Duration::from_secs(count)).await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_fails_or_is_not_answered_for_delays_no_other() {
    for treatment in [Treatment::Refuses, Treatment::Hangs] {
        let world = World::new(treatment);
        world.put("bad", 1);
        seconds(60).await;
        assert!(world.writes("bad").len() > 1, "it is tried again");
        // At whatever moment of the pauses, and of an attempt.
        for round in 1..20 {
            world.put("good", round);
            seconds(2).await;
            assert_eq!(
                world.writes("good").last(),
                Some(&round),
                "{treatment:?} within two seconds"
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failing_object_is_tried_ever_less_often_whatever_the_others_do() {
    let world = World::new(Treatment::Refuses);
    world.put("bad", 1);
    let mut tries = Vec::new();
    for round in 0..300 {
        world.put("good", round);
        world.put("bad", round);
        seconds(2).await;
        tries.push(world.writes("bad").len());
    }
    assert!((4..=6).contains(&tries[10]), "{tries:?}");
    assert!((38..=46).contains(&tries[299]), "{tries:?}");
}

#[tokio::test(start_paused = true)]
async fn what_is_newest_is_written_once_the_api_server_takes_it() {
    let world = World::new(Treatment::Refuses);
    world.put("bad", 1);
    seconds(60).await;
    world.put("bad", 2);
    world.with(|asked| asked.bad = Treatment::Takes);
    seconds(16).await;
    assert_eq!(world.writes("bad").last(), Some(&2));
    let count = world.writes("bad").len();
    world.put("bad", 3);
    seconds(2).await;
    assert_eq!(
        world.writes("bad")[count..],
        [3],
        "it is an object like others again"
    );
}

#[tokio::test(start_paused = true)]
async fn what_came_while_an_object_was_tried_again_is_written_after_it() {
    let world = World::new(Treatment::Hangs);
    world.put("bad", 1);
    // It was given up after eleven seconds, and is tried for ten more since the twelfth.
    seconds(15).await;
    assert_eq!(world.writes("bad"), [1, 1]);
    world.put("bad", 2);
    world.with(|asked| asked.bad = Treatment::Takes);
    seconds(12).await;
    assert_eq!(world.writes("bad"), [1, 1, 2]);
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_written_slowly_holds_up_none_that_waits_with_it_or_comes_later() {
    for treatment in [Treatment::Delays, Treatment::Hangs] {
        let world = World::new(treatment);
        for number in 1..AT_ONCE {
            world.put(&format!("bad-{number}"), 1);
        }
        world.put("good", 1);
        seconds(2).await;
        assert_eq!(world.writes("good"), [1], "{treatment:?}");
        world.put("good", 2);
        seconds(2).await;
        assert_eq!(world.writes("good"), [1, 2], "{treatment:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn few_objects_are_written_at_once_and_the_others_after_them() {
    let world = World::new(Treatment::Delays);
    for number in 0..3 * AT_ONCE {
        world.put(&format!("bad-{number}"), 1);
    }
    let count = || world.with(|asked| asked.writes.len());
    seconds(2).await;
    assert_eq!(count(), AT_ONCE);
    seconds(5).await;
    assert_eq!(count(), 2 * AT_ONCE);
    seconds(60).await;
    assert_eq!(count(), 3 * AT_ONCE, "each once");
}

#[tokio::test(start_paused = true)]
async fn an_object_has_one_write_at_a_time_and_the_newest_status_last() {
    let world = World::new(Treatment::Delays);
    for pods in 1..=4 {
        world.put("bad", pods);
        seconds(1).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(world.writes("bad"), [1]);
    seconds(60).await;
    assert_eq!(world.writes("bad"), [1, 4]);
}

#[tokio::test(start_paused = true)]
async fn of_the_servers_of_an_installation_one_tells_a_trouble_and_after_a_restart_none_tells_it_again() {
    let problem = PodProblem {
        pod: NamespacedName::new("shop", "web"),
        uid: "uid-web".to_owned(),
        created_at: NOON.unix_timestamp(),
        kind: ProblemKind::NoRule,
        text: "no rule".to_owned(),
    };
    let one = World::new(Treatment::Takes);
    let other = one.another();
    let tell = |world: &World| {
        world
            .outbox
            .offer_problems(vec![problem.clone()], world.clock.now());
    };
    for _ in 0..24 {
        tell(&one);
        seconds(100).await;
        tell(&other);
        seconds(200).await;
    }
    let told = || one.with(|asked| (asked.events.len(), asked.events_again));
    assert_eq!(told(), (3, 3), "each once in each three quarters of an hour");
    let restarted = one.another();
    for _ in 0..2 {
        tell(&restarted);
        seconds(100).await;
    }
    assert_eq!(told(), (3, 4), "what is there was told");
}

#[test]
fn servers_of_other_trust_domains_clusters_and_classes_tell_for_themselves() {
    let own = settings();
    let others = [
        Settings {
            trust_domain: TrustDomain::parse("other.test").unwrap(),
            ..own.clone()
        },
        Settings {
            cluster_name: "other".to_owned(),
            ..own.clone()
        },
        Settings {
            class_name: Some("other".to_owned()),
            ..own.clone()
        },
    ];
    let author = |settings: &Settings| Outbox::new(settings).author;
    assert_eq!(author(&own), author(&own.clone()));
    for other in &others {
        assert_ne!(author(&own), author(other));
    }
}
