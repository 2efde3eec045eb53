//! `ClusterFederatedTrustDomain`: which relationships are declared. The older object wins.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::admission::{self, Federation};
use super::derive::Settings;
use super::resources::{ClusterFederatedTrustDomain, ClusterFederatedTrustDomainStatus};

/// Whether a relationship is in force: a word and a text if it is not, and the generation described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FederationStatus {
    pub(super) ready: Result<(), (&'static str, String)>,
    pub(super) generation: Option<i64>,
}

/// An object's name, its new status, and the status that it has.
pub(super) type Told = (
    Arc<str>,
    FederationStatus,
    Option<ClusterFederatedTrustDomainStatus>,
);

/// The declared relationships of a cluster.
#[derive(Debug)]
pub(super) struct Federations {
    settings: Settings,
    objects: BTreeMap<Arc<str>, Arc<ClusterFederatedTrustDomain>>,
    told: BTreeMap<Arc<str>, FederationStatus>,
    has_changed: bool,
}

impl Federations {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            objects: BTreeMap::new(),
            told: BTreeMap::new(),
            has_changed: false,
        }
    }

    pub(super) fn apply(&mut self, name: Arc<str>, object: Option<Arc<ClusterFederatedTrustDomain>>) {
        let is_ours = |object: &Arc<ClusterFederatedTrustDomain>| {
            self.settings.is_ours(object.spec.class_name.as_deref())
        };
        match object.filter(is_ours) {
            Some(object) => self.objects.insert(name, object),
            None => self.objects.remove(&name),
        };
        self.has_changed = true;
    }

    /// The statuses that changed.
    pub(super) fn pass(&mut self) -> Vec<Told> {
        if !std::mem::take(&mut self.has_changed) {
            return Vec::new();
        }
        let now = self.statuses();
        let changed = now
            .iter()
            .filter(|(name, status)| self.told.get(*name) != Some(*status));
        let told = changed.map(|(name, status)| {
            let before = self.objects.get(name).and_then(|object| object.status.clone());
            (name.clone(), status.clone(), before)
        });
        let told = told.collect();
        self.told = now;
        told
    }

    fn statuses(&self) -> BTreeMap<Arc<str>, FederationStatus> {
        let mut in_order: Vec<_> = self.objects.iter().collect();
        in_order.sort_by_key(|(name, object)| {
            let meta = &object.metadata;
            let created_at = meta.creation_timestamp.as_ref().map(|time| time.0.as_second());
            (created_at, meta.uid.clone(), (*name).clone())
        });
        let mut winners: BTreeMap<String, Arc<str>> = BTreeMap::new();
        let mut statuses = BTreeMap::new();
        for (name, object) in in_order {
            let ready = match admission::federation(&object.spec) {
                Err(refused) => Err(("Invalid", refused.to_string())),
                Ok(federation) => self.judge(&federation, name, &mut winners),
            };
            let generation = object.metadata.generation;
            statuses.insert(name.clone(), FederationStatus { ready, generation });
        }
        statuses
    }

    fn judge(
        &self,
        federation: &Federation,
        name: &Arc<str>,
        winners: &mut BTreeMap<String, Arc<str>>,
    ) -> Result<(), (&'static str, String)> {
        if federation.trust_domain == self.settings.trust_domain {
            let text = format!("{} is the own trust domain", federation.trust_domain);
            return Err(("Invalid", text));
        }
        let winner = winners
            .entry(federation.trust_domain.to_string())
            .or_insert_with(|| name.clone());
        if winner != name {
            return Err((
                "Masked",
                format!("the older object {winner} declares the same trust domain"),
            ));
        }
        let text = "this version does not fetch foreign bundles: set the bundle with `bundle set`";
        Err(("NotServed", text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::derive::tests::settings;
    use super::*;

    fn object(
        name: &str,
        second: u8,
        trust_domain: &str,
    ) -> (Arc<str>, Option<Arc<ClusterFederatedTrustDomain>>) {
        let object = serde_json::from_value(json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {
                "trustDomain": trust_domain, "bundleEndpointURL": "https://a.example",
                "bundleEndpointProfile": {"type": "https_web"}
            }
        }))
        .unwrap();
        (name.into(), Some(Arc::new(object)))
    }

    #[test]
    fn the_older_object_of_a_trust_domain_wins_and_changes_are_told_once() {
        let mut federations = Federations::new(settings());
        for (name, object) in [
            object("younger", 2, "a.example"),
            object("older", 1, "a.example"),
            object("own", 1, "example.test"),
            object("bad", 1, "no/name"),
        ] {
            federations.apply(name, object);
        }
        let reasons: BTreeMap<String, &str> = federations
            .pass()
            .into_iter()
            .map(|(name, status, _)| (name.to_string(), status.ready.unwrap_err().0))
            .collect();
        let expected = [
            ("bad", "Invalid"),
            ("older", "NotServed"),
            ("own", "Invalid"),
            ("younger", "Masked"),
        ];
        assert_eq!(
            reasons,
            expected.map(|(name, reason)| (name.to_owned(), reason)).into()
        );
        assert!(federations.pass().is_empty());
        federations.apply("older".into(), None);
        let told = federations.pass();
        assert_eq!(
            (told.len(), told[0].1.ready.as_ref().unwrap_err().0),
            (1, "NotServed")
        );
    }
}
