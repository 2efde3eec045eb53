//! CPU time and memory of the measured programs for a whole benchmark.

use std::time::Duration;

use super::meter::Meter;
use super::report::{Cell, Report, Row};
use super::run::Run;

/// CPU time of each program when the benchmark began.
#[derive(Debug)]
pub struct Usage(Vec<(&'static str, Meter, Duration)>);

impl Usage {
    /// Begins; with nothing where no running program is measured.
    ///
    /// # Errors
    /// When one of them is not there.
    pub async fn start(run: &Run<'_>) -> anyhow::Result<Self> {
        let mut programs = Vec::new();
        if run.has_target() {
            let agent = run.agent_meter().await?;
            let server = run.server_meter().await?;
            let named = [("agent", Some(agent)), ("server", server)];
            for (name, meter) in named.into_iter().filter_map(|(name, meter)| Some((name, meter?))) {
                let cpu = meter.cpu()?;
                programs.push((name, meter, cpu));
            }
        }
        Ok(Usage(programs))
    }

    /// Adds a row for each program: CPU time since then, memory now.
    ///
    /// # Errors
    /// When one of them ended.
    pub fn push_rows(&self, report: &mut Report) -> anyhow::Result<()> {
        for (name, meter, before) in &self.0 {
            let memory = meter.memory()?;
            report.add(
                Row::new(format!("{name}, whole run"))
                    .time("cpu", meter.cpu()?.saturating_sub(*before))
                    .with("Rss", Cell::Bytes(memory.total))
                    .with("RssAnon", Cell::Bytes(memory.anon)),
            );
        }
        Ok(())
    }
}
