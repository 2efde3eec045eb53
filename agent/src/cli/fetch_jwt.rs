//! `api fetch jwt`.

use clap::{ArgMatches, Command};
use finial_identity::command::flags::{text, value, values};
use finial_identity::command::{Console, wants_json};
use finial_identity::json;
use finial_proto::workload::{JwtBundlesRequest, JwtsvidRequest};

use super::workload;

pub fn command() -> Command {
    workload::flags(Command::new("jwt").about("Fetches JWT-SVIDs"))
        .arg(finial_identity::command::flags::list(
            "audience",
            "Comma-separated audiences",
        ))
        .arg(text("spiffeID", "Only the token of this identity"))
        .arg(text("format", "Old name of -output").value_parser(["pretty", "json"]))
}

pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let audience: Vec<String> = values(matches, "audience")
        .into_iter()
        .flat_map(|list| list.split(','))
        .filter(|audience| !audience.is_empty())
        .map(str::to_owned)
        .collect();
    anyhow::ensure!(!audience.is_empty(), "audience must be specified: -audience");
    let spiffe_id = value(matches, "spiffeID").unwrap_or_default().to_owned();

    let mut client = workload::client(matches, console).await?;
    let open = client.fetch_jwt_bundles(workload::timed_request(matches, JwtBundlesRequest {})?);
    let bundles = workload::first(matches, "unable to fetch JWT bundles", open).await?;
    let call = client.fetch_jwtsvid(workload::timed_request(
        matches,
        JwtsvidRequest { audience, spiffe_id },
    )?);
    let svids = workload::within(matches, "unable to fetch JWT SVID", call)
        .await?
        .into_inner();

    if wants_json(matches) || value(matches, "format") == Some("json") {
        let both = serde_json::Value::Array(vec![
            json::render_message("JWTSVIDResponse", &svids)?,
            json::render_message("JWTBundlesResponse", &bundles)?,
        ]);
        return console.json(&both);
    }
    for svid in &svids.svids {
        console.line(format!("token({}):\n\t{}", svid.spiffe_id, svid.svid))?;
        if !svid.hint.is_empty() {
            console.line(format!("hint({}):\n\t{}", svid.spiffe_id, svid.hint))?;
        }
    }
    for (domain, bundle) in &bundles.bundles {
        console.line(format!(
            "bundle({domain}):\n\t{}",
            String::from_utf8_lossy(bundle)
        ))?;
    }
    Ok(())
}
