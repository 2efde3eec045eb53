//! The initial bundles in objects (`trustDomainBundle`).

use std::collections::BTreeMap;
use std::sync::Arc;

use finial_identity::bundle::Bundle;
use finial_identity::federation::Declared;
use finial_identity::spiffe_id::TrustDomain;

use crate::store::{BundleStore, Store, StoreError};

/// What each object gave when it was looked at last.
#[derive(Debug, Default)]
pub(super) struct Seeds(BTreeMap<TrustDomain, Option<Arc<Bundle>>>);

impl Seeds {
    /// Stores the bundles that objects give: where there is none, where the object's is newer, and where it was changed
    /// in the object; never an older one in place of a newer one. Returns whose bundles were stored.
    ///
    /// # Errors
    /// [`StoreError`]; what was not stored is tried again the next time.
    pub(super) async fn plant(
        &mut self,
        store: &dyn Store,
        declared: &[&Declared],
    ) -> Result<Vec<TrustDomain>, StoreError> {
        self.0.retain(|trust_domain, _| {
            let mut names = declared
                .iter()
                .map(|declared| &declared.relationship.trust_domain);
            names.any(|name| name == trust_domain)
        });
        let mut planted = Vec::new();
        for declared in declared {
            let trust_domain = &declared.relationship.trust_domain;
            let before = self.0.get(trust_domain).cloned();
            if before.as_ref() == Some(&declared.bundle) {
                continue;
            }
            if let Some(bundle) = &declared.bundle
                && plant_one(store, bundle, before.is_some()).await?
            {
                tracing::info!(%trust_domain, object = %declared.origin, "bundle of an object was stored");
                planted.push(trust_domain.clone());
            }
            self.0.insert(trust_domain.clone(), declared.bundle.clone());
        }
        Ok(planted)
    }
}

/// `was_changed`: this process saw another one in the object before.
async fn plant_one(
    store: &(impl BundleStore + ?Sized),
    bundle: &Arc<Bundle>,
    was_changed: bool,
) -> Result<bool, StoreError> {
    let trust_domain = &bundle.trust_domain;
    if let Some(stored) = store.bundle(trust_domain).await? {
        let stored = &stored.bundle;
        let is_wanted = match was_changed {
            true => !bundle.is_older_than(stored),
            false => bundle.sequence_number > stored.sequence_number,
        };
        if !is_wanted || stored == bundle {
            return Ok(false);
        }
        store.put_bundle(Bundle::clone(bundle)).await?;
        return Ok(true);
    }
    Ok(store.create_bundle(Bundle::clone(bundle)).await?.is_some())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{bundle, store, web};
    use super::*;

    fn object(bundle: Option<Bundle>) -> Declared {
        Declared {
            relationship: web("a.test", "https://a.test"),
            bundle: bundle.map(Arc::new),
            origin: "object".into(),
            created_at: 0,
        }
    }

    #[tokio::test]
    async fn a_bundle_of_an_object_is_stored_once_and_never_in_place_of_a_newer_one() {
        let store = store().await;
        let mut seeds = Seeds::default();
        let numbered = |seed, sequence_number| {
            Some(Bundle {
                sequence_number,
                ..bundle("a.test", seed)
            })
        };
        let mut plant = async |declared: &Declared| {
            let planted = seeds.plant(&*store, &[declared]).await.unwrap();
            let stored = store.bundle(&declared.relationship.trust_domain).await.unwrap();
            (planted.len(), stored.map(|stored| stored.bundle.sequence_number))
        };
        assert_eq!(plant(&object(None)).await, (0, None));
        assert_eq!(plant(&object(numbered(1, 3))).await, (1, Some(3)));
        store.put_bundle(numbered(2, 5).unwrap()).await.unwrap();
        assert_eq!(
            plant(&object(numbered(1, 3))).await,
            (0, Some(5)),
            "the same again"
        );
        assert_eq!(
            plant(&object(numbered(3, 4))).await,
            (0, Some(5)),
            "changed, but older"
        );
        assert_eq!(plant(&object(numbered(3, 5))).await, (1, Some(5)), "changed");
        store.put_bundle(numbered(2, 5).unwrap()).await.unwrap();
        // After a restart it is not known whether the object was changed.
        let mut anew = Seeds::default();
        for (number, expected) in [(5, 0), (6, 1)] {
            let declared = object(numbered(3, number));
            let planted = anew.plant(&*store, &[&declared]).await.unwrap();
            assert_eq!(planted.len(), expected, "{number}");
            anew = Seeds::default();
        }
    }
}
