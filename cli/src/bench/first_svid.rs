//! How long a new workload waits for its first SVID: connect, FetchX509SVID, first message.

use std::path::Path;
use std::process::{Command as Program, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{is_set, required, switch, text};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bare::Bare;
use super::meter::Meter;
use super::report::{Report, Row};
use super::run::{Run, number, number_or_none, of_socket};
use super::samples::Samples;
use super::workload::OpenStream;
use crate::runtime;

/// Name of the hidden command that is one workload.
pub const ONE_CALL: &str = "one-call";

/// The two sides take turns this often, so that a change of the machine's speed hits both.
const ROUNDS: usize = 10;

/// How often the workloads that come all at once do so.
const CROWDS: usize = 5;

const WARM_UP: usize = 20;

/// As long as a token of one audience.
pub const TOKEN_BYTES: usize = 450;

/// The command.
pub fn command() -> Command {
    of_socket("first-svid", "Time to the first X.509-SVID of a new workload")
        .arg(number("count", "How many workloads, one after the other", 1_000_000).default_value("5000"))
        .arg(number_or_none("parallel", "How many workloads at once, besides", 20_000).default_value("500"))
        .arg(switch(
            "process",
            "Each workload is a process of its own, from its start to its end",
        ))
}

/// The hidden command.
pub fn one_call_command() -> Command {
    Command::new(ONE_CALL)
        .about("One workload of a benchmark")
        .hide(true)
        .arg(text("socketPath", "The Workload API"))
}

/// Fetches one X.509-SVID.
///
/// # Errors
/// When it can not.
pub fn one_call(matches: &ArgMatches) -> anyhow::Result<()> {
    let socket = required(matches, "socketPath", "the socket")?;
    runtime::current_thread()?
        .block_on(OpenStream::open(Path::new(socket)))
        .map(drop)
}

/// Measures.
///
/// # Errors
/// When a workload gets no SVID.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let socket = run.socket();
    let identity = run.identity().await?;
    let bare = Bare::start(&identity.stream.first, TOKEN_BYTES).await?;
    let limit = bare.socket();
    let is_process = is_set(run.matches(), "process");
    let (agent, server) = (run.agent_meter().await?, bare.meter()?);

    in_turn(&socket, WARM_UP, false).await?;
    in_turn(&limit, WARM_UP, false).await?;
    let count = run.count("count");
    let (mut ours, mut theirs) = (Side::of(&agent), Side::of(&server));
    for round in 0..ROUNDS {
        let share = count / ROUNDS + usize::from(round < count % ROUNDS);
        ours.add(in_turn(&socket, share, is_process)).await?;
        theirs.add(in_turn(&limit, share, is_process)).await?;
    }
    let mut report = Report::new("first-svid");
    push_rows(&mut report, "one after the other", &ours, &theirs);

    let parallel = run.count("parallel");
    if parallel > 0 {
        let (mut ours, mut theirs) = (Side::of(&agent), Side::of(&server));
        for _ in 0..CROWDS {
            ours.add(at_once(&socket, parallel)).await?;
            theirs.add(at_once(&limit, parallel)).await?;
        }
        push_rows(&mut report, &format!("{parallel} at once"), &ours, &theirs);
    }
    Ok(report)
}

/// Times of one side, and the CPU time that they cost it.
struct Side<'a> {
    meter: &'a Meter,
    times: Samples,
    cpu: Duration,
}

impl<'a> Side<'a> {
    fn of(meter: &'a Meter) -> Self {
        Side {
            meter,
            times: Samples::new(),
            cpu: Duration::ZERO,
        }
    }

    async fn add(
        &mut self,
        round: impl Future<Output = anyhow::Result<Vec<Duration>>>,
    ) -> anyhow::Result<()> {
        let before = self.meter.cpu()?;
        self.times.extend(round.await?);
        self.cpu += self.meter.cpu()?.saturating_sub(before);
        Ok(())
    }

    fn row(&self, case: String) -> Row {
        let calls = u32::try_from(self.times.len()).unwrap_or(u32::MAX).max(1);
        Row::new(case)
            .times(&self.times)
            .time("cpu per call", self.cpu / calls)
    }
}

fn push_rows(report: &mut Report, case: &str, ours: &Side<'_>, limit: &Side<'_>) {
    report.add(ours.row(case.to_owned()));
    report.add(limit.row(format!("{case}, bare gRPC")));
    report.add(Row::new(format!("{case}, ratio")).ratios(&ours.times, &limit.times));
}

async fn in_turn(socket: &Path, count: usize, is_process: bool) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let start = Instant::now();
        if is_process {
            run_process(socket)?;
            // The others of this thread, above all the interruption, get their turn.
            tokio::task::yield_now().await;
        } else {
            OpenStream::open(socket).await?;
        }
        times.push(start.elapsed());
    }
    Ok(times)
}

fn run_process(socket: &Path) -> anyhow::Result<()> {
    let program = std::env::current_exe().context("find the own program")?;
    let status = Program::new(program)
        .args(["bench", ONE_CALL, "-socketPath"])
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .context("start a workload")?;
    ensure!(status.success(), "a workload failed: {status}");
    Ok(())
}

/// All start together; each time is from that moment. The streams stay open until the last has its message.
async fn at_once(socket: &Path, count: usize) -> anyhow::Result<Vec<Duration>> {
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..count {
        let socket = socket.to_owned();
        tasks.spawn(async move {
            let stream = OpenStream::open(&socket).await?;
            anyhow::Ok((start.elapsed(), stream))
        });
    }
    let mut streams = Vec::with_capacity(count);
    let mut times = Vec::with_capacity(count);
    while let Some(done) = tasks.join_next().await {
        let (time, stream) = done.context("open a stream")??;
        times.push(time);
        streams.push(stream);
    }
    Ok(times)
}
