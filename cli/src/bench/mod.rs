//! `finial bench`: a load generator for any SPIFFE implementation.
//!
//! It drives an agent through its Workload API and, where entries have to change, a server through its private
//! socket; both speak the same for Finial and SPIRE. Memory and CPU time are read from `/proc` of the process that
//! listens. Beside each measurement, in the same run and in turn with it, stands a limit: the bare gRPC library
//! with the same bytes (`bare`), or the bare cryptography (`limits`). Nothing is judged: it prints.

mod bare;
mod bundle_push;
mod first_svid;
mod fleet;
mod footprint;
mod jwt;
mod limits;
mod meter;
mod programs;
mod registrations;
mod report;
mod rotation;
mod run;
mod samples;
mod streams;
mod update_latency;
mod workload;

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};
use finial_identity::command::{flags, wants_json};
use finial_identity::process::limits::raise_open_files;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::sleep;

use self::report::Report;
use self::run::Run;
use crate::runtime;

/// How long the server may still be at work on a call that was cut short.
const CUT_SHORT: Duration = Duration::from_millis(250);

/// The tree of commands below `finial bench`.
pub fn command() -> Command {
    flags::group(
        "bench",
        "Measures an agent and a server of any SPIFFE implementation",
    )
    .subcommand(first_svid::command())
    .subcommand(streams::command())
    .subcommand(bundle_push::command())
    .subcommand(update_latency::command())
    .subcommand(jwt::command())
    .subcommand(rotation::command())
    .subcommand(footprint::command())
    .subcommand(limits::command())
    .subcommand(bare::command())
    .subcommand(first_svid::one_call_command())
}

/// Runs one of the commands.
///
/// # Errors
/// When what is measured can not be reached or refuses; what was registered is taken away nevertheless.
pub fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    raise_open_files();
    match matches.subcommand() {
        Some((bare::COMMAND, matches)) => bare::serve(matches),
        Some((first_svid::ONE_CALL, matches)) => first_svid::one_call(matches),
        // One thread, so that what the driver takes from the machine is the same in every run.
        Some((name, matches)) => runtime::current_thread()?.block_on(drive(name, matches)),
        None => bail!("no benchmark was named"),
    }
}

async fn drive(name: &str, matches: &ArgMatches) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let run = Run::start(matches).await?;
    let limit = run.seconds("timeout");
    let outcome = tokio::select! {
        outcome = measure(name, &run) => outcome,
        _ = interrupt.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow::anyhow!("interrupted")),
        () = sleep(limit) => Err(anyhow::anyhow!("not done within {limit:?}: see -timeout")),
    };
    if outcome.is_err() {
        sleep(CUT_SHORT).await;
    }
    let cleaned = run.clean_up().await;
    outcome?.print(wants_json(matches))?;
    cleaned
}

async fn measure(name: &str, run: &Run<'_>) -> anyhow::Result<Report> {
    match name {
        "first-svid" => first_svid::measure(run).await,
        "streams" => streams::measure(run).await,
        "bundle-push" => bundle_push::measure(run).await,
        "update-latency" => update_latency::measure(run).await,
        "jwt" => jwt::measure(run).await,
        "rotation" => rotation::measure(run).await,
        "footprint" => footprint::measure(run).await,
        "limits" => limits::measure(run).await,
        other => bail!("no such benchmark: {other}"),
    }
}
