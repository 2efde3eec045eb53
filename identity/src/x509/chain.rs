//! Verifying a chain of certificates against the authorities of a trust domain.
//!
//! Paths are built by `webpki`. The rest is decided here: trust anchors are checked for
//! their basic constraints, key usage, path length and time as Go's verifier does, intermediates to
//! keyCertSign. `webpki` is stricter than Go in a few points: certificates must be version 3 and
//! without unique identifiers, certificate policies must not be critical, at most six intermediates
//! are followed, and a name constraint on URIs or directory names refuses every chain below it,
//! because it is not evaluated.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use time::OffsetDateTime;
use webpki::{EndEntityCert, ExtendedKeyUsageValidator, KeyPurposeIdIter};

use super::{Certificate, KeyUsage, X509Error, check_leaf};
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// A chain that a peer sends is refused when it is longer.
const MAX_CHAIN: usize = 16;

/// In which role the owner of the leaf takes part in TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerUsage {
    /// As a TLS client: an extended key usage, when present, must list clientAuth.
    Client,
    /// As a TLS server: an extended key usage, when present, must list serverAuth.
    Server,
    /// Any: the extended key usage is not looked at, as SPIRE does between its parts.
    Any,
}

/// Verifies an X509-SVID (X509-SVID §5) and returns its SPIFFE ID.
///
/// `chain` is the leaf followed by intermediates in any order; `bundles` gives the authorities of a
/// trust domain; only those of the leaf's own trust domain are asked for and trusted.
pub fn verify_chain(
    chain: &[Certificate],
    bundles: &dyn Fn(&TrustDomain) -> Option<Vec<Certificate>>,
    at: OffsetDateTime,
    usage: PeerUsage,
) -> Result<SpiffeId, X509Error> {
    let leaf = chain.first().ok_or(X509Error::EmptyChain)?;
    let spiffe_id = check_leaf(leaf)?;
    let authorities = bundles(spiffe_id.trust_domain())
        .ok_or_else(|| X509Error::NoBundle(spiffe_id.trust_domain().clone()))?;
    verify_chain_to(chain, &authorities, at, usage)?;
    Ok(spiffe_id)
}

/// Verifies the signatures, times and constraints of a chain up to one of the authorities, whatever
/// its SPIFFE ID: for certificates that are not SVIDs (an attestor's own trust anchors).
pub fn verify_chain_to(
    chain: &[Certificate],
    authorities: &[Certificate],
    at: OffsetDateTime,
    usage: PeerUsage,
) -> Result<(), X509Error> {
    let (leaf, intermediates) = chain.split_first().ok_or(X509Error::EmptyChain)?;
    if chain.len() > MAX_CHAIN {
        return Err(X509Error::Chain("longer than 16 certificates".to_owned()));
    }
    if authorities.contains(leaf) {
        return Err(X509Error::LeafIsAnchor);
    }
    // Earlier than what webpki would say, so that the reason is the same whoever signed it.
    leaf.check_valid_at(at)?;
    usage.check(leaf)?;
    let authorities: Vec<&Certificate> = authorities
        .iter()
        .filter(|authority| authority.is_ca() && may_sign(authority))
        .filter(|authority| authority.check_valid_at(at).is_ok())
        .collect();
    let anchors = trust_anchors(&authorities);
    let intermediates: Vec<CertificateDer<'_>> = intermediates
        .iter()
        .filter(|intermediate| may_sign(intermediate))
        .map(|intermediate| CertificateDer::from(intermediate.der().as_ref()))
        .collect();
    let end_entity = EndEntityCert::try_from(leaf.der()).map_err(chain_error)?;
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            &intermediates,
            unix_time(at)?,
            EveryPurpose,
            None,
            Some(&|path| {
                let anchor = anchors.iter().position(|a| std::ptr::eq(a, path.anchor()));
                let limit = anchor.and_then(|at| authorities[at].path_len_constraint());
                let below = path.intermediate_certificates().count();
                match limit {
                    Some(limit) if below > limit as usize => Err(webpki::Error::PathLenConstraintViolated),
                    _ => Ok(()),
                }
            }),
        )
        .map(|_path| ())
        .map_err(chain_error)
}

