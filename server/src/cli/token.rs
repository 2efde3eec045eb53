//! `token generate`.

use clap::{ArgMatches, Command};
use finial_identity::command::flags::{self, number, seconds, spiffe_id, text, value};
use finial_identity::command::{Console, dial, wants_json};
use finial_proto::spire::api::server::agent::v1::CreateJoinTokenRequest;
use finial_proto::spire::api::server::agent::v1::agent_client::AgentClient;

pub fn command() -> Command {
    flags::group("token", "Join tokens").subcommand(
        flags::query("generate", "Makes a join token for one agent", dial::SERVER)
            .arg(number("ttl", "Seconds until the token expires").default_value("600"))
            .arg(text(
                "spiffeID",
                "A further SPIFFE ID for the agent that uses the token",
            )),
    )
}

pub async fn generate(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let agent_id = value(matches, "spiffeID").map(spiffe_id).transpose()?;
    let missing_id = agent_id.is_none();
    let mut agents = super::client!(AgentClient, matches, console);
    let token = agents
        .create_join_token(CreateJoinTokenRequest {
            ttl: seconds(matches, "ttl")?,
            token: String::new(),
            agent_id,
        })
        .await
        .map_err(|status| dial::status("error generating token", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.types.JoinToken", &token);
    }
    console.line(format!("Token: {}", token.value))?;
    if missing_id {
        console.line("Warning: Missing SPIFFE ID.")?;
    }
    Ok(())
}
