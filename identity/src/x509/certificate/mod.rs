//! One parsed certificate.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;
use x509_parser::certificate::{X509Certificate, X509CertificateParser};
use x509_parser::extensions::{
    AuthorityKeyIdentifier, BasicConstraints, GeneralName, KeyIdentifier, SubjectAlternativeName,
    X509Extension,
};
use x509_parser::nom::Parser as _;
use x509_parser::num_bigint::BigUint;
use x509_parser::prelude::FromDer;
use x509_parser::x509::X509Name;

use super::{X509Error, form, malformed, name};
use crate::key::{KeyError, PublicKey, X509SignatureAlgorithm, pem_block};
use crate::spiffe_id::SpiffeId;

/// Larger certificates are refused. SVIDs take less than one KiB.
const MAX_CERTIFICATE: usize = 64 * 1024;
/// More certificates in one text or one run of bytes are refused.
const MAX_CERTIFICATES: usize = 4096;

/// An X.509 certificate, parsed once. Cheap to clone; equal when the bytes are.
#[derive(Clone)]
pub struct Certificate(Arc<Inner>);

struct Inner {
    der: CertificateDer<'static>,
    tbs: Range<usize>,
    signature: Range<usize>,
    signature_algorithm: Result<X509SignatureAlgorithm, String>,
    public_key: PublicKey,
    not_before: OffsetDateTime,
    not_after: OffsetDateTime,
    serial: Range<usize>,
    issuer: Range<usize>,
    subject: Range<usize>,
    extensions: Extensions,
}

#[derive(Default)]
struct Extensions {
    subject_key_id: Option<Range<usize>>,
    authority_key_id: Option<Range<usize>>,
    uri_sans: Vec<String>,
    dns_names: Vec<String>,
    basic_constraints: Option<(bool, Option<u32>)>,
    key_usage: Option<KeyUsage>,
    extended_key_usage: Option<ExtendedKeyUsage>,
}

/// The key usage extension (RFC 5280 §4.2.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyUsage {
    /// Bit n stands for bit n of the standard: 0 is digitalSignature, 8 decipherOnly.
    pub bits: u16,
    /// Whether the extension is critical.
    pub critical: bool,
}

impl KeyUsage {
    /// digitalSignature
    pub const DIGITAL_SIGNATURE: u16 = 1 << 0;
    /// keyEncipherment
    pub const KEY_ENCIPHERMENT: u16 = 1 << 2;
    /// keyAgreement
    pub const KEY_AGREEMENT: u16 = 1 << 4;
    /// keyCertSign
    pub const KEY_CERT_SIGN: u16 = 1 << 5;
    /// cRLSign
    pub const CRL_SIGN: u16 = 1 << 6;

    /// Whether all the given bits are set.
    pub fn has(self, bits: u16) -> bool {
        self.bits & bits == bits
    }
}

/// The extended key usage extension (RFC 5280 §4.2.1.12), as far as TLS is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedKeyUsage {
    /// id-kp-serverAuth
    pub server_auth: bool,
    /// id-kp-clientAuth
    pub client_auth: bool,
    /// anyExtendedKeyUsage
    pub any: bool,
    /// Whether other purposes are listed.
    pub other: bool,
    /// Whether the extension is critical.
    pub critical: bool,
}

impl Certificate {
    /// Reads exactly one DER certificate.
    ///
    /// # Errors
    /// When it is malformed, longer than 64 KiB, has an extension twice, or a public key of an
    /// unsupported kind. So is one that Envoy or Go would not read, by text in its names for example that
    /// is not what its type says. Its signature and time are not looked at.
    pub fn parse(der: &[u8]) -> Result<Self, X509Error> {
        let (certificate, rest) = Self::parse_first(der)?;
        if !rest.is_empty() {
            return Err(malformed("certificate", "trailing bytes"));
        }
        Ok(certificate)
    }

    /// Reads DER certificates that stand back to back, as the Workload API sends them; none at all
    /// give an empty list.
    pub fn parse_many(mut der: &[u8]) -> Result<Vec<Self>, X509Error> {
        let mut certificates = Vec::new();
        while !der.is_empty() {
            let (certificate, rest) = Self::parse_first(der)?;
            certificates.push(certificate);
            if certificates.len() > MAX_CERTIFICATES {
                return Err(malformed("certificates", "more than 4096"));
            }
            der = rest;
        }
        Ok(certificates)
    }

