//! The block `server { kubernetes { … } }`: clusters whose objects declare entries. It is Finial's own.

use std::collections::BTreeSet;
use std::path::PathBuf;

use finial_identity::settings::Section;
use regex::RegexSet;

/// Namespaces that rules pass over unless the configuration says otherwise, as SPIRE's controller manager has it.
pub const IGNORED_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "spire-system"];

/// The path of the agent ID that the node attestor `k8s_psat` gives, as SPIRE's: `own` is the UID of the node, or
/// `pod/<UID>` of the pod where the cluster is configured so. An empty one gives what all agents of a cluster begin with.
pub fn psat_agent_path(cluster: &str, own: &str) -> String {
    format!("/spire/agent/k8s_psat/{cluster}/{own}")
}

/// That agent ID of a node as a template.
fn psat_agent_template() -> String {
    let path = psat_agent_path("{{ .ClusterName }}", "{{ .NodeMeta.UID }}");
    format!("spiffe://{{{{ .TrustDomain }}}}{path}")
}

/// The CSI driver's name unless the configuration says otherwise, as everywhere in the field.
const CSI_DRIVER: &str = "csi.spiffe.io";

/// Longest name of a cluster, so that ids of entries stay within their length.
const MAX_NAME: usize = 128;

/// A cluster whose objects declare entries.
#[derive(Clone, Debug)]
pub struct KubernetesCluster {
    /// Its name, part of the ids of its entries.
    pub name: String,
    /// Where it is and who we are there.
    pub source: ClusterSource,
    /// Namespaces that rules pass over.
    pub ignored_namespaces: RegexSet,
    /// The class of the objects that this server uses.
    pub class_name: Option<String>,
    /// Whether objects without a class are used too.
    pub watch_classless: bool,
    /// Template of the parent ID of a node's entries.
    pub parent_id_template: String,
    /// For example `cluster.local`; empty when there is none.
    pub cluster_domain: String,
    /// The CSI driver by which pods ask for an identity.
    pub csi_driver: String,
}

/// Where the objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterSource {
    /// The API server of the cluster that the server runs in, or that a kubeconfig names.
    Api {
        /// The kubeconfig.
        kube_config_file: Option<PathBuf>,
        /// Whether the server applies newer definitions of its kinds at start.
        manages_crds: bool,
    },
    /// Files, without a cluster.
    Manifests(PathBuf),
}

/// Reads the block.
pub fn read(section: Section<'_>, warnings: &mut Vec<String>) -> Vec<KubernetesCluster> {
    let mut clusters = Vec::new();
    let mut names = BTreeSet::new();
    for (name, cluster) in section.labelled("clusters") {
        if !is_name(&name) {
            let text = format!("name of a cluster: 1 to {MAX_NAME} characters of [A-Za-z0-9._-]: {name:?}");
            section.problem("clusters", text);
        }
        if !names.insert(name.clone()) {
            section.problem("clusters", format!("cluster {name:?} is given twice"));
        }
        clusters.extend(read_cluster(name, cluster, warnings));
    }
    if clusters.is_empty() && !section.has("clusters") {
        section.problem("clusters", "are required");
    }
    section.finish();
    clusters
}

fn read_cluster(name: String, cluster: Section<'_>, warnings: &mut Vec<String>) -> Option<KubernetesCluster> {
    let kube_config_file = cluster.string("kube_config_file").map(PathBuf::from);
    let manifests = cluster.string("static_manifest_path").map(PathBuf::from);
    if cluster.bool("use_pod_uid_for_agent_id").unwrap_or_default() {
        cluster.problem(
            "use_pod_uid_for_agent_id",
            "cannot be combined with rules: they derive the agent's ID from the node",
        );
    }
    let patterns = if cluster.has("ignore_namespaces") {
        cluster.strings("ignore_namespaces")
    } else {
        IGNORED_NAMESPACES.map(str::to_owned).to_vec()
    };
    if cluster.has("ignore_namespaces") {
        for pattern in patterns
            .iter()
            .filter(|pattern| !pattern.starts_with('^') || !pattern.ends_with('$'))
        {
            warnings.push(format!(
                "server.kubernetes.clusters {name:?}.ignore_namespaces: {pattern:?} has no anchors and so ignores each namespace that it occurs in"
            ));
        }
    }
    let ignored_namespaces = RegexSet::new(&patterns)
        .map_err(|error| cluster.problem("ignore_namespaces", error.to_string()))
        .ok();
    let manages_crds = cluster.section("crds").and_then(|crds| {
        let manages = crds.bool("manage");
        crds.finish();
        manages
    });
    if manifests.is_some() && (kube_config_file.is_some() || manages_crds.is_some()) {
        cluster.problem(
            "static_manifest_path",
            "stands in place of a cluster: kube_config_file and crds have no meaning beside it",
        );
    }
    let read = KubernetesCluster {
        source: match manifests {
            Some(path) => ClusterSource::Manifests(path),
            None => ClusterSource::Api {
                kube_config_file,
                manages_crds: manages_crds.unwrap_or(true),
            },
        },
        ignored_namespaces: ignored_namespaces.unwrap_or_default(),
        class_name: cluster.string("class_name"),
        watch_classless: cluster.bool("watch_classless").unwrap_or_default(),
        parent_id_template: cluster
            .string("parent_id_template")
            .unwrap_or_else(psat_agent_template),
        cluster_domain: cluster
            .string("cluster_domain")
            .unwrap_or_else(|| "cluster.local".to_owned()),
        csi_driver: cluster
            .string("csi_driver")
            .unwrap_or_else(|| CSI_DRIVER.to_owned()),
        name,
    };
    cluster.finish();
    Some(read)
}

