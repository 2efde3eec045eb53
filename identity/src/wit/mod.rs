//! WIT-SVIDs: tokens that can be used only with the key that they name (WIT-SVID, Incubating).
//!
//! A WIT-SVID is signed like a JWT-SVID ([`sign`]) but says in `cnf` which key its workload has
//! ([`confirmation`]). [`validate`] gives an [`UnprovenWit`], which does not give the SPIFFE ID: that
//! is available only after a proof that the presenter has the key ([`UnprovenWit::prove_token`],
//! [`UnprovenWit::prove_signature`]), so that no token can be used as a bearer token (WIT-SVID §5, §7.1).

mod confirmation;
mod proof;
mod validate;

#[cfg(test)]
mod tests;

pub use confirmation::{Confirmation, confirmation};
pub use proof::{MAX_PROOF_LIFE, sign_proof};
pub use validate::{DEFAULT_SKEW, UnprovenWit, ValidatedWit, validate};

use serde_json::{Map, Value};
use time::OffsetDateTime;

use crate::jwt::{JwtAuthority, JwtError, ParsedJwt, TokenType, sign_typed};
use crate::key::{KeyError, Signer};
use crate::spiffe_id::TrustDomain;

/// The `typ` of a WIT-SVID (WIT-SVID §2.2).
pub const TYPE: &str = "wit+jwt";

/// A WIT authority: a key that signs the WIT-SVIDs of a trust domain. It is a type of its own so that it never
/// verifies a JWT-SVID, nor a JWT authority a WIT-SVID (WIT-SVID §6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WitAuthority(pub JwtAuthority);

/// Why a WIT-SVID or its proof is refused or could not be made. No token is shown.
#[derive(Debug, thiserror::Error)]
pub enum WitError {
    /// A rule that WIT-SVIDs share with JWT-SVIDs.
    #[error("WIT-SVID: {0}")]
    Token(#[from] JwtError),
    /// No bundle with WIT authorities for the trust domain of the subject.
    #[error("no WIT bundle for trust domain: {0}")]
    NoBundle(TrustDomain),
    /// The trust domain has no WIT authority of that key id.
    #[error("no WIT authority {key_id:?} in trust domain {trust_domain}")]
    UnknownAuthority {
        /// The `kid` of the token, shortened.
        key_id: String,
        /// The trust domain of the subject.
        trust_domain: TrustDomain,
    },
    /// There is an `aud`, which a WIT-SVID must not have (WIT-SVID §3.8).
    #[error("WIT-SVID has an audience")]
    Audience,
    /// No `cnf` (WIT-SVID §3.2).
    #[error("WIT-SVID has no confirmation")]
    ConfirmationMissing,
    /// `cnf` is not an object with a public key that can be used (WIT-SVID §3.2, RFC 7800 §3.2).
    #[error("WIT-SVID has an unusable confirmation: {0}")]
    Confirmation(&'static str),
    /// The key of `cnf` cannot be read.
    #[error("WIT-SVID has an unusable confirmation key: {0}")]
    ConfirmationKey(KeyError),
    /// The proof is missing, malformed or of another type.
    #[error("proof of possession: {0}")]
    Proof(JwtError),
    /// The proof is not for this token, this request or this time.
    #[error("proof of possession: {0}")]
    ProofRefused(&'static str),
    /// The proof is not signed with the key of `cnf`.
    #[error("proof of possession is not by the confirmed key: {0}")]
    NotProven(KeyError),
}

/// Signs claims as a WIT-SVID: a JWS in compact form with the header `alg`, `kid` and `typ` = `wit+jwt` and no
/// other member (WIT-SVID §2). The claims are taken as they are.
///
/// # Errors
/// The key cannot sign.
pub fn sign(signer: &dyn Signer, kid: &str, claims: &Map<String, Value>) -> Result<String, JwtError> {
    sign_typed(signer, kid, TYPE, claims)
}

/// What a WIT-SVID that came from a trusted server says about itself. Nothing of it is verified.
#[derive(Clone, Debug)]
pub struct UnverifiedWit {
    /// `kid`
    pub kid: String,
    /// The key and algorithm of `cnf`.
    pub confirmation: Confirmation,
    /// `exp`
    pub expires_at: OffsetDateTime,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// Reads a WIT-SVID without verifying its signature or time, for whoever was issued it. It does not say who
/// presents it.
///
/// # Errors
/// The token is malformed or lacks what every WIT-SVID has.
pub fn parse_unverified(token: &str) -> Result<UnverifiedWit, WitError> {
    let parsed = ParsedJwt::new(token, TokenType::Wit)?;
    parsed.subject()?;
    Ok(UnverifiedWit {
        confirmation: Confirmation::of(&parsed.claims)?,
        expires_at: parsed.date("exp")?.ok_or(JwtError::ExpiryMissing)?.moment(),
        kid: parsed.kid,
        claims: parsed.claims,
    })
}
