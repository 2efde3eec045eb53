//! JWT-SVIDs from the agent: the same audience (from its cache) and a new one each time (signed by the server).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Command;
use finial_agent::endpoints::client::WorkloadClient;
use finial_identity::command::dial::status;
use finial_proto::workload::JwtsvidRequest;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::bare::{self, Bare};
use super::meter::Meter;
use super::report::{Cell, Report, Row};
use super::run::{Run, number, of_socket};
use super::samples::Samples;
use super::workload::connect;

/// The sides take turns this often.
const ROUNDS: usize = 5;

/// Calls in flight at a time.
const IN_FLIGHT: [usize; 2] = [1, 16];

/// The command.
pub fn command() -> Command {
    of_socket(
        "jwt",
        "Rate and CPU time of JWT-SVIDs, from the cache and new ones",
    )
    .arg(number("count", "How many calls of each kind", 10_000_000).default_value("5000"))
}

/// Measures.
///
/// # Errors
/// When no call of a kind succeeds.
pub async fn measure(run: &Run<'_>) -> anyhow::Result<Report> {
    let identity = run.identity().await?;
    let agent = run.agent_meter().await?;
    let id = &identity.spiffe_id;
    let ours = connect(&run.socket()).await?;
    let token = fetch(&mut ours.clone(), id, "bench").await?;
    let bare = Bare::start(&identity.stream.first, token.len()).await?;
    let bare_meter = bare.meter()?;
    let limit = connect(&bare.socket()).await?;
    let server = run.server_meter().await?;
    let unique = Arc::new(AtomicUsize::new(0));
    let stamp = token_stamp(&token);

    let mut report = Report::new("jwt");
    for in_flight in IN_FLIGHT {
        let case = |name: &str| format!("{name}, {in_flight} in flight");
        let mut hot = Calls::of(&agent, None);
        let mut cold = Calls::of(&agent, server.as_ref());
        let mut echo = Calls::of(&bare_meter, None);
        for _ in 0..ROUNDS {
            let share = (run.count("count") / ROUNDS).max(1);
            let same: Audience = Arc::new(|| "bench".to_owned());
            let unique = Arc::clone(&unique);
            let stamp = stamp.clone();
            let new: Audience =
                Arc::new(move || format!("bench-{stamp}-{}", unique.fetch_add(1, Ordering::Relaxed)));
            hot.add(&ours, id, share, in_flight, &same).await?;
            cold.add(&ours, id, share, in_flight, &new).await?;
            echo.add(&limit, bare::SPIFFE_ID, share, in_flight, &same).await?;
        }
        report.add(hot.row(case("same audience")));
        report.add(echo.row(case("bare gRPC")));
        report.add(cold.row(case("new audience")));
        report.add(
            Row::new(case("same audience, ratio"))
                .ratio("rate", hot.rate(), echo.rate())
                .ratio(
                    "p50",
                    hot.times.p50().as_secs_f64(),
                    echo.times.p50().as_secs_f64(),
                )
                .ratio(
                    "cpu per call",
                    hot.cpu_per_call().as_secs_f64(),
                    echo.cpu_per_call().as_secs_f64(),
                ),
        );
    }
    Ok(report)
}

type Audience = Arc<dyn Fn() -> String + Send + Sync>;

struct Calls<'a> {
    agent: &'a Meter,
    server: Option<&'a Meter>,
    times: Samples,
    failed: usize,
    wall: Duration,
    cpu: Duration,
    server_cpu: Duration,
}

impl<'a> Calls<'a> {
    fn of(agent: &'a Meter, server: Option<&'a Meter>) -> Self {
        Calls {
            agent,
            server,
            times: Samples::new(),
            failed: 0,
            wall: Duration::ZERO,
            cpu: Duration::ZERO,
            server_cpu: Duration::ZERO,
        }
    }

    async fn add(
        &mut self,
        client: &WorkloadClient,
        id: &str,
        count: usize,
        in_flight: usize,
        audience: &Audience,
    ) -> anyhow::Result<()> {
        let server = || self.server.map_or(Ok(Duration::ZERO), Meter::cpu);
        let (cpu, server_cpu, start) = (self.agent.cpu()?, server()?, Instant::now());
        let left = Arc::new(AtomicUsize::new(count));
        let mut tasks = JoinSet::new();
        for _ in 0..in_flight {
            let (client, id, audience) = (client.clone(), id.to_owned(), Arc::clone(audience));
            tasks.spawn(call_until_none_left(client, id, audience, Arc::clone(&left)));
        }
        let mut failure = None;
        let mut succeeded = 0;
        while let Some(done) = tasks.join_next().await {
            let (times, failures) = done.context("a caller's task")?;
            succeeded += times.len();
            self.times.extend(times);
            self.failed += failures.len();
            failure = failures.into_iter().next().or(failure);
        }
        if let Some(failure) = failure.filter(|_| succeeded == 0) {
            bail!("no call succeeded: {failure:#}");
        }
        self.wall += start.elapsed();
        self.cpu += self.agent.cpu()?.saturating_sub(cpu);
        let now = self.server.map_or(Ok(Duration::ZERO), Meter::cpu)?;
        self.server_cpu += now.saturating_sub(server_cpu);
        Ok(())
    }

    fn rate(&self) -> f64 {
        let calls = u32::try_from(self.times.len()).unwrap_or(u32::MAX);
        f64::from(calls) / self.wall.as_secs_f64().max(f64::EPSILON)
    }

    fn cpu_per_call(&self) -> Duration {
        self.cpu / u32::try_from(self.times.len()).unwrap_or(u32::MAX).max(1)
    }

    fn row(&self, case: String) -> Row {
        let calls = u32::try_from(self.times.len()).unwrap_or(u32::MAX).max(1);
        Row::new(case)
            .count("n", self.times.len())
            .count("failed", self.failed)
            .with("calls", Cell::Rate(self.rate()))
            .time("p50", self.times.p50())
            .time("p99", self.times.p99())
            .time("cpu per call", self.cpu_per_call())
            .time("server cpu per call", self.server_cpu / calls)
    }
}

async fn call_until_none_left(
    mut client: WorkloadClient,
    id: String,
    audience: Audience,
    left: Arc<AtomicUsize>,
) -> (Vec<Duration>, Vec<anyhow::Error>) {
    let (mut times, mut failures) = (Vec::new(), Vec::new());
    let take = |left: usize| left.checked_sub(1);
    while left
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
    {
        let audience = audience();
        let start = Instant::now();
        match fetch(&mut client, &id, &audience).await {
            Ok(_) => times.push(start.elapsed()),
            Err(failure) => failures.push(failure),
        }
    }
    (times, failures)
}

async fn fetch(client: &mut WorkloadClient, id: &str, audience: &str) -> anyhow::Result<String> {
    let request = JwtsvidRequest {
        audience: vec![audience.to_owned()],
        spiffe_id: id.to_owned(),
    };
    let answer = client.fetch_jwtsvid(request).await;
    let answer = answer
        .map_err(|error| status("fetch a JWT-SVID", &error))?
        .into_inner();
    let svid = answer
        .svids
        .into_iter()
        .next()
        .context("the agent sent no JWT-SVID")?;
    Ok(svid.svid)
}

/// Something that differs from run to run, so that an audience of an earlier run is not found in the cache.
fn token_stamp(token: &str) -> String {
    format!("{:x}", super::workload::mark_of(token.as_bytes()))
}
