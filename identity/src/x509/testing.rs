//! Real certificates for tests, right and wrong in every part.

use rcgen::{CertificateParams, CustomExtension, DistinguishedName, DnType, Issuer, SerialNumber};
use time::macros::datetime;
use time::{Duration, OffsetDateTime};

use super::{Certificate, KeyUsage};
use crate::key::{KeyType, PrivateKey, PublicKey, SignerForRcgen, SubjectKeyForRcgen, tlv};

/// The time around which test certificates are valid.
pub(crate) const NOW: OffsetDateTime = datetime!(2030-06-01 12:00 UTC);

pub(crate) const SERVER_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 1];
pub(crate) const CLIENT_AUTH: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 2];

const SEQUENCE: u8 = 0x30;

/// What a test certificate says.
#[derive(Clone)]
pub(crate) struct Spec {
    pub subject: DistinguishedName,
    pub serial: Vec<u8>,
    pub uris: Vec<String>,
    pub dns_names: Vec<String>,
    /// More general names: tag and content.
    pub raw_sans: Vec<(u8, Vec<u8>)>,
    pub omit_san: bool,
    /// `cA` and the path length; `None` leaves the extension out.
    pub basic_constraints: Option<(bool, Option<u8>)>,
    /// Bits and criticality.
    pub key_usage: Option<(u16, bool)>,
    pub extended_key_usage: Option<Vec<&'static [u8]>>,
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
    pub extra: Vec<CustomExtension>,
}

/// A certificate authority: its certificate and key.
pub(crate) struct Ca {
    pub certificate: Certificate,
    pub key: PrivateKey,
    subject: DistinguishedName,
}

impl Spec {
    /// A leaf as the standard wants it.
    pub(crate) fn leaf(uri: &str) -> Self {
        Self {
            subject: names(&[(&[2, 5, 4, 6], "US"), (&[2, 5, 4, 10], "SPIRE")]),
            serial: vec![1],
            uris: vec![uri.to_owned()],
            dns_names: Vec::new(),
            raw_sans: Vec::new(),
            omit_san: false,
            basic_constraints: Some((false, None)),
            key_usage: Some((
                KeyUsage::DIGITAL_SIGNATURE | KeyUsage::KEY_ENCIPHERMENT | KeyUsage::KEY_AGREEMENT,
                true,
            )),
            extended_key_usage: Some(vec![SERVER_AUTH, CLIENT_AUTH]),
            not_before: NOW - Duration::hours(1),
            not_after: NOW + Duration::hours(1),
            extra: Vec::new(),
        }
    }

    /// An authority as the standard wants it.
    pub(crate) fn authority(trust_domain: &str, name: &str) -> Self {
        Self {
            subject: names(&[(&[2, 5, 4, 10], "SPIFFE"), (&[2, 5, 4, 3], name)]),
            basic_constraints: Some((true, None)),
            key_usage: Some((KeyUsage::KEY_CERT_SIGN | KeyUsage::CRL_SIGN, true)),
            extended_key_usage: None,
            not_before: NOW - Duration::days(1),
            not_after: NOW + Duration::days(1),
            ..Self::leaf(&format!("spiffe://{trust_domain}"))
        }
    }

    pub(crate) fn san_extension(&self) -> CustomExtension {
        let mut content = Vec::new();
        for uri in &self.uris {
            content.extend(tlv(0x86, uri.as_bytes()));
        }
        for dns_name in &self.dns_names {
            content.extend(tlv(0x82, dns_name.as_bytes()));
        }
        for (tag, name) in &self.raw_sans {
            content.extend(tlv(*tag, name));
        }
        extension(&[2, 5, 29, 17], false, tlv(SEQUENCE, &content))
    }

