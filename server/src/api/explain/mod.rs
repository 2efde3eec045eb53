//! `finial.server.explain.v1.Explain`: why a pod has the identities it has, or has none. For operators, on the private
//! socket. What the cluster's rules make of the pod the cluster's own task tells; what became of it is found here.

mod entries;
mod verdict;

use std::collections::BTreeMap;
use std::sync::Arc;

use finial_proto::finial::server::explain::v1 as pb;
use finial_proto::finial::server::explain::v1::explain_server::Explain;
use futures_util::future::join_all;
use time::OffsetDateTime;
use tonic::{Request, Response, Status};

use super::Services;
use super::call::Call;
use super::status::Refusal;
use crate::registry::{
    AskError, NodeReport, PodFacts, PodReport, Registry, RuleOutcome, RuleReport, SourceState,
};
use crate::store::AgentRecord;
use entries::Found;

/// Longest name of a namespace, and longest of a pod or a cluster, in bytes.
const MAX_NAMESPACE: usize = 63;
const MAX_NAME: usize = 253;
/// How much of each kind an answer has at most.
const MAX_LABELS: usize = 64;
const MAX_RULES: usize = 256;
const MAX_ENTRIES: usize = 64;
const MAX_AGENTS: usize = 16;

/// Answers the Explain service.
#[derive(Debug)]
pub struct ExplainService(Arc<Services>);

/// What a cluster said about a pod.
#[derive(Debug)]
struct Told {
    cluster: Arc<str>,
    source: SourceState,
    report: PodReport,
}

/// What came of asking several clusters.
#[derive(Debug)]
struct Answers {
    /// At least one.
    told: Vec<Told>,
    /// Those that did not answer.
    silent: Vec<Arc<str>>,
}

/// Which cluster speaks for all that were asked: the least comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    HasPod,
    /// It may yet have it.
    NotSettled,
    /// It may have it without having heard of it.
    InTrouble,
    /// It has no such pod.
    Current,
}

fn rank(told: &Told) -> Rank {
    match (&told.report.pod, told.source.is_settled, &told.source.trouble) {
        (Some(_), ..) => Rank::HasPod,
        (None, false, _) => Rank::NotSettled,
        (None, true, Some(_)) => Rank::InTrouble,
        (None, true, None) => Rank::Current,
    }
}

impl ExplainService {
    /// Looks at these parts.
    pub fn new(services: Arc<Services>) -> Self {
        Self(services)
    }

    async fn explain(&self, request: pb::ExplainPodRequest) -> Result<pb::ExplainPodResponse, Refusal> {
        check_name("namespace", &request.namespace, MAX_NAMESPACE)?;
        check_name("name", &request.name, MAX_NAME)?;
        if !request.cluster.is_empty() {
            check_name("cluster", &request.cluster, MAX_NAME)?;
        }
        let asked = self.sources(&request.cluster)?;
        let Answers { mut told, silent } = ask(&self.0.registry, asked, &request).await?;
        let having = told.iter().filter(|told| told.report.pod.is_some());
        let having: Vec<&str> = having.map(|told| &*told.cluster).collect();
        if having.len() > 1 {
            return Err(Refusal::precondition(format!(
                "several clusters have such a pod, name one: {}",
                having.join(", ")
            )));
        }
        let mut clusters: Vec<Arc<str>> = told.iter().map(|told| told.cluster.clone()).collect();
        let speaking = (0..told.len())
            .min_by_key(|at| rank(&told[*at]))
            .unwrap_or_default();
        let told = told.swap_remove(speaking);
        if rank(&told) != Rank::Current {
            clusters = vec![Arc::clone(&told.cluster)];
        }
        Ok(self.answer(&request, told, &clusters, silent))
    }

