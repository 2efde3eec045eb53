//! Statuses of objects. One is written when it differs from what the object was seen to have, or from what was written
//! last: the watch may not have told of that yet.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use finial_identity::process::Clock;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::{Outbox, Waiting};
use crate::kubernetes::FIELD_MANAGER;
use crate::kubernetes::derive::{RuleStatus, StaticStatus};
use crate::kubernetes::federations::FederationStatus;
use crate::kubernetes::resources::{
    ClusterFederatedTrustDomain, ClusterFederatedTrustDomainStatus, ClusterSPIFFEID, ClusterSPIFFEIDStatus,
    ClusterStaticEntry, ClusterStaticEntryStatus, Condition, READY, set_ready,
};

/// The pause before an object that the API server did not take is tried again; each further failure doubles it.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// What is to be said of an object of a kind.
pub(in crate::kubernetes) trait Status: Clone + Debug + Send + Sync + 'static {
    /// The kind.
    type Object: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug;
    /// The status as objects of the kind have it.
    type Whole: Serialize + PartialEq + Clone + Debug + Send + Sync;

    /// Fields that a status may be without. A patch takes away only what it names.
    const OPTIONAL: &'static [&'static str] = &[];

    fn conditions(whole: &Self::Whole) -> &[Condition];

    /// The status of an object that had these conditions.
    fn whole(&self, before: &[Condition], now: OffsetDateTime) -> Self::Whole;
}

/// What an object was seen to have.
#[derive(Clone, Debug)]
pub(in crate::kubernetes) struct Before<S: Status> {
    /// The object's, so that another one of its name is told apart.
    pub(in crate::kubernetes) uid: String,
    pub(in crate::kubernetes) status: Option<S::Whole>,
}

/// An object's name, what is to be said of it, and what it was seen to have.
pub(in crate::kubernetes) type Said<S> = (Arc<str>, S, Before<S>);

/// The statuses of a kind's objects, by name.
#[derive(Debug)]
pub(super) struct Statuses<S: Status> {
    waiting: BTreeMap<Arc<str>, (S, Before<S>)>,
    /// The objects that have their first try. What is newer waits for its end.
    trying: HashSet<Arc<str>>,
    /// What each object was given last, by its UID.
    written: HashMap<String, S::Whole>,
    /// Those of the objects that wait whose last write failed.
    failing: HashMap<Arc<str>, Failing>,
}

/// An object whose last write failed.
#[derive(Clone, Copy, Debug)]
struct Failing {
    pause: Duration,
    again_at: Instant,
}

impl<S: Status> Default for Statuses<S> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            trying: HashSet::new(),
            written: HashMap::new(),
            failing: HashMap::new(),
        }
    }
}

impl<S: Status> Statuses<S> {
    pub(super) fn put(&mut self, name: Arc<str>, status: S, before: Before<S>) {
        self.waiting.insert(name, (status, before));
    }

    /// The statuses of all objects that there are, whether they changed or not.
    pub(super) fn put_all(&mut self, all: Vec<Said<S>>) {
        let there: HashSet<&str> = all.iter().map(|(_, _, before)| before.uid.as_str()).collect();
        self.written.retain(|uid, _| there.contains(uid.as_str()));
        for (name, status, before) in all {
            self.put(name, status, before);
        }
    }

    /// When the first object that failed is tried again.
    pub(super) fn again_at(&self) -> Option<Instant> {
        self.failing.values().map(|failing| failing.again_at).min()
    }

    /// Takes the objects that did not fail, for their first try.
    fn take_new(&mut self) -> Vec<Said<S>> {
        let is_new = |name: &Arc<str>, _: &mut (S, Before<S>)| {
            !self.failing.contains_key(name) && !self.trying.contains(name)
        };
        let taken = self.waiting.extract_if(.., is_new);
        let taken: Vec<Said<S>> = taken
            .map(|(name, (status, before))| (name, status, before))
            .collect();
        self.trying.extend(taken.iter().map(|(name, _, _)| name.clone()));
        taken
    }

    /// The first try of an object is over. Whether something newer waits.
    fn tried(&mut self, name: &str) -> bool {
        self.trying.remove(name);
        self.waiting.contains_key(name)
    }

