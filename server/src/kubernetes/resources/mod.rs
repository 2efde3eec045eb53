//! The custom resources by which operators declare identities: group `spire.spiffe.io`, version
//! `v1alpha1`, with the kinds, fields and meaning that SPIRE's controller manager gave them.
//!
//! The generated definitions contain everything that a schema can express, rules in CEL included. API servers before
//! Kubernetes 1.25 do not run those rules, so `admission` checks everything again; those before 1.23 do not even accept
//! them, so the chart's files do not have them, and this server adds them where they are supported.

mod cluster_federated_trust_domain;
mod cluster_spiffe_id;
mod cluster_static_entry;
mod manifest;
mod status;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
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
pub const SCHEMA_VERSION: u32 = 2;

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

/// The same without rules in CEL. API servers before Kubernetes 1.23 do not know the field, and refuse to apply what has
/// it.
pub fn definitions_without_rules() -> Vec<CustomResourceDefinition> {
    let mut all = definitions();
    for version in all
        .iter_mut()
        .flat_map(|definition| &mut definition.spec.versions)
    {
        let schema = version.schema.as_mut();
        if let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            remove_rules(schema);
        }
    }
    all
}

/// Whether rules in CEL stand anywhere in a definition.
pub fn has_rules(definition: &CustomResourceDefinition) -> bool {
    let schemas = definition.spec.versions.iter().filter_map(|version| {
        let schema = version.schema.as_ref()?;
        schema.open_api_v3_schema.clone()
    });
    schemas.into_iter().any(|mut schema| {
        let before = schema.clone();
        remove_rules(&mut schema);
        schema != before
    })
}

/// File name and text of each definition, as the chart carries them: such that every API server takes them.
pub fn manifests() -> Vec<(String, String)> {
    let manifest = |definition: CustomResourceDefinition| {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let value = serde_json::to_value(definition).expect("a definition has string keys only");
        (name, to_yaml(&value))
    };
    definitions_without_rules().into_iter().map(manifest).collect()
}

/// Ours have schemas in properties and in items, and nowhere else.
fn remove_rules(schema: &mut JSONSchemaProps) {
    schema.x_kubernetes_validations = None;
    schema
        .properties
        .iter_mut()
        .flat_map(|properties| properties.values_mut())
        .for_each(remove_rules);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        remove_rules(items);
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod version_tests;
