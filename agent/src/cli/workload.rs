//! The client side of the Workload API.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::flags::{self, text, value};
use finial_identity::command::workload_api::{self, WorkloadClient};
use finial_identity::command::{Console, dial};
use finial_identity::settings::parse_duration;
use tokio::time::Instant;
use tonic::{Code, Request, Response, Status};

/// Adds the flags that all commands on the Workload API share.
pub fn flags(command: Command) -> Command {
    let local = flags::query("api", "", dial::AGENT);
    let shared = local.get_arguments().cloned().collect::<Vec<_>>();
    command
        .args(shared)
        .arg(text("timeout", "How long to wait for an answer").default_value("1s"))
}

/// A client over the socket that the flags name.
pub async fn client(matches: &ArgMatches, console: &Console<'_>) -> anyhow::Result<WorkloadClient> {
    Ok(workload_api::client(dial::AGENT.channel(matches, console).await?))
}

/// A request that also tells the agent how long `-timeout` is, so that it can answer in time.
pub fn timed_request<T>(matches: &ArgMatches, message: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    request.set_timeout(timeout(matches)?);
    Ok(request)
}

/// Waits for an answer as long as `-timeout` says.
pub async fn within<T>(
    matches: &ArgMatches,
    what: &str,
    call: impl Future<Output = Result<T, Status>>,
) -> anyhow::Result<T> {
    let limit = timeout(matches)?;
    let start = Instant::now();
    let overdue = || anyhow::anyhow!("{what}: no answer within {limit:?}");
    tokio::time::timeout(limit, call)
        .await
        .map_err(|_elapsed| overdue())?
        .map_err(|status| match status.code() {
            // The transport keeps the same time, and may be the first to notice.
            Code::Cancelled | Code::DeadlineExceeded if start.elapsed() >= limit * 9 / 10 => overdue(),
            _ => dial::status(what, &status),
        })
}

/// The first message of a stream, within `-timeout`.
pub async fn first<T>(
    matches: &ArgMatches,
    what: &str,
    open: impl Future<Output = Result<Response<tonic::Streaming<T>>, Status>>,
) -> anyhow::Result<T> {
    within(matches, what, first_message(open)).await
}

/// The first message of a stream, as long as that may take.
pub async fn first_message<T>(
    open: impl Future<Output = Result<Response<tonic::Streaming<T>>, Status>>,
) -> Result<T, Status> {
    let mut stream = open.await?.into_inner();
    stream
        .message()
        .await?
        .ok_or_else(|| Status::unavailable("the stream ended without an answer"))
}

fn timeout(matches: &ArgMatches) -> anyhow::Result<Duration> {
    parse_duration(value(matches, "timeout").unwrap_or("1s")).context("invalid -timeout")
}
