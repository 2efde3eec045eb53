//! Reads what Go's crypto/x509 wrote, as SPIRE's agents and servers write it.

use super::testing::NOW;
use super::{Certificate, Csr, PeerUsage, check_authority, verify_chain};
use crate::key::{KeyType, PrivateKey, Signer as _, pem_block};
use crate::spiffe_id::TrustDomain;
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use time::Duration;

/// In this order: a P-256 key as PKCS#8 and as SEC 1, a P-384 key, a request with names, an empty
/// request (both for the first key), an authority with the P-384 key, a leaf with the first key.
const MADE_BY_GO: &str = include_str!("testdata/made_by_go.pem");

/// The block at that place.
fn block(at: usize) -> &'static str {
    let start = MADE_BY_GO.match_indices("-----BEGIN").nth(at).unwrap().0;
    let end = MADE_BY_GO.match_indices("-----BEGIN").nth(at + 1);
    &MADE_BY_GO[start..end.map_or(MADE_BY_GO.len(), |(end, _)| end)]
}

#[test]
fn keys_in_both_forms_are_the_same_key() {
    let pkcs8 = PrivateKey::from_pem(block(0)).unwrap();
    let sec1 = PrivateKey::from_pem(block(1)).unwrap();
    assert_eq!(pkcs8.public_key(), sec1.public_key());
    assert_eq!(pkcs8.key_type(), Some(KeyType::EcP256));
    let p384 = PrivateKey::from_pem(block(2)).unwrap();
    assert_eq!(p384.key_type(), Some(KeyType::EcP384));
    let signature = p384.sign_jws(b"input").unwrap();
    p384.public_key()
        .verify_jws(p384.jws_algorithm(), b"input", &signature)
        .unwrap();
    assert_eq!(pem_block("PRIVATE KEY", pkcs8.pkcs8_der()), block(0));
}

#[test]
fn requests_verify() {
    let key = PrivateKey::from_pem(block(0)).unwrap();
    let requests = CertificateSigningRequestDer::pem_slice_iter(MADE_BY_GO.as_bytes());
    let requests: Vec<Csr> = requests.map(|der| Csr::parse(&der.unwrap()).unwrap()).collect();
    let [named, empty] = &requests[..] else {
        panic!("two requests")
    };
    for request in [named, empty] {
        request.verify_self_signature().unwrap();
        assert_eq!(request.public_key(), key.public_key());
    }
    assert_eq!(named.spiffe_id().unwrap().as_str(), "spiffe://example.org/a");
    assert_eq!(named.dns_names(), ["a.example.org"]);
    assert_eq!(named.subject_text(), "O=SPIRE,C=US");
    assert!(empty.uri_sans().is_empty() && empty.subject_is_empty());
}

#[test]
fn an_svid_verifies_and_names_read_as_go_says() {
    let certificates = Certificate::from_pem(MADE_BY_GO).unwrap();
    let [authority, leaf] = &certificates[..] else {
        panic!("two certificates")
    };
    let trust_domain = TrustDomain::parse("example.org").unwrap();
    check_authority(authority, &trust_domain).unwrap();
    assert_eq!(
        authority.subject_text(),
        "SERIALNUMBER=77,OU=Two+OU=One\\, Inc,O=SPIFFE,C=US"
    );
    assert_eq!(
        authority.authority_id(),
        "9f234fe0736d1956271b8244431e884582a0ed88"
    );
    let own_id = authority.public_key().subject_key_id();
    assert_eq!(authority.subject_key_id().unwrap().len(), own_id.len());
    assert_eq!(leaf.serial_hex(), format!("9{}", "0".repeat(31)));
    assert_eq!(leaf.authority_key_id(), authority.subject_key_id());

    let bundles = |_: &TrustDomain| Some(vec![authority.clone()]);
    let at = leaf.not_before() + Duration::days(1);
    let id = verify_chain(std::slice::from_ref(leaf), &bundles, at, PeerUsage::Client).unwrap();
    assert_eq!(id.as_str(), "spiffe://example.org/a");
    assert!(verify_chain(std::slice::from_ref(leaf), &bundles, NOW, PeerUsage::Client).is_err());
}
