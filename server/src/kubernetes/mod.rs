//! Entries and federation relationships that operators declare as objects in Kubernetes: watches -> facts -> [`derive`]
//! -> registry, and `federations` -> the federation module, which fetches bundles.
//!
//! Each cluster of the configuration has its own watches ([`watch`]). The cluster's one task ([`cluster`]) passes their
//! changes to the pure derivation and publishes the result to the registry, at once and in memory only. The result for
//! each object is written to its status ([`outbox`]).

pub mod admission;
mod cluster;
mod definitions;
pub mod derive;
mod federations;
pub mod label_filter;
mod limits;
mod manifests;
pub mod objects;
mod orphans;
mod outbox;
mod publish;
pub mod resources;
pub mod template;
mod times;
pub mod watch;
#[cfg(test)]
mod whole_tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use finial_identity::federation::{DeclaredSets, RefreshStates};
use finial_identity::process::{Clock, TaskSet};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use thiserror::Error;
use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep_until};
use tower::layer::layer_fn;

use crate::config::{ClusterSource, ConfigMapPublisher, KubernetesCluster};
use crate::registry::{Registry, SourceState};
use cluster::Cluster;
use derive::Settings;
use limits::Limited;
use outbox::Outbox;
use template::{Scope, Template, TemplateError};

/// Who we are to the API server, as the owner of fields.
pub(crate) const FIELD_MANAGER: &str = "finial-server";

/// Why rules cannot be applied.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// The template of parent IDs is none.
    #[error("kubernetes.clusters {cluster:?}.parent_id_template: {source}")]
    ParentId {
        /// The cluster.
        cluster: String,
        /// What is wrong with it.
        source: TemplateError,
    },
    /// The kubeconfig, or the pod's service account, cannot be used.
    #[error("cluster {cluster:?}: {text}")]
    Connect {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        text: String,
    },
    /// The directory of static manifests cannot be read.
    #[error("kubernetes.clusters {cluster:?}.static_manifest_path: {text}")]
    Manifests {
        /// The cluster.
        cluster: String,
        /// What is wrong.
        text: String,
    },
}

/// What is wrong with a configuration, each with its place.
#[derive(Debug, Error)]
#[error("{}", .0.join("\n"))]
pub struct WrongClusters(Vec<String>);

/// Parses every template and every manifest of the configuration, of which the file's reader knows no more than that they
/// are texts and paths.
///
/// # Errors
/// [`WrongClusters`].
pub fn check(clusters: &[KubernetesCluster]) -> Result<(), WrongClusters> {
    let templates = clusters.iter().filter_map(|cluster| parent_id(cluster).err());
    let files = clusters.iter().filter_map(|cluster| match &cluster.source {
        ClusterSource::Manifests(path) => manifests(&cluster.name, path).err(),
        ClusterSource::Api { .. } => None,
    });
    let wrong: Vec<String> = templates
        .chain(files)
        .map(|error| format!("server.{error}"))
        .collect();
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(WrongClusters(wrong)),
    }
}

/// Where the federation relationships of objects are published, and their state.
#[derive(Clone, Debug)]
pub struct Declarations {
    /// What each cluster declares.
    pub sets: channel::Sender<DeclaredSets>,
    /// How the refresh of each bundle stands.
    pub states: channel::Receiver<RefreshStates>,
}

