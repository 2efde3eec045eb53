//! Events on pods that something is wrong with: a few each second, and of each pod and kind of trouble one.

use std::collections::{HashMap, HashSet, VecDeque};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::Outbox;
use crate::kubernetes::FIELD_MANAGER;
use crate::kubernetes::derive::{PodProblem, ProblemKind};

/// How many Events may wait: what is sent in the five minutes until those that found no room are offered again.
const MAX_WAITING: usize = 1500;
/// How many Events are sent in a round, which takes a second.
const PER_ROUND: usize = 5;
/// For how long an Event is not sent again although the trouble ended and came back.
const SILENCE: Duration = Duration::minutes(30);
/// How many Events are remembered for that.
const REMEMBERED: usize = 16_384;
/// Longest name of an object in Kubernetes, in bytes.
const MAX_NAME: usize = 253;

/// A pod's UID and what is wrong with it.
type Key = (String, ProblemKind);

/// The Events that wait, and those that were sent.
#[derive(Debug, Default)]
pub(super) struct Events {
    waiting: VecDeque<PodProblem>,
    waits: HashSet<Key>,
    told: HashMap<Key, OffsetDateTime>,
}

impl Events {
    /// Takes in a trouble that is new. Whether there is something to send.
    pub(super) fn put(&mut self, problem: PodProblem, now: OffsetDateTime) -> bool {
        let told = self.told.get(&key(&problem));
        if told.is_some_and(|at| now - *at < SILENCE) {
            return false;
        }
        self.push(problem)
    }

    /// Takes in all troubles that there are. Of those that were told once nothing more is said while they last.
    pub(super) fn offer(&mut self, problems: Vec<PodProblem>, now: OffsetDateTime) -> bool {
        let there: HashSet<Key> = problems.iter().map(key).collect();
        self.told
            .retain(|key, at| now - *at < SILENCE || there.contains(key));
        let mut has_news = false;
        for problem in problems {
            if self.waiting.len() >= MAX_WAITING {
                break;
            }
            if !self.told.contains_key(&key(&problem)) {
                has_news |= self.push(problem);
            }
        }
        has_news
    }

    fn push(&mut self, problem: PodProblem) -> bool {
        let is_new = self.waiting.len() < MAX_WAITING
            && self.told.len() < REMEMBERED
            && self.waits.insert(key(&problem));
        if is_new {
            self.waiting.push_back(problem);
        }
        is_new
    }

    fn pop(&mut self) -> Option<PodProblem> {
        let problem = self.waiting.pop_front()?;
        self.waits.remove(&key(&problem));
        Some(problem)
    }
}

impl Outbox {
    /// Sends a few Events. One that fails is left out until it is offered again: the statuses say the same.
    pub(super) async fn send_events(&self, client: &Client, now: OffsetDateTime) {
        for _ in 0..PER_ROUND {
            let Some(problem) = self.lock().events.pop() else {
                return;
            };
            let api = Api::<Event>::namespaced(client.clone(), &problem.pod.namespace);
            match api.create(&PostParams::default(), &event(&problem, now)).await {
                Ok(_) => {
                    self.lock().events.told.insert(key(&problem), now);
                }
                Err(error) => tracing::debug!(pod = %problem.pod, %error, "failed to send an event"),
            }
        }
        if !self.lock().events.waiting.is_empty() {
            self.news.notify_one();
        }
    }
}

fn key(problem: &PodProblem) -> Key {
    (problem.uid.clone(), problem.kind)
}

/// The pod's name, cut if need be, and something that no other Event has.
fn name(pod: &str) -> String {
    let unique = Uuid::new_v4().to_string();
    let room = MAX_NAME - unique.len() - 1;
    // Names of pods are ASCII; each part between dots ends with a letter or a digit.
    let pod = pod.get(..room).unwrap_or(pod).trim_end_matches(['.', '-']);
    format!("{pod}.{unique}")
}

fn event(problem: &PodProblem, now: OffsetDateTime) -> Event {
    let at = Timestamp::from_second(now.unix_timestamp()).ok().map(Time);
    let reason = match problem.kind {
        ProblemKind::NoRule => "NoIdentityRule",
        ProblemKind::RuleFailed => "IdentityRuleFailed",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(name(&problem.pod.name)),
            namespace: Some(problem.pod.namespace.to_string()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(problem.pod.name.to_string()),
            namespace: Some(problem.pod.namespace.to_string()),
            uid: Some(problem.uid.clone()),
            ..ObjectReference::default()
        },
        reason: Some(reason.to_owned()),
        message: Some(problem.text.chars().take(1000).collect()),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource {
            component: Some(FIELD_MANAGER.to_owned()),
            ..EventSource::default()
        }),
        first_timestamp: at.clone(),
        last_timestamp: at,
        count: Some(1),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::kubernetes::derive::NamespacedName;

    const NOON: OffsetDateTime = datetime!(2030-01-01 12:00 UTC);

    fn problem(n: usize) -> PodProblem {
        PodProblem {
            pod: NamespacedName::new("shop", &format!("p{n}")),
            uid: format!("u{n}"),
            kind: ProblemKind::NoRule,
            text: String::new(),
        }
    }

    /// Sends all that waits.
    fn send(events: &mut Events, now: OffsetDateTime) -> usize {
        let mut sent = 0;
        while let Some(problem) = events.pop() {
            events.told.insert(key(&problem), now);
            sent += 1;
        }
        sent
    }

    #[test]
    fn those_that_found_no_room_have_their_turn_when_all_are_offered_again() {
        let mut events = Events::default();
        let all = || (0..4_000).map(problem).collect::<Vec<_>>();
        for problem in all() {
            events.put(problem, NOON);
        }
        let mut now = NOON;
        let mut sent = vec![send(&mut events, now)];
        for _ in 0..20 {
            now += Duration::minutes(5);
            events.offer(all(), now);
            sent.push(send(&mut events, now));
        }
        assert_eq!(sent[..4], [1500, 1500, 1000, 0]);
        assert_eq!(
            sent.iter().sum::<usize>(),
            4_000,
            "each is told once while it lasts"
        );
    }

    #[test]
    fn a_trouble_that_comes_and_goes_is_told_twice_an_hour_at_most() {
        let mut events = Events::default();
        assert!(events.put(problem(1), NOON));
        assert!(!events.put(problem(1), NOON), "it waits already");
        assert_eq!(send(&mut events, NOON), 1);
        let soon = NOON + Duration::minutes(29);
        assert!(!events.put(problem(1), soon) && !events.offer(vec![problem(1)], soon));
        assert!(events.put(problem(1), NOON + Duration::minutes(31)));
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let mut events = Events::default();
        events.put(problem(1), NOON);
        send(&mut events, NOON);
        events.offer(Vec::new(), NOON + Duration::minutes(31));
        assert!(events.told.is_empty());
    }

    #[test]
    fn the_name_of_an_event_fits_whatever_the_pods_name_is() {
        assert!(name("web-0").starts_with("web-0."));
        let long = format!("{}.{}", "a".repeat(215), "b".repeat(37));
        let name = name(&long);
        assert!(name.len() <= MAX_NAME, "{name}");
        assert!(
            name.split('.')
                .all(|part| !part.is_empty() && !part.ends_with('-')),
            "{name}"
        );
    }
}
