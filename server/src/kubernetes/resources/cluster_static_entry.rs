//! `ClusterStaticEntry`: one registration entry with all its fields.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::status::Condition;

/// One registration entry.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spire.spiffe.io",
    version = "v1alpha1",
    kind = "ClusterStaticEntry",
    plural = "clusterstaticentries",
    singular = "clusterstaticentry",
    status = "ClusterStaticEntryStatus",
    derive = "PartialEq",
    doc = "Declares one registration entry.",
    printcolumn = r#"{"name":"SPIFFE ID","type":"string","jsonPath":".spec.spiffeID"}"#,
    printcolumn = r#"{"name":"Set","type":"boolean","jsonPath":".status.set"}"#,
    printcolumn = r#"{"name":"Masked","type":"boolean","jsonPath":".status.masked","priority":1}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStaticEntrySpec {
    /// The SPIFFE ID.
    #[serde(rename = "spiffeID")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('spiffe://')").message("a SPIFFE ID begins with spiffe://"))]
    pub spiffe_id: String,
    /// The SPIFFE ID of the agent, of a group of nodes, or of the server.
    #[serde(rename = "parentID")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.startsWith('spiffe://')").message("a SPIFFE ID begins with spiffe://"))]
    pub parent_id: String,
    /// Selectors, each of the form type:value, cut at the first colon.
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    #[x_kube(validation = Rule::new("self.all(selector, selector.matches('^[^:]+:.'))").message("a selector is of the form type:value with neither side empty"))]
    pub selectors: Vec<String>,
    /// Foreign trust domains whose bundles the workload gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub federates_with: Option<Vec<String>>,
    /// Lifetime of X509-SVIDs; absent or 0 is the server's default.
    #[serde(rename = "x509SVIDTTL", default, skip_serializing_if = "Option::is_none")]
    pub x509_svid_ttl: Option<String>,
    /// Lifetime of JWT-SVIDs; absent or 0 is the server's default.
    #[serde(rename = "jwtSVIDTTL", default, skip_serializing_if = "Option::is_none")]
    pub jwt_svid_ttl: Option<String>,
    /// DNS names of X509-SVIDs, in this order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub dns_names: Option<Vec<String>>,
    /// Tells the workload its identities apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub hint: Option<String>,
    /// Whether the workload may use the server's administrative APIs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<bool>,
    /// Whether the workload is a downstream server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downstream: Option<bool>,
    /// Whether the SVID goes to an SVID store.
    #[serde(rename = "storeSVID", default, skip_serializing_if = "Option::is_none")]
    pub store_svid: Option<bool>,
    /// The class of servers that act on this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

/// What came of a static entry.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterStaticEntryStatus {
    /// Whether the spec is valid.
    pub rendered: bool,
    /// Whether the entry lost to an identical one of another object or of the server's store.
    pub masked: bool,
    /// Whether the server holds an entry equal to the spec.
    pub set: bool,
    /// Whether the entry is there, with the reason if it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
