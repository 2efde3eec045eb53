//! `healthcheck` and `debug getinfo`.

use clap::{ArgMatches, Command};
use finial_identity::command::flags::{self, is_set, switch};
use finial_identity::command::{Console, dial, wants_json};
use finial_proto::grpc::health::v1::HealthCheckRequest;
use finial_proto::grpc::health::v1::health_check_response::ServingStatus;
use finial_proto::grpc::health::v1::health_client::HealthClient;
use finial_proto::spire::api::server::debug::v1::GetInfoRequest;
use finial_proto::spire::api::server::debug::v1::debug_client::DebugClient;

pub fn healthcheck() -> Command {
    flags::local("healthcheck", "Tells whether the server is healthy", dial::SERVER)
        .arg(switch("shallow", "Accepted for compatibility, without effect"))
        .arg(switch("verbose", "Says what is done"))
}

pub fn debug() -> Command {
    flags::group("debug", "A look at the running server").subcommand(flags::query(
        "getinfo",
        "Uptime and counts of the running server",
        dial::SERVER,
    ))
}

pub async fn check(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    if is_set(matches, "verbose") {
        console.line("Checking server health...")?;
    }
    let mut health = super::client!(HealthClient, matches, console);
    let answer = health
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .map_err(|status| dial::status("server is unhealthy", &status))?
        .into_inner();
    anyhow::ensure!(
        answer.status == ServingStatus::Serving as i32,
        "server returned status {:?}",
        answer.status().as_str_name()
    );
    console.line("Server is healthy.")
}

pub async fn info(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut debug = super::client!(DebugClient, matches, console);
    let info = debug
        .get_info(GetInfoRequest {})
        .await
        .map_err(|status| dial::status("error getting server info", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.server.debug.v1.GetInfoResponse", &info);
    }
    console.line(format!("Uptime (seconds):        {}", info.uptime))?;
    console.line(format!("Agents:                  {}", info.agents_count))?;
    console.line(format!("Entries:                 {}", info.entries_count))?;
    console.line(format!(
        "Federated bundles:       {}",
        info.federated_bundles_count
    ))
}