    /// Reads the `CERTIFICATE` blocks of a PEM text; other blocks are skipped.
    ///
    /// # Errors
    /// When there is no certificate or one is malformed.
    pub fn from_pem(text: &str) -> Result<Vec<Self>, X509Error> {
        let mut certificates = Vec::new();
        for der in CertificateDer::pem_slice_iter(text.as_bytes()) {
            let der = der.map_err(|_| malformed("PEM", "broken block"))?;
            certificates.push(Self::parse(&der)?);
            if certificates.len() > MAX_CERTIFICATES {
                return Err(malformed("certificates", "more than 4096"));
            }
        }
        if certificates.is_empty() {
            return Err(malformed("PEM", "no certificate in it"));
        }
        Ok(certificates)
    }

    /// The DER, ready for rustls.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.0.der
    }

    /// One PEM block `CERTIFICATE`.
    pub fn to_pem(&self) -> String {
        pem_block("CERTIFICATE", &self.0.der)
    }

    /// Start of validity, inclusive.
    pub fn not_before(&self) -> OffsetDateTime {
        self.0.not_before
    }

    /// End of validity, inclusive.
    pub fn not_after(&self) -> OffsetDateTime {
        self.0.not_after
    }

    /// The serial number as lowercase hex without leading zeros.
    pub fn serial_hex(&self) -> String {
        self.serial().to_str_radix(16)
    }

    /// The serial number in decimal.
    pub fn serial_decimal(&self) -> String {
        self.serial().to_str_radix(10)
    }

    /// The subject's public key.
    pub fn public_key(&self) -> &PublicKey {
        &self.0.public_key
    }

    /// The subject key identifier, if there is one.
    pub fn subject_key_id(&self) -> Option<&[u8]> {
        self.optional_slice(&self.0.extensions.subject_key_id)
    }

    /// The key identifier of the authority key identifier, if there is one.
    pub fn authority_key_id(&self) -> Option<&[u8]> {
        self.optional_slice(&self.0.extensions.authority_key_id)
    }

    /// SPIRE's name of an X.509 authority: the subject key identifier as lowercase hex; empty when
    /// there is none.
    pub fn authority_id(&self) -> String {
        HEXLOWER.encode(self.subject_key_id().unwrap_or_default())
    }

    /// The URIs of the subject alternative name, in order.
    pub fn uri_sans(&self) -> &[String] {
        &self.0.extensions.uri_sans
    }

    /// The DNS names of the subject alternative name, in order.
    pub fn dns_names(&self) -> &[String] {
        &self.0.extensions.dns_names
    }

    /// Whether basic constraints say `cA`.
    pub fn is_ca(&self) -> bool {
        matches!(self.0.extensions.basic_constraints, Some((true, _)))
    }

    /// The path length constraint of a CA certificate.
    pub fn path_len_constraint(&self) -> Option<u32> {
        self.0.extensions.basic_constraints.and_then(|(_, len)| len)
    }

    /// The key usage, if the extension is there.
    pub fn key_usage(&self) -> Option<KeyUsage> {
        self.0.extensions.key_usage
    }

    /// The extended key usage, if the extension is there.
    pub fn extended_key_usage(&self) -> Option<ExtendedKeyUsage> {
        self.0.extensions.extended_key_usage
    }

    /// The DER of the subject name.
    pub fn subject_der(&self) -> &[u8] {
        &self.0.der[self.0.subject.clone()]
    }

    /// The DER of the issuer name.
    pub fn issuer_der(&self) -> &[u8] {
        &self.0.der[self.0.issuer.clone()]
    }

    /// The subject in the manner of RFC 2253, as Go prints it.
    pub fn subject_text(&self) -> String {
        self.with_name(self.subject_der(), name::to_text)
    }

    /// The issuer in the manner of RFC 2253, as Go prints it.
    pub fn issuer_text(&self) -> String {
        self.with_name(self.issuer_der(), name::to_text)
    }

    /// The subject's common name, if it has one.
    pub fn subject_common_name(&self) -> Option<String> {
        self.with_name(self.subject_der(), name::common_name)
    }

    /// The SPIFFE ID in the one URI SAN (X509-SVID §2).
    ///
    /// # Errors
    /// When there is not exactly one URI, or it is not a SPIFFE ID.
    pub fn spiffe_id(&self) -> Result<SpiffeId, X509Error> {
        match self.uri_sans() {
            [uri] => Ok(SpiffeId::parse(uri)?),
            uris => Err(X509Error::UriSanCount(uris.len())),
        }
    }

    /// Whether `at` is within the validity.
    ///
    /// # Errors
    /// [`X509Error::NotYetValid`] or [`X509Error::Expired`].
    pub fn check_valid_at(&self, at: OffsetDateTime) -> Result<(), X509Error> {
        if at < self.not_before() {
            return Err(X509Error::NotYetValid);
        }
        // The end is inclusive and has no fraction of a second (RFC 5280 §4.1.2.5).
        if at.unix_timestamp() > self.not_after().unix_timestamp() {
            return Err(X509Error::Expired);
        }
        Ok(())
    }

    /// Whether the certificate's signature was made with that key. Names and usages are not
    /// looked at.
    pub fn check_signature(&self, issuer: &PublicKey) -> Result<(), X509Error> {
        let inner = &*self.0;
        match &inner.signature_algorithm {
            Ok(algorithm) => Ok(issuer.verify_x509(
                *algorithm,
                &inner.der[inner.tbs.clone()],
                &inner.der[inner.signature.clone()],
            )?),
            Err(oid) => Err(KeyError::UnsupportedX509Algorithm(oid.clone()).into()),
        }
    }

    fn parse_first(der: &[u8]) -> Result<(Self, &[u8]), X509Error> {
        let broken = |e| malformed("certificate", e);
        let mut parser = X509CertificateParser::new().with_deep_parse_extensions(false);
        let (rest, parsed) = parser.parse(der).map_err(broken)?;
        let own = &der[..der.len() - rest.len()];
        if own.len() > MAX_CERTIFICATE {
            return Err(X509Error::TooLong {
                what: "certificate",
                limit: MAX_CERTIFICATE,
            });
        }
        form::check(own)?;
        Ok((Self(Arc::new(Inner::new(own, &parsed)?)), rest))
    }

    fn serial(&self) -> BigUint {
        BigUint::from_bytes_be(&self.0.der[self.0.serial.clone()])
    }

    fn optional_slice(&self, range: &Option<Range<usize>>) -> Option<&[u8]> {
        range.clone().map(|range| &self.0.der[range])
    }

    fn with_name<T>(&self, der: &[u8], read: impl FnOnce(&X509Name<'_>) -> T) -> T {
        let (_, name) = X509Name::from_der(der).expect("checked when the certificate was parsed");
        read(&name)
    }
}

