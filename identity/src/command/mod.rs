//! How the programs' commands take flags, print, and find the Unix socket they talk to.
//!
//! The commands themselves stand in `server::cli` and `agent::cli`; what is here is what both spell
//! alike, as SPIRE's commands do.

mod console;
pub mod dial;
pub mod flags;
pub mod logger;
mod time_text;
pub mod workload_api;

pub use console::{Console, wants_json};
pub use time_text::{local, utc};
