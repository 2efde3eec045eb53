//! Writes to the cluster: changed statuses of objects, and Events on pods with problems.
//! A newer write replaces a waiting one; a failed write is tried again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use finial_identity::process::{Clock, Stop};
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;
use tokio::time::sleep;
use uuid::Uuid;

use super::FIELD_MANAGER;
use super::derive::{PodProblem, ProblemKind, RuleStatus, StaticStatus};
use super::federations::FederationStatus;
use super::resources::{
    ClusterFederatedTrustDomain, ClusterFederatedTrustDomainStatus, ClusterSPIFFEID, ClusterSPIFFEIDStatus,
    ClusterStaticEntry, ClusterStaticEntryStatus, Condition, set_ready,
};

/// How long changes are collected before they are written.
const COLLECT: Duration = Duration::from_secs(1);
/// The longest pause before what the API server did not take is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// How many Events may wait; further ones are left out.
const MAX_EVENTS: usize = 256;
/// How many Events are sent in a round.
const EVENTS_PER_ROUND: usize = 5;
/// For how long the same Event is not sent again.
const SILENCE: time::Duration = time::Duration::minutes(30);
/// How many Events are remembered for that.
const REMEMBERED: usize = 16_384;

/// What waits to be written.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    waiting: Mutex<Waiting>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    rules: BTreeMap<Arc<str>, (RuleStatus, Option<ClusterSPIFFEIDStatus>)>,
    statics: BTreeMap<Arc<str>, (StaticStatus, Option<ClusterStaticEntryStatus>)>,
    federations: BTreeMap<Arc<str>, (FederationStatus, Option<ClusterFederatedTrustDomainStatus>)>,
    problems: VecDeque<PodProblem>,
}

impl Outbox {
    pub(super) fn put_rule(&self, name: Arc<str>, status: RuleStatus, before: Option<ClusterSPIFFEIDStatus>) {
        self.lock().rules.insert(name, (status, before));
        self.news.notify_one();
    }

    pub(super) fn put_static(
        &self,
        name: Arc<str>,
        status: StaticStatus,
        before: Option<ClusterStaticEntryStatus>,
    ) {
        self.lock().statics.insert(name, (status, before));
        self.news.notify_one();
    }

    pub(super) fn put_federation(
        &self,
        name: Arc<str>,
        status: FederationStatus,
        before: Option<ClusterFederatedTrustDomainStatus>,
    ) {
        self.lock().federations.insert(name, (status, before));
        self.news.notify_one();
    }

    pub(super) fn put_problem(&self, problem: PodProblem) {
        let mut waiting = self.lock();
        if waiting.problems.len() < MAX_EVENTS {
            waiting.problems.push_back(problem);
            self.news.notify_one();
        }
    }