    /// Takes the objects that failed and are due again, that which has waited longest first.
    fn take_failed(&mut self, at: Instant) -> Vec<Said<S>> {
        let due = self.failing.iter().filter(|(_, failing)| failing.again_at <= at);
        let mut due: Vec<(Instant, Arc<str>)> = due
            .map(|(name, failing)| (failing.again_at, name.clone()))
            .collect();
        due.sort_unstable();
        let taken = due.into_iter().filter_map(|(_, name)| {
            let (status, before) = self.waiting.remove(&name)?;
            Some((name, status, before))
        });
        taken.collect()
    }

    /// Keeps what was not taken for another try, unless something newer waits.
    fn failed(&mut self, (name, status, before): Said<S>, at: Instant) {
        let longer = |failing: &Failing| (failing.pause * 2).min(LONGEST_PAUSE);
        let pause = self.failing.get(&name).map_or(FIRST_PAUSE, longer);
        let failing = Failing {
            pause,
            again_at: at + pause,
        };
        self.failing.insert(name.clone(), failing);
        self.waiting.entry(name).or_insert((status, before));
    }

    /// What to write; none when the object has it already.
    fn due(&self, status: &S, before: &Before<S>, now: OffsetDateTime) -> Option<S::Whole> {
        let written = self.written.get(&before.uid);
        let seen = before.status.as_ref();
        let is_ready = |condition: &&Condition| condition.kind == READY;
        let of = |whole: Option<&S::Whole>| whole.map(S::conditions).unwrap_or_default().to_vec();
        // Others' conditions as they were seen, ours as it was written.
        let others = of(seen);
        let ours = of(written.or(seen));
        let others = others.iter().filter(|condition| !is_ready(condition));
        let base: Vec<Condition> = others.chain(ours.iter().filter(is_ready)).cloned().collect();
        let whole = status.whole(&base, now);
        let is_there = seen == Some(&whole) && written.is_none_or(|written| *written == whole);
        (!is_there).then_some(whole)
    }
}

/// Where first tries go.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) client: &'a Client,
    pub(super) clock: &'a Clock,
    /// As many as may be under way.
    pub(super) places: &'a Semaphore,
}

/// The API server did not take it.
pub(super) struct NotWritten {
    pub(super) object: String,
    pub(super) error: String,
}

impl Outbox {
    /// The first tries of what waits of a kind, but for objects that have failed or are tried already.
    pub(super) fn first_tries<'a, S: Status>(
        &'a self,
        to: Target<'a>,
        of: fn(&mut Waiting) -> &mut Statuses<S>,
    ) -> impl Iterator<Item = BoxFuture<'a, Result<(), NotWritten>>> {
        let waiting = of(&mut self.lock()).take_new();
        waiting.into_iter().map(move |said| {
            async move {
                let _place = to.places.acquire().await;
                let name = said.0.clone();
                let written = self.write_one(to.client, to.clock.now(), of, said).await;
                if of(&mut self.lock()).tried(&name) {
                    self.news.notify_one();
                }
                written
            }
            .boxed()
        })
    }

    /// Tries those objects of a kind again that failed and are due.
    pub(super) async fn write_again<S: Status>(
        &self,
        client: &Client,
        now: OffsetDateTime,
        of: fn(&mut Waiting) -> &mut Statuses<S>,
    ) {
        let waiting = of(&mut self.lock()).take_failed(Instant::now());
        for said in waiting {
            let name = said.0.clone();
            if self.write_one(client, now, of, said).await.is_ok() {
                of(&mut self.lock()).failing.remove(&name);
                // Something newer may wait.
                self.news.notify_one();
            }
        }
    }

    async fn write_one<S: Status>(
        &self,
        client: &Client,
        now: OffsetDateTime,
        of: fn(&mut Waiting) -> &mut Statuses<S>,
        (name, status, before): Said<S>,
    ) -> Result<(), NotWritten> {
        let Some(whole) = of(&mut self.lock()).due(&status, &before, now) else {
            return Ok(());
        };
        match write::<S>(client, &name, &whole).await {
            // An object without a UID is not known any more.
            Ok(true) if before.uid.is_empty() => {}
            Ok(true) => {
                of(&mut self.lock()).written.insert(before.uid, whole);
            }
            Ok(false) => {
                of(&mut self.lock()).written.remove(&before.uid);
            }
            Err(error) => {
                let object = name.to_string();
                of(&mut self.lock()).failed((name, status, before), Instant::now());
                self.failures.notify_one();
                return Err(NotWritten {
                    object,
                    error: error.to_string(),
                });
            }
        }
        Ok(())
    }
}

