//! Public keys of the kinds that SVIDs and authorities use.

use std::fmt;
use std::sync::Arc;

use ring::digest;
use rustls_pki_types::{AlgorithmIdentifier, alg_id};
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::FromDer;
use x509_parser::public_key::RSAPublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::{KeyError, der};

const MIN_RSA_BITS: usize = 2048;
const MAX_RSA_BITS: usize = 8192;
const RSA_ENCRYPTION: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const P521: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x23];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];

/// What kind of key a [`PublicKey`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PublicKeyKind {
    /// ECDSA on P-256.
    EcP256,
    /// ECDSA on P-384.
    EcP384,
    /// ECDSA on P-521: verifies JWS (ES512), not certificates.
    EcP521,
    /// RSA.
    Rsa {
        /// Length of the modulus in bits, 2048 to 8192.
        bits: usize,
    },
    /// Ed25519: verifies certificates, not JWS (JWT-SVID §2.1 leaves EdDSA out).
    Ed25519,
}

impl fmt::Display for PublicKeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PublicKeyKind::EcP256 => f.write_str("ec-p256"),
            PublicKeyKind::EcP384 => f.write_str("ec-p384"),
            PublicKeyKind::EcP521 => f.write_str("ec-p521"),
            PublicKeyKind::Rsa { bits } => write!(f, "rsa-{bits}"),
            PublicKeyKind::Ed25519 => f.write_str("ed25519"),
        }
    }
}

/// A public key, kept as the SubjectPublicKeyInfo it came in. Cheap to clone.
///
/// Points of elliptic curves are checked for their form here and for being on the curve whenever
/// a signature is verified.
#[derive(Clone)]
pub struct PublicKey(Arc<Inner>);

struct Inner {
    spki_der: Box<[u8]>,
    /// Length of what comes before the content of the BIT STRING, which ends the structure.
    prefix: usize,
    kind: PublicKeyKind,
}

impl PublicKey {
    /// Reads exactly one DER SubjectPublicKeyInfo.
    ///
    /// # Errors
    /// When the bytes are malformed, or the key is not P-256, P-384, P-521, Ed25519 or RSA with
    /// 2048 to 8192 bits.
    pub fn from_spki_der(spki_der: &[u8]) -> Result<Self, KeyError> {
        let (rest, spki) = SubjectPublicKeyInfo::from_der(spki_der)
            .map_err(|_| KeyError::MalformedPublicKey("not a SubjectPublicKeyInfo"))?;
        if !rest.is_empty() {
            return Err(KeyError::MalformedPublicKey("trailing bytes"));
        }
        Self::from_parsed(&spki)
    }

    /// Takes over a SubjectPublicKeyInfo that was parsed as part of a larger structure.
    pub(crate) fn from_parsed(spki: &SubjectPublicKeyInfo<'_>) -> Result<Self, KeyError> {
        if spki.subject_public_key.unused_bits != 0 {
            return Err(KeyError::MalformedPublicKey("BIT STRING with unused bits"));
        }
        let key: &[u8] = &spki.subject_public_key.data;
        let kind = kind_of(spki, key)?;
        let prefix = spki
            .raw
            .len()
            .checked_sub(key.len())
            .filter(|prefix| &spki.raw[*prefix..] == key && fills_its_header(spki.raw))
            .ok_or(KeyError::MalformedPublicKey("bytes after the key"))?;
        Ok(Self(Arc::new(Inner {
            spki_der: spki.raw.into(),
            prefix,
            kind,
        })))
    }

    /// Makes the key from an elliptic-curve point (`04 || x || y`) or a PKCS#1 RSAPublicKey.
    pub(super) fn from_key_bytes(algorithm: AlgorithmIdentifier, key: &[u8]) -> Result<Self, KeyError> {
        Self::from_spki_der(&der::spki(algorithm.as_ref(), key))
    }

    /// Makes an RSA key from its big-endian numbers.
    pub(super) fn from_rsa_numbers(modulus: &[u8], exponent: &[u8]) -> Result<Self, KeyError> {
        Self::from_key_bytes(alg_id::RSA_ENCRYPTION, &rsa_key_der(modulus, exponent))
    }

    /// The DER SubjectPublicKeyInfo.
    pub fn spki_der(&self) -> &[u8] {
        &self.0.spki_der
    }

