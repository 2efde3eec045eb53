//! Static entries.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::Settings;
use super::keys::{Candidate, Declared, DerivedEntry, Owner, Rank, created_at};
use crate::kubernetes::admission;
use crate::kubernetes::resources::ClusterStaticEntry;

/// A static entry of the class of this server.
#[derive(Debug)]
pub(super) struct StaticState {
    /// What it declares, or why nothing: a word and a text.
    pub(super) candidate: Result<Candidate, (&'static str, String)>,
    pub(super) generation: Option<i64>,
}

impl StaticState {
    pub(super) fn of(object: &ClusterStaticEntry, name: &Arc<str>, settings: &Settings) -> Self {
        Self {
            candidate: candidate(object, name, settings),
            generation: object.metadata.generation,
        }
    }
}

fn candidate(
    object: &ClusterStaticEntry,
    name: &Arc<str>,
    settings: &Settings,
) -> Result<Candidate, (&'static str, String)> {
    let meta: &ObjectMeta = &object.metadata;
    let spec = admission::static_entry(&object.spec).map_err(|refused| ("Invalid", refused.to_string()))?;
    let declared = Declared {
        spiffe_id: spec.spiffe_id,
        parent_id: spec.parent_id,
        selectors: spec.selectors,
        dns_names: spec.dns_names,
        store_svid: spec.store_svid,
        created_at: created_at(meta),
        copied: &spec.copied,
    };
    let (key, entry) = declared.entry(settings).map_err(|text| ("Refused", text))?;
    Ok(Candidate {
        key,
        owner: Owner::Static(name.clone()),
        rank: Arc::new(Rank::of(meta)),
        derived: DerivedEntry {
            entry: Arc::new(entry),
            origin: format!("ClusterStaticEntry {name} of cluster {}", settings.cluster_name).into(),
        },
    })
}
