//! `finial bench`: a load generator for any SPIFFE implementation.
//!
//! It drives an agent through its Workload API and, where entries have to change, a server through its private socket;
//! both are the same for Finial and SPIRE. Memory and CPU time are read from `/proc` of the process that listens. With
//! each measurement, alternately in the same run, a reference is measured: a minimal server on the gRPC library that
//! sends the same bytes (`bare`), or the cryptographic operations alone (`limits`). One command can measure two agents
//! alternately (`target`, `comparison`). It only prints numbers and does not rate them.

mod bare;
mod bundle_push;
mod comparison;
mod first_svid;
mod fleet;
mod footprint;
mod held_streams;
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
mod target;
mod update_latency;
mod usage;
mod workload;

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{ArgMatches, Command};
use finial_identity::command::{flags, wants_json};
use finial_identity::process::limits::raise_open_files;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use self::comparison::Comparison;
use self::report::Report;
use self::run::Run;
use self::target::Target;
use self::usage::Usage;
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
    let mut stop = Stop::new(matches)?;
    let is_json = wants_json(matches);
    if name == footprint::NAME {
        let run = Run::start(matches, None).await?;
        let reports = tokio::select! {
            reports = footprint::measure(&run) => reports?,
            reason = stop.called() => return Err(reason),
        };
        if let [(_, only)] = &reports[..] {
            return only.print(is_json);
        }
        let mut comparison = Comparison::new(name, reports.iter().map(|(column, _)| column.clone()));
        for (column, (_, report)) in reports.into_iter().enumerate() {
            comparison.add(column, report);
        }
        return comparison.print(is_json);
    }
    let columns = Target::columns(matches)?;
    if columns.len() < 2 {
        let (outcome, cleaned) = once(name, matches, columns.first(), &mut stop).await;
        outcome?.print(is_json)?;
        return cleaned;
    }
    let mut comparison = Comparison::new(name, columns.iter().map(Target::name));
    for round in 0..matches.get_one::<u64>("rounds").copied().unwrap_or(1) {
        let mut turns: Vec<(usize, &Target)> = columns.iter().enumerate().collect();
        // Who begins changes, so that what a turn leaves behind meets both.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (column, target) in turns {
            let (outcome, cleaned) = once(name, matches, Some(target), &mut stop).await;
            comparison.add(column, outcome.with_context(|| target.name())?);
            cleaned?;
        }
    }
    comparison.print(is_json)
}

/// One turn of one column, and whether what it registered is gone.
async fn once(
    name: &str,
    matches: &ArgMatches,
    target: Option<&Target>,
    stop: &mut Stop,
) -> (anyhow::Result<Report>, anyhow::Result<()>) {
    let run = match Run::start(matches, target).await {
        Ok(run) => run,
        Err(error) => return (Err(error), Ok(())),
    };
    let outcome = tokio::select! {
        outcome = measure_with_usage(name, &run) => outcome,
        reason = stop.called() => Err(reason),
    };
    if outcome.is_err() {
        sleep(CUT_SHORT).await;
    }
    (outcome, run.clean_up().await)
}

/// What ends a run before it is done.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    at: Instant,
    limit: Duration,
}

impl Stop {
    fn new(matches: &ArgMatches) -> anyhow::Result<Self> {
        let limit = Duration::from_secs(matches.get_one::<u64>("timeout").copied().unwrap_or_default());
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt()).context("listen for signals")?,
            terminate: signal(SignalKind::terminate()).context("listen for signals")?,
            at: Instant::now() + limit,
            limit,
        })
    }

    async fn called(&mut self) -> anyhow::Error {
        let limit = self.limit;
        tokio::select! {
            _ = self.interrupt.recv() => anyhow!("interrupted"),
            _ = self.terminate.recv() => anyhow!("interrupted"),
            () = sleep_until(self.at) => anyhow!("not done within {limit:?}: see -timeout"),
        }
    }
}

/// The benchmark, and what the programs used for it.
async fn measure_with_usage(name: &str, run: &Run<'_>) -> anyhow::Result<Report> {
    let usage = Usage::start(run).await?;
    let mut report = measure(name, run).await?;
    usage.push_rows(&mut report)?;
    Ok(report)
}

async fn measure(name: &str, run: &Run<'_>) -> anyhow::Result<Report> {
    match name {
        "first-svid" => first_svid::measure(run).await,
        "streams" => streams::measure(run).await,
        "bundle-push" => bundle_push::measure(run).await,
        "update-latency" => update_latency::measure(run).await,
        "jwt" => jwt::measure(run).await,
        "rotation" => rotation::measure(run).await,
        "limits" => limits::measure(run).await,
        other => bail!("no such benchmark: {other}"),
    }
}
