//! The claim `cnf`: the key of the workload (WIT-SVID §3.2, RFC 7800 §3.2).

use serde_json::{Map, Value, json};

use super::WitError;
use crate::key::{JwsAlgorithm, KeyError, PublicKey};

/// Members of a JWK that only private or symmetric keys have (RFC 7518 §6).
const PRIVATE_MEMBERS: [&str; 8] = ["d", "p", "q", "dp", "dq", "qi", "oth", "k"];

/// The key that proves possession, and the one algorithm to prove it with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confirmation {
    /// `cnf.jwk`
    pub public_key: PublicKey,
    /// `cnf.jwk.alg`
    pub algorithm: JwsAlgorithm,
}

/// The value of `cnf` for a key that is used with this algorithm.
///
/// # Errors
/// The algorithm is not one for such a key.
pub fn confirmation(public_key: &PublicKey, algorithm: JwsAlgorithm) -> Result<Value, KeyError> {
    if !public_key.jws_algorithms().contains(&algorithm) {
        return Err(KeyError::AlgorithmMismatch {
            algorithm: algorithm.to_string(),
            kind: public_key.kind(),
        });
    }
    let mut jwk = public_key.to_jwk();
    jwk.insert("alg".to_owned(), algorithm.as_str().into());
    Ok(json!({ "jwk": jwk }))
}

impl Confirmation {
    /// Reads `cnf` of the claims.
    pub(super) fn of(claims: &Map<String, Value>) -> Result<Self, WitError> {
        let unusable = WitError::Confirmation;
        let cnf = claims.get("cnf").ok_or(WitError::ConfirmationMissing)?;
        let cnf = cnf.as_object().ok_or(unusable("cnf is not an object"))?;
        let jwk = cnf.get("jwk").ok_or(unusable("cnf has no jwk"))?;
        let jwk = jwk.as_object().ok_or(unusable("jwk is not an object"))?;
        if PRIVATE_MEMBERS.iter().any(|member| jwk.contains_key(*member)) {
            return Err(unusable("jwk is not a public key"));
        }
        let algorithm = match jwk.get("alg") {
            Some(Value::String(name)) => name.parse().map_err(|_| unusable("jwk has an unsupported alg"))?,
            Some(_) => return Err(unusable("alg of jwk is not a string")),
            None => return Err(unusable("jwk has no alg")),
        };
        let public_key = PublicKey::from_jwk(jwk).map_err(WitError::ConfirmationKey)?;
        if !public_key.jws_algorithms().contains(&algorithm) {
            return Err(unusable("alg does not fit the key"));
        }
        Ok(Self {
            public_key,
            algorithm,
        })
    }
}
