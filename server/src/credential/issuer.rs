//! Who signs certificates.

use std::sync::Arc;

use finial_identity::key::{PublicKey, PublicKeyKind, Signer};
use finial_identity::x509::Certificate;

use super::check::verify_signature;
use super::der;
use super::profile::{ProfileError, X509Profile};

/// Whoever signs a certificate, as far as the certificate shows it.
#[derive(Clone, Copy, Debug)]
pub struct SignedBy<'a> {
    pub(super) signer: &'a dyn Signer,
    /// `None`: the certificate signs itself, so its issuer is its subject.
    issuer: Option<&'a [u8]>,
    pub(super) authority_key_id: Option<&'a [u8]>,
    /// The same as an extension; empty without one.
    pub(super) authority_key_extension: &'a [u8],
    pub(super) algorithm: &'static [u8],
}

impl<'a> SignedBy<'a> {
    /// The certificate is signed with the key that it certifies.
    pub fn itself(signer: &'a dyn Signer) -> Result<Self, ProfileError> {
        let algorithm = signature_algorithm(signer.public_key())?;
        Ok(Self {
            signer,
            issuer: None,
            authority_key_id: None,
            authority_key_extension: &[],
            algorithm,
        })
    }

    /// The key that signs.
    pub fn signer(&self) -> &'a dyn Signer {
        self.signer
    }

    /// Puts the signed part and its signature together.
    pub fn assemble(&self, tbs_der: &[u8], signature: &[u8]) -> Vec<u8> {
        let signature = der::element(der::BIT_STRING, &[&[0], signature]);
        der::element(der::SEQUENCE, &[tbs_der, self.algorithm, &signature])
    }

    pub(super) fn signs_itself(&self) -> bool {
        self.issuer.is_none()
    }

    pub(super) fn issuer_der<'b>(&'b self, profile: &'b X509Profile) -> &'b [u8] {
        self.issuer.unwrap_or(&profile.subject.der)
    }
}

/// An X.509 authority that can sign: its certificate, the chain that is sent with what it signs, and its key.
#[derive(Debug)]
pub struct X509Issuer {
    certificate: Certificate,
    chain: Arc<[Certificate]>,
    signer: Arc<dyn Signer>,
    algorithm: &'static [u8],
    subject_key_id: Vec<u8>,
    /// The authority key identifier of all that it signs, encoded once.
    authority_key_extension: Vec<u8>,
}

impl X509Issuer {
    /// `chain` is what is appended to each SVID: empty below a self-signed root, else this CA's certificate and those
    /// above it without the root. The key is tried once, so that a broken one is found before it signs for anybody.
    pub fn new(
        certificate: Certificate,
        chain: Vec<Certificate>,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, ProfileError> {
        let mismatch = |what: &str| ProfileError::Mismatch(what.to_owned());
        if certificate.public_key() != signer.public_key() {
            return Err(mismatch("public keys differ"));
        }
        if !certificate.is_ca() {
            return Err(mismatch("certificate is no CA certificate"));
        }
        let subject_key_id = certificate
            .subject_key_id()
            .ok_or_else(|| mismatch("certificate lacks a subject key identifier"))?
            .to_vec();
        let algorithm = signature_algorithm(signer.public_key())?;
        let key_id = der::element(der::KEY_IDENTIFIER, &[&subject_key_id]);
        let key_id = der::element(der::SEQUENCE, &[&key_id]);
        let authority_key_extension = der::extension(AUTHORITY_KEY_ID, false, &key_id);
        let trial = certificate.der();
        let signature = signer
            .sign_x509(trial)
            .map_err(|error| ProfileError::Mismatch(error.to_string()))?;
        verify_signature(signer.public_key(), trial, &signature)
            .map_err(|error| ProfileError::Mismatch(error.to_string()))?;
        Ok(Self {
            certificate,
            chain: chain.into(),
            signer,
            algorithm,
            subject_key_id,
            authority_key_extension,
        })
    }

    /// The CA certificate.
    pub fn certificate(&self) -> &Certificate {
        &self.certificate
    }

    /// What is appended to each SVID.
    pub fn chain(&self) -> &Arc<[Certificate]> {
        &self.chain
    }

    /// The key.
    pub fn signer(&self) -> &Arc<dyn Signer> {
        &self.signer
    }

    /// This authority as the signer of a certificate.
    pub fn signed_by(&self) -> SignedBy<'_> {
        SignedBy {
            signer: &*self.signer,
            issuer: Some(self.certificate.subject_der()),
            authority_key_id: Some(&self.subject_key_id),
            authority_key_extension: &self.authority_key_extension,
            algorithm: self.algorithm,
        }
    }
}

fn signature_algorithm(key: &PublicKey) -> Result<&'static [u8], ProfileError> {
    match key.kind() {
        PublicKeyKind::EcP256 => Ok(ECDSA_WITH_SHA256),
        PublicKeyKind::EcP384 => Ok(ECDSA_WITH_SHA384),
        PublicKeyKind::Rsa { .. } => Ok(SHA256_WITH_RSA),
        kind => Err(ProfileError::Algorithm(kind)),
    }
}

const ECDSA_WITH_SHA256: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
const ECDSA_WITH_SHA384: &[u8] = b"\x30\x0a\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x03";
const SHA256_WITH_RSA: &[u8] = b"\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0b\x05\x00";

/// Content of the object identifier 2.5.29.35.
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 35];
