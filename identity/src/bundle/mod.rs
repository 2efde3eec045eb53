//! Trust bundles: the authorities of one trust domain (SPIFFE Trust Domain and Bundle).
//!
//! [`Bundle`] is a plain value. `document` reads and writes it as the SPIFFE bundle document, `map`
//! as a bundle map, and `edit` changes it without side effects; whoever stores it numbers the change.

mod document;
mod edit;
mod json;
mod map;

use std::collections::HashSet;
use std::time::Duration;

use thiserror::Error;

use crate::spiffe_id::{SpiffeIdError, TrustDomain};
use crate::x509::{Certificate, X509Error};

pub use crate::jwt::JwtAuthority;
pub use crate::wit::WitAuthority;
pub use document::{KeyUse, MAX_DOCUMENT_BYTES, MAX_FOREIGN_DOCUMENT_BYTES, SkipReason, Skipped};
pub use edit::BundleEditError;
pub use map::{BundleMap, MAX_MAP_BYTES};

/// How often a bundle without a hint is fetched (SPIFFE Federation §4.1).
pub const DEFAULT_REFRESH: Duration = Duration::from_secs(300);

/// The longest time that a hint can postpone the next fetch.
pub const MAX_REFRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// An X.509 authority: a certificate whose key signs X.509-SVIDs.
#[derive(Clone, Debug)]
pub struct X509Authority {
    /// The certificate. Its SPIFFE ID is not looked at: a trust anchor may have any or none.
    pub certificate: Certificate,
    /// Whether what it signed must be replaced. It verifies until it is revoked.
    pub tainted: bool,
}

/// The authorities of one trust domain. None at all means that nothing of it is trusted.
#[derive(Clone, Debug, PartialEq)]
pub struct Bundle {
    /// Whose authorities they are; the document itself does not say it.
    pub trust_domain: TrustDomain,
    /// Authorities for X.509-SVIDs.
    pub x509_authorities: Vec<X509Authority>,
    /// Authorities for JWT-SVIDs.
    pub jwt_authorities: Vec<JwtAuthority>,
    /// Authorities for WIT-SVIDs (Incubating). No key ID is among them and the JWT authorities twice.
    pub wit_authorities: Vec<WitAuthority>,
    /// How often a reader should ask again, in seconds; 0 gives no hint.
    pub refresh_hint: i64,
    /// Grows with each change; 0 is not known.
    pub sequence_number: u64,
}

/// Why a bundle cannot be read.
#[derive(Debug, Error)]
pub enum BundleError {
    /// The text exceeds the limit of its kind.
    #[error("{what} is larger than {limit} bytes: {bytes}")]
    TooLarge {
        /// What was read.
        what: &'static str,
        /// The most that is read.
        limit: usize,
        /// What came.
        bytes: usize,
    },
    /// The text is not JSON, or an object in it has a member twice.
    #[error("{what} is malformed JSON: {cause}")]
    Json {
        /// What was read.
        what: &'static str,
        /// Where and why.
        cause: serde_json::Error,
    },
    /// A member is absent or of another type than the standard says.
    #[error("{what} has no valid member {member:?}: want {want}")]
    Member {
        /// What was read.
        what: &'static str,
        /// The member.
        member: &'static str,
        /// What it should be.
        want: &'static str,
    },
    /// A key of a bundle map is not the name of a trust domain.
    #[error("bundle map has an invalid trust domain name: {name:?}: {cause}")]
    TrustDomain {
        /// The key, cut to 255 characters.
        name: String,
        /// The rule that it breaks.
        cause: SpiffeIdError,
    },
    /// One bundle of a bundle map cannot be read, so the map is not.
    #[error("bundle map has a malformed bundle: {trust_domain}: {cause}")]
    InMap {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// What is wrong with it.
        cause: Box<BundleError>,
    },
    /// A PEM text has no certificate, or one that cannot be read.
    #[error("bundle in PEM: {0}")]
    Pem(X509Error),
}