    /// The clusters to ask, of which there is at least one.
    fn sources(&self, named: &str) -> Result<BTreeMap<Arc<str>, SourceState>, Refusal> {
        let mut sources = self.0.registry.sources();
        if sources.is_empty() {
            let text = "no cluster is configured, see kubernetes.clusters";
            return Err(Refusal::not_found(text));
        }
        if !named.is_empty() {
            sources.retain(|name, _| &**name == named);
        }
        if sources.is_empty() {
            return Err(Refusal::not_found(
                AskError::Unknown(named.to_owned()).to_string(),
            ));
        }
        Ok(sources)
    }

    fn answer(
        &self,
        request: &pb::ExplainPodRequest,
        told: Told,
        clusters: &[Arc<str>],
        silent: Vec<Arc<str>>,
    ) -> pb::ExplainPodResponse {
        let services = &self.0;
        let now = services.clock.now();
        let Told {
            cluster,
            source,
            report,
        } = told;
        let parent = report.node.as_ref().and_then(|node| node.parent_id.as_ref().ok());
        let agents: Vec<Arc<AgentRecord>> = parent
            .map(|parent| services.registry.agents_below(parent, MAX_AGENTS))
            .unwrap_or_default();
        let found = match (&report.pod, parent) {
            (Some(pod), Some(parent)) => entries::find(
                &services.registry,
                pod,
                parent,
                &agents,
                (now, services.started_at),
            ),
            _ => Vec::new(),
        };
        let seen = verdict::Seen {
            request,
            clusters,
            silent: &silent,
            source: &source,
            report: &report,
            agents: &agents,
            found: &found,
            now,
        };
        let (verdict, summary) = verdict::verdict(&seen);
        let left_out =
            |count: usize, limit: usize| i32::try_from(count.saturating_sub(limit)).unwrap_or(i32::MAX);
        let agents = agents.iter().map(|agent| self.agent(agent, now)).collect();
        pb::ExplainPodResponse {
            verdict: verdict.into(),
            summary,
            watch: Some(watch(&cluster, &source, &report)),
            rules_left_out: left_out(report.rules.len(), MAX_RULES),
            rules: report.rules.iter().take(MAX_RULES).map(rule).collect(),
            node: report.node.map(|report| node(report, agents)),
            pod: report.pod.map(|facts| pod(request, facts)),
            entries_left_out: left_out(found.len(), MAX_ENTRIES),
            entries: found
                .into_iter()
                .take(MAX_ENTRIES)
                .map(Found::into_message)
                .collect(),
            // Not that of before: what was signed meanwhile is among the entries.
            now_ms: milliseconds(Some(services.clock.now())),
            started_at_ms: milliseconds(Some(services.started_at)),
            silent_clusters: silent.iter().map(|cluster| cluster.to_string()).collect(),
        }
    }

    fn agent(&self, record: &AgentRecord, now: OffsetDateTime) -> pb::Agent {
        let connection = self.0.registry.connection(&record.id);
        pb::Agent {
            spiffe_id: record.id.to_string(),
            state: verdict::agent_state(record, now).into(),
            expires_at: record.expires_at.max(record.new_expires_at),
            is_watching: connection.is_watching,
            polled_at_ms: milliseconds(connection.polled_at),
            version: record.agent_version.clone(),
        }
    }
}

#[tonic::async_trait]
impl Explain for ExplainService {
    async fn explain_pod(
        &self,
        request: Request<pb::ExplainPodRequest>,
    ) -> Result<Response<pb::ExplainPodResponse>, Status> {
        let call = Call::of(&request)?;
        let explained = self.explain(request.into_inner()).await;
        explained
            .map(Response::new)
            .map_err(|refusal| call.refuse(refusal))
    }
}

