//! The `health_checks` block.

use finial_identity::settings::Section;

use super::HealthChecks;

/// Reads the block; `None` when the listener is off.
pub(super) fn read(section: Section<'_>) -> Option<HealthChecks> {
    let enabled = section.bool("listener_enabled").unwrap_or_default();
    let address = section.string("bind_address");
    let port = section.u16("bind_port").filter(|port| *port != 0);
    let path = |key: &str| section.parse(key, plain_path);
    let (live_path, ready_path) = (path("live_path"), path("ready_path"));
    section.finish();
    enabled.then(|| HealthChecks {
        address: address.unwrap_or_else(|| "localhost".to_owned()),
        port: port.unwrap_or(80),
        live_path: live_path.unwrap_or_else(|| "/live".to_owned()),
        ready_path: ready_path.unwrap_or_else(|| "/ready".to_owned()),
    })
}

/// A path without what the router would take for a pattern.
fn plain_path(path: &str) -> Result<String, String> {
    if path.starts_with('/') && !path.contains(['{', '}', '*', ':']) {
        Ok(path.to_owned())
    } else {
        Err(format!("must be a plain path that begins with a slash: {path}"))
    }
}
