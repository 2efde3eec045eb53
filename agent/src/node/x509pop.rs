//! `x509pop`: the agent sends a certificate that was installed on the node in another way, and proves that it has the
//! key.
//!
//! Messages as SPIRE's plugin of that name has them: JSON with byte strings in base64. The signature is over the
//! SHA-256 of the server's nonce and one of the agent's own, so neither side alone decides what is signed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use data_encoding::BASE64;
use finial_identity::key::{PrivateKey, PublicKeyKind};
use finial_identity::process::private_file;
use finial_identity::x509::Certificate;
use p384::ecdsa::signature::hazmat::PrehashSigner as _;
use p384::pkcs8::DecodePrivateKey as _;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PSS_SHA256, RsaKeyPair};
use serde::{Deserialize, Serialize};

use super::{AttestorError, NodeAttestor};
use crate::config::X509PopSettings;

/// Bytes of a nonce, the server's and the agent's.
const NONCE: usize = 32;
/// Most bytes of a file: a chain of RSA certificates stays far below.
const MAX_FILE: usize = 256 * 1024;
/// Most bytes of a challenge.
const MAX_CHALLENGE: usize = 4 * 1024;

/// Attests with a certificate and its key. The files are read each time, so they may be renewed in place.
#[derive(Debug)]
pub struct X509PopAttestor {
    settings: X509PopSettings,
    /// The key that belongs to the certificates sent last.
    key: Mutex<Option<Arc<PrivateKey>>>,
}

#[derive(Serialize)]
struct Payload {
    certificates: Vec<String>,
}

#[derive(Deserialize)]
struct Challenge {
    #[serde(default)]
    rsa_signature: Option<Nonce>,
    #[serde(default)]
    ecdsa_signature: Option<Nonce>,
}

#[derive(Deserialize)]
struct Nonce {
    nonce: String,
}

#[derive(Serialize)]
struct Response {
    rsa_signature: Option<RsaSignature>,
    ecdsa_signature: Option<EcdsaSignature>,
}

#[derive(Serialize)]
struct RsaSignature {
    nonce: String,
    signature: String,
}

#[derive(Serialize)]
struct EcdsaSignature {
    nonce: String,
    r: String,
    s: String,
}

impl X509PopAttestor {
    /// Attests with the files that `settings` name.
    pub fn new(settings: X509PopSettings) -> Self {
        Self {
            settings,
            key: Mutex::new(None),
        }
    }

    fn read(&self) -> Result<(Vec<Certificate>, PrivateKey), AttestorError> {
        let certificates = |path: &PathBuf| {
            let text = private_file::read_text(path, MAX_FILE).map_err(failed)?;
            Certificate::from_pem(&text)
                .map_err(|error| failed(format!("read certificates: {}: {error}", path.display())))
        };
        let mut chain = certificates(&self.settings.certificate)?;
        if let Some(path) = &self.settings.intermediates {
            chain.extend(certificates(path)?);
        }
        let path = &self.settings.private_key;
        let secret = private_file::read_secret(path, MAX_FILE).map_err(failed)?;
        let text = std::str::from_utf8(secret.as_bytes())
            .map_err(|_| failed(format!("read private key: {}: not PEM", path.display())))?;
        let key = PrivateKey::from_pem(text)
            .map_err(|error| failed(format!("read private key: {}: {error}", path.display())))?;
        let leaf = chain
            .first()
            .ok_or_else(|| failed("no certificate in the file"))?;
        if leaf.public_key() != key.public_key() {
            return Err(failed("the private key is not that of the certificate"));
        }
        Ok((chain, key))
    }
}

#[async_trait]
impl NodeAttestor for X509PopAttestor {
    fn name(&self) -> &'static str {
        "x509pop"
    }

    async fn payload(&self) -> Result<Vec<u8>, AttestorError> {
        let (chain, key) = self.read()?;
        // A key after a panic is as good as before.
        *self.key.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(key));
        let certificates = chain.iter().map(|link| BASE64.encode(link.der())).collect();
        serde_json::to_vec(&Payload { certificates }).map_err(failed)
    }

    async fn respond(&self, challenge: &[u8]) -> Result<Vec<u8>, AttestorError> {
        let held = self.key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let key = held.ok_or_else(|| failed("server sent a challenge before it had a certificate"))?;
        let mut own = [0; NONCE];
        SystemRandom::new()
            .fill(&mut own)
            .map_err(|_| failed("no random numbers"))?;
        respond(&key, challenge, &own)
    }
}

