//! Signatures on certificates and certificate requests.

use std::fmt;

use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};
use x509_parser::signature_algorithm::RsaSsaPssParams;
use x509_parser::x509::AlgorithmIdentifier;

use super::{KeyError, PublicKey, PublicKeyKind};

const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03];
const RSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0b];
const RSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0c];
const RSA_SHA512: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a];
const ED25519: &[u8] = &[0x2b, 0x65, 0x70];
const MGF1: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];
const SHA512: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03];

/// The signature algorithms that certificates and requests may use here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum X509SignatureAlgorithm {
    /// ecdsa-with-SHA256
    EcdsaSha256,
    /// ecdsa-with-SHA384
    EcdsaSha384,
    /// sha256WithRSAEncryption
    RsaSha256,
    /// sha384WithRSAEncryption
    RsaSha384,
    /// sha512WithRSAEncryption
    RsaSha512,
    /// RSASSA-PSS with SHA-256, MGF1 with SHA-256 and a salt of 32 bytes
    RsaPssSha256,
    /// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes
    RsaPssSha384,
    /// RSASSA-PSS with SHA-512, MGF1 with SHA-512 and a salt of 64 bytes
    RsaPssSha512,
    /// Ed25519
    Ed25519,
}

impl X509SignatureAlgorithm {
    /// Recognises an AlgorithmIdentifier.
    pub(crate) fn from_parsed(identifier: &AlgorithmIdentifier<'_>) -> Result<Self, KeyError> {
        match identifier.algorithm.as_bytes() {
            ECDSA_SHA256 => Ok(Self::EcdsaSha256),
            ECDSA_SHA384 => Ok(Self::EcdsaSha384),
            RSA_SHA256 => Ok(Self::RsaSha256),
            RSA_SHA384 => Ok(Self::RsaSha384),
            RSA_SHA512 => Ok(Self::RsaSha512),
            ED25519 => Ok(Self::Ed25519),
            RSA_PSS => pss(identifier),
            _ => Err(KeyError::UnsupportedX509Algorithm(
                identifier.algorithm.to_id_string(),
            )),
        }
    }

    fn verifier_for(self, kind: PublicKeyKind) -> Option<&'static dyn VerificationAlgorithm> {
        use PublicKeyKind::{EcP256, EcP384, Rsa};
        Some(match (self, kind) {
            (Self::EcdsaSha256, EcP256) => &signature::ECDSA_P256_SHA256_ASN1,
            (Self::EcdsaSha384, EcP256) => &signature::ECDSA_P256_SHA384_ASN1,
            (Self::EcdsaSha256, EcP384) => &signature::ECDSA_P384_SHA256_ASN1,
            (Self::EcdsaSha384, EcP384) => &signature::ECDSA_P384_SHA384_ASN1,
            (Self::RsaSha256, Rsa { .. }) => &signature::RSA_PKCS1_2048_8192_SHA256,
            (Self::RsaSha384, Rsa { .. }) => &signature::RSA_PKCS1_2048_8192_SHA384,
            (Self::RsaSha512, Rsa { .. }) => &signature::RSA_PKCS1_2048_8192_SHA512,
            (Self::RsaPssSha256, Rsa { .. }) => &signature::RSA_PSS_2048_8192_SHA256,
            (Self::RsaPssSha384, Rsa { .. }) => &signature::RSA_PSS_2048_8192_SHA384,
            (Self::RsaPssSha512, Rsa { .. }) => &signature::RSA_PSS_2048_8192_SHA512,
            (Self::Ed25519, PublicKeyKind::Ed25519) => &signature::ED25519,
            _ => return None,
        })
    }
}

impl fmt::Display for X509SignatureAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::EcdsaSha256 => "ecdsa-with-SHA256",
            Self::EcdsaSha384 => "ecdsa-with-SHA384",
            Self::RsaSha256 => "sha256WithRSAEncryption",
            Self::RsaSha384 => "sha384WithRSAEncryption",
            Self::RsaSha512 => "sha512WithRSAEncryption",
            Self::RsaPssSha256 => "RSASSA-PSS with SHA-256",
            Self::RsaPssSha384 => "RSASSA-PSS with SHA-384",
            Self::RsaPssSha512 => "RSASSA-PSS with SHA-512",
            Self::Ed25519 => "Ed25519",
        })
    }
}

