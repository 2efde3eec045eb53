//! The `plugins` block.

use std::path::PathBuf;

use finial_identity::settings::plugins::{enabled, exactly_one, not_served};
use finial_identity::settings::{Plugin, Section};

use super::Keys;
use super::bundle_publisher::{self, ConfigMapPublisher};
use super::k8s_psat::{self, K8sPsatCluster};

/// What the plugins come to.
#[derive(Debug)]
pub struct Plugins {
    /// File of the store.
    pub database: PathBuf,
    /// Where keys are kept.
    pub keys: Keys,
    /// `CredentialComposer "uniqueid"`.
    pub unique_id: bool,
    /// `NodeAttestor "k8s_psat"`.
    pub k8s_psat: Vec<K8sPsatCluster>,
    /// `BundlePublisher "k8s_configmap"`.
    pub configmap_publishers: Vec<ConfigMapPublisher>,
}

/// Reads the block; `None` when something was reported.
pub fn read(plugins: Section<'_>, warnings: &mut Vec<String>) -> Option<Plugins> {
    let database = exactly_one(&plugins, "DataStore").and_then(|(name, section)| {
        if name == "sql" {
            read_sql(section, warnings)
        } else {
            section.problem(
                "plugin_data",
                format!("unknown DataStore {name:?}: only \"sql\" is known"),
            );
            None
        }
    });
    let keys =
        exactly_one(&plugins, "KeyManager").and_then(|(name, section)| read_key_manager(&name, section));
    let mut psat = Vec::new();
    for (name, section) in enabled(&plugins, "NodeAttestor") {
        match name.as_str() {
            "join_token" => read_plugin(section, |data| data.finish()).unwrap_or_default(),
            "k8s_psat" => {
                if !section.has_plugin_data() {
                    section.problem("plugin_data", "is required: clusters");
                }
                psat = read_plugin(section, k8s_psat::read).unwrap_or_default();
            }
            other => not_served(&section, "NodeAttestor", other),
        }
    }
    let mut unique_id = false;
    for (name, section) in enabled(&plugins, "CredentialComposer") {
        if name == "uniqueid" {
            unique_id = true;
            read_plugin(section, |data| data.finish());
        } else {
            not_served(&section, "CredentialComposer", &name);
        }
    }
    let mut configmap_publishers = Vec::new();
    for (name, section) in enabled(&plugins, "BundlePublisher") {
        if name == "k8s_configmap" {
            configmap_publishers = read_plugin(section, bundle_publisher::read).unwrap_or_default();
        } else {
            not_served(&section, "BundlePublisher", &name);
        }
    }
    for kind in ["UpstreamAuthority", "Notifier"] {
        for (name, section) in enabled(&plugins, kind) {
            not_served(&section, kind, &name);
        }
    }
    plugins.finish();
    Some(Plugins {
        database: database?,
        keys: keys?,
        unique_id,
        k8s_psat: psat,
        configmap_publishers,
    })
}

/// Reads a built-in plugin's own data, if it has any.
fn read_plugin<T>(section: Section<'_>, read: impl FnOnce(Section<'_>) -> T) -> Option<T> {
    Plugin::read(section, |data| data.map(read)).data
}

fn read_sql(section: Section<'_>, warnings: &mut Vec<String>) -> Option<PathBuf> {
    if !section.has_plugin_data() {
        section.problem("plugin_data", "is required: database_type and connection_string");
    }
    read_plugin(section, |data| {
        let kind = data.required_string("database_type");
        let connection = data.required_string("connection_string");
        // Pools, migrations and SQL logs are the store's own business here.
        let mut idle = Vec::new();
        for key in [
            "max_open_conns",
            "max_idle_conns",
            "conn_max_lifetime",
            "disable_migration",
            "log_sql",
        ] {
            if data.ignore(key) {
                idle.push(key);
            }
        }
        if !idle.is_empty() {
            warnings.push(format!(
                "DataStore \"sql\": these keys have no effect: {}",
                idle.join(", ")
            ));
        }
        for key in [
            "ro_connection_string",
            "root_ca_path",
            "client_cert_path",
            "client_key_path",
        ] {
            if data.ignore(key) {
                data.problem(
                    key,
                    "has no meaning for sqlite3, the only database_type of this version",
                );
            }
        }
        let path = match kind.as_deref() {
            Some("sqlite3") => connection.and_then(|text| match sqlite_path(&text) {
                Ok(path) => Some(path),
                Err(problem) => {
                    data.problem("connection_string", problem);
                    None
                }
            }),
            Some(other) => {
                data.problem(
                    "database_type",
                    format!("{other:?} is not served by this version: use \"sqlite3\""),
                );
                None
            }
            None => None,
        };
        data.finish();
        path
    })?
}