/// Asks clusters about a pod, all at once: none that is silent makes the others wait, or fails them.
///
/// # Errors
/// Why none of them answered.
async fn ask(
    registry: &Registry,
    clusters: BTreeMap<Arc<str>, SourceState>,
    request: &pb::ExplainPodRequest,
) -> Result<Answers, Refusal> {
    let (namespace, name) = (&request.namespace, &request.name);
    let asked = clusters.into_iter().map(|(cluster, source)| async move {
        let report = registry.ask(&cluster, namespace, name).await;
        (cluster, source, report)
    });
    let (mut told, mut silent, mut why) = (Vec::new(), Vec::new(), None);
    for (cluster, source, report) in join_all(asked).await {
        match report {
            Ok(report) => told.push(Told {
                cluster,
                source,
                report,
            }),
            Err(error) => {
                silent.push(cluster);
                why = why.or(Some(error));
            }
        }
    }
    match why {
        Some(error @ AskError::Unknown(_)) if told.is_empty() => Err(Refusal::not_found(error.to_string())),
        Some(error @ AskError::Silent(_)) if told.is_empty() => Err(Refusal::unavailable(error.to_string())),
        _ => Ok(Answers { told, silent }),
    }
}

fn check_name(what: &str, name: &str, longest: usize) -> Result<(), Refusal> {
    let is_printable = name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if name.is_empty() || name.len() > longest || !is_printable {
        let shown: String = name.chars().take(longest).collect();
        return Err(Refusal::invalid(format!("{what} is no name: {shown:?}")));
    }
    Ok(())
}

fn watch(cluster: &str, source: &SourceState, report: &PodReport) -> pb::Watch {
    pb::Watch {
        cluster: cluster.to_owned(),
        is_settled: source.is_settled,
        trouble: source.trouble.clone().unwrap_or_default(),
        heard_at_ms: milliseconds(report.heard_at),
        listed_at_ms: milliseconds(report.listed_at),
        pods: i64::try_from(report.pods).unwrap_or(i64::MAX),
    }
}

fn pod(request: &pb::ExplainPodRequest, facts: PodFacts) -> pb::Pod {
    let few = |labels: BTreeMap<String, String>| labels.into_iter().take(MAX_LABELS).collect();
    pb::Pod {
        namespace: request.namespace.clone(),
        name: request.name.clone(),
        uid: facts.uid,
        phase: facts.phase,
        service_account: facts.service_account,
        labels: few(facts.labels),
        namespace_labels: few(facts.namespace_labels.unwrap_or_default()),
        namespace_is_ignored: facts.is_namespace_ignored,
        is_being_deleted: facts.is_being_deleted,
        created_at_ms: milliseconds(facts.created_at),
        scheduled_at_ms: milliseconds(facts.scheduled_at),
        seen_at_ms: milliseconds(facts.seen_at),
        seen_bound_at_ms: milliseconds(facts.seen_bound_at),
        seen_changed_at_ms: milliseconds(facts.seen_changed_at),
    }
}

fn node(report: NodeReport, agents: Vec<pb::Agent>) -> pb::Node {
    let (parent_id, parent_error) = match report.parent_id {
        Ok(id) => (id.to_string(), String::new()),
        Err(text) => (String::new(), text),
    };
    pb::Node {
        name: report.name,
        is_known: report.is_known,
        parent_id,
        parent_error,
        agents,
    }
}