impl Inner {
    fn new(der: &[u8], parsed: &X509Certificate<'_>) -> Result<Self, X509Error> {
        let tbs = &parsed.tbs_certificate;
        if parsed.signature_value.unused_bits != 0 {
            return Err(malformed("certificate", "signature with unused bits"));
        }
        // The parser's raw names can be more or less than a name when lengths are odd.
        for name in [&tbs.issuer, &tbs.subject] {
            if !matches!(X509Name::from_der(name.as_raw()), Ok(([], _))) {
                return Err(malformed("certificate", "name"));
            }
        }
        Ok(Self {
            tbs: range_in(der, tbs.as_ref())?,
            signature: range_in(der, &parsed.signature_value.data)?,
            signature_algorithm: X509SignatureAlgorithm::from_parsed(&parsed.signature_algorithm)
                .map_err(|_| parsed.signature_algorithm.algorithm.to_id_string()),
            public_key: PublicKey::from_parsed(&tbs.subject_pki)?,
            not_before: tbs.validity.not_before.to_datetime(),
            not_after: tbs.validity.not_after.to_datetime(),
            serial: range_in(der, tbs.raw_serial())?,
            issuer: range_in(der, tbs.issuer.as_raw())?,
            subject: range_in(der, tbs.subject.as_raw())?,
            extensions: Extensions::new(der, tbs.extensions())?,
            der: CertificateDer::from(der.to_vec()),
        })
    }
}

