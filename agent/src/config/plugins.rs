//! The `plugins` block.

use std::path::PathBuf;

use finial_identity::settings::Section;

use super::node_attestor::read_x509pop;
use super::{Keys, UnixSettings, X509PopSettings};

/// What the plugins come to.
#[derive(Debug)]
pub(super) struct Plugins {
    /// Where keys are kept.
    pub(super) keys: Keys,
    /// `NodeAttestor "x509pop"`
    pub(super) x509pop: Option<X509PopSettings>,
    /// `WorkloadAttestor "unix"`
    pub(super) unix: Option<UnixSettings>,
}

/// Reads the block; `None` when something was reported that leaves a gap.
pub(super) fn read(plugins: Section<'_>) -> Option<Plugins> {
    let keys =
        exactly_one(&plugins, "KeyManager").and_then(|(name, section)| read_key_manager(&name, section));
    let mut x509pop = None;
    if let Some((name, section)) = exactly_one(&plugins, "NodeAttestor") {
        // Its token stands in the `agent` block.
        match name.as_str() {
            "join_token" => finish_plugin(section, |data| data.map(Section::finish)).unwrap_or_default(),
            "x509pop" => {
                if !section.has("plugin_data") {
                    section.problem("plugin_data", "is required: private_key_path and certificate_path");
                }
                x509pop = finish_plugin(section, |data| {
                    let data = data?;
                    let settings = read_x509pop(&data);
                    data.finish();
                    settings
                });
            }
            other => not_served(&section, "NodeAttestor", other),
        }
    }
    let mut unix = None;
    let attestors = enabled(&plugins, "WorkloadAttestor");
    if attestors.is_empty() {
        plugins.problem("WorkloadAttestor", "at least one WorkloadAttestor is required");
    }
    for (name, section) in attestors {
        match name.as_str() {
            "unix" if unix.is_some() => {
                section.problem("plugin_data", "WorkloadAttestor \"unix\" is configured twice")
            }
            "unix" => unix = Some(finish_plugin(section, read_unix)),
            other => not_served(&section, "WorkloadAttestor", other),
        }
    }
    for (name, section) in enabled(&plugins, "SVIDStore") {
        not_served(&section, "SVIDStore", &name);
    }
    plugins.finish();
    Some(Plugins {
        keys: keys?,
        x509pop,
        unix,
    })
}

/// The blocks of a kind that are not switched off.
fn enabled<'a>(plugins: &Section<'a>, kind: &str) -> Vec<(String, Section<'a>)> {
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

fn not_served(section: &Section<'_>, kind: &str, name: &str) {
    section.problem(
        "plugin_data",
        format!("{kind} {name:?} is not served by this version"),
    );
}

/// Reads a built-in plugin's own data, if there is any, and refuses what makes it an external one.
fn finish_plugin<'a, T>(section: Section<'a>, read: impl FnOnce(Option<Section<'a>>) -> T) -> T {
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

fn read_unix(data: Option<Section<'_>>) -> UnixSettings {
    let Some(data) = data else {
        return UnixSettings::default();
    };
    let settings = UnixSettings {
        discover_workload_path: data.bool("discover_workload_path").unwrap_or_default(),
        workload_size_limit: data.i64("workload_size_limit").unwrap_or_default(),
    };
    data.finish();
    settings
}