fn respond(key: &PrivateKey, challenge: &[u8], own: &[u8; NONCE]) -> Result<Vec<u8>, AttestorError> {
    if challenge.len() > MAX_CHALLENGE {
        return Err(failed(format!("challenge of {} bytes", challenge.len())));
    }
    let challenge: Challenge =
        serde_json::from_slice(challenge).map_err(|error| failed(format!("malformed challenge: {error}")))?;
    let is_rsa = matches!(key.public_key().kind(), PublicKeyKind::Rsa { .. });
    let nonce = if is_rsa {
        challenge.rsa_signature
    } else {
        challenge.ecdsa_signature
    };
    let nonce = nonce.ok_or_else(|| failed("challenge is not for the key's type"))?;
    let mut signed = BASE64
        .decode(nonce.nonce.as_bytes())
        .map_err(|error| failed(format!("malformed nonce: {error}")))?;
    if signed.len() != NONCE {
        return Err(failed(format!("nonce of {} bytes", signed.len())));
    }
    signed.extend_from_slice(own);
    let nonce = BASE64.encode(own);
    let response = if is_rsa {
        Response {
            rsa_signature: Some(RsaSignature {
                nonce,
                signature: BASE64.encode(&sign_rsa(key, &signed)?),
            }),
            ecdsa_signature: None,
        }
    } else {
        let signature = sign_ecdsa(key, &signed)?;
        let (r, s) = signature.split_at(signature.len() / 2);
        Response {
            rsa_signature: None,
            ecdsa_signature: Some(EcdsaSignature {
                nonce,
                r: BASE64.encode(minimal(r)),
                s: BASE64.encode(minimal(s)),
            }),
        }
    };
    serde_json::to_vec(&response).map_err(failed)
}

/// PSS with SHA-256 and a salt as long as the hash; SPIRE's server finds out the length.
fn sign_rsa(key: &PrivateKey, message: &[u8]) -> Result<Vec<u8>, AttestorError> {
    let pair = RsaKeyPair::from_pkcs8(key.pkcs8_der()).map_err(failed)?;
    let mut signature = vec![0; pair.public().modulus_len()];
    pair.sign(&RSA_PSS_SHA256, &SystemRandom::new(), message, &mut signature)
        .map_err(|_| failed("sign the challenge"))?;
    Ok(signature)
}

/// r and s, one after the other, of the SHA-256 of `message`, whatever the curve.
fn sign_ecdsa(key: &PrivateKey, message: &[u8]) -> Result<Vec<u8>, AttestorError> {
    if key.public_key().kind() == PublicKeyKind::EcP384 {
        // ring signs with P-384 and SHA-384 only.
        let signing = p384::ecdsa::SigningKey::from_pkcs8_der(key.pkcs8_der()).map_err(failed)?;
        let hash = digest(&SHA256, message);
        let signature: p384::ecdsa::Signature = signing.sign_prehash(hash.as_ref()).map_err(failed)?;
        return Ok(signature.to_bytes().to_vec());
    }
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.pkcs8_der(), &random)
        .map_err(failed)?;
    let signature = pair
        .sign(&random, message)
        .map_err(|_| failed("sign the challenge"))?;
    Ok(signature.as_ref().to_vec())
}

/// A number as Go writes it: big-endian, without leading zeros.
fn minimal(number: &[u8]) -> &[u8] {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    number.get(zeros..).unwrap_or_default()
}

