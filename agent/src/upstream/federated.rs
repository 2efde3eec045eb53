//! Bundles of foreign trust domains. One that cannot be used affects only its own trust domain: the previous bundle
//! of it stays in use.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use finial_identity::bundle::Bundle;
use finial_identity::spiffe_id::TrustDomain;
use finial_proto::spire::api::types;

use super::{UpstreamError, bundle_from_wire};

/// What the server answered about the bundle of a foreign trust domain.
#[derive(Clone, Debug)]
pub enum FederatedBundle {
    /// It has this one.
    Present(Box<Bundle>),
    /// It has none.
    Absent,
    /// It has one that cannot be used, which was reported.
    Unusable,
}

/// Unusable bundles that were reported, by trust domain, so that each fault is reported once.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<HashMap<String, String>>);

impl Faults {
    /// The bundle if it can be used; of those that cannot, the trust domain, if that can be told.
    pub(super) fn check(&self, bundle: types::Bundle) -> Result<Bundle, Option<TrustDomain>> {
        let name = bundle.trust_domain.clone();
        match bundle_from_wire(bundle) {
            Ok(bundle) => {
                self.clear(&name);
                Ok(bundle)
            }
            Err(error) => {
                self.report(&name, &error);
                Err(TrustDomain::parse(&name).ok())
            }
        }
    }

    /// The bundle that was asked for, if the answer is that one and can be used.
    pub(super) fn check_asked(&self, asked: &TrustDomain, bundle: types::Bundle) -> FederatedBundle {
        let error = match bundle_from_wire(bundle) {
            Ok(bundle) if bundle.trust_domain == *asked => {
                self.clear(asked.as_str());
                return FederatedBundle::Present(Box::new(bundle));
            }
            Ok(other) => UpstreamError::Malformed(format!("bundle of {} given instead", other.trust_domain)),
            Err(error) => error,
        };
        self.report(asked.as_str(), &error);
        FederatedBundle::Unusable
    }

    fn report(&self, name: &str, error: &UpstreamError) {
        let name = super::error::clipped(name);
        let error = error.to_string();
        let mut known = self.locked();
        if known.len() >= MAX_FAULTS {
            known.clear();
        }
        if known.get(&name) != Some(&error) {
            tracing::warn!(
                trust_domain = name,
                error,
                "bundle of a foreign trust domain cannot be used"
            );
            known.insert(name, error);
        }
    }

    fn clear(&self, name: &str) {
        if self.locked().remove(name).is_some() {
            tracing::info!(
                trust_domain = name,
                "bundle of a foreign trust domain can be used again"
            );
        }
    }

    fn locked(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        // After a panic a fault may be reported twice.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many faults are remembered.
const MAX_FAULTS: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(name: &str) -> types::Bundle {
        types::Bundle {
            trust_domain: name.to_owned(),
            x509_authorities: vec![types::X509Certificate {
                asn1: b"no certificate".to_vec(),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_fault_is_remembered_until_the_bundle_can_be_used_again() {
        let faults = Faults::default();
        let name = TrustDomain::parse("other.test").unwrap();
        assert_eq!(
            faults.check(broken("other.test")).unwrap_err(),
            Some(name.clone())
        );
        assert!(matches!(
            faults.check_asked(&name, broken("other.test")),
            FederatedBundle::Unusable
        ));
        assert_eq!(faults.locked().len(), 1);
        let good = types::Bundle {
            x509_authorities: Vec::new(),
            ..broken("other.test")
        };
        assert!(matches!(
            faults.check_asked(&name, good),
            FederatedBundle::Present(_)
        ));
        assert!(faults.locked().is_empty());
        assert_eq!(faults.check(broken("No Name")).unwrap_err(), None);
    }
}
