//! Deciding whether a token is a valid JWT-SVID (JWT-SVID §4).

use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};

use super::parse::{NumericDate, ParsedJwt, TokenType, shorten};
use super::{JwtAuthority, JwtError};
use crate::key::KeyError;
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// A JWT-SVID whose signature, times and audience were found right.
#[derive(Clone, Debug)]
pub struct ValidatedJwt {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `kid`
    pub kid: String,
    /// `aud`, a single string as a list of one.
    pub audience: Vec<String>,
    /// `exp`
    pub expires_at: OffsetDateTime,
    /// `iat`
    pub issued_at: Option<OffsetDateTime>,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// Validates a JWT-SVID: the header, the signature by an authority of the subject's own trust
/// domain with the token's `kid`, `exp`, `nbf` and `iat` with the leeway, and that one of
/// `audiences` is meant. Empty strings are no audiences. Authorities count as long as the bundle
/// holds them, whatever their own expiry.
///
/// # Errors
/// One [`JwtError`] for each rule. What the claims say is judged after the signature.
pub fn validate(
    token: &str,
    keys: &dyn Fn(&TrustDomain) -> Option<Vec<JwtAuthority>>,
    audiences: &[&str],
    at: OffsetDateTime,
    leeway: Duration,
) -> Result<ValidatedJwt, JwtError> {
    if !audiences.iter().any(|audience| !audience.is_empty()) {
        return Err(JwtError::NoAudienceConfigured);
    }
    let parsed = ParsedJwt::new(token, TokenType::Jwt)?;
    let spiffe_id = parsed.subject()?;
    let trust_domain = spiffe_id.trust_domain();
    let authorities = keys(trust_domain).ok_or_else(|| JwtError::NoBundle(trust_domain.clone()))?;
    verify_signature(&parsed, trust_domain, &authorities)?;
    let (expires_at, issued_at) = check_times(&parsed, at, leeway)?;
    let audience = check_audience(&parsed, audiences)?;
    Ok(ValidatedJwt {
        spiffe_id,
        kid: parsed.kid,
        audience,
        expires_at: expires_at.moment(),
        issued_at: issued_at.map(NumericDate::moment),
        claims: parsed.claims,
    })
}

/// Key ids are meant to be unique; where they are not, any key of that id will do.
fn verify_signature(
    token: &ParsedJwt<'_>,
    trust_domain: &TrustDomain,
    authorities: &[JwtAuthority],
) -> Result<(), JwtError> {
    let mut failure: Option<KeyError> = None;
    for authority in authorities.iter().filter(|a| a.key_id == token.kid) {
        let input = token.signing_input.as_bytes();
        match authority
            .public_key
            .verify_jws(token.algorithm, input, &token.signature)
        {
            Ok(()) => return Ok(()),
            Err(error) => failure = Some(error),
        }
    }
    Err(match failure {
        Some(error) => JwtError::Signature(error),
        None => JwtError::UnknownAuthority {
            key_id: shorten(&token.kid),
            trust_domain: trust_domain.clone(),
        },
    })
}

fn check_times(
    token: &ParsedJwt<'_>,
    at: OffsetDateTime,
    leeway: Duration,
) -> Result<(NumericDate, Option<NumericDate>), JwtError> {
    let expires_at = token.date("exp")?.ok_or(JwtError::ExpiryMissing)?;
    let not_before = token.date("nbf")?;
    let issued_at = token.date("iat")?;
    let leeway = leeway.whole_nanoseconds().max(0);
    let earliest = NumericDate(at.unix_timestamp_nanos() - leeway);
    let latest = NumericDate(at.unix_timestamp_nanos() + leeway);
    if earliest >= expires_at {
        return Err(JwtError::Expired);
    }
    if not_before.is_some_and(|not_before| latest < not_before) {
        return Err(JwtError::NotYetValid);
    }
    if issued_at.is_some_and(|issued_at| latest < issued_at) {
        return Err(JwtError::IssuedInFuture);
    }
    Ok((expires_at, issued_at))
}

fn check_audience(token: &ParsedJwt<'_>, wanted: &[&str]) -> Result<Vec<String>, JwtError> {
    let audience = token.audience()?.ok_or(JwtError::AudienceMissing)?;
    if audience.is_empty() {
        return Err(JwtError::AudienceMissing);
    }
    let meant = |name: &String| !name.is_empty() && wanted.contains(&name.as_str());
    if !audience.iter().any(meant) {
        let shown = audience.iter().take(8).map(|name| shorten(name)).collect();
        return Err(JwtError::Audience(shown));
    }
    Ok(audience)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::{DEFAULT_LEEWAY, sign};
    use crate::key::{JwsAlgorithm, KeyType, PrivateKey, PublicKey, Signer};
    use crate::x509::testing::NOW;
    use data_encoding::BASE64URL_NOPAD;
    use serde_json::json;

    const SUBJECT: &str = "spiffe://example.org/a";

    /// The authorities of `example.org`, and nobody else's.
    struct Domain {
        key: PrivateKey,
        authorities: Vec<JwtAuthority>,
    }

    impl Domain {
        fn new() -> Self {
            Self::with(KeyType::EcP256)
        }

        fn with(key_type: KeyType) -> Self {
            let key = PrivateKey::generate(key_type).unwrap();
            let authorities = vec![authority("k", key.public_key())];
            Self { key, authorities }
        }

        fn validate_at(
            &self,
            token: &str,
            at: OffsetDateTime,
            leeway: Duration,
        ) -> Result<ValidatedJwt, JwtError> {
            let keys = |trust_domain: &TrustDomain| {
                (trust_domain.as_str() == "example.org").then(|| self.authorities.clone())
            };
            validate(token, &keys, &["db"], at, leeway)
        }

        fn validate(&self, token: &str) -> Result<ValidatedJwt, JwtError> {
            self.validate_at(token, NOW, DEFAULT_LEEWAY)
        }

        /// A token with right claims changed by `change`; null removes.
        fn with_claims(&self, change: Value) -> Result<ValidatedJwt, JwtError> {
            self.validate(&self.token(change))
        }

        fn token(&self, change: Value) -> String {
            sign(&self.key, "k", &claims(change)).unwrap()
        }

        /// A token with that header, signed by the right key.
        fn with_header(&self, header: Value) -> Result<ValidatedJwt, JwtError> {
            self.validate(&self.token_with_header(&header.to_string()))
        }

        fn token_with_header(&self, header: &str) -> String {
            let claims = serde_json::to_vec(&claims(json!({}))).unwrap();
            let input = format!(
                "{}.{}",
                BASE64URL_NOPAD.encode(header.as_bytes()),
                BASE64URL_NOPAD.encode(&claims)
            );
            let signature = self.key.sign_jws(input.as_bytes()).unwrap();
            format!("{input}.{}", BASE64URL_NOPAD.encode(&signature))
        }
    }

    fn authority(key_id: &str, public_key: &PublicKey) -> JwtAuthority {
        JwtAuthority {
            key_id: key_id.to_owned(),
            public_key: public_key.clone(),
            expires_at: 0,
            tainted: false,
        }
    }

    fn claims(change: Value) -> Map<String, Value> {
        let now = NOW.unix_timestamp();
        let right = json!({"sub": SUBJECT, "aud": ["db"], "exp": now + 300, "iat": now});
        let mut claims = right.as_object().unwrap().clone();
        claims.extend(change.as_object().unwrap().clone());
        claims.retain(|_, value| !value.is_null());
        claims
    }

    /// Covers JWT-07, JWT-17.
    #[test]
    fn e_33_jwt_07_jwt_17_accepts_every_form_of_type_and_audience() {
        let domain = Domain::new();
        for header in [
            json!({"alg": "ES256", "kid": "k"}),
            json!({"alg": "ES256", "kid": "k", "typ": "JWT"}),
            json!({"alg": "ES256", "kid": "k", "typ": "JOSE"}),
        ] {
            domain.with_header(header).unwrap();
        }
        let single = domain.with_claims(json!({"aud": "db"})).unwrap();
        assert_eq!(single.audience, ["db"]);
        let several = domain.with_claims(json!({"aud": ["x", "db"]})).unwrap();
        assert_eq!(several.audience, ["x", "db"]);
        assert_eq!(several.spiffe_id.as_str(), SUBJECT);
        assert_eq!(several.expires_at, NOW + Duration::minutes(5));
        assert_eq!(several.issued_at, Some(NOW));
        assert_eq!(several.kid, "k");
        assert_eq!(several.claims["sub"], SUBJECT);
    }

    #[test]
    fn jwt_05_accepts_the_other_algorithms_of_the_signers() {
        for key_type in [KeyType::EcP384, KeyType::Rsa2048] {
            Domain::with(key_type).with_claims(json!({})).unwrap();
        }
    }

    /// Covers JWT-06.
    #[test]
    fn e_34_jwt_06_rejects_other_algorithms() {
        let domain = Domain::new();
        for header in [
            json!({"alg": "none", "kid": "k"}),
            json!({"alg": "EdDSA", "kid": "k"}),
            json!({"alg": "es256", "kid": "k"}),
            json!({"kid": "k"}),
            json!({"alg": 7, "kid": "k"}),
        ] {
            assert!(matches!(domain.with_header(header), Err(JwtError::Algorithm(_))));
        }
        let unsigned = domain.token_with_header(r#"{"alg":"none","kid":"k"}"#);
        let unsigned = format!("{}.", unsigned.rsplit_once('.').unwrap().0);
        assert!(matches!(domain.validate(&unsigned), Err(JwtError::Algorithm(_))));
    }

    /// Covers JWT-06.
    #[test]
    fn e_34_rejects_hmac_with_the_public_key() {
        let domain = Domain::new();
        let token = domain.token_with_header(r#"{"alg":"HS256","kid":"k"}"#);
        let input = token.rsplit_once('.').unwrap().0;
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, domain.key.public_key().spki_der());
        let tag = ring::hmac::sign(&key, input.as_bytes());
        let token = format!("{input}.{}", BASE64URL_NOPAD.encode(tag.as_ref()));
        assert!(matches!(
            domain.validate(&token),
            Err(JwtError::Algorithm(alg)) if alg == "HS256"
        ));
    }

    #[test]
    fn e_35_rejects_an_algorithm_that_does_not_fit_the_key() {
        for key_type in [KeyType::Rsa2048, KeyType::EcP384] {
            let result = Domain::with(key_type).with_header(json!({"alg": "ES256", "kid": "k"}));
            assert!(matches!(
                result,
                Err(JwtError::Signature(KeyError::AlgorithmMismatch { .. }))
            ));
        }
    }

    /// Covers JWT-07.
    #[test]
    fn e_36_e_46_rejects_other_types() {
        let domain = Domain::new();
        for kind in ["at+jwt", "wit+jwt", "jwt", ""] {
            let header = json!({"alg": "ES256", "kid": "k", "typ": kind});
            assert!(matches!(domain.with_header(header), Err(JwtError::Type { .. })));
        }
        let header = json!({"alg": "ES256", "kid": "k", "typ": null});
        assert!(domain.with_header(header).is_err());
    }

    #[test]
    fn e_37_d_10_never_takes_a_key_from_the_token_and_rejects_crit() {
        let (domain, attacker) = (Domain::new(), Domain::new());
        let jwk = attacker.key.public_key().to_jwk();
        let header = json!({"alg": "ES256", "kid": "k", "jwk": jwk}).to_string();
        assert!(matches!(
            domain.validate(&attacker.token_with_header(&header)),
            Err(JwtError::Signature(KeyError::BadSignature))
        ));
        domain.validate(&domain.token_with_header(&header)).unwrap();
        for crit in [json!(["x"]), json!([]), Value::Null] {
            let header = json!({"alg": "ES256", "kid": "k", "crit": crit});
            assert!(matches!(
                domain.with_header(header),
                Err(JwtError::CriticalHeader)
            ));
        }
    }

    #[test]
    fn d_11_rejects_a_token_without_a_key_id_and_with_an_unknown_one() {
        let domain = Domain::new();
        for header in [json!({"alg": "ES256"}), json!({"alg": "ES256", "kid": ""})] {
            assert!(matches!(domain.with_header(header), Err(JwtError::KeyIdMissing)));
        }
        assert!(matches!(
            domain.with_header(json!({"alg": "ES256", "kid": "other"})),
            Err(JwtError::UnknownAuthority { key_id, .. }) if key_id == "other"
        ));
    }

    /// Covers JWT-11, JWT-12, JWT-17.
    #[test]
    fn e_38_jwt_11_jwt_12_rejects_other_audiences() {
        let domain = Domain::new();
        for audience in [Value::Null, json!([])] {
            assert!(matches!(
                domain.with_claims(json!({"aud": audience})),
                Err(JwtError::AudienceMissing)
            ));
        }
        for audience in [json!(""), json!("DB"), json!(["dbx"]), json!("db ")] {
            assert!(matches!(
                domain.with_claims(json!({"aud": audience})),
                Err(JwtError::Audience(_))
            ));
        }
        for audience in [json!({"db": 1}), json!(7), json!(["db", 7])] {
            assert!(matches!(
                domain.with_claims(json!({"aud": audience})),
                Err(JwtError::Claim(_))
            ));
        }
    }

    /// Covers JWT-29.
    #[test]
    fn jwt_29_rejects_everything_when_no_audience_is_configured() {
        let domain = Domain::new();
        let token = domain.token(json!({"aud": ["", "db"]}));
        let keys = |_: &TrustDomain| Some(domain.authorities.clone());
        for audiences in [&[][..], &[""]] {
            assert!(matches!(
                validate(&token, &keys, audiences, NOW, DEFAULT_LEEWAY),
                Err(JwtError::NoAudienceConfigured)
            ));
        }
        let result = validate(&token, &keys, &["", "web"], NOW, DEFAULT_LEEWAY);
        assert!(matches!(result, Err(JwtError::Audience(_))));
    }

    /// Covers JWT-16, JWT-18.
    #[test]
    fn e_39_jwt_16_jwt_18_rejects_missing_malformed_and_past_expiry() {
        let domain = Domain::new();
        assert!(matches!(
            domain.with_claims(json!({"exp": null})),
            Err(JwtError::ExpiryMissing)
        ));
        assert!(matches!(
            domain.with_claims(json!({"exp": "1999999999"})),
            Err(JwtError::Claim(_))
        ));
        let now = NOW.unix_timestamp();
        for past in [now - 61, now - 60, -1] {
            assert!(matches!(
                domain.with_claims(json!({"exp": past})),
                Err(JwtError::Expired)
            ));
        }
        let token = domain.token(json!({"exp": now}));
        assert!(matches!(
            domain.validate_at(&token, NOW, Duration::ZERO),
            Err(JwtError::Expired)
        ));
        let before = NOW - Duration::nanoseconds(1);
        let token = domain.token(json!({"exp": now, "iat": null}));
        domain.validate_at(&token, before, Duration::ZERO).unwrap();
    }

    /// Covers JWT-18.
    #[test]
    fn e_40_d_09_d_19_accepts_a_fraction_and_an_expiry_within_the_leeway() {
        let domain = Domain::new();
        let now = NOW.unix_timestamp();
        domain.with_claims(json!({"exp": now - 30})).unwrap();
        let fraction = now as f64 + 0.5;
        let token = domain.token(json!({"exp": fraction}));
        domain.validate_at(&token, NOW, Duration::ZERO).unwrap();
        let later = NOW + Duration::milliseconds(500);
        assert!(domain.validate_at(&token, later, Duration::ZERO).is_err());
    }

    /// Covers JWT-19.
    #[test]
    fn e_41_jwt_19_rejects_tokens_of_the_future() {
        let domain = Domain::new();
        let now = NOW.unix_timestamp();
        assert!(matches!(
            domain.with_claims(json!({"nbf": now + 3600, "exp": now + 7200})),
            Err(JwtError::NotYetValid)
        ));
        domain.with_claims(json!({"nbf": now + 60})).unwrap();
        assert!(matches!(
            domain.with_claims(json!({"iat": now + 61})),
            Err(JwtError::IssuedInFuture)
        ));
        assert!(matches!(
            domain.with_claims(json!({"nbf": "soon"})),
            Err(JwtError::Claim(_))
        ));
    }

    #[test]
    fn e_42_jwt_09_rejects_subjects_that_are_no_spiffe_ids() {
        let domain = Domain::new();
        assert!(matches!(
            domain.with_claims(json!({"sub": null})),
            Err(JwtError::SubjectMissing)
        ));
        for subject in ["example.org/a", "spiffe://example.org/a/", ""] {
            assert!(matches!(
                domain.with_claims(json!({"sub": subject})),
                Err(JwtError::Subject(_))
            ));
        }
    }

    /// Covers WL-51, ID-23, BND-02.
    #[test]
    fn e_43_trusts_only_the_bundle_of_the_subjects_own_trust_domain() {
        let (a, b) = (Domain::new(), Domain::new());
        let token = a.token(json!({"sub": "spiffe://b.test/x"}));
        assert!(matches!(a.validate(&token), Err(JwtError::NoBundle(_))));
        let keys = |trust_domain: &TrustDomain| match trust_domain.as_str() {
            "a.test" => Some(a.authorities.clone()),
            "b.test" => Some(b.authorities.clone()),
            _ => None,
        };
        let result = validate(&token, &keys, &["db"], NOW, DEFAULT_LEEWAY);
        assert!(matches!(result, Err(JwtError::Signature(KeyError::BadSignature))));
    }

    /// Covers JWT-02, JWT-04.
    #[test]
    fn e_44_jwt_02_jwt_04_rejects_everything_but_the_compact_form() {
        let domain = Domain::new();
        let token = domain.token(json!({}));
        domain.validate(&token).unwrap();
        let parts: Vec<&str> = token.split('.').collect();
        let json_form = json!({"protected": parts[0], "payload": parts[1], "signature": parts[2]});
        for text in [
            String::new(),
            "..".to_owned(),
            json_form.to_string(),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}.x"),
            format!("{token}.x.y"),
            format!("{token}="),
            format!("{token}\n"),
            format!(" {token}"),
            format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
        ] {
            assert!(
                matches!(domain.validate(&text), Err(JwtError::Malformed(_))),
                "{text}"
            );
        }
    }

    #[test]
    fn e_45_jwt_25_a_key_that_is_no_jwt_authority_verifies_nothing() {
        // Bundles hand over keys of the use jwt-svid only; one of another use is simply not there.
        let mut domain = Domain::new();
        domain.authorities.clear();
        assert!(matches!(
            domain.with_claims(json!({})),
            Err(JwtError::UnknownAuthority { .. })
        ));
    }

    /// Covers JWT-27.
    #[test]
    fn jwt_27_tolerates_further_claims() {
        let domain = Domain::new();
        let more = json!({"jti": "x", "iss": "y", "azp": {"z": [1, null]}});
        let validated = domain.with_claims(more).unwrap();
        assert_eq!(validated.claims["azp"]["z"], json!([1, null]));
    }

    #[test]
    fn tampered_tokens_are_rejected() {
        let domain = Domain::new();
        let token = domain.token(json!({}));
        let other = domain.token(json!({"sub": "spiffe://example.org/admin"}));
        let part = |token: &str, at: usize| token.split('.').nth(at).unwrap().to_owned();
        let mixed = format!("{}.{}.{}", part(&token, 0), part(&other, 1), part(&token, 2));
        assert!(matches!(
            domain.validate(&mixed),
            Err(JwtError::Signature(KeyError::BadSignature))
        ));
    }

    #[test]
    fn tries_every_authority_of_the_key_id_also_tainted_ones() {
        let mut domain = Domain::new();
        let other = PrivateKey::generate(KeyType::Rsa2048).unwrap();
        domain.authorities[0].tainted = true;
        domain.authorities.insert(0, authority("k", other.public_key()));
        domain.with_claims(json!({})).unwrap();
        assert_eq!(domain.key.jws_algorithm(), JwsAlgorithm::ES256);
    }
}