/// False when the object is gone.
async fn write<S: Status>(client: &Client, name: &str, whole: &S::Whole) -> kube::Result<bool> {
    let patch = patch::<S>(whole);
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    let api = Api::<S::Object>::all(client.clone());
    match api.patch_status(name, &params, &Patch::Merge(&patch)).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(false),
        Err(error) => Err(error),
    }
}

/// What makes the status of an object this one, whatever it was.
fn patch<S: Status>(whole: &S::Whole) -> Value {
    let mut patch = json!({ "status": whole });
    for name in S::OPTIONAL {
        // Null where there is none.
        let value = patch["status"][*name].take();
        patch["status"][*name] = value;
    }
    patch
}

impl Status for RuleStatus {
    type Object = ClusterSPIFFEID;
    type Whole = ClusterSPIFFEIDStatus;

    fn conditions(whole: &ClusterSPIFFEIDStatus) -> &[Condition] {
        &whole.conditions
    }

    fn whole(&self, before: &[Condition], now: OffsetDateTime) -> ClusterSPIFFEIDStatus {
        ClusterSPIFFEIDStatus {
            stats: self.stats,
            conditions: conditions(before, &self.ready, self.generation, now),
            observed_generation: self.generation,
        }
    }
}

impl Status for StaticStatus {
    type Object = ClusterStaticEntry;
    type Whole = ClusterStaticEntryStatus;

    fn conditions(whole: &ClusterStaticEntryStatus) -> &[Condition] {
        &whole.conditions
    }

    fn whole(&self, before: &[Condition], now: OffsetDateTime) -> ClusterStaticEntryStatus {
        ClusterStaticEntryStatus {
            rendered: self.is_rendered,
            masked: self.is_masked,
            set: self.is_set,
            conditions: conditions(before, &self.ready, self.generation, now),
            observed_generation: self.generation,
        }
    }
}

impl Status for FederationStatus {
    type Object = ClusterFederatedTrustDomain;
    type Whole = ClusterFederatedTrustDomainStatus;

    const OPTIONAL: &'static [&'static str] = &["lastFetchTime", "sequenceNumber"];

    fn conditions(whole: &ClusterFederatedTrustDomainStatus) -> &[Condition] {
        &whole.conditions
    }

    fn whole(&self, before: &[Condition], now: OffsetDateTime) -> ClusterFederatedTrustDomainStatus {
        let whole = |time: OffsetDateTime| time.replace_nanosecond(0).unwrap_or(time);
        ClusterFederatedTrustDomainStatus {
            last_fetch_time: self
                .refreshed_at
                .and_then(|time| whole(time).format(&Rfc3339).ok()),
            sequence_number: self.sequence_number,
            conditions: conditions(before, &self.ready, self.generation, now),
            observed_generation: self.generation,
        }
    }
}

