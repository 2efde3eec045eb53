//! Keys of SPIRE that this version does not serve: refused where ignoring them would change what the agent does
//! or whom it serves, else accepted with a warning.

use finial_identity::settings::Section;

/// The keys of the `agent` block.
pub(super) fn agent(agent: &Section<'_>, warnings: &mut Vec<String>) {
    let mut profiling = agent.bool("profiling_enabled").unwrap_or_default();
    for key in ["profiling_port", "profiling_freq", "profiling_names"] {
        profiling |= agent.ignore(key);
    }
    if profiling {
        warnings.push("agent.profiling_*: profiling is not served; the keys have no effect".to_owned());
    }
}

/// The keys of the `experimental` block.
pub(super) fn experimental(section: &Section<'_>, warnings: &mut Vec<String>) {
    if section.bool("use_sync_authorized_entries") == Some(false) {
        warnings.push(
            "agent.experimental.use_sync_authorized_entries: changes alone are always asked for; the key has no effect"
                .to_owned(),
        );
    }
    if section.bool("require_pq_kem").unwrap_or_default() {
        section.problem(
            "require_pq_kem",
            "is not served: the TLS library that this build uses has no hybrid post-quantum key exchange",
        );
    }
    for key in ["named_pipe_name", "admin_named_pipe_name"] {
        if section.ignore(key) {
            warnings.push(format!(
                "agent.experimental.{key}: is for Windows; the key has no effect"
            ));
        }
    }
}
