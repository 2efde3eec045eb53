//! JWT-SVIDs: signing and validating (JWT-SVID).
//!
//! `kid` is required, as by SPIRE and go-spiffe; times are checked with a leeway that the caller chooses
//! ([`DEFAULT_LEEWAY`] is theirs).

mod parse;
mod sign;
mod validate;

pub use parse::{UnverifiedJwt, parse_unverified};
pub use sign::sign;
pub use validate::{ValidatedJwt, validate};

pub(crate) use parse::{NumericDate, ParsedJwt, TokenType, shorten};
pub(crate) use sign::sign_typed;

use time::{Duration, OffsetDateTime};

use crate::key::{KeyError, PublicKey};
use crate::spiffe_id::{SpiffeIdError, TrustDomain};

/// By how much clocks may differ, as in SPIRE and go-spiffe.
pub const DEFAULT_LEEWAY: Duration = Duration::MINUTE;

/// A JWT authority: a key that signs the JWT-SVIDs of a trust domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtAuthority {
    /// The `kid` of the tokens that it signed, and of its JWK.
    pub key_id: String,
    /// The key.
    pub public_key: PublicKey,
    /// When the key stops signing, in Unix seconds; 0 is not known.
    pub expires_at: i64,
    /// Whether what it signed must be replaced. It verifies until it is revoked.
    pub tainted: bool,
}

impl JwtAuthority {
    /// Whether the key stopped signing before a point in time.
    #[must_use]
    pub fn expired_before(&self, at: OffsetDateTime) -> bool {
        self.expires_at != 0 && self.expires_at < at.unix_timestamp()
    }
}

/// Why a token is refused or could not be made. No token is shown.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Longer than 64 KiB.
    #[error("token is longer than 64 KiB")]
    TooLong,
    /// Not a JWS in compact form with JSON objects in it (JWT-SVID §1, §2).
    #[error("malformed token: {0}")]
    Malformed(&'static str),
    /// `alg` is missing or not one of the nine (JWT-SVID §2.1).
    #[error("token has unsupported signature algorithm: {0:?}")]
    Algorithm(String),
    /// `typ` is not that of such tokens (JWT-SVID §2.3, WIT-SVID §2.2).
    #[error("token has type {found:?}, want {want}")]
    Type {
        /// What is there, shortened; empty for none.
        found: String,
        /// What may.
        want: &'static str,
    },
    /// The header names critical extensions, of which none is supported (RFC 7515 §4.1.11).
    #[error("token has critical header parameters")]
    CriticalHeader,
    /// No `kid`.
    #[error("token has no key id")]
    KeyIdMissing,
    /// No `sub` (JWT-SVID §3.1).
    #[error("token has no subject")]
    SubjectMissing,
    /// `sub` is no SPIFFE ID (JWT-SVID §3.1).
    #[error("token subject is not a SPIFFE ID: {0}")]
    Subject(#[from] SpiffeIdError),
    /// No bundle for the trust domain of the subject.
    #[error("no JWT bundle for trust domain: {0}")]
    NoBundle(TrustDomain),
    /// The trust domain has no authority of that key id.
    #[error("no JWT authority {key_id:?} in trust domain {trust_domain}")]
    UnknownAuthority {
        /// The `kid` of the token, shortened.
        key_id: String,
        /// The trust domain of the subject.
        trust_domain: TrustDomain,
    },
    /// The signature is wrong, or its algorithm does not fit the key.
    #[error("token signature: {0}")]
    Signature(KeyError),
    /// A claim of the wrong kind (RFC 7519 §4.1).
    #[error("token claim is malformed: {0}")]
    Claim(&'static str),
    /// No `exp` (JWT-SVID §3.3).
    #[error("token has no expiry")]
    ExpiryMissing,
    /// At or past `exp`.
    #[error("token has expired")]
    Expired,
    /// Before `nbf`.
    #[error("token is not valid yet")]
    NotYetValid,
    /// Before `iat`.
    #[error("token was issued in the future")]
    IssuedInFuture,
    /// No `aud` (JWT-SVID §3.2).
    #[error("token has no audience")]
    AudienceMissing,
    /// None of the audiences is ours (JWT-SVID §3.2).
    #[error("token is for another audience: {0:?}")]
    Audience(Vec<String>),
    /// The caller accepts no audience at all.
    #[error("no acceptable audience is configured")]
    NoAudienceConfigured,
    /// The token could not be signed.
    #[error("sign token: {0}")]
    Sign(KeyError),
}
