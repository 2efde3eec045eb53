//! `healthcheck`.

use clap::{ArgMatches, Command};
use finial_identity::command::flags::{is_set, local, switch};
use finial_identity::command::{Console, dial};
use finial_proto::grpc::health::v1::HealthCheckRequest;
use finial_proto::grpc::health::v1::health_check_response::ServingStatus;
use finial_proto::grpc::health::v1::health_client::HealthClient;

pub fn command() -> Command {
    local("healthcheck", "Tells whether the agent is healthy", dial::AGENT)
        .arg(switch("shallow", "Accepted for compatibility, without effect"))
        .arg(switch("verbose", "Says what is done"))
}

pub async fn check(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    if is_set(matches, "verbose") {
        console.line("Checking agent health...")?;
    }
    let mut health = HealthClient::new(dial::AGENT.channel(matches, console).await?);
    let answer = health
        .check(HealthCheckRequest {
            service: String::new(),
        })
        .await
        .map_err(|status| dial::status("agent is unhealthy", &status))?
        .into_inner();
    anyhow::ensure!(
        answer.status == ServingStatus::Serving as i32,
        "agent returned status {:?}",
        answer.status().as_str_name()
    );
    console.line("Agent is healthy.")
}
