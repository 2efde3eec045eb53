//! `helper`: spiffe-helper's flags and exit codes.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::Console;
use finial_identity::command::flags::{switch, text, tristate, value};
use finial_identity::process::Clock;
use finial_identity::settings::parse_duration;
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::helper::{self, Flags, HelperConfig};
use crate::telemetry::LogSettings;

/// As spiffe-helper has it: in the working directory.
const DEFAULT_CONFIG_PATH: &str = "helper.conf";

/// `helper` and `helper validate`
pub fn command() -> Command {
    let about = "Writes identities to files, for programs that cannot call the Workload API";
    file_flags(Command::new("helper").about(about))
        .args([
            text("timeout", "How long to try without daemon mode; 0 for ever").default_value("5m"),
            text("logFormat", "Format of logs, text or json"),
            text("logLevel", "Level of logs: debug, info, warn or error"),
        ])
        .args_conflicts_with_subcommands(true)
        .subcommand(file_flags(
            Command::new("validate").about("Checks a configuration file of the helper"),
        ))
}

fn file_flags(command: Command) -> Command {
    command.args([
        text("config", "Path of the configuration file").default_value(DEFAULT_CONFIG_PATH),
        text("agentAddress", "The agent's socket, instead of agent_address"),
        switch(
            "daemon-mode",
            "Whether to keep the files up to date, instead of daemon_mode",
        ),
    ])
}

/// Keeps the files up to date until SIGINT or SIGTERM, or writes them once.
///
/// # Errors
/// One sentence for the operator.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let config = HelperConfig::load(&flags(matches), console.variable)?;
    let limit = parse_duration(value(matches, "timeout").unwrap_or_default()).context("invalid -timeout")?;
    let clock = Clock::system();
    log_settings(matches)?.start_on_standard_error(clock.clone())?;
    for warning in config.warnings() {
        tracing::warn!(configuration = %warning, "configuration has a part that deserves attention");
    }
    let stopped = ending_signal()?;
    let socket = config.socket().display().to_string();
    tracing::info!(socket, daemon_mode = config.daemon_mode(), "helper started");
    if config.daemon_mode() {
        let is_first_process = std::process::id() == 1;
        let daemon = helper::build(config, clock, is_first_process).await?;
        daemon.run(stopped).await?;
    } else {
        let limit = (limit != Duration::ZERO).then_some(limit);
        tokio::select! {
            outcome = helper::once(&config, &clock, limit) => outcome?,
            _ = stopped => anyhow::bail!("stopped by a signal before everything was written"),
        }
    }
    tracing::info!("helper stopped");
    Ok(())
}

/// Checks the configuration without starting anything.
///
/// # Errors
/// All mistakes, one a line.
pub fn validate(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let config = HelperConfig::load(&flags(matches), console.variable)
        .context("helper configuration file is invalid")?;
    for warning in config.warnings() {
        console.warn(format!("Warning: {warning}"))?;
    }
    console.line("Helper configuration file is valid.")
}

fn flags(matches: &ArgMatches) -> Flags {
    Flags {
        config: PathBuf::from(value(matches, "config").unwrap_or(DEFAULT_CONFIG_PATH)),
        agent_address: value(matches, "agentAddress").map(str::to_owned),
        daemon_mode: tristate(matches, "daemon-mode"),
    }
}

fn log_settings(matches: &ArgMatches) -> anyhow::Result<LogSettings> {
    let mut settings = LogSettings::default();
    if let Some(level) = value(matches, "logLevel") {
        settings.level = level.parse().context("-logLevel")?;
    }
    if let Some(format) = value(matches, "logFormat") {
        settings.format = format.parse().context("-logFormat")?;
    }
    Ok(settings)
}

/// Completes with the first SIGINT or SIGTERM and says which.
fn ending_signal() -> anyhow::Result<impl Future<Output = Signal>> {
    let listen = |kind| signal(kind).context("listen for signals");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            Some(()) = interrupt.recv() => Signal::INT,
            Some(()) = terminate.recv() => Signal::TERM,
            else => std::future::pending().await,
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use super::*;

    fn validated(text: &str, flags: &[&str]) -> anyhow::Result<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("helper.conf");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        let arguments = ["helper", "validate", "--config", &path];
        let matches = command().try_get_matches_from(arguments.iter().chain(flags))?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            input: &mut std::io::empty(),
            variable: &|_| None,
        };
        validate(matches.subcommand_matches("validate").unwrap(), &mut console)?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap()))
    }

    #[test]
    fn validate_says_that_the_file_is_valid_and_warns_beside() {
        let text = "jwt_bundle_file_name = \"b\" cmd = \"a\"";
        let (out, err) = validated(text, &["--daemon-mode=false"]).unwrap();
        assert_eq!(out, "Helper configuration file is valid.\n");
        assert_eq!(err, "Warning: cmd: has no effect with daemon_mode = false\n");
        let error = format!("{:#}", validated("cert_dir = 1 x = 2", &[]).unwrap_err());
        assert!(
            error.starts_with("helper configuration file is invalid: unknown configuration"),
            "{error}"
        );
    }

    #[test]
    fn spiffe_helpers_flags_are_read() {
        let of = |arguments: &[&str]| {
            let all = ["helper"].iter().chain(arguments);
            flags(&command().try_get_matches_from(all).unwrap())
        };
        assert_eq!(of(&[]).config, PathBuf::from("helper.conf"));
        assert_eq!(of(&[]).daemon_mode, None);
        let given = of(&["--config", "a.conf", "--daemon-mode=false"]);
        assert_eq!(
            (given.config, given.daemon_mode),
            (PathBuf::from("a.conf"), Some(false))
        );
        assert_eq!(of(&["--daemon-mode"]).daemon_mode, Some(true));
    }
}
