//! The `plugins` block.

use std::path::PathBuf;

use finial_identity::settings::plugins::{enabled, exactly_one, not_served};
use finial_identity::settings::{DataFile, Plugin, Section};

use super::attestors::{self, WorkloadAttestors};
use super::{Keys, NodeAttestorSettings, node_attestor};

/// What the plugins come to.
#[derive(Debug)]
pub(super) struct Plugins {
    /// Where keys are kept.
    pub(super) keys: Keys,
    /// `NodeAttestor`
    pub(super) node_attestor: NodeAttestorSettings,
    /// `WorkloadAttestor`
    pub(super) workload_attestors: WorkloadAttestors,
    /// Data that is read from a file, at start alone.
    pub(super) fixed_files: Vec<DataFile>,
}

/// Reads the block; `None` when something was reported that leaves a gap.
pub(super) fn read(plugins: Section<'_>, warnings: &mut Vec<String>) -> Option<Plugins> {
    let keys =
        exactly_one(&plugins, "KeyManager").and_then(|(name, section)| read_key_manager(&name, section));
    let node_attestor =
        exactly_one(&plugins, "NodeAttestor").and_then(|(name, section)| node_attestor::read(&name, section));
    let workload_attestors = attestors::read(&plugins, warnings);
    for (name, section) in enabled(&plugins, "SVIDStore") {
        not_served(&section, "SVIDStore", &name);
    }
    plugins.finish();
    let (keys, node_attestor) = keys.zip(node_attestor)?;
    Some(Plugins {
        fixed_files: keys.file.into_iter().chain(node_attestor.file).collect(),
        keys: keys.data,
        node_attestor: node_attestor.data,
        workload_attestors,
    })
}

fn read_key_manager(name: &str, section: Section<'_>) -> Option<Plugin<Keys>> {
    let is_on_disk = match name {
        "memory" => false,
        "disk" => true,
        other => {
            not_served(&section, "KeyManager", other);
            return None;
        }
    };
    if is_on_disk && !section.has_plugin_data() {
        section.problem("plugin_data", "is required: directory");
    }
    let Plugin { data, file } = Plugin::read(section, |data| {
        if !is_on_disk {
            if let Some(data) = data {
                data.finish();
            }
            return Some(Keys::Memory);
        }
        let data = data?;
        let directory = data.required_string("directory");
        data.finish();
        directory.map(|directory| Keys::Disk(PathBuf::from(directory)))
    });
    data.map(|data| Plugin { data, file })
}
