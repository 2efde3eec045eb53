//! The bundle map: bundles of several trust domains in one document (SPIFFE Trust Domain and Bundle
//! §5). It is loaded completely or not at all.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::document::{Document, print};
use super::{Bundle, BundleError, json};
use crate::spiffe_id::TrustDomain;

/// The largest bundle map that is read, in bytes.
pub const MAX_MAP_BYTES: usize = 16 * 1024 * 1024;

/// Bundles by trust domain: the complete state of one document.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BundleMap {
    /// Each bundle under its own trust domain.
    pub bundles: BTreeMap<TrustDomain, Bundle>,
}

impl BundleMap {
    /// Reads a bundle map. Refresh hints of the bundles inside are dropped: they do not say how often
    /// the map is read.
    ///
    /// # Errors
    /// The text is larger than [`MAX_MAP_BYTES`], is not JSON, names a trust domain (or any other
    /// member) twice, has no object `trust_domains`, or has a name or a bundle that cannot be read.
    pub fn parse(text: &[u8]) -> Result<Self, BundleError> {
        let value = json::parse(text, MAX_MAP_BYTES, MAP)?;
        let Some(Value::Object(members)) = value.get(TRUST_DOMAINS) else {
            return Err(BundleError::Member {
                what: MAP,
                member: TRUST_DOMAINS,
                want: "an object",
            });
        };
        let mut bundles = BTreeMap::new();
        for (name, value) in members {
            let trust_domain = TrustDomain::parse(name).map_err(|cause| BundleError::TrustDomain {
                name: name.chars().take(255).collect(),
                cause,
            })?;
            let (bundle, _) = Bundle::from_spiffe_value(trust_domain.clone(), value).map_err(|cause| {
                BundleError::InMap {
                    trust_domain: trust_domain.clone(),
                    cause: Box::new(cause),
                }
            })?;
            bundles.insert(
                trust_domain,
                Bundle {
                    refresh_hint: 0,
                    ..bundle
                },
            );
        }
        Ok(Self { bundles })
    }

    /// The document, pretty-printed, with trust domains sorted by name and without refresh hints.
    #[must_use]
    pub fn to_json(&self) -> String {
        let trust_domains = self
            .bundles
            .iter()
            .map(|(name, bundle)| {
                (
                    name.as_str(),
                    Document {
                        spiffe_refresh_hint: 0,
                        ..bundle.to_document()
                    },
                )
            })
            .collect();
        print(&MapDocument { trust_domains })
    }
}

const MAP: &str = "bundle map";
const TRUST_DOMAINS: &str = "trust_domains";

#[derive(Serialize)]
struct MapDocument<'a> {
    trust_domains: BTreeMap<&'a str, Document>,
}

impl FromIterator<Bundle> for BundleMap {
    fn from_iter<I: IntoIterator<Item = Bundle>>(bundles: I) -> Self {
        Self {
            bundles: bundles
                .into_iter()
                .map(|bundle| (bundle.trust_domain.clone(), bundle))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bundle, td};
    use super::*;

    fn parse(text: &str) -> Result<BundleMap, BundleError> {
        BundleMap::parse(text.as_bytes())
    }

    /// Covers BND-22, BND-23, BND-26.
    #[test]
    fn bnd22_bnd23_bnd26_is_keyed_by_name_and_has_no_hints() {
        let with_hint = Bundle {
            sequence_number: 4,
            refresh_hint: 60,
            ..bundle()
        };
        let text = BundleMap::from_iter([with_hint.clone(), Bundle::new(td("a.test"))]).to_json();
        assert!(!text.contains("spiffe_refresh_hint"));
        let value: Value = serde_json::from_str(&text).unwrap();
        let names: Vec<&String> = value["trust_domains"].as_object().unwrap().keys().collect();
        assert_eq!(names, ["a.test", "example.org"]);
        let read = parse(&text).unwrap();
        assert_eq!(
            read.bundles["example.org"],
            Bundle {
                refresh_hint: 0,
                ..with_hint
            }
        );
        assert_eq!(read.bundles["a.test"], Bundle::new(td("a.test")));
        assert_eq!(
            parse(&BundleMap::default().to_json()).unwrap(),
            BundleMap::default()
        );
    }

    /// Covers BND-25.
    #[test]
    fn e60_bnd25_a_repeated_trust_domain_is_refused() {
        let text = r#"{"trust_domains":{"a.test":{"keys":[]},"a.test":{"keys":[]}}}"#;
        assert!(matches!(parse(text), Err(BundleError::Json { .. })));
        let escaped = r#"{"trust_domains":{"a.test":{"keys":[]},"\u0061.test":{"keys":[]}}}"#;
        assert!(parse(escaped).is_err());
    }

    #[test]
    fn e60_an_empty_map_is_valid_and_a_missing_one_is_not() {
        assert_eq!(parse(r#"{"trust_domains":{}}"#).unwrap(), BundleMap::default());
        for text in ["{}", r#"{"trust_domains":[]}"#, r#"{"trust_domains":null}"#, "[]"] {
            assert!(matches!(parse(text), Err(BundleError::Member { .. })), "{text}");
        }
    }

    /// Covers BND-27.
    #[test]
    fn bnd27_hints_inside_are_dropped() {
        let text = r#"{"trust_domains":{"a.test":{"keys":[],"spiffe_refresh_hint":5}},"x":1}"#;
        assert_eq!(parse(text).unwrap().bundles["a.test"].refresh_hint, 0);
    }

    /// Covers BND-28.
    #[test]
    fn bnd28_one_bad_bundle_or_name_refuses_the_whole_map() {
        let text = r#"{"trust_domains":{"a.test":{"keys":[]},"b.test":{}}}"#;
        assert!(
            matches!(parse(text), Err(BundleError::InMap { trust_domain, .. }) if trust_domain == td("b.test"))
        );
        for name in ["spiffe://a.test", "A.test", ""] {
            let text = format!(r#"{{"trust_domains":{{"{name}":{{"keys":[]}}}}}}"#);
            assert!(
                matches!(parse(&text), Err(BundleError::TrustDomain { .. })),
                "{name}"
            );
        }
    }
}
