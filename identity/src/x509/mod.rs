//! X.509-SVIDs and the certificates around them (X509-SVID).

mod certificate;
mod chain;
mod check;
mod csr;
mod form;
mod name;
mod svid;

#[cfg(test)]
mod go_tests;
#[cfg(test)]
pub(crate) mod testing;

pub use certificate::{Certificate, ExtendedKeyUsage, KeyUsage};
pub use chain::{PeerUsage, verify_chain, verify_chain_to};
pub use check::{check_authority, check_leaf};
pub use csr::{Csr, CsrSubject};
pub use svid::X509Svid;

use crate::key::KeyError;
use crate::spiffe_id::{SpiffeId, SpiffeIdError, TrustDomain};

/// Why a certificate, chain or certificate request is not acceptable.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// Bytes that are no certificate, request or PEM text.
    #[error("malformed {what}: {why}")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// Something longer than is accepted.
    #[error("{what} is longer than {limit} bytes")]
    TooLong {
        /// What was read.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A chain without certificates.
    #[error("certificate chain is empty")]
    EmptyChain,
    /// A key that is unsupported or does not fit.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// Not exactly one URI in the subject alternative name (X509-SVID §2).
    #[error("certificate must have exactly one URI SAN: found {0}")]
    UriSanCount(usize),
    /// The URI is not a SPIFFE ID (X509-SVID §5.2).
    #[error("URI SAN is not a SPIFFE ID: {0}")]
    SpiffeId(#[from] SpiffeIdError),
    /// A leaf whose SPIFFE ID has no path (X509-SVID §5.2).
    #[error("leaf certificate has a SPIFFE ID without a path: {0}")]
    LeafWithoutPath(SpiffeId),
    /// A signing certificate in the place of a leaf (X509-SVID §3.1, §5.2).
    #[error("leaf certificate is a CA certificate")]
    LeafIsCa,
    /// A trust anchor in the place of a leaf.
    #[error("leaf certificate is one of the trust anchors")]
    LeafIsAnchor,
    /// No key usage extension (X509-SVID §4.3).
    #[error("certificate lacks the key usage extension")]
    KeyUsageMissing,
    /// A leaf that may sign certificates or revocation lists (X509-SVID §5.2), or may not sign.
    #[error("leaf certificate has key usage {0}")]
    LeafKeyUsage(&'static str),
    /// Not a CA certificate where one is needed.
    #[error("authority certificate: {0}")]
    Authority(&'static str),
    /// An authority certificate of another trust domain.
    #[error("authority certificate has URI SAN {found:?}, want none or {expected}")]
    AuthorityId {
        /// The trust domain's ID.
        expected: SpiffeId,
        /// What the certificate says.
        found: Vec<String>,
    },
    /// No bundle for the trust domain of the leaf.
    #[error("no X.509 bundle for trust domain: {0}")]
    NoBundle(TrustDomain),
    /// Past its time.
    #[error("certificate has expired")]
    Expired,
    /// Before its time.
    #[error("certificate is not valid yet")]
    NotYetValid,
    /// No chain to an authority of the leaf's trust domain.
    #[error("certificate is not signed by an authority of its trust domain")]
    UnknownAuthority,
    /// The extended key usage excludes the use (X509-SVID §4.4).
    #[error("certificate lacks the extended key usage for {0}")]
    ExtendedKeyUsage(&'static str),
    /// A chain that RFC 5280 §6 refuses for another reason.
    #[error("certificate chain: {0}")]
    Chain(String),
    /// A key that is not the certificate's.
    #[error("private key does not belong to the certificate")]
    KeyMismatch,
}

fn malformed(what: &'static str, why: impl std::fmt::Display) -> X509Error {
    X509Error::Malformed {
        what,
        why: why.to_string(),
    }
}
