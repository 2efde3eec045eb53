//! `finial dev`: a server and an agent in one process and one directory, to try things out.
//!
//! It does what an operator does, in the same order and over the same sockets: start the server, hand
//! its bundle and a join token to the agent, register an entry for the calling user. Then it does what
//! a workload does: it fetches an X.509-SVID and a JWT-SVID and prints them.

mod directory;
pub(crate) mod operator;
mod progress;
mod show;
mod workload;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{ArgMatches, Command};
use finial_agent::config::{Essentials, JoinToken, Keys};
use finial_agent::node::{BootstrapSource, BundleFormat, NodeState};
use finial_identity::command::flags::{is_set, switch, text, value};
use finial_identity::process::log::{self, LogControl, LogFormat, LogLevel, LogOptions};
use finial_identity::process::umask::{UMASK_FLOOR, raise_umask_floor};
use finial_identity::process::{Clock, TaskSet};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::directory::Directory;
use self::operator::Operator;
use self::progress::Progress;
use crate::runtime;

/// How long the agent may take to get its own SVID.
const JOIN_LIMIT: Duration = Duration::from_secs(30);

pub fn command() -> Command {
    Command::new("dev")
        .about("Runs a server and an agent to try things out, and prints the first SVIDs")
        .arg(text("dir", "Directory for everything that is kept").default_value("./finial-dev"))
        .arg(text("trust-domain", "Name of the trust domain").default_value("example.org"))
        .arg(switch("once", "Stops after the SVIDs were printed"))
}

pub fn run(matches: &ArgMatches) -> anyhow::Result<()> {
    let name = value(matches, "trust-domain").unwrap_or("example.org");
    let trust_domain = TrustDomain::parse(name).with_context(|| format!("invalid trust domain {name:?}"))?;
    let dir = value(matches, "dir")
        .map(PathBuf::from)
        .context("--dir must not be empty")?;
    let once = is_set(matches, "once");
    raise_umask_floor(UMASK_FLOOR);
    runtime::multi_thread()?.block_on(serve(&dir, trust_domain, once))
}

/// Runs the server, and in parallel everything else, until the first failure, an interruption, or, with
/// `once`, until the SVIDs were printed.
async fn serve(dir: &Path, trust_domain: TrustDomain, once: bool) -> anyhow::Result<()> {
    let interrupts = Interrupts::listen()?;
    let mut progress = Progress::start();
    let mut directory = Directory::open(dir)?;
    let clock = Clock::system();
    let log = start_log(&directory, &clock)?;
    progress.step(format!(
        "directory {}, log in {}",
        directory.path().display(),
        directory.log().display()
    ))?;

    let server = start_server(&mut directory, &trust_domain, &clock, log.clone()).await?;
    let address = server.tcp_addr();
    progress.step(format!(
        "server of {trust_domain} listens on {address} and {}",
        directory.server_socket().display()
    ))?;

    let mut tasks = TaskSet::new();
    let stop = tasks.stop_signal();
    tasks.spawn("server", server.run(stop.stopped_owned()));
    let mut outcome = Ok(());
    let session = async {
        outcome = session(
            &directory,
            &trust_domain,
            address,
            &Process { clock, log, once },
            interrupts,
            &mut progress,
        )
        .await;
    };
    tasks.run_until_first_exit(session).await?;
    outcome
}

/// What holds for the whole process.
struct Process {
    clock: Clock,
    log: LogControl,
    /// Ends after the first SVIDs.
    once: bool,
}

