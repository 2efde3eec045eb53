//! Who declares which relationship, and which of several is used. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use finial_identity::federation::{DeclaredSets, Origin, Relationship};
use finial_identity::spiffe_id::TrustDomain;

/// A relationship that counts, and who declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Managed {
    /// The relationship.
    pub relationship: Relationship,
    /// Who declares it.
    pub origin: Origin,
}

/// The one relationship of each trust domain that counts: the configuration's before an operator's, as in SPIRE, and
/// both before an object's.
pub fn merge(
    configured: &[Relationship],
    stored: Vec<Relationship>,
    declared: &DeclaredSets,
) -> BTreeMap<TrustDomain, Managed> {
    let configured = configured
        .iter()
        .cloned()
        .map(|relationship| (relationship, Origin::Configuration));
    let stored = stored.into_iter().map(|relationship| (relationship, Origin::Api));
    let declared = declared.values().flatten().map(|declared| {
        let origin = Origin::Object(Arc::clone(&declared.origin));
        (declared.relationship.clone(), origin)
    });
    let mut managed = BTreeMap::new();
    for (relationship, origin) in configured.chain(stored).chain(declared) {
        managed
            .entry(relationship.trust_domain.clone())
            .or_insert(Managed { relationship, origin });
    }
    managed
}

#[cfg(test)]
mod tests {
    use finial_identity::federation::Declared;

    use super::super::testing::web;
    use super::*;

    #[test]
    fn of_several_relationships_with_a_trust_domain_the_configured_one_counts_then_the_operators() {
        let object = |name: &str, url: &str| Declared {
            relationship: web(name, url),
            bundle: None,
            origin: format!("object {name}").into(),
        };
        let declared: DeclaredSets = [
            (
                "one".into(),
                vec![
                    object("a.test", "https://a.test/object"),
                    object("b.test", "https://b.test/object"),
                    object("c.test", "https://c.test/one"),
                ],
            ),
            ("two".into(), vec![object("c.test", "https://c.test/two")]),
        ]
        .into();
        let stored = vec![
            web("a.test", "https://a.test/operator"),
            web("b.test", "https://b.test/operator"),
        ];
        let configured = [web("a.test", "https://a.test/configuration")];
        let merged: Vec<(String, Origin)> = merge(&configured, stored, &declared)
            .into_values()
            .map(|managed| {
                let url = managed.relationship.endpoint_url.as_str().to_owned();
                (url, managed.origin)
            })
            .collect();
        let expected = [
            ("https://a.test/configuration".to_owned(), Origin::Configuration),
            ("https://b.test/operator".to_owned(), Origin::Api),
            (
                "https://c.test/one".to_owned(),
                Origin::Object("object c.test".into()),
            ),
        ];
        assert_eq!(merged, expected);
    }
}
