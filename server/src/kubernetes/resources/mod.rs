//! The custom resources by which operators declare identities: group `spire.spiffe.io`, version
//! `v1alpha1`, with the kinds, fields and meaning that SPIRE's controller manager gave them.
//!
//! What a schema can say stands in the generated definitions, rules in CEL included. Servers before
//! Kubernetes 1.25 do not run those, so `admission` checks everything again.

mod cluster_federated_trust_domain;
mod cluster_spiffe_id;
mod cluster_static_entry;
mod manifest;
mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

pub use cluster_federated_trust_domain::{
    BundleEndpointProfile, ClusterFederatedTrustDomain, ClusterFederatedTrustDomainSpec,
    ClusterFederatedTrustDomainStatus, ProfileType,
};
pub use cluster_spiffe_id::{
    ClusterSPIFFEID, ClusterSPIFFEIDSpec, ClusterSPIFFEIDStats, ClusterSPIFFEIDStatus,
};
pub use cluster_static_entry::{ClusterStaticEntry, ClusterStaticEntrySpec, ClusterStaticEntryStatus};
pub use manifest::to_yaml;
pub use status::{Condition, ConditionStatus, READY, set_ready};

/// API group of the three kinds.
pub const GROUP: &str = "spire.spiffe.io";

/// Annotation of our definitions: a number that grows with each change of a schema, so that a server
/// knows whether the cluster's definitions are older than its own.
pub const SCHEMA_VERSION_ANNOTATION: &str = "finial.spiffe.io/schema-version";

/// The value of [`SCHEMA_VERSION_ANNOTATION`] of these types.
pub const SCHEMA_VERSION: u32 = 1;

/// The definitions of the three kinds.
pub fn definitions() -> Vec<CustomResourceDefinition> {
    let mut all = vec![
        ClusterSPIFFEID::crd(),
        ClusterStaticEntry::crd(),
        ClusterFederatedTrustDomain::crd(),
    ];
    for definition in &mut all {
        definition
            .metadata
            .annotations
            .get_or_insert_default()
            .insert(SCHEMA_VERSION_ANNOTATION.to_owned(), SCHEMA_VERSION.to_string());
    }
    all
}

/// File name and text of each definition, as the chart carries them.
pub fn manifests() -> Vec<(String, String)> {
    let manifest = |definition: CustomResourceDefinition| {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let value = serde_json::to_value(definition).expect("a definition has string keys only");
        (name, to_yaml(&value))
    };
    definitions().into_iter().map(manifest).collect()
}

#[cfg(test)]
mod tests;
