//! Compatibility with the original programs: objects that were written for the original controller-manager give the
//! entries that it makes, and it and the original agent work with our server in one cluster.
//!
//! `SPIRE_BIN_DIR` names the folder of `spire-controller-manager` and `spire-agent`. They are on no package registry, so
//! what needs them is skipped without it, even where all peers are required; our own half runs everywhere.

mod agent;
mod installation;
mod manager;
mod objects;
mod ours;
mod seen;

use std::path::PathBuf;

/// The one trust domain and cluster of all that is here, and the class of the objects.
const TRUST_DOMAIN: &str = "originals.test";
const NAME: &str = "originals";

/// An original program; says loudly when it is not there.
fn original(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os("SPIRE_BIN_DIR")
        .map(|dir| PathBuf::from(dir).join(name))
        .filter(|program| program.is_file());
    if found.is_none() {
        finial_tests::skipped(&format!("SPIRE_BIN_DIR names no folder with {name}"));
    }
    found
}