impl PeerUsage {
    /// The purposes of the leaf alone are judged: between them and those of CA certificates the
    /// standards draw no line.
    fn check(self, leaf: &Certificate) -> Result<(), X509Error> {
        let Some(purposes) = leaf.extended_key_usage() else {
            return Ok(());
        };
        match self {
            PeerUsage::Any => Ok(()),
            _ if purposes.any => Ok(()),
            PeerUsage::Client if purposes.client_auth => Ok(()),
            PeerUsage::Server if purposes.server_auth => Ok(()),
            PeerUsage::Client => Err(X509Error::ExtendedKeyUsage("TLS clients")),
            PeerUsage::Server => Err(X509Error::ExtendedKeyUsage("TLS servers")),
        }
    }
}

/// Accepts every purpose: the leaf's are judged by [`PeerUsage::check`].
struct EveryPurpose;

impl ExtendedKeyUsageValidator for EveryPurpose {
    fn validate(&self, _purposes: KeyPurposeIdIter<'_, '_>) -> Result<(), webpki::Error> {
        Ok(())
    }
}

/// Whether a key usage, when present, allows signing certificates.
fn may_sign(certificate: &Certificate) -> bool {
    certificate
        .key_usage()
        .is_none_or(|usage| usage.has(KeyUsage::KEY_CERT_SIGN))
}

/// The anchors, position by position. An authority that webpki cannot read trusts nothing: it is
/// replaced by an anchor without a key.
fn trust_anchors<'a>(authorities: &[&'a Certificate]) -> Vec<TrustAnchor<'a>> {
    authorities
        .iter()
        .map(|authority| {
            webpki::anchor_from_trusted_cert(authority.der()).unwrap_or_else(|_| TrustAnchor {
                subject: [].as_slice().into(),
                subject_public_key_info: [].as_slice().into(),
                name_constraints: None,
            })
        })
        .collect()
}

fn unix_time(at: OffsetDateTime) -> Result<UnixTime, X509Error> {
    match u64::try_from(at.unix_timestamp()) {
        Ok(seconds) => Ok(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        ))),
        Err(_) => Err(X509Error::NotYetValid),
    }
}

