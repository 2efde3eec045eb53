//! The configuration of `finial agent helper`: spiffe-helper's keys in HCL, JSON or YAML. All mistakes are reported at
//! once.

mod arguments;
mod paths;
mod read;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use finial_identity::process::private_file::{self, FileError, FileMode};
use finial_identity::settings::{Document, Format, MAX_TEXT, ParseError, SettingsError};
use rustix::process::Signal;

/// What the flags say; they override the file.
#[derive(Clone, Debug)]
pub struct Flags {
    /// The configuration file.
    pub config: PathBuf,
    /// `agent_address`
    pub agent_address: Option<String>,
    /// `daemon_mode`
    pub daemon_mode: Option<bool>,
}

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct HelperConfig {
    pub(super) socket: PathBuf,
    pub(super) daemon_mode: bool,
    pub(super) x509: Option<X509Output>,
    pub(super) jwt_bundle: Option<OutputFile>,
    pub(super) jwt_svids: Vec<JwtSvidOutput>,
    pub(super) hint: Option<String>,
    pub(super) command: Option<CommandLine>,
    pub(super) pid_file: Option<PathBuf>,
    pub(super) renew_signal: Option<Signal>,
    pub(super) health_checks: Option<HealthChecks>,
    warnings: Vec<String>,
}

/// A file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OutputFile {
    /// Where, without `..`.
    pub(super) path: PathBuf,
    /// Its name below `cert_dir` as the configuration says it, for probes and logs.
    pub(super) shown: String,
    pub(super) mode: FileMode,
}

/// The files of an X.509-SVID, which change together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct X509Output {
    pub(super) svid: OutputFile,
    pub(super) key: OutputFile,
    pub(super) bundle: OutputFile,
    pub(super) add_intermediates_to_bundle: bool,
    pub(super) include_federated_domains: bool,
    pub(super) omit_expired: bool,
}

/// A JWT-SVID to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct JwtSvidOutput {
    /// `jwt_audience`, then `jwt_extra_audiences`.
    pub(super) audiences: Vec<String>,
    pub(super) file: OutputFile,
}

/// The program that uses the files, or notifies another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CommandLine {
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
}

/// The HTTP listener for probes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HealthChecks {
    pub(super) port: u16,
    pub(super) liveness_path: String,
    pub(super) readiness_path: String,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read configuration: {0}")]
    File(FileError),
    /// It is not HCL, JSON or YAML.
    #[error("failed to parse configuration: {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: ParseError,
    },
    /// What it says is wrong.
    #[error(transparent)]
    Settings(#[from] SettingsError),
}

impl HelperConfig {
    /// Reads the file that the flags name and applies the flags. `env` looks variables up.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn load(flags: &Flags, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let text = private_file::read_text(&flags.config, MAX_TEXT).map_err(ConfigError::File)?;
        Self::parse(&text, flags, env)
    }

    /// Checks a text as if it were the file that the flags name, whose extension is the format.
    ///
    /// # Errors
    /// All mistakes at once.
    pub fn parse(
        text: &str,
        flags: &Flags,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let path: &Path = &flags.config;
        let document =
            Document::parse(text, Format::from_path(path)).map_err(|source| ConfigError::Parse {
                path: path.to_owned(),
                source,
            })?;
        Ok(read::read(&document, flags, env)?)
    }

    /// Whether to keep the files up to date until stopped; otherwise they are written once.
    pub fn daemon_mode(&self) -> bool {
        self.daemon_mode
    }

    /// The agent's socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Parts that have no effect, and choices that deserve attention; one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}