impl PublicKey {
    /// Verifies the signature over the to-be-signed part of a certificate or request.
    ///
    /// # Errors
    /// [`KeyError::AlgorithmMismatch`] when the algorithm cannot be used with this key (P-521 keys
    /// verify no certificates), [`KeyError::BadSignature`] when the signature is wrong.
    pub fn verify_x509(
        &self,
        algorithm: X509SignatureAlgorithm,
        tbs: &[u8],
        signature: &[u8],
    ) -> Result<(), KeyError> {
        let verifier = algorithm
            .verifier_for(self.kind())
            .ok_or_else(|| KeyError::AlgorithmMismatch {
                algorithm: algorithm.to_string(),
                kind: self.kind(),
            })?;
        UnparsedPublicKey::new(verifier, self.key_bytes())
            .verify(tbs, signature)
            .map_err(|_| KeyError::BadSignature)
    }
}

fn pss(identifier: &AlgorithmIdentifier<'_>) -> Result<X509SignatureAlgorithm, KeyError> {
    let refused = || KeyError::UnsupportedX509Algorithm("RSASSA-PSS with these parameters".into());
    let parameters = identifier.parameters.as_ref().ok_or_else(refused)?;
    let parameters = RsaSsaPssParams::try_from(parameters).map_err(|_| refused())?;
    let mask = parameters.mask_gen_algorithm().map_err(|_| refused())?;
    let hash = parameters.hash_algorithm_oid().as_bytes();
    if mask.mgf.as_bytes() != MGF1 || mask.hash.as_bytes() != hash {
        return Err(refused());
    }
    match (hash, parameters.salt_length(), parameters.trailer_field()) {
        (SHA256, 32, 1) => Ok(X509SignatureAlgorithm::RsaPssSha256),
        (SHA384, 48, 1) => Ok(X509SignatureAlgorithm::RsaPssSha384),
        (SHA512, 64, 1) => Ok(X509SignatureAlgorithm::RsaPssSha512),
        _ => Err(refused()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey, Signer};
    use rustls_pki_types::alg_id;
    use x509_parser::prelude::FromDer;

    #[test]
    fn verifies_what_the_signer_signed_and_nothing_else() {
        for (key_type, algorithm) in [
            (KeyType::EcP256, X509SignatureAlgorithm::EcdsaSha256),
            (KeyType::EcP384, X509SignatureAlgorithm::EcdsaSha384),
            (KeyType::Rsa2048, X509SignatureAlgorithm::RsaSha256),
        ] {
            let key = PrivateKey::generate(key_type).unwrap();
            let signature = key.sign_x509(b"certificate").unwrap();
            let public = key.public_key();
            public.verify_x509(algorithm, b"certificate", &signature).unwrap();
            assert!(matches!(
                public.verify_x509(algorithm, b"certificatf", &signature),
                Err(KeyError::BadSignature)
            ));
            assert!(matches!(
                public.verify_x509(X509SignatureAlgorithm::Ed25519, b"certificate", &signature),
                Err(KeyError::AlgorithmMismatch { .. })
            ));
        }
    }

    #[test]
    fn recognises_pss_with_the_usual_parameters_only() {
        let known = |content: &[u8]| {
            let der = crate::key::tlv(0x30, content);
            let (_, identifier) = AlgorithmIdentifier::from_der(&der).unwrap();
            X509SignatureAlgorithm::from_parsed(&identifier)
        };
        let pss = alg_id::RSA_PSS_SHA256.as_ref();
        assert_eq!(known(pss).unwrap(), X509SignatureAlgorithm::RsaPssSha256);
        assert_eq!(
            known(alg_id::RSA_PSS_SHA512.as_ref()).unwrap(),
            X509SignatureAlgorithm::RsaPssSha512
        );
        let mut other_salt = pss.to_vec();
        *other_salt.last_mut().unwrap() = 20;
        assert!(known(&other_salt).is_err());
        assert!(known(&[6, 3, 0x2a, 3, 4]).is_err());
    }
}
