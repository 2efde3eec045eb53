//! What open streams cost: memory and CPU time of the agent with N streams, each on its own connection.

use std::path::Path;
use std::time::Duration;

use clap::Command;
use tokio::time::{Instant, sleep};

use super::bare::{self, Bare};
use super::first_svid::TOKEN_BYTES;
use super::fleet::{Fleet, Mark};
use super::meter::{Memory, Meter};
use super::report::{Cell, Report, Row};
use super::run::{Identity, Run, number, number_or_none, of_socket};

/// Before memory is read, so that what the last message needed is gone.
const PAUSE: Duration = Duration::from_secs(1);

/// The command.
pub fn command() -> Command {
    of_socket("streams", "Memory and CPU time of open X.509-SVID streams")
        .arg(number("streams", "How many streams, each on its own connection", 100_000).default_value("1000"))
        .arg(
            number_or_none(
                "rotations",
                "How often all get a new SVID; needs the server's socket",
                1000,
            )
            .default_value("3"),
        )
        .arg(
            number_or_none("idleEntries", "Entries besides, which fit no process", 1_000_000)
                .default_value("0"),
        )
        .arg(
            number_or_none(
                "settle",
                "Seconds from closing all streams to the last look",
                3600,
            )
            .default_value("10"),
        )
}

/// Measures the agent, then the bare server in the same way.
///
/// # Errors
/// When a stream can not be opened or ends.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let agent = run.agent_meter().await?;
    let count = run.count("streams");
    if let Some(server) = run.registrations() {
        let idle = (0..run.count("idleEntries")).map(|number| server.idle_entry(&format!("idle-{number}")));
        server.create(idle.collect()).await?;
    }
    let identity = run.identity().await?;
    let mut bare = Bare::start(&identity.stream.first, TOKEN_BYTES).await?;
    let rotations = run.registrations().map_or(0, |_| run.count("rotations"));

    let ours = Phases::start(&agent).await?;
    let fleet = Fleet::open(&run.socket(), count, identity.mark()).await?;
    let ours = ours.opened(fleet).await?;
    let ours = ours
        .rotated(
            rotations,
            &mut Entry {
                run,
                identity: &identity,
            },
        )
        .await?;
    let ours = ours.closed(run.seconds("settle")).await?;

    let server = bare.meter()?;
    let limit = bare_phases(&mut bare, &server, count, rotations, run.seconds("settle")).await?;

    let mut report = Report::new("streams");
    ours.push_rows(&mut report, count, "");
    limit.push_rows(&mut report, count, ", bare gRPC");
    let row = Row::new("ratio").ratio("per stream", ours.per_stream(count), limit.per_stream(count));
    let cpu = [&ours, &limit].map(|side| side.cpu.as_secs_f64());
    report.add(row.ratio("cpu per open", cpu[0], cpu[1]));
    Ok(report)
}

async fn bare_phases(
    bare: &mut Bare,
    meter: &Meter,
    count: usize,
    rotations: usize,
    settle: Duration,
) -> anyhow::Result<Phases> {
    let phases = Phases::start(meter).await?;
    let mark: Mark = std::sync::Arc::new(bare::mark);
    let socket = bare.socket();
    let fleet = Fleet::open(Path::new(&socket), count, mark).await?;
    let phases = phases.opened(fleet).await?;
    phases.rotated(rotations, bare).await?.closed(settle).await
}

/// Something that can make all streams get a new message.
trait Change {
    async fn change(&mut self, number: usize) -> anyhow::Result<()>;
}

struct Entry<'a> {
    run: &'a Run<'a>,
    identity: &'a Identity,
}

impl Change for Entry<'_> {
    async fn change(&mut self, number: usize) -> anyhow::Result<()> {
        let server = self.run.server()?;
        match &self.identity.entry {
            Some(entry) => {
                server
                    .rename(entry, format!("rotation-{number}.bench.test"))
                    .await
            }
            None => Ok(()),
        }
    }
}

impl Change for Bare {
    async fn change(&mut self, _number: usize) -> anyhow::Result<()> {
        self.push()
    }
}

/// What was read so far of one process.
struct Phases {
    meter: Meter,
    fleet: Option<Fleet>,
    before: Memory,
    open: Memory,
    rotated: Option<Memory>,
    closed: Memory,
    cpu: Duration,
    opening: Duration,
    pushes: super::samples::Samples,
}

impl Phases {
    async fn start(meter: &Meter) -> anyhow::Result<Self> {
        sleep(PAUSE).await;
        let before = meter.memory()?;
        Ok(Phases {
            meter: meter.clone(),
            fleet: None,
            before,
            open: before,
            rotated: None,
            closed: before,
            cpu: meter.cpu()?,
            opening: Duration::ZERO,
            pushes: super::samples::Samples::new(),
        })
    }

    async fn opened(mut self, mut fleet: Fleet) -> anyhow::Result<Self> {
        self.cpu = self.meter.cpu()?.saturating_sub(self.cpu);
        self.opening = fleet.opening;
        fleet.agree(Instant::now()).await?;
        self.fleet = Some(fleet);
        sleep(PAUSE).await;
        self.open = self.meter.memory()?;
        Ok(self)
    }

    async fn rotated(mut self, rotations: usize, by: &mut impl Change) -> anyhow::Result<Self> {
        let Some(fleet) = self.fleet.as_mut().filter(|_| rotations > 0) else {
            return Ok(self);
        };
        for number in 0..rotations {
            let start = Instant::now();
            by.change(number).await?;
            self.pushes.push(fleet.agree(start).await?.times.worst());
        }
        sleep(PAUSE).await;
        self.rotated = Some(self.meter.memory()?);
        Ok(self)
    }

    async fn closed(mut self, settle: Duration) -> anyhow::Result<Self> {
        if let Some(fleet) = self.fleet.take() {
            fleet.close().await;
        }
        sleep(settle.max(PAUSE)).await;
        self.closed = self.meter.memory()?;
        Ok(self)
    }

    /// Bytes of the process's own memory for one stream, after the rotations if there were any.
    fn per_stream(&self, count: usize) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a ratio of sizes")]
        let (grown, count) = (
            self.full().anon.saturating_sub(self.before.anon) as f64,
            count as f64,
        );
        grown / count
    }

    fn full(&self) -> Memory {
        self.rotated.unwrap_or(self.open)
    }

    fn push_rows(&self, report: &mut Report, count: usize, suffix: &str) {
        let streams = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        let memory = |case: &str, now: Memory| {
            let grown = now.anon.saturating_sub(self.before.anon);
            Row::new(format!("{case}{suffix}"))
                .with("RssAnon", Cell::Bytes(now.anon))
                .with("Rss", Cell::Bytes(now.total))
                .with("per stream", Cell::Bytes(grown / streams))
        };
        report.add(memory("before", self.before));
        report.add(memory("open", self.open));
        if let Some(rotated) = self.rotated {
            report.add(memory("after rotations", rotated));
        }
        report.add(memory("after closing", self.closed));
        let calls = u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let row = Row::new(format!("opening{suffix}"))
            .count("streams", count)
            .time("all", self.opening)
            .time("cpu per open", self.cpu / calls)
            .count("rotations", self.pushes.len())
            .time("last stream p50", self.pushes.p50());
        report.add(row);
    }
}
