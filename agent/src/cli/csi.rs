//! `csi`: the CSI driver, a separate process with the agent's configuration file.

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::Console;
use finial_identity::command::flags::{switch, text, tristate, value};
use finial_identity::process::Clock;
use finial_identity::process::umask::{UMASK_FLOOR, raise_umask_floor};
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{Config, DEFAULT_CONFIG_PATH, Flags};
use crate::csi;

/// `csi`
pub fn command() -> Command {
    Command::new("csi")
        .about("Runs the CSI driver that gives pods the agent's socket")
        .args([
            text("config", "Path of the agent's configuration file").default_value(DEFAULT_CONFIG_PATH),
            text("logFormat", "Format of logs, text or json"),
            text("logLevel", "Level of logs: debug, info, warn or error"),
            switch(
                "expandEnv",
                "Replaces $NAME and ${NAME} in the file by environment variables",
            ),
        ])
}

/// Runs the driver in the foreground until SIGINT or SIGTERM, or until the kubelet refuses it.
///
/// # Errors
/// One sentence for the operator.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    raise_umask_floor(UMASK_FLOOR);
    let text = |name| value(matches, name).map(str::to_owned);
    let flags = Flags {
        config: text("config").map(PathBuf::from),
        log_format: text("logFormat"),
        log_level: text("logLevel"),
        expand_env: tristate(matches, "expandEnv").unwrap_or_default(),
        ..Flags::default()
    };
    let config = Config::load(&flags, console.variable)?;
    let settings = config.csi().context("agent.csi: is required for the driver")?;
    let _log = config.log().start(Clock::system())?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for signals")?;
    let stopped = async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    let bound = csi::build(settings).await.context("start the CSI driver")?;
    bound.run(stopped).await?;
    Ok(())
}
