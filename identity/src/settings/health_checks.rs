//! The `health_checks` block, which is the same for server and agent.

use super::Section;

/// The HTTP health listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthChecks {
    /// Host name or address.
    pub address: String,
    /// Port.
    pub port: u16,
    /// Path of the liveness check.
    pub live_path: String,
    /// Path of the readiness check.
    pub ready_path: String,
}

impl HealthChecks {
    /// Reads the block; `None` when the listener is off.
    pub fn read(section: Section<'_>) -> Option<Self> {
        let enabled = section.bool("listener_enabled").unwrap_or_default();
        let address = section.string("bind_address");
        let port = section.u16("bind_port").filter(|port| *port != 0);
        let path = |key: &str| section.parse(key, plain_path);
        let (live_path, ready_path) = (path("live_path"), path("ready_path"));
        section.finish();
        enabled.then(|| Self {
            address: address.unwrap_or_else(|| "localhost".to_owned()),
            port: port.unwrap_or(80),
            live_path: live_path.unwrap_or_else(|| "/live".to_owned()),
            ready_path: ready_path.unwrap_or_else(|| "/ready".to_owned()),
        })
    }
}

/// A path without what the router would take for a pattern.
fn plain_path(path: &str) -> Result<String, String> {
    if path.starts_with('/') && !path.contains(['{', '}', '*', ':']) {
        Ok(path.to_owned())
    } else {
        Err(format!("must be a plain path that begins with a slash: {path}"))
    }
}
