//! The SPIFFE bundle document, a JWK Set (SPIFFE Trust Domain and Bundle §4): written strictly, read
//! leniently.

use std::collections::HashSet;
use std::fmt;

use data_encoding::BASE64;
use serde::Serialize;
use serde_json::ser::PrettyFormatter;
use serde_json::{Map, Value};

use super::{
    Bundle, BundleError, JwtAuthority, WitAuthority, X509Authority, drop_repeated_certificates, json,
};
use crate::key::PublicKey;
use crate::spiffe_id::TrustDomain;
use crate::x509::Certificate;

/// The largest bundle document that is read, in bytes.
pub const MAX_DOCUMENT_BYTES: usize = 4 * 1024 * 1024;

/// The largest bundle document of a foreign trust domain that is kept, in bytes. Workloads get all bundles at once,
/// and their gRPC clients accept messages of 4 MiB by default.
pub const MAX_FOREIGN_DOCUMENT_BYTES: usize = 512 * 1024;

/// An entry of `keys` that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// Its place in `keys`, from 0.
    pub index: usize,
    /// Why it was left out.
    pub reason: SkipReason,
    /// What it was for, if its `use` says so.
    pub key_use: Option<KeyUse>,
}

/// What a key of a document is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyUse {
    /// It signs X.509-SVIDs.
    X509Svid,
    /// It signs JWT-SVIDs.
    JwtSvid,
    /// It signs WIT-SVIDs.
    WitSvid,
}

impl KeyUse {
    /// As `use` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::X509Svid => X509_SVID,
            Self::JwtSvid => JWT_SVID,
            Self::WitSvid => WIT_SVID,
        }
    }

    fn of(entry: &Value) -> Option<Self> {
        let name = entry.get("use")?.as_str()?;
        [Self::X509Svid, Self::JwtSvid, Self::WitSvid]
            .into_iter()
            .find(|key_use| key_use.name() == name)
    }
}

/// Why an entry of `keys` is left out while the rest of the document is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SkipReason {
    /// It is not an object.
    NotAnObject,
    /// `kty` is absent or unknown.
    UnknownKeyType,
    /// `use` is absent or none that is supported; case counts.
    UnknownUse,
    /// `x5c` is absent or empty.
    NoCertificate,
    /// The first element of `x5c` is not a certificate in standard base64.
    MalformedCertificate,
    /// The key of the certificate is not the key of the entry (RFC 7517 §4.7).
    CertificateOfAnotherKey,
    /// `kid` is absent or empty.
    NoKeyId,
    /// An entry before it has the same `kid`.
    RepeatedKeyId,
    /// The key's members are malformed, or the key is of a kind that cannot be used.
    MalformedKey,
}

impl Bundle {
    /// Reads a SPIFFE bundle document. Entries that cannot be used are left out.
    ///
    /// # Errors
    /// The document is larger than [`MAX_DOCUMENT_BYTES`], is not JSON, has a member twice, has no
    /// array `keys`, or has a `spiffe_sequence` or `spiffe_refresh_hint` that is no integer.
    pub fn parse_spiffe_json(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        Self::parse_spiffe_json_with_skipped(trust_domain, text).map(|(bundle, _)| bundle)
    }

    /// Reads a SPIFFE bundle document and says which entries were left out, for a log.
    ///
    /// # Errors
    /// As [`Bundle::parse_spiffe_json`].
    pub fn parse_spiffe_json_with_skipped(
        trust_domain: TrustDomain,
        text: &[u8],
    ) -> Result<(Self, Vec<Skipped>), BundleError> {
        let value = json::parse(text, MAX_DOCUMENT_BYTES, DOCUMENT)?;
        Self::from_spiffe_value(trust_domain, &value)
    }

    /// Reads a standard JWK Set of JWT authorities, as the Workload API gives it: `use` may be absent.
    ///
    /// # Errors
    /// The text is larger than [`MAX_DOCUMENT_BYTES`], is not JSON, has a member twice, or has no
    /// array `keys`.
    pub fn parse_jwks(trust_domain: TrustDomain, text: &[u8]) -> Result<Self, BundleError> {
        let value = json::parse(text, MAX_DOCUMENT_BYTES, JWKS)?;
        let mut reader = Reader::new(trust_domain);
        for (index, entry) in keys_of(&value, JWKS)?.iter().enumerate() {
            let has_use = entry.get("use").is_some();
            reader.read(index, entry, if has_use { None } else { Some(JWT_SVID) });
        }
        reader.bundle.x509_authorities.clear();
        reader.bundle.wit_authorities.clear();
        Ok(reader.finish().0)
    }

    /// The SPIFFE bundle document, pretty-printed. A sequence number or hint of 0 is left out; taint
    /// and expiry are not part of the format.
    #[must_use]
    pub fn to_spiffe_json(&self) -> String {
        print(&self.to_document())
    }

