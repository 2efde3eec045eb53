//! The verdict on a pod, and the sentence that says it. Pure.

use std::sync::Arc;

use finial_identity::command::utc;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::finial::server::explain::v1::{AgentState, ExplainPodRequest, Verdict};
use time::OffsetDateTime;

use super::entries::Found;
use crate::registry::{PodReport, RuleOutcome, SourceState};
use crate::store::AgentRecord;

/// All that a verdict rests on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen<'a> {
    pub(super) request: &'a ExplainPodRequest,
    /// Those that answered.
    pub(super) clusters: &'a [Arc<str>],
    /// Those that did not, and may have such a pod too.
    pub(super) silent: &'a [Arc<str>],
    pub(super) source: &'a SourceState,
    pub(super) report: &'a PodReport,
    pub(super) agents: &'a [Arc<AgentRecord>],
    pub(super) found: &'a [Found],
    pub(super) now: OffsetDateTime,
}

/// The verdict and its sentence, which names the clusters that nothing is known of.
pub(super) fn verdict(seen: &Seen<'_>) -> (Verdict, String) {
    let (mut verdict, mut summary) = of_those_that_answered(seen);
    if !seen.silent.is_empty() {
        if verdict == Verdict::UnknownPod {
            verdict = Verdict::NotSettled; // One of the silent ones may have it.
        }
        let silent = seen.silent.join(", ");
        summary.push_str(&format!("; clusters that did not answer: {silent}"));
    }
    (verdict, summary)
}

fn of_those_that_answered(seen: &Seen<'_>) -> (Verdict, String) {
    let Seen { source, report, .. } = seen;
    let trouble = source.trouble.as_deref().unwrap_or("it waits for the API server");
    let clusters = seen.clusters.join(", ");
    if report.pod.is_none() {
        let ExplainPodRequest { namespace, name, .. } = seen.request;
        return match (source.is_settled, &source.trouble) {
            (false, _) => (
                Verdict::NotSettled,
                format!("the server has not taken in the objects of {clusters} yet: {trouble}"),
            ),
            (true, None) => (
                Verdict::UnknownPod,
                format!("there is no pod {namespace}/{name} in {clusters}"),
            ),
            (true, Some(trouble)) => (
                Verdict::UnknownPod,
                format!(
                    "the server knows no pod {namespace}/{name} in {clusters}, and its watch is not current: {trouble}"
                ),
            ),
        };
    }
    if !source.is_settled {
        return (
            Verdict::NotSettled,
            format!("the server has not taken in the objects of {clusters} yet: {trouble}"),
        );
    }
    let own: Vec<&Found> = seen
        .found
        .iter()
        .filter(|found| found.undecided.is_empty())
        .collect();
    match own.first() {
        Some(first) => with_entry(seen, &own, first),
        None => without_entry(seen),
    }
}

