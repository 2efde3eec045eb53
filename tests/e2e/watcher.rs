//! A workload that holds a stream of the Workload API open: the `spiffe` crate's client.

use std::process::Command;

use finial_tests::{Program, Stack};

/// More updates than any test waits for.
pub const MANY: u32 = 100_000;

/// Prints a line `update <number> …` for each update, until there were as many as this.
pub fn watcher(stack: &Stack, updates: u32) -> Program {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rust-spiffe-client"));
    command
        .args(["watch", &updates.to_string()])
        .env("SPIFFE_ENDPOINT_SOCKET", stack.endpoint());
    Program::start("workload", &mut command)
}
