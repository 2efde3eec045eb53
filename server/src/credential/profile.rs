//! The X.509-SVID and CA certificate profiles (X509-SVID §2-4, as SPIRE fills them in).

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use finial_identity::entry::check_dns_name;
use finial_identity::key::{KeyError, PublicKey, PublicKeyKind};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use ring::digest::{SHA256, digest};
use thiserror::Error;
use time::OffsetDateTime;

use super::der;
use super::issuer::{SignedBy, X509Issuer};
use super::name::DistinguishedName;
use super::serial::Serial;

/// How long before the moment of signing a certificate becomes valid, for peers whose clocks run late.
pub const BACKDATE: time::Duration = time::Duration::seconds(10);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum X509Kind {
    Workload,
    Agent,
    Server,
    /// A root that signs itself.
    SelfSignedCa,
    /// An intermediate for a server nested below this one.
    DownstreamCa,
}

impl X509Kind {
    /// Whether certificates of this kind sign others.
    pub fn is_ca(self) -> bool {
        matches!(self, Self::SelfSignedCa | Self::DownstreamCa)
    }
}

/// Why no certificate or token may be made from these parts.
#[derive(Debug, Error)]
pub enum ProfileError {
    #[error("spiffe id does not fit the certificate: {kind:?} {id}")]
    SpiffeId { kind: X509Kind, id: String },
    #[error("spiffe id does not fit the token: {0}")]
    Subject(String),
    #[error("audience is empty")]
    Audience,
    #[error("key does not fit the token: {0}")]
    Confirmation(#[source] KeyError),
    #[error("dns name is not valid: {0:?}")]
    DnsName(String),
    #[error("validity is empty: the signing authority expires at {0}")]
    Expired(OffsetDateTime),
    #[error("validity cannot be written: {0:?} from now")]
    Lifetime(Duration),
    #[error("signing key has no signature algorithm for certificates: {0:?}")]
    Algorithm(PublicKeyKind),
    #[error("certificate and key of the authority do not belong together: {0}")]
    Mismatch(String),
}

/// When a certificate is valid: whole seconds, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    pub not_before: OffsetDateTime,
    pub not_after: OffsetDateTime,
}

impl Validity {
    /// From ten seconds before `now` to `ttl` after it, but not past `cap`, the end of the authority that signs.
    pub fn starting(
        now: OffsetDateTime,
        ttl: Duration,
        cap: Option<OffsetDateTime>,
    ) -> Result<Self, ProfileError> {
        let now = now.replace_nanosecond(0).unwrap_or(now);
        let wanted = time::Duration::try_from(ttl)
            .ok()
            .and_then(|ttl| now.checked_add(ttl));
        let not_after = match (wanted, cap) {
            (Some(wanted), Some(cap)) => wanted.min(cap),
            (Some(wanted), None) => wanted,
            (None, Some(cap)) => cap,
            (None, None) => return Err(ProfileError::Lifetime(ttl)),
        };
        let not_after = not_after.replace_nanosecond(0).unwrap_or(not_after);
        if not_after <= now {
            return Err(ProfileError::Expired(not_after));
        }
        let not_before = now.checked_sub(BACKDATE).ok_or(ProfileError::Lifetime(ttl))?;
        Ok(Self {
            not_before,
            not_after,
        })
    }
}

/// A subject with its encoding.
#[derive(Debug)]
pub struct Subject {
    pub(super) name: DistinguishedName,
    pub(super) der: Vec<u8>,
}

impl Subject {
    /// Encodes the name once.
    pub fn new(name: DistinguishedName) -> Arc<Self> {
        let der = name.to_der();
        Arc::new(Self { name, der })
    }

    /// `C=US, O=SPIRE`: what SVIDs carry unless something else is asked for.
    pub fn of_svids() -> Arc<Self> {
        static SUBJECT: LazyLock<Arc<Subject>> =
            LazyLock::new(|| Subject::new(DistinguishedName::us("SPIRE")));
        Arc::clone(&SUBJECT)
    }
}

/// What every profile needs besides its kind.
#[derive(Clone, Debug)]
pub struct Basis<'a> {
    pub trust_domain: &'a TrustDomain,
    /// The key to certify. Nothing else is taken from a request, unless an administrator mints an SVID with it.
    pub public_key: &'a PublicKey,
    pub serial: Serial,
    pub validity: Validity,
}