fn chain_error(error: webpki::Error) -> X509Error {
    match error {
        webpki::Error::CertExpired { .. } => X509Error::Expired,
        webpki::Error::CertNotValidYet { .. } => X509Error::NotYetValid,
        // An authority of the same name but with another key is as unknown as any.
        webpki::Error::UnknownIssuer | webpki::Error::InvalidSignatureForPublicKey => {
            X509Error::UnknownAuthority
        }
        webpki::Error::CaUsedAsEndEntity => X509Error::LeafIsCa,
        other => X509Error::Chain(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey, tlv};
    use crate::x509::testing::{CLIENT_AUTH, Ca, NOW, SERVER_AUTH, Spec, extension};
    use std::slice::from_ref;
    use time::Duration;

    const ID: &str = "spiffe://example.org/a";

    fn verify_at(
        chain: &[Certificate],
        authorities: &[&Certificate],
        at: OffsetDateTime,
        usage: PeerUsage,
    ) -> Result<SpiffeId, X509Error> {
        let authorities: Vec<Certificate> = authorities.iter().map(|&c| c.clone()).collect();
        let bundles = |trust_domain: &TrustDomain| {
            (trust_domain.as_str() == "example.org").then(|| authorities.clone())
        };
        verify_chain(chain, &bundles, at, usage)
    }

    fn verify(chain: &[Certificate], anchor: &Certificate) -> Result<SpiffeId, X509Error> {
        verify_at(chain, &[anchor], NOW, PeerUsage::Any)
    }

    fn issue(ca: &Ca, spec: &Spec) -> Certificate {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        ca.issue(spec, key.public_key())
    }

    /// Verifies a leaf below one intermediate with that specification.
    fn verify_below(change: impl FnOnce(&mut Spec)) -> Result<SpiffeId, X509Error> {
        let root = Ca::new("example.org");
        let mut spec = Spec::authority("example.org", "intermediate");
        change(&mut spec);
        let intermediate = root.intermediate(&spec);
        let (leaf, _) = intermediate.leaf(ID);
        verify(&[leaf, intermediate.certificate], &root.certificate)
    }

    /// Covers X509-21.
    #[test]
    fn e_21_x509_21_accepts_a_leaf_of_every_kind_of_authority() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let ca = Ca::self_signed(&Spec::authority("example.org", "ca"), key_type);
            let (leaf, _) = ca.leaf(ID);
            assert_eq!(verify(&[leaf], &ca.certificate).unwrap().as_str(), ID);
        }
    }

    /// Covers X509-21.
    #[test]
    fn x509_21_accepts_intermediates_in_any_order() {
        let root = Ca::new("example.org");
        let upper = root.intermediate(&Spec::authority("example.org", "upper"));
        let lower = upper.intermediate(&Spec::authority("example.org", "lower"));
        let (leaf, _) = lower.leaf(ID);
        let chain = [leaf, upper.certificate, lower.certificate];
        verify(&chain, &root.certificate).unwrap();
        assert!(matches!(
            verify(&chain[..2], &root.certificate),
            Err(X509Error::UnknownAuthority)
        ));
    }

    /// Covers X509-21.
    #[test]
    fn x509_21_rejects_wrong_signatures_and_times() {
        let ca = Ca::new("example.org");
        let (leaf, _) = ca.leaf(ID);
        let mut der = leaf.der().to_vec();
        *der.last_mut().unwrap() ^= 1;
        let forged = Certificate::parse(&der).unwrap();
        assert!(verify(&[forged], &ca.certificate).is_err());
        let chain = [leaf];
        let at = |at| verify_at(&chain, &[&ca.certificate], at, PeerUsage::Any);
        at(NOW + Duration::hours(1)).unwrap();
        assert!(matches!(
            at(NOW + Duration::hours(1) + Duration::seconds(1)),
            Err(X509Error::Expired)
        ));
        assert!(matches!(
            at(NOW - Duration::hours(2)),
            Err(X509Error::NotYetValid)
        ));
    }

    #[test]
    fn rejects_an_authority_of_the_same_name_with_another_key() {
        let (mine, other) = (Ca::new("example.org"), Ca::new("example.org"));
        let (leaf, _) = other.leaf(ID);
        assert!(matches!(
            verify(&[leaf], &mine.certificate),
            Err(X509Error::UnknownAuthority)
        ));
    }

    /// Covers X509-22, ID-23, BND-02, WL-17.
    #[test]
    fn e_30_x509_22_trusts_only_the_bundle_of_the_leafs_own_trust_domain() {
        let (a, b) = (Ca::new("a.test"), Ca::new("b.test"));
        let bundles = |trust_domain: &TrustDomain| match trust_domain.as_str() {
            "a.test" => Some(vec![a.certificate.clone()]),
            "b.test" => Some(vec![b.certificate.clone()]),
            _ => None,
        };
        let (crossed, _) = a.leaf("spiffe://b.test/x");
        let result = verify_chain(&[crossed], &bundles, NOW, PeerUsage::Any);
        assert!(matches!(result, Err(X509Error::UnknownAuthority)));
        let (right, _) = b.leaf("spiffe://b.test/x");
        verify_chain(&[right], &bundles, NOW, PeerUsage::Any).unwrap();
        let (foreign, _) = b.leaf("spiffe://c.test/x");
        let result = verify_chain(&[foreign], &bundles, NOW, PeerUsage::Any);
        assert!(matches!(result, Err(X509Error::NoBundle(td)) if td.as_str() == "c.test"));
    }

    /// Covers BND-15.
    #[test]
    fn e_51_an_empty_bundle_rejects_everything() {
        let (leaf, _) = Ca::new("example.org").leaf(ID);
        assert!(matches!(
            verify_at(&[leaf], &[], NOW, PeerUsage::Any),
            Err(X509Error::UnknownAuthority)
        ));
        assert!(matches!(
            verify_at(&[], &[], NOW, PeerUsage::Any),
            Err(X509Error::EmptyChain)
        ));
    }

    /// Covers X509-21.
    #[test]
    fn e_31_rejects_an_expired_intermediate() {
        verify_below(|_| {}).unwrap();
        let result = verify_below(|spec| spec.not_after = NOW - Duration::seconds(1));
        assert!(matches!(result, Err(X509Error::Expired)));
    }

    /// Covers X509-21.
    #[test]
    fn e_31_rejects_an_intermediate_that_is_no_ca_or_may_not_sign() {
        assert!(verify_below(|spec| spec.basic_constraints = Some((false, None))).is_err());
        assert!(verify_below(|spec| spec.basic_constraints = None).is_err());
        assert!(verify_below(|spec| spec.key_usage = Some((KeyUsage::CRL_SIGN, true))).is_err());
        verify_below(|spec| spec.key_usage = None).unwrap();
    }

    /// Covers X509-21.
    #[test]
    fn e_31_rejects_unknown_critical_extensions() {
        let unknown = |critical| extension(&[1, 3, 6, 1, 4, 1, 1], critical, tlv(4, b"x"));
        assert!(verify_below(|spec| spec.extra = vec![unknown(true)]).is_err());
        verify_below(|spec| spec.extra = vec![unknown(false)]).unwrap();
        let ca = Ca::new("example.org");
        let mut spec = Spec::leaf(ID);
        spec.extra = vec![unknown(true)];
        assert!(verify(&[issue(&ca, &spec)], &ca.certificate).is_err());
    }

    /// Covers X509-21.
    #[test]
    fn e_31_rejects_an_exceeded_path_length_of_root_and_intermediate() {
        for (root_len, upper_len, accepted) in [
            (None, None, true),
            (Some(2), Some(1), true),
            (Some(1), None, false),
            (None, Some(0), false),
        ] {
            let mut spec = Spec::authority("example.org", "root");
            spec.basic_constraints = Some((true, root_len));
            let root = Ca::self_signed(&spec, KeyType::EcP256);
            let mut spec = Spec::authority("example.org", "upper");
            spec.basic_constraints = Some((true, upper_len));
            let upper = root.intermediate(&spec);
            let lower = upper.intermediate(&Spec::authority("example.org", "lower"));
            let (leaf, _) = lower.leaf(ID);
            let chain = [leaf, lower.certificate, upper.certificate];
            let result = verify(&chain, &root.certificate);
            assert_eq!(result.is_ok(), accepted, "{root_len:?} {upper_len:?}");
        }
    }

    #[test]
    fn e_32_d_02_reads_no_identity_of_an_anchor() {
        for uris in [vec![], vec!["spiffe://example.org/".to_owned()]] {
            let mut spec = Spec::authority("example.org", "ca");
            spec.omit_san = uris.is_empty();
            spec.uris = uris;
            let ca = Ca::self_signed(&spec, KeyType::EcP256);
            let (leaf, _) = ca.leaf(ID);
            verify(&[leaf], &ca.certificate).unwrap();
        }
    }

    #[test]
    fn anchors_must_be_cas_that_may_sign_and_are_in_their_time() {
        let refused = |change: &dyn Fn(&mut Spec)| {
            let mut spec = Spec::authority("example.org", "ca");
            change(&mut spec);
            let ca = Ca::self_signed(&spec, KeyType::EcP256);
            let (leaf, _) = ca.leaf(ID);
            matches!(verify(&[leaf], &ca.certificate), Err(X509Error::UnknownAuthority))
        };
        assert!(!refused(&|_| {}));
        assert!(!refused(&|spec| spec.key_usage = None));
        assert!(refused(&|spec| spec.basic_constraints = None));
        assert!(refused(&|spec| spec.key_usage = Some((KeyUsage::CRL_SIGN, true))));
        assert!(refused(&|spec| spec.not_after = NOW - Duration::minutes(1)));
    }

    /// Covers X509-09.
    #[test]
    fn x509_09_a_trust_anchor_is_never_a_leaf() {
        // Says of itself that it is a leaf, and is in the bundle all the same.
        let own = Ca::self_signed(&Spec::leaf(ID), KeyType::EcP256);
        let result = verify(from_ref(&own.certificate), &own.certificate);
        assert!(matches!(result, Err(X509Error::LeafIsAnchor)));
        let ca = Ca::new("example.org");
        assert!(verify(from_ref(&ca.certificate), &ca.certificate).is_err());
        let result = verify_chain_to(
            from_ref(&ca.certificate),
            &[Ca::new("example.org").certificate],
            NOW,
            PeerUsage::Any,
        );
        assert!(matches!(result, Err(X509Error::LeafIsCa)));
    }

    #[test]
    fn e_28_x509_20_extended_key_usage_binds_the_tls_role() {
        let ca = Ca::new("example.org");
        let verify = |purposes: Option<Vec<&'static [u8]>>, usage| {
            let mut spec = Spec::leaf(ID);
            spec.extended_key_usage = purposes;
            verify_at(&[issue(&ca, &spec)], &[&ca.certificate], NOW, usage)
        };
        let server_only = Some(vec![SERVER_AUTH]);
        assert!(matches!(
            verify(server_only.clone(), PeerUsage::Client),
            Err(X509Error::ExtendedKeyUsage("TLS clients"))
        ));
        verify(server_only.clone(), PeerUsage::Server).unwrap();
        verify(server_only, PeerUsage::Any).unwrap();
        for usage in [PeerUsage::Client, PeerUsage::Server, PeerUsage::Any] {
            verify(None, usage).unwrap();
            verify(Some(vec![CLIENT_AUTH, SERVER_AUTH]), usage).unwrap();
            verify(Some(vec![&[0x55, 0x1d, 37, 0]]), usage).unwrap();
        }
    }

    #[test]
    fn x509_12_name_constraints_on_dns_are_applied_and_on_uris_refuse_the_chain() {
        let constraint = |tag: u8, base: &str| {
            let subtree = tlv(0x30, &tlv(tag, base.as_bytes()));
            let permitted = tlv(0x30, &tlv(0xa0, &subtree));
            extension(&[2, 5, 29, 30], true, permitted)
        };
        let verify_named = |constraint, dns_name: &str| {
            let mut spec = Spec::authority("example.org", "ca");
            spec.extra = vec![constraint];
            let ca = Ca::self_signed(&spec, KeyType::EcP256);
            let mut spec = Spec::leaf(ID);
            spec.dns_names = vec![dns_name.to_owned()];
            verify(&[issue(&ca, &spec)], &ca.certificate)
        };
        const DNS: u8 = 0x82;
        const URI: u8 = 0x86;
        verify_named(constraint(DNS, "example.org"), "a.example.org").unwrap();
        assert!(verify_named(constraint(DNS, "example.org"), "a.other.org").is_err());
        assert!(verify_named(constraint(URI, "example.org"), "a.example.org").is_err());
        assert!(verify_named(constraint(URI, "other.org"), "a.example.org").is_err());
    }

    #[test]
    fn long_chains_are_refused() {
        let ca = Ca::new("example.org");
        let (leaf, _) = ca.leaf(ID);
        let chain = vec![leaf; MAX_CHAIN + 1];
        assert!(matches!(
            verify(&chain, &ca.certificate),
            Err(X509Error::Chain(_))
        ));
    }
}
