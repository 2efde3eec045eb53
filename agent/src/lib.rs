//! The agent as a library.
//!
//! Flow: `cli` reads flags, `config` the file, and `app` builds the agent. A workload's call reaches
//! `endpoints`, which finds the calling process, gets facts about it from `workload`, and sends what
//! `svids` has for them. `svids` learns entries and bundles and has keys signed; `node` keeps the agent's own
//! identity; both use the server only through `upstream`. `csi` and `helper` are separate processes.

pub mod app;
pub mod cli;
pub mod config;
pub mod csi;
pub mod endpoints;
pub mod helper;
pub mod node;
pub mod socket_tree;
pub mod svids;
pub mod telemetry;
pub mod upstream;
pub mod workload;

#[cfg(test)]
mod test_agent;
#[cfg(test)]
mod test_http;
#[cfg(test)]
mod test_log;
#[cfg(test)]
mod test_pki;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod test_world;