fn is_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Flags};

    fn parse(block: &str) -> Result<Config, String> {
        let text = format!(
            r#"server {{ trust_domain = "example.org" data_dir = "/d" {block} }}
            plugins {{
                DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/d/db" }} }}
                KeyManager "memory" {{}}
            }}"#
        );
        Config::parse(&text, Path::new("server.conf"), &Flags::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_cluster_has_the_known_defaults() {
        assert!(parse("").unwrap().kubernetes().is_empty());
        let config = parse(r#"kubernetes { clusters { "demo" = {} } }"#).unwrap();
        let [cluster] = config.kubernetes() else {
            unreachable!("one cluster is given")
        };
        assert_eq!(cluster.name, "demo");
        assert!(cluster.ignored_namespaces.is_match("kube-system"));
        assert_eq!(
            (cluster.class_name.as_deref(), cluster.watch_classless),
            (None, false)
        );
        assert_eq!(cluster.cluster_domain, "cluster.local");
        assert_eq!(cluster.csi_driver, "csi.spiffe.io");
        assert_eq!(
            cluster.parent_id_template,
            "spiffe://{{ .TrustDomain }}/spire/agent/k8s_psat/{{ .ClusterName }}/{{ .NodeMeta.UID }}"
        );
        let expected = ClusterSource::Api {
            kube_config_file: None,
            manages_crds: true,
        };
        assert_eq!(cluster.source, expected);
        assert!(config.warnings().is_empty(), "{:?}", config.warnings());
    }

    #[test]
    fn every_key_is_read() {
        let config = parse(
            r#"kubernetes { clusters {
                "a" = {
                    kube_config_file = "/k" ignore_namespaces = ["^x$", "y-.*"] class_name = "c" watch_classless = true
                    parent_id_template = "spiffe://{{ .TrustDomain }}/n" cluster_domain = "c.local" csi_driver = "x.y" crds { manage = false }
                }
                "files" = { static_manifest_path = "/m" }
            } }"#,
        )
        .unwrap();
        let [a, files] = config.kubernetes() else {
            unreachable!("two clusters are given")
        };
        assert!(a.ignored_namespaces.is_match("my-y-1") && !a.ignored_namespaces.is_match("xx"));
        assert_eq!((a.class_name.as_deref(), a.watch_classless), (Some("c"), true));
        assert_eq!(a.csi_driver, "x.y");
        assert_eq!(files.source, ClusterSource::Manifests("/m".into()));
        assert_eq!(config.warnings().len(), 1, "{:?}", config.warnings());
    }

    #[test]
    fn mistakes_name_their_key() {
        for (block, part) in [
            (r#""a b" = {}"#, "name of a cluster"),
            (
                r#""a" = { use_pod_uid_for_agent_id = true }"#,
                "use_pod_uid_for_agent_id",
            ),
            (r#""a" = { ignore_namespaces = ["("] }"#, "ignore_namespaces"),
            (r#""a" = { colour = 1 }"#, "colour"),
            (r#""a" = { crds { manage = true x = 1 } }"#, "x"),
            (
                r#""a" = { static_manifest_path = "/m" kube_config_file = "/k" }"#,
                "static_manifest_path",
            ),
        ] {
            let error = parse(&format!("kubernetes {{ clusters {{ {block} }} }}")).unwrap_err();
            assert!(error.contains(part), "{block}: {error}");
        }
        assert!(parse("kubernetes {}").unwrap_err().contains("clusters"));
    }
}
