//! `plugin_data` of `NodeAttestor "k8s_psat"`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use finial_identity::settings::{Problems, Section};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};

use super::kubernetes::KubernetesCluster;

/// Audience of agents' tokens unless the configuration says otherwise, as SPIRE has it.
const DEFAULT_AUDIENCE: &str = "spire-server";

/// A cluster whose agents prove themselves by their service account tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct K8sPsatCluster {
    /// The name that agents call it by.
    pub name: String,
    /// `service_account_allow_list`: who may be an agent, as `namespace:service-account`.
    pub service_accounts: BTreeSet<String>,
    /// `audience`: one of these must be a token's; none means whatever the API server takes for its own.
    pub audience: Vec<String>,
    /// `kube_config_file`; `None` means the cluster that the server runs in.
    pub kube_config_file: Option<PathBuf>,
    /// `allowed_node_label_keys`: labels of the node that become selectors.
    pub node_label_keys: BTreeSet<String>,
    /// `allowed_pod_label_keys`: labels of the agent's pod that become selectors.
    pub pod_label_keys: BTreeSet<String>,
    /// `use_pod_uid_for_agent_id`: the pod names the agent, not its node.
    pub use_pod_uid_for_agent_id: bool,
    /// `verify_client_ip`: the agent must call from an address of its pod or its node. Ours, not SPIRE's.
    pub verify_client_ip: bool,
}

/// Reads the block; clusters that something was reported about are left out.
pub(super) fn read(data: Section<'_>) -> Vec<K8sPsatCluster> {
    let sections = data.labelled("clusters");
    if sections.is_empty() {
        data.problem("clusters", "names no cluster");
    }
    let mut clusters: Vec<K8sPsatCluster> = Vec::new();
    for (name, section) in sections {
        if clusters.iter().any(|known| known.name == name) {
            data.problem("clusters", format!("cluster {name:?} is configured twice"));
        }
        if !is_path_segment(&name) {
            data.problem(
                "clusters",
                format!("cluster {name:?} cannot be part of a SPIFFE ID: letters, digits, dots, dashes and underscores alone"),
            );
        }
        clusters.extend(read_cluster(name, section));
    }
    data.finish();
    clusters
}

fn read_cluster(name: String, section: Section<'_>) -> Option<K8sPsatCluster> {
    let service_accounts = section.parse_each("service_account_allow_list", service_account);
    if service_accounts.is_empty() {
        section.problem(
            "service_account_allow_list",
            "is required: namespace:service-account of the agents",
        );
    }
    let audience = if section.has("audience") {
        section.strings("audience")
    } else {
        vec![DEFAULT_AUDIENCE.to_owned()]
    };
    let cluster = K8sPsatCluster {
        name,
        service_accounts: service_accounts.into_iter().collect(),
        audience,
        kube_config_file: section.string("kube_config_file").map(PathBuf::from),
        node_label_keys: section.strings("allowed_node_label_keys").into_iter().collect(),
        pod_label_keys: section.strings("allowed_pod_label_keys").into_iter().collect(),
        use_pod_uid_for_agent_id: section.bool("use_pod_uid_for_agent_id").unwrap_or_default(),
        verify_client_ip: section.bool("verify_client_ip").unwrap_or_default(),
    };
    section.finish();
    Some(cluster).filter(|cluster| !cluster.service_accounts.is_empty())
}

/// Rules derive the ID of a pod's agent from its node, so they cannot be had where agents are named after pods.
pub(super) fn check_rules(clusters: &[K8sPsatCluster], rules: &[KubernetesCluster], problems: &Problems) {
    for cluster in clusters.iter().filter(|cluster| cluster.use_pod_uid_for_agent_id) {
        if rules.iter().any(|ruled| ruled.name == cluster.name) {
            problems.add(
                format!(
                    "plugins.NodeAttestor \"k8s_psat\".plugin_data.clusters {:?}.use_pod_uid_for_agent_id",
                    cluster.name
                ),
                None,
                "cannot be combined with server.kubernetes: rules derive the agent's ID from the node",
            );
        }
    }
}

fn service_account(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some((namespace, account))
            if !namespace.is_empty() && !account.is_empty() && !account.contains(':') =>
        {
            Ok(text.to_owned())
        }
        _ => Err(format!("must be of the form namespace:service-account: {text}")),
    }
}