impl Extensions {
    fn new(der: &[u8], extensions: &[X509Extension<'_>]) -> Result<Self, X509Error> {
        let mut read = Self::default();
        for (at, extension) in extensions.iter().enumerate() {
            if extensions[..at].iter().any(|e| e.oid == extension.oid) {
                let what = format!("extension {} twice", extension.oid.to_id_string());
                return Err(malformed("certificate", what));
            }
            // The arc id-ce, 2.5.29.
            if let [0x55, 0x1d, id] = extension.oid.as_bytes() {
                read.take(der, *id, extension)?;
            }
        }
        Ok(read)
    }

    fn take(&mut self, der: &[u8], id: u8, extension: &X509Extension<'_>) -> Result<(), X509Error> {
        let value = extension.value;
        match id {
            14 => {
                let id: KeyIdentifier<'_> = read_value(value, "subject key identifier")?;
                self.subject_key_id = Some(range_in(der, id.0)?);
            }
            35 => {
                let id: AuthorityKeyIdentifier<'_> = read_value(value, "authority key identifier")?;
                self.authority_key_id = id.key_identifier.map(|id| range_in(der, id.0)).transpose()?;
            }
            15 => {
                let usage: x509_parser::extensions::KeyUsage = read_value(value, "key usage")?;
                self.key_usage = Some(KeyUsage {
                    bits: usage.flags,
                    critical: extension.critical,
                });
            }
            19 => {
                let basic: BasicConstraints = read_value(value, "basic constraints")?;
                self.basic_constraints = Some((basic.ca, basic.path_len_constraint));
            }
            17 => (self.uri_sans, self.dns_names) = subject_alternative_names(value)?,
            37 => {
                let usage: x509_parser::extensions::ExtendedKeyUsage<'_> =
                    read_value(value, "extended key usage")?;
                self.extended_key_usage = Some(ExtendedKeyUsage {
                    server_auth: usage.server_auth,
                    client_auth: usage.client_auth,
                    any: usage.any,
                    other: !usage.other.is_empty()
                        || usage.code_signing
                        || usage.email_protection
                        || usage.time_stamping
                        || usage.ocsp_signing,
                    critical: extension.critical,
                });
            }
            _ => {}
        }
        Ok(())
    }
}

/// URIs and DNS names of a subject alternative name. A name that cannot be read refuses the whole:
/// it could be the second URI.
pub(super) fn subject_alternative_names(value: &[u8]) -> Result<(Vec<String>, Vec<String>), X509Error> {
    let san: SubjectAlternativeName<'_> = read_value(value, "subject alternative name")?;
    let (mut uris, mut dns_names) = (Vec::new(), Vec::new());
    for name in &san.general_names {
        match name {
            GeneralName::URI(uri) => uris.push((*uri).to_owned()),
            GeneralName::DNSName(dns_name) => dns_names.push((*dns_name).to_owned()),
            GeneralName::Invalid(..) => {
                return Err(malformed("certificate", "subject alternative name"));
            }
            _ => {}
        }
    }
    Ok((uris, dns_names))
}

fn read_value<'a, T: FromDer<'a, x509_parser::error::X509Error>>(
    value: &'a [u8],
    what: &'static str,
) -> Result<T, X509Error> {
    match T::from_der(value) {
        Ok(([], read)) => Ok(read),
        _ => Err(malformed("certificate", what)),
    }
}

/// Where `part`, a slice of `whole`, lies in it.
pub(super) fn range_in(whole: &[u8], part: &[u8]) -> Result<Range<usize>, X509Error> {
    let start = (part.as_ptr() as usize).wrapping_sub(whole.as_ptr() as usize);
    match start.checked_add(part.len()) {
        Some(end) if whole.get(start..end) == Some(part) => Ok(start..end),
        _ => Err(malformed("DER", "a part that is not contiguous")),
    }
}

impl PartialEq for Certificate {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.der == other.0.der
    }
}

impl Eq for Certificate {}

impl std::hash::Hash for Certificate {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.der.hash(state);
    }
}

impl fmt::Debug for Certificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificate")
            .field("serial", &self.serial_hex())
            .field("subject", &self.subject_text())
            .field("uri_sans", &self.uri_sans())
            .field("not_after", &self.not_after())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
