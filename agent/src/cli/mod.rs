//! `finial agent …`: SPIRE's commands, flags and texts, over the Workload API and the admin socket.
//!
//! `workload` is the client side of the Workload API; each other file a group of commands.

mod csi;
mod debug;
mod fetch_jwt;
mod fetch_x509;
mod health;
mod helper;
mod logger;
mod serve;
mod validate_jwt;
mod watch;
pub mod why;
mod workload;

use clap::{ArgMatches, Command};
use finial_identity::command::{Console, flags};

/// The tree of commands below `finial agent`.
pub fn command() -> Command {
    let fetch = fetch_x509::flags(Command::new("fetch").about("Fetches SVIDs; X.509 unless told otherwise"))
        .args_conflicts_with_subcommands(true)
        .subcommand(fetch_x509::flags(
            Command::new("x509").about("Fetches X.509-SVIDs"),
        ))
        .subcommand(fetch_jwt::command());
    flags::group("agent", "The agent: identities for the workloads of one node")
        .subcommand(serve::run_command())
        .subcommand(serve::validate_command())
        .subcommand(health::command())
        .subcommand(csi::command())
        .subcommand(helper::command())
        .subcommand(debug::command())
        .subcommand(logger::command())
        .subcommand(
            flags::group("api", "Calls the Workload API as a workload does")
                .subcommand(fetch)
                .subcommand(flags::group("validate", "Validates SVIDs").subcommand(validate_jwt::command()))
                .subcommand(watch::command()),
        )
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
        ["csi"] => csi::run(matches, console).await,
        ["helper"] => helper::run(matches, console).await,
        ["helper", "validate"] => helper::validate(matches, console),
        ["debug", "getinfo"] => debug::info(matches, console).await,
        ["logger", name] => logger::run(name, matches, console).await,
        ["api", "fetch"] | ["api", "fetch", "x509"] => fetch_x509::run(matches, console).await,
        ["api", "fetch", "jwt"] => fetch_jwt::run(matches, console).await,
        ["api", "validate", "jwt"] => validate_jwt::run(matches, console).await,
        ["api", "watch"] => watch::run(matches, console).await,
        _ => anyhow::bail!("no such command: {}", path.join(" ")),
    }
}
