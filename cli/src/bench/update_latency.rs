//! The time from a change of an entry at the server to the workload's open stream: created, updated, deleted.

use std::time::Duration;

use clap::Command;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::time::{Instant, sleep};

use super::report::{Report, Row};
use super::run::{Run, number, number_or_none, of_socket};
use super::samples::Samples;
use super::workload::leaf_of;

/// The command.
pub fn command() -> Command {
    of_socket("update-latency", "Time from a changed entry to the open stream")
        .arg(number("count", "How many changes of each kind", 100_000).default_value("200"))
        .arg(
            number_or_none(
                "spread",
                "Milliseconds, at most, of the random pause before a change",
                600_000,
            )
            .default_value("20"),
        )
}

/// Measures. A time is from sending the change to the server; the time of a call that changes nothing is printed for comparison.
///
/// # Errors
/// When the server refuses a change or the stream ends.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let server = run.server()?;
    let count = run.count("count");
    let spread = Duration::from_millis(u64::try_from(run.count("spread")).unwrap_or(u64::MAX));
    // This entry keeps the stream open from the first to the last change.
    let mut identity = run.identity().await?;
    let Some(anchor) = identity.entry.take() else {
        anyhow::bail!("the server made no entry");
    };
    let stream = &mut identity.stream;
    let mut updates = Samples::new();
    let mut last = leaf_of(&stream.first, &identity.spiffe_id).map(<[u8]>::to_vec);
    for number in 0..count {
        pause(spread).await;
        let start = Instant::now();
        server
            .rename(&anchor, format!("change-{number}.bench.test"))
            .await?;
        loop {
            let message = stream.next().await?;
            let now = leaf_of(&message, &identity.spiffe_id);
            if now.is_some() && now != last.as_deref() {
                last = now.map(<[u8]>::to_vec);
                break;
            }
        }
        updates.push(start.elapsed());
    }

    let (mut creations, mut deletions) = (Samples::new(), Samples::new());
    for number in 0..count {
        let name = format!("visitor-{number}");
        let id = server.id(&name);
        pause(spread).await;
        let start = Instant::now();
        let visitor = server.create_one(server.entry(&name)).await?;
        while leaf_of(&stream.next().await?, &id).is_none() {}
        creations.push(start.elapsed());
        pause(spread).await;
        let start = Instant::now();
        server.delete(vec![visitor.id]).await?;
        while leaf_of(&stream.next().await?, &id).is_some() {}
        deletions.push(start.elapsed());
    }

    let mut trips = Samples::new();
    for _ in 0..count {
        let start = Instant::now();
        server.look_up(&anchor.id).await?;
        trips.push(start.elapsed());
    }
    let mut report = Report::new("update-latency");
    report.add(Row::new("updated").times(&updates));
    report.add(Row::new("created").times(&creations));
    report.add(Row::new("deleted").times(&deletions));
    report.add(Row::new("a call that changes nothing").times(&trips));
    Ok(report)
}

/// A random part of `most`, so that changes are not synchronised with an agent's polling.
async fn pause(most: Duration) {
    let mut bytes = [0; 4];
    let part = match SystemRandom::new().fill(&mut bytes) {
        Ok(()) => f64::from(u32::from_be_bytes(bytes)) / f64::from(u32::MAX),
        Err(_) => 0.5,
    };
    sleep(most.mul_f64(part)).await;
}