impl Bundle {
    /// A bundle without authorities.
    #[must_use]
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self {
            trust_domain,
            x509_authorities: Vec::new(),
            jwt_authorities: Vec::new(),
            wit_authorities: Vec::new(),
            refresh_hint: 0,
            sequence_number: 0,
        }
    }

    /// Reads X.509 authorities from PEM text.
    ///
    /// # Errors
    /// A malformed certificate, or none at all.
    pub fn parse_pem(trust_domain: TrustDomain, text: &str) -> Result<Self, BundleError> {
        let certificates = Certificate::from_pem(text).map_err(BundleError::Pem)?;
        let mut bundle = Self::new(trust_domain);
        bundle.append(
            certificates.into_iter().map(X509Authority::new).collect(),
            Vec::new(),
        );
        Ok(bundle)
    }

    /// The X.509 authorities as PEM text; empty without any.
    #[must_use]
    pub fn to_pem(&self) -> String {
        self.x509_authorities
            .iter()
            .map(|authority| authority.certificate.to_pem())
            .collect()
    }

    /// The X.509 authorities as DER certificates back to back, the form of the Workload API.
    #[must_use]
    pub fn x509_der_concat(&self) -> Vec<u8> {
        let ders = || {
            self.x509_authorities
                .iter()
                .map(|authority| authority.certificate.der().as_ref())
        };
        let mut all = Vec::with_capacity(ders().map(<[u8]>::len).sum());
        ders().for_each(|der| all.extend_from_slice(der));
        all
    }

    /// The certificates that verify X.509-SVIDs: tainted ones too, until they are revoked.
    #[must_use]
    pub fn x509_certificates(&self) -> Vec<Certificate> {
        self.x509_authorities
            .iter()
            .map(|authority| authority.certificate.clone())
            .collect()
    }

    /// The JWT authority with this `kid`, compared with regard to case.
    #[must_use]
    pub fn jwt_authority(&self, key_id: &str) -> Option<&JwtAuthority> {
        self.jwt_authorities
            .iter()
            .find(|authority| authority.key_id == key_id)
    }

    /// The WIT authority with this `kid`, likewise.
    #[must_use]
    pub fn wit_authority(&self, key_id: &str) -> Option<&WitAuthority> {
        self.wit_authorities
            .iter()
            .find(|authority| authority.0.key_id == key_id)
    }

    /// Whether a bundle that was just fetched is older than the `stored` one and so must not replace
    /// it. A fetched bundle without a sequence number is always taken (SPIFFE Federation §4.2).
    #[must_use]
    pub fn is_older_than(&self, stored: &Self) -> bool {
        self.sequence_number != 0 && self.sequence_number < stored.sequence_number
    }

    /// How long to wait before the bundle is fetched again: the hint, at most [`MAX_REFRESH`];
    /// without one, [`DEFAULT_REFRESH`].
    #[must_use]
    pub fn refresh_interval(&self) -> Duration {
        match u64::try_from(self.refresh_hint) {
            Ok(seconds @ 1..) => Duration::from_secs(seconds).min(MAX_REFRESH),
            _ => DEFAULT_REFRESH,
        }
    }
}

impl X509Authority {
    /// An authority that is not tainted.
    #[must_use]
    pub fn new(certificate: Certificate) -> Self {
        Self {
            certificate,
            tainted: false,
        }
    }
}

impl PartialEq for X509Authority {
    fn eq(&self, other: &Self) -> bool {
        self.tainted == other.tainted && self.certificate.der() == other.certificate.der()
    }
}

/// Keeps the first authority of each certificate.
fn drop_repeated_certificates(authorities: &mut Vec<X509Authority>) {
    let mut seen = HashSet::with_capacity(authorities.len());
    let first: Vec<bool> = authorities
        .iter()
        .map(|authority| seen.insert(authority.certificate.der().as_ref()))
        .collect();
    let mut first = first.into_iter();
    authorities.retain(|_| first.next().unwrap_or(false));
}

