//! The JWT-SVID profile (JWT-SVID §2-3, as SPIRE fills it in).

use std::borrow::Cow;
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use finial_identity::key::Signer;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use ring::rand::{SecureRandom, SystemRandom};
use serde::Deserialize;
use serde_json::{Map, Value};
use time::OffsetDateTime;
use uuid::Uuid;

use super::check::CheckError;
use super::profile::ProfileError;

/// A token as it has to come out: a JWT-SVID, or a WIT-SVID ([`JwtProfile::wit`]).
#[derive(Debug)]
pub struct JwtProfile {
    token_type: &'static str,
    claims: Map<String, Value>,
    issued_at: OffsetDateTime,
    expires_at: OffsetDateTime,
}

/// What a token is to say.
#[derive(Clone, Debug)]
pub struct MintedJwt<'a> {
    pub trust_domain: &'a TrustDomain,
    pub spiffe_id: &'a SpiffeId,
    /// Not empty, no empty strings.
    pub audiences: Vec<String>,
    pub ttl: Duration,
    /// The end of the key that signs; no token outlives it.
    pub cap: OffsetDateTime,
    pub issuer: Option<&'a str>,
    /// Adds a random `jti`.
    pub with_id: bool,
}

impl JwtProfile {
    /// The claims at `now`: `sub`, `aud` (always a list), `exp` and `iat` in whole seconds, `iss` if configured and `jti`
    /// if asked for. There is no `nbf`.
    pub fn new(minted: MintedJwt<'_>, now: OffsetDateTime) -> Result<Self, ProfileError> {
        check_subject(minted.spiffe_id, minted.trust_domain)?;
        if minted.audiences.is_empty() || minted.audiences.iter().any(String::is_empty) {
            return Err(ProfileError::Audience);
        }
        let (issued_at, expires_at) = lifetime(now, minted.ttl, minted.cap)?;
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), minted.spiffe_id.as_str().into());
        claims.insert("aud".to_owned(), minted.audiences.into());
        claims.insert("exp".to_owned(), expires_at.unix_timestamp().into());
        claims.insert("iat".to_owned(), issued_at.unix_timestamp().into());
        if let Some(issuer) = minted.issuer {
            claims.insert("iss".to_owned(), issuer.into());
        }
        if minted.with_id {
            claims.insert("jti".to_owned(), draw_token_id().into());
        }
        Ok(Self::of(JWT, claims, (issued_at, expires_at)))
    }

    pub(super) fn of(
        token_type: &'static str,
        claims: Map<String, Value>,
        (issued_at, expires_at): (OffsetDateTime, OffsetDateTime),
    ) -> Self {
        Self {
            token_type,
            claims,
            issued_at,
            expires_at,
        }
    }

    /// `typ`
    pub fn token_type(&self) -> &'static str {
        self.token_type
    }

    /// The claims.
    pub fn claims(&self) -> &Map<String, Value> {
        &self.claims
    }

    /// `iat`.
    pub fn issued_at(&self) -> OffsetDateTime {
        self.issued_at
    }

    /// `exp`.
    pub fn expires_at(&self) -> OffsetDateTime {
        self.expires_at
    }
}

/// A token is for a workload of the own trust domain.
pub(super) fn check_subject(spiffe_id: &SpiffeId, trust_domain: &TrustDomain) -> Result<(), ProfileError> {
    if spiffe_id.is_member_of(trust_domain) && spiffe_id.has_path() {
        return Ok(());
    }
    Err(ProfileError::Subject(spiffe_id.to_string()))
}

/// When a token is issued and expires, in whole seconds. It does not outlive the key that signs it.
pub(super) fn lifetime(
    now: OffsetDateTime,
    ttl: Duration,
    cap: OffsetDateTime,
) -> Result<(OffsetDateTime, OffsetDateTime), ProfileError> {
    let issued_at = now.replace_nanosecond(0).unwrap_or(now);
    let wanted = time::Duration::try_from(ttl)
        .ok()
        .and_then(|ttl| issued_at.checked_add(ttl));
    let expires_at = wanted.map_or(cap, |wanted| wanted.min(cap));
    let expires_at = expires_at.replace_nanosecond(0).unwrap_or(expires_at);
    if expires_at <= issued_at {
        return Err(ProfileError::Expired(expires_at));
    }
    Ok((issued_at, expires_at))
}

/// A random `jti`.
pub(super) fn draw_token_id() -> String {
    BASE64URL_NOPAD.encode(Uuid::new_v4().as_bytes())
}

