//! The labels of namespaces, which the kubelet does not know: from the API server, with the service account of the
//! agent's pod.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::super::off_thread;
use super::ask::{self, ANSWER_TIME, AskError, certificates, token, unusable};
use crate::config::ApiServer;

/// How long an answer counts. A label that is taken from a namespace takes its facts away that much later.
const FRESH: Duration = Duration::from_secs(5);
/// Most bytes of a namespace.
const MAX_NAMESPACE: usize = 2 * 1024 * 1024;
/// How many namespaces are cached before those that were not used recently are dropped.
const MANY: usize = 512;
/// Most characters of a namespace's name.
const MAX_NAME: usize = 63;

/// Labels of a namespace.
pub(super) type Labels = BTreeMap<String, String>;

/// Gives a namespace, as JSON.
#[async_trait]
pub(super) trait FetchNamespace: Send + Sync + std::fmt::Debug {
    async fn fetch(&self, name: &str) -> Result<Bytes, AskError>;
}

/// One answer for all who ask, for a while.
#[derive(Debug)]
pub(super) struct Namespaces {
    source: Arc<dyn FetchNamespace>,
    known: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<Answer>>>>>,
}

#[derive(Clone, Debug)]
struct Answer {
    at: Instant,
    labels: Result<Arc<Labels>, Arc<AskError>>,
}

/// The API server of the cluster that the agent is in.
#[derive(Debug)]
pub(super) struct InCluster(pub(super) ApiServer);

#[derive(Deserialize)]
struct Namespace {
    kind: String,
    metadata: Metadata,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: Option<Labels>,
}

impl Namespaces {
    pub(super) fn new(source: Arc<dyn FetchNamespace>) -> Self {
        Self {
            source,
            known: Mutex::default(),
        }
    }

    /// The labels of a namespace, as they were a few seconds ago at most. May be dropped at any time.
    ///
    /// # Errors
    /// When the API server gives no labels, also because there is no such namespace.
    pub(super) async fn labels(&self, name: &str) -> Result<Arc<Labels>, Arc<AskError>> {
        let place = self.place(name);
        let mut last = place.lock().await;
        if let Some(answer) = last.as_ref().filter(|answer| answer.at.elapsed() < FRESH) {
            return answer.labels.clone();
        }
        let labels = self.fetch(name).await.map(Arc::new).map_err(Arc::new);
        *last = Some(Answer {
            at: Instant::now(),
            labels: labels.clone(),
        });
        labels
    }

    async fn fetch(&self, name: &str) -> Result<Labels, AskError> {
        let asked = tokio::time::timeout(ANSWER_TIME, self.source.fetch(name)).await;
        let text = asked.unwrap_or(Err(AskError::TimedOut))?;
        let other = || AskError::OtherObject(format!("namespace {name}"));
        let read: Namespace = serde_json::from_slice(&text).map_err(|_error| other())?;
        if read.kind != "Namespace" || read.metadata.name != name {
            return Err(other());
        }
        Ok(read.metadata.labels.unwrap_or_default())
    }

    fn place(&self, name: &str) -> Arc<tokio::sync::Mutex<Option<Answer>>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MANY && !known.contains_key(name) {
            known.retain(|_name, place| {
                Arc::strong_count(place) > 1
                    || place
                        .try_lock()
                        .is_ok_and(|last| last.as_ref().is_some_and(|answer| answer.at.elapsed() < FRESH))
            });
        }
        Arc::clone(known.entry(name.to_owned()).or_default())
    }
}

#[async_trait]
impl FetchNamespace for InCluster {
    async fn fetch(&self, name: &str) -> Result<Bytes, AskError> {
        let server = self.0.clone();
        let host = server.host.clone().ok_or(AskError::Nowhere(
            "it is not known where the API server is: KUBERNETES_SERVICE_HOST is not set",
        ))?;
        if !is_label(name) {
            return Err(AskError::HostName(name.chars().take(MAX_NAME).collect()));
        }
        let server_name =
            ServerName::try_from(host.clone()).map_err(|_invalid| AskError::HostName(host.clone()))?;
        let address = ask::authority(&host, server.port);
        // Tokens are renewed in place; a namespace is asked for seldom enough to read them each time.
        let read = off_thread(move || Ok(access(&server))).await;
        let (tls, bearer) = read.map_err(|_cut_off| AskError::CutOff)??;
        let stream = ask::connect(&address).await?;
        let secured = TlsConnector::from(Arc::new(tls))
            .connect(server_name, stream)
            .await;
        let stream = secured.map_err(|source| AskError::Connect {
            address: address.clone(),
            source,
        })?;
        let path = format!("/api/v1/namespaces/{name}");
        ask::get(stream, &address, &path, Some(bearer), MAX_NAMESPACE).await
    }
}

/// The API server is verified by chain and by name.
fn access(server: &ApiServer) -> Result<(ClientConfig, http::HeaderValue), AskError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&server.ca_path)? {
        roots
            .add(certificate)
            .map_err(|error| unusable("certificate authority", &server.ca_path, error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has ciphers for TLS 1.2 and 1.3")
        .with_root_certificates(roots)
        .with_no_client_auth();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok((tls, token(&server.token_path)?))
}

/// Names of namespaces are labels in the sense of RFC 1123; nothing else goes into a path.
fn is_label(name: &str) -> bool {
    let characters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(characters)
}

#[cfg(test)]
#[path = "namespaces_tests.rs"]
mod tests;