    /// The content of the subjectPublicKey BIT STRING: the point, or the PKCS#1 RSAPublicKey.
    pub fn key_bytes(&self) -> &[u8] {
        &self.0.spki_der[self.0.prefix..]
    }

    /// The subject key identifier: SHA-1 of the BIT STRING's content (RFC 5280 §4.2.1.2, method 1),
    /// as SPIRE does.
    pub fn subject_key_id(&self) -> [u8; 20] {
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, self.key_bytes());
        let mut id = [0; 20];
        id.copy_from_slice(digest.as_ref());
        id
    }

    /// The kind of key.
    pub fn kind(&self) -> PublicKeyKind {
        self.0.kind
    }
}

impl PartialEq for PublicKey {
    fn eq(&self, other: &Self) -> bool {
        self.0.kind == other.0.kind && self.key_bytes() == other.key_bytes()
    }
}

impl Eq for PublicKey {}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = data_encoding::HEXLOWER.encode(&self.subject_key_id());
        write!(f, "PublicKey({} {id})", self.0.kind)
    }
}

/// The PKCS#1 RSAPublicKey of big-endian numbers.
fn rsa_key_der(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let mut numbers = der::unsigned_integer(modulus);
    numbers.extend_from_slice(&der::unsigned_integer(exponent));
    der::tlv(der::SEQUENCE, &numbers)
}

/// The modulus and exponent of a PKCS#1 RSAPublicKey, without leading zeros.
pub(super) fn rsa_numbers(key: &[u8]) -> Result<(&[u8], &[u8]), KeyError> {
    match RSAPublicKey::from_der(key) {
        Ok(([], numbers)) => Ok((
            der::trim_leading_zeros(numbers.modulus),
            der::trim_leading_zeros(numbers.exponent),
        )),
        _ => Err(KeyError::MalformedPublicKey("not an RSAPublicKey")),
    }
}

fn kind_of(spki: &SubjectPublicKeyInfo<'_>, key: &[u8]) -> Result<PublicKeyKind, KeyError> {
    let algorithm = spki.algorithm.algorithm.as_bytes();
    match algorithm {
        RSA_ENCRYPTION => match &spki.algorithm.parameters {
            Some(null) if null.tag() == Tag::Null && null.data.is_empty() => rsa_kind(key),
            _ => Err(KeyError::MalformedPublicKey("RSA without NULL parameters")),
        },
        ED25519 if key.len() == 32 && spki.algorithm.parameters.is_none() => Ok(PublicKeyKind::Ed25519),
        EC_PUBLIC_KEY => {
            let parameters = spki.algorithm.parameters.as_ref();
            let curve = parameters.map(|any| (any.tag(), any.data));
            let (kind, coordinate) = match curve {
                Some((Tag::Oid, P256)) => (PublicKeyKind::EcP256, 32),
                Some((Tag::Oid, P384)) => (PublicKeyKind::EcP384, 48),
                Some((Tag::Oid, P521)) => (PublicKeyKind::EcP521, 66),
                _ => {
                    let what = "elliptic curve other than P-256, P-384, P-521";
                    return Err(KeyError::UnsupportedPublicKey(what.to_owned()));
                }
            };
            if key.first() != Some(&4) || key.len() != 1 + 2 * coordinate {
                return Err(KeyError::MalformedPublicKey("not an uncompressed point"));
            }
            Ok(kind)
        }
        _ => Err(KeyError::UnsupportedPublicKey(
            spki.algorithm.algorithm.to_id_string(),
        )),
    }
}

fn rsa_kind(key: &[u8]) -> Result<PublicKeyKind, KeyError> {
    let (modulus, exponent) = rsa_numbers(key)?;
    // The parser overlooks negative numbers and wrong tags. One key has one encoding, else it had several key IDs.
    if rsa_key_der(modulus, exponent) != key {
        return Err(KeyError::MalformedPublicKey("RSAPublicKey that is not DER"));
    }
    let bits = match modulus.first() {
        Some(first) => modulus.len() * 8 - first.leading_zeros() as usize,
        None => 0,
    };
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) || exponent.is_empty() {
        return Err(KeyError::UnsupportedPublicKey(format!("rsa-{bits}")));
    }
    Ok(PublicKeyKind::Rsa { bits })
}

