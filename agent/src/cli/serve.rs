//! `run` and `validate`.

use std::path::PathBuf;

use anyhow::Context;
use clap::{ArgMatches, Command};
use finial_identity::command::Console;
use finial_identity::command::flags::{switch, text, tristate, value};
use finial_identity::process::Clock;
use finial_identity::process::signals::Signals;
use finial_identity::process::umask::{UMASK_FLOOR, raise_umask_floor};
use zeroize::Zeroizing;

use crate::app;
use crate::config::{Config, DEFAULT_CONFIG_PATH, Flags, JoinToken};
use crate::telemetry::collector;

/// `run`
pub fn run_command() -> Command {
    run_flags(Command::new("run").about("Runs the agent"))
}

/// `validate`
pub fn validate_command() -> Command {
    run_flags(Command::new("validate").about("Checks a configuration file of the agent"))
}

/// Adds the flags that `run` and `validate` share.
fn run_flags(command: Command) -> Command {
    command.args([
        text("config", "Path of the configuration file").default_value(DEFAULT_CONFIG_PATH),
        text("dataDir", "Directory for what the agent keeps"),
        text("joinToken", "Token with which the agent joins"),
        text(
            "joinTokenFile",
            "File that holds the token with which the agent joins",
        ),
        text("logFile", "File to write logs to"),
        text("logFormat", "Format of logs, text or json"),
        text("logLevel", "Level of logs: debug, info, warn or error"),
        switch(
            "logSourceLocation",
            "Whether log lines tell their place in the source",
        ),
        text("serverAddress", "Host name or IP address of the server"),
        text("serverPort", "Port of the server").value_parser(clap::value_parser!(u16)),
        text("socketPath", "Path of the Workload API's socket"),
        text("trustDomain", "The trust domain of the agent"),
        switch("disableWorkloadAPI", "Does not serve the Workload API"),
        switch("disableSDSAPI", "Does not serve Envoy's secret discovery"),
        text(
            "trustBundle",
            "File with the authorities that vouch for the server",
        ),
        text(
            "trustBundleUrl",
            "URL of the authorities that vouch for the server",
        ),
        text("trustBundleFormat", "Format of the trust bundle, pem or spiffe"),
        switch(
            "allowUnauthenticatedVerifiers",
            "Gives the bundle to callers without identity",
        ),
        switch("insecureBootstrap", "Does not verify the server at first contact"),
        text(
            "rebootstrapMode",
            "What to do when the server is no longer trusted: never, auto or always",
        ),
        text("rebootstrapDelay", "How long to wait before trusting anew"),
        switch(
            "expandEnv",
            "Replaces $NAME and ${NAME} in the file by environment variables",
        ),
    ])
}

/// Runs the agent in the foreground until SIGINT or SIGTERM. Wants a runtime with one thread.
///
/// # Errors
/// One sentence for the operator.
pub async fn run(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    raise_umask_floor(UMASK_FLOOR);
    let config = Config::load(&flags(matches)?, console.variable)?;
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
        .context("start the agent")?;
    if let Some((_traces, exporter, channel)) = collector {
        bound.export_traces(exporter, channel);
    }
    let (mut files, env) = (bound.plugin_files(), console.variable);
    let stopped = signals.told_to_end(log, async || files.read_again(env).await);
    bound.run(stopped).await?;
    Ok(())
}

/// Checks the configuration without starting anything.
///
/// # Errors
/// All mistakes, one a line.
pub fn validate(matches: &ArgMatches, console: &mut Console<'_>) -> anyhow::Result<()> {
    let config = Config::load(&flags(matches)?, console.variable)
        .context("SPIRE agent configuration file is invalid")?;
    for warning in config.warnings() {
        console.warn(format!("Warning: {warning}"))?;
    }
    console.line("SPIRE agent configuration file is valid.")
}

