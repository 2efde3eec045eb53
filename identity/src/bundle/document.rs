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

/// The largest bundle document of a foreign trust domain that is kept, in bytes. Workloads are told all bundles at once,
/// and their gRPC clients take messages of 4 MiB unless they are told otherwise.
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
mod tests {
    use serde_json::json;

    use super::super::testing::{bundle, ca, jwt, td, wit};
    use super::*;

    fn read(value: &Value) -> (Bundle, Vec<Skipped>) {
        let text = value.to_string();
        Bundle::parse_spiffe_json_with_skipped(td("example.org"), text.as_bytes()).unwrap()
    }

    fn read_text(text: &str) -> Result<Bundle, BundleError> {
        Bundle::parse_spiffe_json(td("example.org"), text.as_bytes())
    }

    fn written(bundle: &Bundle) -> Value {
        serde_json::from_str(&bundle.to_spiffe_json()).unwrap()
    }

    /// The entries of a document for one X.509 and one JWT authority (`kid` `a`).
    fn entries() -> (Value, Value) {
        let mut one = Bundle::new(td("example.org"));
        one.append(vec![ca()], vec![jwt("a")]);
        let keys = written(&one)["keys"].take();
        (keys[0].clone(), keys[1].clone())
    }

    fn with(entry: &Value, member: &str, value: Value) -> Value {
        let mut entry = entry.clone();
        entry[member] = value;
        entry
    }

    fn without(entry: &Value, member: &str) -> Value {
        let mut entry = entry.clone();
        entry.as_object_mut().unwrap().remove(member).unwrap();
        entry
    }

    fn counts(bundle: &Bundle) -> (usize, usize) {
        (bundle.x509_authorities.len(), bundle.jwt_authorities.len())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let bundle = Bundle {
            sequence_number: 7,
            refresh_hint: 300,
            ..bundle()
        };
        assert_eq!(read(&written(&bundle)), (bundle, vec![]));
    }

    /// Covers BND-03, BND-10.
    #[test]
    fn bnd03_is_pretty_printed_with_members_in_order() {
        let bundle = Bundle {
            sequence_number: 3,
            refresh_hint: 60,
            ..Bundle::new(td("example.org"))
        };
        let text = "{\n    \"keys\": [],\n    \"spiffe_sequence\": 3,\n    \"spiffe_refresh_hint\": 60\n}";
        assert_eq!(bundle.to_spiffe_json(), text);
    }

    /// Covers BND-12.
    #[test]
    fn bnd05_bnd09_zero_sequence_and_hint_are_left_out() {
        let text = Bundle {
            refresh_hint: -1,
            ..Bundle::new(td("example.org"))
        }
        .to_spiffe_json();
        assert_eq!(text, "{\n    \"keys\": []\n}");
    }

    /// Covers X509-27, X509-28, X509-29, X509-30, X509-31.
    #[test]
    fn x509_27_to_31_each_ca_is_one_jwk_with_one_certificate_and_no_kid() {
        let bundle = bundle();
        let keys = written(&bundle)["keys"].take();
        assert_eq!(keys.as_array().unwrap().len(), 4);
        for (index, authority) in bundle.x509_authorities.iter().enumerate() {
            assert_eq!(keys[index]["use"], "x509-svid");
            assert_eq!(keys[index].get("kid"), None);
            assert_eq!(
                keys[index]["x5c"],
                json!([BASE64.encode(authority.certificate.der())])
            );
        }
    }

    /// Covers JWT-22, JWT-23, JWT-24.
    #[test]
    fn jwt_22_to_24_each_jwt_key_is_one_jwk_with_use_and_kid() {
        let keys = written(&bundle())["keys"].take();
        for (index, kid) in [(2, "a"), (3, "b")] {
            assert_eq!(
                (&keys[index]["use"], &keys[index]["kid"]),
                (&json!("jwt-svid"), &json!(kid))
            );
            assert_eq!(keys[index].get("x5c"), None);
        }
    }

