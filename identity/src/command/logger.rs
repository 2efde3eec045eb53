//! `logger get|set|reset`, which server and agent have alike.

use clap::{ArgMatches, Command};
use finial_proto::spire::api::types::{LogLevel, Logger};

use super::dial::Socket;
use super::flags::{self, required, text};
use super::{Console, wants_json};

/// What one of the commands asks of the program's Logger service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// Tell the levels.
    Get,
    /// Set this level.
    Set(LogLevel),
    /// Set the level of the start.
    Reset,
}

/// The group of commands, over `socket`.
pub fn command(about: &'static str, socket: Socket) -> Command {
    flags::group("logger", about)
        .subcommand(flags::query("get", "Prints the level", socket))
        .subcommand(
            flags::query("set", "Sets the level", socket)
                .arg(text("level", "panic, fatal, error, warn, info, debug or trace")),
        )
        .subcommand(flags::query(
            "reset",
            "Sets the level back to that of the start",
            socket,
        ))
}

/// What the command `name` of [`command`] asks.
///
/// # Errors
/// The level is missing or none.
pub fn wish(name: &str, matches: &ArgMatches) -> anyhow::Result<Wish> {
    Ok(match name {
        "get" => Wish::Get,
        "set" => {
            let level = required(matches, "level", "a level")?;
            let number = LogLevel::from_str_name(&level.to_uppercase())
                .filter(|level| *level != LogLevel::Unspecified)
                .ok_or_else(|| anyhow::anyhow!("the value {level:?} is not a valid level"))?;
            Wish::Set(number)
        }
        _ => Wish::Reset,
    })
}

/// Prints the answer.
///
/// # Errors
/// Standard output is closed.
pub fn print(logger: &Logger, matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    if wants_json(matches) {
        return console.message("spire.api.types.Logger", logger);
    }
    let name = |level: LogLevel| level.as_str_name().to_lowercase();
    console.line(format!("Logger Level : {}", name(logger.current_level())))?;
    console.line(format!("Launch Level : {}", name(logger.launch_level())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::dial::{AGENT_ADMIN, SERVER};

    fn wished(arguments: &[&str]) -> anyhow::Result<Wish> {
        let matches = command("", AGENT_ADMIN).try_get_matches_from(arguments)?;
        let (name, matches) = matches.subcommand().unwrap();
        wish(name, matches)
    }

    #[test]
    fn a_level_is_taken_in_any_case_and_must_be_one() {
        let set = |level| wished(&["logger", "set", "--level", level]);
        assert_eq!(set("Debug").unwrap(), Wish::Set(LogLevel::Debug));
        assert!(set("loud").is_err() && set("unspecified").is_err());
        assert!(wished(&["logger", "set"]).is_err());
        assert_eq!(wished(&["logger", "get"]).unwrap(), Wish::Get);
        assert_eq!(wished(&["logger", "reset"]).unwrap(), Wish::Reset);
    }

    #[test]
    fn a_socket_that_no_variable_names_has_no_instances() {
        let with_instance = |socket| {
            let arguments = ["logger", "get", "--instance", "a"];
            command("", socket).try_get_matches_from(arguments).is_ok()
        };
        assert!(with_instance(SERVER) && !with_instance(AGENT_ADMIN));
    }
}
