//! What the programs need without load: size, time to start, idle memory.

use std::path::Path;
use std::time::Duration;

use clap::Command;
use finial_identity::command::flags::{list, values};
use tokio::time::{Instant, sleep};

use super::meter::Memory;
use super::programs::{Implementation, Programs};
use super::report::{Cell, Report, Row};
use super::run::{Run, benchmark, number, number_or_none};
use super::samples::{Samples, median};

/// Name of the command.
pub const NAME: &str = "footprint";

/// The command.
pub fn command() -> Command {
    benchmark(NAME, "Size, start and idle memory of server and agent")
        .arg(number("runs", "How many runs of each program, in turn", 1000).default_value("21"))
        .arg(
            number_or_none("settle", "Seconds from the first SVID to the look at memory", 600)
                .default_value("3"),
        )
        .arg(list(
            "compare",
            "Another build of this program, or a directory with spire-server and spire-agent",
        ))
}

/// Measures this program, and the others in turn with it; gives the report of each with its name.
///
/// # Errors
/// When a program does not start.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Vec<(String, Report)>> {
    let mut sides = vec![Side::of(Implementation::own()?)];
    for path in values(run.matches(), "compare") {
        sides.push(Side::of(Implementation::at(Path::new(path))?));
    }
    for _ in 0..run.count("runs") {
        for side in &mut sides {
            side.once(run.seconds("settle")).await?;
        }
    }
    let reports = sides.into_iter().map(|side| {
        let report = side.report();
        (side.implementation.name, report)
    });
    Ok(reports.collect())
}

/// One implementation and what was measured of it.
struct Side {
    implementation: Implementation,
    dev: Samples,
    server_start: Samples,
    join: Samples,
    cold: Samples,
    agent_restart: Samples,
    both_restart: Samples,
    server_idle: Vec<Memory>,
    agent_idle: Vec<Memory>,
}

impl Side {
    fn of(implementation: Implementation) -> Self {
        Side {
            implementation,
            dev: Samples::new(),
            server_start: Samples::new(),
            join: Samples::new(),
            cold: Samples::new(),
            agent_restart: Samples::new(),
            both_restart: Samples::new(),
            server_idle: Vec::new(),
            agent_idle: Vec::new(),
        }
    }

    async fn once(&mut self, settle: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        if self.implementation.dev_once()? {
            self.dev.push(start.elapsed());
        }
        let mut programs = Programs::prepare(&self.implementation)?;
        let cold = Instant::now();
        programs.start_server().await?;
        self.server_start.push(cold.elapsed());
        let token = programs.register().await?;
        let start = Instant::now();
        programs.start_agent(Some(&token))?;
        programs.first_svid().await?;
        self.join.push(start.elapsed());
        self.cold.push(cold.elapsed());

        sleep(settle).await;
        let (server, agent) = programs.meters()?;
        self.server_idle.push(server.memory()?);
        self.agent_idle.push(agent.memory()?);

        programs.stop_agent().await?;
        let start = Instant::now();
        programs.start_agent(None)?;
        programs.first_svid().await?;
        self.agent_restart.push(start.elapsed());

        programs.stop().await?;
        let start = Instant::now();
        programs.start_server().await?;
        programs.start_agent(None)?;
        programs.first_svid().await?;
        self.both_restart.push(start.elapsed());
        programs.stop().await
    }

    fn report(&self) -> Report {
        let mut report = Report::new(NAME);
        report.add(Row::new("size").with("programs", Cell::Bytes(self.implementation.binary_bytes)));
        if self.dev.len() > 0 {
            report.add(Row::new("dev --once").times(&self.dev));
        }
        report.add(Row::new("new server answers").times(&self.server_start));
        report.add(Row::new("new agent to first SVID").times(&self.join));
        report.add(Row::new("new trust domain to first SVID").times(&self.cold));
        report.add(Row::new("agent again to first SVID").times(&self.agent_restart));
        report.add(Row::new("both again to first SVID").times(&self.both_restart));
        for (case, looks) in [
            ("idle server", &self.server_idle),
            ("idle agent", &self.agent_idle),
        ] {
            let middle = |part: fn(&Memory) -> u64| Cell::Bytes(median(looks.iter().map(part)));
            report.add(
                Row::new(case)
                    .with("Rss", middle(|memory| memory.total))
                    .with("RssAnon", middle(|memory| memory.anon))
                    .with("RssFile", middle(|memory| memory.file)),
            );
        }
        report
    }
}
