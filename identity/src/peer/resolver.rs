//! Presents the current SVID in handshakes.

use std::sync::{Arc, Mutex, PoisonError};

use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivatePkcs8KeyDer;
use tokio::sync::watch;

use crate::x509::X509Svid;

/// Gives rustls the SVID that is current at each handshake, at the server's end.
#[derive(Debug)]
pub struct SvidResolver {
    svid: watch::Receiver<Option<Arc<X509Svid>>>,
    prepared: Mutex<Option<Prepared>>,
}

/// What rustls needs of an SVID; reading the private key costs more than the rest.
#[derive(Clone, Debug)]
struct Prepared {
    svid: Arc<X509Svid>,
    certified_key: Arc<CertifiedKey>,
}

/// Gives rustls one SVID at the client's end, whoever the server is.
#[derive(Debug)]
pub(super) struct OneSvid(Option<Arc<CertifiedKey>>);

impl SvidResolver {
    /// Reads from the channel on which the SVID is published.
    pub fn new(svid: watch::Receiver<Option<Arc<X509Svid>>>) -> Self {
        Self {
            svid,
            prepared: Mutex::new(None),
        }
    }

    /// The present SVID for rustls, prepared once per SVID.
    fn certified_key(&self) -> Option<Arc<CertifiedKey>> {
        let svid = self.svid.borrow().clone()?;
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = prepared.as_ref().filter(|p| Arc::ptr_eq(&p.svid, &svid)) {
            return Some(known.certified_key.clone());
        }
        let certified_key = Arc::new(certified_key(&svid)?);
        *prepared = Some(Prepared {
            svid,
            certified_key: certified_key.clone(),
        });
        Some(certified_key)
    }
}

impl ResolvesServerCert for SvidResolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified_key()
    }
}

impl OneSvid {
    pub(super) fn new(svid: &X509Svid) -> Self {
        Self(certified_key(svid).map(Arc::new))
    }
}

impl ResolvesClientCert for OneSvid {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// `None` never happens for a key that this process has read: rustls reads the same kinds.
fn certified_key(svid: &X509Svid) -> Option<CertifiedKey> {
    let key = PrivatePkcs8KeyDer::from(svid.pkcs8_der());
    let key = match rustls::crypto::ring::sign::any_supported_type(&key.into()) {
        Ok(key) => key,
        Err(error) => {
            tracing::error!(spiffe_id = %svid.spiffe_id(), %error, "SVID key unusable for TLS");
            return None;
        }
    };
    let chain = svid.chain().iter().map(|c| c.der().clone()).collect();
    Some(CertifiedKey::new(chain, key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyType;
    use crate::x509::testing::{Ca, Spec};

    fn svid(key_type: KeyType) -> Arc<X509Svid> {
        let ca = Ca::new("example.org");
        let key = crate::key::PrivateKey::generate(key_type).unwrap();
        let leaf = ca.issue(&Spec::leaf("spiffe://example.org/a"), key.public_key());
        Arc::new(X509Svid::new(vec![leaf], Arc::new(key)).unwrap())
    }

    #[test]
    fn prepares_each_svid_once_and_follows_the_publisher() {
        let (publisher, svids) = watch::channel(None);
        let resolver = SvidResolver::new(svids);
        assert!(resolver.certified_key().is_none());
        let first = svid(KeyType::EcP256);
        publisher.send_replace(Some(first.clone()));
        let key = resolver.certified_key().unwrap();
        assert_eq!(key.cert[0], *first.leaf().der());
        assert!(Arc::ptr_eq(&key, &resolver.certified_key().unwrap()));
        let second = svid(KeyType::EcP256);
        publisher.send_replace(Some(second.clone()));
        let key = resolver.certified_key().unwrap();
        assert_eq!(key.cert[0], *second.leaf().der());
        publisher.send_replace(None);
        assert!(resolver.certified_key().is_none());
    }

    #[test]
    fn every_kind_of_key_can_be_used_for_tls() {
        for key_type in [KeyType::EcP256, KeyType::EcP384, KeyType::Rsa2048] {
            assert!(certified_key(&svid(key_type)).is_some());
        }
    }
}
