//! How calls are refused (SPIFFE Broker API §4.8).

use std::collections::BTreeMap;

use bytes::Bytes;
use finial_identity::spiffe_id::SpiffeId;
use finial_proto::google::rpc;
use prost::Message as _;
use prost_types::Any;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};

use super::reference::ReferenceError;

/// Who gives the reasons their meaning.
const DOMAIN: &str = "spiffe.io";
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";

/// Why a broker gets nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// It does not say for whom it asks.
    #[error("{0}")]
    Reference(#[from] ReferenceError),
    /// It may not use references of this type.
    #[error("broker {broker:?} is not allowed to use reference type {type_url:?}", broker = .broker.as_str())]
    TypeNotAllowed {
        /// Who asks.
        broker: SpiffeId,
        /// The type.
        type_url: &'static str,
    },
    /// It may, and not over TCP.
    #[error("broker {broker:?} is not allowed to use reference type {type_url:?} over TCP", broker = .broker.as_str())]
    NotOverTcp {
        /// Who asks.
        broker: SpiffeId,
        /// The type.
        type_url: &'static str,
    },
    /// Nobody here knows such workloads.
    #[error("no workload attestor handled reference")]
    NoAttestor,
    /// There is no such workload, or not any more.
    #[error("{0}")]
    NotFound(&'static str),
    /// There is, and it has no identity.
    #[error("no identity issued")]
    NotEntitled,
    /// As many workloads are held for this broker as may be.
    #[error("too many workloads are held on behalf of this broker")]
    TooMany,
}

impl Refusal {
    fn code(&self) -> Code {
        match self {
            Self::Reference(_) => Code::InvalidArgument,
            Self::TypeNotAllowed { .. } | Self::NotOverTcp { .. } | Self::NotEntitled => {
                Code::PermissionDenied
            }
            Self::NoAttestor => Code::Unimplemented,
            Self::NotFound(_) => Code::NotFound,
            Self::TooMany => Code::Unavailable,
        }
    }

    /// By which a broker can distinguish the refusals about a workload.
    fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Reference(_) => Some("WORKLOAD_REFERENCE_INVALID"),
            Self::NotFound(_) => Some("WORKLOAD_NOT_FOUND"),
            Self::NotEntitled => Some("WORKLOAD_NOT_ENTITLED"),
            Self::TypeNotAllowed { .. } | Self::NotOverTcp { .. } | Self::NoAttestor | Self::TooMany => None,
        }
    }

    /// The status, with the metadata of another that it stands for.
    pub(super) fn with_metadata(&self, metadata: MetadataMap) -> Status {
        let (code, message) = (self.code(), self.to_string());
        match self.reason() {
            None => {
                let mut status = Status::new(code, message);
                *status.metadata_mut() = metadata;
                status
            }
            Some(reason) => {
                let details = details(code, &message, reason);
                Status::with_details_and_metadata(code, message, details, metadata)
            }
        }
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        refusal.with_metadata(MetadataMap::new())
    }
}

/// `google.rpc.Status` with `google.rpc.ErrorInfo`.
fn details(code: Code, message: &str, reason: &str) -> Bytes {
    let info = rpc::ErrorInfo {
        reason: reason.to_owned(),
        domain: DOMAIN.to_owned(),
        metadata: BTreeMap::new(),
    };
    let status = rpc::Status {
        code: code as i32,
        message: message.to_owned(),
        details: vec![Any {
            type_url: ERROR_INFO.to_owned(),
            value: info.encode_to_vec(),
        }],
    };
    status.encode_to_vec().into()
}
