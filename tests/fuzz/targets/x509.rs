//! Certificates, chains of them, and certificate requests.

use std::time::Duration;

use finial_identity::spiffe_id::SpiffeId;
use finial_identity::x509::{
    Certificate, Csr, PeerUsage, check_authority, check_leaf, verify_chain, verify_chain_to,
};

/// One or more DER certificates back to back: the first is the leaf, the last is trusted.
pub fn run(data: &[u8]) {
    let Ok(chain) = Certificate::parse_many(data) else {
        assert!(
            Certificate::parse(data).is_err(),
            "one certificate is a list of one"
        );
        return;
    };
    let total: usize = chain.iter().map(|certificate| certificate.der().len()).sum();
    assert_eq!(total, data.len(), "every byte belongs to a certificate");
    chain.iter().for_each(look);
    let (Some(leaf), Some(last)) = (chain.first(), chain.last()) else {
        return;
    };
    let pem: String = chain.iter().map(Certificate::to_pem).collect();
    assert_eq!(Certificate::from_pem(&pem).unwrap(), chain);

    let checked = check_leaf(leaf);
    if let Ok(id) = &checked {
        assert!(!leaf.is_ca() && id.has_path());
        assert_eq!(leaf.uri_sans(), [id.as_str()]);
        assert_eq!(&leaf.spiffe_id().unwrap(), id);
    }
    let Some(at) = leaf.not_before().checked_add(time::Duration::SECOND) else {
        return;
    };
    for usage in [PeerUsage::Any, PeerUsage::Client, PeerUsage::Server] {
        let verified = verify_chain(&chain, &|_| Some(vec![last.clone()]), at, usage);
        if let Ok(id) = verified {
            assert_eq!(
                &id,
                checked.as_ref().expect("a chain with a bad leaf was verified")
            );
            assert!(at >= leaf.not_before() && at <= leaf.not_after());
            verify_chain_to(&chain, std::slice::from_ref(last), at, usage)
                .expect("the same chain to the same anchor");
            let nobody = verify_chain(&chain, &|_| None, at, usage);
            assert!(nobody.is_err(), "verified without a bundle");
            assert!(
                verify_chain(&chain, &|_| Some(Vec::new()), at, usage).is_err(),
                "verified by an empty bundle"
            );
            if let Some(late) = leaf
                .not_after()
                .checked_add(Duration::from_secs(1).try_into().unwrap())
            {
                assert!(
                    verify_chain(&chain, &|_| Some(vec![last.clone()]), late, usage).is_err(),
                    "expired"
                );
            }
        }
    }
}

pub fn run_csr(data: &[u8]) {
    let Ok(csr) = Csr::parse(data) else { return };
    let _ = (
        csr.verify_self_signature(),
        csr.subject_text(),
        csr.subject_common_name(),
        csr.subject_is_empty(),
    );
    let _ = (csr.dns_names(), csr.subject_der());
    if let Ok(id) = csr.spiffe_id() {
        assert_eq!(csr.uri_sans(), [id.as_str()]);
        assert_eq!(SpiffeId::parse(id.as_str()).unwrap(), id);
    }
    super::key::look_public(csr.public_key());
    assert!(Csr::parse(&[data, &[0]].concat()).is_err(), "trailing bytes");
}

fn look(certificate: &Certificate) {
    let again = Certificate::parse(certificate.der()).expect("its own bytes");
    assert_eq!(&again, certificate);
    assert!(
        Certificate::parse(&[certificate.der().as_ref(), &[0]].concat()).is_err(),
        "trailing bytes"
    );
    let _ = (
        certificate.serial_hex(),
        certificate.subject_text(),
        certificate.issuer_text(),
    );
    let _ = (
        certificate.subject_common_name(),
        certificate.dns_names(),
        certificate.path_len_constraint(),
    );
    let _ = (
        certificate.authority_id(),
        certificate.authority_key_id(),
        certificate.extended_key_usage(),
    );
    let _ = (
        certificate.subject_der(),
        certificate.issuer_der(),
        format!("{certificate:?}"),
    );
    let decimal = certificate.serial_decimal();
    let digits = decimal.strip_prefix('-').unwrap_or(&decimal);
    assert!(
        !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()),
        "{decimal}"
    );
    let _ = certificate.check_valid_at(certificate.not_after());
    let _ = certificate.check_signature(certificate.public_key());
    if let Ok(id) = certificate.spiffe_id() {
        let _ = check_authority(certificate, id.trust_domain());
    }
    super::key::look_public(certificate.public_key());
}
