//! Parses tokens without verifying them.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::JwtError;
use crate::key::JwsAlgorithm;
use crate::spiffe_id::SpiffeId;

const MAX_TOKEN: usize = 64 * 1024;
/// The ends of what [`OffsetDateTime`] can hold: the years -9999 and 9999.
const MAX_SECONDS: i64 = 253_402_300_799;
const MIN_SECONDS: i64 = -377_705_116_800;
const NANOS: i128 = 1_000_000_000;

/// What a token says. Nothing of it is verified: good for printing and for the time of renewal of
/// a token that came from a trusted server.
#[derive(Clone, Debug)]
pub struct UnverifiedJwt {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `kid`
    pub kid: String,
    /// `alg`
    pub algorithm: JwsAlgorithm,
    /// `aud`, a single string as a list of one; empty when missing.
    pub audience: Vec<String>,
    /// `exp`
    pub expires_at: OffsetDateTime,
    /// `iat`
    pub issued_at: Option<OffsetDateTime>,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// Reads a token without verifying its signature, time or audience.
pub fn parse_unverified(token: &str) -> Result<UnverifiedJwt, JwtError> {
    let parsed = ParsedJwt::new(token, TokenType::Jwt)?;
    Ok(UnverifiedJwt {
        spiffe_id: parsed.subject()?,
        audience: parsed.audience()?.unwrap_or_default(),
        expires_at: parsed.date("exp")?.ok_or(JwtError::ExpiryMissing)?.moment(),
        issued_at: parsed.date("iat")?.map(NumericDate::moment),
        kid: parsed.kid,
        algorithm: parsed.algorithm,
        claims: parsed.claims,
    })
}

/// Which kind of token is expected; each has its own `typ`, so that none passes for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenType {
    /// A JWT-SVID: `JWT`, `JOSE` or none (JWT-SVID §2.3).
    Jwt,
    /// A WIT-SVID: `wit+jwt` (WIT-SVID §2.2).
    Wit,
    /// A Workload Proof Token: `wpt+jwt`. It has no `kid`: its key is that of the WIT-SVID in the same request.
    Proof,
}

/// A token taken apart, its header checked.
pub(crate) struct ParsedJwt<'a> {
    pub(crate) algorithm: JwsAlgorithm,
    /// Empty only where the type of token has none.
    pub(crate) kid: String,
    pub(crate) claims: Map<String, Value>,
    pub(crate) signing_input: &'a str,
    pub(crate) signature: Vec<u8>,
}

/// A NumericDate (RFC 7519 §2) in nanoseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct NumericDate(pub(crate) i128);

impl TokenType {
    fn is_typ(self, typ: Option<&str>) -> bool {
        match self {
            Self::Jwt => matches!(typ, None | Some("JWT" | "JOSE")),
            Self::Wit => typ == Some("wit+jwt"),
            Self::Proof => typ == Some("wpt+jwt"),
        }
    }

    fn wanted(self) -> &'static str {
        match self {
            Self::Jwt => "none, JWT or JOSE",
            Self::Wit => "wit+jwt",
            Self::Proof => "wpt+jwt",
        }
    }
}

impl<'a> ParsedJwt<'a> {
    /// The algorithm is judged before anything else (JWT-SVID §2.1).
    pub(crate) fn new(token: &'a str, wanted: TokenType) -> Result<Self, JwtError> {
        if token.len() > MAX_TOKEN {
            return Err(JwtError::TooLong);
        }
        let parts: Vec<&str> = token.splitn(4, '.').collect();
        let [header, claims, signature] = parts[..] else {
            return Err(JwtError::Malformed("not three parts"));
        };
        let header = object(header)?;
        let algorithm = algorithm_of(&header)?;
        check_type(&header, wanted)?;
        // Other members are ignored; keys are never taken from a token.
        if header.contains_key("crit") {
            return Err(JwtError::CriticalHeader);
        }
        let kid = match header.get("kid") {
            Some(Value::String(kid)) if !kid.is_empty() => kid.clone(),
            Some(Value::String(_)) | None if wanted == TokenType::Proof => String::new(),
            Some(Value::String(_)) | None => return Err(JwtError::KeyIdMissing),
            Some(_) => return Err(JwtError::Malformed("kid is not a string")),
        };
        Ok(Self {
            algorithm,
            kid,
            signing_input: &token[..token.len() - signature.len() - 1],
            signature: base64url(signature)?,
            claims: object(claims)?,
        })
    }

    pub(crate) fn subject(&self) -> Result<SpiffeId, JwtError> {
        match self.claims.get("sub") {
            Some(Value::String(subject)) => Ok(SpiffeId::parse(subject)?),
            Some(_) => Err(JwtError::Claim("sub is not a string")),
            None => Err(JwtError::SubjectMissing),
        }
    }

    /// `aud` is a string or an array of strings (RFC 7519 §4.1.3).
    pub(crate) fn audience(&self) -> Result<Option<Vec<String>>, JwtError> {
        const MALFORMED: JwtError = JwtError::Claim("aud is neither a string nor a list of them");
        match self.claims.get("aud") {
            None => Ok(None),
            Some(Value::String(audience)) => Ok(Some(vec![audience.clone()])),
            Some(Value::Array(list)) => list
                .iter()
                .map(|value| value.as_str().map(str::to_owned).ok_or(MALFORMED))
                .collect::<Result<Vec<String>, _>>()
                .map(Some),
            Some(_) => Err(MALFORMED),
        }
    }

