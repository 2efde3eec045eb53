//! Static entries and federation relationships from files instead of a cluster: `static_manifest_path`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use finial_identity::process::private_file;
use serde_json::Value;

use super::derive::Fact;
use super::resources::{ClusterFederatedTrustDomain, ClusterStaticEntry, GROUP};
use super::watch::News;

/// Largest file in bytes.
const MAX_FILE: usize = 4 * 1024 * 1024;
const STATIC_ENTRY: &str = "ClusterStaticEntry";
const FEDERATION: &str = "ClusterFederatedTrustDomain";

/// Reads every `*.yaml` and `*.yml` of the directory, in the order of their names.
///
/// # Errors
/// The first file that cannot be read, or has something else in it, or an object of another one's kind and name.
pub(super) fn read(directory: &Path) -> Result<Vec<News>, String> {
    let listed = std::fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    let mut paths = Vec::new();
    for entry in listed {
        let path = entry
            .map_err(|error| format!("{}: {error}", directory.display()))?
            .path();
        let is_yaml = path
            .extension()
            .is_some_and(|ending| ending == "yaml" || ending == "yml");
        if is_yaml {
            paths.push(path);
        }
    }
    paths.sort_unstable();
    let mut news = Vec::new();
    let mut seen = BTreeMap::new();
    for path in paths {
        let text = private_file::read_text(&path, MAX_FILE).map_err(|error| error.to_string())?;
        let objects = parse(&text).map_err(|error| named(&path, &error))?;
        for object in &objects {
            let Some((kind, name)) = name_of(object) else {
                continue;
            };
            if let Some(first) = seen.insert((kind, Arc::clone(name)), path.clone()) {
                let text = format!("{kind} {name:?} is in {} already", first.display());
                return Err(named(&path, &text));
            }
        }
        news.extend(objects);
    }
    Ok(news)
}

/// The kind of an object of a file, and its name.
fn name_of(object: &News) -> Option<(&'static str, &Arc<str>)> {
    match object {
        News::Federation(name, _) => Some((FEDERATION, name)),
        News::Fact(Fact::Static(name, _)) => Some((STATIC_ENTRY, name)),
        _ => None,
    }
}

fn named(path: &PathBuf, error: &str) -> String {
    format!("{}: {error}", Path::new(path).display())
}

/// The objects of one file.
pub(super) fn parse(text: &str) -> Result<Vec<News>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut news = Vec::new();
    for document in documents.into_iter().filter(|document| !document.is_null()) {
        let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
        if text("apiVersion") != format!("{GROUP}/v1alpha1") {
            return Err(format!(
                "apiVersion {:?} is not {GROUP}/v1alpha1",
                text("apiVersion")
            ));
        }
        let name: Arc<str> = document["metadata"]["name"].as_str().unwrap_or_default().into();
        if name.is_empty() {
            return Err(format!("{:?} without metadata.name", text("kind")));
        }
        match text("kind").as_str() {
            STATIC_ENTRY => {
                let object: ClusterStaticEntry =
                    serde_json::from_value(document).map_err(|error| error.to_string())?;
                let fact = Fact::Static(name, Some(Arc::new(object)));
                news.push(News::Fact(fact));
            }
            FEDERATION => {
                let object: ClusterFederatedTrustDomain =
                    serde_json::from_value(document).map_err(|error| error.to_string())?;
                news.push(News::Federation(name, Some(Arc::new(object))));
            }
            other => return Err(format!("kind {other:?} has no meaning without a cluster")),
        }
    }
    Ok(news)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // They write files to be read.
    use super::*;

    const ENTRY: &str = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {name: db}\nspec:\n  spiffeID: spiffe://example.test/db\n  parentID: spiffe://example.test/spire/agent/x\n  selectors: [\"unix:uid:70\"]\n";

    const FEDERATION_OBJECT: &str = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {name: partner}\nspec:\n  trustDomain: partner.test\n  bundleEndpointURL: https://partner.test\n  bundleEndpointProfile: {type: https_web}\n";

    #[test]
    fn several_objects_in_a_file_are_read() {
        let second = ENTRY.replace("name: db", "name: db2");
        let news = parse(&format!("{ENTRY}---\n{second}---\n{FEDERATION_OBJECT}")).unwrap();
        let names: Vec<&str> = news
            .iter()
            .map(|news| match news {
                News::Fact(Fact::Static(name, Some(_))) | News::Federation(name, Some(_)) => &**name,
                _ => "",
            })
            .collect();
        assert_eq!(names, ["db", "db2", "partner"]);
    }

    #[test]
    fn anything_else_is_refused() {
        for (text, part) in [
            (
                ENTRY.replace("ClusterStaticEntry", "ClusterSPIFFEID"),
                "without a cluster",
            ),
            (ENTRY.replace("v1alpha1", "v2"), "apiVersion"),
            (ENTRY.replace("spiffeID:", "spiffe:"), "spiffeID"),
            (ENTRY.replace("{name: db}", "{}"), "without metadata.name"),
            (
                FEDERATION_OBJECT.replace("{name: partner}", "{name: \"\"}"),
                "without metadata.name",
            ),
            ("a: [".to_owned(), ""),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_second_object_of_a_kind_and_name_is_refused_with_both_files() {
        let directory = tempfile::tempdir().unwrap();
        let put = |file: &str, text: &str| std::fs::write(directory.path().join(file), text).unwrap();
        put("a.yaml", ENTRY);
        put("b.yml", &FEDERATION_OBJECT.replace("name: partner", "name: db"));
        assert_eq!(
            read(directory.path()).unwrap().len(),
            2,
            "kinds have names of their own"
        );
        put("c.yaml", &ENTRY.replace("70", "71"));
        let error = read(directory.path()).unwrap_err();
        for part in ["c.yaml: ", "a.yaml already", "ClusterStaticEntry \"db\""] {
            assert!(error.contains(part), "{error}");
        }
        std::fs::remove_file(directory.path().join("c.yaml")).unwrap();
        put("a.yaml", &format!("{ENTRY}---\n{ENTRY}"));
        assert!(read(directory.path()).is_err());
    }
}