/// Begins to derive entries from the objects of the configured clusters.
///
/// # Errors
/// [`KubernetesError`], when the configuration cannot work; a cluster that does not answer is none.
pub async fn start(
    clusters: &[KubernetesCluster],
    registry: &Arc<Registry>,
    declarations: &Declarations,
    clock: &Clock,
    tasks: &mut TaskSet,
) -> Result<(), KubernetesError> {
    for configured in clusters {
        let settings = settings(configured, registry)?;
        let source = SourceState {
            parent_prefix: parent_prefix(&configured.parent_id_template, &settings),
            ..SourceState::default()
        };
        registry.set_source(&configured.name, source.clone());
        let outbox = Arc::new(Outbox::new(&settings));
        let cluster = Cluster::new(
            settings,
            Arc::clone(registry),
            declarations.clone(),
            clock.clone(),
            source,
        );
        let stop = tasks.stop_signal();
        match &configured.source {
            ClusterSource::Api {
                kube_config_file,
                manages_crds,
            } => {
                let client = client(&configured.name, kube_config_file.as_ref()).await?;
                if *manages_crds {
                    tasks.spawn(
                        "kubernetes definitions",
                        definitions::apply(client.clone(), stop.clone()),
                    );
                }
                let watches = watch::watches(&client, tasks);
                tasks.spawn(
                    "kubernetes statuses",
                    Arc::clone(&outbox).run(client.clone(), clock.clone(), stop.clone()),
                );
                tasks.spawn(
                    "kubernetes evictions",
                    orphans::evict(
                        cluster.orphans(),
                        Arc::clone(registry),
                        configured.name.clone(),
                        orphans::asking(client),
                        stop.clone(),
                    ),
                );
                tasks.spawn("kubernetes", cluster.run(watches, outbox, stop));
            }
            ClusterSource::Manifests(path) => {
                let objects = manifests(&configured.name, path)?;
                tasks.spawn("kubernetes", cluster.run_once(objects, stop));
            }
        }
    }
    Ok(())
}

/// Begins to publish the bundle in ConfigMaps.
///
/// # Errors
/// [`KubernetesError::Connect`].
pub async fn publish_bundles(
    publishers: &[ConfigMapPublisher],
    registry: &Arc<Registry>,
    tasks: &mut TaskSet,
) -> Result<(), KubernetesError> {
    for publisher in publishers {
        let client = client(&publisher.cluster, publisher.kube_config_file.as_ref()).await?;
        let stop = tasks.stop_signal();
        let owner = publish::owner(publisher, publishers);
        let publishing = publish::run(publisher.clone(), owner, client, Arc::clone(registry), stop);
        tasks.spawn("kubernetes bundle", publishing);
    }
    Ok(())
}

fn settings(configured: &KubernetesCluster, registry: &Registry) -> Result<Settings, KubernetesError> {
    let parent_id = parent_id(configured)?;
    Ok(Settings {
        trust_domain: registry.trust_domain().clone(),
        cluster_name: configured.name.clone(),
        cluster_domain: configured.cluster_domain.clone(),
        ignored_namespaces: configured.ignored_namespaces.clone(),
        class_name: configured.class_name.clone(),
        watches_classless: configured.watch_classless,
        parent_id: Arc::new(parent_id),
        csi_driver: configured.csi_driver.clone(),
    })
}

fn parent_id(configured: &KubernetesCluster) -> Result<Template, KubernetesError> {
    Template::parse(&configured.parent_id_template, Scope::Node).map_err(|source| KubernetesError::ParentId {
        cluster: configured.name.clone(),
        source,
    })
}

/// What the IDs of agents begin with that may have a cluster's entries: the part of the template of parent IDs in
/// front of the first fact about a node. All agents, when that part is no template by itself, or when the parent is
/// no agent but an alias of nodes.
fn parent_prefix(source: &str, settings: &Settings) -> String {
    let head = source
        .find(".Node")
        .and_then(|at| source[..at].rfind("{{"))
        .map_or(source, |at| &source[..at]);
    let facts = template::Facts {
        trust_domain: settings.trust_domain.as_str(),
        cluster_name: &settings.cluster_name,
        cluster_domain: &settings.cluster_domain,
        pod: None,
        node_meta: &serde_json::Value::Null,
        node_spec: &serde_json::Value::Null,
    };
    let all = settings.trust_domain.id().to_string();
    Template::parse(head, Scope::Node)
        .and_then(|template| template.render(&facts))
        .ok()
        .filter(|prefix| prefix.starts_with(&format!("{all}/spire/agent/")))
        .unwrap_or(all)
}

