//! TLS between the parts of a trust domain: how peers are verified and authorized, and which SVID is presented.
//!
//! A peer is identified by its X509-SVID: the chain is verified against the bundle of the leaf's own
//! trust domain, then a [`PeerPolicy`] decides by the SPIFFE ID. Host names are not used. The time
//! comes from a clock that the caller passes.

mod config;
mod resolver;
mod verifier;

#[cfg(test)]
mod handshake_tests;

pub use config::{client_config, server_config};
pub(crate) use config::{ring_provider, server_builder};
pub use resolver::SvidResolver;
pub use verifier::{client_verifier, insecure_server_verifier, server_verifier};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use rustls::CertificateError;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::spiffe_id::{SpiffeId, TrustDomain};
use crate::x509::{Certificate, X509Error};

/// Where verifiers find the authorities of a trust domain, at each handshake again.
pub trait BundleSource: Send + Sync + fmt::Debug {
    /// The X.509 authorities, `None` when there is no bundle for the trust domain.
    fn x509_authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>>;
}

/// The X.509 authorities of several trust domains.
pub type X509Bundles = BTreeMap<TrustDomain, Arc<[Certificate]>>;

/// Authorities that another part of the program publishes.
#[derive(Clone, Debug)]
pub struct SharedBundles(watch::Receiver<Arc<X509Bundles>>);

impl SharedBundles {
    /// Reads from a publisher.
    pub fn new(published: watch::Receiver<Arc<X509Bundles>>) -> Self {
        Self(published)
    }

    /// Bundles that never change.
    pub fn fixed(bundles: X509Bundles) -> Self {
        Self(watch::channel(Arc::new(bundles)).1)
    }
}

impl BundleSource for SharedBundles {
    fn x509_authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        self.0.borrow().get(trust_domain).cloned()
    }
}

/// Says why a peer is not accepted.
pub type PeerCheck = Arc<dyn Fn(&SpiffeId) -> Result<(), String> + Send + Sync>;

/// Which verified peers are accepted.
#[derive(Clone)]
pub enum PeerPolicy {
    /// The server of the trust domain: exactly `spiffe://<td>/spire/server`.
    ServerOf(TrustDomain),
    /// Any identity of the trust domain.
    AnyMemberOf(TrustDomain),
    /// One of these identities.
    OneOf(Vec<SpiffeId>),
    /// Every member of a trust domain whose bundle is held; the caller decides later.
    Anyone,
    /// What the function accepts; its error says why not.
    Custom(PeerCheck),
}

impl PeerPolicy {
    /// Judges a verified identity.
    pub fn check(&self, id: &SpiffeId) -> Result<(), PeerError> {
        let accepted = match self {
            PeerPolicy::ServerOf(trust_domain) => *id == trust_domain.server_id(),
            PeerPolicy::AnyMemberOf(trust_domain) => id.is_member_of(trust_domain),
            PeerPolicy::OneOf(ids) => ids.contains(id),
            PeerPolicy::Anyone => true,
            PeerPolicy::Custom(check) => {
                return check(id).map_err(|why| PeerError::Refused { id: id.clone(), why });
            }
        };
        match accepted {
            true => Ok(()),
            false => Err(PeerError::Unexpected {
                id: id.clone(),
                expected: format!("{self:?}"),
            }),
        }
    }
}

impl fmt::Debug for PeerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerPolicy::ServerOf(trust_domain) => write!(f, "{}", trust_domain.server_id()),
            PeerPolicy::AnyMemberOf(trust_domain) => write!(f, "any of {}", trust_domain.id()),
            PeerPolicy::OneOf(ids) => write!(f, "one of {ids:?}"),
            PeerPolicy::Anyone => f.write_str("anyone"),
            PeerPolicy::Custom(_) => f.write_str("a policy of its own"),
        }
    }
}

/// Why a peer is not accepted. Inside of rustls' errors it is found with [`PeerError::within`],
/// except for what rustls has names of its own for: expired, not yet valid, unknown issuer.
#[derive(thiserror::Error)]
pub enum PeerError {
    /// Its certificates are wrong.
    #[error("peer certificate: {0}")]
    Certificate(#[from] X509Error),
    /// It is another one than expected.
    #[error("unexpected peer: {id}, want {expected}")]
    Unexpected {
        /// Who it is.
        id: SpiffeId,
        /// Who was expected.
        expected: String,
    },
    /// The policy says no.
    #[error("peer refused: {id}: {why}")]
    Refused {
        /// Who it is.
        id: SpiffeId,
        /// The policy's reason.
        why: String,
    },
}

impl PeerError {
    /// The reason inside of an error of rustls.
    pub fn within(error: &rustls::Error) -> Option<&PeerError> {
        match error {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => other.0.downcast_ref(),
            _ => None,
        }
    }
}

/// The text: it is what rustls shows of an error that it does not know.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Alerts to the peer follow from the kind of error.
impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        let kind = match error {
            PeerError::Certificate(X509Error::Expired) => CertificateError::Expired,
            PeerError::Certificate(X509Error::NotYetValid) => CertificateError::NotValidYet,
            PeerError::Certificate(X509Error::UnknownAuthority) => CertificateError::UnknownIssuer,
            other => CertificateError::Other(rustls::OtherError(Arc::new(other))),
        };
        rustls::Error::InvalidCertificate(kind)
    }
}

/// The identity of a TLS peer whose certificates a verifier of this module has accepted.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// Its leaf and intermediates.
    pub chain: Vec<Certificate>,
}

impl Peer {
    /// Reads the certificates that a finished handshake left (`peer_certificates`); `None` when the
    /// peer showed none.
    pub fn from_tls(certificates: Option<&[CertificateDer<'_>]>) -> Result<Option<Self>, X509Error> {
        let Some(certificates) = certificates.filter(|certificates| !certificates.is_empty()) else {
            return Ok(None);
        };
        let chain: Vec<Certificate> = certificates
            .iter()
            .map(|der| Certificate::parse(der))
            .collect::<Result<_, _>>()?;
        Ok(Some(Self {
            spiffe_id: chain[0].spiffe_id()?,
            chain,
        }))
    }
}