fn conditions(
    before: &[Condition],
    ready: &Result<(), (&'static str, String)>,
    generation: Option<i64>,
    now: OffsetDateTime,
) -> Vec<Condition> {
    let ready = match ready {
        Ok(()) => Ok(()),
        Err((reason, text)) => Err((*reason, text.as_str())),
    };
    set_ready(before, ready, generation, now)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::kubernetes::resources::ClusterSPIFFEIDStats;

    const NOON: OffsetDateTime = datetime!(2030-01-01 12:00 UTC);

    fn selecting(pods: i64) -> RuleStatus {
        RuleStatus {
            stats: ClusterSPIFFEIDStats {
                pods_selected: pods,
                ..ClusterSPIFFEIDStats::default()
            },
            ready: Ok(()),
            generation: Some(1),
        }
    }

    fn seen(uid: &str, status: Option<ClusterSPIFFEIDStatus>) -> Before<RuleStatus> {
        Before {
            uid: uid.to_owned(),
            status,
        }
    }

    #[test]
    fn what_the_object_has_is_not_written_and_what_others_made_of_it_is() {
        let mut statuses = Statuses::default();
        let one = selecting(1).whole(&[], NOON);
        assert_eq!(
            statuses.due(&selecting(1), &seen("u", None), NOON),
            Some(one.clone())
        );
        statuses.written.insert("u".to_owned(), one.clone());
        assert_eq!(
            statuses.due(&selecting(1), &seen("u", Some(one.clone())), NOON),
            None
        );
        let theirs = Some(selecting(7).whole(&[], NOON));
        assert_eq!(statuses.due(&selecting(1), &seen("u", theirs), NOON), Some(one));
    }

    #[test]
    fn what_was_seen_before_the_last_write_is_no_reason_not_to_write() {
        let mut statuses = Statuses::default();
        let (one, two) = (selecting(1).whole(&[], NOON), selecting(2).whole(&[], NOON));
        // Two was written, and the watch has not told of it yet, when one is right again.
        statuses.written.insert("u".to_owned(), two);
        let before = seen("u", Some(one.clone()));
        assert_eq!(statuses.due(&selecting(1), &before, NOON), Some(one.clone()));
        let other = seen("v", Some(one));
        assert_eq!(
            statuses.due(&selecting(1), &other, NOON),
            None,
            "another object of the name"
        );
    }

    #[test]
    fn what_was_written_to_objects_that_are_gone_is_forgotten() {
        let mut statuses = Statuses::default();
        let one = selecting(1).whole(&[], NOON);
        for uid in ["u", "gone"] {
            statuses.written.insert(uid.to_owned(), one.clone());
        }
        statuses.put_all(vec![("r".into(), selecting(1), seen("u", Some(one)))]);
        assert_eq!(statuses.written.keys().collect::<Vec<_>>(), ["u"]);
        assert_eq!(statuses.waiting.len(), 1);
    }

    #[test]
    fn conditions_of_others_stay_and_the_time_of_ours_is_that_of_the_last_write() {
        let mut statuses = Statuses::default();
        let later = NOON + time::Duration::HOUR;
        let broken = RuleStatus {
            ready: Err(("Invalid", "x".to_owned())),
            ..selecting(1)
        };
        statuses.written.insert("u".to_owned(), broken.whole(&[], NOON));
        let mut stale = selecting(1).whole(&[], NOON - time::Duration::HOUR);
        stale.conditions.push(Condition {
            kind: "Theirs".to_owned(),
            ..stale.conditions[0].clone()
        });
        let due = statuses.due(&broken, &seen("u", Some(stale)), later).unwrap();
        let kinds: Vec<&str> = due
            .conditions
            .iter()
            .map(|condition| condition.kind.as_str())
            .collect();
        assert_eq!(kinds, ["Theirs", READY]);
        assert_eq!(due.conditions[1].last_transition_time, "2030-01-01T12:00:00Z");
    }

    #[test]
    fn what_a_relationship_has_no_more_is_taken_away_by_the_patch() {
        let masked = FederationStatus {
            ready: Err(("Masked", "x".to_owned())),
            refreshed_at: None,
            sequence_number: None,
            generation: Some(1),
        };
        let patch_of = |status: &FederationStatus| patch::<FederationStatus>(&status.whole(&[], NOON));
        let cleared = patch_of(&masked);
        let status = cleared["status"].as_object().unwrap();
        assert_eq!(status.get("lastFetchTime"), Some(&Value::Null));
        assert_eq!(status.get("sequenceNumber"), Some(&Value::Null));
        assert_eq!(status["conditions"][0]["reason"], "Masked");
        let fetched = patch_of(&FederationStatus {
            refreshed_at: Some(NOON),
            sequence_number: Some(7),
            ..masked
        });
        assert_eq!(fetched["status"]["lastFetchTime"], "2030-01-01T12:00:00Z");
        assert_eq!(fetched["status"]["sequenceNumber"], 7);
    }
}
