//! `registry release`, which SPIRE does not have.

use clap::{ArgMatches, Command};
use finial_identity::command::flags;
use finial_identity::command::{Console, dial, wants_json};
use finial_proto::finial::server::registry::v1::ReleaseRequest;
use finial_proto::finial::server::registry::v1::registry_client::RegistryClient;

pub fn command() -> Command {
    flags::group("registry", "What the server holds in memory of its store").subcommand(flags::query(
        "release",
        "Takes the store's content as it is, when the server holds it back because its history is another",
        dial::SERVER,
    ))
}

pub async fn release(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let answer = super::client!(RegistryClient, matches, console)
        .release(ReleaseRequest {})
        .await
        .map_err(|status| dial::status("error releasing the registry", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("finial.server.registry.v1.ReleaseResponse", &answer);
    }
    if answer.held.is_empty() {
        console.line("Nothing was held back.")?;
    } else {
        console.line(format!("Released: {}", answer.held))?;
    }
    console.line(format!("Entries : {}", answer.entries))?;
    console.line(format!("Agents  : {}", answer.agents))
}