/// Where an entry is the pod's: how far it came.
fn with_entry(seen: &Seen<'_>, own: &[&Found], first: &Found) -> (Verdict, String) {
    let now = seen.now;
    let id = &first.entry.spiffe_id;
    let node = seen.report.node.as_ref();
    let node_name = node.map_or("", |node| &node.name);
    let Some(agent) = seen.agents.first() else {
        let expected = node.and_then(|node| node.parent_id.as_ref().ok());
        let expected = expected.map(SpiffeId::to_string).unwrap_or_default();
        return (
            Verdict::NoAgent,
            format!(
                "there is an entry for {id}, and no agent is attested for node {node_name} as {expected}"
            ),
        );
    };
    let agent_id = &agent.id;
    let states = seen.agents.iter().map(|agent| agent_state(agent, now));
    if let Some(state) = states
        .clone()
        .next()
        .filter(|_| !states.clone().any(|state| state == AgentState::Attested))
    {
        return match state {
            AgentState::Banned => (
                Verdict::AgentBanned,
                format!(
                    "there is an entry for {id}, and the agent of node {node_name} is banned: {agent_id}"
                ),
            ),
            _ => (
                Verdict::AgentExpired,
                format!(
                    "there is an entry for {id}, and the SVID of the agent of node {node_name} ended at {}: {agent_id}",
                    utc(agent.expires_at)
                ),
            ),
        };
    }
    let more = match own.len() - 1 {
        0 => String::new(),
        more => format!(" (and {more} more)"),
    };
    let at_agent = |is_fine: &dyn Fn(&Found) -> bool| {
        own.iter()
            .find(|found| found.is_at_agent && is_fine(found))
            .map(|found| &found.entry.spiffe_id)
    };
    if let Some(found) = own.iter().find(|found| found.is_at_agent && found.has_svid(now)) {
        let until = utc(found.hop.svid_expires_at);
        return (
            Verdict::HasIdentity,
            format!(
                "the pod has {}{more}, X509-SVID until {until}",
                found.entry.spiffe_id
            ),
        );
    }
    if let Some(id) = at_agent(&|found| found.may_be_signed && found.hop.signed_at.is_none()) {
        return (
            Verdict::HasIdentity,
            format!("the pod has {id}{more}; its X509-SVID is from before this server started"),
        );
    }
    if let Some(id) = at_agent(&|_| true) {
        return (
            Verdict::WaitingForSvid,
            format!(
                "the agent has the entry for {id}{more}, and no X509-SVID that is valid was signed for it"
            ),
        );
    }
    (
        Verdict::WaitingForAgent,
        format!(
            "there is an entry for {id}{more}, and the agent of node {node_name} does not have it yet: {agent_id}"
        ),
    )
}

/// Where no entry is the pod's: why.
fn without_entry(seen: &Seen<'_>) -> (Verdict, String) {
    let rules = &seen.report.rules;
    let ExplainPodRequest { namespace, .. } = seen.request;
    let broken = rules.iter().find_map(|rule| match &rule.outcome {
        RuleOutcome::Broken(text) => Some((&rule.name, text)),
        _ => None,
    });
    if let Some((rule, text)) = broken {
        return (
            Verdict::RuleBroken,
            format!("ClusterSPIFFEID {rule} covers the pod, and no entry can be made: {text}"),
        );
    }
    let waiting = rules
        .iter()
        .find(|rule| rule.outcome == RuleOutcome::WaitsForNode);
    if let Some(rule) = waiting {
        return (
            Verdict::NotBound,
            format!(
                "ClusterSPIFFEID {} covers the pod, which is not bound to a node yet",
                rule.name
            ),
        );
    }
    let is_ignored = seen
        .report
        .pod
        .as_ref()
        .is_some_and(|pod| pod.is_namespace_ignored);
    let covering = rules
        .iter()
        .find(|rule| matches!(rule.outcome, RuleOutcome::Matches(_) | RuleOutcome::Masked { .. }));
    let why = if is_ignored {
        format!("rules pass over namespace {namespace}")
    } else if let Some(rule) = covering {
        format!("ClusterSPIFFEID {} covers the pod", rule.name)
    } else {
        let near = rules.iter().find_map(|rule| match &rule.outcome {
            RuleOutcome::NearlyMatches(difference) => Some(format!(
                "; ClusterSPIFFEID {} nearly does: {difference}",
                rule.name
            )),
            _ => None,
        });
        format!("no rule covers the pod{}", near.unwrap_or_default())
    };
    match (seen.found.len(), is_ignored) {
        (0, true) => (Verdict::NamespaceIgnored, why),
        (0, false) => (Verdict::NoRule, why),
        (count, _) => (
            Verdict::DecidedByAgent,
            format!(
                "{why}; the agent of its node decides about {count} entries by facts that the server does not have"
            ),
        ),
    }
}

