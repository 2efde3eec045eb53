//! `api validate jwt`.

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{required, text};
use finial_identity::command::{Console, wants_json};
use finial_identity::json;
use finial_proto::workload::ValidateJwtsvidRequest;

use super::workload;

pub fn command() -> Command {
    workload::flags(Command::new("jwt").about("Validates a JWT-SVID"))
        .arg(text("audience", "The audience that the token must be for"))
        .arg(text("svid", "The token"))
}

pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let audience = required(matches, "audience", "an audience")?.to_owned();
    let svid = required(matches, "svid", "a JWT-SVID")?.to_owned();
    let mut client = workload::client(matches, console).await?;
    let call = client.validate_jwtsvid(workload::timed_request(
        matches,
        ValidateJwtsvidRequest { audience, svid },
    )?);
    let answer = workload::within(matches, "SVID is not valid", call)
        .await?
        .into_inner();
    let value = json::render_message("ValidateJWTSVIDResponse", &answer)?;
    if wants_json(matches) {
        return console.json(&value);
    }
    let claims = value.get("claims").context("the agent sent no claims")?;
    console.line("SVID is valid.")?;
    console.line(format!("SPIFFE ID : {}", answer.spiffe_id))?;
    console.line(format!("Claims    : {claims}"))
}
