//! Entry points of the fuzzer into `finial-server`.

use std::path::Path;

use finial_server::config::{Config, Flags};

/// A target's name, which is also the folder of its corpus, and what runs it.
pub type Target = (&'static str, fn(&[u8]));

/// All targets of this part.
pub const TARGETS: &[Target] = &[("server_config", run_config)];

/// The configuration file, in the format that its first word fits.
fn run_config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let name = if text.starts_with("server:") {
        "server.yaml"
    } else {
        "server.conf"
    };
    match Config::parse(text, Path::new(name), &Flags::default()) {
        Ok(config) => assert!(config.trust_domain().as_str().len() <= 255),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
