//! The `plugins` block.

use std::path::PathBuf;

use finial_identity::settings::Section;
use finial_identity::settings::plugins::{enabled, exactly_one, finish_plugin, not_served};

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
        // Its token is in the `agent` block.
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
