//! `server run` and `server validate`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::process::Clock;
use finial_identity::process::signals::Signals;
use finial_identity::process::umask::raise_umask_floor;

use crate::app;
use crate::config::{Config, DEFAULT_CONFIG_PATH, Flags};
use crate::kubernetes;
use crate::telemetry::collector;
use finial_identity::command::Console;
use finial_identity::command::flags::{switch, text, tristate, value};

/// `run`
pub fn run_command() -> Command {
    run_flags(Command::new("run").about("Runs the server"))
}

/// `validate`
pub fn validate_command() -> Command {
    run_flags(Command::new("validate").about("Checks a configuration file of the server"))
}

/// Adds the flags that `run` and `validate` share.
pub fn run_flags(command: Command) -> Command {
    command.args([
        text("config", "Path of the configuration file").default_value(DEFAULT_CONFIG_PATH),
        text("bindAddress", "IP address of the server"),
        text("serverPort", "Port of the server").value_parser(clap::value_parser!(u16)),
        text("dataDir", "Directory for what the server keeps"),
        text("logFile", "File to write logs to"),
        text("logFormat", "Format of logs, text or json"),
        text("logLevel", "Level of logs: debug, info, warn or error"),
        switch(
            "logSourceLocation",
            "Whether log lines tell their place in the source",
        ),
        text(
            "trustDomain",
            "The trust domain that the server is the authority of",
        ),
        text("socketPath", "Path of the private socket"),
        switch(
            "expandEnv",
            "Replaces $NAME and ${NAME} in the file by environment variables",
        ),
    ])
}

/// Runs the server in the foreground until SIGINT or SIGTERM.
///
/// # Errors
/// One sentence for the operator.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    raise_umask_floor(UMASK_FLOOR);
    let config = Config::load(&flags(matches), console.variable)?;
    let clock = Clock::system();
    let collector = config
        .telemetry()
        .open_telemetry
        .as_ref()
        .map(collector)
        .transpose()?;
    let traces = collector.as_ref().map(|(traces, ..)| traces.clone());
    let log = config.log().start_traced(clock.clone(), traces)?;
    for warning in config.warnings() {
        tracing::warn!(configuration = %warning, "configuration has a part that deserves attention");
    }
    let signals = Signals::listen().context("listen for signals")?;
    let mut bound = app::build(config, clock, log.clone())
        .await
        .context("start the server")?;
    if let Some((_traces, exporter, channel)) = collector {
        bound.export_traces(exporter, channel);
    }
    let stopped = signals.told_to_end(log, async || {
        tracing::info!(
            "files with data of plugins are read at start: a change has its effect after a restart"
        );
    });
    bound.run(stopped).await?;
    Ok(())
}

/// Checks the configuration without starting anything.
///
/// # Errors
/// All mistakes, one a line.
pub fn validate(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let invalid = "SPIRE server configuration file is invalid";
    let config = Config::load(&flags(matches), console.variable).context(invalid)?;
    kubernetes::check(config.kubernetes()).context(invalid)?;
    for warning in config.warnings() {
        console.warn(format!("Warning: {warning}"))?;
    }
    console.line("SPIRE server configuration file is valid.")
}

fn flags(matches: &ArgMatches) -> Flags {
    let text = |name| value(matches, name).map(str::to_owned);
    Flags {
        config: text("config").map(PathBuf::from),
        bind_address: text("bindAddress"),
        server_port: matches.get_one::<u16>("serverPort").copied(),
        data_dir: text("dataDir"),
        log_file: text("logFile"),
        log_format: text("logFormat"),
        log_level: text("logLevel"),
        log_source_location: tristate(matches, "logSourceLocation"),
        trust_domain: text("trustDomain"),
        socket_path: text("socketPath"),
        expand_env: tristate(matches, "expandEnv").unwrap_or_default(),
    }
}

/// Nothing that the server makes is for everybody to read, nor for the group to write.
const UMASK_FLOOR: u32 = 0o027;
