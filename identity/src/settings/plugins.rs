//! The blocks of `plugins`, the same for server and agent: which are enabled, and which keys no built-in plugin can
//! have.

use super::Section;

/// The blocks of a kind that are not switched off, with their names.
pub fn enabled<'a>(plugins: &Section<'a>, kind: &str) -> Vec<(String, Section<'a>)> {
    let mut found = plugins.labelled(kind);
    found.retain(|(_name, section)| section.bool("enabled").unwrap_or(true));
    found
}

/// The one block of a kind. None and several are reported.
pub fn exactly_one<'a>(plugins: &Section<'a>, kind: &str) -> Option<(String, Section<'a>)> {
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

/// Reports a plugin that is not built in.
pub fn not_served(section: &Section<'_>, kind: &str, name: &str) {
    section.problem(
        "plugin_data",
        format!("{kind} {name:?} is not served by this version"),
    );
}

/// Reads a built-in plugin's own data, if there is any, and refuses what makes it an external one.
pub fn finish_plugin<'a, T>(section: Section<'a>, read: impl FnOnce(Option<Section<'a>>) -> T) -> T {
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
