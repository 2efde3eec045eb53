//! `finial why <namespace>/<pod>`: asks the server why a pod has the identities it has, or none.

use std::fmt::Write as _;

use anyhow::Context;
use clap::{Arg, ArgMatches, Command};
use finial_identity::command::flags::{text, value};
use finial_identity::command::{Console, dial, utc, wants_json};
use finial_proto::finial::server::explain::v1::explain_client::ExplainClient;
use finial_proto::finial::server::explain::v1::{
    Agent, AgentState, Entry, ExplainPodRequest, ExplainPodResponse, Node, Pod, Rule, RuleVerdict, Verdict,
    Watch,
};

/// Adds to the command `why` what asks a server: a pod, and its flags. They exclude `others`, the command's own ways to
/// name whom it is about.
pub fn with_pod(command: Command, others: &[&'static str]) -> Command {
    let pod = Arg::new(POD)
        .value_name("NAMESPACE/POD")
        .help(
            "A pod; -socketPath is then the server's private socket, by default that of all server commands",
        )
        .conflicts_with_all(others);
    command
        .arg(pod)
        .arg(
            text(
                "cluster",
                "The pod's cluster, when several of the server's have such a pod",
            )
            .requires(POD),
        )
        .arg(
            text(
                "instance",
                "Instance name that replaces %i in the server's socket template",
            )
            .requires(POD),
        )
}

/// Whether the command is about a pod.
pub fn is_about_pod(matches: &ArgMatches) -> bool {
    value(matches, POD).is_some()
}

/// Runs it. Gives whether the pod has an identity.
///
/// # Errors
/// One sentence for the operator.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<bool> {
    let pod = value(matches, POD).unwrap_or_default();
    let (namespace, name) = pod
        .split_once('/')
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty() && !name.contains('/'))
        .with_context(|| format!("a pod is named <namespace>/<pod>: {pod:?}"))?;
    let request = ExplainPodRequest {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        cluster: value(matches, "cluster").unwrap_or_default().to_owned(),
    };
    let channel = match dial::typed_path(matches) {
        Some(path) => dial::unix_channel(path).await?,
        None => dial::SERVER.channel_by_variables(matches, console).await?,
    };
    let mut client = ExplainClient::new(channel).max_decoding_message_size(dial::LARGEST_ANSWER);
    let answer = client.explain_pod(request).await;
    let answer = answer.map_err(|status| dial::status("could not look the pod up", &status))?;
    let answer = answer.get_ref();
    if wants_json(matches) {
        console.message("finial.server.explain.v1.ExplainPodResponse", answer)?;
    } else {
        console.raw(&explained(answer))?;
    }
    Ok(answer.verdict() == Verdict::HasIdentity)
}

const POD: &str = "pod";

fn explained(answer: &ExplainPodResponse) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "Verdict    : {}", answer.summary);
    if let Some(found) = &answer.pod {
        pod(&mut out, found);
    }
    if let Some(found) = &answer.watch {
        watch(&mut out, found, answer.now_ms);
    }
    for cluster in &answer.silent_clusters {
        let _ = writeln!(out, "Cluster    : {cluster}, which did not answer");
    }
    if let Some(found) = &answer.node {
        node(&mut out, found, answer.now_ms);
    }
    for found in &answer.rules {
        rule(&mut out, found);
    }
    left_out(&mut out, answer.rules_left_out, "rules");
    for found in &answer.entries {
        entry(&mut out, found);
    }
    left_out(&mut out, answer.entries_left_out, "entries");
    if let Some(found) = &answer.pod {
        times(&mut out, found, answer);
    }
    out
}

fn pod(out: &mut String, pod: &Pod) {
    let _ = writeln!(
        out,
        "Pod        : {}/{}, uid {}",
        pod.namespace, pod.name, pod.uid
    );
    let phase = if pod.phase.is_empty() {
        "phase unknown"
    } else {
        &pod.phase
    };
    let ending = if pod.is_being_deleted {
        ", being deleted"
    } else {
        ""
    };
    let _ = writeln!(
        out,
        "             {phase}{ending}, service account {}",
        pod.service_account
    );
    let ignored = if pod.namespace_is_ignored {
        " (rules pass over it)"
    } else {
        ""
    };
    let labels = |labels: &std::collections::BTreeMap<String, String>| {
        let pairs: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        if pairs.is_empty() {
            "none".to_owned()
        } else {
            pairs.join(", ")
        }
    };
    let _ = writeln!(out, "Labels     : {}", labels(&pod.labels));
    let _ = writeln!(out, "Namespace  : {}{ignored}", labels(&pod.namespace_labels));
}