/// A certificate as it has to come out.
#[derive(Debug)]
pub struct X509Profile {
    pub(super) kind: X509Kind,
    pub(super) spiffe_id: SpiffeId,
    pub(super) subject: Arc<Subject>,
    pub(super) dns_names: Vec<String>,
    pub(super) public_key: PublicKey,
    pub(super) serial: Serial,
    pub(super) validity: Validity,
}

impl X509Profile {
    /// A workload's SVID. The first DNS name becomes the common name, also of a given `subject`.
    /// `unique_identifier` adds the attribute of SPIRE's `uniqueid` composer.
    pub fn workload(
        spiffe_id: &SpiffeId,
        dns_names: &[String],
        subject: Option<DistinguishedName>,
        unique_identifier: bool,
        basis: Basis<'_>,
    ) -> Result<Self, ProfileError> {
        let subject = if subject.is_none() && dns_names.is_empty() && !unique_identifier {
            Subject::of_svids()
        } else {
            let mut name = subject
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| DistinguishedName::us("SPIRE"));
            if let Some(first) = dns_names.first() {
                name.common_name = first.clone();
            }
            if unique_identifier {
                name.unique_identifier = unique_identifier_of(spiffe_id);
            }
            Subject::new(name)
        };
        Self::checked(
            X509Kind::Workload,
            spiffe_id.clone(),
            subject,
            dns_names.to_vec(),
            basis,
        )
    }

    /// An agent's SVID.
    pub fn agent(spiffe_id: &SpiffeId, basis: Basis<'_>) -> Result<Self, ProfileError> {
        Self::checked(
            X509Kind::Agent,
            spiffe_id.clone(),
            Subject::of_svids(),
            Vec::new(),
            basis,
        )
    }

    /// This server's own SVID.
    pub fn server(basis: Basis<'_>) -> Result<Self, ProfileError> {
        let id = basis.trust_domain.server_id();
        Self::checked(X509Kind::Server, id, Subject::of_svids(), Vec::new(), basis)
    }

    /// A root CA. Without a configured serial number attribute the certificate's own serial is put there, so that no two
    /// roots share a name.
    pub fn self_signed_ca(subject: DistinguishedName, basis: Basis<'_>) -> Result<Self, ProfileError> {
        let mut name = subject;
        if name.serial_number.is_empty() {
            name.serial_number = basis.serial.to_decimal();
        }
        let id = basis.trust_domain.id();
        Self::checked(X509Kind::SelfSignedCa, id, Subject::new(name), Vec::new(), basis)
    }

    /// An intermediate CA below `issuer`, named after it and its depth.
    pub fn downstream_ca(issuer: &X509Issuer, basis: Basis<'_>) -> Result<Self, ProfileError> {
        let mut name = DistinguishedName::from_der(issuer.certificate().subject_der()).ok_or_else(|| {
            ProfileError::Mismatch("subject of the signing authority cannot be read".to_owned())
        })?;
        let depth = issuer.chain().len().max(1);
        name.organizational_unit = vec![format!("DOWNSTREAM-{depth}")];
        let id = basis.trust_domain.id();
        Self::checked(X509Kind::DownstreamCa, id, Subject::new(name), Vec::new(), basis)
    }

    /// The SPIFFE ID that the certificate names.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// What the certificate is for.
    pub fn kind(&self) -> X509Kind {
        self.kind
    }

    /// The certificate's serial number.
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// When the certificate is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// The part of the certificate that is signed (RFC 5280 §4.1.2).
    pub fn tbs_der(&self, signed_by: &SignedBy<'_>) -> Result<Vec<u8>, ProfileError> {
        let unwritable =
            || ProfileError::Lifetime((self.validity.not_after - self.validity.not_before).unsigned_abs());
        let not_before = der::time(self.validity.not_before).ok_or_else(unwritable)?;
        let not_after = der::time(self.validity.not_after).ok_or_else(unwritable)?;
        let validity = der::element(der::SEQUENCE, &[&not_before, &not_after]);
        let extensions = der::element(
            der::SEQUENCE,
            &[&self.extensions(signed_by.authority_key_extension)],
        );
        let extensions = der::element(der::CONTEXT_3, &[&extensions]);
        let tbs = der::element(
            der::SEQUENCE,
            &[
                VERSION_3,
                &self.serial.to_der(),
                signed_by.algorithm,
                signed_by.issuer_der(self),
                &validity,
                &self.subject.der,
                self.public_key.spki_der(),
                &extensions,
            ],
        );
        Ok(tbs)
    }

    fn extensions(&self, authority_key_extension: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(320);
        if self.kind.is_ca() {
            out.extend_from_slice(CA_KEY_USAGE);
            out.extend_from_slice(CA_BASIC_CONSTRAINTS);
        } else {
            out.extend_from_slice(SVID_KEY_USAGE);
            out.extend_from_slice(SVID_EXTENDED_KEY_USAGE);
            out.extend_from_slice(SVID_BASIC_CONSTRAINTS);
        }
        out.extend_from_slice(SUBJECT_KEY_ID);
        out.extend_from_slice(&self.public_key.subject_key_id());
        out.extend_from_slice(authority_key_extension);
        let mut names = Vec::with_capacity(128);
        for name in &self.dns_names {
            der::push(&mut names, der::DNS_NAME, &[name.as_bytes()]);
        }
        der::push(&mut names, der::URI, &[self.spiffe_id.as_str().as_bytes()]);
        let names = der::element(der::SEQUENCE, &[&names]);
        out.extend(der::extension(
            SUBJECT_ALTERNATIVE_NAME,
            self.alternative_name_is_critical(),
            &names,
        ));
        out
    }

    /// RFC 5280 §4.1.2.6: critical if, and only if, the subject is empty.
    pub(super) fn alternative_name_is_critical(&self) -> bool {
        self.subject.name.is_empty()
    }

    fn checked(
        kind: X509Kind,
        spiffe_id: SpiffeId,
        subject: Arc<Subject>,
        dns_names: Vec<String>,
        basis: Basis<'_>,
    ) -> Result<Self, ProfileError> {
        let fits = spiffe_id.is_member_of(basis.trust_domain)
            && match kind {
                X509Kind::Workload => spiffe_id.is_workload(),
                X509Kind::Agent => spiffe_id.is_agent(),
                X509Kind::Server => spiffe_id == basis.trust_domain.server_id(),
                X509Kind::SelfSignedCa | X509Kind::DownstreamCa => !spiffe_id.has_path(),
            };
        if !fits {
            return Err(ProfileError::SpiffeId {
                kind,
                id: spiffe_id.to_string(),
            });
        }
        if let Some(bad) = dns_names.iter().find(|name| check_dns_name(name).is_err()) {
            return Err(ProfileError::DnsName(bad.clone()));
        }
        Ok(Self {
            kind,
            spiffe_id,
            subject,
            dns_names,
            public_key: basis.public_key.clone(),
            serial: basis.serial,
            validity: basis.validity,
        })
    }
}