/// How an agent stands.
pub(super) fn agent_state(agent: &AgentRecord, now: OffsetDateTime) -> AgentState {
    if agent.is_banned() {
        AgentState::Banned
    } else if agent.expires_at.max(agent.new_expires_at) <= now.unix_timestamp() {
        AgentState::Expired
    } else {
        AgentState::Attested
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{Hop, LabelDifference, NodeReport, PodFacts, RuleReport};
    use crate::store::testing::{entry, id};

    const AGENT: &str = "/spire/agent/k8s_psat/demo/n1";
    const NOW: i64 = 1_000_000;

    fn agent(serial: &str, expires_at: i64) -> Arc<AgentRecord> {
        Arc::new(AgentRecord {
            id: id(AGENT),
            attestation_type: "k8s_psat".to_owned(),
            serial: serial.to_owned(),
            expires_at,
            new_serial: String::new(),
            new_expires_at: 0,
            can_reattest: true,
            selectors: Vec::new(),
            agent_version: String::new(),
        })
    }

    fn found() -> Found {
        Found {
            entry: Arc::new(entry("k8s.demo.1", "/backend", AGENT, &["k8s:pod-uid:1"])),
            origin: "ClusterSPIFFEID r".to_owned(),
            undecided: Vec::new(),
            is_at_agent: false,
            may_be_signed: false,
            hop: Hop::default(),
        }
    }

    fn signed(until: i64) -> Hop {
        Hop {
            signed_at: OffsetDateTime::from_unix_timestamp(NOW - 9).ok(),
            svid_expires_at: until,
            ..Hop::default()
        }
    }

    struct World {
        silent: Vec<Arc<str>>,
        source: SourceState,
        report: PodReport,
        agents: Vec<Arc<AgentRecord>>,
        found: Vec<Found>,
    }

    /// A bound pod on a node with an agent, and nothing else.
    fn world() -> World {
        World {
            silent: Vec::new(),
            source: SourceState {
                is_settled: true,
                ..SourceState::default()
            },
            report: PodReport {
                pod: Some(PodFacts::default()),
                node: Some(NodeReport {
                    name: "n1".to_owned(),
                    is_known: true,
                    parent_id: Ok(id(AGENT)),
                }),
                ..PodReport::default()
            },
            agents: vec![agent("1", NOW + 100)],
            found: Vec::new(),
        }
    }

    fn rule(name: &str, outcome: RuleOutcome) -> RuleReport {
        RuleReport {
            name: name.into(),
            is_fallback: false,
            outcome,
        }
    }

    fn of(world: &World) -> (Verdict, String) {
        verdict(&Seen {
            request: &ExplainPodRequest {
                namespace: "shop".to_owned(),
                name: "a".to_owned(),
                cluster: String::new(),
            },
            clusters: &["demo".into()],
            silent: &world.silent,
            source: &world.source,
            report: &world.report,
            agents: &world.agents,
            found: &world.found,
            now: OffsetDateTime::from_unix_timestamp(NOW).unwrap(),
        })
    }

    fn check(change: impl FnOnce(&mut World), expected: Verdict, part: &str) {
        let mut world = world();
        change(&mut world);
        let (verdict, text) = of(&world);
        assert_eq!(verdict, expected, "{text}");
        assert!(text.contains(part), "{text}");
    }

    #[test]
    fn how_far_an_entry_came_decides() {
        check(
            |world| {
                world.found.push(found());
                world.agents.clear();
            },
            Verdict::NoAgent,
            "no agent is attested for node n1 as spiffe://example.test/spire/agent/k8s_psat/demo/n1",
        );
        check(
            |world| world.found.push(found()),
            Verdict::WaitingForAgent,
            "does not have it yet",
        );
        let at_agent = |hop: Hop, may_be_signed: bool| Found {
            is_at_agent: true,
            may_be_signed,
            hop,
            ..found()
        };
        check(
            |world| world.found.push(at_agent(Hop::default(), false)),
            Verdict::WaitingForSvid,
            "/backend",
        );
        check(
            |world| world.found.push(at_agent(Hop::default(), true)),
            Verdict::HasIdentity,
            "from before this server started",
        );
        check(
            |world| world.found.push(at_agent(signed(NOW + 5), false)),
            Verdict::HasIdentity,
            "X509-SVID until 1970-01-12",
        );
        check(
            |world| world.found.push(at_agent(signed(NOW), false)),
            Verdict::WaitingForSvid,
            "no X509-SVID that is valid",
        );
        check(
            |world| {
                world.found = vec![found(), at_agent(signed(NOW + 5), false)];
            },
            Verdict::HasIdentity,
            "(and 1 more)",
        );
    }

    #[test]
    fn an_agent_that_may_not_serve_is_named() {
        for (record, expected, part) in [
            (agent("", NOW + 100), Verdict::AgentBanned, "is banned"),
            (agent("1", NOW - 1), Verdict::AgentExpired, "ended at"),
        ] {
            check(
                |world| {
                    world.found.push(found());
                    world.agents = vec![record];
                },
                expected,
                part,
            );
        }
    }

    #[test]
    fn without_an_entry_the_nearest_reason_is_told() {
        let difference = LabelDifference {
            of_namespace: false,
            key: "app".to_owned(),
            wanted: "\"backend\"".to_owned(),
            found: Some("frontend".to_owned()),
        };
        check(|_| {}, Verdict::NoRule, "no rule covers the pod");
        check(
            |world| {
                world.report.rules = vec![rule("backend", RuleOutcome::NearlyMatches(difference.clone()))];
            },
            Verdict::NoRule,
            "ClusterSPIFFEID backend nearly does: label app is \"frontend\", wanted \"backend\"",
        );
        check(
            |world| {
                world.report.rules = vec![
                    rule("backend", RuleOutcome::NearlyMatches(difference.clone())),
                    rule("other", RuleOutcome::Broken("spec.x: y".to_owned())),
                ];
            },
            Verdict::RuleBroken,
            "ClusterSPIFFEID other covers the pod, and no entry can be made: spec.x: y",
        );
        check(
            |world| {
                world.report.rules = vec![rule("backend", RuleOutcome::WaitsForNode)];
                world.report.node = None;
            },
            Verdict::NotBound,
            "not bound",
        );
        check(
            |world| {
                world.report.pod = Some(PodFacts {
                    is_namespace_ignored: true,
                    ..PodFacts::default()
                })
            },
            Verdict::NamespaceIgnored,
            "shop",
        );
        check(
            |world| {
                world.found.push(Found {
                    undecided: vec!["unix:uid:0".to_owned()],
                    ..found()
                });
            },
            Verdict::DecidedByAgent,
            "no rule covers the pod; the agent of its node decides about 1 entries",
        );
        check(
            |world| {
                let mine = Found {
                    undecided: vec!["k8s:container-name:app".to_owned()],
                    is_at_agent: true,
                    hop: signed(NOW + 5),
                    ..found()
                };
                world.report.rules = vec![rule("backend", RuleOutcome::Matches(Arc::clone(&mine.entry)))];
                world.found.push(mine);
            },
            Verdict::DecidedByAgent,
            "ClusterSPIFFEID backend covers the pod; the agent of its node decides about 1 entries",
        );
    }

    #[test]
    fn clusters_that_did_not_answer_are_named_whatever_the_others_say() {
        let silent: Vec<Arc<str>> = vec!["east".into(), "west".into()];
        check(
            |world| {
                world.report.pod = None;
                world.silent.clone_from(&silent);
            },
            Verdict::NotSettled,
            "no pod shop/a in demo; clusters that did not answer: east, west",
        );
        check(
            |world| world.silent.clone_from(&silent),
            Verdict::NoRule,
            "no rule covers the pod; clusters that did not answer: east, west",
        );
    }

    #[test]
    fn a_pod_that_is_not_known_may_be_the_watchs_fault() {
        check(
            |world| world.report.pod = None,
            Verdict::UnknownPod,
            "no pod shop/a in demo",
        );
        check(
            |world| {
                world.report.pod = None;
                world.source.trouble = Some("pods: refused".to_owned());
            },
            Verdict::UnknownPod,
            "not current: pods: refused",
        );
        check(
            |world| {
                world.source.is_settled = false;
                world.source.trouble = Some("waits for the first list of pods".to_owned());
            },
            Verdict::NotSettled,
            "waits for the first list",
        );
    }
}
