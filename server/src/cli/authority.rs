//! `localauthority x509|jwt show|prepare|activate|taint|revoke`.

use clap::{ArgMatches, Command};
use finial_identity::command::flags::{self, required, text};
use finial_identity::command::{Console, dial, utc, wants_json};
use finial_proto::spire::api::server::localauthority::v1 as api;
use finial_proto::spire::api::server::localauthority::v1::AuthorityState;
use finial_proto::spire::api::server::localauthority::v1::local_authority_client::LocalAuthorityClient;
use prost::Message;

const PACKAGE: &str = "spire.api.server.localauthority.v1";

pub fn command() -> Command {
    let kind = |name, about| {
        let with_id = |name, about| {
            flags::query(name, about, dial::SERVER).arg(text("authorityID", "The authority to act on"))
        };
        flags::group(name, about)
            .subcommand(flags::query("show", "Prints the authorities", dial::SERVER))
            .subcommand(flags::query(
                "prepare",
                "Makes a new authority and publishes it",
                dial::SERVER,
            ))
            .subcommand(with_id("activate", "Lets the prepared authority sign"))
            .subcommand(with_id(
                "taint",
                "Marks an old authority as not to be trusted soon",
            ))
            .subcommand(with_id("revoke", "Removes a tainted authority from the bundle"))
    };
    flags::group("localauthority", "The server's own authorities")
        .subcommand(kind("x509", "X.509 authorities"))
        .subcommand(kind("jwt", "JWT authorities"))
}

pub async fn run(
    kind: &str,
    name: &str,
    matches: &ArgMatches,
    console: &mut Console<'_>,
) -> anyhow::Result<()> {
    let x509 = kind == "x509";
    if name == "show" {
        return show(x509, matches, console).await;
    }
    let authority_id = match name {
        "prepare" => String::new(),
        _ => required(matches, "authorityID", "an authority ID")?.to_owned(),
    };
    let mut client = super::client!(LocalAuthorityClient, matches, console);
    let failed = |status: tonic::Status| dial::status(&format!("could not {name} {kind} authority"), &status);
    // Each call has a message of its own with one state inside.
    macro_rules! call {
        ($method:ident, $request:expr, $field:ident, $name:literal) => {{
            let answer = client.$method($request).await.map_err(failed)?.into_inner();
            (answer.encode_to_vec(), answer.$field, $name)
        }};
    }
    let (encoded, state, message) = match (x509, name) {
        (true, "prepare") => {
            call!(
                prepare_x509_authority,
                api::PrepareX509AuthorityRequest {},
                prepared_authority,
                "PrepareX509AuthorityResponse"
            )
        }
        (true, "activate") => {
            let request = api::ActivateX509AuthorityRequest { authority_id };
            call!(
                activate_x509_authority,
                request,
                activated_authority,
                "ActivateX509AuthorityResponse"
            )
        }
        (true, "taint") => {
            let request = api::TaintX509AuthorityRequest { authority_id };
            call!(
                taint_x509_authority,
                request,
                tainted_authority,
                "TaintX509AuthorityResponse"
            )
        }
        (true, _) => {
            let request = api::RevokeX509AuthorityRequest { authority_id };
            call!(
                revoke_x509_authority,
                request,
                revoked_authority,
                "RevokeX509AuthorityResponse"
            )
        }
        (false, "prepare") => {
            call!(
                prepare_jwt_authority,
                api::PrepareJwtAuthorityRequest {},
                prepared_authority,
                "PrepareJWTAuthorityResponse"
            )
        }
        (false, "activate") => {
            let request = api::ActivateJwtAuthorityRequest { authority_id };
            call!(
                activate_jwt_authority,
                request,
                activated_authority,
                "ActivateJWTAuthorityResponse"
            )
        }
        (false, "taint") => {
            let request = api::TaintJwtAuthorityRequest { authority_id };
            call!(
                taint_jwt_authority,
                request,
                tainted_authority,
                "TaintJWTAuthorityResponse"
            )
        }
        (false, _) => {
            let request = api::RevokeJwtAuthorityRequest { authority_id };
            call!(
                revoke_jwt_authority,
                request,
                revoked_authority,
                "RevokeJWTAuthorityResponse"
            )
        }
    };
    if wants_json(matches) {
        let value = finial_identity::json::render(&format!("{PACKAGE}.{message}"), &encoded)?;
        return console.json(&value);
    }
    let participle = match name {
        "prepare" => "Prepared",
        "activate" => "Activated",
        "taint" => "Tainted",
        _ => "Revoked",
    };
    let kind = if x509 { "X.509" } else { "JWT" };
    console.line(format!("{participle} {kind} authority:"))?;
    print_state(console, state.as_ref(), false)
}

async fn show(x509: bool, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(LocalAuthorityClient, matches, console);
    let failed = |status: tonic::Status| dial::status("could not get the authorities", &status);
    let (encoded, active, prepared, old, message) = if x509 {
        let answer = client
            .get_x509_authority_state(api::GetX509AuthorityStateRequest {})
            .await
            .map_err(failed)?;
        let answer = answer.into_inner();
        (
            answer.encode_to_vec(),
            answer.active,
            answer.prepared,
            answer.old,
            "GetX509AuthorityStateResponse",
        )
    } else {
        let answer = client
            .get_jwt_authority_state(api::GetJwtAuthorityStateRequest {})
            .await
            .map_err(failed)?;
        let answer = answer.into_inner();
        (
            answer.encode_to_vec(),
            answer.active,
            answer.prepared,
            answer.old,
            "GetJWTAuthorityStateResponse",
        )
    };
    if wants_json(matches) {
        let value = finial_identity::json::render(&format!("{PACKAGE}.{message}"), &encoded)?;
        return console.json(&value);
    }
    let kind = if x509 { "X.509" } else { "JWT" };
    for (heading, state) in [("Active", active), ("Prepared", prepared), ("Old", old)] {
        console.line(format!("{heading} {kind} authority:"))?;
        print_state(console, state.as_ref(), x509)?;
        if heading != "Old" {
            console.line("")?;
        }
    }
    Ok(())
}

fn print_state(
    console: &mut Console<'_>,
    state: Option<&AuthorityState>,
    upstream: bool,
) -> anyhow::Result<()> {
    let Some(state) = state else {
        return console.line("  No such authority found");
    };
    console.line(format!("  Authority ID: {}", state.authority_id))?;
    if state.expires_at != 0 {
        console.line(format!("  Expires at: {}", utc(state.expires_at)))?;
    }
    if upstream {
        let key_id = match state.upstream_authority_subject_key_id.as_str() {
            "" => "No upstream authority",
            id => id,
        };
        console.line(format!("  Upstream authority Subject Key ID: {key_id}"))?;
    }
    Ok(())
}
