//! The WIT-SVID profile (WIT-SVID §2-4, with SPIRE's claims and those that the standard recommends).

use std::time::Duration;

use finial_identity::key::{JwsAlgorithm, PublicKey};
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::wit::{self, confirmation};
use serde_json::Map;
use time::OffsetDateTime;

use super::jwt::{JwtProfile, check_subject, draw_token_id, lifetime};
use super::profile::{BACKDATE, ProfileError};

/// What a WIT-SVID is to say.
#[derive(Clone, Debug)]
pub struct MintedWit<'a> {
    pub trust_domain: &'a TrustDomain,
    pub spiffe_id: &'a SpiffeId,
    /// The workload's key.
    pub public_key: &'a PublicKey,
    /// The algorithm that the workload proves possession with.
    pub algorithm: JwsAlgorithm,
    pub ttl: Duration,
    /// The end of the key that signs; no token outlives it.
    pub cap: OffsetDateTime,
    pub issuer: Option<&'a str>,
}

impl JwtProfile {
    /// The claims of a WIT-SVID at `now`: `sub`, `cnf.jwk` with `alg`, `exp` and `iat` in whole seconds, `nbf` a little
    /// before for clocks that run late, a random `jti`, and `iss` if configured. There is no `aud`: whom a token is for is
    /// said by the proof that comes with it (WIT-SVID §3.8).
    pub fn wit(minted: MintedWit<'_>, now: OffsetDateTime) -> Result<Self, ProfileError> {
        check_subject(minted.spiffe_id, minted.trust_domain)?;
        let cnf = confirmation(minted.public_key, minted.algorithm).map_err(ProfileError::Confirmation)?;
        let (issued_at, expires_at) = lifetime(now, minted.ttl, minted.cap)?;
        let not_before = issued_at.saturating_sub(BACKDATE);
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), minted.spiffe_id.as_str().into());
        claims.insert("cnf".to_owned(), cnf);
        claims.insert("exp".to_owned(), expires_at.unix_timestamp().into());
        claims.insert("iat".to_owned(), issued_at.unix_timestamp().into());
        claims.insert("nbf".to_owned(), not_before.unix_timestamp().into());
        claims.insert("jti".to_owned(), draw_token_id().into());
        if let Some(issuer) = minted.issuer {
            claims.insert("iss".to_owned(), issuer.into());
        }
        Ok(Self::of(wit::TYPE, claims, (issued_at, expires_at)))
    }
}

#[cfg(test)]
mod tests {
    use finial_identity::key::{KeyType, PrivateKey};
    use finial_identity::{jwt, wit};
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::super::jwt::check_token;
    use super::*;

    const NOW: OffsetDateTime = datetime!(2030-06-01 12:00:00.9 UTC);
    const SECONDS: i64 = 1_906_545_600;

    fn profile(key: &PublicKey, change: impl FnOnce(&mut MintedWit<'_>)) -> Result<JwtProfile, ProfileError> {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let spiffe_id = SpiffeId::new(&trust_domain, "/db").unwrap();
        let mut minted = MintedWit {
            trust_domain: &trust_domain,
            spiffe_id: &spiffe_id,
            public_key: key,
            algorithm: JwsAlgorithm::ES256,
            ttl: Duration::from_secs(300),
            cap: NOW + time::Duration::HOUR,
            issuer: None,
        };
        change(&mut minted);
        JwtProfile::wit(minted, NOW)
    }

    fn key() -> PrivateKey {
        PrivateKey::generate(KeyType::EcP256).unwrap()
    }

    #[test]
    fn claims_are_exactly_these_and_there_is_no_audience() {
        let key = key();
        let mut claims = profile(key.public_key(), |_| {}).unwrap().claims().clone();
        let id = claims.remove("jti").unwrap();
        assert_eq!(id.as_str().unwrap().len(), 22);
        let mut jwk = key.public_key().to_jwk();
        jwk.insert("alg".to_owned(), "ES256".into());
        let expected = json!({
            "sub": "spiffe://example.org/db", "iat": SECONDS, "nbf": SECONDS - 10, "exp": SECONDS + 300,
            "cnf": {"jwk": jwk},
        });
        assert_eq!(Value::Object(claims), expected);
        let with_issuer = profile(key.public_key(), |minted| minted.issuer = Some("x")).unwrap();
        assert_eq!(with_issuer.claims()["iss"], "x");
    }

    #[test]
    fn an_algorithm_of_another_key_a_foreign_id_and_an_expired_authority_are_refused() {
        let key = key();
        let public_key = key.public_key();
        assert!(matches!(
            profile(public_key, |minted| minted.algorithm = JwsAlgorithm::ES384),
            Err(ProfileError::Confirmation(_))
        ));
        assert!(matches!(
            profile(public_key, |minted| minted.cap = NOW),
            Err(ProfileError::Expired(_))
        ));
        let foreign = TrustDomain::parse("other.org").unwrap();
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let minted = MintedWit {
            trust_domain: &trust_domain,
            spiffe_id: &foreign.id(),
            public_key,
            algorithm: JwsAlgorithm::ES256,
            ttl: Duration::from_secs(1),
            cap: NOW + time::Duration::HOUR,
            issuer: None,
        };
        assert!(matches!(
            JwtProfile::wit(minted, NOW),
            Err(ProfileError::Subject(_))
        ));
    }

    #[test]
    fn a_token_that_differs_is_noticed() {
        let (authority, workload) = (key(), key());
        let plain = profile(workload.public_key(), |_| {}).unwrap();
        let token = wit::sign(&authority, "kid", plain.claims()).unwrap();
        check_token(&token, &plain, &authority, "kid").unwrap();
        let as_jwt = jwt::sign(&authority, "kid", plain.claims()).unwrap();
        assert!(check_token(&as_jwt, &plain, &authority, "kid").is_err());
        for (name, value) in [("cnf", json!({})), ("nbf", json!(0)), ("aud", json!(["x"]))] {
            let mut claims = plain.claims().clone();
            claims.insert(name.to_owned(), value);
            let token = wit::sign(&authority, "kid", &claims).unwrap();
            assert!(check_token(&token, &plain, &authority, "kid").is_err(), "{name}");
        }
    }
}
