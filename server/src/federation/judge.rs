//! Whether a bundle that was fetched takes the place of the stored one. Pure.

use finial_identity::bundle::{Bundle, BundleError};
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
    /// It has no authorities, and no sequence number that says that all were revoked.
    #[error("bundle is empty, and its sequence number {fetched} does not follow the stored one's {stored}")]
    Empty {
        /// Its sequence number.
        fetched: u64,
        /// That of the stored one.
        stored: u64,
    },
}

/// Reads a document as it was fetched. Authorities of WIT-SVIDs are kept only if `wit_svids` are on.
///
/// # Errors
/// [`Unfit::Malformed`], or [`Unfit::NothingUsable`].
pub(super) fn read(trust_domain: &TrustDomain, document: &[u8], wit_svids: bool) -> Result<Bundle, Unfit> {
    let (mut bundle, skipped) = Bundle::parse_spiffe_json_with_skipped(trust_domain.clone(), document)?;
    if !skipped.is_empty() {
        tracing::debug!(%trust_domain, ?skipped, "keys of a foreign bundle were left out");
    }
    let keys = skipped.len() + bundle.wit_authorities.len();
    if !wit_svids {
        bundle.wit_authorities.clear();
    }
    if is_empty(&bundle) && keys > 0 {
        return Err(Unfit::NothingUsable(keys));
    }
    Ok(bundle)
}

/// Whether a bundle may take the place of the stored one.
///
/// An empty one revokes everything (SPIFFE Trust Domain and Bundle §4.1.3): it is believed only if its sequence number
/// says that it follows the stored one.
///
/// # Errors
/// [`Unfit::Older`], [`Unfit::Empty`].
pub(super) fn compare(fetched: &Bundle, stored: Option<&Bundle>) -> Result<(), Unfit> {
    let number = stored.map_or(0, |stored| stored.sequence_number);
    if stored.is_some_and(|stored| fetched.is_older_than(stored)) {
        return Err(Unfit::Older {
            fetched: fetched.sequence_number,
            stored: number,
        });
    }
    if is_empty(fetched) && fetched.sequence_number <= number && stored != Some(fetched) {
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
        assert_eq!(read(&good).unwrap(), bundle("a.test", 1));
    }
}