fn is_path_segment(name: &str) -> bool {
    let any = TrustDomain::parse("example.org").expect("a valid name");
    !name.contains('/') && SpiffeId::new(&any, &format!("/{name}")).is_ok()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Flags};

    fn parse(clusters: &str) -> Result<Vec<K8sPsatCluster>, String> {
        parse_with("", clusters)
    }

    fn parse_with(server: &str, clusters: &str) -> Result<Vec<K8sPsatCluster>, String> {
        let text = format!(
            r#"server {{ trust_domain = "example.org" data_dir = "/d" {server} }}
            plugins {{
                DataStore "sql" {{ plugin_data {{ database_type = "sqlite3" connection_string = "/d/db" }} }}
                KeyManager "memory" {{}}
                NodeAttestor "k8s_psat" {{ plugin_data {{ {clusters} }} }}
            }}"#
        );
        Config::parse(&text, Path::new("server.conf"), &Flags::default())
            .map(|config| config.k8s_psat().to_vec())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_cluster_has_spires_defaults() {
        let clusters =
            parse(r#"clusters = { "demo" = { service_account_allow_list = ["spire:spire-agent"] } }"#)
                .unwrap();
        let expected = K8sPsatCluster {
            name: "demo".to_owned(),
            service_accounts: BTreeSet::from(["spire:spire-agent".to_owned()]),
            audience: vec!["spire-server".to_owned()],
            kube_config_file: None,
            node_label_keys: BTreeSet::new(),
            pod_label_keys: BTreeSet::new(),
            use_pod_uid_for_agent_id: false,
            verify_client_ip: false,
        };
        assert_eq!(clusters, [expected]);
    }

    #[test]
    fn every_key_has_its_effect_and_an_empty_audience_is_not_the_default() {
        let clusters = parse(
            r#"clusters = {
                "a" = { service_account_allow_list = ["s:a"] audience = [] },
                "b" = { service_account_allow_list = ["s:a", "t:b"] audience = ["x", "y"] kube_config_file = "/k"
                        allowed_node_label_keys = ["n"] allowed_pod_label_keys = ["p"]
                        use_pod_uid_for_agent_id = true verify_client_ip = true }
            }"#,
        )
        .unwrap();
        let [a, b] = clusters.as_slice() else {
            panic!("{clusters:?}");
        };
        assert!(a.audience.is_empty());
        assert_eq!(b.audience, ["x", "y"]);
        assert_eq!(b.service_accounts.len(), 2);
        assert_eq!(b.kube_config_file.as_deref(), Some(Path::new("/k")));
        assert!(b.node_label_keys.contains("n") && b.pod_label_keys.contains("p"));
        assert!(b.use_pod_uid_for_agent_id && b.verify_client_ip);
    }

    #[test]
    fn mistakes_are_told_with_their_keys() {
        for (clusters, why) in [
            ("", "names no cluster"),
            (r#"clusters = { "a" = {} }"#, "service_account_allow_list"),
            (
                r#"clusters = { "a" = { service_account_allow_list = ["spire-agent"] } }"#,
                "namespace:service-account",
            ),
            (
                r#"clusters = { "a/b" = { service_account_allow_list = ["s:a"] } }"#,
                "cannot be part of a SPIFFE ID",
            ),
            (
                r#"clusters = { "a" = { service_account_allow_list = ["s:a"] audiences = [] } }"#,
                "audiences",
            ),
        ] {
            let error = parse(clusters).unwrap_err();
            assert!(error.contains(why), "{clusters}: {error}");
        }
    }

    #[test]
    fn agents_named_after_pods_cannot_have_rules() {
        let rules = r#"kubernetes { clusters = { "a" = {} } }"#;
        let of_pods = |name: &str| {
            format!(
                r#"clusters = {{ "{name}" = {{ service_account_allow_list = ["s:a"] use_pod_uid_for_agent_id = true }} }}"#
            )
        };
        let error = parse_with(rules, &of_pods("a")).unwrap_err();
        assert!(error.contains("use_pod_uid_for_agent_id"), "{error}");
        parse_with(rules, &of_pods("b")).unwrap();
        parse(&of_pods("a")).unwrap();
    }
}
