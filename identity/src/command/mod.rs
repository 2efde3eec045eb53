//! How the programs' commands read flags, print, and find the Unix socket of the program they call.
//!
//! The commands themselves are in `server::cli` and `agent::cli`; here are the parts that are the same in
//! both, as in SPIRE's commands.

mod console;
pub mod dial;
pub mod flags;
pub mod logger;
mod time_text;
pub mod workload_api;

pub use console::{Console, wants_json};
pub use time_text::{local, utc};
