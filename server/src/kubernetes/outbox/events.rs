//! Events on pods that something is wrong with: a few each second, and of each pod and kind of trouble one in each period of
//! the pod's life while the trouble lasts: clusters forget Events after a while. Each is a new object, as the server may create
//! Events and not change any; it counts those that this server knows of before it. Its name follows from the trouble and
//! the period, so that servers of one installation, and one that was restarted, make no second one: the API server says
//! that it is there.

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

/// How many Events of new troubles may wait, and how many of lasting ones: what is sent in the five minutes until those
/// that found no room are offered again.
const MAX_WAITING: usize = 1500;
/// How many Events are sent in a round, which takes a second.
const PER_ROUND: usize = 5;
/// In each such period of a pod's life a trouble is told once, whether it lasts or comes and goes. Five minutes may pass until
/// it is offered, and five more until it is sent; the API server keeps an Event for an hour, unless it is told otherwise.
const PERIOD: Duration = Duration::minutes(45);
/// Longest name of an object in Kubernetes, in bytes.
const MAX_NAME: usize = 253;

/// A pod's UID and what is wrong with it.
type Key = (String, ProblemKind);

/// The Events that wait, and those that were sent.
#[derive(Debug, Default)]
pub(super) struct Events {
    new: VecDeque<PodProblem>,
    /// Of troubles that last, and of those that found no room when they were new. They give way to new ones.
    offered: VecDeque<PodProblem>,
    waits: HashSet<Key>,
    /// As many as there are troubles, and those that were told less than a [`PERIOD`] ago.
    past: HashMap<Key, Past>,
}

/// What was done about a trouble.
#[derive(Clone, Copy, Debug)]
struct Past {
    /// When an Event was last sent, taken or not.
    tried_at: OffsetDateTime,
    /// None, when no Event was taken.
    told: Option<Told>,
}

/// The Events of a trouble.
#[derive(Clone, Copy, Debug)]
struct Told {
    first_at: OffsetDateTime,
    last_at: OffsetDateTime,
    count: i32,
}

impl Events {
    /// Takes in a trouble that is new. Whether there is something to send.
    pub(super) fn put(&mut self, problem: PodProblem, now: OffsetDateTime) -> bool {
        if self.is_told(&problem, now) || self.new.len() >= MAX_WAITING {
            return false;
        }
        let is_new = self.waits.insert(key(&problem));
        if is_new {
            self.new.push_back(problem);
        }
        is_new
    }

    /// Takes in all troubles that there are. Of those that were not told in this period, those have their turn first
    /// for which nothing was sent for longest: however many there are, and whichever the API server refuses.
    pub(super) fn offer(&mut self, problems: Vec<PodProblem>, now: OffsetDateTime) -> bool {
        let there: HashSet<Key> = problems.iter().map(key).collect();
        self.past.retain(|key, past| {
            let is_recent = past.told.is_some_and(|told| now - told.last_at < PERIOD);
            is_recent || there.contains(key)
        });
        // Those that still wait since the last time are among them.
        for late in std::mem::take(&mut self.offered) {
            self.waits.remove(&key(&late));
        }
        let due = problems
            .into_iter()
            .filter(|problem| !self.waits.contains(&key(problem)) && !self.is_told(problem, now));
        let mut due: Vec<PodProblem> = due.collect();
        due.sort_by_key(|problem| self.past.get(&key(problem)).map(|past| past.tried_at));
        due.truncate(MAX_WAITING);
        self.waits.extend(due.iter().map(key));
        self.offered = due.into();
        !self.offered.is_empty()
    }

    /// What to send next, and what is then told of it.
    fn pop(&mut self, now: OffsetDateTime) -> Option<(PodProblem, Told)> {
        let problem = self.new.pop_front().or_else(|| self.offered.pop_front())?;
        self.waits.remove(&key(&problem));
        let told = Told::again(self.told(&problem), now);
        Some((problem, told))
    }