/// The first 32 hexadecimal digits of the SHA-256 of the SPIFFE ID, as SPIRE's `uniqueid` composer has them.
fn unique_identifier_of(spiffe_id: &SpiffeId) -> String {
    let hash = digest(&SHA256, spiffe_id.as_str().as_bytes());
    data_encoding::HEXLOWER.encode(&hash.as_ref()[..16])
}

/// `[0] { INTEGER 2 }`.
const VERSION_3: &[u8] = &[der::CONTEXT_0, 3, der::INTEGER, 1, 2];

/// Content of the object identifier 2.5.29.17.
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 17];

/// Critical; digitalSignature, keyEncipherment, keyAgreement.
const SVID_KEY_USAGE: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x03\xa8";
/// serverAuth, clientAuth.
const SVID_EXTENDED_KEY_USAGE: &[u8] = b"\x30\x1d\x06\x03\x55\x1d\x25\x04\x16\x30\x14\
\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x01\x06\x08\x2b\x06\x01\x05\x05\x07\x03\x02";
/// Critical; no CA.
const SVID_BASIC_CONSTRAINTS: &[u8] = b"\x30\x0c\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x02\x30\x00";
/// Ends where the twenty bytes of the identifier begin.
const SUBJECT_KEY_ID: &[u8] = b"\x30\x1d\x06\x03\x55\x1d\x0e\x04\x16\x04\x14";
/// Critical; keyCertSign, cRLSign.
const CA_KEY_USAGE: &[u8] = b"\x30\x0e\x06\x03\x55\x1d\x0f\x01\x01\xff\x04\x04\x03\x02\x01\x06";
/// Critical; a CA, any path length.
const CA_BASIC_CONSTRAINTS: &[u8] = b"\x30\x0f\x06\x03\x55\x1d\x13\x01\x01\xff\x04\x05\x30\x03\x01\x01\xff";
