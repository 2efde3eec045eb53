//! Verifiers of the peer's certificates, for both ends.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::config::ring_provider;
use super::{BundleSource, PeerError, PeerPolicy};
use crate::process::Clock;
use crate::spiffe_id::SpiffeId;
use crate::x509::{Certificate, PeerUsage, X509Error, check_leaf, verify_chain_to};

/// Verifies servers for a client.
pub fn server_verifier(
    bundles: Arc<dyn BundleSource>,
    policy: PeerPolicy,
    clock: Clock,
) -> Arc<dyn ServerCertVerifier> {
    Arc::new(ServerVerifier {
        trust: Trust::Bundles {
            bundles,
            policy,
            clock,
        },
        algorithms: algorithms(),
    })
}

/// Accepts every peer with a leaf whose one URI SAN is `expected` and with its key: for the first
/// contact of an agent with `insecure_bootstrap`. Chain and time are not checked.
pub fn insecure_server_verifier(expected: SpiffeId) -> Arc<dyn ServerCertVerifier> {
    Arc::new(ServerVerifier {
        trust: Trust::Blind { expected },
        algorithms: algorithms(),
    })
}

/// Verifies clients for a server. Unless `mandatory`, a client may show no certificate; one that
/// it shows must be right. Its extended key usages are not looked at, as SPIRE does not: an SVID that
/// was issued for servers only may call with it.
pub fn client_verifier(
    bundles: Arc<dyn BundleSource>,
    policy: PeerPolicy,
    clock: Clock,
    mandatory: bool,
) -> Arc<dyn ClientCertVerifier> {
    Arc::new(ClientVerifier {
        trust: Trust::Bundles {
            bundles,
            policy,
            clock,
        },
        mandatory,
        algorithms: algorithms(),
    })
}

#[derive(Debug)]
struct ServerVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct ClientVerifier {
    trust: Trust,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
enum Trust {
    Bundles {
        bundles: Arc<dyn BundleSource>,
        policy: PeerPolicy,
        clock: Clock,
    },
    Blind {
        expected: SpiffeId,
    },
}

impl Trust {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: PeerUsage,
    ) -> Result<(), PeerError> {
        let leaf = Certificate::parse(end_entity)?;
        match self {
            Trust::Bundles {
                bundles,
                policy,
                clock,
            } => {
                let id = check_leaf(&leaf)?;
                let authorities = bundles
                    .x509_authorities(id.trust_domain())
                    .ok_or_else(|| X509Error::NoBundle(id.trust_domain().clone()))?;
                let mut chain = vec![leaf];
                for intermediate in intermediates {
                    chain.push(Certificate::parse(intermediate)?);
                }
                verify_chain_to(&chain, &authorities, clock.now(), usage)?;
                policy.check(&id)
            }
            Trust::Blind { expected } => PeerPolicy::OneOf(vec![expected.clone()]).check(&leaf.spiffe_id()?),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.trust.verify(end_entity, intermediates, PeerUsage::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: clients would choose by them, but the bundles of many trust domains are accepted.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.trust.verify(end_entity, intermediates, PeerUsage::Any)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    ring_provider().signature_verification_algorithms
}
