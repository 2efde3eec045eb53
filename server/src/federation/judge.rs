//! Whether a fetched bundle replaces the stored one. Pure.

use std::collections::BTreeSet;

use finial_identity::bundle::{Bundle, BundleError, KeyUse, Skipped};
use finial_identity::spiffe_id::TrustDomain;
use thiserror::Error;

/// Why a document does not take the place of the stored bundle.
#[derive(Debug, Error)]
pub enum Unfit {
    /// It cannot be read.
    #[error("{0}")]
    Malformed(#[from] BundleError),
    /// It is older than the stored one (SPIFFE Federation §4.2).
    #[error("bundle is older than the stored one: sequence number {fetched}, stored {stored}")]
    Older {
        /// Its sequence number.
        fetched: u64,
        /// That of the stored one.
        stored: u64,
    },
    /// It has authorities, none of which can be used.
    #[error("bundle has no authority that can be used, of {0} keys")]
    NothingUsable(usize),
    /// None of its keys of a kind can be used, and the stored one has some of that kind.
    #[error("bundle has no key for {} that can be used, and the stored one has", .0.name())]
    NothingUsableFor(KeyUse),
    /// It has no authorities, and no sequence number that says that all were revoked.
    #[error("bundle is empty, and its sequence number {fetched} does not follow the stored one's {stored}")]
    Empty {
        /// Its sequence number.
        fetched: u64,
        /// That of the stored one.
        stored: u64,
    },
}

/// A document as it was fetched.
#[derive(Debug)]
pub(super) struct Document {
    /// What can be used of it.
    pub(super) bundle: Bundle,
    /// What was left out because it cannot be used.
    pub(super) left_out: Vec<Skipped>,
}

/// Reads a document as it was fetched. Authorities of WIT-SVIDs are kept only if `wit_svids` are on.
///
/// # Errors
/// [`Unfit::Malformed`], or [`Unfit::NothingUsable`].
pub(super) fn read(trust_domain: &TrustDomain, document: &[u8], wit_svids: bool) -> Result<Document, Unfit> {
    let (mut bundle, mut left_out) = Bundle::parse_spiffe_json_with_skipped(trust_domain.clone(), document)?;
    let keys = left_out.len() + bundle.wit_authorities.len();
    if !wit_svids {
        bundle.wit_authorities.clear();
        left_out.retain(|key| key.key_use != Some(KeyUse::WitSvid));
    }
    if is_empty(&bundle) && keys > 0 {
        return Err(Unfit::NothingUsable(keys));
    }
    Ok(Document { bundle, left_out })
}

/// What takes the place of the stored bundle, if this document may.
///
/// The highest sequence number that was seen stays: a document without one is the newest (SPIFFE Federation §4.2), and
/// those that are older than the stored one are still known by their number.
///
/// Where keys of a kind were left out and none of that kind is left, the stored ones are not given up for them.
///
/// # Errors
/// [`Unfit::Older`], [`Unfit::Empty`], [`Unfit::NothingUsableFor`].
pub(super) fn replacement(fetched: &Document, stored: Option<&Bundle>) -> Result<Bundle, Unfit> {
    let mut bundle = fetched.bundle.clone();
    let number = bundle.sequence_number;
    if let Some(stored) = stored
        && number == 0
    {
        bundle.sequence_number = stored.sequence_number;
    }
    if stored != Some(&bundle) {
        compare(&fetched.bundle, stored)?;
    }
    let kinds: BTreeSet<_> = fetched.left_out.iter().filter_map(|key| key.key_use).collect();
    let lost = kinds
        .into_iter()
        .find(|kind| count(&bundle, *kind) == 0 && stored.is_some_and(|stored| count(stored, *kind) > 0));
    lost.map_or(Ok(bundle), |kind| Err(Unfit::NothingUsableFor(kind)))
}

fn count(bundle: &Bundle, key_use: KeyUse) -> usize {
    match key_use {
        KeyUse::X509Svid => bundle.x509_authorities.len(),
        KeyUse::JwtSvid => bundle.jwt_authorities.len(),
        KeyUse::WitSvid => bundle.wit_authorities.len(),
    }
}

/// Whether a bundle may take the place of the stored one.
///
/// An empty one revokes everything (SPIFFE Trust Domain and Bundle §4.1.3): it is accepted only if its sequence number
/// says that it follows the stored one.
///
/// # Errors
/// [`Unfit::Older`], [`Unfit::Empty`].
fn compare(fetched: &Bundle, stored: Option<&Bundle>) -> Result<(), Unfit> {
    let number = stored.map_or(0, |stored| stored.sequence_number);
    if stored.is_some_and(|stored| fetched.is_older_than(stored)) {
        return Err(Unfit::Older {
            fetched: fetched.sequence_number,
            stored: number,
        });
    }
    if is_empty(fetched) && fetched.sequence_number <= number {
        return Err(Unfit::Empty {
            fetched: fetched.sequence_number,
            stored: number,
        });
    }
    Ok(())
}

fn is_empty(bundle: &Bundle) -> bool {
    bundle.x509_authorities.is_empty()
        && bundle.jwt_authorities.is_empty()
        && bundle.wit_authorities.is_empty()
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bundle, domain};
    use super::*;

