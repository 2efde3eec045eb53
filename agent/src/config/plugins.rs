//! The `plugins` block.

use std::path::PathBuf;

use finial_identity::settings::Section;

use super::attestors::{self, WorkloadAttestors};
use super::node_attestor::{read_k8s_psat, read_x509pop};
use super::{K8sPsatSettings, Keys, X509PopSettings};

/// What the plugins come to.
#[derive(Debug)]
pub(super) struct Plugins {
    /// Where keys are kept.
    pub(super) keys: Keys,
    /// `NodeAttestor "x509pop"`
    pub(super) x509pop: Option<X509PopSettings>,
    /// `NodeAttestor "k8s_psat"`
    pub(super) k8s_psat: Option<K8sPsatSettings>,
    /// `WorkloadAttestor`
    pub(super) workload_attestors: WorkloadAttestors,
}

/// Reads the block; `None` when something was reported that leaves a gap.
pub(super) fn read(plugins: Section<'_>, warnings: &mut Vec<String>) -> Option<Plugins> {
    let keys =
        exactly_one(&plugins, "KeyManager").and_then(|(name, section)| read_key_manager(&name, section));
    let (mut x509pop, mut k8s_psat) = (None, None);
    if let Some((name, section)) = exactly_one(&plugins, "NodeAttestor") {
        // Its token stands in the `agent` block.
        match name.as_str() {
            "join_token" => finish_plugin(section, |data| data.map(Section::finish)).unwrap_or_default(),
            "x509pop" => {
                if !section.has("plugin_data") {
                    section.problem(
                        "plugin_data",
                        "is required: private_key_path and certificate_path",
                    );
                }
                x509pop = finish_plugin(section, |data| {
                    let data = data?;
                    let settings = read_x509pop(&data);
                    data.finish();
                    settings
                });
            }
            "k8s_psat" => {
                if !section.has("plugin_data") {
                    section.problem("plugin_data", "is required: cluster");
                }
                k8s_psat = finish_plugin(section, |data| {
                    let data = data?;
                    let settings = read_k8s_psat(&data);
                    data.finish();
                    settings
                });
            }
            other => not_served(&section, "NodeAttestor", other),
        }
    }
    let workload_attestors = attestors::read(&plugins, warnings);
    for (name, section) in enabled(&plugins, "SVIDStore") {
        not_served(&section, "SVIDStore", &name);
    }
    plugins.finish();
    Some(Plugins {
        keys: keys?,
        x509pop,
        k8s_psat,
        workload_attestors,
    })
}

/// The blocks of a kind that are not switched off.
pub(super) fn enabled<'a>(plugins: &Section<'a>, kind: &str) -> Vec<(String, Section<'a>)> {
    let mut found = plugins.labelled(kind);
    found.retain(|(_name, section)| section.bool("enabled").unwrap_or(true));
    found
}

fn exactly_one<'a>(plugins: &Section<'a>, kind: &str) -> Option<(String, Section<'a>)> {
    let mut found = enabled(plugins, kind);
    if found.len() != 1 {
        plugins.problem(
            kind,
            format!("exactly one {kind} is required, found {}", found.len()),
        );
        return None;
    }
    found.pop()
}

pub(super) fn not_served(section: &Section<'_>, kind: &str, name: &str) {
    section.problem(
        "plugin_data",
        format!("{kind} {name:?} is not served by this version"),
    );
}

/// Reads a built-in plugin's own data, if there is any, and refuses what makes it an external one.
pub(super) fn finish_plugin<'a, T>(section: Section<'a>, read: impl FnOnce(Option<Section<'a>>) -> T) -> T {
    for key in ["plugin_cmd", "plugin_args", "plugin_checksum"] {
        if section.ignore(key) {
            section.problem(key, "external plugins are not served");
        }
    }
    if section.ignore("plugin_data_file") {
        section.problem(
            "plugin_data_file",
            "is not served by this version: write plugin_data here",
        );
    }
    section.bool("enabled");
    let value = read(section.section("plugin_data"));
    section.finish();
    value
}

fn read_key_manager(name: &str, section: Section<'_>) -> Option<Keys> {
    match name {
        "memory" => {
            finish_plugin(section, |data| data.map(Section::finish));
            Some(Keys::Memory)
        }
        "disk" => {
            if !section.has("plugin_data") {
                section.problem("plugin_data", "is required: directory");
            }
            finish_plugin(section, |data| {
                let data = data?;
                let directory = data.required_string("directory");
                data.finish();
                directory.map(|directory| Keys::Disk(PathBuf::from(directory)))
            })
        }
        other => {
            not_served(&section, "KeyManager", other);
            None
        }
    }
}
