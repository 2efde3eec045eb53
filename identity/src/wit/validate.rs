//! Deciding whether a token is a valid WIT-SVID, and whether its presenter has its key (WIT-SVID §4).

use std::fmt;

use serde_json::{Map, Value};
use time::{Duration, OffsetDateTime};

use super::{Confirmation, WitAuthority, WitError};
use crate::jwt::{JwtError, NumericDate, ParsedJwt, TokenType, shorten};
use crate::key::{JwsAlgorithm, PublicKey};
use crate::spiffe_id::{SpiffeId, TrustDomain};

/// By how much a WIT-SVID may be past `exp` (WIT-SVID §3.4 allows up to about two minutes).
pub const DEFAULT_SKEW: Duration = Duration::MINUTE;

/// A WIT-SVID with a valid signature and valid times, whose presenter has not yet proved possession of its
/// key. Whose it is cannot be read before that.
pub struct UnprovenWit {
    pub(super) token_text: String,
    pub(super) confirmation: Confirmation,
    wit: ValidatedWit,
}

/// A WIT-SVID that was presented together with a proof that its key is held.
#[derive(Clone, Debug)]
pub struct ValidatedWit {
    /// `sub`
    pub spiffe_id: SpiffeId,
    /// `kid`
    pub kid: String,
    /// `exp`
    pub expires_at: OffsetDateTime,
    /// All claims.
    pub claims: Map<String, Value>,
    /// `jti` of the Workload Proof Token that proved possession, for those who take each proof but once. The `jti`
    /// of the WIT-SVID itself says nothing about replay (WIT-SVID §3.3).
    pub proof_id: Option<String>,
}

/// Validates a WIT-SVID as far as that is possible without the proof of possession: the header, `sub`, `cnf`, the
/// signature by a WIT authority of the subject's own trust domain with the token's `kid`, `exp` with `skew`, `nbf`
/// without, and that there is no `aud`. `iat` and `jti` play no part; other claims are ignored.
///
/// # Errors
/// One [`WitError`] for each rule.
pub fn validate(
    token: &str,
    keys: &dyn Fn(&TrustDomain) -> Option<Vec<WitAuthority>>,
    at: OffsetDateTime,
    skew: Duration,
) -> Result<UnprovenWit, WitError> {
    let parsed = ParsedJwt::new(token, TokenType::Wit)?;
    let spiffe_id = parsed.subject()?;
    let trust_domain = spiffe_id.trust_domain();
    let authorities = keys(trust_domain).ok_or_else(|| WitError::NoBundle(trust_domain.clone()))?;
    verify_signature(&parsed, trust_domain, &authorities)?;
    let expires_at = check_times(&parsed, at, skew)?;
    if parsed.claims.contains_key("aud") {
        return Err(WitError::Audience);
    }
    Ok(UnprovenWit {
        token_text: token.to_owned(),
        confirmation: Confirmation::of(&parsed.claims)?,
        wit: ValidatedWit {
            spiffe_id,
            kid: parsed.kid,
            expires_at: expires_at.moment(),
            claims: parsed.claims,
            proof_id: None,
        },
    })
}

impl UnprovenWit {
    /// The key that the presenter has to hold.
    pub fn confirmation_key(&self) -> &PublicKey {
        &self.confirmation.public_key
    }

    /// The one algorithm that a proof may be signed with.
    pub fn confirmation_algorithm(&self) -> JwsAlgorithm {
        self.confirmation.algorithm
    }

    /// Accepts the token for a signature by its key over `input`, for protocols other than the Workload Proof
    /// Token, such as HTTP message signatures. `input` must be made by the caller from the request that it received
    /// and hold what limits the proof to it: its target and a short lifetime or a challenge (WIT-SVID §7.2).
    /// ECDSA signatures have the fixed form `r || s`.
    ///
    /// # Errors
    /// [`WitError::NotProven`].
    pub fn prove_signature(self, input: &[u8], signature: &[u8]) -> Result<ValidatedWit, WitError> {
        let Confirmation {
            public_key,
            algorithm,
        } = &self.confirmation;
        public_key
            .verify_jws(*algorithm, input, signature)
            .map_err(WitError::NotProven)?;
        Ok(self.wit)
    }

    pub(super) fn proven_by(self, proof_id: Option<String>) -> ValidatedWit {
        ValidatedWit { proof_id, ..self.wit }
    }
}

impl fmt::Debug for UnprovenWit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnprovenWit")
            .field("confirmation", &self.confirmation)
            .finish_non_exhaustive()
    }
}

fn verify_signature(
    token: &ParsedJwt<'_>,
    trust_domain: &TrustDomain,
    authorities: &[WitAuthority],
) -> Result<(), WitError> {
    let found = authorities
        .iter()
        .find(|WitAuthority(authority)| authority.key_id == token.kid);
    let Some(WitAuthority(authority)) = found else {
        return Err(WitError::UnknownAuthority {
            key_id: shorten(&token.kid),
            trust_domain: trust_domain.clone(),
        });
    };
    authority
        .public_key
        .verify_jws(token.algorithm, token.signing_input.as_bytes(), &token.signature)
        .map_err(|error| WitError::Token(JwtError::Signature(error)))
}

/// The leeway is for `exp` alone: the issuer backdates `nbf`.
fn check_times(token: &ParsedJwt<'_>, at: OffsetDateTime, skew: Duration) -> Result<NumericDate, WitError> {
    let expires_at = token.date("exp")?.ok_or(JwtError::ExpiryMissing)?;
    let not_before = token.date("nbf")?;
    let now = at.unix_timestamp_nanos();
    if NumericDate(now - skew.whole_nanoseconds().max(0)) >= expires_at {
        return Err(JwtError::Expired.into());
    }
    if not_before.is_some_and(|not_before| NumericDate(now) < not_before) {
        return Err(JwtError::NotYetValid.into());
    }
    Ok(expires_at)
}