fn watch(out: &mut String, watch: &Watch, now: i64) {
    let state = match (watch.is_settled, watch.trouble.as_str()) {
        (true, "") => "current".to_owned(),
        (true, trouble) => format!("not current: {trouble}"),
        (false, trouble) => format!("not taken in yet: {trouble}"),
    };
    let _ = writeln!(
        out,
        "Cluster    : {}, {} pods, {state}; last event about pods {}, last whole list {}",
        watch.cluster,
        watch.pods,
        age(watch.heard_at_ms, now),
        age(watch.listed_at_ms, now),
    );
}

fn node(out: &mut String, node: &Node, now: i64) {
    let unknown = if node.is_known {
        ""
    } else {
        ", which the server does not know"
    };
    let _ = writeln!(out, "Node       : {}{unknown}", node.name);
    if node.agents.is_empty() {
        let parent = if node.parent_error.is_empty() {
            format!("none is attested as {}", node.parent_id)
        } else {
            format!("none, because there is no parent ID: {}", node.parent_error)
        };
        let _ = writeln!(out, "Agent      : {parent}");
    }
    for agent in &node.agents {
        let _ = writeln!(out, "Agent      : {}", agent.spiffe_id);
        let _ = writeln!(out, "             {}, {}", state(agent), connection(agent, now));
    }
}

fn state(agent: &Agent) -> String {
    match agent.state() {
        AgentState::Unspecified => "in an unknown state".to_owned(),
        AgentState::Attested => format!("attested until {}", utc(agent.expires_at)),
        AgentState::Expired => format!("expired at {}", utc(agent.expires_at)),
        AgentState::Banned => "banned".to_owned(),
    }
}

fn connection(agent: &Agent, now: i64) -> String {
    match (agent.is_watching, agent.polled_at_ms) {
        (true, _) => "connected".to_owned(),
        (false, 0) => "not connected".to_owned(),
        (false, at) => format!("polled {}", age(at, now)),
    }
}

fn rule(out: &mut String, rule: &Rule) {
    let verdict = match rule.verdict() {
        RuleVerdict::Unspecified => "unknown",
        RuleVerdict::Matches => "matches",
        RuleVerdict::Masked => "masked",
        RuleVerdict::FallbackNotUsed => "not used",
        RuleVerdict::WaitsForNode => "waits",
        RuleVerdict::Broken => "broken",
        RuleVerdict::NearlyMatches => "nearly",
        RuleVerdict::DoesNotMatch => "no match",
        RuleVerdict::OtherClass => "other class",
    };
    let detail = match rule.verdict() {
        RuleVerdict::Matches => format!("{} (entry {})", rule.spiffe_id, rule.entry_id),
        RuleVerdict::Masked => format!("{}: {}", rule.spiffe_id, rule.detail),
        _ => rule.detail.clone(),
    };
    let _ = writeln!(out, "Rule       : {:<11} {}: {detail}", verdict, rule.name);
}

fn entry(out: &mut String, entry: &Entry) {
    let origin = if entry.origin.is_empty() {
        "stored"
    } else {
        &entry.origin
    };
    let _ = writeln!(out, "Entry      : {} ({origin})", entry.spiffe_id);
    let _ = writeln!(
        out,
        "             id {}, selectors {}",
        entry.id,
        entry.selectors.join(", ")
    );
    let mut more = Vec::new();
    if !entry.dns_names.is_empty() {
        more.push(format!("DNS names {}", entry.dns_names.join(", ")));
    }
    for (what, ttl) in [
        ("X509-SVID", entry.x509_svid_ttl),
        ("JWT-SVID", entry.jwt_svid_ttl),
    ] {
        if ttl > 0 {
            more.push(format!("{what} for {ttl} s"));
        }
    }
    if !entry.hint.is_empty() {
        more.push(format!("hint {:?}", entry.hint));
    }
    if !more.is_empty() {
        let _ = writeln!(out, "             {}", more.join("; "));
    }
    if !entry.undecided.is_empty() {
        let undecided = entry.undecided.join(", ");
        let _ = writeln!(out, "             if the agent finds {undecided}");
    }
    let agent = if entry.is_at_agent {
        "the agent has it"
    } else {
        "the agent does not have it"
    };
    let svid = match entry.svid_expires_at {
        0 => "no X509-SVID was signed for it since the server started".to_owned(),
        at => format!("X509-SVID until {}", utc(at)),
    };
    let _ = writeln!(out, "             {agent}; {svid}");
}