    /// The JWT authorities as a standard JWK Set without `use`: the form of the Workload API, where
    /// general JWT libraries skip keys whose `use` they do not know.
    #[must_use]
    pub fn to_jwks(&self) -> String {
        print(&without_use(self.jwt_jwks()))
    }

    /// The WIT authorities as a standard JWK Set without `use`, likewise (Workload API §7.2.2). Each key has its own
    /// `kid`.
    #[must_use]
    pub fn to_wit_jwks(&self) -> String {
        print(&without_use(self.wit_jwks()))
    }

    pub(super) fn from_spiffe_value(
        trust_domain: TrustDomain,
        value: &Value,
    ) -> Result<(Self, Vec<Skipped>), BundleError> {
        let mut reader = Reader::new(trust_domain);
        reader.bundle.sequence_number = match value.get("spiffe_sequence") {
            None | Some(Value::Null) => 0,
            Some(number) => number.as_u64().ok_or(BundleError::Member {
                what: DOCUMENT,
                member: "spiffe_sequence",
                want: "an unsigned integer of 64 bits",
            })?,
        };
        reader.bundle.refresh_hint = match value.get("spiffe_refresh_hint") {
            None | Some(Value::Null) => 0,
            Some(number) => number
                .as_i64()
                .map(|hint| hint.max(0))
                .ok_or(BundleError::Member {
                    what: DOCUMENT,
                    member: "spiffe_refresh_hint",
                    want: "an integer number of seconds",
                })?,
        };
        for (index, entry) in keys_of(value, DOCUMENT)?.iter().enumerate() {
            reader.read(index, entry, None);
        }
        Ok(reader.finish())
    }

    pub(super) fn to_document(&self) -> Document {
        let x509 = self.x509_authorities.iter().map(|authority| {
            let certificate = &authority.certificate;
            let x5c = vec![BASE64.encode(certificate.der())];
            Jwk {
                key_use: Some(X509_SVID),
                x5c: Some(x5c),
                ..Jwk::of(certificate.public_key())
            }
        });
        Document {
            keys: x509.chain(self.jwt_jwks()).chain(self.wit_jwks()).collect(),
            spiffe_sequence: self.sequence_number,
            spiffe_refresh_hint: self.refresh_hint.max(0),
        }
    }

    fn jwt_jwks(&self) -> impl Iterator<Item = Jwk> {
        let authorities = self.jwt_authorities.iter();
        authorities.map(|authority| Jwk::of_authority(authority, JWT_SVID))
    }

    fn wit_jwks(&self) -> impl Iterator<Item = Jwk> {
        let authorities = self.wit_authorities.iter();
        authorities.map(|WitAuthority(authority)| Jwk::of_authority(authority, WIT_SVID))
    }
}

fn without_use(keys: impl Iterator<Item = Jwk>) -> Document {
    Document {
        keys: keys.map(|jwk| Jwk { key_use: None, ..jwk }).collect(),
        spiffe_sequence: 0,
        spiffe_refresh_hint: 0,
    }
}

const DOCUMENT: &str = "bundle document";
const JWKS: &str = "JWK Set";
const X509_SVID: &str = "x509-svid";
const JWT_SVID: &str = "jwt-svid";
const WIT_SVID: &str = "wit-svid";

/// The document as it is written: the members and their order are fixed.
#[derive(Serialize)]
pub(super) struct Document {
    pub(super) keys: Vec<Jwk>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) spiffe_sequence: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) spiffe_refresh_hint: i64,
}

/// A JWK as it is written, with the members that the standards define and no others.
#[derive(Default, Serialize)]
pub(super) struct Jwk {
    #[serde(rename = "use", skip_serializing_if = "Option::is_none")]
    key_use: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kty: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    crv: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    y: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    n: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    x5c: Option<Vec<String>>,
}

impl Jwk {
    fn of_authority(authority: &JwtAuthority, key_use: &'static str) -> Self {
        Self {
            key_use: Some(key_use),
            kid: Some(authority.key_id.clone()),
            ..Self::of(&authority.public_key)
        }
    }

    fn of(key: &PublicKey) -> Self {
        let mut members = key.to_jwk();
        let mut take = |name: &str| members.remove(name);
        Self {
            kty: take("kty"),
            crv: take("crv"),
            x: take("x"),
            y: take("y"),
            n: take("n"),
            e: take("e"),
            ..Self::default()
        }
    }
}

fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

pub(super) fn print(document: &impl Serialize) -> String {
    let mut text = Vec::new();
    let mut serializer =
        serde_json::Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"    "));
    document
        .serialize(&mut serializer)
        .expect("strings and integers always serialize into memory");
    String::from_utf8(text).expect("the serializer writes UTF-8")
}