    /// `exp`, `nbf` and `iat` are numbers, possibly with a fraction (RFC 7519 §2).
    pub(crate) fn date(&self, claim: &'static str) -> Result<Option<NumericDate>, JwtError> {
        let number = match self.claims.get(claim) {
            None => return Ok(None),
            Some(Value::Number(number)) => number,
            Some(_) => return Err(JwtError::Claim("time is not a number")),
        };
        if let Some(seconds) = number.as_i64() {
            return Ok(Some(NumericDate(i128::from(seconds) * NANOS)));
        }
        match number.as_f64() {
            // The conversion saturates.
            Some(seconds) => Ok(Some(NumericDate((seconds * NANOS as f64) as i128))),
            None => Err(JwtError::Claim("time is not a number")),
        }
    }
}

impl NumericDate {
    /// The moment, held within the years that can be represented.
    pub(crate) fn moment(self) -> OffsetDateTime {
        let seconds = i64::try_from(self.0.div_euclid(NANOS)).unwrap_or(match self.0 > 0 {
            true => MAX_SECONDS,
            false => MIN_SECONDS,
        });
        OffsetDateTime::from_unix_timestamp(seconds.clamp(MIN_SECONDS, MAX_SECONDS))
            .unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }
}

fn algorithm_of(header: &Map<String, Value>) -> Result<JwsAlgorithm, JwtError> {
    match header.get("alg") {
        Some(Value::String(name)) => name.parse().map_err(|_| JwtError::Algorithm(shorten(name))),
        _ => Err(JwtError::Algorithm(String::new())),
    }
}

fn check_type(header: &Map<String, Value>, wanted: TokenType) -> Result<(), JwtError> {
    let typ = match header.get("typ") {
        None => None,
        Some(Value::String(typ)) => Some(typ.as_str()),
        Some(_) => return Err(JwtError::Malformed("typ is not a string")),
    };
    if wanted.is_typ(typ) {
        return Ok(());
    }
    Err(JwtError::Type {
        found: typ.map(shorten).unwrap_or_default(),
        want: wanted.wanted(),
    })
}

fn object(part: &str) -> Result<Map<String, Value>, JwtError> {
    serde_json::from_slice(&base64url(part)?).map_err(|_| JwtError::Malformed("a part is not a JSON object"))
}

fn base64url(part: &str) -> Result<Vec<u8>, JwtError> {
    BASE64URL_NOPAD
        .decode(part.as_bytes())
        .map_err(|_| JwtError::Malformed("a part is not unpadded base64url"))
}

/// Text from other parties is truncated in errors.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::sign;
    use crate::key::{KeyType, PrivateKey};
    use serde_json::json;
    use time::macros::datetime;

    fn token(claims: Value) -> String {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        sign(&key, "k", claims.as_object().unwrap()).unwrap()
    }

    #[test]
    fn reads_what_a_token_says_without_its_key() {
        let token = token(json!({"sub": "spiffe://example.org/a", "aud": "db",
            "exp": 1893456000, "iat": 1893455000.75, "more": [1]}));
        let read = parse_unverified(&token).unwrap();
        assert_eq!(read.spiffe_id.as_str(), "spiffe://example.org/a");
        assert_eq!(read.audience, ["db"]);
        assert_eq!(read.expires_at, datetime!(2030-01-01 0:00 UTC));
        assert_eq!(read.issued_at, Some(datetime!(2029-12-31 23:43:20 UTC)));
        assert_eq!(read.kid, "k");
        assert_eq!(read.algorithm, JwsAlgorithm::ES256);
        assert_eq!(read.claims["more"], json!([1]));
    }

    #[test]
    fn absurd_dates_stay_within_what_can_be_represented() {
        for (date, year) in [
            (json!(1e300), 9999),
            (json!(i64::MAX), 9999),
            (json!(-1e300), -9999),
        ] {
            let token = token(json!({"sub": "spiffe://example.org/a", "exp": date}));
            assert_eq!(parse_unverified(&token).unwrap().expires_at.year(), year);
        }
    }

    #[test]
    fn the_algorithm_is_judged_before_anything_else() {
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"none","typ":7,"crit":[]}"#);
        assert!(matches!(
            parse_unverified(&format!("{header}.!.!")),
            Err(JwtError::Algorithm(alg)) if alg == "none"
        ));
    }

    #[test]
    fn texts_of_strangers_are_shortened() {
        let alg = "a".repeat(1000);
        let header = BASE64URL_NOPAD.encode(format!(r#"{{"alg":"{alg}"}}"#).as_bytes());
        let error = parse_unverified(&format!("{header}..")).unwrap_err();
        assert!(error.to_string().len() < 200);
        assert!(matches!(
            parse_unverified(&"a".repeat(MAX_TOKEN + 1)),
            Err(JwtError::TooLong)
        ));
    }
}
