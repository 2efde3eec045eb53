//! A configuration file, from its path to its document.

use std::path::{Path, PathBuf};

use super::{Document, Format, MAX_TEXT, ParseError, SettingsError, expand_env};
use crate::process::private_file::{self, FileError};

/// Looks a variable of the environment up.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("failed to read configuration: {0}")]
    File(#[from] FileError),
    /// It is not HCL, JSON or YAML.
    #[error("failed to parse configuration: {}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: ParseError,
    },
    /// What it says is wrong.
    #[error("{0}")]
    Settings(#[from] SettingsError),
}

impl Document {
    /// The text of a file. With `variables` names such as `$NAME` in it are replaced by what they look up.
    ///
    /// # Errors
    /// [`ConfigError::File`]
    pub fn read_text(path: &Path, variables: Option<Variables<'_>>) -> Result<String, ConfigError> {
        let text = private_file::read_text(path, MAX_TEXT)?;
        Ok(match variables {
            Some(look_up) => expand_env(&text, look_up),
            None => text,
        })
    }

    /// Parses a text as if it were the file at `path`, whose extension is the format.
    ///
    /// # Errors
    /// [`ConfigError::Parse`]
    pub fn parse_file(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::parse(text, Format::from_path(path)).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source,
        })
    }
}
