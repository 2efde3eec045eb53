//! The runtimes that the programs run on, and the standard streams and variables of their commands.

use std::io::{stderr, stdin, stdout};

use anyhow::Context;
use clap::ArgMatches;
use finial_identity::command::Console;
use tokio::runtime::{Builder, Runtime};

/// Server: many connections, signing and a store; one multi-thread runtime.
pub fn server(matches: &ArgMatches) -> anyhow::Result<()> {
    let runtime = multi_thread()?;
    with_console(|console| runtime.block_on(finial_server::cli::run(matches, console)))
}

/// Agent: one current-thread runtime for its sockets; attestors and disk use its blocking pool.
pub fn agent(matches: &ArgMatches) -> anyhow::Result<()> {
    let runtime = current_thread()?;
    with_console(|console| runtime.block_on(finial_agent::cli::run(matches, console)))
}

/// `finial why`: one call to the agent's admin socket or the Workload API, or about a pod to the server's private socket.
/// Gives whether there is an identity, where that was asked.
pub fn why(matches: &ArgMatches) -> anyhow::Result<bool> {
    let runtime = current_thread()?;
    with_console(|console| {
        if finial_server::cli::why::is_about_pod(matches) {
            return runtime.block_on(finial_server::cli::why::run(matches, console));
        }
        runtime.block_on(finial_agent::cli::why::run(matches, console))
    })
}

/// A runtime with as many threads as the machine has cores.
pub fn multi_thread() -> anyhow::Result<Runtime> {
    Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

/// A runtime on the calling thread.
pub fn current_thread() -> anyhow::Result<Runtime> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .context("start the runtime")
}

#[allow(clippy::disallowed_methods)] // the one place that reads the environment
fn with_console<T>(act: impl FnOnce(&mut Console<'_>) -> T) -> T {
    let (mut out, mut err, mut input) = (stdout(), stderr(), stdin());
    let variable = |name: &str| std::env::var(name).ok();
    act(&mut Console {
        out: &mut out,
        err: &mut err,
        input: &mut input,
        variable: &variable,
    })
}
