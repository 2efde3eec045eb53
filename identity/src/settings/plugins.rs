//! The blocks of `plugins`, the same for server and agent: which are enabled, which keys no built-in plugin can have, and
//! a plugin's own data, `plugin_data` in its block or all of the file that `plugin_data_file` names.

use std::path::{Path, PathBuf};

use super::{ConfigError, Document, MAX_TEXT, Problems, Section};
use crate::process::private_file;

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

/// What the block of a built-in plugin says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin<T> {
    /// Its own data, checked.
    pub data: T,
    /// The file that the data was read from.
    pub file: Option<DataFile>,
}

/// A `plugin_data_file`: HCL, JSON or YAML by its ending, no variables expanded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataFile {
    path: PathBuf,
}

impl<T> Plugin<T> {
    /// Reads the block of a built-in plugin with its data, if it has any, and refuses what makes it an external one.
    /// What is wrong in the file is reported as a problem of `plugin_data_file`, with the file's own lines.
    pub fn read(section: Section<'_>, read: impl FnOnce(Option<Section<'_>>) -> T) -> Self {
        for key in ["plugin_cmd", "plugin_args", "plugin_checksum"] {
            if section.ignore(key) {
                section.problem(key, "external plugins are not served");
            }
        }
        section.bool("enabled");
        let path = section.string(DATA_FILE);
        let data = section.section(DATA);
        if path.is_some() && data.is_some() {
            section.problem(DATA_FILE, "cannot be set with plugin_data");
        }
        let (data, file) = match path {
            None => (read(data), None),
            Some(path) => {
                let file = DataFile { path: path.into() };
                let problems = Problems::new();
                let document = file
                    .read_text()
                    .and_then(|text| Document::parse_file(&text, &file.path));
                let document = document.map_err(|error| section.problem(DATA_FILE, error.to_string()));
                let document = document.ok();
                let read = read(document.as_ref().map(|document| document.section(&problems)));
                if let Err(error) = problems.into_result() {
                    for problem in error.problems() {
                        section.problem(DATA_FILE, format!("{}: {problem}", file.path.display()));
                    }
                }
                (read, Some(file))
            }
        };
        section.finish();
        Self { data, file }
    }
}

impl DataFile {
    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds now, if it is a plain file. Blocks for as long as the disk takes, and waits for no other program.
    ///
    /// # Errors
    /// [`ConfigError::File`].
    pub fn read_text(&self) -> Result<String, ConfigError> {
        Ok(private_file::read_plain_text(&self.path, MAX_TEXT)?)
    }

    /// Checks a text that the file held.
    ///
    /// # Errors
    /// [`ConfigError`]: all mistakes at once.
    pub fn check<T>(
        &self,
        text: &str,
        read: impl FnOnce(Option<Section<'_>>) -> T,
    ) -> Result<T, ConfigError> {
        let document = Document::parse_file(text, &self.path)?;
        let problems = Problems::new();
        let data = read(Some(document.section(&problems)));
        problems.into_result()?;
        Ok(data)
    }
}

impl Section<'_> {
    /// Whether a plugin's block has data of its own.
    pub fn has_plugin_data(&self) -> bool {
        self.has(DATA) || self.string(DATA_FILE).is_some()
    }
}

const DATA: &str = "plugin_data";
const DATA_FILE: &str = "plugin_data_file";

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests lay out files by hand")]

    use rustix::fs::{FileType, Mode};

    use super::*;
    use crate::settings::Format;

    fn directory(data: Option<Section<'_>>) -> Option<String> {
        let data = data?;
        let directory = data.required_string("directory");
        data.finish();
        directory
    }

    fn read(block: &str) -> Result<Plugin<Option<String>>, String> {
        let document = Document::parse(&format!("KeyManager \"disk\" {{ {block} }}"), Format::Hcl).unwrap();
        let problems = Problems::new();
        let root = document.section(&problems);
        let (_name, section) = root.labelled("KeyManager").remove(0);
        let plugin = Plugin::read(section, directory);
        root.finish();
        let outcome = problems.into_result();
        outcome.map(|()| plugin).map_err(|error| error.to_string())
    }

    #[test]
    fn data_stands_in_the_block_or_in_a_file_of_any_format() {
        let dir = tempfile::tempdir().unwrap();
        let inline = read("plugin_data { directory = \"/d\" }").unwrap();
        assert_eq!((inline.data.as_deref(), inline.file), (Some("/d"), None));
        for (name, text) in [
            ("a.conf", "directory = \"/d\""),
            ("a", "{\"directory\": \"/d\"}"),
            ("a.json", "{\"directory\": \"/d\"}"),
            ("a.yaml", "directory: /d"),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let plugin = read(&format!("plugin_data_file = \"{}\"", path.display())).unwrap();
            let file = plugin.file.unwrap();
            assert_eq!((plugin.data.as_deref(), file.path()), (Some("/d"), &*path));
            assert_eq!(
                file.check(&file.read_text().unwrap(), directory)
                    .unwrap()
                    .as_deref(),
                Some("/d")
            );
            assert!(file.check("directry: 1", directory).is_err());
        }
        assert_eq!(read("").unwrap().data, None);
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told_with_its_name_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data.conf");
        let key = format!("plugin_data_file = \"{}\"", path.display());
        let missing = read(&key).unwrap_err();
        assert!(
            missing.contains("plugin_data_file") && missing.contains("data.conf"),
            "{missing}"
        );
        let fifo = dir.path().join("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, FileType::Fifo, Mode::RUSR, 0).unwrap();
        for (path, why) in [
            (&*fifo, "plain file expected"),
            (Path::new("/dev/zero"), "plain file expected"),
        ] {
            let error = read(&format!("plugin_data_file = \"{}\"", path.display())).unwrap_err();
            assert!(
                error.contains(why) && error.contains("plugin_data_file"),
                "{error}"
            );
        }
        std::fs::write(&path, " ".repeat(MAX_TEXT + 1)).unwrap();
        assert!(read(&key).unwrap_err().contains("larger than"));
        std::fs::write(&path, "\ndirectry = \"/d\"").unwrap();
        let error = read(&key).unwrap_err();
        for part in [
            "data.conf: directry (line 2)",
            "data.conf: directory",
            "is required",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        std::fs::write(&path, "{").unwrap();
        assert!(read(&key).unwrap_err().contains("data.conf"));
        std::fs::write(&path, "directory = \"/d\"").unwrap();
        let both = read(&format!("{key} plugin_data {{ directory = \"/d\" }}")).unwrap_err();
        assert!(both.contains("cannot be set with plugin_data"), "{both}");
        let external = read(&format!("{key} plugin_cmd = \"/bin/x\"")).unwrap_err();
        assert!(external.contains("external plugins"), "{external}");
    }
}
