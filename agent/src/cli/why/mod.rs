//! `finial why` at the agent: about a process (`-pid`) or a pod (`-podUID`) as it is now, or about a refusal
//! (`-reference`), by the admin socket; about the caller alone by the Workload API's (`workload`). About
//! `<namespace>/<pod>` the server is asked, by a command of its own.

mod workload;

use std::fmt::Write as _;

use clap::{ArgMatches, Command};
use finial_identity::command::dial::{self, Channel};
use finial_identity::command::flags::{query, text, value};
use finial_identity::command::{Console, utc, wants_json};
use finial_proto::finial::agent::explain::v1::explain_client::ExplainClient;
use finial_proto::finial::agent::explain::v1::{
    Attestor, ExplainProcessRequest, ExplainProcessResponse, ExplainRefusalRequest, ExplainRefusalResponse,
    Match, NearMiss, Pod, Process, State, Verdict,
};
use tonic::{Code, Status};

/// `finial why`
pub fn command() -> Command {
    query(
        "why",
        "Tells why a process has the identities it has, or has none",
        dial::AGENT_ADMIN,
    )
    .arg(text("pid", "The process; the one that asks when it is left out"))
    .arg(
        text(
            "podUID",
            "The UID of a pod, as whoever calls on its own socket is known",
        )
        .conflicts_with("pid")
        .conflicts_with("reference"),
    )
    .arg(
        text(
            "reference",
            "The code that a refused caller was told (trailer finial-reference)",
        )
        .conflicts_with("pid"),
    )
}

/// Runs it. Gives whether the process or the pod has an identity; with `-reference` always true, for the refusal was
/// found.
///
/// # Errors
/// One sentence for the operator.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<bool> {
    match reach(matches, console).await? {
        Reached::Socket(channel) if value(matches, "reference").is_some() => {
            look_up(channel, matches, console).await
        }
        Reached::Socket(channel) => examine(channel, matches, console).await,
        Reached::WorkloadApi(channel) => workload::ask(channel, matches, console).await,
    }
}

/// Who answers.
enum Reached {
    /// The socket that was named, whichever it is, or the admin socket.
    Socket(Channel),
    /// The Workload API, as no socket was named and the admin socket is not there for this user.
    WorkloadApi(Channel),
}

async fn reach(matches: &ArgMatches, console: &Console<'_>) -> anyhow::Result<Reached> {
    if let Some(path) = dial::typed_path(matches) {
        return dial::unix_channel(path).await.map(Reached::Socket);
    }
    match dial::AGENT_ADMIN.channel(matches, console).await {
        Ok(channel) => Ok(Reached::Socket(channel)),
        Err(no_admin) if is_about_the_caller(matches) => {
            let public = dial::AGENT.channel_by_variables(matches, console).await;
            public
                .map(Reached::WorkloadApi)
                .map_err(|error| anyhow::anyhow!("{no_admin:#}; nor does the workload API answer: {error:#}"))
        }
        Err(error) => Err(error),
    }
}

fn is_about_the_caller(matches: &ArgMatches) -> bool {
    ["pid", "podUID", "reference"]
        .into_iter()
        .all(|flag| value(matches, flag).is_none())
}

/// The error for a call that failed. On a socket without that service it says that this is not the admin socket.
fn failed(what: &str, status: &Status) -> anyhow::Error {
    if status.code() == Code::Unimplemented {
        return anyhow::anyhow!(
            "{what}: only the agent's admin socket (admin_socket_path) tells about others, and this is another socket"
        );
    }
    dial::status(what, status)
}

