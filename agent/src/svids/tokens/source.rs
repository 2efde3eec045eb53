//! What a cache keeps, who signs it, and why there is none.

use std::fmt;
use std::future::Future;

use async_trait::async_trait;
use finial_identity::jwt::parse_unverified;
use finial_identity::spiffe_id::SpiffeId;
use time::OffsetDateTime;
use tonic::Code;

use crate::svids::counters::{CacheCounters, TokenCounters};
use crate::upstream::{SignedJwt, Upstream, UpstreamError};

/// Signs JWT-SVIDs: the server, or a fake in tests.
#[async_trait]
pub trait JwtSource: Send + Sync + fmt::Debug {
    /// One JWT-SVID for an entry.
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError>;
}

#[async_trait]
impl JwtSource for Upstream {
    async fn sign_jwt(&self, entry_id: &str, audiences: &[String]) -> Result<SignedJwt, UpstreamError> {
        Self::sign_jwt(self, entry_id, audiences).await
    }
}

/// What a cache keeps: JWT-SVIDs or WIT-SVIDs.
pub trait Signed: Clone + Send + Sync + 'static {
    /// What signs them.
    type Source: ?Sized + Send + Sync + fmt::Debug;
    /// The name of one, for operators.
    const NAME: &'static str;
    /// The metric that samples how many were found to be of a tainted authority.
    const TAINTED: Option<&'static str>;

    /// A new one for an entry.
    fn sign(
        source: &Self::Source,
        entry_id: &str,
        audiences: &[String],
    ) -> impl Future<Output = Result<Self, UpstreamError>> + Send;
    /// The token.
    fn token(&self) -> &str;
    /// Whose it is.
    fn spiffe_id(&self) -> &SpiffeId;
    /// When it was signed, and when it stops being valid.
    fn life(&self) -> (OffsetDateTime, OffsetDateTime);
    /// `kid` of the authority that signed it.
    fn key_id(&self) -> Option<String>;
    /// Where they are counted.
    fn counters(counters: &CacheCounters) -> &TokenCounters;
}

impl Signed for SignedJwt {
    type Source = dyn JwtSource;
    const NAME: &'static str = "JWT-SVID";
    const TAINTED: Option<&'static str> = Some("cache_manager_tainted_jwt_svids_workload");

    async fn sign(
        source: &Self::Source,
        entry_id: &str,
        audiences: &[String],
    ) -> Result<Self, UpstreamError> {
        source.sign_jwt(entry_id, audiences).await
    }

    fn token(&self) -> &str {
        &self.token
    }

    fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    fn life(&self) -> (OffsetDateTime, OffsetDateTime) {
        (self.issued_at, self.expires_at)
    }

    fn key_id(&self) -> Option<String> {
        parse_unverified(&self.token).ok().map(|token| token.kid)
    }

    fn counters(counters: &CacheCounters) -> &TokenCounters {
        &counters.jwt
    }
}

/// Why there is no JWT-SVID or WIT-SVID.
#[derive(Clone, Debug, thiserror::Error)]
pub enum JwtError {
    /// The entry is unknown to the server, or this agent is not authorized for it.
    #[error("entry not found or not authorized: {0}")]
    NotFound(String),
    /// The server refuses such a request.
    #[error("server refused: {0}")]
    Refused(String),
    /// The server could not be reached or did not answer in time.
    #[error("server unavailable: {0}")]
    Unavailable(String),
}

impl From<UpstreamError> for JwtError {
    fn from(error: UpstreamError) -> Self {
        match error {
            UpstreamError::Other {
                code: Code::NotFound,
                message,
            } => Self::NotFound(message),
            error if error.is_refusal() => Self::Refused(error.to_string()),
            error => Self::Unavailable(error.to_string()),
        }
    }
}