    /// The Events of a trouble so far.
    fn told(&self, problem: &PodProblem) -> Option<Told> {
        self.past.get(&key(problem)).and_then(|past| past.told)
    }

    /// Whether a trouble was told in this period.
    fn is_told(&self, problem: &PodProblem, now: OffsetDateTime) -> bool {
        self.told(problem)
            .is_some_and(|told| period(problem, told.last_at) == period(problem, now))
    }

    /// An Event was sent: with what it says when it was taken.
    fn sent(&mut self, problem: &PodProblem, taken: Option<Told>, now: OffsetDateTime) {
        let told = taken.or_else(|| self.told(problem));
        let past = Past { tried_at: now, told };
        self.past.insert(key(problem), past);
    }

    fn is_empty(&self) -> bool {
        self.new.is_empty() && self.offered.is_empty()
    }
}

impl Told {
    /// One more Event, after those before it.
    fn again(before: Option<Self>, now: OffsetDateTime) -> Self {
        Self {
            first_at: before.map_or(now, |before| before.first_at),
            last_at: now,
            count: before.map_or(1, |before| before.count.saturating_add(1)),
        }
    }
}

impl Outbox {
    /// Sends a few Events. One that fails is left out until it is offered again: the statuses say the same.
    pub(super) async fn send_events(&self, client: &Client, now: OffsetDateTime) {
        for _ in 0..PER_ROUND {
            let next = self.lock().events.pop(now);
            let Some((problem, told)) = next else {
                return;
            };
            let api = Api::<Event>::namespaced(client.clone(), &problem.pod.namespace);
            let event = event(&self.author, &problem, told);
            let is_told = match api.create(&PostParams::default(), &event).await {
                Ok(_) => true,
                Err(kube::Error::Api(answer)) if answer.is_already_exists() => true,
                Err(error) => {
                    tracing::debug!(pod = %problem.pod, %error, "failed to send an event");
                    false
                }
            };
            self.lock().events.sent(&problem, is_told.then_some(told), now);
        }
        if !self.lock().events.is_empty() {
            self.problems.notify_one();
        }
    }
}

fn key(problem: &PodProblem) -> Key {
    (problem.uid.clone(), problem.kind)
}

/// Which period of the pod's life it is. The API server's clock, which a pod's creation is from, may be ahead of ours.
fn period(problem: &PodProblem, now: OffsetDateTime) -> i64 {
    let age = now.unix_timestamp().saturating_sub(problem.created_at);
    age.max(0) / PERIOD.whole_seconds()
}

/// The pod's name, cut if need be, and what no other author, trouble or period has.
fn name(author: &str, problem: &PodProblem, now: OffsetDateTime) -> String {
    let (uid, reason, period) = (&problem.uid, reason(problem.kind), period(problem, now));
    let told = format!("{author}\n{uid}\n{reason}\n{period}");
    let unique = Uuid::new_v5(&Uuid::NAMESPACE_URL, told.as_bytes()).to_string();
    let room = MAX_NAME - unique.len() - 1;
    // Names of pods are ASCII; each part between dots ends with a letter or a digit.
    let pod: &str = &problem.pod.name;
    let pod = pod.get(..room).unwrap_or(pod).trim_end_matches(['.', '-']);
    format!("{pod}.{unique}")
}

fn reason(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::NoRule => "NoIdentityRule",
        ProblemKind::RuleFailed => "IdentityRuleFailed",
    }
}