/// What happens while the server runs: the operator's steps, the agent, the workload's steps.
async fn session(
    directory: &Directory,
    trust_domain: &TrustDomain,
    server: SocketAddr,
    process: &Process,
    mut interrupts: Interrupts,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let Process { clock, log, once } = process;
    let operator = Operator::connect(directory.server_socket()).await?;
    operator.save_bundle(&directory.bundle()).await?;
    let authority = operator.x509_authority().await?;
    progress.step(format!("X.509 authority {authority} signs"))?;
    let node = SpiffeId::new(trust_domain, "/dev/node")?;
    let token = match operator.valid_agent(clock.unix()).await? {
        Some(_) if directory.has_agent() => None,
        _ => {
            directory.forget_agent()?;
            let token = operator.join_token(&node).await?;
            progress.step("join token made for a new agent")?;
            Some(token)
        }
    };

    let config = finial_agent::config::Config::embedded(Essentials {
        trust_domain: trust_domain.clone(),
        server_address: server.ip().to_string(),
        server_port: server.port(),
        bootstrap: BootstrapSource::File {
            path: directory.bundle(),
            format: BundleFormat::Pem,
        },
        data_dir: directory.agent(),
        socket_path: directory.agent_socket(),
        keys: Keys::Disk(directory.agent()),
        join_token: token.map(|token| JoinToken::Given(token.into())),
    });
    let agent = finial_agent::app::build(config, clock.clone(), log.clone())
        .await
        .context("start the agent")?;
    let state = agent.state();
    let stop = CancellationToken::new();
    let mut running = std::pin::pin!(agent.run(stop.clone().cancelled_owned()));
    let steps = async {
        joined(state).await?;
        let agent_id = operator
            .valid_agent(clock.unix())
            .await?
            .context("the server does not know the agent")?;
        progress.step(format!("agent {agent_id} is attested"))?;
        demonstrate(&operator, directory, trust_domain, &node, clock, progress).await?;
        if *once {
            return Ok(());
        }
        show::next_steps(directory, &node)?;
        interrupts.next().await;
        progress.step("stopping")
    };
    let outcome = tokio::select! {
        ended = &mut running => match ended {
            Ok(()) => bail!("the agent ended"),
            Err(error) => return Err(error).context("the agent ended"),
        },
        outcome = steps => outcome,
    };
    stop.cancel();
    running.await.context("stop the agent")?;
    outcome
}

/// An entry for the calling user, then what a workload of that user gets.
async fn demonstrate(
    operator: &Operator,
    directory: &Directory,
    trust_domain: &TrustDomain,
    node: &SpiffeId,
    clock: &Clock,
    progress: &mut Progress,
) -> anyhow::Result<()> {
    let uid = rustix::process::getuid().as_raw();
    let id = SpiffeId::new(trust_domain, &format!("/user/{uid}"))?;
    let selector = format!("unix:uid:{uid}");
    let created = operator.ensure_entry(&id, node, &selector).await?;
    let verb = if created { "created" } else { "found" };
    progress.step(format!("entry {verb}: {id} for {selector}"))?;

    let mut workload = workload::Workload::connect(directory.agent_socket()).await?;
    let svid = workload.x509_svid(&id).await?;
    progress.step("X.509-SVID fetched over the Workload API")?;
    show::x509(&svid)?;
    let token = workload.jwt_svid(&id, trust_domain.as_str()).await?;
    progress.step(format!("JWT-SVID fetched for the audience {trust_domain}"))?;
    show::jwt(&token, clock.now())
}

/// Waits until the agent has an SVID of its own.
async fn joined(mut state: watch::Receiver<NodeState>) -> anyhow::Result<()> {
    let serving = tokio::time::timeout(JOIN_LIMIT, state.wait_for(NodeState::is_serving)).await;
    match serving.map(|seen| seen.is_ok()) {
        Ok(true) => Ok(()),
        Ok(false) => bail!("the agent ended before it was attested"),
        Err(_) => bail!(
            "the agent was not attested within {JOIN_LIMIT:?}; its state: {:?}",
            *state.borrow()
        ),
    }
}

/// The port of the last run is taken again when it is free, so that what was configured with it continues.
async fn start_server(
    directory: &mut Directory,
    trust_domain: &TrustDomain,
    clock: &Clock,
    log: LogControl,
) -> anyhow::Result<finial_server::app::Bound> {
    let config = |port| {
        finial_server::config::Config::dev(
            trust_domain.clone(),
            &directory.server(),
            &directory.server_socket(),
        )
        .with_bind(SocketAddr::from(([127, 0, 0, 1], port)))
    };
    let port = directory.port();
    let is_free = std::net::TcpListener::bind(("127.0.0.1", port)).is_ok();
    let port = if is_free { port } else { 0 };
    let bound = finial_server::app::build(config(port), clock.clone(), log)
        .await
        .context("start the server")?;
    directory.remember_port(bound.tcp_addr().port())?;
    Ok(bound)
}

fn start_log(directory: &Directory, clock: &Clock) -> anyhow::Result<LogControl> {
    log::start(LogOptions {
        level: LogLevel::Info,
        format: LogFormat::Text,
        file: Some(directory.log()),
        source_location: false,
        clock: clock.clone(),
    })
    .context("start the log")
}

/// SIGINT and SIGTERM.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Interrupts {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
