//! Review of a token by a cluster's API server.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo};
use k8s_openapi::api::core;
use kube::api::PostParams;
use kube::core::ApiResource;
use kube::{Api, Client};

use super::addresses::Addresses;
use super::objects::{Found, Node, Pod, find};
use super::{AttestError, denied};
use crate::config::K8sPsatCluster;

/// How long an API server has for each answer.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// What service accounts are called as users.
const ACCOUNT_PREFIX: &str = "system:serviceaccount:";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
/// The node that a token was made for; API servers from 1.30 on report it.
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const NODE_UID: &str = "authentication.kubernetes.io/node-uid";

/// One cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    settings: K8sPsatCluster,
    connection: Connection,
}

/// The client, which has nothing to print.
struct Connection(Client);

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connection")
    }
}

/// An agent as its cluster knows it.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) namespace: String,
    pub(super) service_account: String,
    pub(super) pod_name: String,
    pub(super) pod_uid: String,
    pub(super) pod_labels: BTreeMap<String, String>,
    pub(super) node_name: String,
    pub(super) node_uid: String,
    pub(super) node_ip: String,
    pub(super) node_labels: BTreeMap<String, String>,
}

/// Whose token it is.
struct Holder {
    namespace: String,
    service_account: String,
    pod_name: String,
    pod_uid: String,
    node_name: Option<String>,
    node_uid: Option<String>,
}

impl Cluster {
    pub(super) fn new(settings: K8sPsatCluster, client: Client) -> Self {
        Self {
            settings,
            connection: Connection(client),
        }
    }

    pub(super) fn settings(&self) -> &K8sPsatCluster {
        &self.settings
    }

    /// The agent that this token was made for. `peer` is where it was sent from, if that is known.
    ///
    /// # Errors
    /// A token that is not valid for an agent of this cluster, or an API server without an answer.
    pub(super) async fn examine(&self, token: &str, peer: Option<IpAddr>) -> Result<Agent, AttestError> {
        let holder = self.holder(token).await?;
        let pod = self.pod(&holder).await?;
        let node_name = pod
            .part
            .spec
            .node_name
            .clone()
            .filter(|name| !name.is_empty())
            .ok_or_else(|| denied("pod of the token is on no node"))?;
        if holder.node_name.as_ref().is_some_and(|told| *told != node_name) {
            return Err(denied("token was made for a pod on another node"));
        }
        let node = self.node(&node_name).await?;
        let node_uid = node
            .metadata
            .uid
            .clone()
            .ok_or_else(|| denied("node of the pod has no UID"))?;
        if holder.node_uid.as_ref().is_some_and(|told| *told != node_uid) {
            return Err(denied("token was made for a pod on another node of this name"));
        }
        if self.settings.verify_client_ip {
            let own = Addresses::of(&pod.part, &node.part);
            match peer.map(|peer| peer.to_canonical()) {
                Some(peer) if own.have(peer) => {}
                // The kubelet reports them a moment after the agent began to run.
                Some(_) if !own.are_known => {
                    return Err(AttestError::Unavailable {
                        what: "k8s_psat: API server does not tell about pods",
                        source: "pod of the token has no address yet".into(),
                    });
                }
                Some(peer) => {
                    return Err(denied(format!(
                        "token was sent from {peer}, which is neither its pod's address nor its node's; \
                         where the network translates addresses, set verify_client_ip to false"
                    )));
                }
                None => {
                    return Err(denied(
                        "token was sent from no address, as verify_client_ip demands",
                    ));
                }
            }
        }
        Ok(Agent {
            node_ip: pod.part.status.host_ip.unwrap_or_default(),
            namespace: holder.namespace,
            service_account: holder.service_account,
            pod_name: holder.pod_name,
            pod_uid: holder.pod_uid,
            pod_labels: pod.metadata.labels.unwrap_or_default(),
            node_name,
            node_uid,
            node_labels: node.metadata.labels.unwrap_or_default(),
        })
    }

