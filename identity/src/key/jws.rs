//! JWS signatures (RFC 7515, RFC 7518) of the algorithms that SVIDs may use (JWT-SVID §2.1).

use std::fmt;
use std::str::FromStr;

use p521::ecdsa::signature::Verifier as _;
use ring::signature::{self, UnparsedPublicKey, VerificationAlgorithm};

use super::{KeyError, PublicKey, PublicKeyKind};

/// The nine algorithms of JWT-SVID §2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JwsAlgorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256
    RS256,
    /// RSASSA-PKCS1-v1_5 with SHA-384
    RS384,
    /// RSASSA-PKCS1-v1_5 with SHA-512
    RS512,
    /// ECDSA on P-256 with SHA-256
    ES256,
    /// ECDSA on P-384 with SHA-384
    ES384,
    /// ECDSA on P-521 with SHA-512
    ES512,
    /// RSASSA-PSS with SHA-256
    PS256,
    /// RSASSA-PSS with SHA-384
    PS384,
    /// RSASSA-PSS with SHA-512
    PS512,
}

use JwsAlgorithm::{ES256, ES384, ES512, PS256, PS384, PS512, RS256, RS384, RS512};

impl JwsAlgorithm {
    /// Every algorithm.
    pub const ALL: [JwsAlgorithm; 9] = [RS256, RS384, RS512, ES256, ES384, ES512, PS256, PS384, PS512];

    /// The value of the `alg` header.
    pub fn as_str(self) -> &'static str {
        match self {
            RS256 => "RS256",
            RS384 => "RS384",
            RS512 => "RS512",
            ES256 => "ES256",
            ES384 => "ES384",
            ES512 => "ES512",
            PS256 => "PS256",
            PS384 => "PS384",
            PS512 => "PS512",
        }
    }
}

impl FromStr for JwsAlgorithm {
    type Err = KeyError;

    /// Names are compared exactly, with regard to case.
    fn from_str(name: &str) -> Result<Self, KeyError> {
        JwsAlgorithm::ALL
            .into_iter()
            .find(|algorithm| algorithm.as_str() == name)
            .ok_or_else(|| KeyError::UnknownJwsAlgorithm(name.to_owned()))
    }
}

impl fmt::Display for JwsAlgorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PublicKey {
    /// The algorithms that may be used with this key; none for Ed25519.
    pub fn jws_algorithms(&self) -> &'static [JwsAlgorithm] {
        match self.kind() {
            PublicKeyKind::EcP256 => &[ES256],
            PublicKeyKind::EcP384 => &[ES384],
            PublicKeyKind::EcP521 => &[ES512],
            PublicKeyKind::Rsa { .. } => &[RS256, RS384, RS512, PS256, PS384, PS512],
            PublicKeyKind::Ed25519 => &[],
        }
    }

    /// Verifies a JWS signature over its signing input.
    ///
    /// # Errors
    /// [`KeyError::AlgorithmMismatch`] when the algorithm is not one for this key,
    /// [`KeyError::BadSignature`] when the signature is wrong.
    pub fn verify_jws(
        &self,
        algorithm: JwsAlgorithm,
        input: &[u8],
        signature: &[u8],
    ) -> Result<(), KeyError> {
        if !self.jws_algorithms().contains(&algorithm) {
            return Err(KeyError::AlgorithmMismatch {
                algorithm: algorithm.to_string(),
                kind: self.kind(),
            });
        }
        let verifier: &'static dyn VerificationAlgorithm = match algorithm {
            RS256 => &signature::RSA_PKCS1_2048_8192_SHA256,
            RS384 => &signature::RSA_PKCS1_2048_8192_SHA384,
            RS512 => &signature::RSA_PKCS1_2048_8192_SHA512,
            PS256 => &signature::RSA_PSS_2048_8192_SHA256,
            PS384 => &signature::RSA_PSS_2048_8192_SHA384,
            PS512 => &signature::RSA_PSS_2048_8192_SHA512,
            ES256 => &signature::ECDSA_P256_SHA256_FIXED,
            ES384 => &signature::ECDSA_P384_SHA384_FIXED,
            ES512 => return verify_es512(self.key_bytes(), input, signature),
        };
        UnparsedPublicKey::new(verifier, self.key_bytes())
            .verify(input, signature)
            .map_err(|_| KeyError::BadSignature)
    }
}

fn verify_es512(point: &[u8], input: &[u8], signature: &[u8]) -> Result<(), KeyError> {
    let key = p521::ecdsa::VerifyingKey::from_sec1_bytes(point)
        .map_err(|_| KeyError::MalformedPublicKey("point is not on P-521"))?;
    let signature = p521::ecdsa::Signature::from_slice(signature).map_err(|_| KeyError::BadSignature)?;
    key.verify(input, &signature).map_err(|_| KeyError::BadSignature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey, Signer};
    use rustls_pki_types::alg_id;

    #[test]
    fn algorithm_names_are_exact() {
        for algorithm in JwsAlgorithm::ALL {
            assert_eq!(algorithm.as_str().parse::<JwsAlgorithm>().unwrap(), algorithm);
        }
        for refused in ["none", "HS256", "EdDSA", "es256", "ES256 ", ""] {
            assert!(refused.parse::<JwsAlgorithm>().is_err(), "{refused}");
        }
    }

    #[test]
    fn verifies_what_the_signer_signed_and_nothing_else() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            let signature = key.sign_jws(b"input").unwrap();
            let algorithm = key.jws_algorithm();
            let public = key.public_key();
            public.verify_jws(algorithm, b"input", &signature).unwrap();
            assert!(public.verify_jws(algorithm, b"inpuu", &signature).is_err());
            assert!(public.verify_jws(algorithm, b"input", &signature[1..]).is_err());
            for other in JwsAlgorithm::ALL {
                assert!(other == algorithm || public.verify_jws(other, b"input", &signature).is_err());
            }
        }
    }

    #[test]
    fn verifies_the_example_of_rfc_7515_appendix_a_3() {
        let jwk = serde_json::json!({"kty": "EC", "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"});
        let key = PublicKey::from_jwk(jwk.as_object().unwrap()).unwrap();
        let input = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAs\
            DQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8I\
            SlSApmWQxfKTUJqPP3-Kg6NU1Q";
        let signature = data_encoding::BASE64URL_NOPAD
            .decode(signature.as_bytes())
            .unwrap();
        key.verify_jws(ES256, input.as_bytes(), &signature).unwrap();
    }

    #[test]
    fn verifies_es512() {
        use p521::ecdsa::signature::RandomizedSigner as _;
        let key = p521::ecdsa::SigningKey::random(&mut rand_core::OsRng);
        let point = p521::ecdsa::VerifyingKey::from(&key)
            .to_encoded_point(false)
            .as_bytes()
            .to_vec();
        let public = PublicKey::from_key_bytes(alg_id::ECDSA_P521, &point).unwrap();
        assert_eq!(public.kind(), PublicKeyKind::EcP521);
        let signature: p521::ecdsa::Signature = key.sign_with_rng(&mut rand_core::OsRng, b"input");
        let bytes = signature.to_bytes();
        assert_eq!(bytes.len(), 132);
        public.verify_jws(ES512, b"input", &bytes).unwrap();
        assert!(public.verify_jws(ES512, b"other", &bytes).is_err());
        assert!(public.verify_jws(ES256, b"input", &bytes).is_err());
    }
}
