use super::*;
use crate::key::{KeyType, PrivateKey};
use crate::x509::testing::{Ca, NOW, Spec, names};
use time::Duration;

#[test]
fn shows_what_was_put_in() {
    let ca = Ca::new("example.org");
    let key = PrivateKey::generate(KeyType::EcP384).unwrap();
    let mut spec = Spec::leaf("spiffe://example.org/a");
    spec.dns_names = vec!["a.example.org".into(), "b.example.org".into()];
    spec.serial = vec![0x00, 0x8f, 0x01];
    let leaf = ca.issue(&spec, key.public_key());
    assert_eq!(leaf.public_key(), key.public_key());
    assert_eq!(leaf.uri_sans(), ["spiffe://example.org/a"]);
    assert_eq!(leaf.dns_names(), ["a.example.org", "b.example.org"]);
    assert_eq!(leaf.serial_hex(), "8f01");
    assert_eq!(leaf.serial_decimal(), "36609");
    assert_eq!(leaf.not_before(), NOW - Duration::hours(1));
    assert_eq!(leaf.not_after(), NOW + Duration::hours(1));
    assert!(!leaf.is_ca());
    let usage = leaf.key_usage().unwrap();
    assert!(usage.critical && usage.has(KeyUsage::DIGITAL_SIGNATURE));
    assert!(!usage.has(KeyUsage::KEY_CERT_SIGN));
    let eku = leaf.extended_key_usage().unwrap();
    assert!(eku.server_auth && eku.client_auth && !eku.any && !eku.other);
    assert_eq!(leaf.subject_key_id().unwrap(), key.public_key().subject_key_id());
    assert_eq!(leaf.authority_key_id(), ca.certificate.subject_key_id());
    assert_eq!(leaf.issuer_der(), ca.certificate.subject_der());
    assert!(ca.certificate.is_ca());
    assert_eq!(
        ca.certificate.authority_id(),
        HEXLOWER.encode(&ca.key.public_key().subject_key_id())
    );
    leaf.check_signature(ca.key.public_key()).unwrap();
    assert!(leaf.check_signature(key.public_key()).is_err());
}

#[test]
fn der_and_pem_round_trip_alone_and_together() {
    let ca = Ca::new("example.org");
    let (leaf, _) = ca.leaf("spiffe://example.org/a");
    assert_eq!(Certificate::parse(leaf.der()).unwrap(), leaf);
    let both = [leaf.der().as_ref(), ca.certificate.der().as_ref()].concat();
    let many = Certificate::parse_many(&both).unwrap();
    assert_eq!(many, [leaf.clone(), ca.certificate.clone()]);
    assert!(Certificate::parse(&both).is_err());
    assert!(Certificate::parse_many(&[]).unwrap().is_empty());
    let text = format!("noise\n{}{}", leaf.to_pem(), ca.certificate.to_pem());
    assert_eq!(Certificate::from_pem(&text).unwrap(), many);
    assert!(Certificate::from_pem("").is_err());
    for cut in 0..leaf.der().len() {
        assert!(Certificate::parse(&leaf.der()[..cut]).is_err());
    }
}

#[test]
fn flipped_bytes_never_panic() {
    let (leaf, _) = Ca::new("example.org").leaf("spiffe://example.org/a");
    for at in 0..leaf.der().len() {
        for mask in [0x01, 0x80, 0xff] {
            let mut der = leaf.der().to_vec();
            der[at] ^= mask;
            if let Ok(parsed) = Certificate::parse(&der) {
                let _shown = format!("{parsed:?} {}", parsed.issuer_text());
            }
        }
    }
}

#[test]
fn an_extension_given_twice_is_refused() {
    let mut spec = Spec::leaf("spiffe://example.org/a");
    spec.extra = vec![spec.san_extension(), spec.san_extension()];
    spec.omit_san = true;
    let der = Ca::new("example.org").issue_der(&spec);
    let error = Certificate::parse(&der).unwrap_err().to_string();
    assert!(error.contains("2.5.29.17 twice"), "{error}");
}

#[test]
fn an_unreadable_uri_refuses_the_certificate() {
    let mut spec = Spec::leaf("spiffe://example.org/a");
    spec.raw_sans = vec![(0x86, b"https://\xff".to_vec())];
    let der = Ca::new("example.org").issue_der(&spec);
    assert!(Certificate::parse(&der).is_err());
}

#[test]
fn names_read_as_go_prints_them() {
    let mut spec = Spec::leaf("spiffe://example.org/a");
    spec.subject = names(&[
        (&[2, 5, 4, 6], "US"),
        (&[2, 5, 4, 10], "SPIRE"),
        (&[2, 5, 4, 3], "a, b"),
        (&[2, 5, 4, 11], "One"),
        (&[2, 5, 4, 5], "17"),
        (&[2, 5, 4, 45], "uid"),
    ]);
    let leaf = Certificate::parse(&Ca::new("example.org").issue_der(&spec)).unwrap();
    assert_eq!(
        leaf.subject_text(),
        "SERIALNUMBER=17,CN=a\\, b,OU=One,O=SPIRE,C=US,2.5.4.45=#0c03756964"
    );
    assert_eq!(leaf.subject_common_name().as_deref(), Some("a, b"));
}

#[test]
fn validity_ends_are_inclusive() {
    let (leaf, _) = Ca::new("example.org").leaf("spiffe://example.org/a");
    leaf.check_valid_at(leaf.not_before()).unwrap();
    leaf.check_valid_at(leaf.not_after() + Duration::milliseconds(999))
        .unwrap();
    assert!(matches!(
        leaf.check_valid_at(leaf.not_after() + Duration::seconds(1)),
        Err(X509Error::Expired)
    ));
    assert!(matches!(
        leaf.check_valid_at(leaf.not_before() - Duration::nanoseconds(1)),
        Err(X509Error::NotYetValid)
    ));
}
