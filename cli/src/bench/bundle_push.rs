//! The time from a new bundle at the server to the last of N streams.

use std::sync::Arc;
use std::time::Duration;

use clap::Command;
use tokio::time::Instant;

use super::bare::{self, Bare};
use super::first_svid::TOKEN_BYTES;
use super::fleet::{Fleet, Mark};
use super::meter::Meter;
use super::report::{Report, Row};
use super::run::{Run, number, of_socket};
use super::samples::Samples;
use super::workload::{OpenStream, mark_of};

/// The command.
pub fn command() -> Command {
    of_socket(
        "bundle-push",
        "Time from a changed federated bundle to all streams",
    )
    .arg(number("streams", "How many streams, each on its own connection", 100_000).default_value("1000"))
    .arg(number("changes", "How many changes", 10_000).default_value("10"))
}

/// Measures; the bare server pushes the same bytes, without a change behind it.
///
/// # Errors
/// When the server refuses the bundle or a stream ends.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let server = run.server()?;
    let (streams, changes) = (run.count("streams"), run.count("changes"));
    let agent = run.agent_meter().await?;
    let domain = format!("spiffe://{}", server.foreign_domain());
    let mut sequence_number = 1;
    server.set_foreign_bundle(sequence_number).await?;
    let mut entry = server.entry("federated");
    entry.federates_with = vec![server.foreign_domain()];
    server.create_one(entry).await?;
    let sample = OpenStream::with_identity(&run.socket(), &server.id("federated")).await?;

    let mark: Mark = Arc::new(move |message| {
        let bundle = message.federated_bundles.get(&domain);
        bundle.map_or(0, |bundle| mark_of(bundle))
    });
    let mut bare = Bare::start(&sample.first, TOKEN_BYTES).await?;
    let bare_meter = bare.meter()?;
    drop(sample);
    let mut fleet = Fleet::open(&run.socket(), streams, mark).await?;
    let mut limit = Fleet::open(&bare.socket(), streams, Arc::new(bare::mark)).await?;
    fleet.agree(Instant::now()).await?;
    limit.agree(Instant::now()).await?;

    let (mut ours, mut theirs) = (Pushes::of(&agent)?, Pushes::of(&bare_meter)?);
    for _ in 0..changes {
        sequence_number += 1;
        let before = ours.meter.cpu()?;
        let start = Instant::now();
        server.set_foreign_bundle(sequence_number).await?;
        ours.add(&fleet.agree(start).await?.times, before)?;

        let before = theirs.meter.cpu()?;
        let start = Instant::now();
        bare.push()?;
        theirs.add(&limit.agree(start).await?.times, before)?;
    }
    let mut report = Report::new("bundle-push");
    let delivered = fleet.len() * changes;
    report.add(ours.row("change to stream", delivered));
    report.add(theirs.row("bare gRPC push", delivered));
    let seconds = |side: &Pushes<'_>| side.last.p50().as_secs_f64();
    let spread = |side: &Pushes<'_>| side.spread.p50().as_secs_f64();
    report.add(
        Row::new("ratio")
            .ratio("last", seconds(&ours), seconds(&theirs))
            .ratio("first to last", spread(&ours), spread(&theirs))
            .ratio("cpu", ours.cpu.as_secs_f64(), theirs.cpu.as_secs_f64()),
    );
    Ok(report)
}

struct Pushes<'a> {
    meter: &'a Meter,
    cpu: Duration,
    first: Samples,
    last: Samples,
    spread: Samples,
}

impl<'a> Pushes<'a> {
    fn of(meter: &'a Meter) -> anyhow::Result<Self> {
        meter.cpu()?;
        Ok(Pushes {
            meter,
            cpu: Duration::ZERO,
            first: Samples::new(),
            last: Samples::new(),
            spread: Samples::new(),
        })
    }

    fn add(&mut self, times: &Samples, cpu_before: Duration) -> anyhow::Result<()> {
        self.cpu += self.meter.cpu()?.saturating_sub(cpu_before);
        let (first, last) = (times.percentile(0), times.worst());
        self.first.push(first);
        self.last.push(last);
        self.spread.push(last.saturating_sub(first));
        Ok(())
    }

    fn row(&self, case: &str, delivered: usize) -> Row {
        let delivered = u32::try_from(delivered).unwrap_or(u32::MAX).max(1);
        Row::new(case)
            .count("changes", self.last.len())
            .time("first stream p50", self.first.p50())
            .time("last stream p50", self.last.p50())
            .time("last stream worst", self.last.worst())
            .time("first to last p50", self.spread.p50())
            .time("cpu per message", self.cpu / delivered)
    }
}
