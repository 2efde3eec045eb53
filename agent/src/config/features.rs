//! `agent.experimental.feature_flags`: what is not stable yet and off unless it is named.

use finial_identity::settings::Section;

/// What is switched on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// `wit-svid`: the WIT profile of the Workload API (Incubating).
    pub wit_svids: bool,
}

pub(super) fn read(section: &Section<'_>) -> Features {
    let mut features = Features::default();
    for flag in section.strings("feature_flags") {
        match flag.as_str() {
            "wit-svid" => features.wit_svids = true,
            _ => section.problem("feature_flags", format!("unknown feature flag: {flag}")),
        }
    }
    features
}