/// Whether the DER SEQUENCE ends where its header says. The parser gives what it read, not what was declared, so bytes
/// after the BIT STRING would be missed and one key would have many encodings.
fn fills_its_header(sequence: &[u8]) -> bool {
    match sequence {
        [0x30, length, content @ ..] if *length < 0x80 => content.len() == usize::from(*length),
        [0x30, 0x81, length, content @ ..] => content.len() == usize::from(*length),
        [0x30, 0x82, high, low, content @ ..] => {
            content.len() == usize::from(u16::from_be_bytes([*high, *low]))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey};

    #[test]
    fn subject_key_id_is_the_sha1_of_the_bit_string() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let spki = key.public_key().spki_der();
        let point = &spki[spki.len() - 65..];
        let expected = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, point);
        assert_eq!(key.public_key().subject_key_id(), expected.as_ref());
    }

    #[test]
    fn reads_back_its_own_der_and_refuses_trailing_bytes() {
        let key = PrivateKey::generate(KeyType::EcP384).unwrap();
        let spki = key.public_key().spki_der().to_vec();
        let read = PublicKey::from_spki_der(&spki).unwrap();
        assert_eq!(&read, key.public_key());
        assert_eq!(read.kind(), PublicKeyKind::EcP384);
        let mut longer = spki.clone();
        longer.push(0);
        assert!(PublicKey::from_spki_der(&longer).is_err());
        for cut in 0..spki.len() {
            assert!(PublicKey::from_spki_der(&spki[..cut]).is_err());
        }
    }

    #[test]
    fn refuses_small_rsa_keys_and_compressed_points() {
        let mut modulus = vec![0x80; 128];
        modulus[127] = 1;
        let error = PublicKey::from_rsa_numbers(&modulus, &[1, 0, 1]).unwrap_err();
        assert!(error.to_string().contains("rsa-1024"), "{error}");
        let compressed = [&[2u8][..], &[7; 32]].concat();
        assert!(PublicKey::from_key_bytes(alg_id::ECDSA_P256, &compressed).is_err());
    }

    #[test]
    fn refuses_rsa_numbers_that_are_negative_or_tagged_otherwise() {
        let rsa = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let good = rsa.public_key().key_bytes();
        // SEQUENCE with a length of two bytes, then the modulus: INTEGER, length of two bytes, a zero, the number.
        assert_eq!((good[4], good[8]), (2, 0));
        for (at, byte) in [(4, 0x82), (8, 0xd0), (good.len() - 3, 0x81)] {
            let mut bad = good.to_vec();
            bad[at] = byte;
            let error = PublicKey::from_key_bytes(alg_id::RSA_ENCRYPTION, &bad).unwrap_err();
            assert!(
                matches!(error, KeyError::MalformedPublicKey(_)),
                "byte {at}: {error}"
            );
        }
    }

    #[test]
    fn refuses_algorithms_with_other_parameters_than_the_standard_gives_them() {
        let rsa = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let oid = der::tlv(6, RSA_ENCRYPTION);
        let without_null = der::spki(&oid, rsa.public_key().key_bytes());
        assert!(PublicKey::from_spki_der(&without_null).is_err());
        let ed25519 = der::tlv(6, ED25519);
        assert!(PublicKey::from_spki_der(&der::spki(&ed25519, &[7; 32])).is_ok());
        let with_null = [&ed25519[..], &[5, 0]].concat();
        assert!(PublicKey::from_spki_der(&der::spki(&with_null, &[7; 32])).is_err());
    }

    #[test]
    fn refuses_points_of_another_curve() {
        let p384 = PrivateKey::generate(KeyType::EcP384).unwrap();
        let point = p384.public_key().key_bytes();
        assert!(PublicKey::from_key_bytes(alg_id::ECDSA_P256, point).is_err());
    }

    #[test]
    fn bytes_between_the_key_and_the_end_of_the_structure_are_refused() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let mut spki = key.public_key().spki_der().to_vec();
        assert!(PublicKey::from_spki_der(&spki).is_ok());
        spki[1] += 2;
        spki.extend([0x05, 0x00]);
        assert!(PublicKey::from_spki_der(&spki).is_err());
    }
}