    fn params(&self, subject_key: &PublicKey, issuer_key: &PublicKey) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = self.subject.clone();
        params.serial_number = Some(SerialNumber::from_slice(&self.serial));
        params.not_before = self.not_before;
        params.not_after = self.not_after;
        let extensions = &mut params.custom_extensions;
        if let Some((bits, critical)) = self.key_usage {
            extensions.push(extension(&[2, 5, 29, 15], critical, key_usage(bits)));
        }
        if let Some(purposes) = &self.extended_key_usage {
            let oids: Vec<u8> = purposes.iter().flat_map(|oid| tlv(6, oid)).collect();
            extensions.push(extension(&[2, 5, 29, 37], false, tlv(SEQUENCE, &oids)));
        }
        if let Some((ca, path_len)) = self.basic_constraints {
            let mut content = Vec::new();
            if ca {
                content.extend(tlv(1, &[0xff]));
            }
            if let Some(path_len) = path_len {
                content.extend(tlv(2, &[path_len]));
            }
            let content = tlv(SEQUENCE, &content);
            extensions.push(extension(&[2, 5, 29, 19], true, content));
        }
        let subject_id = tlv(4, &subject_key.subject_key_id());
        extensions.push(extension(&[2, 5, 29, 14], false, subject_id));
        let issuer_id = tlv(SEQUENCE, &tlv(0x80, &issuer_key.subject_key_id()));
        extensions.push(extension(&[2, 5, 29, 35], false, issuer_id));
        if !self.omit_san {
            extensions.push(self.san_extension());
        }
        extensions.extend(self.extra.iter().cloned());
        params
    }
}

impl Ca {
    /// A self-signed authority of the trust domain.
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::self_signed(&Spec::authority(trust_domain, trust_domain), KeyType::EcP256)
    }

    pub(crate) fn self_signed(spec: &Spec, key_type: KeyType) -> Self {
        let key = PrivateKey::generate(key_type).unwrap();
        let signer = SignerForRcgen::new(&key).unwrap();
        let params = spec.params(key.public_key(), key.public_key());
        let certificate = params.self_signed(&signer).unwrap();
        Self {
            certificate: Certificate::parse(certificate.der()).unwrap(),
            key,
            subject: spec.subject.clone(),
        }
    }

    /// An authority below this one.
    pub(crate) fn intermediate(&self, spec: &Spec) -> Self {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        Self {
            certificate: self.issue(spec, key.public_key()),
            key,
            subject: spec.subject.clone(),
        }
    }

    pub(crate) fn issue(&self, spec: &Spec, key: &PublicKey) -> Certificate {
        Certificate::parse(&self.issue_raw(spec, key)).unwrap()
    }

    /// A certificate that need not parse, for a new key.
    pub(crate) fn issue_der(&self, spec: &Spec) -> Vec<u8> {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        self.issue_raw(spec, key.public_key())
    }

    /// A right leaf with that SPIFFE ID and its key.
    pub(crate) fn leaf(&self, uri: &str) -> (Certificate, PrivateKey) {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        (self.issue(&Spec::leaf(uri), key.public_key()), key)
    }

    fn issue_raw(&self, spec: &Spec, key: &PublicKey) -> Vec<u8> {
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = self.subject.clone();
        let issuer = Issuer::new(issuer, SignerForRcgen::new(&self.key).unwrap());
        let params = spec.params(key, self.key.public_key());
        let subject_key = SubjectKeyForRcgen::new(key).unwrap();
        params.signed_by(&subject_key, &issuer).unwrap().der().to_vec()
    }
}

pub(crate) fn extension(oid: &[u64], critical: bool, content: Vec<u8>) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content);
    extension.set_criticality(critical);
    extension
}

pub(crate) fn names(attributes: &[(&[u64], &str)]) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    for (oid, value) in attributes {
        name.push(DnType::CustomDnType(oid.to_vec()), *value);
    }
    name
}

/// Bit 0 of the standard is the highest bit of the first byte.
fn key_usage(bits: u16) -> Vec<u8> {
    let bytes = bits.reverse_bits().to_be_bytes();
    let (bytes, highest) = match bits >> 8 {
        0 => (&bytes[..1], 7 - (bits as u8).leading_zeros()),
        _ => (&bytes[..], 15 - bits.leading_zeros()),
    };
    let unused = 7 - (highest % 8) as u8;
    tlv(3, &[&[unused], bytes].concat())
}
