//! `ClusterFederatedTrustDomain`: one federation relationship.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::Condition;

/// One federation relationship.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spire.spiffe.io",
    version = "v1alpha1",
    kind = "ClusterFederatedTrustDomain",
    plural = "clusterfederatedtrustdomains",
    singular = "clusterfederatedtrustdomain",
    status = "ClusterFederatedTrustDomainStatus",
    derive = "PartialEq",
    doc = "Declares a federation relationship.",
    printcolumn = r#"{"name":"Trust Domain","type":"string","jsonPath":".spec.trustDomain"}"#,
    printcolumn = r#"{"name":"Endpoint URL","type":"string","jsonPath":".spec.bundleEndpointURL"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFederatedTrustDomainSpec {
    /// Name of the foreign trust domain.
    #[schemars(length(max = 255), regex(pattern = "^[a-z0-9._-]{1,255}$"))]
    pub trust_domain: String,
    /// Where its bundle is fetched: an https URL with a host and without user information.
    #[serde(rename = "bundleEndpointURL")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https://[^/?#@]+([/?#].*)?$')").message("an https URL with a host and without user information is needed"))]
    pub bundle_endpoint_url: String,
    /// How the endpoint is authenticated.
    pub bundle_endpoint_profile: BundleEndpointProfile,
    /// The bundle to start from, as a SPIFFE bundle document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_domain_bundle: Option<String>,
    /// The class of servers that act on this object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
}

/// How a bundle endpoint is authenticated.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.type != 'https_spiffe' || (has(self.endpointSPIFFEID) && self.endpointSPIFFEID.startsWith('spiffe://'))").message("https_spiffe needs endpointSPIFFEID"),
    validation = Rule::new("self.type != 'https_web' || !has(self.endpointSPIFFEID) || self.endpointSPIFFEID == ''").message("https_web has no endpointSPIFFEID")
)]
pub struct BundleEndpointProfile {
    /// Name of the profile.
    #[serde(rename = "type")]
    pub kind: ProfileType,
    /// The SPIFFE ID of the endpoint, with `https_spiffe` only.
    #[serde(rename = "endpointSPIFFEID", default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub endpoint_spiffe_id: Option<String>,
}

/// Profiles of bundle endpoints (SPIFFE Federation §5).
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileType {
    /// Web PKI.
    #[default]
    HttpsWeb,
    /// An X509-SVID.
    HttpsSpiffe,
}

/// What came of a federation relationship.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterFederatedTrustDomainStatus {
    /// When the bundle was last fetched, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fetch_time: Option<String>,
    /// The sequence number of the bundle held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sequence_number: Option<i64>,
    /// Whether the relationship is in force, with the reason if it is not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
