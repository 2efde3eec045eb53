//! Who declares which relationship, and which of several is used. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use finial_identity::federation::{Declared, DeclaredSets, Origin, Relationship};
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
    let declared = in_order(declared).into_iter().map(|declared| {
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

/// What objects declare, such that of one trust domain the first counts: the older object, as within a cluster, and of
/// equally old ones that of the cluster whose name comes first.
pub fn in_order(declared: &DeclaredSets) -> Vec<&Declared> {
    let mut declared: Vec<_> = declared.values().flatten().collect();
    // Stable: those of the same age stay in the order of their clusters.
    declared.sort_by_key(|declared| declared.created_at);
    declared
}

#[cfg(test)]
mod tests {
    use super::super::testing::web;
    use super::*;

    #[test]
    fn of_several_relationships_with_a_trust_domain_the_configured_one_counts_then_the_operators() {
        let object = |name: &str, url: &str| Declared {
            relationship: web(name, url),
            bundle: None,
            origin: format!("object {name}").into(),
            created_at: 7,
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

    #[test]
    fn of_the_objects_of_several_clusters_the_older_counts_whichever_cluster_has_it() {
        let object = |cluster: &str, created_at: i64| {
            let declared = Declared {
                relationship: web("a.test", &format!("https://a.test/{cluster}")),
                bundle: None,
                origin: cluster.into(),
                created_at,
            };
            (cluster.into(), vec![declared])
        };
        for (of_one, of_two, winner) in [(5, 6, "one"), (6, 5, "two"), (5, 5, "one")] {
            let declared: DeclaredSets = [object("one", of_one), object("two", of_two)].into();
            let merged = merge(&[], Vec::new(), &declared);
            let origins: Vec<Origin> = merged.into_values().map(|managed| managed.origin).collect();
            assert_eq!(origins, [Origin::Object(winner.into())], "{of_one} {of_two}");
        }
    }
}
