//! Flags in SPIRE's spelling, as Go programs take them.

use clap::builder::{BoolishValueParser, NonEmptyStringValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use finial_proto::spire::api::types;

use super::dial::Socket;
use crate::selector::{MatchBehavior, Selector};
use crate::spiffe_id::SpiffeId;
use crate::wire;

/// A command that only has subcommands.
pub fn group(name: &'static str, about: &'static str) -> Command {
    Command::new(name)
        .about(about)
        .subcommand_required(true)
        .arg_required_else_help(false)
}

/// A command that talks to a running program: with the flags that name its socket.
pub fn local(name: &'static str, about: &'static str, socket: Socket) -> Command {
    let command = Command::new(name)
        .about(about)
        .arg(text("socketPath", "Path of the program's Unix socket").default_value(socket.default));
    if socket.variables.is_none() {
        return command;
    }
    command.arg(text(
        "instance",
        "Instance name that replaces %i in the socket template",
    ))
}

/// A [`local`] command that can print its answer as JSON.
pub fn query(name: &'static str, about: &'static str, socket: Socket) -> Command {
    local(name, about, socket).arg(
        text("output", "Form of what is printed")
            .value_parser(["pretty", "json"])
            .default_value("pretty"),
    )
}

/// A flag with a text value.
pub fn text(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .num_args(1)
        .allow_hyphen_values(true)
        .overrides_with(name)
}

/// A flag with a text value that may be given many times.
pub fn list(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .num_args(1)
        .allow_hyphen_values(true)
        .action(ArgAction::Append)
        .value_parser(NonEmptyStringValueParser::new())
}

/// A boolean: no value, or `=true` or `=false`.
pub fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .overrides_with(name)
        .value_parser(BoolishValueParser::new())
}

/// A whole number of seconds or alike.
pub fn number(name: &'static str, help: &'static str) -> Arg {
    text(name, help).value_parser(clap::value_parser!(i64))
}

/// The value of a text flag, when it was given and is not empty.
pub fn value<'a>(matches: &'a ArgMatches, name: &str) -> Option<&'a str> {
    matches
        .get_one::<String>(name)
        .map(String::as_str)
        .filter(|value| !value.is_empty())
}

/// The value of a flag that must be given.
pub fn required<'a>(matches: &'a ArgMatches, name: &str, what: &str) -> anyhow::Result<&'a str> {
    value(matches, name).ok_or_else(|| anyhow::anyhow!("{what} is required: -{name}"))
}

/// All values of a repeated flag.
pub fn values<'a>(matches: &'a ArgMatches, name: &str) -> Vec<&'a str> {
    matches
        .get_many::<String>(name)
        .into_iter()
        .flatten()
        .map(String::as_str)
        .collect()
}

/// A switch; false when it was not given.
pub fn is_set(matches: &ArgMatches, name: &str) -> bool {
    matches.get_one::<bool>(name).copied().unwrap_or(false)
}

/// A switch that distinguishes absence.
pub fn tristate(matches: &ArgMatches, name: &str) -> Option<bool> {
    matches.get_one::<bool>(name).copied()
}

/// A number as a 32-bit count of seconds; 0 when it was not given.
pub fn seconds(matches: &ArgMatches, name: &str) -> anyhow::Result<i32> {
    let value = matches.get_one::<i64>(name).copied().unwrap_or(0);
    let value = i32::try_from(value).map_err(|_| anyhow::anyhow!("-{name} is out of range: {value}"))?;
    anyhow::ensure!(value >= 0, "-{name} must not be negative: {value}");
    Ok(value)
}

/// A SPIFFE ID as the API carries it.
pub fn spiffe_id(text: &str) -> anyhow::Result<types::Spiffeid> {
    let id = SpiffeId::parse(text).map_err(|error| anyhow::anyhow!("invalid SPIFFE ID {text:?}: {error}"))?;
    Ok(wire::spiffe_id_to_wire(&id))
}

/// Selectors written `type:value`.
pub fn selectors(texts: &[&str]) -> anyhow::Result<Vec<types::Selector>> {
    texts
        .iter()
        .map(|text| {
            let selector = Selector::parse(text)
                .map_err(|error| anyhow::anyhow!("invalid selector {text:?}: {error}"))?;
            Ok(types::Selector {
                r#type: selector.kind().to_owned(),
                value: selector.value().to_owned(),
            })
        })
        .collect()
}

/// The number of a match behaviour, by the name that the flags use.
pub fn match_behavior(matches: &ArgMatches, name: &str) -> anyhow::Result<i32> {
    let behavior = match value(matches, name).unwrap_or("superset") {
        "exact" => MatchBehavior::Exact,
        "subset" => MatchBehavior::Subset,
        "superset" => MatchBehavior::Superset,
        "any" => MatchBehavior::Any,
        other => anyhow::bail!("-{name} must be exact, subset, superset or any: {other:?}"),
    };
    Ok(match behavior {
        MatchBehavior::Exact => 0,
        MatchBehavior::Subset => 1,
        MatchBehavior::Superset => 2,
        MatchBehavior::Any => 3,
    })
}

/// The names of the chosen subcommands from the top, and the matches of the last one.
pub fn path(matches: &ArgMatches) -> (Vec<&str>, &ArgMatches) {
    let mut names = Vec::new();
    let mut at = matches;
    while let Some((name, inner)) = at.subcommand() {
        names.push(name);
        at = inner;
    }
    (names, at)
}
