//! Lets `rcgen` build certificates and requests with our keys.

use rcgen::{PublicKeyData, SignatureAlgorithm, SigningKey};

use super::{KeyError, PublicKey, PublicKeyKind, Signer};

/// A [`Signer`] as `rcgen` wants it: as the issuer's key or as the key of a request.
#[derive(Clone, Copy, Debug)]
pub struct SignerForRcgen<'a> {
    signer: &'a dyn Signer,
    algorithm: &'static SignatureAlgorithm,
}

impl<'a> SignerForRcgen<'a> {
    /// # Errors
    /// When the key is of a kind that signs no certificates (P-521).
    pub fn new(signer: &'a dyn Signer) -> Result<Self, KeyError> {
        Ok(Self {
            algorithm: algorithm_of(signer.public_key())?,
            signer,
        })
    }
}

impl PublicKeyData for SignerForRcgen<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.signer.public_key().key_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

impl SigningKey for SignerForRcgen<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.signer
            .sign_x509(message)
            .map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

/// A [`PublicKey`] as `rcgen` wants it: as the subject of a certificate.
#[derive(Clone, Copy, Debug)]
pub struct SubjectKeyForRcgen<'a> {
    key: &'a PublicKey,
    algorithm: &'static SignatureAlgorithm,
}

impl<'a> SubjectKeyForRcgen<'a> {
    /// # Errors
    /// When the key is of a kind that gets no certificates (P-521).
    pub fn new(key: &'a PublicKey) -> Result<Self, KeyError> {
        Ok(Self {
            algorithm: algorithm_of(key)?,
            key,
        })
    }
}

impl PublicKeyData for SubjectKeyForRcgen<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.key.key_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

fn algorithm_of(key: &PublicKey) -> Result<&'static SignatureAlgorithm, KeyError> {
    match key.kind() {
        PublicKeyKind::EcP256 => Ok(&rcgen::PKCS_ECDSA_P256_SHA256),
        PublicKeyKind::EcP384 => Ok(&rcgen::PKCS_ECDSA_P384_SHA384),
        PublicKeyKind::Rsa { .. } => Ok(&rcgen::PKCS_RSA_SHA256),
        PublicKeyKind::Ed25519 => Ok(&rcgen::PKCS_ED25519),
        kind @ PublicKeyKind::EcP521 => Err(KeyError::UnsupportedPublicKey(format!(
            "no certificates for {kind}"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey};

    #[test]
    fn the_subject_public_key_info_is_the_keys_own() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            let adapter = SignerForRcgen::new(&key).unwrap();
            let spki = key.public_key().spki_der();
            assert_eq!(adapter.subject_public_key_info(), spki);
            let subject = SubjectKeyForRcgen::new(key.public_key()).unwrap();
            assert_eq!(subject.subject_public_key_info(), spki);
        }
    }
}
