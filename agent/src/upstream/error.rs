//! Errors of calls to the server, by what the agent must do about them.

use std::error::Error;
use std::fmt;
use std::io;

use finial_identity::peer::PeerError;
use finial_identity::x509::X509Svid;
use finial_proto::google::rpc::Status as RpcStatus;
use finial_proto::spire::api::types::PermissionDeniedDetails;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use prost::Message;
use rustls::{AlertDescription, CertificateError};
use tonic::{Code, Status};

use super::dial::DialError;

/// Why a call to the server failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The server denies this agent; the reason says what helps.
    #[error("server denied this agent: {reason}: {message}")]
    PermissionDenied {
        /// From the status details; [`DenialReason::Unknown`] when there are none.
        reason: DenialReason,
        /// What the server said.
        message: String,
        /// The serial number of the agent's SVID that the call was made with, in hexadecimal, if it was made with one.
        serial: Option<String>,
    },
    /// The server's certificate is of no authority in the trust bundle.
    #[error("server is not trusted: {0}")]
    UnknownAuthority(String),
    /// The server's certificate is not valid now, or not the server's.
    #[error("server is not trusted: {0}")]
    Untrusted(String),
    /// The server refused this agent's certificate while connecting.
    #[error("server refused the agent's certificate: {why}")]
    SvidRefused {
        /// The alert.
        why: String,
        /// The serial number of that certificate, in hexadecimal, if one was shown.
        serial: Option<String>,
    },
    /// The call ran on a connection that an older SVID of this agent had opened; call again.
    #[error("connection belongs to an older SVID of this agent")]
    Superseded,
    /// The server does not know the method.
    #[error("server does not offer the method: {0}")]
    Unimplemented(String),
    /// The server cannot be reached, or says that it is of no use now.
    #[error("server unavailable: {0}")]
    Unavailable(String),
    /// The server did not answer what was asked in time.
    #[error("server unavailable: {0}: no answer in time")]
    Unanswered(&'static str),
    /// The server answered with another error.
    #[error("server answered {code:?}: {message}")]
    Other {
        /// The gRPC code.
        code: Code,
        /// What the server said.
        message: String,
    },
    /// The server's answer does not make sense.
    #[error("unusable answer of the server: {0}")]
    Malformed(String),
}

/// Why the server denies an agent (`spire.api.types.PermissionDeniedDetails`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenialReason {
    /// No reason was given.
    Unknown,
    /// The SVID has expired.
    AgentExpired,
    /// There is no record of this agent: it was evicted, or never attested.
    AgentNotAttested,
    /// The SVID is not the one that the server last issued to this agent.
    AgentNotActive,
    /// The agent was banned.
    AgentBanned,
    /// The agent must attest again instead of renewing.
    AgentMustReattest,
}

impl UpstreamError {
    /// Whether the same call can succeed later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Superseded
            | Self::Unavailable(_)
            | Self::Unanswered(_)
            | Self::UnknownAuthority(_)
            | Self::Untrusted(_)
            | Self::SvidRefused { .. } => true,
            Self::Other { code, .. } => {
                matches!(
                    code,
                    Code::Internal | Code::ResourceExhausted | Code::Aborted | Code::DataLoss
                )
            }
            Self::PermissionDenied { .. } | Self::Unimplemented(_) | Self::Malformed(_) => false,
        }
    }

    /// Whether the server refused the request itself: asking again the same way is of no use.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::PermissionDenied { .. } | Self::Unimplemented(_) => true,
            Self::Other { code, .. } => matches!(
                code,
                Code::InvalidArgument
                    | Code::FailedPrecondition
                    | Code::Unauthenticated
                    | Code::PermissionDenied
            ),
            _ => false,
        }
    }

    /// The gRPC code that says most about it.
    pub fn code(&self) -> Code {
        match self {
            Self::PermissionDenied { .. } => Code::PermissionDenied,
            Self::UnknownAuthority(_) | Self::Untrusted(_) | Self::SvidRefused { .. } => {
                Code::Unauthenticated
            }
            Self::Superseded => Code::Aborted,
            Self::Unimplemented(_) => Code::Unimplemented,
            Self::Unavailable(_) | Self::Unanswered(_) => Code::Unavailable,
            Self::Other { code, .. } => *code,
            Self::Malformed(_) => Code::Internal,
        }
    }

    /// Whether it may be the trouble of the one server that was asked, so that another may do better.
    pub fn may_be_of_one_server(&self) -> bool {
        match self {
            Self::Unavailable(_) | Self::Unanswered(_) | Self::Malformed(_) => true,
            Self::Other { code, .. } => may_be_of_one_server(*code),
            _ => false,
        }
    }

    /// The denial of this agent in particular, if that is what it is.
    pub fn denial(&self) -> Option<DenialReason> {
        match self {
            Self::PermissionDenied { reason, .. } if *reason != DenialReason::Unknown => Some(*reason),
            _ => None,
        }
    }

    /// Notes which SVID a call was made with, where that matters.
    pub(super) fn about(mut self, svid: &X509Svid) -> Self {
        if let Self::PermissionDenied { serial, .. } | Self::SvidRefused { serial, .. } = &mut self {
            *serial = Some(svid.leaf().serial_hex());
        }
        self
    }

    /// Whether it is about the SVID that the call was made with, so that another may be welcome. A ban is not.
    pub(super) fn is_about_the_svid(&self) -> bool {
        let denial = self.denial();
        matches!(self, Self::SvidRefused { .. })
            || denial.is_some_and(|reason| reason != DenialReason::AgentBanned)
    }
}

