//! Private keys in this process.

use std::fmt;
use std::sync::OnceLock;

use ring::rand::SystemRandom;
use ring::signature::{
    self, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING,
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair as _, RsaKeyPair,
};
use rsa::pkcs8::EncodePrivateKey as _;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{PrivateKeyDer, alg_id};
use zeroize::Zeroizing;

use super::{JwsAlgorithm, KeyError, KeyType, PublicKey, PublicKeyKind, Signer, der, pem_block};

/// Larger PKCS#8 structures are no keys of a supported size.
const MAX_PKCS8: usize = 16 * 1024;

/// A private key. Prints nothing; its PKCS#8 bytes are wiped when dropped.
pub struct PrivateKey {
    pkcs8_der: Zeroizing<Vec<u8>>,
    public_key: PublicKey,
    pair: Pair,
}

enum Pair {
    Ec(Box<EcPair>),
    Rsa(Box<RsaKeyPair>),
}

struct EcPair {
    curve: &'static Curve,
    asn1: EcdsaKeyPair,
    /// For JWS, made on first use: most keys sign only one kind of thing.
    fixed: OnceLock<EcdsaKeyPair>,
}

struct Curve {
    asn1: &'static EcdsaSigningAlgorithm,
    fixed: &'static EcdsaSigningAlgorithm,
    spki_algorithm: rustls_pki_types::AlgorithmIdentifier,
    jws: JwsAlgorithm,
}

static P256: Curve = Curve {
    asn1: &ECDSA_P256_SHA256_ASN1_SIGNING,
    fixed: &ECDSA_P256_SHA256_FIXED_SIGNING,
    spki_algorithm: alg_id::ECDSA_P256,
    jws: JwsAlgorithm::ES256,
};
static P384: Curve = Curve {
    asn1: &ECDSA_P384_SHA384_ASN1_SIGNING,
    fixed: &ECDSA_P384_SHA384_FIXED_SIGNING,
    spki_algorithm: alg_id::ECDSA_P384,
    jws: JwsAlgorithm::ES384,
};

impl PrivateKey {
    /// Makes a new key. RSA keys take from tenths of a second to seconds of CPU time.
    pub fn generate(key_type: KeyType) -> Result<Self, KeyError> {
        match key_type {
            KeyType::EcP256 => Self::generate_ec(&P256),
            KeyType::EcP384 => Self::generate_ec(&P384),
            KeyType::Rsa2048 => Self::generate_rsa(2048),
            KeyType::Rsa4096 => Self::generate_rsa(4096),
        }
    }

    /// Reads an unencrypted PKCS#8 key: P-256, P-384 (with its public half inside) or RSA of 2048
    /// to 4096 bits.
    pub fn from_pkcs8_der(pkcs8_der: &[u8]) -> Result<Self, KeyError> {
        if pkcs8_der.len() > MAX_PKCS8 {
            return Err(malformed("longer than 16 KiB"));
        }
        for curve in [&P256, &P384] {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve.asn1, pkcs8_der, &SystemRandom::new()) {
                return Self::from_ec_pair(curve, pair, Zeroizing::new(pkcs8_der.to_vec()));
            }
        }
        let pair = RsaKeyPair::from_pkcs8(pkcs8_der).map_err(malformed)?;
        Ok(Self {
            public_key: PublicKey::from_key_bytes(alg_id::RSA_ENCRYPTION, pair.public_key().as_ref())?,
            pkcs8_der: Zeroizing::new(pkcs8_der.to_vec()),
            pair: Pair::Rsa(Box::new(pair)),
        })
    }

    /// Reads the first private key of a PEM text: PKCS#8, SEC 1 (`EC PRIVATE KEY`) or PKCS#1
    /// (`RSA PRIVATE KEY`).
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        match PrivateKeyDer::from_pem_slice(text.as_bytes()) {
            Ok(PrivateKeyDer::Pkcs8(key)) => Self::from_pkcs8_der(key.secret_pkcs8_der()),
            Ok(PrivateKeyDer::Pkcs1(key)) => Self::from_pkcs8_der(&der::pkcs8(
                alg_id::RSA_ENCRYPTION.as_ref(),
                key.secret_pkcs1_der(),
            )),
            Ok(PrivateKeyDer::Sec1(key)) => [&P256, &P384]
                .into_iter()
                .find_map(|curve| {
                    let wrapped = der::pkcs8(curve.spki_algorithm.as_ref(), key.secret_sec1_der());
                    Self::from_pkcs8_der(&wrapped).ok()
                })
                .ok_or_else(|| malformed("EC key other than P-256 or P-384 with its public half")),
            Ok(_) => Err(malformed("unknown PEM private key")),
            Err(_) => Err(malformed("no PEM private key found")),
        }
    }

    /// The PKCS#8 DER: a secret, as the Workload API hands it to the key's owner.
    pub fn pkcs8_der(&self) -> &[u8] {
        &self.pkcs8_der
    }

    /// The key as a PEM block `PRIVATE KEY`: a secret.
    pub fn to_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem_block("PRIVATE KEY", &self.pkcs8_der))
    }

    /// The type, `None` for an RSA key of a size that is read but never generated.
    pub fn key_type(&self) -> Option<KeyType> {
        match self.public_key.kind() {
            PublicKeyKind::EcP256 => Some(KeyType::EcP256),
            PublicKeyKind::EcP384 => Some(KeyType::EcP384),
            PublicKeyKind::Rsa { bits: 2048 } => Some(KeyType::Rsa2048),
            PublicKeyKind::Rsa { bits: 4096 } => Some(KeyType::Rsa4096),
            _ => None,
        }
    }

    /// The public half.
    pub fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn generate_ec(curve: &'static Curve) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let failed = |_| KeyError::Internal {
            what: "key generation",
        };
        let document = EcdsaKeyPair::generate_pkcs8(curve.asn1, &random).map_err(failed)?;
        let pkcs8_der = Zeroizing::new(document.as_ref().to_vec());
        let pair = EcdsaKeyPair::from_pkcs8(curve.asn1, &pkcs8_der, &random).map_err(malformed)?;
        Self::from_ec_pair(curve, pair, pkcs8_der)
    }

    fn generate_rsa(bits: usize) -> Result<Self, KeyError> {
        let failed = KeyError::Internal {
            what: "RSA key generation",
        };
        let Ok(key) = rsa::RsaPrivateKey::new(&mut rand_core::OsRng, bits) else {
            return Err(failed);
        };
        let Ok(document) = key.to_pkcs8_der() else {
            return Err(failed);
        };
        Self::from_pkcs8_der(document.as_bytes())
    }

    fn from_ec_pair(
        curve: &'static Curve,
        asn1: EcdsaKeyPair,
        pkcs8_der: Zeroizing<Vec<u8>>,
    ) -> Result<Self, KeyError> {
        Ok(Self {
            public_key: PublicKey::from_key_bytes(curve.spki_algorithm, asn1.public_key().as_ref())?,
            pkcs8_der,
            pair: Pair::Ec(Box::new(EcPair {
                curve,
                asn1,
                fixed: OnceLock::new(),
            })),
        })
    }
}

