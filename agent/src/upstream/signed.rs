//! What the server signed, checked.

use std::fmt;
use std::sync::Arc;

use finial_identity::spiffe_id::SpiffeId;
use finial_identity::wire;
use finial_identity::x509::Certificate;
use finial_proto::spire::api::server::svid::v1::batch_new_x509svid_response;
use finial_proto::spire::api::types;
use time::OffsetDateTime;
use tonic::Code;

use super::UpstreamError;
use super::error::{self, may_be_of_one_server};

/// One certificate to be signed.
#[derive(Clone, Debug)]
pub struct SignRequest {
    /// For which entry.
    pub entry_id: String,
    /// PKCS#10 request; only its key counts.
    pub csr_der: Vec<u8>,
}

/// The result of one [`SignRequest`].
#[derive(Clone, Debug)]
pub enum SignOutcome {
    /// The chain, leaf first.
    Signed(Vec<Certificate>),
    /// The server does not know the entry, or not for this agent.
    NotFound(String),
    /// The server, or the parsing of its answer, failed for this entry.
    Failed(SignFailure),
}

/// What came of a [`SignRequest`] in place of a certificate.
#[derive(Clone, Debug)]
pub struct SignFailure {
    /// What is wrong.
    pub why: String,
    /// Whether another server may do better.
    pub(super) may_be_of_one_server: bool,
}

/// A JWT-SVID as the server signed it.
#[derive(Clone)]
pub struct SignedJwt {
    /// The token, a bearer secret.
    pub token: Arc<str>,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// When it was signed.
    pub issued_at: OffsetDateTime,
    /// When it stops being valid.
    pub expires_at: OffsetDateTime,
}

impl fmt::Debug for SignedJwt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignedJwt")
            .field("spiffe_id", &self.spiffe_id)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// The outcomes of so many requests.
pub(super) fn outcomes(
    results: Vec<batch_new_x509svid_response::Result>,
    expected: usize,
) -> Result<Vec<SignOutcome>, UpstreamError> {
    if results.len() != expected {
        return Err(UpstreamError::Malformed(format!(
            "{} results for {expected} certificate requests",
            results.len()
        )));
    }
    Ok(results.into_iter().map(outcome).collect())
}

fn outcome(result: batch_new_x509svid_response::Result) -> SignOutcome {
    let status = result.status.unwrap_or_default();
    match Code::from_i32(status.code) {
        Code::Ok => match chain_from_wire(result.svid) {
            Ok(chain) => SignOutcome::Signed(chain),
            Err(why) => SignOutcome::Failed(SignFailure {
                why,
                may_be_of_one_server: true,
            }),
        },
        Code::NotFound => SignOutcome::NotFound(error::clipped(&status.message)),
        code => SignOutcome::Failed(SignFailure {
            why: format!("{code:?}: {}", error::clipped(&status.message)),
            may_be_of_one_server: may_be_of_one_server(code),
        }),
    }
}

pub(super) fn chain_from_wire(svid: Option<types::X509svid>) -> Result<Vec<Certificate>, String> {
    let chain = svid.map(|svid| svid.cert_chain).unwrap_or_default();
    if chain.is_empty() || chain.len() > MAX_CHAIN {
        return Err(format!("SVID with a chain of {} certificates", chain.len()));
    }
    let parsed: Result<Vec<_>, _> = chain.iter().map(|der| Certificate::parse(der)).collect();
    parsed.map_err(|error| format!("SVID with an unusable certificate: {error}"))
}

pub(super) fn jwt_from_wire(svid: types::Jwtsvid) -> Result<SignedJwt, UpstreamError> {
    let malformed = |why: &str| UpstreamError::Malformed(format!("JWT-SVID: {why}"));
    if svid.token.is_empty() {
        return Err(malformed("the token is empty"));
    }
    if svid.issued_at <= 0 || svid.expires_at <= 0 || svid.issued_at > svid.expires_at {
        return Err(malformed("times are missing or in the wrong order"));
    }
    let at = |seconds| {
        OffsetDateTime::from_unix_timestamp(seconds).map_err(|_range| malformed("time out of range"))
    };
    Ok(SignedJwt {
        spiffe_id: wire::spiffe_id_from_wire(svid.id.as_ref())
            .map_err(|error| malformed(&error.to_string()))?,
        issued_at: at(svid.issued_at)?,
        expires_at: at(svid.expires_at)?,
        token: Arc::from(svid.token),
    })
}

/// Longer chains than any upstream authority makes.
const MAX_CHAIN: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn jwt(issued_at: i64, expires_at: i64) -> types::Jwtsvid {
        types::Jwtsvid {
            token: "a.b.c".to_owned(),
            id: Some(types::Spiffeid {
                trust_domain: "example.org".to_owned(),
                path: "/web".to_owned(),
            }),
            issued_at,
            expires_at,
            ..types::Jwtsvid::default()
        }
    }

    #[test]
    fn a_jwt_svid_without_sensible_times_is_refused() {
        assert!(jwt_from_wire(jwt(100, 400)).is_ok());
        for (issued_at, expires_at) in [(0, 400), (100, 0), (400, 100), (100, i64::MAX)] {
            assert!(jwt_from_wire(jwt(issued_at, expires_at)).is_err());
        }
        let mut empty = jwt(100, 400);
        empty.token.clear();
        assert!(jwt_from_wire(empty).is_err());
    }

    #[test]
    fn a_token_is_not_shown_by_debug() {
        let text = format!("{:?}", jwt_from_wire(jwt(100, 400)).unwrap());
        assert!(text.contains("/web") && !text.contains("a.b.c"));
    }

    #[test]
    fn results_of_signing_are_told_apart() {
        let result = |code: Code| batch_new_x509svid_response::Result {
            status: Some(types::Status {
                code: code.into(),
                message: "entry not found or not authorized".to_owned(),
            }),
            svid: None,
        };
        let failed = |code: Code| match outcome(result(code)) {
            SignOutcome::Failed(failure) => Some(failure.may_be_of_one_server),
            _ => None,
        };
        assert!(matches!(
            outcome(result(Code::NotFound)),
            SignOutcome::NotFound(_)
        ));
        assert_eq!(failed(Code::Internal), Some(true));
        assert_eq!(failed(Code::InvalidArgument), Some(false));
        assert_eq!(failed(Code::ResourceExhausted), Some(false));
        assert_eq!(failed(Code::Ok), Some(true), "no chain");
    }

    #[test]
    fn a_chain_that_is_empty_or_absurdly_long_is_refused() {
        let svid = |count| types::X509svid {
            cert_chain: vec![vec![0x30, 0]; count],
            ..types::X509svid::default()
        };
        assert!(chain_from_wire(None).is_err());
        assert!(chain_from_wire(Some(svid(0))).is_err());
        assert!(chain_from_wire(Some(svid(17))).unwrap_err().contains("17"));
    }
}