impl From<Status> for UpstreamError {
    fn from(status: Status) -> Self {
        if let Some(local) = transport_failure(&status) {
            return local;
        }
        let message = clipped(status.message());
        match status.code() {
            Code::PermissionDenied => Self::PermissionDenied {
                reason: denial_reason(status.details()),
                message,
                serial: None,
            },
            Code::Unimplemented => Self::Unimplemented(message),
            // Those that the server says by itself; a call that this agent gave up is `Unanswered`.
            Code::Unavailable => Self::Unavailable(message),
            code => Self::Other { code, message },
        }
    }
}

impl fmt::Display for DenialReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "no reason given",
            Self::AgentExpired => "agent SVID has expired",
            Self::AgentNotAttested => "agent is not attested",
            Self::AgentNotActive => "agent SVID is not the active one",
            Self::AgentBanned => "agent is banned",
            Self::AgentMustReattest => "agent must attest again",
        })
    }
}

/// Reads the reason from the bytes of `grpc-status-details-bin`. What cannot be read gives no reason.
fn denial_reason(details: &[u8]) -> DenialReason {
    const TYPE: &str = "spire.api.types.PermissionDeniedDetails";
    let Ok(status) = RpcStatus::decode(details) else {
        return DenialReason::Unknown;
    };
    let wanted = status
        .details
        .iter()
        .find(|any| any.type_url.rsplit('/').next() == Some(TYPE));
    let reason = wanted
        .and_then(|any| PermissionDeniedDetails::decode(any.value.as_slice()).ok())
        .map(|details| details.reason());
    match reason {
        None | Some(Reason::Unknown) => DenialReason::Unknown,
        Some(Reason::AgentExpired) => DenialReason::AgentExpired,
        Some(Reason::AgentNotAttested) => DenialReason::AgentNotAttested,
        Some(Reason::AgentNotActive) => DenialReason::AgentNotActive,
        Some(Reason::AgentBanned) => DenialReason::AgentBanned,
        Some(Reason::AgentMustReattest) => DenialReason::AgentMustReattest,
    }
}

/// The failure of the connection under a call, distinguished from an answer of the server: only the former
/// has a source.
fn transport_failure(status: &Status) -> Option<UpstreamError> {
    let first = status.source()?;
    let mut next = Some(first);
    let mut innermost = first;
    while let Some(error) = next {
        if let Some(dial) = error.downcast_ref::<DialError>() {
            return Some(dial.to_upstream());
        }
        if let Some(tls) = tls_error(error) {
            return Some(classify_tls(tls));
        }
        innermost = error;
        next = error.source();
    }
    Some(UpstreamError::Unavailable(clipped(&format!(
        "{}: {innermost}",
        status.message()
    ))))
}

/// Whether an answer with this code may be the trouble of one server.
pub(super) fn may_be_of_one_server(code: Code) -> bool {
    matches!(
        code,
        Code::Internal | Code::Unknown | Code::Unavailable | Code::DeadlineExceeded | Code::DataLoss
    )
}

/// What a TLS failure means for the agent.
pub(super) fn classify_tls(error: &rustls::Error) -> UpstreamError {
    match error {
        rustls::Error::InvalidCertificate(_)
        | rustls::Error::NoCertificatesPresented
        | rustls::Error::UnsupportedNameType => {
            let ours = PeerError::within(error).map(ToString::to_string);
            let mut why = ours.unwrap_or_else(|| error.to_string());
            if is_of_time(error) {
                why.push_str("; the clock here or there may be wrong");
            }
            if matches!(
                error,
                rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer)
            ) {
                UpstreamError::UnknownAuthority(why)
            } else {
                UpstreamError::Untrusted(why)
            }
        }
        rustls::Error::AlertReceived(
            AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::CertificateRequired,
        ) => UpstreamError::SvidRefused {
            why: error.to_string(),
            serial: None,
        },
        _ => UpstreamError::Unavailable(format!("tls: {error}")),
    }
}

fn is_of_time(error: &rustls::Error) -> bool {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    matches!(
        error,
        rustls::Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. }
        )
    )
}

