//! Many short-lived SVIDs: does the agent renew all of them in time, and how much CPU time and memory does it need.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Command;
use finial_identity::process::Clock;
use finial_identity::x509::Certificate;
use finial_proto::workload::X509svidResponse;
use time::OffsetDateTime;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::held_streams::HeldStreams;
use super::meter::Meter;
use super::report::{Cell, Report, Row};
use super::run::{Run, number, of_socket};
use super::samples::Samples;
use super::workload::OpenStream;

/// Between two looks at memory and at what has expired.
const LOOK: Duration = Duration::from_millis(200);

/// Between two workloads that come again.
const PROBE: Duration = Duration::from_millis(100);

/// How long the agent may take to get all SVIDs at the beginning.
const START_LIMIT: Duration = Duration::from_secs(300);

/// The command.
pub fn command() -> Command {
    of_socket("rotation", "Renewal of many short-lived SVIDs")
        .arg(number("entries", "How many entries", 1_000_000).default_value("10000"))
        .arg(
            number(
                "visible",
                "How many of them fit this process, whose SVIDs are watched",
                10_000,
            )
            .default_value("100"),
        )
        .arg(
            number(
                "streams",
                "How many streams are open besides the one that is watched",
                10_000,
            )
            .default_value("10"),
        )
        .arg(number("ttl", "Lifetime of the SVIDs in seconds", 86_400).default_value("60"))
        .arg(number("duration", "Seconds to watch", 86_400).default_value("120"))
}

/// Makes the entries and watches for the given time.
///
/// # Errors
/// When the server refuses an entry or the stream ends.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let server = run.server()?;
    let ttl = i32::try_from(run.count("ttl")).context("-ttl is out of range")?;
    let entries = run.count("entries");
    let visible = run.count("visible").min(entries);
    let agent = run.agent_meter().await?;
    let server_meter = run.server_meter().await?;
    let of_server = || server_meter.as_ref().map_or(Ok(Duration::ZERO), Meter::cpu);
    let before = agent.memory()?;
    let (first_cpu, first_server_cpu) = (agent.cpu()?, of_server()?);

    let start = Instant::now();
    let all = (0..entries).map(|number| {
        let name = format!("short-{number}");
        let entry = if number < visible {
            server.entry(&name)
        } else {
            server.idle_entry(&name)
        };
        finial_proto::spire::api::types::Entry {
            x509_svid_ttl: ttl,
            ..entry
        }
    });
    server.create(all.collect()).await?;
    let created = start.elapsed();
    let prefix = server.id("");
    let stream = OpenStream::with_identity(&run.socket(), &server.id("short-0")).await?;
    let mut watch = Watch::new(stream, prefix.clone());
    tokio::time::timeout(START_LIMIT, watch.until(visible))
        .await
        .with_context(|| format!("the {visible} SVIDs did not arrive within {START_LIMIT:?}"))??;
    let issued = start.elapsed();
    let (start_cpu, start_server_cpu) = (agent.cpu()?, of_server()?);

    let seconds = run.seconds("duration");
    let streams = run.count("streams");
    let mut held = HeldStreams::open(&run.socket(), streams, prefix).await?;
    let mut probes = Probes::new(run.socket());
    let mut peaks = Peaks::new(&agent);
    tokio::select! {
        outcome = watch.forever() => outcome?,
        outcome = held.forever() => outcome?,
        outcome = probes.forever() => outcome?,
        outcome = peaks.forever() => outcome?,
        () = sleep_until(Instant::now() + seconds) => {}
    }
    let cpu = agent.cpu()?.saturating_sub(start_cpu);
    let server_cpu = of_server()?.saturating_sub(start_server_cpu);

    let mut report = Report::new("rotation");
    report.add(
        Row::new("start")
            .count("entries", entries)
            .count("visible", visible)
            .time("created", created)
            .time("all visible", issued)
            .time("agent cpu", start_cpu.saturating_sub(first_cpu))
            .time("server cpu", start_server_cpu.saturating_sub(first_server_cpu)),
    );
    report.add(
        Row::new("memory")
            .with("RssAnon before", Cell::Bytes(before.anon))
            .with("RssAnon peak", Cell::Bytes(peaks.anon))
            .with("Rss peak", Cell::Bytes(peaks.total)),
    );
    report.add(
        Row::new("renewal")
            .time("watched", seconds)
            .count("renewed", watch.renewed)
            .count("late", watch.late)
            .count("messages", watch.messages)
            .time("shortest time left", watch.shortest_left.unwrap_or_default())
            .time("agent cpu", cpu)
            .time("server cpu", server_cpu),
    );
    report.add(Row::new("first SVID meanwhile").times(&probes.times));
    report.add(
        Row::new("open streams meanwhile")
            .count("streams", streams)
            .count("renewals", held.behind().len())
            .time("longest after the first stream", held.behind().worst())
            .time("longest since signed", watch.longest_age()),
    );
    Ok(report)
}

