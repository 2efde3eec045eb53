//! A certificate authority for tests.

use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::key::{KeyType, PrivateKey, SignerForRcgen, SubjectKeyForRcgen};
use finial_identity::process::Clock;
use finial_identity::spiffe_id::{SpiffeId, TrustDomain};
use finial_identity::x509::{Certificate, Csr, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::{Duration, OffsetDateTime};

use crate::node::bundle_of;

/// Signs what a trust domain's authority would sign.
#[derive(Debug)]
pub(crate) struct Authority {
    trust_domain: TrustDomain,
    key: PrivateKey,
    certificate: Certificate,
    clock: Clock,
}

impl Authority {
    pub(crate) fn new(trust_domain: &str) -> Self {
        Self::new_at(trust_domain, Clock::system())
    }

    /// An authority that signs by this clock.
    pub(crate) fn new_at(trust_domain: &str, clock: Clock) -> Self {
        Self::new_for(trust_domain, clock, Duration::days(3650 * 2))
    }

    /// The same, with a certificate that is valid for so long.
    pub(crate) fn new_for(trust_domain: &str, clock: Clock, lifetime: Duration) -> Self {
        let now = clock.now();
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        let mut params = params(
            &format!("spiffe://{trust_domain}"),
            now - Duration::days(1),
            now + lifetime,
        );
        params.distinguished_name = authority_name(&key);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.self_signed(&SignerForRcgen::new(&key).unwrap()).unwrap();
        Self {
            trust_domain: TrustDomain::parse(trust_domain).unwrap(),
            certificate: Certificate::parse(signed.der()).unwrap(),
            key,
            clock,
        }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(crate) fn certificate(&self) -> Certificate {
        self.certificate.clone()
    }

    pub(crate) fn bundle(&self) -> Bundle {
        bundle_of(&self.trust_domain, vec![self.certificate()])
    }

    /// An SVID for an hour, with a key of its own.
    pub(crate) fn svid(&self, path: &str) -> X509Svid {
        let key = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        self.svid_for(path, key, Duration::hours(1))
    }

    pub(crate) fn svid_for(&self, path: &str, key: Arc<PrivateKey>, ttl: Duration) -> X509Svid {
        let now = self.clock.now();
        let leaf = self.sign(path, key.public_key(), now - Duration::seconds(10), now + ttl);
        X509Svid::new(vec![leaf], key).unwrap()
    }

    pub(crate) fn leaf(
        &self,
        path: &str,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Certificate {
        let key = PrivateKey::generate(KeyType::EcP256).unwrap();
        self.sign(path, key.public_key(), not_before, not_after)
    }

    /// Signs the key of a request, as the server does: backdated by ten seconds.
    pub(crate) fn sign_csr(&self, path: &str, csr_der: &[u8], ttl: Duration) -> Certificate {
        let csr = Csr::parse(csr_der).unwrap();
        let now = self.clock.now();
        self.sign(path, csr.public_key(), now - Duration::seconds(10), now + ttl)
    }

    fn sign(
        &self,
        path: &str,
        key: &finial_identity::key::PublicKey,
        not_before: OffsetDateTime,
        not_after: OffsetDateTime,
    ) -> Certificate {
        let id = SpiffeId::new(&self.trust_domain, path).unwrap();
        let mut params = params(id.as_str(), not_before, not_after);
        params.distinguished_name.push(DnType::OrganizationName, "SPIRE");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let mut issuer = CertificateParams::default();
        issuer.distinguished_name = authority_name(&self.key);
        issuer.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        issuer.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = Issuer::new(issuer, SignerForRcgen::new(&self.key).unwrap());
        let signed = params
            .signed_by(&SubjectKeyForRcgen::new(key).unwrap(), &issuer)
            .unwrap();
        Certificate::parse(signed.der()).unwrap()
    }
}

fn params(uri: &str, not_before: OffsetDateTime, not_after: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.not_before = not_before;
    params.not_after = not_after;
    params.serial_number = Some(SerialNumber::from(rand::random::<u64>() >> 1));
    params
}

/// Named by its key, so that two authorities of one trust domain are distinguished.
fn authority_name(key: &PrivateKey) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "SPIFFE");
    let id = data_encoding::HEXLOWER.encode(&key.public_key().subject_key_id());
    name.push(DnType::CommonName, id);
    name
}

/// A TLS server that is known by its names, and the authority that vouches for them.
#[derive(Debug)]
pub(crate) struct NamedServer {
    pub(crate) authority: CertificateDer<'static>,
    pub(crate) certificate: CertificateDer<'static>,
    pub(crate) tls: Arc<rustls::ServerConfig>,
}

impl NamedServer {
    pub(crate) fn new(names: &[&str]) -> Self {
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca_key = KeyPair::generate().unwrap();
        let authority = ca.self_signed(&ca_key).unwrap().der().clone();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &Issuer::new(ca, ca_key)).unwrap();
        let certificate = signed.der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.clone()], key)
            .unwrap();
        Self {
            authority,
            certificate,
            tls: Arc::new(tls),
        }
    }
}