/// The TLS failure that an I/O error carries.
pub(super) fn tls_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a rustls::Error> {
    if let Some(tls) = error.downcast_ref::<rustls::Error>() {
        return Some(tls);
    }
    let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
    inner.downcast_ref::<rustls::Error>()
}

/// A peer's text, at a length fit for a log line.
pub(super) fn clipped(text: &str) -> String {
    const MAX: usize = 512;
    let clean = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    clean.take(MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(type_url: &str, reason: Reason) -> Status {
        let details = RpcStatus {
            code: 7,
            message: "denied".to_owned(),
            details: vec![prost_types::Any {
                type_url: type_url.to_owned(),
                value: PermissionDeniedDetails {
                    reason: reason.into(),
                }
                .encode_to_vec(),
            }],
        };
        Status::with_details(Code::PermissionDenied, "denied", details.encode_to_vec().into())
    }

    #[test]
    fn reads_the_reason_of_a_denial_from_the_status_details() {
        let url = "type.googleapis.com/spire.api.types.PermissionDeniedDetails";
        for (told, reason) in [
            (Reason::AgentExpired, DenialReason::AgentExpired),
            (Reason::AgentNotAttested, DenialReason::AgentNotAttested),
            (Reason::AgentNotActive, DenialReason::AgentNotActive),
            (Reason::AgentBanned, DenialReason::AgentBanned),
            (Reason::AgentMustReattest, DenialReason::AgentMustReattest),
        ] {
            let error = UpstreamError::from(denied(url, told));
            assert_eq!(error.denial(), Some(reason));
        }
    }

    #[test]
    fn a_denial_without_readable_details_has_no_reason() {
        for status in [
            denied("type.googleapis.com/other.Message", Reason::AgentBanned),
            Status::with_details(Code::PermissionDenied, "no", vec![0xff, 0xff].into()),
            Status::permission_denied("no"),
        ] {
            let error = UpstreamError::from(status);
            assert!(matches!(
                error,
                UpstreamError::PermissionDenied {
                    reason: DenialReason::Unknown,
                    ..
                }
            ));
            assert_eq!(error.denial(), None);
        }
    }

    #[test]
    fn tells_a_distrusted_server_from_a_refused_agent_and_from_an_outage() {
        let untrusted = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        assert!(matches!(
            classify_tls(&untrusted),
            UpstreamError::UnknownAuthority(_)
        ));
        // Another authority would not help: the clock, or the server's name, is wrong.
        for certificate in [
            CertificateError::Expired,
            CertificateError::ApplicationVerificationFailure,
        ] {
            let error = rustls::Error::InvalidCertificate(certificate);
            assert!(matches!(classify_tls(&error), UpstreamError::Untrusted(_)));
        }
        let refused = rustls::Error::AlertReceived(AlertDescription::CertificateExpired);
        assert!(matches!(
            classify_tls(&refused),
            UpstreamError::SvidRefused { .. }
        ));
        let wrapped = io::Error::new(io::ErrorKind::InvalidData, untrusted);
        assert!(tls_error(&wrapped).is_some());
        assert!(matches!(
            UpstreamError::from(Status::unavailable("closing")),
            UpstreamError::Unavailable(_)
        ));
    }

    #[test]
    fn refusals_are_not_worth_repeating_and_outages_are() {
        assert!(UpstreamError::from(Status::invalid_argument("join token expired")).is_refusal());
        assert!(UpstreamError::from(Status::unavailable("x")).is_transient());
        assert!(!UpstreamError::from(Status::unavailable("x")).is_refusal());
        assert!(UpstreamError::from(Status::internal("store")).is_transient());
        for code in [Code::Cancelled, Code::DeadlineExceeded, Code::Unknown] {
            let said = UpstreamError::from(Status::new(code, "x"));
            assert!(!said.is_transient() && !said.is_refusal(), "{code:?}");
            assert_eq!(said.code(), code);
        }
        assert!(
            UpstreamError::Unanswered("sign").is_transient(),
            "nobody answered"
        );
    }

    #[test]
    fn what_another_server_may_do_better_is_told_from_what_all_would_say() {
        for code in [
            Code::Unavailable,
            Code::Internal,
            Code::Unknown,
            Code::DeadlineExceeded,
        ] {
            let said = UpstreamError::from(Status::new(code, "x"));
            assert!(said.may_be_of_one_server(), "{code:?}");
        }
        for code in [Code::InvalidArgument, Code::PermissionDenied, Code::Unimplemented] {
            let said = UpstreamError::from(Status::new(code, "x"));
            assert!(!said.may_be_of_one_server(), "{code:?}");
        }
        assert!(UpstreamError::Unanswered("sign").may_be_of_one_server());
    }

    #[test]
    fn a_peers_text_is_clipped_and_kept_on_one_line() {
        let text = clipped(&format!("a\nb{}", "x".repeat(5000)));
        assert!(text.starts_with("a b") && text.len() == 512);
    }
}
