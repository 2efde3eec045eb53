//! `logger get|set|reset`, over the admin socket.

use clap::{ArgMatches, Command};
use finial_identity::command::logger::{self, Wish};
use finial_identity::command::{Console, dial};
use finial_proto::spire::api::agent::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::agent::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};

pub fn command() -> Command {
    logger::command("The level of the agent's log", dial::AGENT_ADMIN)
}

pub async fn run(name: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let wish = logger::wish(name, matches)?;
    let mut client = LoggerClient::new(dial::AGENT_ADMIN.channel(matches, console).await?);
    let answer = match wish {
        Wish::Get => client.get_logger(GetLoggerRequest {}).await,
        Wish::Set(level) => {
            let new_level = level.into();
            client.set_log_level(SetLogLevelRequest { new_level }).await
        }
        Wish::Reset => client.reset_log_level(ResetLogLevelRequest {}).await,
    };
    let answer = answer.map_err(|status| dial::status("error with the logger", &status))?;
    logger::print(answer.get_ref(), matches, console)
}