fn keys_of<'a>(value: &'a Value, what: &'static str) -> Result<&'a [Value], BundleError> {
    match value.get("keys") {
        Some(Value::Array(keys)) => Ok(keys),
        _ => Err(BundleError::Member {
            what,
            member: "keys",
            want: "an array",
        }),
    }
}

/// Collects what can be used.
struct Reader {
    bundle: Bundle,
    key_ids: HashSet<String>,
    skipped: Vec<Skipped>,
}

impl Reader {
    fn new(trust_domain: TrustDomain) -> Self {
        Self {
            bundle: Bundle::new(trust_domain),
            key_ids: HashSet::new(),
            skipped: Vec::new(),
        }
    }

    fn read(&mut self, index: usize, entry: &Value, default_use: Option<&str>) {
        if let Err(reason) = self.read_entry(entry, default_use) {
            let key_use = KeyUse::of(entry);
            self.skipped.push(Skipped {
                index,
                reason,
                key_use,
            });
        }
    }

    fn read_entry(&mut self, entry: &Value, default_use: Option<&str>) -> Result<(), SkipReason> {
        let jwk = entry.as_object().ok_or(SkipReason::NotAnObject)?;
        let text = |member: &str| jwk.get(member).and_then(Value::as_str);
        if !matches!(text("kty"), Some("EC" | "RSA" | "OKP")) {
            return Err(SkipReason::UnknownKeyType);
        }
        match text("use").or(default_use) {
            Some(X509_SVID) => {
                let authority = X509Authority::new(read_certificate(jwk)?);
                self.bundle.x509_authorities.push(authority);
            }
            Some(JWT_SVID) => {
                let authority = self.read_token_authority(jwk)?;
                self.bundle.jwt_authorities.push(authority);
            }
            Some(WIT_SVID) => {
                let authority = self.read_token_authority(jwk)?;
                self.bundle.wit_authorities.push(WitAuthority(authority));
            }
            _ => return Err(SkipReason::UnknownUse),
        }
        Ok(())
    }

    /// A `kid` counts once in the whole document, whichever the use (WIT-SVID §6.1).
    fn read_token_authority(&mut self, jwk: &Map<String, Value>) -> Result<JwtAuthority, SkipReason> {
        let authority = read_jwt_authority(jwk)?;
        if !self.key_ids.insert(authority.key_id.clone()) {
            return Err(SkipReason::RepeatedKeyId);
        }
        Ok(authority)
    }

    fn finish(self) -> (Bundle, Vec<Skipped>) {
        let Self {
            mut bundle, skipped, ..
        } = self;
        drop_repeated_certificates(&mut bundle.x509_authorities);
        (bundle, skipped)
    }
}

/// The first certificate of `x5c`; more are ignored, a `kid` too (X509-SVID §6.2).
fn read_certificate(jwk: &Map<String, Value>) -> Result<Certificate, SkipReason> {
    let first = jwk
        .get("x5c")
        .and_then(Value::as_array)
        .and_then(|x5c| x5c.first());
    let first = first.ok_or(SkipReason::NoCertificate)?;
    let text = first.as_str().ok_or(SkipReason::MalformedCertificate)?;
    let der = BASE64
        .decode(text.as_bytes())
        .map_err(|_| SkipReason::MalformedCertificate)?;
    let certificate = Certificate::parse(&der).map_err(|_| SkipReason::MalformedCertificate)?;
    // Some publishers leave the key's own members out; the certificate is what counts.
    match PublicKey::from_jwk(jwk) {
        Ok(key) if key != *certificate.public_key() => Err(SkipReason::CertificateOfAnotherKey),
        _ => Ok(certificate),
    }
}

fn read_jwt_authority(jwk: &Map<String, Value>) -> Result<JwtAuthority, SkipReason> {
    let key_id = match jwk.get("kid").and_then(Value::as_str) {
        None | Some("") => return Err(SkipReason::NoKeyId),
        Some(key_id) => key_id.to_owned(),
    };
    let public_key = PublicKey::from_jwk(jwk).map_err(|_| SkipReason::MalformedKey)?;
    if public_key.jws_algorithms().is_empty() {
        return Err(SkipReason::MalformedKey);
    }
    Ok(JwtAuthority {
        key_id,
        public_key,
        expires_at: 0,
        tainted: false,
    })
}

impl fmt::Display for SkipReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnObject => "entry is not an object",
            Self::UnknownKeyType => "kty is absent or unknown",
            Self::UnknownUse => "use is absent or unknown",
            Self::NoCertificate => "x5c is absent or empty",
            Self::MalformedCertificate => "x5c does not begin with a certificate in standard base64",
            Self::CertificateOfAnotherKey => "x5c is the certificate of another key",
            Self::NoKeyId => "kid is absent or empty",
            Self::RepeatedKeyId => "kid is taken by an entry before it",
            Self::MalformedKey => "key is malformed or cannot be used",
        })
    }
}

#[cfg(test)]
mod tests;
