//! `ClusterSPIFFEID`: a rule that gives an entry to each pod that it selects.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::status::Condition;

/// A rule: each matching pod gets one registration entry.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "spire.spiffe.io",
    version = "v1alpha1",
    kind = "ClusterSPIFFEID",
    plural = "clusterspiffeids",
    singular = "clusterspiffeid",
    status = "ClusterSPIFFEIDStatus",
    derive = "PartialEq",
    doc = "Gives a registration entry to each pod that it selects.",
    printcolumn = r#"{"name":"Selected","type":"integer","jsonPath":".status.stats.podsSelected"}"#,
    printcolumn = r#"{"name":"Entries","type":"integer","jsonPath":".status.stats.entriesToSet"}"#,
    printcolumn = r#"{"name":"Masked","type":"integer","jsonPath":".status.stats.entriesMasked","priority":1}"#,
    printcolumn = r#"{"name":"Failures","type":"integer","jsonPath":".status.stats.podEntryRenderFailures"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type==\"Ready\")].status"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSPIFFEIDSpec {
    /// Template of the SPIFFE ID, in the language of Go's text/template.
    #[serde(rename = "spiffeIDTemplate")]
    #[schemars(length(min = 1, max = 8192))]
    pub spiffe_id_template: String,
    /// Lifetime of X509-SVIDs, for example 1h; absent or 0 is the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Lifetime of JWT-SVIDs, for example 5m; absent or 0 is the server's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwt_ttl: Option<String>,
    /// Templates of DNS names of X509-SVIDs, in this order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub dns_name_templates: Option<Vec<String>>,
    /// Templates of further selectors, each of the form type:value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    #[x_kube(validation = Rule::new("self.all(template, template.contains(':') || template.contains('{{'))").message("a selector is of the form type:value"))]
    pub workload_selector_templates: Option<Vec<String>>,
    /// Foreign trust domains whose bundles the workload gets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub federates_with: Option<Vec<String>>,
    /// Namespaces of the pods; absent or empty selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,
    /// The pods; absent or empty selects all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// Whether the workload may use the server's administrative APIs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin: Option<bool>,
    /// Whether the workload is a downstream server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downstream: Option<bool>,
    /// Adds the names of the services that select the pod to the DNS names.
    #[serde(
        rename = "autoPopulateDNSNames",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    pub auto_populate_dns_names: Option<bool>,
    /// The class of servers that act on this rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_name: Option<String>,
    /// Applies only to pods that no rule without this mark gives an entry to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<bool>,
    /// Tells the workload its identities apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub hint: Option<String>,
}

/// What came of a rule.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSPIFFEIDStatus {
    /// Counts of the last pass.
    pub stats: ClusterSPIFFEIDStats,
    /// Whether the rule could be applied, with the reason of the first failure.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The generation of the spec that this describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Counts of a rule.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterSPIFFEIDStats {
    /// Namespaces that the selector matched, ignored ones included.
    pub namespaces_selected: i64,
    /// Of these, the ignored ones.
    pub namespaces_ignored: i64,
    /// Pods that matched in the remaining namespaces.
    pub pods_selected: i64,
    /// Pods for which no entry could be made.
    pub pod_entry_render_failures: i64,
    /// Entries that lost to an identical one of another object or of the server's store.
    pub entries_masked: i64,
    /// Entries that should exist because of this rule, those that the server refused among them.
    pub entries_to_set: i64,
    /// Entries that the server refused.
    pub entry_failures: i64,
}