/// Decodes a signed token and compares its header and all its claims with the profile. The signature itself is verified
/// where the key is not in this process.
pub fn check_token(
    token: &str,
    profile: &JwtProfile,
    signer: &dyn Signer,
    key_id: &str,
) -> Result<(), CheckError> {
    let differs = CheckError::TokenDiffers;
    let (signed, signature) = token.rsplit_once('.').ok_or(differs("form"))?;
    let (header, claims) = signed.split_once('.').ok_or(differs("form"))?;
    let header = decode_part(header).ok_or(differs("header"))?;
    let claims = decode_part(claims).ok_or(differs("claims"))?;
    let header: DecodedHeader<'_> = serde_json::from_slice(&header).map_err(|_| differs("header"))?;
    let claims: DecodedClaims<'_> = serde_json::from_slice(&claims).map_err(|_| differs("claims"))?;
    let algorithm = signer.jws_algorithm();
    if header.alg != algorithm.as_str() || header.kid != key_id || header.typ != profile.token_type {
        return Err(differs("header"));
    }
    if !claims.are(&profile.claims) {
        return Err(differs("claims"));
    }
    let signature = BASE64URL_NOPAD
        .decode(signature.as_bytes())
        .map_err(|_| differs("signature"))?;
    if !signer.in_process() {
        signer
            .public_key()
            .verify_jws(algorithm, signed.as_bytes(), &signature)?;
    }
    Ok(())
}

/// Draws the id of a new JWT authority: 32 letters and digits. `None` when the system's generator fails.
pub fn draw_key_id(random: &SystemRandom) -> Option<String> {
    const ALPHABET: &[u8; 62] = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";
    let mut id = String::with_capacity(32);
    while id.len() < 32 {
        let mut bytes = [0; 32];
        random.fill(&mut bytes).ok()?;
        // 248 is the largest multiple of 62 that a byte holds: what lies above would favour the first letters.
        let drawn = bytes
            .iter()
            .filter(|byte| **byte < 248)
            .map(|byte| char::from(ALPHABET[usize::from(byte % 62)]));
        id.extend(drawn.take(32 - id.len()));
    }
    Some(id)
}

/// The header as it has to be; anything else in it is an error, as is a member twice.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecodedHeader<'a> {
    #[serde(borrow)]
    alg: Cow<'a, str>,
    #[serde(borrow)]
    kid: Cow<'a, str>,
    #[serde(borrow)]
    typ: Cow<'a, str>,
}

/// The claims that there can be, of the types that they must have.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DecodedClaims<'a> {
    #[serde(borrow)]
    sub: Cow<'a, str>,
    #[serde(borrow)]
    aud: Option<Vec<Cow<'a, str>>>,
    exp: i64,
    iat: i64,
    nbf: Option<i64>,
    #[serde(borrow)]
    iss: Option<Cow<'a, str>>,
    #[serde(borrow)]
    jti: Option<Cow<'a, str>>,
    cnf: Option<Value>,
}

impl DecodedClaims<'_> {
    fn are(&self, claims: &Map<String, Value>) -> bool {
        let text = |name: &str| claims.get(name).and_then(Value::as_str);
        let number = |name: &str| claims.get(name).and_then(Value::as_i64);
        let same_audience = match (claims.get("aud"), &self.aud) {
            (Some(Value::Array(wanted)), Some(found)) => {
                wanted.len() == found.len()
                    && wanted
                        .iter()
                        .zip(found)
                        .all(|(wanted, found)| wanted.as_str() == Some(found))
            }
            (wanted, found) => wanted.is_none() && found.is_none(),
        };
        text("sub") == Some(&*self.sub)
            && same_audience
            && number("exp") == Some(self.exp)
            && number("iat") == Some(self.iat)
            && number("nbf") == self.nbf
            && claims.get("cnf") == self.cnf.as_ref()
            && text("iss") == self.iss.as_deref()
            && text("jti") == self.jti.as_deref()
    }
}

fn decode_part(part: &str) -> Option<Vec<u8>> {
    BASE64URL_NOPAD.decode(part.as_bytes()).ok()
}

const JWT: &str = "JWT";

#[cfg(test)]
mod tests {
    use super::*;
    use finial_identity::jwt;
    use finial_identity::key::{KeyType, PrivateKey};
    use serde_json::json;
    use time::macros::datetime;

