//! Static entries and federation relationships from files instead of a cluster: `static_manifest_path`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use finial_identity::process::private_file;
use serde_json::Value;

use super::derive::Fact;
use super::resources::{ClusterFederatedTrustDomain, ClusterStaticEntry, GROUP};
use super::watch::News;

/// Largest file in bytes.
const MAX_FILE: usize = 4 * 1024 * 1024;

/// Reads every `*.yaml` and `*.yml` of the directory, in the order of their names.
///
/// # Errors
/// The first file that cannot be read, or has something else in it.
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
    for path in paths {
        let text = private_file::read_text(&path, MAX_FILE).map_err(|error| error.to_string())?;
        news.extend(parse(&text).map_err(|error| named(&path, &error))?);
    }
    Ok(news)
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
        match text("kind").as_str() {
            "ClusterStaticEntry" => {
                let object: ClusterStaticEntry =
                    serde_json::from_value(document).map_err(|error| error.to_string())?;
                let name = object.metadata.name.clone().unwrap_or_default();
                let fact = Fact::Static(name.into(), Some(Arc::new(object)));
                news.push(News::Fact(fact));
            }
            "ClusterFederatedTrustDomain" => {
                let object: ClusterFederatedTrustDomain =
                    serde_json::from_value(document).map_err(|error| error.to_string())?;
                let name = object.metadata.name.clone().unwrap_or_default();
                news.push(News::Federation(name.into(), Some(Arc::new(object))));
            }
            other => return Err(format!("kind {other:?} has no meaning without a cluster")),
        }
    }
    Ok(news)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterStaticEntry\nmetadata: {name: db}\nspec:\n  spiffeID: spiffe://example.test/db\n  parentID: spiffe://example.test/spire/agent/x\n  selectors: [\"unix:uid:70\"]\n";

    const FEDERATION: &str = "apiVersion: spire.spiffe.io/v1alpha1\nkind: ClusterFederatedTrustDomain\nmetadata: {name: partner}\nspec:\n  trustDomain: partner.test\n  bundleEndpointURL: https://partner.test\n  bundleEndpointProfile: {type: https_web}\n";

    #[test]
    fn several_objects_in_a_file_are_read() {
        let second = ENTRY.replace("name: db", "name: db2");
        let news = parse(&format!("{ENTRY}---\n{second}---\n{FEDERATION}")).unwrap();
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
            ("a: [".to_owned(), ""),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