    async fn holder(&self, token: &str) -> Result<Holder, AttestError> {
        let status = self.review(token).await?;
        if status.authenticated != Some(true) {
            // Why is for the operator, not for who shows tokens.
            let why = status.error.unwrap_or_default().replace(token, "…");
            tracing::info!(cluster = %self.settings.name, %why, "service account token is not good");
            return Err(denied("token is not good for this cluster and audience"));
        }
        // An API server that does not know of audiences would have taken any token.
        let answered = status.audiences.unwrap_or_default();
        let wanted = &self.settings.audience;
        if !wanted.is_empty() && !answered.iter().any(|audience| wanted.contains(audience)) {
            return Err(denied("token is not good for the audience of this server"));
        }
        let user = status.user.ok_or_else(|| denied("token belongs to nobody"))?;
        let account = user
            .username
            .as_deref()
            .and_then(|name| name.strip_prefix(ACCOUNT_PREFIX))
            .ok_or_else(|| denied("token is not that of a service account"))?;
        let (namespace, service_account) = account
            .split_once(':')
            .ok_or_else(|| denied("token is not that of a service account"))?;
        if !self.settings.service_accounts.contains(account) {
            return Err(denied(format!("service account is not allowed: {account}")));
        }
        let required = |key: &str| extra(&user, key).ok_or_else(|| denied("token is not bound to a pod"));
        Ok(Holder {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            pod_name: required(POD_NAME)?,
            pod_uid: required(POD_UID)?,
            node_name: extra(&user, NODE_NAME),
            node_uid: extra(&user, NODE_UID),
        })
    }

    async fn review(&self, token: &str) -> Result<TokenReviewStatus, AttestError> {
        let review = TokenReview {
            spec: TokenReviewSpec {
                token: Some(token.to_owned()),
                audiences: Some(self.settings.audience.clone()).filter(|audience| !audience.is_empty()),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.connection.0.clone());
        let params = PostParams::default();
        let asked = within_time(reviews.create(&params, &review)).await;
        let answer = asked.map_err(unavailable("k8s_psat: API server cannot review tokens"))?;
        Ok(answer.status.unwrap_or_default())
    }

    async fn pod(&self, holder: &Holder) -> Result<Found<Pod>, AttestError> {
        let resource = ApiResource::erase::<core::v1::Pod>(&());
        let pods = Api::namespaced_with(self.connection.0.clone(), &holder.namespace, &resource);
        let asked = within_time(find::<Pod>(&pods, &holder.pod_name)).await;
        let pod = asked.map_err(unavailable("k8s_psat: API server does not tell about pods"))?;
        let pod = pod.ok_or_else(|| denied("pod of the token is gone"))?;
        if pod.metadata.uid.as_deref() != Some(holder.pod_uid.as_str()) {
            return Err(denied("pod of the token is gone, another has its name"));
        }
        if matches!(pod.part.status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return Err(denied("pod of the token has ended"));
        }
        if pod.part.spec.service_account_name.as_deref() != Some(holder.service_account.as_str()) {
            return Err(denied("pod of the token has another service account"));
        }
        Ok(pod)
    }

    async fn node(&self, name: &str) -> Result<Found<Node>, AttestError> {
        let resource = ApiResource::erase::<core::v1::Node>(&());
        let nodes = Api::all_with(self.connection.0.clone(), &resource);
        let asked = within_time(find::<Node>(&nodes, name)).await;
        let node = asked.map_err(unavailable("k8s_psat: API server does not tell about nodes"))?;
        node.ok_or_else(|| denied(format!("node of the pod does not exist: {name}")))
    }
}

/// The one value of a fact about a user; several are no answer.
fn extra(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [only] if !only.is_empty() => Some(only.clone()),
        _ => None,
    }
}

/// No answer says nothing about the token, nor does a refusal of our own request.
fn unavailable(what: &'static str) -> impl FnOnce(Box<dyn Error + Send + Sync>) -> AttestError {
    move |source| AttestError::Unavailable { what, source }
}

async fn within_time<T, E: Into<Box<dyn Error + Send + Sync>>>(
    request: impl Future<Output = Result<T, E>>,
) -> Result<T, Box<dyn Error + Send + Sync>> {
    match tokio::time::timeout(ANSWER_TIME, request).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_elapsed) => Err(format!("no answer within {} s", ANSWER_TIME.as_secs()).into()),
    }
}