    const NOW: OffsetDateTime = datetime!(2030-06-01 12:00:00.9 UTC);
    const SECONDS: i64 = 1_906_545_600;

    fn profile(change: impl FnOnce(&mut MintedJwt<'_>)) -> Result<JwtProfile, ProfileError> {
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        let spiffe_id = SpiffeId::new(&trust_domain, "/db").unwrap();
        let audiences = vec!["one".to_owned()];
        let mut minted = MintedJwt {
            trust_domain: &trust_domain,
            spiffe_id: &spiffe_id,
            audiences,
            ttl: Duration::from_secs(300),
            cap: NOW + time::Duration::HOUR,
            issuer: None,
            with_id: false,
        };
        change(&mut minted);
        JwtProfile::new(minted, NOW)
    }

    #[test]
    fn claims_are_exactly_these() {
        let claims = Value::Object(profile(|_| {}).unwrap().claims().clone());
        let expected = json!({
            "sub": "spiffe://example.org/db", "aud": ["one"], "iat": SECONDS, "exp": SECONDS + 300,
        });
        assert_eq!(claims, expected);
    }

    #[test]
    fn issuer_is_there_only_if_configured() {
        let profile = profile(|minted| minted.issuer = Some("https://issuer.example")).unwrap();
        assert_eq!(profile.claims()["iss"], "https://issuer.example");
        assert_eq!(profile.claims().len(), 5);
    }

    #[test]
    fn token_id_is_sixteen_random_bytes_in_url_safe_base64() {
        let draw = || {
            profile(|minted| minted.with_id = true).unwrap().claims()["jti"]
                .as_str()
                .unwrap()
                .to_owned()
        };
        let (one, other) = (draw(), draw());
        assert_ne!(one, other);
        assert_eq!(BASE64URL_NOPAD.decode(one.as_bytes()).unwrap().len(), 16);
    }

    #[test]
    fn no_token_outlives_its_key() {
        let cap = NOW + time::Duration::seconds(20);
        let profile = profile(|minted| minted.cap = cap).unwrap();
        assert_eq!(profile.claims()["exp"], SECONDS + 20);
        assert_eq!(profile.expires_at().unix_timestamp(), SECONDS + 20);
    }

    #[test]
    fn an_expired_key_signs_nothing() {
        assert!(matches!(
            profile(|minted| minted.cap = NOW),
            Err(ProfileError::Expired(_))
        ));
    }

    #[test]
    fn foreign_ids_trust_domains_and_missing_audiences_are_refused() {
        let foreign = SpiffeId::parse("spiffe://other.org/db").unwrap();
        let bare = SpiffeId::parse("spiffe://example.org").unwrap();
        assert!(profile(|minted| minted.audiences = Vec::new()).is_err());
        let trust_domain = TrustDomain::parse("example.org").unwrap();
        for spiffe_id in [&foreign, &bare] {
            let minted = MintedJwt {
                trust_domain: &trust_domain,
                spiffe_id,
                audiences: vec!["a".to_owned()],
                ttl: Duration::from_secs(300),
                cap: NOW + time::Duration::HOUR,
                issuer: None,
                with_id: false,
            };
            assert!(matches!(
                JwtProfile::new(minted, NOW),
                Err(ProfileError::Subject(_))
            ));
        }
    }

    #[test]
    fn a_token_that_differs_is_noticed() {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let plain = profile(|_| {}).unwrap();
        let token = jwt::sign(&key, "kid", plain.claims()).unwrap();
        check_token(&token, &plain, &key, "kid").unwrap();
        assert!(check_token(&token, &plain, &key, "other").is_err());
        let other = profile(|minted| minted.ttl = Duration::from_secs(301)).unwrap();
        assert!(check_token(&token, &other, &key, "kid").is_err());
        let more = profile(|minted| minted.issuer = Some("x")).unwrap();
        assert!(check_token(&token, &more, &key, "kid").is_err());
        assert!(check_token("a.b", &plain, &key, "kid").is_err());
        let stronger = PrivateKey::generate(KeyType::EcP384).unwrap();
        assert!(check_token(&token, &plain, &stronger, "kid").is_err());
    }

    #[test]
    fn key_ids_are_thirty_two_letters_and_digits() {
        let random = SystemRandom::new();
        let id = draw_key_id(&random).unwrap();
        assert_eq!(id.len(), 32);
        assert!(id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
        assert_ne!(draw_key_id(&random).unwrap(), id);
    }
}
