//! `debug getinfo`, over the admin socket.

use clap::{ArgMatches, Command};
use finial_identity::command::{Console, dial, flags, utc, wants_json};
use finial_identity::wire;
use finial_proto::spire::agent::debug::v1::GetInfoRequest;
use finial_proto::spire::agent::debug::v1::debug_client::DebugClient;

pub fn command() -> Command {
    flags::group("debug", "A look at the running agent").subcommand(flags::query(
        "getinfo",
        "Identity, uptime and counts of the running agent",
        dial::AGENT_ADMIN,
    ))
}

pub async fn info(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut debug = DebugClient::new(dial::AGENT_ADMIN.channel(matches, console).await?);
    let info = debug
        .get_info(GetInfoRequest {})
        .await
        .map_err(|status| dial::status("error getting agent info", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.agent.debug.v1.GetInfoResponse", &info);
    }
    if let Some(leaf) = info.svid_chain.first() {
        let id = wire::spiffe_id_from_wire(leaf.id.as_ref());
        let id = id.map_or_else(|_| "unknown".to_owned(), |id| id.to_string());
        console.line(format!("SPIFFE ID:               {id}"))?;
        console.line(format!("SVID expires at:         {}", utc(leaf.expires_at)))?;
    }
    console.line(format!("Uptime (seconds):        {}", info.uptime))?;
    let synced = match info.last_sync_success {
        0 => "never".to_owned(),
        at => utc(at),
    };
    console.line(format!("Last sync:               {synced}"))?;
    console.line(format!(
        "X509-SVIDs:              {}",
        info.cached_x509_svids_count
    ))?;
    console.line(format!(
        "JWT-SVIDs:               {}",
        info.cached_jwt_svids_count
    ))
}