    /// Covers BND-16, BND-17, BND-19.
    #[test]
    fn bnd16_bnd17_bnd19_entries_have_kty_and_use_and_no_further_members() {
        for entry in written(&bundle())["keys"].as_array().unwrap() {
            assert_eq!((&entry["kty"], &entry["crv"]), (&json!("EC"), &json!("P-256")));
            let names: Vec<&str> = entry.as_object().unwrap().keys().map(String::as_str).collect();
            let expected: &[&str] = match entry["use"].as_str() {
                Some("x509-svid") => &["crv", "kty", "use", "x", "x5c", "y"],
                _ => &["crv", "kid", "kty", "use", "x", "y"],
            };
            assert_eq!(names, expected);
        }
        let text = bundle().to_spiffe_json();
        let (use_at, kty_at) = (text.find("\"use\"").unwrap(), text.find("\"kty\"").unwrap());
        assert!(use_at < kty_at);
    }

    /// Covers WL-43, WL-44.
    #[test]
    fn wl43_wl44_i03_the_workload_api_gets_jwt_keys_only_and_without_use() {
        let bundle = Bundle {
            sequence_number: 7,
            refresh_hint: 300,
            ..bundle()
        };
        let jwks: Value = serde_json::from_str(&bundle.to_jwks()).unwrap();
        assert_eq!(jwks.as_object().unwrap().len(), 1);
        let keys = jwks["keys"].as_array().unwrap();
        assert_eq!(
            keys.iter().map(|key| key["kid"].as_str()).collect::<Vec<_>>(),
            [Some("a"), Some("b")]
        );
        assert!(
            keys.iter()
                .all(|key| key.get("use").is_none() && key.get("x5c").is_none())
        );
    }

    #[test]
    fn i03_a_standard_jwk_set_is_read_without_use() {
        let bundle = bundle();
        let read = Bundle::parse_jwks(td("example.org"), bundle.to_jwks().as_bytes()).unwrap();
        assert_eq!(read.jwt_authorities, bundle.jwt_authorities);
        let (x509, jwt) = entries();
        let keys = json!({"keys": [x509, jwt, with(&jwt, "use", json!("wit-svid"))]}).to_string();
        assert_eq!(
            counts(&Bundle::parse_jwks(td("example.org"), keys.as_bytes()).unwrap()),
            (0, 1)
        );
    }