fn flags(matches: &ArgMatches) -> anyhow::Result<Flags> {
    let text = |name| value(matches, name).map(str::to_owned);
    let join_token = match (text("joinToken"), text("joinTokenFile")) {
        (Some(_), Some(_)) => anyhow::bail!("only one of -joinToken and -joinTokenFile can be given"),
        (Some(token), None) => Some(JoinToken::Given(Zeroizing::new(token))),
        (None, file) => file.map(|file| JoinToken::File(PathBuf::from(file))),
    };
    Ok(Flags {
        config: text("config").map(PathBuf::from),
        data_dir: text("dataDir"),
        join_token,
        log_file: text("logFile"),
        log_format: text("logFormat"),
        log_level: text("logLevel"),
        log_source_location: tristate(matches, "logSourceLocation"),
        server_address: text("serverAddress"),
        server_port: matches.get_one::<u16>("serverPort").copied(),
        socket_path: text("socketPath"),
        trust_domain: text("trustDomain"),
        disable_workload_api: tristate(matches, "disableWorkloadAPI"),
        disable_sds_api: tristate(matches, "disableSDSAPI"),
        trust_bundle: text("trustBundle"),
        trust_bundle_url: text("trustBundleUrl"),
        trust_bundle_format: text("trustBundleFormat"),
        allow_unauthenticated_verifiers: tristate(matches, "allowUnauthenticatedVerifiers"),
        insecure_bootstrap: tristate(matches, "insecureBootstrap"),
        rebootstrap_mode: text("rebootstrapMode"),
        rebootstrap_delay: text("rebootstrapDelay"),
        expand_env: tristate(matches, "expandEnv").unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use super::*;

    const FILE: &str = r#"
        agent { trust_domain = "$TD" server_address = "a" server_port = 1 insecure_bootstrap = true }
        plugins { KeyManager "memory" {} NodeAttestor "join_token" {} WorkloadAttestor "unix" {} }
    "#;

    /// What `validate` with these flags prints, on standard output and error.
    fn validated(text: &str, flags: &[&str]) -> anyhow::Result<(String, String)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.conf");
        std::fs::write(&path, text).unwrap();
        let path = path.display().to_string();
        let arguments = ["validate", "--config", &path]
            .into_iter()
            .chain(flags.iter().copied());
        let matches = validate_command().try_get_matches_from(arguments)?;
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let mut console = Console {
            out: &mut out,
            err: &mut err,
            input: &mut std::io::empty(),
            variable: &|name| (name == "TD").then(|| "example.org".to_owned()),
        };
        validate(&matches, &mut console)?;
        Ok((String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap()))
    }

    #[test]
    fn validate_says_that_the_file_is_valid_and_warns_beside() {
        let (out, err) = validated(FILE, &["--expandEnv"]).unwrap();
        assert_eq!(out, "SPIRE agent configuration file is valid.\n");
        assert!(err.starts_with("Warning: agent.insecure_bootstrap"), "{err}");
    }

    #[test]
    fn validate_tells_every_mistake_and_flags_repair_the_file() {
        let text = FILE.replace("server_port = 1", "sever_port = 1");
        let error = validated(&text, &[]).unwrap_err();
        let error = format!("{error:#}");
        for part in [
            "file is invalid",
            "unknown configuration detected",
            "server_port",
            "trust_domain",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let flags = ["--trustDomain", "example.org", "--joinToken=secret"];
        assert!(validated(FILE, &flags).is_ok());
    }

    #[test]
    fn two_tokens_are_one_too_many() {
        let flags = ["--expandEnv", "--joinToken", "a", "--joinTokenFile", "/t"];
        let error = validated(FILE, &flags).unwrap_err().to_string();
        assert_eq!(error, "only one of -joinToken and -joinTokenFile can be given");
    }

    #[test]
    fn run_takes_the_same_flags() {
        let names = |command: Command| -> Vec<String> {
            command
                .get_arguments()
                .map(|argument| argument.get_id().to_string())
                .collect()
        };
        assert_eq!(names(run_command()), names(validate_command()));
        assert_eq!(names(run_command()).len(), 22);
    }
}