fn event(author: &str, problem: &PodProblem, told: Told) -> Event {
    let second = |at: OffsetDateTime| Timestamp::from_second(at.unix_timestamp()).ok().map(Time);
    Event {
        metadata: ObjectMeta {
            name: Some(name(author, problem, told.last_at)),
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
        reason: Some(reason(problem.kind).to_owned()),
        message: Some(problem.text.chars().take(1000).collect()),
        type_: Some("Warning".to_owned()),
        source: Some(EventSource {
            component: Some(FIELD_MANAGER.to_owned()),
            ..EventSource::default()
        }),
        first_timestamp: second(told.first_at),
        last_timestamp: second(told.last_at),
        count: Some(told.count),
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
            created_at: NOON.unix_timestamp(),
            kind: ProblemKind::NoRule,
            text: String::new(),
        }
    }

    fn problems(numbers: std::ops::Range<usize>) -> Vec<PodProblem> {
        numbers.map(problem).collect()
    }

    /// Sends all that waits, of which the API server takes what it is said to. The numbers of those that it took.
    fn send(events: &mut Events, now: OffsetDateTime, takes: impl Fn(&PodProblem) -> bool) -> Vec<usize> {
        let mut taken = Vec::new();
        while let Some((problem, told)) = events.pop(now) {
            let is_taken = takes(&problem);
            events.sent(&problem, is_taken.then_some(told), now);
            taken.extend(is_taken.then(|| problem.uid[1..].parse::<usize>().unwrap()));
        }
        taken
    }

    fn send_all(events: &mut Events, now: OffsetDateTime) -> Vec<usize> {
        send(events, now, |_| true)
    }

    #[test]
    fn those_that_found_no_room_have_their_turn_when_all_are_offered_again() {
        let mut events = Events::default();
        for problem in problems(0..4_000) {
            events.put(problem, NOON);
        }
        let mut now = NOON;
        let mut sent = vec![send_all(&mut events, now).len()];
        for _ in 0..12 {
            now += Duration::minutes(5);
            events.offer(problems(0..4_000), now);
            sent.push(send_all(&mut events, now).len());
        }
        assert_eq!(sent[..4], [1500, 1500, 1000, 0]);
        assert_eq!(
            sent[4..],
            [0, 0, 0, 0, 0, 1500, 1500, 1000, 0],
            "each is told again after three quarters of an hour"
        );
    }

    #[test]
    fn however_many_troubles_last_new_ones_are_told_and_all_in_turn() {
        const MANY: usize = 20_000;
        let mut events = Events::default();
        let mut told_at = vec![NOON; MANY];
        let mut now = NOON;
        for _ in 0..3 * MANY / MAX_WAITING {
            events.offer(problems(0..MANY), now);
            for number in send_all(&mut events, now) {
                told_at[number] = now;
            }
            now += Duration::minutes(5);
            let longest = now - *told_at.iter().min().unwrap();
            assert!(longest <= Duration::minutes(75), "{longest}");
        }
        assert!(events.offer(problems(0..MANY), now));
        assert!(events.put(problem(MANY), now));
        let (next, _) = events.pop(now).unwrap();
        assert_eq!(next, problem(MANY), "before those that last");
        assert_eq!(events.past.len(), MANY);
    }

    #[test]
    fn events_that_the_api_server_refuses_keep_no_others_from_being_sent() {
        let mut events = Events::default();
        let all = || problems(0..2 * MAX_WAITING);
        let takes = |problem: &PodProblem| problem.uid[1..].parse::<usize>().unwrap() >= MAX_WAITING;
        events.offer(all(), NOON);
        assert_eq!(send(&mut events, NOON, takes).len(), 0);
        let later = NOON + Duration::minutes(5);
        events.offer(all(), later);
        assert_eq!(send(&mut events, later, takes).len(), MAX_WAITING);
        // They are tried again.
        let later = later + Duration::minutes(5);
        events.offer(all(), later);
        assert_eq!(send_all(&mut events, later), (0..MAX_WAITING).collect::<Vec<_>>());
    }

    #[test]
    fn a_lasting_trouble_is_told_again_with_its_count_before_the_api_server_forgets_it() {
        let mut events = Events::default();
        events.put(problem(1), NOON);
        send_all(&mut events, NOON);
        let mut told_at = vec![NOON];
        for step in 1..48 {
            let now = NOON + step * Duration::minutes(5);
            events.offer(problems(1..2), now);
            if !send_all(&mut events, now).is_empty() {
                told_at.push(now);
            }
        }
        let pauses: Vec<Duration> = told_at.windows(2).map(|two| two[1] - two[0]).collect();
        assert_eq!(pauses, [Duration::minutes(45); 5]);
        let event = event("", &problem(1), events.told(&problem(1)).unwrap());
        let seconds = |time: Option<Time>| time.unwrap().0.as_second();
        assert_eq!(event.count, Some(6));
        assert_eq!(seconds(event.first_timestamp), NOON.unix_timestamp());
        let last = NOON + Duration::minutes(225);
        assert_eq!(seconds(event.last_timestamp), last.unix_timestamp());
    }

    #[test]
    fn a_trouble_that_comes_and_goes_is_told_once_in_each_period() {
        let mut events = Events::default();
        assert!(events.put(problem(1), NOON));
        assert!(!events.put(problem(1), NOON), "it waits already");
        assert_eq!(send_all(&mut events, NOON), [1]);
        let soon = NOON + Duration::minutes(44);
        assert!(!events.put(problem(1), soon) && !events.offer(problems(1..2), soon));
        assert!(events.put(problem(1), NOON + PERIOD));
    }

    #[test]
    fn periods_begin_with_the_pod_and_a_trouble_is_never_untold_for_an_hour() {
        let began = NOON + Duration::minutes(80);
        let mut events = Events::default();
        events.put(problem(1), began);
        send_all(&mut events, began);
        let mut told_after = Vec::new();
        for step in 1..24 {
            let now = began + step * Duration::minutes(5);
            events.offer(problems(1..2), now);
            if !send_all(&mut events, now).is_empty() {
                told_after.push((now - NOON).whole_minutes());
            }
        }
        assert_eq!(told_after, [90, 135, 180]);
    }

    #[test]
    fn what_is_over_is_forgotten_and_not_told_again() {
        let mut events = Events::default();
        events.put(problem(1), NOON);
        send_all(&mut events, NOON);
        let later = NOON + Duration::minutes(50);
        assert!(events.offer(problems(1..2), later));
        assert!(!events.offer(Vec::new(), later + Duration::minutes(5)));
        assert_eq!(send_all(&mut events, later), [0; 0]);
        assert!(events.past.is_empty() && events.waits.is_empty());
    }

    #[test]
    fn servers_give_the_event_of_a_trouble_and_a_period_one_name_and_every_other_another() {
        let of = |author: &str, problem: &PodProblem, minutes| {
            name(author, problem, NOON + Duration::minutes(minutes))
        };
        let this = of("east", &problem(1), 1);
        assert_eq!(this, of("east", &problem(1), 44));
        assert_eq!(
            this,
            of("east", &problem(1), -60),
            "before the pod, by a slow clock"
        );
        let again = PodProblem {
            uid: "u2".to_owned(),
            ..problem(1)
        };
        let failed = PodProblem {
            kind: ProblemKind::RuleFailed,
            ..problem(1)
        };
        for other in [
            of("east", &problem(1), 45),
            of("east", &again, 1),
            of("east", &failed, 1),
            of("west", &problem(1), 1),
        ] {
            assert_ne!(this, other);
        }
    }

    #[test]
    fn the_name_of_an_event_fits_whatever_the_pods_name_is() {
        let of = |pod: &str| {
            let pod = NamespacedName::new("shop", pod);
            name("east", &PodProblem { pod, ..problem(1) }, NOON)
        };
        assert!(of("web-0").starts_with("web-0."));
        let name = of(&format!("{}.{}", "a".repeat(215), "b".repeat(37)));
        assert!(name.len() <= MAX_NAME, "{name}");
        assert!(
            name.split('.')
                .all(|part| !part.is_empty() && !part.ends_with('-')),
            "{name}"
        );
    }
}