fn rule(report: &RuleReport) -> pb::Rule {
    use pb::RuleVerdict as Verdict;
    let mut entry = None;
    let mut difference = None;
    let (verdict, detail) = match &report.outcome {
        RuleOutcome::Matches(declared) => {
            entry = Some(declared);
            (Verdict::Matches, String::new())
        }
        RuleOutcome::Masked { entry: declared, by } => {
            entry = Some(declared);
            (Verdict::Masked, format!("the same entry is declared by {by}"))
        }
        RuleOutcome::FallbackNotUsed(rules) => (
            Verdict::FallbackNotUsed,
            format!("a fallback, and the pod has an entry by {}", rules.join(", ")),
        ),
        RuleOutcome::WaitsForNode => (Verdict::WaitsForNode, "the pod has no node yet".to_owned()),
        RuleOutcome::Broken(text) => (Verdict::Broken, text.clone()),
        RuleOutcome::NearlyMatches(found) => {
            difference = Some(pb::Difference {
                of_namespace: found.of_namespace,
                key: found.key.clone(),
                wanted: found.wanted.clone(),
                found: found.found.clone(),
            });
            (Verdict::NearlyMatches, found.to_string())
        }
        RuleOutcome::DoesNotMatch(text) => (Verdict::DoesNotMatch, text.clone()),
        RuleOutcome::OtherClass(class) => {
            let text = match class.as_str() {
                "" => "it has no class, and such rules are not acted on".to_owned(),
                class => format!("class {class:?} is not acted on"),
            };
            (Verdict::OtherClass, text)
        }
    };
    pb::Rule {
        name: report.name.to_string(),
        verdict: verdict.into(),
        detail,
        entry_id: entry.map(|entry| entry.id.clone()).unwrap_or_default(),
        spiffe_id: entry.map(|entry| entry.spiffe_id.to_string()).unwrap_or_default(),
        is_fallback: report.is_fallback,
        difference,
    }
}

fn milliseconds(at: Option<OffsetDateTime>) -> i64 {
    at.map_or(0, |at| {
        i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap_or_default()
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use finial_identity::process::Clock;
    use tokio::time::Instant;

    use super::*;
    use crate::store::testing::domain;
    use crate::store::{SqliteStore, Store};

    #[test]
    fn names_are_clamped() {
        assert!(check_name("name", "backend-5c9f.x", MAX_NAME).is_ok());
        for wrong in ["", "a/b", "a b", "ä", "a\u{7}", &"a".repeat(MAX_NAME + 1)] {
            assert!(check_name("name", wrong, MAX_NAME).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn who_may_yet_have_the_pod_speaks_before_who_has_it_not() {
        let told = |is_settled, trouble: Option<&str>| Told {
            cluster: "a".into(),
            source: SourceState {
                is_settled,
                trouble: trouble.map(str::to_owned),
                ..SourceState::default()
            },
            report: PodReport::default(),
        };
        assert_eq!(rank(&told(false, Some("timed out"))), Rank::NotSettled);
        assert_eq!(rank(&told(true, Some("timed out"))), Rank::InTrouble);
        assert_eq!(rank(&told(true, None)), Rank::Current);
        let order = [Rank::HasPod, Rank::NotSettled, Rank::InTrouble, Rank::Current];
        assert!(order.is_sorted());
    }

    #[tokio::test(start_paused = true)]
    async fn clusters_that_are_silent_take_no_answer_from_the_others_and_are_named() {
        let store: Arc<dyn Store> =
            Arc::new(SqliteStore::in_memory(&domain(), Clock::system()).await.unwrap());
        let registry = Registry::load(store, &domain(), Clock::system()).await.unwrap();
        let request = pb::ExplainPodRequest {
            namespace: "shop".to_owned(),
            name: "a".to_owned(),
            cluster: String::new(),
        };
        let of = |names: &[&str]| {
            let states = names.iter().map(|name| ((*name).into(), SourceState::default()));
            states.collect::<BTreeMap<Arc<str>, SourceState>>()
        };
        let mut questions = registry.questions("b");
        // Both take them in, and answer none.
        let _silent = (registry.questions("a"), registry.questions("c"));
        let answering = async {
            let question = questions.recv().await.unwrap();
            question.answer.send(PodReport::default()).unwrap();
        };
        let begun = Instant::now();
        let asked = ask(&registry, of(&["a", "b", "c"]), &request);
        let (answers, ()) = tokio::join!(asked, answering);
        let Answers { told, silent } = answers.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(6), "one after the other");
        let told: Vec<&str> = told.iter().map(|told| &*told.cluster).collect();
        assert_eq!((told, silent), (vec!["b"], vec!["a".into(), "c".into()]));

        let refused = ask(&registry, of(&["a", "c"]), &request).await.unwrap_err();
        assert_eq!(refused.message(), "cluster \"a\" does not answer");
    }
}