/// The SVIDs of one stream and when they end.
struct Watch {
    stream: OpenStream,
    prefix: String,
    held: HashMap<String, Held>,
    messages: usize,
    renewed: usize,
    late: usize,
    shortest_left: Option<Duration>,
    /// Of renewed SVIDs when they came: the time since their validity began, the least and the most.
    ages: Option<(Duration, Duration)>,
}

struct Held {
    serial: String,
    not_after: OffsetDateTime,
    is_late: bool,
}

impl Watch {
    fn new(stream: OpenStream, prefix: String) -> Self {
        Watch {
            stream,
            prefix,
            held: HashMap::new(),
            messages: 0,
            renewed: 0,
            late: 0,
            shortest_left: None,
            ages: None,
        }
    }

    /// Reads until so many SVIDs of this run are there.
    async fn until(&mut self, count: usize) -> anyhow::Result<()> {
        let first = std::mem::take(&mut self.stream.first);
        self.take(&first, Clock::system().now())?;
        while self.held.len() < count {
            let message = self.stream.next().await?;
            self.take(&message, Clock::system().now())?;
        }
        (self.messages, self.renewed, self.late) = (0, 0, 0);
        (self.shortest_left, self.ages) = (None, None);
        Ok(())
    }

    async fn forever(&mut self) -> anyhow::Result<()> {
        let clock = Clock::system();
        let mut looks = interval(LOOK);
        loop {
            tokio::select! {
                message = self.stream.next() => {
                    let message = message?;
                    self.messages += 1;
                    self.take(&message, clock.now())?;
                }
                _ = looks.tick() => self.count_late(clock.now()),
            }
        }
    }

    fn take(&mut self, message: &X509svidResponse, now: OffsetDateTime) -> anyhow::Result<()> {
        self.count_late(now);
        for svid in message
            .svids
            .iter()
            .filter(|svid| svid.spiffe_id.starts_with(&self.prefix))
        {
            let chain = Certificate::parse_many(&svid.x509_svid).context("read an X.509-SVID")?;
            let leaf = chain.first().context("an X.509-SVID is empty")?;
            let held = Held {
                serial: leaf.serial_hex(),
                not_after: leaf.not_after(),
                is_late: false,
            };
            let before = self.held.insert(svid.spiffe_id.clone(), held);
            let Some(before) = before.filter(|before| before.serial != leaf.serial_hex()) else {
                continue;
            };
            self.renewed += 1;
            let age = Duration::try_from(now - leaf.not_before()).unwrap_or_default();
            let (least, most) = self.ages.unwrap_or((age, age));
            self.ages = Some((least.min(age), most.max(age)));
            let left = Duration::try_from(before.not_after - now).unwrap_or_default();
            self.shortest_left = Some(self.shortest_left.map_or(left, |shortest| shortest.min(left)));
        }
        Ok(())
    }

    /// How long the slowest renewed SVID was under way, to within a second: certificates know no fractions, and
    /// servers have validity begin some time before they sign, which the fastest one tells.
    fn longest_age(&self) -> Duration {
        self.ages.map_or(Duration::ZERO, |(least, most)| most - least)
    }

    /// An SVID that ended without a successor counts once.
    fn count_late(&mut self, now: OffsetDateTime) {
        for held in self.held.values_mut() {
            if now > held.not_after && !held.is_late {
                held.is_late = true;
                self.late += 1;
            }
        }
    }
}

/// New workloads while SVIDs are renewed: the longest that one waits is the longest pause of the agent.
struct Probes {
    socket: PathBuf,
    times: Samples,
}

impl Probes {
    fn new(socket: PathBuf) -> Self {
        Probes {
            socket,
            times: Samples::new(),
        }
    }

    async fn forever(&mut self) -> anyhow::Result<()> {
        let mut ticks = interval(PROBE);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let start = Instant::now();
            OpenStream::open(&self.socket).await?;
            self.times.push(start.elapsed());
        }
    }
}

struct Peaks<'a> {
    meter: &'a Meter,
    anon: u64,
    total: u64,
}

impl<'a> Peaks<'a> {
    fn new(meter: &'a Meter) -> Self {
        Peaks {
            meter,
            anon: 0,
            total: 0,
        }
    }

    async fn forever(&mut self) -> anyhow::Result<()> {
        let mut looks = interval(LOOK);
        loop {
            looks.tick().await;
            let now = self.meter.memory()?;
            self.anon = self.anon.max(now.anon);
            self.total = self.total.max(now.total);
        }
    }
}
