//! `finial agent helper`: identities as files, for programs that cannot use the Workload API. It runs next to the
//! workload, as spiffe-helper does, and takes that program's configuration.
//!
//! Flow: `config` is checked, then `daemon` (until stopped) or `once` (files, and done). `feed` follows the streams of
//! the Workload API and `tokens` renews JWT-SVIDs; `content` makes the files' contents from their answers; `writer`
//! tries until `swap` has replaced all files in one step; `command` and `pid_file` notify the programs that read the
//! files; `health` answers probes.

mod backoff;
mod command;
mod config;
mod content;
mod daemon;
mod feed;
mod health;
mod once;
mod pid_file;
mod signals;
mod swap;
#[cfg(test)]
mod testing;
mod tokens;
mod writer;

pub use config::{ConfigError, Flags, HelperConfig};
pub use daemon::{BuildError, Daemon, build};
pub use once::{OnceError, once};
