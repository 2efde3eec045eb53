//! Certificate requests (PKCS#10, RFC 2986).

use std::ops::Range;

use rcgen::string::{Ia5String, PrintableString};
use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, SanType};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::ParsedCriAttribute;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::certificate::{range_in, subject_alternative_names};
use super::{X509Error, malformed, name};
use crate::key::{KeyError, PublicKey, Signer, SignerForRcgen, X509SignatureAlgorithm};
use crate::spiffe_id::SpiffeId;

const MAX_CSR: usize = 16 * 1024;
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];

/// A parsed certificate request. Whoever grants it trusts its public key at most, and that only
/// after [`Csr::verify_self_signature`].
#[derive(Debug)]
pub struct Csr {
    der: Vec<u8>,
    signed: Range<usize>,
    signature: Range<usize>,
    signature_algorithm: X509SignatureAlgorithm,
    subject: Range<usize>,
    public_key: PublicKey,
    uri_sans: Vec<String>,
    dns_names: Vec<String>,
}

/// The subject of a request.
#[derive(Clone, Debug)]
pub struct CsrSubject(DistinguishedName);

impl Csr {
    /// Reads exactly one DER request of at most 16 KiB.
    ///
    /// # Errors
    /// When it is malformed, asks for subject alternative names twice, or its key or signature
    /// algorithm is not supported. Its signature is not verified.
    pub fn parse(der: &[u8]) -> Result<Self, X509Error> {
        if der.len() > MAX_CSR {
            return Err(X509Error::TooLong {
                what: "certificate request",
                limit: MAX_CSR,
            });
        }
        let (rest, csr) =
            X509CertificationRequest::from_der(der).map_err(|e| malformed("certificate request", e))?;
        if !rest.is_empty() || csr.signature_value.unused_bits != 0 {
            return Err(malformed("certificate request", "trailing bytes"));
        }
        let info = &csr.certification_request_info;
        if !matches!(X509Name::from_der(info.subject.as_raw()), Ok(([], _))) {
            return Err(malformed("certificate request", "subject"));
        }
        let (uri_sans, dns_names) = requested_names(&csr)?;
        Ok(Self {
            signed: range_in(der, info.raw)?,
            signature: range_in(der, &csr.signature_value.data)?,
            signature_algorithm: X509SignatureAlgorithm::from_parsed(&csr.signature_algorithm)?,
            subject: range_in(der, info.subject.as_raw())?,
            public_key: PublicKey::from_parsed(&info.subject_pki)?,
            uri_sans,
            dns_names,
            der: der.to_vec(),
        })
    }

    /// Makes a request for the key.
    ///
    /// # Errors
    /// When signing fails or a DNS name is not ASCII.
    pub fn build(
        key: &dyn Signer,
        subject: CsrSubject,
        uri: Option<&SpiffeId>,
        dns_names: &[String],
    ) -> Result<Vec<u8>, X509Error> {
        let mut params = CertificateParams::default();
        params.distinguished_name = subject.0;
        if let Some(uri) = uri {
            params.subject_alt_names.push(SanType::URI(ia5(uri.as_str())?));
        }
        for dns_name in dns_names {
            params.subject_alt_names.push(SanType::DnsName(ia5(dns_name)?));
        }
        let csr = params
            .serialize_request(&SignerForRcgen::new(key)?)
            .map_err(|_| KeyError::Internal {
                what: "signing a certificate request",
            })?;
        Ok(csr.der().to_vec())
    }

    /// The key that the certificate is to be for.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    /// Verifies that the requester holds the private key.
    pub fn verify_self_signature(&self) -> Result<(), X509Error> {
        Ok(self.public_key.verify_x509(
            self.signature_algorithm,
            &self.der[self.signed.clone()],
            &self.der[self.signature.clone()],
        )?)
    }

    /// The URIs that are asked for.
    pub fn uri_sans(&self) -> &[String] {
        &self.uri_sans
    }

    /// The one URI that is asked for, as a SPIFFE ID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, X509Error> {
        match self.uri_sans() {
            [uri] => Ok(SpiffeId::parse(uri)?),
            uris => Err(X509Error::UriSanCount(uris.len())),
        }
    }

    /// The DNS names that are asked for.
    pub fn dns_names(&self) -> &[String] {
        &self.dns_names
    }

    /// The DER of the subject that is asked for.
    pub fn subject_der(&self) -> &[u8] {
        &self.der[self.subject.clone()]
    }

    /// The subject in the manner of RFC 2253, as Go prints it.
    pub fn subject_text(&self) -> String {
        self.with_subject(name::to_text)
    }

    /// The subject's common name, if it has one.
    pub fn subject_common_name(&self) -> Option<String> {
        self.with_subject(name::common_name)
    }

    /// Whether the subject has no attributes.
    pub fn subject_is_empty(&self) -> bool {
        self.with_subject(|subject| subject.iter_rdn().next().is_none())
    }

    fn with_subject<T>(&self, read: impl FnOnce(&X509Name<'_>) -> T) -> T {
        let (_, subject) =
            X509Name::from_der(self.subject_der()).expect("checked when the request was parsed");
        read(&subject)
    }
}

