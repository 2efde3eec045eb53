//! The API server of the cluster that the agent is in.

use std::path::PathBuf;

/// The authority of the cluster, as pods are given it.
pub(super) const CLUSTER_CA: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";
/// The token of the agent's service account, as pods are given it.
pub(super) const ACCOUNT_TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// Where pods find the API server of their cluster.
const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";
const PORT: u16 = 443;

/// The API server of the cluster that the agent is in, as its pod is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiServer {
    /// Its host name or address, if there is one.
    pub host: Option<String>,
    /// Its port for TLS.
    pub port: u16,
    /// The authority of the cluster.
    pub ca_path: PathBuf,
    /// The token of the agent's service account.
    pub token_path: PathBuf,
}

impl Default for ApiServer {
    fn default() -> Self {
        Self {
            host: None,
            port: PORT,
            ca_path: CLUSTER_CA.into(),
            token_path: ACCOUNT_TOKEN.into(),
        }
    }
}

impl ApiServer {
    /// The same, where the environment says that it is.
    pub(super) fn with_variables(self, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|value| !value.is_empty());
        let port = env(PORT_VARIABLE).and_then(|port| port.parse().ok());
        Self {
            host: env(HOST_VARIABLE),
            port: port.unwrap_or(PORT),
            ..self
        }
    }
}