    /// Covers BND-14.
    #[test]
    fn e51_bnd14_an_empty_key_set_is_valid() {
        assert_eq!(
            read_text(r#"{"keys":[]}"#).unwrap(),
            Bundle::new(td("example.org"))
        );
    }

    #[test]
    fn e52_bnd12_a_document_without_a_key_array_is_refused() {
        for text in [
            "{}",
            r#"{"keys":null}"#,
            r#"{"keys":{}}"#,
            "[]",
            "null",
            "\"keys\"",
            r#"{"Keys":[]}"#,
        ] {
            assert!(
                matches!(read_text(text), Err(BundleError::Member { member: "keys", .. })),
                "{text}"
            );
        }
    }

    /// Covers BND-13, BND-18, BND-20, BND-21.
    #[test]
    fn e53_bnd13_bnd18_bnd20_bnd21_unknown_entries_are_skipped_and_the_rest_loads() {
        let (x509, jwt) = entries();
        let keys = json!([
            x509,
            with(&x509, "kty", json!("XYZ")),
            without(&x509, "kty"),
            without(&x509, "use"),
            with(&x509, "use", json!("X509-SVID")),
            with(&jwt, "use", json!("sig")),
            with(&jwt, "use", json!("WIT-SVID")),
            with(&jwt, "use", json!(1)),
            "no object",
            jwt,
        ]);
        let (bundle, skipped) = read(&json!({ "keys": keys }));
        assert_eq!(counts(&bundle), (1, 1));
        let reasons: Vec<SkipReason> = skipped.iter().map(|entry| entry.reason).collect();
        use SkipReason::{NotAnObject, UnknownKeyType, UnknownUse};
        assert_eq!(reasons[..2], [UnknownKeyType; 2]);
        assert_eq!(reasons[2..7], [UnknownUse; 5]);
        assert_eq!(
            skipped[7],
            Skipped {
                index: 8,
                reason: NotAnObject,
                key_use: None,
            }
        );
        use KeyUse::{JwtSvid, X509Svid};
        let uses: Vec<_> = skipped.iter().filter_map(|entry| entry.key_use).collect();
        assert_eq!(uses, [X509Svid; 2]);
        let (_, skipped) = read(&json!({"keys": [without(&jwt, "kid")]}));
        assert_eq!(skipped[0].key_use, Some(JwtSvid));
    }

    /// Covers X509-33, X509-34.
    #[test]
    fn e54_x509_33_x509_34_only_the_first_certificate_of_an_entry_counts() {
        let (a, _) = entries();
        let (b, _) = entries();
        let both = json!([a["x5c"][0], b["x5c"][0]]);
        let keys = json!([
            without(&b, "x5c"),
            with(&b, "x5c", json!([])),
            with(&a, "x5c", both)
        ]);
        let (bundle, skipped) = read(&json!({ "keys": keys }));
        assert_eq!(
            skipped.iter().map(|s| s.reason).collect::<Vec<_>>(),
            [SkipReason::NoCertificate; 2]
        );
        assert_eq!(written(&bundle)["keys"], json!([a]));
    }

    #[test]
    fn e55_x509_29_jwt_24_a_ca_with_kid_is_used_and_a_jwt_key_without_is_skipped() {
        let (x509, jwt) = entries();
        let keys = json!([
            with(&x509, "kid", json!("k")),
            without(&jwt, "kid"),
            with(&jwt, "kid", json!(""))
        ]);
        let (bundle, skipped) = read(&json!({ "keys": keys }));
        assert_eq!(counts(&bundle), (1, 0));
        assert_eq!(
            skipped.iter().map(|s| s.reason).collect::<Vec<_>>(),
            [SkipReason::NoKeyId; 2]
        );
    }

    #[test]
    fn e56_wit36_no_kid_is_written_twice() {
        let (_, a) = entries();
        let (_, other) = entries();
        let keys = json!([a, other, with(&other, "use", json!("wit-svid"))]);
        let (bundle, skipped) = read(&json!({ "keys": keys }));
        for (place, index) in [1, 2].into_iter().enumerate() {
            assert_eq!(skipped[place].index, index);
            assert_eq!(skipped[place].reason, SkipReason::RepeatedKeyId);
        }
        assert_eq!(written(&bundle)["keys"], json!([a]));
        let mut one = Bundle::new(td("example.org"));
        one.append(vec![], vec![jwt("a")]);
        assert!(!one.append_wit(vec![wit("a")]) && one.append_wit(vec![wit("b")]));
        assert!(!one.append(vec![], vec![jwt("b")]));
        let kids: Vec<_> = written(&one)["keys"]
            .as_array()
            .unwrap()
            .iter()
            .map(|k| k["kid"].clone())
            .collect();
        assert_eq!(kids, ["a", "b"]);
    }

    /// Covers WIT-34, WIT-36, WIT-37.
    #[test]
    fn wit_34_to_37_each_wit_key_is_one_jwk_with_its_use_and_verifies_nothing_else() {
        let mut one = bundle();
        one.append_wit(vec![wit("w")]);
        let keys = written(&one)["keys"].take();
        assert_eq!(keys[4]["use"], "wit-svid");
        assert_eq!(keys[4]["kid"], "w");
        assert_eq!(keys[4].as_object().unwrap().len(), 6);
        assert_eq!(read(&json!({ "keys": keys })), (one.clone(), vec![]));
        let jwks: Value = serde_json::from_str(&one.to_wit_jwks()).unwrap();
        assert_eq!(jwks["keys"].as_array().unwrap().len(), 1);
        assert_eq!(jwks["keys"][0]["kid"], "w");
        assert_eq!(jwks["keys"][0].get("use"), None);
        assert!(!one.to_jwks().contains("\"w\""));
    }

    /// Covers BND-08.
    #[test]
    fn e57_bnd08_the_sequence_number_is_exact() {
        for number in [9_007_199_254_740_993_u64, u64::MAX] {
            let text = format!(r#"{{"keys":[],"spiffe_sequence":{number}}}"#);
            let bundle = read_text(&text).unwrap();
            assert_eq!(bundle.sequence_number, number);
            assert!(bundle.to_spiffe_json().contains(&format!(": {number}\n")));
        }
    }

    #[test]
    fn bnd06_bnd10_a_sequence_or_hint_that_is_no_integer_is_refused() {
        for member in [
            r#""spiffe_sequence":1.5"#,
            r#""spiffe_sequence":-1"#,
            r#""spiffe_sequence":18446744073709551616"#,
            r#""spiffe_sequence":"1""#,
            r#""spiffe_refresh_hint":1.5"#,
            r#""spiffe_refresh_hint":"300""#,
        ] {
            let text = format!(r#"{{"keys":[],{member}}}"#);
            assert!(
                matches!(read_text(&text), Err(BundleError::Member { .. })),
                "{member}"
            );
        }
    }

    /// Covers BND-04.
    #[test]
    fn e59_bnd04_hints_are_clamped_and_unknown_members_tolerated() {
        for (member, hint) in [
            (r#""x":{"y":[1]}"#, 0),
            (r#""spiffe_refresh_hint":0"#, 0),
            (r#""spiffe_refresh_hint":-5"#, 0),
            (r#""spiffe_refresh_hint":null"#, 0),
            (r#""refresh_hint":7"#, 0),
            (r#""spiffe_refresh_hint":60"#, 60),
        ] {
            let text = format!(r#"{{"keys":[],{member}}}"#);
            assert_eq!(read_text(&text).unwrap().refresh_hint, hint, "{member}");
        }
    }

    #[test]
    fn x509_30_certificates_are_in_standard_base64() {
        let (entry, _) = entries();
        let standard = entry["x5c"][0].as_str().unwrap().to_owned();
        for odd in [
            json!(format!("-{}", &standard[1..])),
            json!(format!("{standard}\n")),
            json!("MII="),
            json!(7),
            json!(super::super::testing::ca().certificate.to_pem()),
        ] {
            let (bundle, skipped) = read(&json!({"keys": [with(&entry, "x5c", json!([odd]))]}));
            assert_eq!(counts(&bundle), (0, 0));
            assert_eq!(skipped[0].reason, SkipReason::MalformedCertificate);
        }
    }

    #[test]
    fn a_certificate_of_another_key_is_skipped_but_the_key_may_be_left_out() {
        let (a, _) = entries();
        let (b, _) = entries();
        let (_, skipped) = read(&json!({"keys": [with(&a, "x5c", b["x5c"].clone())]}));
        assert_eq!(skipped[0].reason, SkipReason::CertificateOfAnotherKey);
        let (bundle, _) = read(&json!({"keys": [without(&without(&a, "x"), "y")]}));
        assert_eq!(counts(&bundle), (1, 0));
    }

    /// Covers X509-35, JWT-26.
    #[test]
    fn x509_35_jwt_26_the_authorities_are_the_union_of_their_entries() {
        let (x509, jwt) = entries();
        let (other, _) = entries();
        let (bundle, _) = read(&json!({"keys": [x509, other, x509]}));
        assert_eq!(counts(&bundle), (2, 0));
        assert_eq!(counts(&read(&json!({"keys": [jwt]})).0), (0, 1));
    }

    /// Covers JWT-25.
    #[test]
    fn jwt25_a_key_of_another_use_never_becomes_a_jwt_authority() {
        let (x509, jwt) = entries();
        for entry in [
            with(&x509, "kid", json!("a")),
            with(&jwt, "use", json!("wit-svid")),
        ] {
            assert!(read(&json!({"keys": [entry]})).0.jwt_authorities.is_empty());
        }
        let (bundle, _) = read(&json!({"keys": [with(&jwt, "use", json!("wit-svid"))]}));
        assert_eq!(bundle.wit_authorities.len(), 1);
    }

    #[test]
    fn a_malformed_jwt_key_is_skipped() {
        let (_, jwt) = entries();
        let keys = json!([
            with(&jwt, "x", json!("AAAA")),
            without(&jwt, "crv"),
            with(&jwt, "kty", json!("RSA"))
        ]);
        let (bundle, skipped) = read(&json!({ "keys": keys }));
        assert_eq!(counts(&bundle), (0, 0));
        assert_eq!(
            skipped.iter().map(|s| s.reason).collect::<Vec<_>>(),
            [SkipReason::MalformedKey; 3]
        );
    }

    #[test]
    fn a_repeated_member_is_refused() {
        for text in [r#"{"keys":[],"keys":[]}"#, r#"{"keys":[{"use":"a","use":"b"}]}"#] {
            assert!(matches!(read_text(text), Err(BundleError::Json { .. })), "{text}");
        }
    }

    #[test]
    fn a_document_over_four_mebibytes_is_refused() {
        let text = format!("{}{}", r#"{"keys":[]}"#, " ".repeat(MAX_DOCUMENT_BYTES - 11));
        assert!(read_text(&text).is_ok());
        assert!(matches!(
            read_text(&(text + " ")),
            Err(BundleError::TooLarge { .. })
        ));
    }
}
