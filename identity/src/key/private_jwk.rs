//! Private keys as JSON Web Keys (RFC 7517, RFC 7518 §6), as the Workload API hands those of WIT-SVIDs to their
//! owner (Workload API §7.2.1).

use data_encoding::BASE64URL_NOPAD;
use rsa::pkcs1::RsaPrivateKey;
use rsa::pkcs8::PrivateKeyInfo;
use rsa::pkcs8::der::asn1::OctetStringRef;
use rsa::pkcs8::der::{Reader, SliceReader};
use zeroize::Zeroizing;

use super::{KeyError, PrivateKey, Signer};

/// A member of the JWK and its bytes.
type Member<'a> = (&'static str, &'a [u8]);

impl PrivateKey {
    /// The key as the JSON text of a JWK with `alg`, the algorithm of [`Signer::sign_jws`]: a secret.
    ///
    /// # Errors
    /// The key's PKCS#8 structure cannot be taken apart.
    pub fn to_jwk_json(&self) -> Result<Zeroizing<String>, KeyError> {
        let info = PrivateKeyInfo::try_from(self.pkcs8_der()).map_err(malformed)?;
        if self.public_key().to_jwk()["kty"] == "EC" {
            let scalar = ec_scalar(info.private_key).map_err(malformed)?;
            return Ok(self.jwk_json(&[("d", scalar)]));
        }
        let key = RsaPrivateKey::try_from(info.private_key).map_err(malformed)?;
        Ok(self.jwk_json(&[
            ("d", key.private_exponent.as_bytes()),
            ("p", key.prime1.as_bytes()),
            ("q", key.prime2.as_bytes()),
            ("dp", key.exponent1.as_bytes()),
            ("dq", key.exponent2.as_bytes()),
            ("qi", key.coefficient.as_bytes()),
        ]))
    }

    /// Written at once into memory that is large enough: a text that grew would leave copies behind.
    fn jwk_json(&self, secret: &[Member<'_>]) -> Zeroizing<String> {
        let secret_bytes: usize = secret.iter().map(|(_, bytes)| bytes.len() * 4 / 3 + 16).sum();
        let mut text = Zeroizing::new(String::with_capacity(secret_bytes + MAX_PUBLIC));
        text.push_str("{\"alg\":\"");
        text.push_str(self.jws_algorithm().as_str());
        for (name, value) in self.public_key().to_jwk() {
            text.push_str("\",\"");
            text.push_str(&name);
            text.push_str("\":\"");
            // Names of curves and base64url need no escaping.
            text.push_str(value.as_str().unwrap_or_default());
        }
        for (name, bytes) in secret {
            text.push_str("\",\"");
            text.push_str(name);
            text.push_str("\":\"");
            BASE64URL_NOPAD.encode_append(bytes, &mut text);
        }
        text.push_str("\"}");
        text
    }
}

fn malformed<E>(_cause: E) -> KeyError {
    KeyError::MalformedPrivateKey("not the PKCS#8 of an EC or RSA key".to_owned())
}

/// The scalar of an ECPrivateKey (RFC 5915 §3), which has the length of the curve's field.
fn ec_scalar(ec_private_key: &[u8]) -> Result<&[u8], rsa::pkcs8::der::Error> {
    SliceReader::new(ec_private_key)?.sequence(|reader| {
        let _version: u8 = reader.decode()?;
        let scalar: OctetStringRef<'_> = reader.decode()?;
        reader.read_slice(reader.remaining_len())?;
        Ok(scalar.as_bytes())
    })
}

/// More than the public members of an RSA key of 4096 bits take.
const MAX_PUBLIC: usize = 1024;

#[cfg(test)]
mod tests {
    use ring::rand::SystemRandom;
    use ring::rsa::KeyPair as RsaKeyPair;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
    use serde_json::{Map, Value};

    use super::*;
    use crate::key::{JwsAlgorithm, KeyType, PublicKey};

    fn jwk(key: &PrivateKey) -> Map<String, Value> {
        serde_json::from_str(&key.to_jwk_json().unwrap()).unwrap()
    }

    fn bytes(jwk: &Map<String, Value>, member: &str) -> Vec<u8> {
        BASE64URL_NOPAD
            .decode(jwk[member].as_str().unwrap().as_bytes())
            .unwrap()
    }

    #[test]
    fn the_scalar_of_an_ec_key_signs_for_its_point() {
        for _ in 0..50 {
            let key = PrivateKey::generate(KeyType::EcP256).unwrap();
            let jwk = jwk(&key);
            assert_eq!(&PublicKey::from_jwk(&jwk).unwrap(), key.public_key());
            assert_eq!(jwk["alg"], "ES256");
            let scalar = bytes(&jwk, "d");
            assert_eq!(scalar.len(), 32);
            let point = [vec![4], bytes(&jwk, "x"), bytes(&jwk, "y")].concat();
            let random = SystemRandom::new();
            let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
            let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &scalar, &point, &random);
            let signature = pair.unwrap().sign(&random, b"input").unwrap();
            let public = key.public_key();
            public
                .verify_jws(JwsAlgorithm::ES256, b"input", signature.as_ref())
                .unwrap();
        }
        let key = PrivateKey::generate(KeyType::EcP384).unwrap();
        assert_eq!(bytes(&jwk(&key), "d").len(), 48);
    }

    #[test]
    fn an_rsa_key_has_all_its_members_and_they_fit() {
        let key = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        let jwk = jwk(&key);
        assert_eq!(&PublicKey::from_jwk(&jwk).unwrap(), key.public_key());
        assert_eq!(jwk["alg"], "RS256");
        let part = |member: &str| bytes(&jwk, member);
        let components = ring::rsa::KeyPairComponents {
            public_key: ring::rsa::PublicKeyComponents {
                n: part("n"),
                e: part("e"),
            },
            d: part("d"),
            p: part("p"),
            q: part("q"),
            dP: part("dp"),
            dQ: part("dq"),
            qInv: part("qi"),
        };
        RsaKeyPair::from_components(&components).unwrap();
    }

    #[test]
    fn a_key_that_was_read_has_the_same_jwk() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let read = PrivateKey::from_pkcs8_der(key.pkcs8_der()).unwrap();
        assert_eq!(*key.to_jwk_json().unwrap(), *read.to_jwk_json().unwrap());
    }
}