impl Signer for PrivateKey {
    fn public_key(&self) -> &PublicKey {
        &self.public_key
    }

    fn sign_x509(&self, tbs: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ec(pair) => sign_ec(&pair.asn1, tbs),
            Pair::Rsa(pair) => sign_rsa(pair, tbs),
        }
    }

    fn sign_jws(&self, input: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ec(pair) => {
                let pair = pair.fixed.get_or_init(|| {
                    EcdsaKeyPair::from_pkcs8(pair.curve.fixed, &self.pkcs8_der, &SystemRandom::new())
                        .expect("the same bytes were read for the ASN.1 form of the signature")
                });
                sign_ec(pair, input)
            }
            Pair::Rsa(pair) => sign_rsa(pair, input),
        }
    }

    fn jws_algorithm(&self) -> JwsAlgorithm {
        match &self.pair {
            Pair::Ec(pair) => pair.curve.jws,
            Pair::Rsa(_) => JwsAlgorithm::RS256,
        }
    }

    fn in_process(&self) -> bool {
        true
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey(of {:?})", self.public_key)
    }
}

fn sign_ec(pair: &EcdsaKeyPair, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    match pair.sign(&SystemRandom::new(), message) {
        Ok(signature) => Ok(signature.as_ref().to_vec()),
        Err(_) => Err(KeyError::Internal { what: "signing" }),
    }
}

fn sign_rsa(pair: &RsaKeyPair, message: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut signature = vec![0; pair.public().modulus_len()];
    match pair.sign(
        &signature::RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message,
        &mut signature,
    ) {
        Ok(()) => Ok(signature),
        Err(_) => Err(KeyError::Internal { what: "signing" }),
    }
}

fn malformed(why: impl fmt::Display) -> KeyError {
    KeyError::MalformedPrivateKey(why.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generated_keys_survive_pkcs8() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            assert_eq!(key.key_type(), Some(key_type));
            let again = PrivateKey::from_pkcs8_der(key.pkcs8_der()).unwrap();
            assert_eq!(again.public_key(), key.public_key());
            let from_pem = PrivateKey::from_pem(&key.to_pem()).unwrap();
            assert_eq!(from_pem.public_key(), key.public_key());
        }
    }

    #[test]
    fn reads_the_older_pem_forms() {
        let ec = PrivateKey::generate(KeyType::EcP256).unwrap();
        // PKCS#8 of ring: version, algorithm, then the OCTET STRING around the SEC 1 key.
        let sec1 = &ec.pkcs8_der()[29..];
        assert_eq!(sec1[0], 0x30, "the SEC 1 key starts here");
        let read = PrivateKey::from_pem(&pem_block("EC PRIVATE KEY", sec1)).unwrap();
        assert_eq!(read.public_key(), ec.public_key());

        let rsa = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let pkcs1 = &rsa.pkcs8_der()[26..];
        assert_eq!(pkcs1[0], 0x30, "the PKCS#1 key starts here");
        let read = PrivateKey::from_pem(&pem_block("RSA PRIVATE KEY", pkcs1)).unwrap();
        assert_eq!(read.public_key(), rsa.public_key());
    }

    #[test]
    fn malformed_keys_are_errors_that_show_nothing() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let mut broken = key.pkcs8_der().to_vec();
        broken[40] ^= 1;
        assert!(PrivateKey::from_pkcs8_der(&broken).is_err());
        assert!(PrivateKey::from_pkcs8_der(&[]).is_err());
        assert!(PrivateKey::from_pkcs8_der(&vec![0x30; MAX_PKCS8 + 1]).is_err());
        assert!(PrivateKey::from_pem("-----BEGIN CERTIFICATE-----\n").is_err());
    }

    #[test]
    fn debug_shows_only_the_public_key() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let shown = format!("{key:?}");
        let id = data_encoding::HEXLOWER.encode(&key.public_key().subject_key_id());
        assert_eq!(shown, format!("PrivateKey(of PublicKey(ec-p256 {id}))"));
    }
}