fn failed(why: impl std::fmt::Display) -> AttestorError {
    AttestorError(format!("x509pop: {why}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)] // Tests lay out files by hand.
    use finial_identity::key::KeyType;
    use p384::ecdsa::signature::hazmat::PrehashVerifier as _;
    use ring::signature::{
        ECDSA_P256_SHA256_FIXED, RSA_PSS_2048_8192_SHA256, UnparsedPublicKey, VerificationAlgorithm,
    };
    use serde_json::{Value, json};

    use super::*;
    use crate::test_pki::Authority;

    const SERVER_NONCE: [u8; NONCE] = [7; NONCE];

    fn challenge(kind: &str) -> Vec<u8> {
        let other = if kind == "rsa_signature" {
            "ecdsa_signature"
        } else {
            "rsa_signature"
        };
        json!({kind: {"nonce": BASE64.encode(&SERVER_NONCE)}, other: null})
            .to_string()
            .into_bytes()
    }

    fn answer(key: &PrivateKey, kind: &str, own: &[u8; NONCE]) -> Value {
        let answer = respond(key, &challenge(kind), own).unwrap();
        serde_json::from_slice(&answer).unwrap()
    }

    fn bytes(value: &Value) -> Vec<u8> {
        BASE64.decode(value.as_str().unwrap().as_bytes()).unwrap()
    }

    /// r and s filled up to the width of the curve again.
    fn fixed(signature: &Value, width: usize) -> Vec<u8> {
        let mut all = Vec::new();
        for part in ["r", "s"] {
            let number = bytes(&signature[part]);
            assert_ne!(number.first(), Some(&0), "leading zeros");
            all.resize(all.len() + width - number.len(), 0);
            all.extend(number);
        }
        all
    }

    fn signed(own: &[u8; NONCE]) -> Vec<u8> {
        [SERVER_NONCE, *own].concat()
    }

    fn verify(
        algorithm: &'static dyn VerificationAlgorithm,
        key: &PrivateKey,
        message: &[u8],
        signature: &[u8],
    ) {
        UnparsedPublicKey::new(algorithm, key.public_key().key_bytes())
            .verify(message, signature)
            .unwrap();
    }

    #[test]
    fn signs_both_nonces_with_each_type_of_key() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        // Many, for r or s begins with a zero byte now and then.
        for number in 0..200 {
            let own = [number; NONCE];
            let answer = answer(&key, "ecdsa_signature", &own);
            assert_eq!(answer["rsa_signature"], Value::Null);
            let signature = &answer["ecdsa_signature"];
            assert_eq!(bytes(&signature["nonce"]), own);
            verify(
                &ECDSA_P256_SHA256_FIXED,
                &key,
                &signed(&own),
                &fixed(signature, 32),
            );
        }

        let key = PrivateKey::generate(KeyType::EcP384).unwrap();
        let own = [9; NONCE];
        let signature = fixed(&answer(&key, "ecdsa_signature", &own)["ecdsa_signature"], 48);
        let verifying = p384::ecdsa::VerifyingKey::from_sec1_bytes(key.public_key().key_bytes()).unwrap();
        let signature = p384::ecdsa::Signature::from_slice(&signature).unwrap();
        let hash = digest(&SHA256, &signed(&own));
        verifying.verify_prehash(hash.as_ref(), &signature).unwrap();

        let key = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let answer = answer(&key, "rsa_signature", &own);
        assert_eq!(answer["ecdsa_signature"], Value::Null);
        let signature = bytes(&answer["rsa_signature"]["signature"]);
        verify(&RSA_PSS_2048_8192_SHA256, &key, &signed(&own), &signature);
    }

    #[test]
    fn a_challenge_that_is_none_is_not_signed() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let short = json!({"ecdsa_signature": {"nonce": BASE64.encode(&[1; 31])}}).to_string();
        let long = format!("{{\"x\": \"{}\"}}", "a".repeat(MAX_CHALLENGE));
        for (bad, why) in [
            (challenge("rsa_signature"), "not for the key's type"),
            (short.into_bytes(), "nonce of 31 bytes"),
            (b"{".to_vec(), "malformed challenge"),
            (long.into_bytes(), "bytes"),
            (
                br#"{"ecdsa_signature": {"nonce": "*"}}"#.to_vec(),
                "malformed nonce",
            ),
        ] {
            let error = respond(&key, &bad, &[0; NONCE]).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn sends_the_whole_chain_and_reads_renewed_files() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("example.org");
        let path = |name: &str| dir.path().join(name);
        let write = |svid: &finial_identity::x509::X509Svid| {
            std::fs::write(path("cert.pem"), svid.leaf().to_pem()).unwrap();
            std::fs::write(path("key.pem"), svid.key().to_pem().as_bytes()).unwrap();
        };
        let attestor = X509PopAttestor::new(X509PopSettings {
            private_key: path("key.pem"),
            certificate: path("cert.pem"),
            intermediates: Some(path("more.pem")),
        });
        std::fs::write(path("more.pem"), authority.certificate().to_pem()).unwrap();
        assert!(attestor.respond(&challenge("ecdsa_signature")).await.is_err());
        let error = attestor.payload().await.unwrap_err();
        assert!(error.to_string().contains("cert.pem"), "{error}");
        for name in ["/one", "/two"] {
            let svid = authority.svid(name);
            write(&svid);
            let payload: Value = serde_json::from_slice(&attestor.payload().await.unwrap()).unwrap();
            let sent: Vec<_> = payload["certificates"]
                .as_array()
                .unwrap()
                .iter()
                .map(bytes)
                .collect();
            let expected = [svid.leaf().der().to_vec(), authority.certificate().der().to_vec()];
            assert_eq!(sent, expected);
            let answer = attestor.respond(&challenge("ecdsa_signature")).await.unwrap();
            let answer: Value = serde_json::from_slice(&answer).unwrap();
            let own: [u8; NONCE] = bytes(&answer["ecdsa_signature"]["nonce"]).try_into().unwrap();
            let key = PrivateKey::from_pem(&svid.key().to_pem()).unwrap();
            let signature = fixed(&answer["ecdsa_signature"], 32);
            verify(&ECDSA_P256_SHA256_FIXED, &key, &signed(&own), &signature);
        }
        let other = authority.svid("/three");
        std::fs::write(path("key.pem"), other.key().to_pem().as_bytes()).unwrap();
        let error = attestor.payload().await.unwrap_err();
        assert!(
            error.to_string().contains("not that of the certificate"),
            "{error}"
        );
        assert!(!format!("{attestor:?}").contains("PRIVATE"));
    }
}
