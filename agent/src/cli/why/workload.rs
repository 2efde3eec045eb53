//! `finial why` of a workload that has only the Workload API: about itself, and no more than any caller is told. Facts
//! and entries stay with the operator, who finds them by the code that a refused caller gets.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Context;
use clap::ArgMatches;
use finial_identity::command::dial::{self, Channel};
use finial_identity::command::{Console, utc, wants_json, workload_api};
use finial_identity::x509::Certificate;
use finial_proto::workload::{X509svid, X509svidRequest};
use serde_json::json;
use tonic::{Code, Request, Status};

use crate::cli::workload::first_message;

/// Longer than an agent waits for an SVID before it answers that there is none yet.
const PATIENCE: Duration = Duration::from_secs(15);

/// Asks for the caller's own X509-SVIDs. Gives whether it has any.
///
/// # Errors
/// When the agent does not answer, or cannot tell.
pub async fn ask(channel: Channel, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<bool> {
    let mut client = workload_api::client(channel);
    let mut request = Request::new(X509svidRequest {});
    request.set_timeout(PATIENCE);
    let answer = first_message(client.fetch_x509svid(request));
    let answer = tokio::time::timeout(PATIENCE, answer)
        .await
        .map_err(|_elapsed| anyhow::anyhow!("{ASK}: no answer within {PATIENCE:?}"))?;
    match answer {
        Ok(answer) => {
            print_identities(&answer.svids, matches, console)?;
            Ok(!answer.svids.is_empty())
        }
        Err(status) if status.code() == Code::PermissionDenied => {
            print_refusal(&status, matches, console)?;
            Ok(false)
        }
        Err(status) => Err(dial::status(ASK, &status)),
    }
}

const ASK: &str = "could not ask the workload API for the identities of this process";
const ASKED: &str = "Asked      : the Workload API; facts and entries are told on the admin socket only";

fn print_identities(
    svids: &[X509svid],
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    if wants_json(matches) {
        let ids: Vec<&str> = svids.iter().map(|svid| svid.spiffe_id.as_str()).collect();
        return console.json(&json!({"verdict": "HAS_IDENTITY", "spiffe_ids": ids}));
    }
    let mut text = format!("{ASKED}\n");
    for svid in svids {
        let chain = Certificate::parse_many(&svid.x509_svid).context("the agent sent a malformed SVID")?;
        let until = chain.first().map_or_else(String::new, |leaf| {
            format!(", X509-SVID until {}", utc(leaf.not_after().unix_timestamp()))
        });
        let _ = writeln!(text, "SPIFFE ID  : {}{until}", svid.spiffe_id);
    }
    text.push_str("Verdict    : has an identity\n");
    console.raw(&text)
}

fn print_refusal(status: &Status, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let reference = dial::reference(status);
    if wants_json(matches) {
        return console.json(&json!({
            "verdict": "NO_IDENTITY",
            "status": status.message(),
            "reference": reference,
        }));
    }
    console.raw(&refusal(status.message(), reference))
}

fn refusal(message: &str, reference: Option<&str>) -> String {
    let mut text = format!("{ASKED}\n");
    match reference {
        Some(code) => {
            let _ = writeln!(text, "Reference  : {code}");
            let _ = writeln!(
                text,
                "             give this code to the operator of the agent, whom it tells why:\n             \
                 finial why -socketPath <admin_socket_path> -reference {code}"
            );
        }
        None => text.push_str("Reference  : none, this agent gives no codes; ask its operator\n"),
    }
    let _ = writeln!(text, "Verdict    : {message}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_workload_gets_its_code_and_what_to_do_with_it() {
        let text = refusal("no identity issued", Some("k3v9x2aq"));
        assert!(text.contains("\nReference  : k3v9x2aq\n"), "{text}");
        assert!(
            text.contains("finial why -socketPath <admin_socket_path> -reference k3v9x2aq\n"),
            "{text}"
        );
        assert!(text.ends_with("\nVerdict    : no identity issued\n"), "{text}");
    }

    #[test]
    fn an_agent_without_codes_leaves_the_operator_to_ask() {
        let text = refusal("no identity issued", None);
        assert!(text.contains("Reference  : none"), "{text}");
        assert!(!text.contains("-reference"), "{text}");
    }
}
