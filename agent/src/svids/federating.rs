//! Entries by the trust domains they federate with.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use finial_identity::spiffe_id::TrustDomain;

/// See the module's text.
#[derive(Debug, Default)]
pub(super) struct Federating {
    ids: HashMap<TrustDomain, HashSet<Arc<str>>>,
}

impl Federating {
    /// An entry federates with these.
    pub(super) fn add(&mut self, id: &Arc<str>, names: &[TrustDomain]) {
        for name in names {
            let ids = self.ids.entry(name.clone()).or_default();
            ids.insert(Arc::clone(id));
        }
    }

    /// It no longer does.
    pub(super) fn remove(&mut self, id: &Arc<str>, names: &[TrustDomain]) {
        for name in names {
            if let Some(ids) = self.ids.get_mut(name) {
                ids.remove(id);
                if ids.is_empty() {
                    self.ids.remove(name);
                }
            }
        }
    }

    /// Those that federate with `name`.
    pub(super) fn with(&self, name: &TrustDomain) -> impl Iterator<Item = &Arc<str>> {
        self.ids.get(name).into_iter().flatten()
    }
}