/// Each hop with its time, in the order of a pod's life.
fn times(out: &mut String, pod: &Pod, answer: &ExplainPodResponse) {
    let mut hop = |what: &str, at: i64| {
        if at != 0 {
            let _ = writeln!(out, "Time       : {}  {what}", instant(at));
        }
    };
    hop("pod created (cluster's clock)", pod.created_at_ms);
    hop("pod bound to its node (cluster's clock)", pod.scheduled_at_ms);
    hop("pod seen by the server", pod.seen_at_ms);
    hop("pod seen on its node", pod.seen_bound_at_ms);
    if pod.seen_changed_at_ms != pod.seen_at_ms {
        hop("pod last heard of", pod.seen_changed_at_ms);
    }
    for entry in &answer.entries {
        let path = &entry.spiffe_id;
        let derived = if entry.is_from_before {
            "entry derived when the server started"
        } else {
            "entry derived"
        };
        hop(&format!("{derived}: {path}"), entry.derived_at_ms);
        hop(&format!("entry sent to the agent: {path}"), entry.sent_at_ms);
        hop(&format!("X509-SVID signed: {path}"), entry.signed_at_ms);
    }
    hop("server started", answer.started_at_ms);
}

fn left_out(out: &mut String, count: i32, what: &str) {
    if count > 0 {
        let _ = writeln!(out, "             and {count} more {what}");
    }
}

fn age(at: i64, now: i64) -> String {
    match at {
        0 => "never".to_owned(),
        at => format!("{} s ago", (now - at).max(0) / 1000),
    }
}

/// As other times, with milliseconds.
fn instant(milliseconds: i64) -> String {
    let text = utc(milliseconds.div_euclid(1000));
    let fraction = milliseconds.rem_euclid(1000);
    match text.split_once(" +") {
        Some((time, zone)) => format!("{time}.{fraction:03} +{zone}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use finial_proto::finial::server::explain::v1::Difference;

    use super::*;

    #[test]
    fn prints_the_verdict_first_and_then_what_it_rests_on() {
        let now = 1_769_853_600_250;
        let answer = ExplainPodResponse {
            verdict: Verdict::NoRule.into(),
            summary: "no rule covers the pod".to_owned(),
            watch: Some(Watch {
                cluster: "demo".to_owned(),
                is_settled: true,
                trouble: "pods: refused".to_owned(),
                heard_at_ms: now - 3_000,
                listed_at_ms: 0,
                pods: 7,
            }),
            pod: Some(Pod {
                namespace: "shop".to_owned(),
                name: "a".to_owned(),
                uid: "u1".to_owned(),
                phase: "Running".to_owned(),
                service_account: "sa".to_owned(),
                labels: [("app".to_owned(), "web".to_owned())].into(),
                created_at_ms: 1_769_853_600_000,
                seen_at_ms: now,
                seen_changed_at_ms: now,
                ..Pod::default()
            }),
            node: Some(Node {
                name: "n1".to_owned(),
                is_known: true,
                parent_id: "spiffe://example.org/n1".to_owned(),
                ..Node::default()
            }),
            rules: vec![Rule {
                name: "backend".to_owned(),
                verdict: RuleVerdict::NearlyMatches.into(),
                detail: "label app is \"web\", wanted \"db\"".to_owned(),
                difference: Some(Difference::default()),
                ..Rule::default()
            }],
            rules_left_out: 4,
            silent_clusters: vec!["east".to_owned()],
            entries: vec![Entry {
                id: "e1".to_owned(),
                spiffe_id: "spiffe://example.org/a".to_owned(),
                selectors: vec!["unix:uid:0".to_owned()],
                undecided: vec!["unix:uid:0".to_owned()],
                x509_svid_ttl: 60,
                signed_at_ms: now,
                svid_expires_at: 1_769_853_660,
                ..Entry::default()
            }],
            now_ms: now,
            ..ExplainPodResponse::default()
        };
        let text = explained(&answer);
        assert!(
            text.starts_with("Verdict    : no rule covers the pod\n"),
            "{text}"
        );
        for part in [
            "Pod        : shop/a, uid u1\n             Running, service account sa\nLabels     : app=web\nNamespace  : none\n",
            "Cluster    : demo, 7 pods, not current: pods: refused; last event about pods 3 s ago, last whole list never\nCluster    : east, which did not answer\n",
            "Agent      : none is attested as spiffe://example.org/n1\n",
            "Rule       : nearly      backend: label app is \"web\", wanted \"db\"\n             and 4 more rules\n",
            "Entry      : spiffe://example.org/a (stored)\n",
            "X509-SVID for 60 s\n",
            "if the agent finds unix:uid:0\n",
            "the agent does not have it; X509-SVID until 2026-01-31 10:01:00 +0000 UTC\n",
            "Time       : 2026-01-31 10:00:00.250 +0000 UTC  pod seen by the server\n",
            "X509-SVID signed: spiffe://example.org/a\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        assert!(!text.contains("last heard of"), "{text}");
    }
}
