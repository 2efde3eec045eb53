//! What the authorities write to the store: their trust domain's bundle and their journals.

use std::error::Error as StdError;
use std::sync::Arc;

use finial_identity::bundle::{Bundle, BundleEditError, JwtAuthority, WitAuthority, X509Authority};
use finial_identity::spiffe_id::TrustDomain;
use finial_identity::x509::Certificate;
use time::OffsetDateTime;

use super::journal::{AuthorityKind, Journal};
use crate::store::{BundleStore, JournalStore, StoreError, update_bundle};
use crate::telemetry::metrics;

/// A failure of the store, or a change that the bundle does not allow.
pub(super) type RecordsError = Box<dyn StdError + Send + Sync>;

/// A change of the trust domain's own bundle.
#[derive(Clone, Debug)]
pub(super) enum BundleChange {
    /// Adds a root; nothing happens if it is there.
    AddX509(Certificate),
    /// Adds a JWT key likewise.
    AddJwt(JwtAuthority),
    /// Adds a WIT key likewise.
    AddWit(WitAuthority),
    /// Marks the authority with that id as tainted.
    Taint(AuthorityKind, String),
    /// Removes the tainted authority with that id.
    Revoke(AuthorityKind, String),
    /// Removes what expired before that moment.
    Prune(OffsetDateTime),
}

/// The store as the authorities use it.
#[derive(Debug)]
pub(super) struct Records {
    trust_domain: TrustDomain,
    bundles: Arc<dyn BundleStore>,
    journals: Arc<dyn JournalStore>,
}

impl Records {
    pub fn new(
        trust_domain: TrustDomain,
        bundles: Arc<dyn BundleStore>,
        journals: Arc<dyn JournalStore>,
    ) -> Self {
        Self {
            trust_domain,
            bundles,
            journals,
        }
    }

    /// The trust domain's own bundle.
    pub async fn bundle(&self) -> Result<Option<Arc<Bundle>>, StoreError> {
        let stored = self.bundles.bundle(&self.trust_domain).await?;
        Ok(stored.map(|stored| stored.bundle))
    }

    /// Changes the bundle in one transaction. When this returns the change is durable.
    pub async fn change_bundle(&self, change: BundleChange) -> Result<(), RecordsError> {
        let edited = update_bundle(&*self.bundles, &self.trust_domain, |bundle| change.apply(bundle)).await?;
        match edited {
            Some((_, result)) => Ok(result?),
            None => Err("own bundle could not be edited".into()),
        }
    }

    /// The journals of all servers.
    pub async fn journals(&self) -> Result<Vec<Journal>, StoreError> {
        let stored = self.journals.list_journals().await?;
        Ok(stored
            .iter()
            .filter_map(|(_, bytes)| Journal::decode(bytes))
            .collect())
    }

    /// Writes a journal whole. When this returns it is durable.
    pub async fn save_journal(&self, journal: &Journal) -> Result<(), StoreError> {
        self.journals.save_journal(&journal.id, &journal.encode()).await
    }

    /// Deletes a journal.
    pub async fn delete_journal(&self, id: &str) -> Result<(), StoreError> {
        self.journals.delete_journal(id).await.map(|_| ())
    }
}

impl BundleChange {
    fn apply(self, bundle: &mut Bundle) -> Result<(), BundleEditError> {
        match self {
            Self::AddX509(certificate) => {
                bundle.append(vec![X509Authority::new(certificate)], Vec::new());
                Ok(())
            }
            Self::AddJwt(authority) => {
                bundle.append(Vec::new(), vec![authority]);
                Ok(())
            }
            Self::AddWit(authority) => {
                bundle.append_wit(vec![authority]);
                Ok(())
            }
            Self::Taint(AuthorityKind::X509, id) => bundle.taint_x509(&id),
            Self::Taint(AuthorityKind::Jwt, id) => bundle.taint_jwt(&id),
            Self::Taint(AuthorityKind::Wit, id) => bundle.taint_wit(&id),
            Self::Revoke(AuthorityKind::X509, id) => bundle.revoke_x509(&id).map(|_| ()),
            Self::Revoke(AuthorityKind::Jwt, id) => bundle.revoke_jwt(&id).map(|_| ()),
            Self::Revoke(AuthorityKind::Wit, id) => bundle.revoke_wit(&id).map(|_| ()),
            Self::Prune(before) => {
                if bundle.prune(before) {
                    metrics().count("ca_manager_bundle_pruned", &[], 1);
                }
                Ok(())
            }
        }
    }
}
