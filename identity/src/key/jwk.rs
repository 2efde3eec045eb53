//! Public keys as JSON Web Keys (RFC 7517, RFC 7518 §6): the key parameters only.

use data_encoding::BASE64URL_NOPAD;
use rustls_pki_types::alg_id;
use serde_json::{Map, Value};

use super::public::rsa_numbers;
use super::{KeyError, PublicKey, PublicKeyKind};

/// Longer parameters belong to no supported key.
const MAX_PARAMETER: usize = 2048;

impl PublicKey {
    /// The key parameters: `kty`, `crv`, `x`, `y` for elliptic curves, `kty`, `n`, `e` for RSA.
    /// `use`, `kid` and the like are the caller's.
    pub fn to_jwk(&self) -> Map<String, Value> {
        let mut jwk = Map::new();
        let mut set = |name: &str, value: String| jwk.insert(name.to_owned(), Value::String(value));
        let curve = match self.kind() {
            PublicKeyKind::EcP256 => "P-256",
            PublicKeyKind::EcP384 => "P-384",
            PublicKeyKind::EcP521 => "P-521",
            PublicKeyKind::Ed25519 => {
                set("crv", "Ed25519".to_owned());
                set("kty", "OKP".to_owned());
                set("x", BASE64URL_NOPAD.encode(self.key_bytes()));
                return jwk;
            }
            PublicKeyKind::Rsa { .. } => {
                let (modulus, exponent) =
                    rsa_numbers(self.key_bytes()).expect("checked when the key was read");
                set("e", BASE64URL_NOPAD.encode(exponent));
                set("kty", "RSA".to_owned());
                set("n", BASE64URL_NOPAD.encode(modulus));
                return jwk;
            }
        };
        let (x, y) = self.key_bytes()[1..].split_at(self.key_bytes().len() / 2);
        set("crv", curve.to_owned());
        set("kty", "EC".to_owned());
        set("x", BASE64URL_NOPAD.encode(x));
        set("y", BASE64URL_NOPAD.encode(y));
        jwk
    }

    /// Reads the key parameters of a JWK; other members are ignored.
    ///
    /// # Errors
    /// When `kty` or `crv` is unknown, a parameter is missing, not base64url or of the wrong size.
    pub fn from_jwk(jwk: &Map<String, Value>) -> Result<Self, KeyError> {
        match text(jwk, "kty")? {
            "EC" => {
                let (algorithm, size) = match text(jwk, "crv")? {
                    "P-256" => (alg_id::ECDSA_P256, 32),
                    "P-384" => (alg_id::ECDSA_P384, 48),
                    "P-521" => (alg_id::ECDSA_P521, 66),
                    other => return Err(malformed(format!("unsupported crv: {other:?}"))),
                };
                let mut point = vec![4];
                for coordinate in ["x", "y"] {
                    let bytes = binary(jwk, coordinate)?;
                    if bytes.len() != size {
                        return Err(malformed(format!("{coordinate} is not {size} bytes long")));
                    }
                    point.extend_from_slice(&bytes);
                }
                Self::from_key_bytes(algorithm, &point)
            }
            "RSA" => Self::from_rsa_numbers(&binary(jwk, "n")?, &binary(jwk, "e")?),
            "OKP" if text(jwk, "crv")? == "Ed25519" => {
                Self::from_key_bytes(alg_id::ED25519, &binary(jwk, "x")?)
            }
            other => Err(malformed(format!("unsupported kty: {other:?}"))),
        }
    }
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<&'a str, KeyError> {
    match jwk.get(name) {
        Some(Value::String(value)) if value.len() <= MAX_PARAMETER => Ok(value),
        Some(_) => Err(malformed(format!("{name} is not a short string"))),
        None => Err(malformed(format!("{name} is missing"))),
    }
}

/// Unpadded base64url; padding is tolerated.
fn binary(jwk: &Map<String, Value>, name: &str) -> Result<Vec<u8>, KeyError> {
    BASE64URL_NOPAD
        .decode(text(jwk, name)?.trim_end_matches('=').as_bytes())
        .map_err(|_| malformed(format!("{name} is not base64url")))
}

fn malformed(why: String) -> KeyError {
    KeyError::MalformedJwk(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey};
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn keys_round_trip() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            let key = PrivateKey::generate(key_type).unwrap();
            let jwk = key.public_key().to_jwk();
            assert_eq!(&PublicKey::from_jwk(&jwk).unwrap(), key.public_key());
        }
    }

    #[test]
    fn reads_the_examples_of_rfc_7517() {
        let ec = map(json!({"kty":"EC","crv":"P-256",
            "x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
            "use":"enc","kid":"1"}));
        let key = PublicKey::from_jwk(&ec).unwrap();
        assert_eq!(key.kind(), PublicKeyKind::EcP256);
        assert_eq!(key.to_jwk()["x"], ec["x"]);
        let rsa = map(json!({"kty":"RSA","e":"AQAB","alg":"RS256","kid":"2011-04-29",
            "n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"}));
        let key = PublicKey::from_jwk(&rsa).unwrap();
        assert_eq!(key.kind(), PublicKeyKind::Rsa { bits: 2048 });
        assert_eq!(key.to_jwk()["n"], rsa["n"]);
    }

    #[test]
    fn refuses_malformed_keys() {
        for (jwk, reason) in [
            (json!({}), "kty is missing"),
            (json!({"kty":"XYZ"}), "unsupported kty"),
            (json!({"kty":"EC","crv":"P-224","x":"AA","y":"AA"}), "crv"),
            (json!({"kty":"EC","crv":"P-256","x":"AA","y":"AA"}), "32 bytes"),
            (json!({"kty":"RSA","n":"!","e":"AQAB"}), "base64url"),
            (json!({"kty":"RSA","n":7,"e":"AQAB"}), "string"),
            (json!({"kty":"oct","k":"AAAA"}), "unsupported kty"),
        ] {
            let error = PublicKey::from_jwk(&map(jwk)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
