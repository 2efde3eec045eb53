//! `ClusterFederatedTrustDomain`: which relationships are declared, and the state of each. The older object is used,
//! here within a cluster and in `federation::sources` between clusters; the configuration and relationships of operators
//! take precedence over objects.

use std::collections::BTreeMap;
use std::sync::Arc;

use finial_identity::federation::{Declared, Origin, RefreshStates};
use finial_identity::spiffe_id::TrustDomain;
use time::{Duration, OffsetDateTime};

use super::admission;
use super::derive::Settings;
use super::outbox::{Before, Said};
use super::resources::ClusterFederatedTrustDomain;

/// A status in which only the time of the fetch is new is written after this time, so that statuses are not written with each.
const TELL_FETCHES_EVERY: Duration = Duration::minutes(5);

/// Whether a relationship is in force: a word and a text if it is not; the bundle; and the generation described.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FederationStatus {
    pub(super) ready: Result<(), (&'static str, String)>,
    pub(super) refreshed_at: Option<OffsetDateTime>,
    pub(super) sequence_number: Option<i64>,
    pub(super) generation: Option<i64>,
}

/// What is new.
#[derive(Debug, Default)]
pub(super) struct FederationPass {
    /// All relationships that are declared, if they are others than before.
    pub(super) declared: Option<Vec<Declared>>,
    /// The statuses that changed.
    pub(super) told: Vec<Said<FederationStatus>>,
}

/// The declared relationships of a cluster.
#[derive(Debug)]
pub(super) struct Federations {
    settings: Settings,
    objects: BTreeMap<Arc<str>, Arc<ClusterFederatedTrustDomain>>,
    /// What each object declares, or why it does not.
    judged: BTreeMap<Arc<str>, Judged>,
    declared: Vec<Declared>,
    told: BTreeMap<Arc<str>, FederationStatus>,
    has_changed: bool,
    was_refreshed: bool,
}

