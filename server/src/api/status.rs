//! The one place where errors become gRPC status: what is sent to a peer, and what is only logged.

use std::error::Error;

use bytes::Bytes;
use finial_identity::process::with_causes;
use finial_proto::google::rpc;
use finial_proto::spire::api::types;
use finial_proto::spire::api::types::permission_denied_details::Reason;
use prost::Message;
use tonic::{Code, Status};
use uuid::Uuid;

/// Why a call, or an item of a batch, is not done.
#[derive(Debug)]
pub struct Refusal {
    code: Code,
    message: String,
    reason: Option<Reason>,
    cause: Option<Box<dyn Error + Send + Sync>>,
}

impl Refusal {
    /// The request can never succeed.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// What the request names does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// What the request would make exists.
    pub fn exists(message: impl Into<String>) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    /// The state of the server forbids it.
    pub fn precondition(message: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    /// The caller may not.
    pub fn denied(message: impl Into<String>) -> Self {
        Self::new(Code::PermissionDenied, message)
    }

    /// The agent may not, and gets the reason as a detail of the status.
    pub fn denied_agent(message: impl Into<String>, reason: Reason) -> Self {
        Self {
            reason: Some(reason),
            ..Self::denied(message)
        }
    }

    /// The caller's identity is unusable.
    pub fn unauthenticated(message: impl Into<String>) -> Self {
        Self::new(Code::Unauthenticated, message)
    }

    /// This server does not do that.
    pub fn unimplemented(message: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    /// Not now; the same call may succeed later.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, message)
    }

    /// More than the caller may ask for.
    pub fn exhausted(message: impl Into<String>) -> Self {
        Self::new(Code::ResourceExhausted, message)
    }

    /// The caller's own deadline passed.
    pub fn overdue() -> Self {
        Self::new(Code::DeadlineExceeded, "deadline exceeded")
    }

    /// An internal error whose text is sent to the caller.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// An internal error: the caller gets what failed, the log why.
    pub fn failed(what: impl Into<String>, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..Self::internal(what)
        }
    }

    /// The same, with a text for the log.
    #[must_use]
    pub fn because(self, cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self {
            cause: Some(cause.into()),
            ..self
        }
    }

    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// The text that is sent.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The reason for an agent, if it is an agent's refusal.
    pub fn reason(&self) -> Option<Reason> {
        self.reason
    }

    /// The gRPC status; the cause, if there is one, is logged.
    pub fn into_status(self, request_id: Uuid) -> Status {
        self.log_cause(request_id);
        match self.reason {
            None => Status::new(self.code, self.message),
            Some(reason) => {
                let details = pack_reason(self.code, &self.message, reason);
                Status::with_details(self.code, self.message, details)
            }
        }
    }

    /// The status of an item of a batch; the cause, if there is one, is logged.
    pub fn to_item_status(&self, request_id: Uuid) -> types::Status {
        self.log_cause(request_id);
        types::Status {
            code: self.code as i32,
            message: self.message.clone(),
        }
    }

    fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            reason: None,
            cause: None,
        }
    }

    fn log_cause(&self, request_id: Uuid) {
        if let Some(cause) = &self.cause {
            tracing::error!(%request_id, error = with_causes(cause.as_ref()), failed = %self.message, "request failed");
        }
    }
}

/// The status of an item that was done.
pub fn ok() -> types::Status {
    types::Status {
        code: Code::Ok as i32,
        message: "OK".to_owned(),
    }
}

/// Errors of the layers below, which know what they mean to a peer.
pub trait Refuse {
    /// The refusal, in which `what` names the operation that failed.
    fn refuse(self, what: &str) -> Refusal;
}

/// `?` for errors of the layers below.
pub trait OrRefuse<T> {
    /// Turns the error into a refusal, in which `what` names the operation that failed.
    ///
    /// # Errors
    /// The refusal.
    fn or_refuse(self, what: &str) -> Result<T, Refusal>;
}

impl<T, E: Refuse> OrRefuse<T> for Result<T, E> {
    fn or_refuse(self, what: &str) -> Result<T, Refusal> {
        self.map_err(|error| error.refuse(what))
    }
}

/// `google.rpc.Status` with the reason as its one detail, as `grpc-status-details-bin` wants it.
fn pack_reason(code: Code, message: &str, reason: Reason) -> Bytes {
    let details = types::PermissionDeniedDetails {
        reason: reason as i32,
    };
    rpc::Status {
        code: code as i32,
        message: message.to_owned(),
        details: vec![prost_types::Any {
            type_url: "type.googleapis.com/spire.api.types.PermissionDeniedDetails".to_owned(),
            value: details.encode_to_vec(),
        }],
    }
    .encode_to_vec()
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agents_refusal_carries_its_reason_as_a_packed_any() {
        let status = Refusal::denied_agent("authorization denied for method /a/b", Reason::AgentBanned)
            .into_status(Uuid::nil());
        assert_eq!(status.code(), Code::PermissionDenied);
        let details = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(details.code, 7);
        assert_eq!(details.message, "authorization denied for method /a/b");
        let any = details.details.first().unwrap();
        assert_eq!(
            any.type_url,
            "type.googleapis.com/spire.api.types.PermissionDeniedDetails"
        );
        let inner = types::PermissionDeniedDetails::decode(&*any.value).unwrap();
        assert_eq!(inner.reason(), Reason::AgentBanned);
    }

    #[test]
    fn the_cause_of_a_failure_is_not_sent() {
        let refusal = Refusal::failed("failed to list entries", std::io::Error::other("disk on fire"));
        let item = refusal.to_item_status(Uuid::nil());
        assert_eq!((item.code, item.message.as_str()), (13, "failed to list entries"));
        let status = refusal.into_status(Uuid::nil());
        assert_eq!(status.message(), "failed to list entries");
        assert!(status.details().is_empty());
    }
}
