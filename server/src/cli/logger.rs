//! `logger get|set|reset`.

use clap::{ArgMatches, Command};
use finial_identity::command::flags::{self, required, text};
use finial_identity::command::{Console, dial, wants_json};
use finial_proto::spire::api::server::logger::v1::logger_client::LoggerClient;
use finial_proto::spire::api::server::logger::v1::{
    GetLoggerRequest, ResetLogLevelRequest, SetLogLevelRequest,
};
use finial_proto::spire::api::types::LogLevel;

pub fn command() -> Command {
    flags::group("logger", "The level of the server's log")
        .subcommand(flags::query("get", "Prints the level", dial::SERVER))
        .subcommand(
            flags::query("set", "Sets the level", dial::SERVER)
                .arg(text("level", "panic, fatal, error, warn, info, debug or trace")),
        )
        .subcommand(flags::query(
            "reset",
            "Sets the level back to that of the start",
            dial::SERVER,
        ))
}

pub async fn run(name: &str, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = super::client!(LoggerClient, matches, console);
    let answer = match name {
        "get" => client.get_logger(GetLoggerRequest {}).await,
        "set" => {
            let level = required(matches, "level", "a level")?;
            let number = LogLevel::from_str_name(&level.to_uppercase())
                .filter(|level| *level != LogLevel::Unspecified)
                .ok_or_else(|| anyhow::anyhow!("the value {level:?} is not a valid level"))?;
            client
                .set_log_level(SetLogLevelRequest {
                    new_level: number as i32,
                })
                .await
        }
        _ => client.reset_log_level(ResetLogLevelRequest {}).await,
    };
    let logger = answer
        .map_err(|status| dial::status("error with the logger", &status))?
        .into_inner();
    if wants_json(matches) {
        return console.message("spire.api.types.Logger", &logger);
    }
    console.line(format!(
        "Logger Level : {}",
        logger.current_level().as_str_name().to_lowercase()
    ))?;
    console.line(format!(
        "Launch Level : {}",
        logger.launch_level().as_str_name().to_lowercase()
    ))
}
