//! The broker at the other end of a connection, and whether its SVID is still valid.

use std::sync::Arc;
use std::time::Duration;

use finial_identity::peer::BundleSource;
use finial_identity::process::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::{Certificate, PeerUsage, X509Error, verify_chain_to};
use tonic::Status;

use crate::endpoints::limits::Admitted;
use crate::svids::SvidCache;

/// How a broker reached the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Over a Unix socket.
    Unix,
    /// Over TCP.
    Tcp,
}

/// What requests of a broker find among their extensions: a broker of the configuration, as its X509-SVID proved when
/// it connected.
#[derive(Clone, Debug)]
pub struct BrokerCaller {
    /// Who it is.
    pub id: SpiffeId,
    /// Its place in the configuration.
    pub place: usize,
    /// How it came.
    pub transport: Transport,
    /// What it showed, leaf first.
    pub chain: Arc<[Certificate]>,
    /// Counts its calls.
    pub admitted: Arc<Admitted>,
}

/// The bundles that the agent has at the moment, to verify brokers.
#[derive(Clone, Debug)]
pub(super) struct Trust {
    bundles: Arc<dyn BundleSource>,
    clock: Clock,
}

/// The own bundle, and those that the server sent for the agent's workloads.
#[derive(Debug)]
struct HeldBundles {
    own: Arc<dyn BundleSource>,
    svids: SvidCache,
}

impl Trust {
    pub(super) fn new(own: Arc<dyn BundleSource>, svids: SvidCache, clock: Clock) -> Self {
        Self {
            bundles: Arc::new(HeldBundles { own, svids }),
            clock,
        }
    }

    pub(super) fn bundles(&self) -> Arc<dyn BundleSource> {
        Arc::clone(&self.bundles)
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether what a broker showed when it connected would be accepted now too.
    ///
    /// # Errors
    /// `Unauthenticated`: it expired, or its authority is not among the bundles any more.
    pub(super) fn check(&self, caller: &BrokerCaller) -> Result<(), Status> {
        self.verify(caller).map_err(|error| {
            tracing::warn!(broker = %caller.id, %error, "broker is not believed any more");
            Status::unauthenticated("the certificate of this connection is not accepted any more")
        })
    }

    fn verify(&self, caller: &BrokerCaller) -> Result<(), X509Error> {
        let trust_domain = caller.id.trust_domain();
        let authorities = self
            .bundles
            .x509_authorities(trust_domain)
            .ok_or_else(|| X509Error::NoBundle(trust_domain.clone()))?;
        verify_chain_to(&caller.chain, &authorities, self.clock.now(), PeerUsage::Any)
    }

    /// How long a certificate is going to be valid.
    pub(super) fn remaining(&self, leaf: &Certificate) -> Duration {
        Duration::try_from(leaf.not_after() - self.clock.now()).unwrap_or_default()
    }
}

impl BundleSource for HeldBundles {
    fn x509_authorities(&self, trust_domain: &TrustDomain) -> Option<Arc<[Certificate]>> {
        self.own.x509_authorities(trust_domain).or_else(|| {
            let snapshot = self.svids.snapshot();
            let bundle = snapshot.federated.get(trust_domain)?;
            Some(bundle.x509_certificates().into())
        })
    }
}
