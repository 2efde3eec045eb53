//! What a certificate must contain to be a leaf or an authority, independent of its issuer.

use super::{Certificate, KeyUsage, X509Error};
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// Checks that a certificate is a leaf X509-SVID (X509-SVID §2, §3.1, §4, §5.2) and returns its
/// SPIFFE ID: exactly one URI SAN which is a SPIFFE ID with a path, not a CA, key usage with
/// digitalSignature and without keyCertSign and cRLSign.
///
/// A key usage that is not critical is accepted, one that is missing is not. Extended key usage is
/// left to the TLS role check of [`super::verify_chain`].
pub fn check_leaf(leaf: &Certificate) -> Result<SpiffeId, X509Error> {
    let spiffe_id = leaf.spiffe_id()?;
    if !spiffe_id.has_path() {
        return Err(X509Error::LeafWithoutPath(spiffe_id));
    }
    if leaf.is_ca() {
        return Err(X509Error::LeafIsCa);
    }
    let usage = leaf.key_usage().ok_or(X509Error::KeyUsageMissing)?;
    if usage.has(KeyUsage::KEY_CERT_SIGN) {
        return Err(X509Error::LeafKeyUsage("keyCertSign"));
    }
    if usage.has(KeyUsage::CRL_SIGN) {
        return Err(X509Error::LeafKeyUsage("cRLSign"));
    }
    if !usage.has(KeyUsage::DIGITAL_SIGNATURE) {
        return Err(X509Error::LeafKeyUsage("without digitalSignature"));
    }
    Ok(spiffe_id)
}

