//! `finial server …`: SPIRE's commands, flags and texts, over the server's private socket.
//!
//! One file a group of commands: a `clap` description, and a function from its matches to calls of
//! the API.

mod agent;
mod authority;
mod bundle;
mod entry;
mod entry_document;
mod entry_text;
mod federation;
mod federation_document;
mod health;
mod logger;
mod mint;
mod registry;
mod serve;
mod token;
pub mod why;

use clap::{ArgMatches, Command};
use finial_identity::command::{Console, flags};

/// A generated client over the socket that the flags name, ready for long answers.
macro_rules! client {
    ($client:ident, $matches:expr, $console:expr) => {
        $client::new(
            finial_identity::command::dial::SERVER
                .channel($matches, $console)
                .await?,
        )
        .max_decoding_message_size(finial_identity::command::dial::LARGEST_ANSWER)
    };
}
use client;

/// The tree of commands below `finial server`.
pub fn command() -> Command {
    flags::group("server", "The server: the authority of a trust domain")
        .subcommand(serve::run_command())
        .subcommand(serve::validate_command())
        .subcommand(health::healthcheck())
        .subcommand(health::debug())
        .subcommand(token::command())
        .subcommand(entry::command())
        .subcommand(agent::command())
        .subcommand(bundle::command())
        .subcommand(federation::command())
        .subcommand(mint::x509())
        .subcommand(mint::jwt())
        .subcommand(authority::command())
        .subcommand(logger::command())
        .subcommand(registry::command())
}

/// Runs the command that `matches` of [`command`] names.
///
/// # Errors
/// One sentence for the operator; the caller prints it after `Error: ` and exits 1.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let (path, matches) = flags::path(matches);
    match path[..] {
        ["run"] => serve::run(matches, console).await,
        ["validate"] => serve::validate(matches, console),
        ["healthcheck"] => health::check(matches, console).await,
        ["debug", "getinfo"] => health::info(matches, console).await,
        ["token", "generate"] => token::generate(matches, console).await,
        ["entry", name] => entry::run(name, matches, console).await,
        ["agent", name] => agent::run(name, matches, console).await,
        ["federation", name] => federation::run(name, matches, console).await,
        ["bundle", name] => bundle::run(name, matches, console).await,
        ["x509", "mint"] => mint::run_x509(matches, console).await,
        ["jwt", "mint"] => mint::run_jwt(matches, console).await,
        ["localauthority", kind, name] => authority::run(kind, name, matches, console).await,
        ["registry", "release"] => registry::release(matches, console).await,
        ["logger", name] => logger::run(name, matches, console).await,
        _ => anyhow::bail!("no such command: {}", path.join(" ")),
    }
}
