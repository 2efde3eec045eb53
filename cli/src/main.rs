//! The one binary: `finial server …`, `finial agent …`, `finial dev`, `finial why`, `finial bench …`.
//!
//! Arguments are normalised (`args`), parsed by the command trees of the two libraries, and passed to
//! them with the standard streams and environment variables that they may use.

mod args;
mod bench;
mod dev;
mod runtime;

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{ArgMatches, Command};

/// What Go's command library exits with when no command or an unknown one is named.
const NO_SUCH_COMMAND: u8 = 127;
/// What `finial why` exits with when the process or pod that it was asked about has no identity.
const NO_IDENTITY: u8 = 3;
/// What Go's flag library exits with when a flag is wrong, as in spiffe-helper.
const NO_SUCH_FLAG: u8 = 2;

fn main() -> ExitCode {
    // One provider for the whole process; a second install would be a programming error.
    let _ = rustls::crypto::ring::default_provider().install_default();

    let mut arguments: Vec<OsString> = std::env::args_os().collect();
    let program = arguments
        .first()
        .map(|name| args::program_of(name))
        .unwrap_or_default();
    if !program.is_empty() {
        let as_named = program.iter().map(OsString::from);
        arguments.splice(..1, std::iter::once("finial".into()).chain(as_named));
    }
    let is_helper = arguments
        .get(1..3)
        .is_some_and(|command| command == ["agent", "helper"]);
    let command = args::with_aliases(command());
    let arguments = args::normalize(&command, arguments);
    let matches = match command.try_get_matches_from(arguments) {
        Ok(matches) => matches,
        Err(error) => return usage(&error, is_helper),
    };
    match run(&matches) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The whole tree of commands.
fn command() -> Command {
    Command::new("finial")
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .about("SPIFFE workload identity: server, agent and a way to try both")
        .subcommand_required(true)
        .subcommand(finial_server::cli::command())
        .subcommand(finial_agent::cli::command())
        .subcommand(dev::command())
        .subcommand(finial_server::cli::why::with_pod(
            finial_agent::cli::why::command(),
            &["pid", "podUID", "reference"],
        ))
        .subcommand(bench::command())
}

fn run(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let ended = match matches.subcommand() {
        Some(("server", matches)) => runtime::server(matches),
        Some(("agent", matches)) => runtime::agent(matches),
        Some(("dev", matches)) => dev::run(matches),
        Some(("why", matches)) => {
            let has_identity = runtime::why(matches)?;
            return Ok(if has_identity {
                ExitCode::SUCCESS
            } else {
                ExitCode::from(NO_IDENTITY)
            });
        }
        Some(("bench", matches)) => bench::run(matches),
        _ => anyhow::bail!("no command was named"),
    };
    ended.map(|()| ExitCode::SUCCESS)
}

fn usage(error: &clap::Error, is_helper: bool) -> ExitCode {
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ if is_helper => ExitCode::from(NO_SUCH_FLAG),
        ErrorKind::InvalidSubcommand
        | ErrorKind::MissingSubcommand
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => ExitCode::from(NO_SUCH_COMMAND),
        _ => ExitCode::FAILURE,
    }
}