/// A client of a cluster: by a kubeconfig, or of the cluster that the server runs in.
///
/// # Errors
/// [`KubernetesError::Connect`]: what is wrong with the configuration; nothing is asked of the cluster yet.
pub async fn client(cluster: &str, kube_config_file: Option<&PathBuf>) -> Result<Client, KubernetesError> {
    let failed = |text: String| KubernetesError::Connect {
        cluster: cluster.to_owned(),
        text,
    };
    let mut config = match kube_config_file {
        Some(path) => {
            let read = Kubeconfig::read_from(path).map_err(|error| {
                failed(match error {
                    // The reader's text would show the lines, and tokens are in them.
                    KubeconfigError::Parse(_) => format!("kubeconfig is malformed: {}", path.display()),
                    other => other.to_string(),
                })
            })?;
            Config::from_custom_kubeconfig(read, &KubeConfigOptions::default())
                .await
                .map_err(|error| failed(error.to_string()))?
        }
        None => Config::incluster().map_err(|error| failed(error.to_string()))?,
    };
    check_trust(&config).map_err(|text| failed(text.to_owned()))?;
    // Whoever asks tries again, and says meanwhile what is wrong; the client alone would do so for minutes and say nothing.
    config.default_retry = false;
    config.read_timeout = Some(limits::SILENCE);
    config.reset_reader_on_write = true;
    let builder = ClientBuilder::try_from(config).map_err(|error| failed(error.to_string()))?;
    Ok(builder.with_layer(&layer_fn(Limited)).build())
}

/// An API server is verified against the cluster's own authority, never by whom the web trusts, and never not at all:
/// it decides who gets which identity.
fn check_trust(config: &Config) -> Result<(), &'static str> {
    if config.accept_invalid_certs {
        return Err("insecure-skip-tls-verify is refused: whoever answers would decide about identities");
    }
    let is_tls = config.cluster_url.scheme_str() == Some("https");
    if is_tls && config.root_cert.is_none() && config.root_cert_file.is_none() {
        return Err("kubeconfig names no certificate authority of the API server");
    }
    let is_loopback = matches!(
        config.cluster_url.host(),
        Some("127.0.0.1" | "localhost" | "[::1]")
    );
    if !is_tls && !is_loopback {
        return Err("API server is not reached over TLS");
    }
    Ok(())
}

/// Until a time; without one, for ever.
async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn manifests(cluster: &str, path: &Path) -> Result<Vec<watch::News>, KubernetesError> {
    manifests::read(path).map_err(|text| KubernetesError::Manifests {
        cluster: cluster.to_owned(),
        text,
    })
}

#[cfg(test)]
mod schema_tests;
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_server_that_cannot_be_verified_is_refused() {
        let of = |url: &'static str| Config::new(http::Uri::from_static(url));
        assert!(check_trust(&of("http://127.0.0.1:8080")).is_ok());
        assert!(check_trust(&of("http://10.0.0.1")).is_err());
        assert!(check_trust(&of("https://10.0.0.1")).is_err());
        let mut verified = of("https://10.0.0.1");
        verified.root_cert = Some(vec![vec![1]]);
        assert!(check_trust(&verified).is_ok());
        verified.accept_invalid_certs = true;
        assert!(check_trust(&verified).is_err());
    }

    #[test]
    fn agents_of_a_cluster_are_known_by_what_their_ids_begin_with() {
        let settings = derive::tests::settings();
        for (source, expected) in [
            (
                derive::tests::PARENT,
                "spiffe://example.test/spire/agent/k8s_psat/demo/",
            ),
            (
                "spiffe://{{ .TrustDomain }}/node/{{ .NodeMeta.Name }}/x",
                "spiffe://example.test",
            ),
            (
                "spiffe://{{ .TrustDomain }}/spire/agent/x",
                "spiffe://example.test/spire/agent/x",
            ),
            (
                "spiffe://{{ .TrustDomain }}/{{ if .ClusterName }}a{{ .NodeMeta.Name }}{{ end }}",
                "spiffe://example.test",
            ),
        ] {
            assert_eq!(parent_prefix(source, &settings), expected, "{source}");
        }
    }
}
