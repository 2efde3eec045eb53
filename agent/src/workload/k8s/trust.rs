//! Verification of the kubelet's certificate.
//!
//! Kubelets have certificates of the cluster's CA, or self-signed ones. With a node's name both chain and name are
//! checked; with an address only the chain, because few certificates name 127.0.0.1. A certificate that is itself in a
//! file is trusted as it is, so a kubelet's self-signed one can be given; it is not trusted as an authority.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

#[derive(Debug)]
enum Trust {
    Certificates {
        known: Vec<CertificateDer<'static>>,
        roots: RootCertStore,
    },
    Anybody,
}

#[derive(Debug)]
struct KubeletVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

/// Trusts certificates of these authorities, and the kubelet's own certificates.
pub(super) fn of_certificates(
    authorities: Vec<CertificateDer<'static>>,
    own: Vec<CertificateDer<'static>>,
) -> Arc<dyn ServerCertVerifier> {
    let mut roots = RootCertStore::empty();
    // One that is no authority can still be the kubelet's own.
    let (_added, _unusable) = roots.add_parsable_certificates(authorities.iter().cloned());
    let known = [authorities, own].concat();
    verifier(Trust::Certificates { known, roots })
}

/// Trusts every certificate.
pub(super) fn of_anybody() -> Arc<dyn ServerCertVerifier> {
    verifier(Trust::Anybody)
}

fn verifier(trust: Trust) -> Arc<dyn ServerCertVerifier> {
    Arc::new(KubeletVerifier {
        trust,
        algorithms: rustls::crypto::ring::default_provider().signature_verification_algorithms,
    })
}

impl ServerCertVerifier for KubeletVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Trust::Certificates { known, roots } = &self.trust else {
            return Ok(ServerCertVerified::assertion());
        };
        if known.iter().any(|own| own.as_ref() == end_entity.as_ref()) {
            return Ok(ServerCertVerified::assertion());
        }
        if roots.is_empty() {
            return Err(Error::InvalidCertificate(CertificateError::UnknownIssuer));
        }
        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if matches!(server_name, ServerName::DnsName(_)) {
            verify_server_name(&certificate, server_name)?;
        }
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