impl CsrSubject {
    /// `C=US,O=SPIRE`, as SPIRE's agents send.
    pub fn spire() -> Self {
        let mut name = DistinguishedName::new();
        for (kind, value) in [(DnType::CountryName, "US"), (DnType::OrganizationName, "SPIRE")] {
            let value = PrintableString::try_from(value).expect("letters only");
            name.push(kind, DnValue::PrintableString(value));
        }
        Self(name)
    }

    /// A subject without attributes.
    pub fn empty() -> Self {
        Self(DistinguishedName::new())
    }
}

impl From<DistinguishedName> for CsrSubject {
    fn from(name: DistinguishedName) -> Self {
        Self(name)
    }
}

fn requested_names(csr: &X509CertificationRequest<'_>) -> Result<(Vec<String>, Vec<String>), X509Error> {
    let mut found = None;
    let attributes = csr.certification_request_info.iter_attributes();
    for attribute in attributes {
        let ParsedCriAttribute::ExtensionRequest(request) = attribute.parsed_attribute() else {
            continue;
        };
        for extension in &request.extensions {
            if extension.oid.as_bytes() != SUBJECT_ALTERNATIVE_NAME {
                continue;
            }
            if found.is_some() {
                let why = "subject alternative names twice";
                return Err(malformed("certificate request", why));
            }
            found = Some(subject_alternative_names(extension.value)?);
        }
    }
    Ok(found.unwrap_or_default())
}

fn ia5(text: &str) -> Result<Ia5String, X509Error> {
    Ia5String::try_from(text).map_err(|_| malformed("name", format!("not ASCII: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey};
    use crate::x509::testing::{Spec, names};

    fn id() -> SpiffeId {
        SpiffeId::parse("spiffe://example.org/a").unwrap()
    }

    #[test]
    fn what_is_built_parses_and_verifies() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            let dns_names = ["a.example.org".to_owned()];
            let der = Csr::build(&key, CsrSubject::spire(), Some(&id()), &dns_names).unwrap();
            let csr = Csr::parse(&der).unwrap();
            csr.verify_self_signature().unwrap();
            assert_eq!(csr.public_key(), key.public_key());
            assert_eq!(csr.spiffe_id().unwrap(), id());
            assert_eq!(csr.dns_names(), dns_names);
            assert_eq!(csr.subject_text(), "O=SPIRE,C=US");
        }
    }

    #[test]
    fn the_default_subject_is_of_printable_strings_in_spires_order() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let der = Csr::build(&key, CsrSubject::spire(), None, &[]).unwrap();
        let csr = Csr::parse(&der).unwrap();
        let expected = b"\x30\x1d\x31\x0b\x30\x09\x06\x03\x55\x04\x06\x13\x02US\
            \x31\x0e\x30\x0c\x06\x03\x55\x04\x0a\x13\x05SPIRE";
        assert_eq!(csr.subject_der(), expected);
        assert!(csr.uri_sans().is_empty() && csr.dns_names().is_empty());
        assert!(matches!(csr.spiffe_id(), Err(X509Error::UriSanCount(0))));
    }

    #[test]
    fn subjects_are_read() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let subject = CsrSubject::from(names(&[(&[2, 5, 4, 3], "host")]));
        let csr = Csr::parse(&Csr::build(&key, subject, None, &[]).unwrap()).unwrap();
        assert_eq!(csr.subject_common_name().as_deref(), Some("host"));
        assert!(!csr.subject_is_empty());
        let der = Csr::build(&key, CsrSubject::empty(), None, &[]).unwrap();
        assert!(Csr::parse(&der).unwrap().subject_is_empty());
    }

    #[test]
    fn a_request_signed_with_another_key_does_not_verify() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let other = PrivateKey::generate(KeyType::EcP256).unwrap();
        let mut der = Csr::build(&key, CsrSubject::spire(), Some(&id()), &[]).unwrap();
        let point = key.public_key().key_bytes();
        let at = der.windows(point.len()).position(|w| w == point).unwrap();
        der[at..at + point.len()].copy_from_slice(other.public_key().key_bytes());
        let csr = Csr::parse(&der).unwrap();
        assert!(matches!(
            csr.verify_self_signature(),
            Err(X509Error::Key(KeyError::BadSignature))
        ));
    }

    #[test]
    fn malformed_requests_are_errors() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let der = Csr::build(&key, CsrSubject::spire(), Some(&id()), &[]).unwrap();
        for cut in 0..der.len() {
            assert!(Csr::parse(&der[..cut]).is_err());
        }
        assert!(Csr::parse(&[&der[..], &[0]].concat()).is_err());
        assert!(matches!(
            Csr::parse(&vec![0x30; MAX_CSR + 1]),
            Err(X509Error::TooLong { .. })
        ));
        for at in 0..der.len() {
            let mut changed = der.clone();
            changed[at] ^= 0xff;
            if let Ok(csr) = Csr::parse(&changed) {
                assert!(csr.verify_self_signature().is_err(), "byte {at}");
            }
        }
    }

    #[test]
    fn names_asked_for_twice_are_refused() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let mut params = CertificateParams::default();
        let san = Spec::leaf("spiffe://example.org/b").san_extension();
        params.custom_extensions = vec![san.clone(), san];
        let signer = SignerForRcgen::new(&key).unwrap();
        let der = params.serialize_request(&signer).unwrap();
        let error = Csr::parse(der.der()).unwrap_err().to_string();
        assert!(error.contains("twice"), "{error}");
    }
}