    /// Writes what waits, until `stop`.
    pub(super) async fn run(
        self: Arc<Self>,
        client: Client,
        clock: Clock,
        stop: Stop,
    ) -> Result<(), Infallible> {
        let mut told: HashMap<(String, ProblemKind), OffsetDateTime> = HashMap::new();
        let mut pause = COLLECT;
        loop {
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = self.news.notified() => {}
            }
            tokio::select! {
                () = stop.stopped() => return Ok(()),
                () = sleep(pause) => {}
            }
            let written = tokio::select! {
                () = stop.stopped() => return Ok(()),
                written = self.write(&client, clock.now(), &mut told) => written,
            };
            let was_well = pause == COLLECT;
            pause = match written {
                Ok(()) => COLLECT,
                Err(_) => (pause * 2).min(LONGEST_PAUSE),
            };
            match written {
                Err(NotWritten { object, error }) if was_well => {
                    tracing::warn!(object, error, "failed to write the status of an object");
                }
                Ok(()) if !was_well => tracing::info!("statuses of objects are written again"),
                _ => {}
            }
        }
    }

    async fn write(
        &self,
        client: &Client,
        now: OffsetDateTime,
        told: &mut HashMap<(String, ProblemKind), OffsetDateTime>,
    ) -> Result<(), NotWritten> {
        let mut outcome = Ok(());
        let (rules, statics, federations) = {
            let mut waiting = self.lock();
            (
                std::mem::take(&mut waiting.rules),
                std::mem::take(&mut waiting.statics),
                std::mem::take(&mut waiting.federations),
            )
        };
        for (name, (status, before)) in rules {
            let whole = rule_status(&status, before.as_ref(), now);
            let written = write_status::<ClusterSPIFFEID, _>(client, &name, &whole, before.as_ref());
            if let Err(error) = written.await {
                outcome = Err(error);
                self.lock().rules.entry(name).or_insert((status, before));
                self.news.notify_one();
            }
        }
        for (name, (status, before)) in statics {
            let whole = static_status(&status, before.as_ref(), now);
            let written = write_status::<ClusterStaticEntry, _>(client, &name, &whole, before.as_ref());
            if let Err(error) = written.await {
                outcome = Err(error);
                self.lock().statics.entry(name).or_insert((status, before));
                self.news.notify_one();
            }
        }
        for (name, (status, before)) in federations {
            let whole = federation_status(&status, before.as_ref(), now);
            let written =
                write_status::<ClusterFederatedTrustDomain, _>(client, &name, &whole, before.as_ref());
            if let Err(error) = written.await {
                outcome = Err(error);
                self.lock().federations.entry(name).or_insert((status, before));
                self.news.notify_one();
            }
        }
        self.send_events(client, now, told).await;
        outcome
    }

    /// Sends a few Events. One that fails is left out: the statuses say the same.
    async fn send_events(
        &self,
        client: &Client,
        now: OffsetDateTime,
        told: &mut HashMap<(String, ProblemKind), OffsetDateTime>,
    ) {
        told.retain(|_, at| now - *at < SILENCE);
        for _ in 0..EVENTS_PER_ROUND {
            let Some(problem) = self.lock().problems.pop_front() else {
                return;
            };
            let key = (problem.uid.clone(), problem.kind);
            if told.contains_key(&key) || told.len() >= REMEMBERED {
                continue;
            }
            let api = Api::<Event>::namespaced(client.clone(), &problem.pod.namespace);
            match api.create(&PostParams::default(), &event(&problem, now)).await {
                Ok(_) => {
                    told.insert(key, now);
                }
                Err(error) => tracing::debug!(pod = %problem.pod, %error, "failed to send an event"),
            }
        }
        if !self.lock().problems.is_empty() {
            self.news.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The API server did not take it.
struct NotWritten {
    object: String,
    error: String,
}

async fn write_status<K, S>(
    client: &Client,
    name: &str,
    status: &S,
    before: Option<&S>,
) -> Result<(), NotWritten>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize + PartialEq,
{
    if before == Some(status) {
        return Ok(());
    }
    let patch = serde_json::json!({ "status": status });
    let params = PatchParams {
        field_manager: Some(FIELD_MANAGER.to_owned()),
        ..PatchParams::default()
    };
    match Api::<K>::all(client.clone())
        .patch_status(name, &params, &Patch::Merge(&patch))
        .await
    {
        Ok(_) => Ok(()),
        // The object is gone.
        Err(kube::Error::Api(answer)) if answer.code == 404 => Ok(()),
        Err(error) => Err(NotWritten {
            object: name.to_owned(),
            error: error.to_string(),
        }),
    }
}

fn rule_status(
    status: &RuleStatus,
    before: Option<&ClusterSPIFFEIDStatus>,
    now: OffsetDateTime,
) -> ClusterSPIFFEIDStatus {
    let old = before
        .map(|before| before.conditions.as_slice())
        .unwrap_or_default();
    ClusterSPIFFEIDStatus {
        stats: status.stats,
        conditions: conditions(old, &status.ready, status.generation, now),
        observed_generation: status.generation,
    }
}

fn static_status(
    status: &StaticStatus,
    before: Option<&ClusterStaticEntryStatus>,
    now: OffsetDateTime,
) -> ClusterStaticEntryStatus {
    let old = before
        .map(|before| before.conditions.as_slice())
        .unwrap_or_default();
    ClusterStaticEntryStatus {
        rendered: status.is_rendered,
        masked: status.is_masked,
        set: status.is_set,
        conditions: conditions(old, &status.ready, status.generation, now),
        observed_generation: status.generation,
    }
}

fn federation_status(
    status: &FederationStatus,
    before: Option<&ClusterFederatedTrustDomainStatus>,
    now: OffsetDateTime,
) -> ClusterFederatedTrustDomainStatus {
    let old = before
        .map(|before| before.conditions.as_slice())
        .unwrap_or_default();
    let whole = |time: OffsetDateTime| time.replace_nanosecond(0).unwrap_or(time);
    ClusterFederatedTrustDomainStatus {
        last_fetch_time: status
            .refreshed_at
            .and_then(|time| whole(time).format(&Rfc3339).ok()),
        sequence_number: status.sequence_number,
        conditions: conditions(old, &status.ready, status.generation, now),
        observed_generation: status.generation,
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

fn event(problem: &PodProblem, now: OffsetDateTime) -> Event {
    let at = Timestamp::from_second(now.unix_timestamp()).ok().map(Time);
    let reason = match problem.kind {
        ProblemKind::NoRule => "NoIdentityRule",
        ProblemKind::RuleFailed => "IdentityRuleFailed",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{}", problem.pod.name, Uuid::new_v4())),
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
