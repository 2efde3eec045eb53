//! Workload Proof Tokens: proof of possession of a WIT-SVID's key with each request (WIMSE Workload Proof
//! Token, `draft-ietf-wimse-wpt`, which may still change). They are made and checked here for the WIT-SVID only; the
//! caller compares the hashes of other tokens of the same request (`ath`, `tth`, `oth`).

use data_encoding::BASE64URL_NOPAD;
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};

use super::validate::{UnprovenWit, ValidatedWit};
use super::{Confirmation, WitError, parse_unverified};
use crate::jwt::{JwtError, NumericDate, ParsedJwt, TokenType};
use crate::key::{JwsAlgorithm, Signer};

/// A proof with a longer lifetime is refused: it must have a limited lifetime (WIT-SVID §7.2).
pub const MAX_PROOF_LIFE: Duration = Duration::minutes(5);

impl UnprovenWit {
    /// Accepts the token for a Workload Proof Token by its key, made for this very token and for `target`, the URI
    /// of the request without query and fragment. `skew` is how much clocks may differ. Whether the same proof came
    /// before is for the caller to remember, by [`ValidatedWit::proof_id`].
    ///
    /// # Errors
    /// [`WitError::Proof`], [`WitError::ProofRefused`], [`WitError::NotProven`].
    pub fn prove_token(
        self,
        proof: &str,
        target: &str,
        at: OffsetDateTime,
        skew: Duration,
    ) -> Result<ValidatedWit, WitError> {
        let parsed = ParsedJwt::new(proof, TokenType::Proof).map_err(WitError::Proof)?;
        let Confirmation {
            public_key,
            algorithm,
        } = &self.confirmation;
        if parsed.algorithm != *algorithm {
            return Err(WitError::ProofRefused("alg is not that of the confirmation"));
        }
        public_key
            .verify_jws(*algorithm, parsed.signing_input.as_bytes(), &parsed.signature)
            .map_err(WitError::NotProven)?;
        check_claims(&parsed, &self.token_text, target)?;
        check_life(&parsed, at, skew)?;
        let id = match parsed.claims.get("jti") {
            Some(Value::String(id)) if !id.is_empty() => id.clone(),
            _ => return Err(WitError::ProofRefused("it has no jti")),
        };
        Ok(self.proven_by(Some(id)))
    }
}

/// Makes a Workload Proof Token for one request with a WIT-SVID to `target`, the URI without query and fragment.
/// `id` must be another for each proof; `expires_at` is best a few seconds ahead.
///
/// # Errors
/// `key` is not the key of the token, or cannot sign.
pub fn sign_proof(
    key: &dyn Signer,
    token: &str,
    target: &str,
    id: &str,
    expires_at: OffsetDateTime,
) -> Result<String, WitError> {
    let Confirmation {
        public_key,
        algorithm,
    } = parse_unverified(token)?.confirmation;
    if public_key != *key.public_key() || algorithm != key.jws_algorithm() {
        return Err(WitError::ProofRefused("key is not that of the confirmation"));
    }
    let mut claims = Map::new();
    claims.insert("aud".to_owned(), target.into());
    claims.insert("exp".to_owned(), expires_at.unix_timestamp().into());
    claims.insert("jti".to_owned(), id.into());
    claims.insert("wth".to_owned(), hash_of(token).into());
    signed(key, algorithm, &claims)
}

fn signed(
    key: &dyn Signer,
    algorithm: JwsAlgorithm,
    claims: &Map<String, Value>,
) -> Result<String, WitError> {
    let header = serde_json::json!({"alg": algorithm.as_str(), "typ": "wpt+jwt"});
    let claims = serde_json::to_vec(claims).map_err(|_| WitError::ProofRefused("claims are not JSON"))?;
    let mut token = BASE64URL_NOPAD.encode(header.to_string().as_bytes());
    token.push('.');
    BASE64URL_NOPAD.encode_append(&claims, &mut token);
    let signature = key
        .sign_jws(token.as_bytes())
        .map_err(|error| WitError::Proof(JwtError::Sign(error)))?;
    token.push('.');
    BASE64URL_NOPAD.encode_append(&signature, &mut token);
    Ok(token)
}

fn check_claims(proof: &ParsedJwt<'_>, token: &str, target: &str) -> Result<(), WitError> {
    let text = |claim: &str| proof.claims.get(claim).and_then(Value::as_str);
    if text("aud").is_none_or(|aud| aud.is_empty() || aud != target) {
        return Err(WitError::ProofRefused("it is for another target"));
    }
    if text("wth") != Some(hash_of(token).as_str()) {
        return Err(WitError::ProofRefused("it is for another WIT-SVID"));
    }
    Ok(())
}

fn check_life(proof: &ParsedJwt<'_>, at: OffsetDateTime, skew: Duration) -> Result<(), WitError> {
    let date = |claim| proof.date(claim).map_err(WitError::Proof);
    let now = at.unix_timestamp_nanos();
    let skew = skew.whole_nanoseconds().max(0);
    let expires_at = date("exp")?.ok_or(WitError::Proof(JwtError::ExpiryMissing))?;
    if NumericDate(now - skew) >= expires_at {
        return Err(WitError::Proof(JwtError::Expired));
    }
    if NumericDate(now + skew + MAX_PROOF_LIFE.whole_nanoseconds()) < expires_at {
        return Err(WitError::ProofRefused("it lives too long"));
    }
    if date("nbf")?.is_some_and(|not_before| NumericDate(now + skew) < not_before) {
        return Err(WitError::Proof(JwtError::NotYetValid));
    }
    Ok(())
}

/// SHA-256 of the token's text, in base64url.
fn hash_of(token: &str) -> String {
    BASE64URL_NOPAD.encode(digest(&SHA256, token.as_bytes()).as_ref())
}
