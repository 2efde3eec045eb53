//! An X509-SVID with its key.

use std::sync::Arc;

use super::{Certificate, X509Error, check_leaf};
use crate::key::PrivateKey;
use crate::spiffe_id::SpiffeId;

/// A leaf, the intermediates above it, and the leaf's private key. Cheap to clone.
#[derive(Clone, Debug)]
pub struct X509Svid {
    chain: Arc<[Certificate]>,
    key: Arc<PrivateKey>,
    spiffe_id: SpiffeId,
}

impl X509Svid {
    /// Checks the leaf (the first of the chain) and that the key is its key. The signatures above
    /// it are not checked: its issuer is trusted.
    pub fn new(chain: Vec<Certificate>, key: Arc<PrivateKey>) -> Result<Self, X509Error> {
        let leaf = chain.first().ok_or(X509Error::EmptyChain)?;
        let spiffe_id = check_leaf(leaf)?;
        if leaf.public_key() != key.public_key() {
            return Err(X509Error::KeyMismatch);
        }
        Ok(Self {
            chain: chain.into(),
            key,
            spiffe_id,
        })
    }

    /// The SPIFFE ID in the leaf.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }

    /// The leaf.
    pub fn leaf(&self) -> &Certificate {
        &self.chain[0]
    }

    /// The leaf and the intermediates, without the root.
    pub fn chain(&self) -> &[Certificate] {
        &self.chain
    }

    /// Leaf, intermediates and the root that signed the last of them, when it is among `authorities`.
    pub fn chain_with_root<'a>(
        &self,
        authorities: impl IntoIterator<Item = &'a Certificate>,
    ) -> Vec<Certificate> {
        let mut chain = self.chain.to_vec();
        let signer = chain.last().and_then(Certificate::authority_key_id);
        let root = authorities
            .into_iter()
            .find(|root| signer.is_some() && root.subject_key_id() == signer)
            .cloned();
        chain.extend(root);
        chain
    }

    /// The leaf's private key.
    pub fn key(&self) -> &Arc<PrivateKey> {
        &self.key
    }

    /// The PKCS#8 DER of the key: a secret.
    pub fn pkcs8_der(&self) -> &[u8] {
        self.key.pkcs8_der()
    }

    /// The DER of leaf and intermediates back to back, as the Workload API sends it.
    pub fn chain_der_concat(&self) -> Vec<u8> {
        let length = self.chain.iter().map(|c| c.der().len()).sum();
        let mut der = Vec::with_capacity(length);
        for certificate in self.chain.iter() {
            der.extend_from_slice(certificate.der());
        }
        der
    }

    /// Leaf and intermediates as PEM.
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(Certificate::to_pem).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::KeyType;
    use crate::x509::testing::Ca;

    #[test]
    fn holds_a_leaf_and_the_key_that_fits() {
        let ca = Ca::new("example.org");
        let (leaf, key) = ca.leaf("spiffe://example.org/a");
        let chain = vec![leaf.clone(), ca.certificate.clone()];
        let svid = X509Svid::new(chain.clone(), Arc::new(key)).unwrap();
        assert_eq!(svid.spiffe_id().as_str(), "spiffe://example.org/a");
        assert_eq!(svid.leaf(), &leaf);
        let concatenated = svid.chain_der_concat();
        assert_eq!(Certificate::parse_many(&concatenated).unwrap(), chain);
        assert_eq!(Certificate::from_pem(&svid.chain_pem()).unwrap(), chain);
    }

    #[test]
    fn refuses_another_key_a_ca_and_an_empty_chain() {
        let ca = Ca::new("example.org");
        let (leaf, key) = ca.leaf("spiffe://example.org/a");
        let other = Arc::new(PrivateKey::generate(KeyType::EcP256).unwrap());
        assert!(matches!(
            X509Svid::new(vec![leaf], other.clone()),
            Err(X509Error::KeyMismatch)
        ));
        assert!(X509Svid::new(vec![ca.certificate], Arc::new(ca.key)).is_err());
        assert!(matches!(
            X509Svid::new(vec![], Arc::new(key)),
            Err(X509Error::EmptyChain)
        ));
    }
}
