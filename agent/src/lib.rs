//! The agent as a library.
//!
//! Flow: `cli` reads flags, `config` the file, and `app` puts the parts together. A workload's call reaches
//! `endpoints`, which finds out the calling process, asks `workload` for facts about it, and hands out what
//! `svids` holds for them. `svids` learns entries and bundles and has keys signed; `node` keeps the agent's own
//! identity; both reach the server through `upstream` alone. `csi` and `helper` are processes of their own.

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
mod test_pki;
#[cfg(test)]
mod test_server;
#[cfg(test)]
mod test_world;
