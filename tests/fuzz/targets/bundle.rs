//! Documents that hold bundles. What was read and written is read again as the same.

use finial_identity::bundle::{Bundle, BundleMap};
use finial_identity::spiffe_id::TrustDomain;

pub fn run_spiffe(data: &[u8]) {
    let name = trust_domain();
    let Ok((bundle, _skipped)) = Bundle::parse_spiffe_json_with_skipped(name.clone(), data) else {
        return;
    };
    let again = Bundle::parse_spiffe_json_with_skipped(name.clone(), bundle.to_spiffe_json().as_bytes());
    let (again, skipped) = again.unwrap();
    assert!(
        skipped.is_empty(),
        "a document of our own has entries that are skipped: {skipped:?}"
    );
    assert_eq!(again, bundle);
    let jwks = Bundle::parse_jwks(name.clone(), bundle.to_jwks().as_bytes()).unwrap();
    assert_eq!(jwks.jwt_authorities, bundle.jwt_authorities);
    if !bundle.x509_authorities.is_empty() {
        let pem = Bundle::parse_pem(name, &bundle.to_pem()).unwrap();
        assert_eq!(pem.x509_authorities, bundle.x509_authorities);
    }
    let total: usize = bundle
        .x509_certificates()
        .iter()
        .map(|certificate| certificate.der().len())
        .sum();
    assert_eq!(bundle.x509_der_concat().len(), total);
}

pub fn run_jwks(data: &[u8]) {
    let Ok(bundle) = Bundle::parse_jwks(trust_domain(), data) else {
        return;
    };
    assert!(bundle.x509_authorities.is_empty());
    let again = Bundle::parse_jwks(trust_domain(), bundle.to_jwks().as_bytes()).unwrap();
    assert_eq!(again.jwt_authorities, bundle.jwt_authorities);
}

pub fn run_map(data: &[u8]) {
    let Ok(map) = BundleMap::parse(data) else { return };
    assert_eq!(BundleMap::parse(map.to_json().as_bytes()).unwrap(), map);
    assert!(
        map.bundles
            .iter()
            .all(|(name, bundle)| *name == bundle.trust_domain && bundle.refresh_hint == 0)
    );
}

pub fn run_pem(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(bundle) = Bundle::parse_pem(trust_domain(), text) else {
        return;
    };
    assert!(
        !bundle.x509_authorities.is_empty(),
        "a text without certificates is no bundle"
    );
    assert_eq!(
        Bundle::parse_pem(trust_domain(), &bundle.to_pem()).unwrap(),
        bundle
    );
}

fn trust_domain() -> TrustDomain {
    TrustDomain::parse("example.org").unwrap()
}