/// The refusal with a code.
async fn look_up(channel: Channel, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<bool> {
    let request = ExplainRefusalRequest {
        reference: value(matches, "reference").unwrap_or_default().to_owned(),
    };
    let answer = ExplainClient::new(channel).explain_refusal(request).await;
    let answer = answer.map_err(|status| failed("could not look the refusal up", &status))?;
    if wants_json(matches) {
        console.message("finial.agent.explain.v1.ExplainRefusalResponse", answer.get_ref())?;
    } else {
        console.raw(&refusal(answer.get_ref()))?;
    }
    Ok(true)
}

/// A process or a pod as it is now.
async fn examine(channel: Channel, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<bool> {
    let pid = match value(matches, "pid") {
        None => 0,
        Some(text) => text
            .parse()
            .ok()
            .filter(|pid| *pid > 0)
            .ok_or_else(|| anyhow::anyhow!("-pid is no process id: {text:?}"))?,
    };
    let pod_uid = value(matches, "podUID").unwrap_or_default().to_owned();
    let what = if pod_uid.is_empty() { "process" } else { "pod" };
    let answer = ExplainClient::new(channel.clone())
        .explain_process(ExplainProcessRequest { pid, pod_uid })
        .await;
    let answer = match answer {
        Ok(answer) => answer.into_inner(),
        // It is the Workload API's socket.
        Err(status) if status.code() == Code::Unimplemented && is_about_the_caller(matches) => {
            return workload::ask(channel, matches, console).await;
        }
        Err(status) => return Err(failed(&format!("could not look into the {what}"), &status)),
    };
    if wants_json(matches) {
        console.message("finial.agent.explain.v1.ExplainProcessResponse", &answer)?;
    } else {
        console.raw(&process(&answer))?;
    }
    Ok(has_identity(&answer))
}

/// Either by itself or by its pod's socket.
fn has_identity(answer: &ExplainProcessResponse) -> bool {
    let of_pod = answer.pod.as_ref().map(Pod::verdict);
    [Some(answer.verdict()), of_pod].contains(&Some(Verdict::HasIdentity))
}

fn process(answer: &ExplainProcessResponse) -> String {
    let mut text = String::new();
    head(&mut text, answer.process.as_ref());
    let state = answer.state.as_ref();
    for attestor in &answer.attestors {
        facts(&mut text, attestor);
    }
    entries(&mut text, &answer.matches, &answer.near_misses);
    agent(&mut text, state);
    if answer.process.is_some() {
        let _ = writeln!(text, "Verdict    : {}", sentence(answer.verdict(), state));
    }
    if let Some(found) = &answer.pod {
        pod(&mut text, found, state);
    }
    text
}

/// A pod, apart from the process that is in it: on the pod's own socket it is known by that alone.
fn pod(text: &mut String, pod: &Pod, state: Option<&State>) {
    let Pod {
        uid,
        namespace,
        name,
        service_account,
        ..
    } = pod;
    let _ = writeln!(
        text,
        "Pod        : {namespace}/{name}, service account {service_account}, {uid}"
    );
    let _ = writeln!(
        text,
        "             whoever calls on the socket of its CSI volume:"
    );
    if let Some(attestor) = &pod.attestor {
        facts(text, attestor);
    }
    entries(text, &pod.matches, &pod.near_misses);
    let _ = writeln!(text, "Verdict    : {}", sentence(pod.verdict(), state));
}

fn facts(text: &mut String, attestor: &Attestor) {
    let took = milliseconds(attestor.took_microseconds);
    if attestor.error.is_empty() {
        let _ = writeln!(text, "Attestor {} ({took}):", attestor.name);
        list(text, &attestor.selectors, "no facts of this kind hold");
    } else {
        let _ = writeln!(
            text,
            "Attestor {} ({took}): cannot tell: {}",
            attestor.name, attestor.error
        );
    }
}

fn refusal(answer: &ExplainRefusalResponse) -> String {
    let mut text = String::new();
    head(&mut text, answer.process.as_ref());
    let _ = writeln!(text, "Refused    : {}, {}", utc(answer.refused_at), answer.method);
    let _ = writeln!(text, "Was told   : {}", answer.status);
    let _ = writeln!(text, "Facts then :");
    list(&mut text, &answer.selectors, "none were found");
    entries(&mut text, &answer.matches, &answer.near_misses);
    let state = answer.state.as_ref();
    agent(&mut text, state);
    let _ = writeln!(text, "Verdict    : {}", sentence(answer.verdict(), state));
    text
}

fn head(text: &mut String, process: Option<&Process>) {
    let Some(process) = process else { return };
    let since = match process.started_at {
        0 => String::new(),
        at => format!(", started {}", utc(at)),
    };
    let _ = writeln!(text, "Process    : {}{since}", process.pid);
}

fn entries(text: &mut String, matches: &[Match], near_misses: &[NearMiss]) {
    for found in matches {
        let svid = match (found.store_svid, found.x509_svid_expires_at) {
            (true, _) => "goes to an SVID store, never to a workload".to_owned(),
            (false, 0) => "its X509-SVID is not issued yet".to_owned(),
            (false, at) => format!("X509-SVID until {}", utc(at)),
        };
        let _ = writeln!(
            text,
            "Matches    : {} (entry {}), {svid}",
            found.spiffe_id, found.entry_id
        );
    }
    for miss in near_misses {
        let _ = writeln!(text, "Nearly     : {} (entry {})", miss.spiffe_id, miss.entry_id);
        for difference in &miss.differences {
            let found = match difference.found.as_slice() {
                [] => "nothing of the kind".to_owned(),
                found => found.join(", "),
            };
            let _ = writeln!(text, "             wants {}, has {found}", difference.wanted);
        }
    }
}

fn agent(text: &mut String, state: Option<&State>) {
    let Some(state) = state else { return };
    let _ = writeln!(text, "Agent      : {}, {} entries", state.agent, state.entries);
    if !state.agent_id.is_empty() {
        let _ = writeln!(text, "             {}", state.agent_id);
    }
    let synced = match state.synced_at {
        0 => "not since the agent started".to_owned(),
        at => format!("{} s ago", (state.now - at).max(0)),
    };
    let _ = writeln!(text, "Last sync  : {synced}");
}

fn sentence(verdict: Verdict, state: Option<&State>) -> String {
    match verdict {
        Verdict::Unspecified => "unknown".to_owned(),
        Verdict::HasIdentity => "has an identity".to_owned(),
        Verdict::WaitingForSvid => {
            "an entry matches; its SVID is being signed, or the server cannot be reached".to_owned()
        }
        Verdict::NoEntryMatches => "no entry matches these facts".to_owned(),
        Verdict::AgentHasNoEntries => {
            let id = state.map_or("", |state| state.agent_id.as_str());
            format!("the server has no entries below this agent: use {id} as the parent, or an alias that it matches")
        }
        Verdict::NotSynced => "the agent has not heard from the server since it started".to_owned(),
        Verdict::AttestationFailed => {
            "an attestor could not tell, and with fewer facts no identity is given; it is tried again with each call"
                .to_owned()
        }
        Verdict::AgentBanned => "the server banned this agent".to_owned(),
    }
}

fn list(text: &mut String, selectors: &[String], none: &str) {
    for selector in selectors {
        let _ = writeln!(text, "             {selector}");
    }
    if selectors.is_empty() {
        let _ = writeln!(text, "             ({none})");
    }
}

/// Microseconds as milliseconds with two digits.
fn milliseconds(microseconds: i64) -> String {
    format!("{}.{:02} ms", microseconds / 1000, microseconds % 1000 / 10)
}

#[cfg(test)]
mod tests {
    use finial_proto::finial::agent::explain::v1::Difference;

    use super::*;

    #[test]
    fn prints_facts_the_selector_that_differs_and_the_verdict() {
        let answer = ExplainProcessResponse {
            process: Some(Process {
                pid: 7,
                started_at: 1_769_853_600,
            }),
            attestors: vec![
                Attestor {
                    name: "unix".to_owned(),
                    took_microseconds: 1234,
                    selectors: vec!["unix:uid:0".to_owned()],
                    error: String::new(),
                },
                Attestor {
                    name: "docker".to_owned(),
                    took_microseconds: 5,
                    selectors: Vec::new(),
                    error: "no answer within 5 s".to_owned(),
                },
            ],
            matches: Vec::new(),
            near_misses: vec![NearMiss {
                entry_id: "e1".to_owned(),
                spiffe_id: "spiffe://example.org/web".to_owned(),
                matched: Vec::new(),
                differences: vec![Difference {
                    wanted: "unix:uid:1000".to_owned(),
                    found: vec!["unix:uid:0".to_owned()],
                }],
            }],
            state: Some(State {
                agent: "serving".to_owned(),
                agent_id: "spiffe://example.org/spire/agent/a".to_owned(),
                entries: 1,
                synced_at: 100,
                now: 103,
            }),
            verdict: Verdict::AttestationFailed.into(),
            pod: Some(Pod {
                uid: "0a1b".to_owned(),
                namespace: "shop".to_owned(),
                name: "web-0".to_owned(),
                service_account: "web".to_owned(),
                verdict: Verdict::HasIdentity.into(),
                ..Pod::default()
            }),
        };
        assert!(has_identity(&answer), "its pod has one");
        let text = process(&answer);
        for part in [
            "Process    : 7, started 2026-01-31",
            "Attestor unix (1.23 ms):\n             unix:uid:0\n",
            "Attestor docker (0.00 ms): cannot tell: no answer within 5 s",
            "wants unix:uid:1000, has unix:uid:0",
            "Agent      : serving, 1 entries",
            "Last sync  : 3 s ago",
            "Verdict    : an attestor could not tell",
            "Pod        : shop/web-0, service account web, 0a1b\n",
            "whoever calls on the socket of its CSI volume:\nVerdict    : has an identity\n",
        ] {
            assert!(text.contains(part), "{part} in\n{text}");
        }
        let about_pod = ExplainProcessResponse {
            pod: answer.pod,
            state: answer.state,
            ..ExplainProcessResponse::default()
        };
        assert!(has_identity(&about_pod));
        let without = ExplainProcessResponse {
            verdict: Verdict::WaitingForSvid.into(),
            ..ExplainProcessResponse::default()
        };
        assert!(!has_identity(&without));
        let text = process(&about_pod);
        assert_eq!(text.matches("Verdict").count(), 1, "{text}");
        assert!(text.starts_with("Agent      : serving"), "{text}");
    }
}