    fn numbered(sequence_number: u64) -> Bundle {
        Bundle {
            sequence_number,
            ..bundle("a.test", 1)
        }
    }

    fn empty(sequence_number: u64) -> Bundle {
        Bundle {
            sequence_number,
            ..Bundle::new(domain("a.test"))
        }
    }

    /// As a document of which nothing was left out.
    fn compare(fetched: &Bundle, stored: Option<&Bundle>) -> Result<Bundle, Unfit> {
        let document = Document {
            bundle: fetched.clone(),
            left_out: Vec::new(),
        };
        replacement(&document, stored)
    }

    #[test]
    fn a_document_without_a_number_is_taken_and_the_highest_number_stays() {
        let stored = numbered(10);
        let other = Bundle {
            sequence_number: 0,
            ..bundle("a.test", 2)
        };
        let taken = compare(&other, Some(&stored)).unwrap();
        assert_eq!(taken.x509_authorities, other.x509_authorities);
        assert_eq!(taken.sequence_number, 10);
        assert!(matches!(
            compare(&numbered(5), Some(&taken)),
            Err(Unfit::Older { .. })
        ));
        // The same document again changes nothing, an empty one too.
        assert_eq!(compare(&other, Some(&taken)).unwrap(), taken);
        assert_eq!(compare(&empty(0), Some(&empty(11))).unwrap(), empty(11));
    }

    #[test]
    fn stored_authorities_are_not_given_up_for_keys_of_their_kind_that_cannot_be_used() {
        let stored = bundle("a.test", 1);
        let mut both = stored.clone();
        both.jwt_authorities = jwt_authorities();
        let document: serde_json::Value = serde_json::from_str(&both.to_spiffe_json()).unwrap();
        let read_with = |keys: serde_json::Value| {
            let text = serde_json::json!({ "keys": keys, "spiffe_sequence": 3 }).to_string();
            read(&domain("a.test"), text.as_bytes(), false).unwrap()
        };
        let (x509, jwt) = (&document["keys"][0], &document["keys"][1]);
        let mut odd = x509.clone();
        odd["x5c"] = serde_json::json!(["AAAA"]);
        let fetched = read_with(serde_json::json!([odd, jwt]));
        assert!(matches!(
            replacement(&fetched, Some(&stored)),
            Err(Unfit::NothingUsableFor(KeyUse::X509Svid))
        ));
        // Nothing is lost where there was none, where one is left, and where the document has none of that kind.
        assert!(replacement(&fetched, None).is_ok());
        assert!(replacement(&read_with(serde_json::json!([odd, x509])), Some(&stored)).is_ok());
        let without = replacement(&read_with(serde_json::json!([jwt])), Some(&stored)).unwrap();
        assert!(without.x509_authorities.is_empty());
    }

    fn jwt_authorities() -> Vec<finial_identity::bundle::JwtAuthority> {
        let key = finial_identity::key::PrivateKey::generate(finial_identity::key::KeyType::EcP256).unwrap();
        vec![finial_identity::bundle::JwtAuthority {
            key_id: "k".into(),
            public_key: key.public_key().clone(),
            expires_at: 0,
            tainted: false,
        }]
    }

    #[test]
    fn an_older_bundle_does_not_replace_a_newer_one() {
        let stored = numbered(10);
        assert!(matches!(
            compare(&numbered(9), Some(&stored)),
            Err(Unfit::Older {
                fetched: 9,
                stored: 10
            })
        ));
        for number in [10, 11, 0] {
            assert!(compare(&numbered(number), Some(&stored)).is_ok(), "{number}");
        }
        assert!(compare(&numbered(1), None).is_ok());
        assert!(compare(&numbered(0), None).is_ok());
    }

    #[test]
    fn an_empty_bundle_counts_only_if_its_number_says_that_all_was_revoked() {
        let stored = numbered(10);
        assert!(compare(&empty(11), Some(&stored)).is_ok());
        for number in [0, 10] {
            assert!(
                matches!(compare(&empty(number), Some(&stored)), Err(Unfit::Empty { .. })),
                "{number}"
            );
        }
        assert!(matches!(compare(&empty(0), None), Err(Unfit::Empty { .. })));
        assert!(compare(&empty(11), Some(&empty(11))).is_ok(), "still revoked");
    }

    #[test]
    fn a_document_of_which_nothing_can_be_used_is_refused() {
        let read = |text: &str| read(&domain("a.test"), text.as_bytes(), false);
        assert!(matches!(read("no JSON"), Err(Unfit::Malformed(_))));
        assert!(matches!(read("{}"), Err(Unfit::Malformed(_))));
        assert!(matches!(
            read(r#"{"keys":[{"kty":"XYZ","use":"x509-svid"}]}"#),
            Err(Unfit::NothingUsable(1))
        ));
        assert!(read(r#"{"keys":[]}"#).is_ok());
        let good = bundle("a.test", 1).to_spiffe_json();
        assert_eq!(read(&good).unwrap().bundle, bundle("a.test", 1));
    }
}