/// SPIRE takes a path or a `file:` URI with options; the options are ignored.
fn sqlite_path(connection: &str) -> Result<PathBuf, String> {
    let path = connection
        .strip_prefix("file://")
        .or_else(|| connection.strip_prefix("file:"));
    let path = path.unwrap_or(connection);
    let (path, options) = path.split_once('?').unwrap_or((path, ""));
    if path.is_empty() || path == ":memory:" || options.split('&').any(|option| option == "mode=memory") {
        return Err(format!(
            "a database in memory would forget everything at a restart, name a file: {connection}"
        ));
    }
    Ok(PathBuf::from(path))
}

fn read_key_manager(name: &str, section: Section<'_>) -> Option<Keys> {
    match name {
        "memory" => {
            read_plugin(section, |data| data.finish());
            Some(Keys::Memory)
        }
        "disk" => {
            if !section.has_plugin_data() {
                section.problem("plugin_data", "is required: keys_path");
            }
            read_plugin(section, |data| {
                let path = data.required_string("keys_path");
                data.finish();
                path.map(|path| Keys::Disk(PathBuf::from(path)))
            })?
        }
        other => {
            not_served(&section, "KeyManager", other);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::sqlite_path;
    use crate::config::{Config, Flags, Keys};

    fn parse(plugins: &str) -> Result<Config, String> {
        let text =
            format!("server {{ trust_domain = \"example.org\" data_dir = \"/d\" }}\nplugins {{ {plugins} }}");
        Config::parse(&text, Path::new("server.conf"), &Flags::default()).map_err(|error| error.to_string())
    }

    const SQL: &str =
        r#"DataStore "sql" { plugin_data { database_type = "sqlite3" connection_string = "/d/db" } }"#;

    #[test]
    fn keys_on_disk_need_a_path() {
        let disk = format!("{SQL}\nKeyManager \"disk\" {{ plugin_data {{ keys_path = \"/d/keys.json\" }} }}");
        assert_eq!(parse(&disk).unwrap().keys(), &Keys::Disk("/d/keys.json".into()));
        let error = parse(&format!("{SQL}\nKeyManager \"disk\" {{}}")).unwrap_err();
        assert!(error.contains("keys_path"), "{error}");
    }

    #[test]
    fn other_databases_and_plugins_are_refused_by_name() {
        let plugins = r#"
            DataStore "sql" { plugin_data { database_type = "postgres" connection_string = "x" } }
            KeyManager "aws_kms" { plugin_data { region = "x" } }
            NodeAttestor "aws_iid" { plugin_data {} }
            UpstreamAuthority "disk" { plugin_data {} }
        "#;
        let error = parse(plugins).unwrap_err();
        for part in ["postgres", "aws_kms", "aws_iid", "UpstreamAuthority"] {
            assert!(error.contains(part), "{part} in {error}");
        }
    }

    #[test]
    fn a_plugin_that_is_switched_off_does_not_count() {
        let plugins = format!(
            "{SQL}\nKeyManager \"memory\" {{}}\nKeyManager \"aws_kms\" {{ enabled = false }}\nNodeAttestor \"x509pop\" {{ enabled = false }}"
        );
        assert!(parse(&plugins).is_ok());
        let two = format!(
            "{SQL}\nKeyManager \"memory\" {{}}\nKeyManager \"disk\" {{ plugin_data {{ keys_path = \"k\" }} }}"
        );
        assert!(parse(&two).unwrap_err().contains("exactly one KeyManager"));
    }

    #[test]
    fn external_plugins_are_refused() {
        let plugins = format!("{SQL}\nKeyManager \"memory\" {{ plugin_cmd = \"/bin/x\" }}");
        assert!(parse(&plugins).unwrap_err().contains("external plugins"));
    }

    #[test]
    fn reads_paths_and_file_uris_of_sqlite() {
        assert_eq!(
            sqlite_path("./data.sqlite3").unwrap(),
            Path::new("./data.sqlite3")
        );
        assert_eq!(
            sqlite_path("file:/d/db?cache=shared").unwrap(),
            Path::new("/d/db")
        );
        assert_eq!(sqlite_path("file:///d/db").unwrap(), Path::new("/d/db"));
        for text in [":memory:", "file::memory:?cache=shared", "file:x?mode=memory", ""] {
            assert!(sqlite_path(text).is_err(), "{text}");
        }
    }
}
