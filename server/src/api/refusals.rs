//! The gRPC status for each error of the layers below.

use finial_identity::entry::EntryError;
use finial_identity::selector::SelectorError;
use finial_identity::spiffe_id::SpiffeIdError;
use finial_identity::wire::WireError;
use finial_identity::x509::X509Error;

use super::status::{Refusal, Refuse};
use crate::attestation::AttestError;
use crate::authority::AuthorityError;
use crate::registry::RegistryError;
use crate::store::StoreError;

/// What was asked for is malformed: `<what failed>: <which rule>`.
macro_rules! invalid {
    ($($error:ty),+) => {
        $(impl Refuse for $error {
            fn refuse(self, what: &str) -> Refusal {
                Refusal::invalid(format!("{what}: {self}"))
            }
        })+
    };
}

invalid!(WireError, EntryError, SelectorError, SpiffeIdError, X509Error);

impl Refuse for StoreError {
    fn refuse(self, what: &str) -> Refusal {
        match self {
            Self::Full(_) | Self::Locked(_) | Self::Corrupted(_) | Self::Io(_) | Self::Internal(_) => {
                Refusal::failed(what, self)
            }
            Self::Closed => Refusal::unavailable(format!("{what}: server is stopping")),
        }
    }
}

impl Refuse for RegistryError {
    fn refuse(self, what: &str) -> Refusal {
        match self {
            Self::Store(error) => error.refuse(what),
            Self::Held(_) => Refusal::failed(what, self),
            Self::Unsettled(_) => Refusal::unavailable(format!("{what}: {self}")),
        }
    }
}

impl Refuse for AuthorityError {
    fn refuse(self, what: &str) -> Refusal {
        match self {
            Self::NotReady => Refusal::unavailable(self.to_string()),
            Self::JwtDisabled | Self::WitDisabled => Refusal::unimplemented(self.to_string()),
            Self::InvalidArgument(text) => Refusal::invalid(format!("{what}: {text}")),
            Self::FailedPrecondition(text) => Refusal::precondition(text),
            Self::Internal { .. } => Refusal::failed(what, self),
        }
    }
}

impl Refuse for AttestError {
    fn refuse(self, what: &str) -> Refusal {
        match self {
            Self::Invalid(text) => Refusal::invalid(text),
            Self::Denied(text) => Refusal::denied(text),
            Self::Unavailable { what, source } => Refusal::unavailable(what).because(source),
            Self::Failed { .. } => Refusal::failed(what, self),
        }
    }
}
