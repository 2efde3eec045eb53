//! Signs tokens.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value, json};

use super::JwtError;
use crate::key::Signer;

/// Signs claims as a JWS in compact form with the header `alg`, `kid` and `typ` = `JWT`, as SPIRE
/// does. The claims are taken as they are.
pub fn sign(signer: &dyn Signer, kid: &str, claims: &Map<String, Value>) -> Result<String, JwtError> {
    sign_typed(signer, kid, "JWT", claims)
}

/// The same with another `typ`.
pub(crate) fn sign_typed(
    signer: &dyn Signer,
    kid: &str,
    typ: &str,
    claims: &Map<String, Value>,
) -> Result<String, JwtError> {
    let header = json!({"alg": signer.jws_algorithm().as_str(), "kid": kid, "typ": typ});
    let header = header.to_string();
    let claims = serde_json::to_vec(claims).map_err(|_| JwtError::Claim("not JSON"))?;

    let mut token = String::with_capacity((header.len() + claims.len() + 96) * 4 / 3 + 8);
    BASE64URL_NOPAD.encode_append(header.as_bytes(), &mut token);
    token.push('.');
    BASE64URL_NOPAD.encode_append(&claims, &mut token);
    let signature = signer.sign_jws(token.as_bytes()).map_err(JwtError::Sign)?;
    token.push('.');
    BASE64URL_NOPAD.encode_append(&signature, &mut token);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{KeyType, PrivateKey};

    #[test]
    fn jwt_01_jwt_03_a_token_has_three_parts_and_three_header_members() {
        for (key_type, alg, signature_length) in [
            (KeyType::EcP256, "ES256", 64),
            (KeyType::EcP384, "ES384", 96),
            (KeyType::Rsa2048, "RS256", 256),
        ] {
            let key = PrivateKey::generate(key_type).unwrap();
            let claims = json!({"sub": "spiffe://example.org/a", "aud": ["db"], "exp": 1});
            let token = sign(&key, "k\"1", claims.as_object().unwrap()).unwrap();
            let parts: Vec<Vec<u8>> = token
                .split('.')
                .map(|part| BASE64URL_NOPAD.decode(part.as_bytes()).unwrap())
                .collect();
            assert_eq!(parts.len(), 3);
            let header: Value = serde_json::from_slice(&parts[0]).unwrap();
            assert_eq!(header, json!({"alg": alg, "kid": "k\"1", "typ": "JWT"}));
            assert_eq!(serde_json::from_slice::<Value>(&parts[1]).unwrap(), claims);
            assert_eq!(parts[2].len(), signature_length);
        }
    }
}
