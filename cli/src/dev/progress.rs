//! Each step as it happens, with its time.

use std::io::Write;

use anyhow::Context;
use tokio::time::Instant;

#[derive(Debug)]
pub struct Progress {
    start: Instant,
}

impl Progress {
    pub fn start() -> Self {
        Progress {
            start: Instant::now(),
        }
    }

    /// One line: seconds since the start, and what was done.
    pub fn step(&mut self, what: impl AsRef<str>) -> anyhow::Result<()> {
        let seconds = self.start.elapsed().as_secs_f64();
        writeln!(std::io::stdout(), "[{seconds:7.3} s] {}", what.as_ref()).context("write to standard output")
    }
}
