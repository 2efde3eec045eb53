//! `api watch`.

use clap::{ArgMatches, Command};
use finial_identity::command::{Console, dial};
use finial_proto::workload::X509svidRequest;
use tokio::time::Instant;

use super::{fetch_x509, workload};

pub fn command() -> Command {
    workload::flags(Command::new("watch").about("Prints each update of the X.509-SVIDs until interrupted"))
}

pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let mut client = workload::client(matches, console).await?;
    let what = "unable to watch X509-SVIDs";
    let failed = |status: tonic::Status| dial::status(what, &status);
    let mut start = Instant::now();
    let mut updates = client
        .fetch_x509svid(X509svidRequest {})
        .await
        .map_err(failed)?
        .into_inner();
    while let Some(update) = updates.message().await.map_err(failed)? {
        let noun = if update.svids.len() == 1 { "svid" } else { "svids" };
        console.line(format!(
            "Received {} {noun} after {:?}",
            update.svids.len(),
            start.elapsed()
        ))?;
        fetch_x509::print(&update, console)?;
        start = Instant::now();
    }
    anyhow::bail!("{what}: the agent ended the stream")
}