/// Checks that a certificate can be an authority of the trust domain (X509-SVID §3.2, §4.1, §4.3):
/// a CA that may sign certificates, without usages beyond keyCertSign, cRLSign and
/// digitalSignature, whose URI SAN is absent or exactly the trust domain's ID, as SPIRE does.
///
/// Its time is checked with [`Certificate::check_valid_at`].
pub fn check_authority(authority: &Certificate, trust_domain: &TrustDomain) -> Result<(), X509Error> {
    const ALLOWED: u16 = KeyUsage::KEY_CERT_SIGN | KeyUsage::CRL_SIGN | KeyUsage::DIGITAL_SIGNATURE;
    if !authority.is_ca() {
        return Err(X509Error::Authority("not a CA certificate"));
    }
    let usage = authority.key_usage().ok_or(X509Error::KeyUsageMissing)?;
    if !usage.has(KeyUsage::KEY_CERT_SIGN) {
        return Err(X509Error::Authority("key usage lacks keyCertSign"));
    }
    if usage.bits & !ALLOWED != 0 {
        return Err(X509Error::Authority(
            "key usage beyond keyCertSign, cRLSign and digitalSignature",
        ));
    }
    let expected = trust_domain.id();
    match authority.uri_sans() {
        [] => Ok(()),
        [uri] if uri == expected.as_str() => Ok(()),
        uris => Err(X509Error::AuthorityId {
            expected,
            found: uris.to_vec(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::testing::{Ca, SERVER_AUTH, Spec, names};

    const ID: &str = "spiffe://example.org/a";

    fn check(change: impl FnOnce(&mut Spec)) -> Result<SpiffeId, X509Error> {
        let mut spec = Spec::leaf(ID);
        change(&mut spec);
        let ca = Ca::new("example.org");
        check_leaf(&Certificate::parse(&ca.issue_der(&spec)).unwrap())
    }

    fn check_ca(change: impl FnOnce(&mut Spec)) -> Result<(), X509Error> {
        let mut spec = Spec::authority("example.org", "upstream");
        change(&mut spec);
        let ca = Ca::new("example.org");
        let authority = Certificate::parse(&ca.issue_der(&spec)).unwrap();
        check_authority(&authority, &TrustDomain::parse("example.org").unwrap())
    }

    #[test]
    fn e_21_accepts_one_uri_beside_dns_names() {
        let id = check(|spec| spec.dns_names = vec!["a.example.org".into()]).unwrap();
        assert_eq!(id.as_str(), ID);
    }

    /// Covers X509-02.
    #[test]
    fn e_22_x509_02_rejects_a_second_uri_of_any_scheme() {
        for second in ["https://example.org", ID, "spiffe://example.org/b", ""] {
            assert!(matches!(
                check(|spec| spec.uris.push(second.into())),
                Err(X509Error::UriSanCount(2))
            ));
        }
    }

    /// Covers X509-03.
    #[test]
    fn e_23_x509_03_rejects_an_identity_outside_the_uri_san() {
        let common_name = names(&[(&[2, 5, 4, 3], ID)]);
        let result = check(|spec| {
            spec.uris.clear();
            spec.dns_names = vec![ID.into()];
            spec.subject = common_name.clone();
        });
        assert!(matches!(result, Err(X509Error::UriSanCount(0))));
        let result = check(|spec| {
            spec.omit_san = true;
            spec.subject = common_name;
        });
        assert!(matches!(result, Err(X509Error::UriSanCount(0))));
    }

    /// Covers X509-25.
    #[test]
    fn e_23_x509_25_rejects_a_uri_of_another_scheme() {
        let result = check(|spec| spec.uris = vec!["https://example.org/a".into()]);
        assert!(matches!(result, Err(X509Error::SpiffeId(_))));
    }

    /// Covers X509-26.
    #[test]
    fn e_24_x509_26_rejects_ids_without_a_path_or_malformed() {
        assert!(matches!(
            check(|spec| spec.uris = vec!["spiffe://example.org".into()]),
            Err(X509Error::LeafWithoutPath(_))
        ));
        for uri in ["spiffe://example.org/", "spiffe://example.org/a%2Fb"] {
            assert!(matches!(
                check(|spec| spec.uris = vec![uri.into()]),
                Err(X509Error::SpiffeId(_))
            ));
        }
    }

    /// Covers X509-09, X509-23.
    #[test]
    fn e_25_x509_09_x509_23_rejects_a_ca_with_or_without_a_path() {
        let ca_with_path = check(|spec| spec.basic_constraints = Some((true, None)));
        assert!(matches!(ca_with_path, Err(X509Error::LeafIsCa)));
        let authority = Ca::new("example.org").certificate;
        assert!(check_leaf(&authority).is_err());
    }

    /// Covers X509-24.
    #[test]
    fn e_26_x509_17_x509_24_rejects_signing_usages() {
        for usage in [KeyUsage::KEY_CERT_SIGN, KeyUsage::CRL_SIGN] {
            let bits = KeyUsage::DIGITAL_SIGNATURE | usage;
            assert!(matches!(
                check(|spec| spec.key_usage = Some((bits, true))),
                Err(X509Error::LeafKeyUsage(_))
            ));
        }
    }

    #[test]
    fn e_27_d_12_rejects_a_missing_key_usage_and_accepts_an_uncritical_one() {
        assert!(matches!(
            check(|spec| spec.key_usage = None),
            Err(X509Error::KeyUsageMissing)
        ));
        check(|spec| spec.key_usage = Some((KeyUsage::DIGITAL_SIGNATURE, false))).unwrap();
    }

    #[test]
    fn x509_16_rejects_a_leaf_that_may_not_sign() {
        assert!(matches!(
            check(|spec| spec.key_usage = Some((KeyUsage::KEY_ENCIPHERMENT, true))),
            Err(X509Error::LeafKeyUsage("without digitalSignature"))
        ));
    }

    #[test]
    fn e_28_d_12_extended_key_usage_is_not_this_checks_concern() {
        check(|spec| spec.extended_key_usage = None).unwrap();
        check(|spec| spec.extended_key_usage = Some(vec![SERVER_AUTH])).unwrap();
    }

    #[test]
    fn x509_11_a_leaf_without_basic_constraints_is_no_ca() {
        check(|spec| spec.basic_constraints = None).unwrap();
    }

    #[test]
    fn authorities_are_cas_that_sign_for_the_trust_domain() {
        check_ca(|_| {}).unwrap();
        check_ca(|spec| spec.omit_san = true).unwrap();
        check_ca(|spec| {
            spec.key_usage = Some((KeyUsage::KEY_CERT_SIGN | KeyUsage::DIGITAL_SIGNATURE, true));
        })
        .unwrap();
    }

    #[test]
    fn e_32_x509_07_x509_08_rejects_authorities_with_another_id() {
        for uri in [
            "spiffe://example.org/ca",
            "spiffe://example.org/",
            "spiffe://other.org",
            "https://example.org",
        ] {
            assert!(matches!(
                check_ca(|spec| spec.uris = vec![uri.into()]),
                Err(X509Error::AuthorityId { .. })
            ));
        }
        assert!(check_ca(|spec| spec.uris.push("spiffe://example.org".into())).is_err());
    }

    #[test]
    fn x509_10_x509_13_x509_15_rejects_authorities_that_may_not_sign() {
        assert!(check_ca(|spec| spec.basic_constraints = Some((false, None))).is_err());
        assert!(check_ca(|spec| spec.basic_constraints = None).is_err());
        assert!(check_ca(|spec| spec.key_usage = None).is_err());
        assert!(check_ca(|spec| spec.key_usage = Some((KeyUsage::CRL_SIGN, true))).is_err());
        let bits = KeyUsage::KEY_CERT_SIGN | KeyUsage::KEY_AGREEMENT;
        assert!(check_ca(|spec| spec.key_usage = Some((bits, true))).is_err());
    }
}