#[cfg(test)]
pub(crate) mod testing {
    //! Authorities for the tests of bundles and their wire form.

    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, KeyUsagePurpose, SanType};
    use time::OffsetDateTime;

    use super::*;
    use crate::key::PublicKey;

    pub(crate) fn td(name: &str) -> TrustDomain {
        TrustDomain::parse(name).unwrap()
    }

    /// A self-signed authority that ends at a point in time.
    pub(crate) fn ca_until(not_after: OffsetDateTime) -> Certificate {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = vec![SanType::URI("spiffe://example.org".try_into().unwrap())];
        params.not_before = not_after - time::Duration::days(1);
        params.not_after = not_after;
        Certificate::parse(params.self_signed(&key).unwrap().der()).unwrap()
    }

    pub(crate) fn instant(unix_seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap()
    }

    pub(crate) fn ca() -> X509Authority {
        X509Authority::new(ca_until(instant(4_000_000_000)))
    }

    pub(crate) fn jwt(key_id: &str) -> JwtAuthority {
        let key = KeyPair::generate().unwrap();
        let public_key =
            PublicKey::from_spki_der(&rcgen::PublicKeyData::subject_public_key_info(&key)).unwrap();
        JwtAuthority {
            key_id: key_id.into(),
            public_key,
            expires_at: 0,
            tainted: false,
        }
    }

    pub(crate) fn wit(key_id: &str) -> WitAuthority {
        WitAuthority(jwt(key_id))
    }

    /// Two X.509 authorities and two JWT authorities, `kid` `a` and `b`.
    pub(crate) fn bundle() -> Bundle {
        let mut bundle = Bundle::new(td("example.org"));
        bundle.append(vec![ca(), ca()], vec![jwt("a"), jwt("b")]);
        bundle
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{bundle, ca, td};
    use super::*;

    #[test]
    fn pem_text_goes_in_and_out() {
        let bundle = bundle();
        let read = Bundle::parse_pem(td("example.org"), &bundle.to_pem()).unwrap();
        assert_eq!(read.x509_authorities, bundle.x509_authorities);
        assert!(read.jwt_authorities.is_empty());
    }

    #[test]
    fn pem_text_without_a_certificate_is_refused() {
        assert!(Bundle::parse_pem(td("example.org"), "").is_err());
        assert!(Bundle::parse_pem(td("example.org"), "no certificate here").is_err());
        let cut = bundle().to_pem().replacen("MII", "", 1);
        assert!(Bundle::parse_pem(td("example.org"), &cut).is_err());
    }

    #[test]
    fn repeated_certificates_in_pem_text_count_once() {
        let text = ca().certificate.to_pem().repeat(2);
        assert_eq!(
            Bundle::parse_pem(td("example.org"), &text)
                .unwrap()
                .x509_authorities
                .len(),
            1
        );
    }

    #[test]
    fn der_certificates_stand_back_to_back() {
        let bundle = bundle();
        let concat = bundle.x509_der_concat();
        let (first, second) = (
            bundle.x509_authorities[0].certificate.der(),
            bundle.x509_authorities[1].certificate.der(),
        );
        assert_eq!(concat, [first.as_ref(), second.as_ref()].concat());
        assert!(Bundle::new(td("example.org")).x509_der_concat().is_empty());
    }

    #[test]
    fn tainted_authorities_still_verify() {
        let mut bundle = bundle();
        bundle.x509_authorities[0].tainted = true;
        assert_eq!(bundle.x509_certificates().len(), 2);
    }

    #[test]
    fn taint_makes_a_difference() {
        let (one, mut other) = (bundle(), Bundle::new(td("example.org")));
        other.clone_from(&one);
        assert_eq!(one, other);
        other.x509_authorities[1].tainted = true;
        assert_ne!(one, other);
    }

    #[test]
    fn jwt_authorities_are_found_by_exact_key_id() {
        let bundle = bundle();
        assert_eq!(bundle.jwt_authority("b"), Some(&bundle.jwt_authorities[1]));
        assert_eq!(bundle.jwt_authority("B"), None);
    }

    #[test]
    fn e58_fed08_fed09_an_older_bundle_does_not_replace_a_newer_one() {
        let numbered = |sequence_number| Bundle {
            sequence_number,
            ..Bundle::new(td("example.org"))
        };
        assert!(numbered(9).is_older_than(&numbered(10)));
        assert!(!numbered(10).is_older_than(&numbered(10)));
        assert!(!numbered(11).is_older_than(&numbered(10)));
        assert!(!numbered(0).is_older_than(&numbered(10)));
    }

    #[test]
    fn e59_bnd30_refreshes_every_five_minutes_without_a_usable_hint() {
        let hinted = |refresh_hint| {
            Bundle {
                refresh_hint,
                ..Bundle::new(td("example.org"))
            }
            .refresh_interval()
        };
        assert_eq!(hinted(0), Duration::from_secs(300));
        assert_eq!(hinted(-5), Duration::from_secs(300));
        assert_eq!(hinted(60), Duration::from_secs(60));
        assert_eq!(hinted(i64::MAX), MAX_REFRESH);
    }
}