type Judged = Result<Declared, (&'static str, String)>;

impl Federations {
    pub(super) fn new(settings: Settings) -> Self {
        Self {
            settings,
            objects: BTreeMap::new(),
            judged: BTreeMap::new(),
            declared: Vec::new(),
            told: BTreeMap::new(),
            has_changed: false,
            was_refreshed: false,
        }
    }

    pub(super) fn apply(&mut self, name: Arc<str>, object: Option<Arc<ClusterFederatedTrustDomain>>) {
        let is_ours = |object: &Arc<ClusterFederatedTrustDomain>| {
            self.settings.is_ours(object.spec.class_name.as_deref())
        };
        let uid = |object: Option<&Arc<ClusterFederatedTrustDomain>>| {
            object.map(|object| object.metadata.uid.clone())
        };
        // What was told of another object of the name was not told of this one.
        if uid(self.objects.get(&name)) != uid(object.as_ref()) {
            self.told.remove(&name);
        }
        match object.filter(is_ours) {
            Some(object) => self.objects.insert(name, object),
            None => self.objects.remove(&name),
        };
        self.has_changed = true;
    }

    /// Bundles were fetched, or could not be.
    pub(super) fn refreshed(&mut self) {
        self.was_refreshed = true;
    }

    /// What is new since the last pass.
    pub(super) fn pass(&mut self, states: &RefreshStates) -> FederationPass {
        let mut pass = FederationPass::default();
        let was_refreshed = std::mem::take(&mut self.was_refreshed);
        if std::mem::take(&mut self.has_changed) {
            self.judged = self.judge_all();
            let declared: Vec<Declared> = self.judged.values().flatten().cloned().collect();
            if declared != self.declared {
                self.declared.clone_from(&declared);
                pass.declared = Some(declared);
            }
        } else if !was_refreshed {
            return pass;
        }
        let statuses = self.judged.iter().map(|(name, judged)| {
            let generation = self
                .objects
                .get(name)
                .and_then(|object| object.metadata.generation);
            (name.clone(), status(judged, states, generation))
        });
        let statuses: BTreeMap<Arc<str>, FederationStatus> = statuses.collect();
        self.told.retain(|name, _| statuses.contains_key(name));
        for (name, status) in statuses {
            if self.told.get(&name).is_some_and(|told| !is_news(told, &status)) {
                continue;
            }
            self.told.insert(name.clone(), status.clone());
            let before = self.before(&name);
            pass.told.push((name, status, before));
        }
        pass
    }

    /// All statuses as of the last pass.
    pub(super) fn statuses(&self) -> Vec<Said<FederationStatus>> {
        let told = self.told.iter();
        told.map(|(name, status)| (name.clone(), status.clone(), self.before(name)))
            .collect()
    }

    fn before(&self, name: &str) -> Before<FederationStatus> {
        let object = self.objects.get(name);
        Before {
            uid: object
                .and_then(|object| object.metadata.uid.clone())
                .unwrap_or_default(),
            status: object.and_then(|object| object.status.clone()),
        }
    }

    fn judge_all(&self) -> BTreeMap<Arc<str>, Judged> {
        let mut in_order: Vec<_> = self.objects.iter().collect();
        in_order
            .sort_by_key(|(name, object)| (created_at(object), object.metadata.uid.clone(), (*name).clone()));
        let mut winners: BTreeMap<TrustDomain, Arc<str>> = BTreeMap::new();
        let judged = in_order.into_iter().map(|(name, object)| {
            let judged = self.judge(name, object, &mut winners);
            (name.clone(), judged)
        });
        judged.collect()
    }

    fn judge(
        &self,
        name: &Arc<str>,
        object: &ClusterFederatedTrustDomain,
        winners: &mut BTreeMap<TrustDomain, Arc<str>>,
    ) -> Judged {
        let federation =
            admission::federation(&object.spec).map_err(|refused| ("Invalid", refused.to_string()))?;
        let trust_domain = &federation.relationship.trust_domain;
        if *trust_domain == self.settings.trust_domain {
            return Err(("Invalid", format!("{trust_domain} is the own trust domain")));
        }
        let winner = winners
            .entry(trust_domain.clone())
            .or_insert_with(|| name.clone());
        if winner != name {
            return Err((
                "Masked",
                format!("the older object {winner} declares the same trust domain"),
            ));
        }
        let cluster = &self.settings.cluster_name;
        Ok(Declared {
            relationship: federation.relationship,
            bundle: federation.bundle.map(Arc::new),
            origin: format!("ClusterFederatedTrustDomain {name} of cluster {cluster}").into(),
            created_at: created_at(object).unwrap_or_default(),
        })
    }
}

/// In Unix seconds; an object from a file has none.
fn created_at(object: &ClusterFederatedTrustDomain) -> Option<i64> {
    let created_at = object.metadata.creation_timestamp.as_ref()?;
    Some(created_at.0.as_second())
}

impl FederationStatus {
    /// For objects that have no status.
    pub(super) fn warn(&self, name: &str) {
        if let Err((reason, text)) = &self.ready
            && *reason != PENDING
        {
            tracing::warn!(object = name, reason, error = %text, "federation relationship is not in force");
        }
    }
}

const PENDING: &str = "Pending";

fn status(judged: &Judged, states: &RefreshStates, generation: Option<i64>) -> FederationStatus {
    let refused = |reason, text| FederationStatus {
        ready: Err((reason, text)),
        refreshed_at: None,
        sequence_number: None,
        generation,
    };
    let declared = match judged {
        Err((reason, text)) => return refused(reason, text.clone()),
        Ok(declared) => declared,
    };
    let trust_domain = &declared.relationship.trust_domain;
    let pending = || format!("the bundle of {trust_domain} was not fetched yet");
    let Some(state) = states.get(trust_domain) else {
        return refused(PENDING, pending());
    };
    if state.origin != Origin::Object(declared.origin.clone()) {
        return refused(
            "Masked",
            format!("{} declares the same trust domain", state.origin),
        );
    }
    FederationStatus {
        ready: match (&state.trouble, state.refreshed_at) {
            (Some(trouble), _) => Err(("FetchFailed", trouble.to_string())),
            (None, None) => Err((PENDING, pending())),
            (None, Some(_)) => Ok(()),
        },
        refreshed_at: state.refreshed_at,
        sequence_number: i64::try_from(state.sequence_number)
            .ok()
            .filter(|number| *number > 0),
        generation,
    }
}

fn is_news(told: &FederationStatus, now: &FederationStatus) -> bool {
    let same_time = FederationStatus {
        refreshed_at: told.refreshed_at,
        ..now.clone()
    };
    let is_later = match (told.refreshed_at, now.refreshed_at) {
        (Some(told), Some(now)) => now - told >= TELL_FETCHES_EVERY,
        (told, now) => told != now,
    };
    is_later || same_time != *told
}

#[cfg(test)]
mod tests {
    use finial_identity::federation::RefreshState;
    use serde_json::{Value, json};
    use time::macros::datetime;

    use super::super::derive::tests::settings;
    use super::*;

    const NOON: OffsetDateTime = datetime!(2026-01-01 12:00 UTC);

    fn object(
        name: &str,
        second: u8,
        trust_domain: &str,
        more: &Value,
    ) -> (Arc<str>, Option<Arc<ClusterFederatedTrustDomain>>) {
        let mut object = json!({
            "metadata": {"name": name, "uid": name, "generation": 3,
                "creationTimestamp": format!("2026-01-01T00:00:{second:02}Z")},
            "spec": {
                "trustDomain": trust_domain, "bundleEndpointURL": "https://a.example",
                "bundleEndpointProfile": {"type": "https_web"}
            }
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            object["spec"][key] = value.clone();
        }
        (
            name.into(),
            Some(Arc::new(serde_json::from_value(object).unwrap())),
        )
    }

    fn reasons(pass: &FederationPass) -> BTreeMap<String, &'static str> {
        let told = pass.told.iter();
        told.map(|(name, status, _)| {
            let reason = status.ready.as_ref().err().map_or("Ready", |(reason, _)| *reason);
            (name.to_string(), reason)
        })
        .collect()
    }

    fn urls(pass: &FederationPass) -> Option<Vec<&str>> {
        let declared = pass.declared.as_ref()?;
        let urls = declared
            .iter()
            .map(|declared| declared.relationship.endpoint_url.as_str());
        Some(urls.collect())
    }

    fn state(origin: Origin, minute: i64, trouble: Option<&str>) -> RefreshStates {
        let state = RefreshState {
            origin,
            refreshed_at: Some(NOON + Duration::minutes(minute)),
            sequence_number: 7,
            trouble: trouble.map(Into::into),
        };
        [(TrustDomain::parse("a.example").unwrap(), state)].into()
    }

    fn ours() -> Origin {
        Origin::Object("ClusterFederatedTrustDomain older of cluster demo".into())
    }

    #[test]
    fn the_older_object_of_a_trust_domain_wins_and_changes_are_told_once() {
        let mut federations = Federations::new(settings());
        for (name, object) in [
            object(
                "younger",
                2,
                "a.example",
                &json!({"bundleEndpointURL": "https://younger"}),
            ),
            object("older", 1, "a.example", &json!({})),
            object("own", 1, "example.test", &json!({})),
            object("bad", 1, "no/name", &json!({})),
            object("foreign", 1, "b.example", &json!({"className": "other"})),
        ] {
            federations.apply(name, object);
        }
        let none = RefreshStates::new();
        let pass = federations.pass(&none);
        let expected = [
            ("bad", "Invalid"),
            ("older", "Pending"),
            ("own", "Invalid"),
            ("younger", "Masked"),
        ];
        assert_eq!(
            reasons(&pass),
            expected.map(|(name, reason)| (name.to_owned(), reason)).into()
        );
        assert_eq!(urls(&pass), Some(vec!["https://a.example"]));
        let again = federations.pass(&none);
        assert!(again.told.is_empty() && again.declared.is_none());
        federations.apply("older".into(), None);
        let pass = federations.pass(&none);
        assert_eq!(reasons(&pass), [("younger".to_owned(), "Pending")].into());
        assert_eq!(urls(&pass), Some(vec!["https://younger"]));
        federations.apply("younger".into(), None);
        assert_eq!(urls(&federations.pass(&none)), Some(Vec::new()));
    }

    #[test]
    fn an_object_that_is_made_again_at_once_is_told_its_status() {
        for is_seen_to_go in [true, false] {
            let mut federations = Federations::new(settings());
            let (name, one) = object("older", 1, "a.example", &json!({}));
            federations.apply(name.clone(), one.clone());
            assert_eq!(federations.pass(&RefreshStates::new()).told.len(), 1);
            federations.apply(name.clone(), one.clone());
            assert_eq!(federations.pass(&RefreshStates::new()).told.len(), 0);
            if is_seen_to_go {
                federations.apply(name.clone(), None);
            }
            let mut again = ClusterFederatedTrustDomain::clone(&one.unwrap());
            again.metadata.uid = Some("another".to_owned());
            federations.apply(name, Some(Arc::new(again)));
            let told = federations.pass(&RefreshStates::new()).told;
            assert_eq!(told.len(), 1);
            assert_eq!(told[0].2.uid, "another");
        }
    }

    #[test]
    fn a_status_says_what_became_of_the_bundle_and_who_else_declares_the_trust_domain() {
        let mut federations = Federations::new(settings());
        let (name, object) = object("older", 1, "a.example", &json!({}));
        federations.apply(name, object);
        federations.pass(&RefreshStates::new());
        let mut told = |states: RefreshStates| {
            federations.refreshed();
            let pass = federations.pass(&states);
            let status = pass.told.into_iter().next().map(|(_, status, _)| status);
            status.map(|status| {
                let reason = status.ready.err().map_or("Ready", |(reason, _)| reason);
                (reason, status.sequence_number, status.generation)
            })
        };
        assert_eq!(told(state(ours(), 0, None)), Some(("Ready", Some(7), Some(3))));
        assert_eq!(told(state(ours(), 1, None)), None, "a fetch alone is no news");
        assert_eq!(told(state(ours(), 5, None)), Some(("Ready", Some(7), Some(3))));
        let failed = told(state(ours(), 5, Some("answered 404")));
        assert_eq!(failed, Some(("FetchFailed", Some(7), Some(3))));
        assert_eq!(told(state(Origin::Api, 5, None)), Some(("Masked", None, Some(3))));
    }

    #[test]
    fn a_bundle_comes_with_the_object_and_a_change_of_it_is_declared_anew() {
        let mut federations = Federations::new(settings());
        let with = |number: u64| {
            let document = format!(r#"{{"keys":[],"spiffe_sequence":{number}}}"#);
            object("older", 1, "a.example", &json!({"trustDomainBundle": document}))
        };
        let mut number = |object: (Arc<str>, Option<Arc<ClusterFederatedTrustDomain>>)| {
            federations.apply(object.0, object.1);
            let declared = federations.pass(&RefreshStates::new()).declared?;
            declared
                .first()?
                .bundle
                .as_ref()
                .map(|bundle| bundle.sequence_number)
        };
        assert_eq!(number(with(1)), Some(1));
        assert_eq!(number(with(1)), None);
        assert_eq!(number(with(2)), Some(2));
    }
}
