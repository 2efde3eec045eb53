//! Counts for each object, and the statuses made from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::keys::Rank;
use super::pod::Outcome;
use super::{Deriver, NamespacedName, Pass, Settings};
use crate::kubernetes::admission::{self, Rule};
use crate::kubernetes::label_filter::{LabelFilter, Labels};
use crate::kubernetes::resources::{ClusterSPIFFEID, ClusterSPIFFEIDStats};

/// The status of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleStatus {
    /// The counts.
    pub stats: ClusterSPIFFEIDStats,
    /// Whether all is well, or a word and a text about the first failure.
    pub ready: Result<(), (&'static str, String)>,
    /// The generation of the spec that this describes.
    pub generation: Option<i64>,
}

/// The status of a static entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticStatus {
    /// Whether the spec is valid.
    pub is_rendered: bool,
    /// Whether it lost to an identical one.
    pub is_masked: bool,
    /// Whether the entry is there.
    pub is_set: bool,
    /// Whether all is well, or a word and a text.
    pub ready: Result<(), (&'static str, String)>,
    /// The generation of the spec that this describes.
    pub generation: Option<i64>,
}

impl StaticStatus {
    /// For objects that have no status.
    pub fn warn(&self, name: &str) {
        if let Err((reason, text)) = &self.ready {
            tracing::warn!(object = name, reason, error = %text, "static entry is not in force");
        }
    }
}

/// A rule of the class of this server, with its counts.
#[derive(Debug)]
pub(super) struct RuleState {
    pub(super) rule: Result<Arc<Rule>, Invalid>,
    pub(super) rank: Arc<Rank>,
    pub(super) origin: Arc<str>,
    pub(super) generation: Option<i64>,
    namespaces: (i64, i64),
    pods: i64,
    /// Pods for which no entry could be made, with the reason.
    failed: BTreeMap<NamespacedName, String>,
    /// Pods whose entry was refused, with the reason.
    refused: BTreeMap<NamespacedName, String>,
}

/// A rule that cannot be applied.
#[derive(Debug)]
pub(super) struct Invalid {
    pub(super) text: String,
    pub(super) is_fallback: bool,
    /// What it would select, namespaces and pods; none when it is this that is wrong.
    filters: Option<(LabelFilter, LabelFilter)>,
}

impl Invalid {
    fn of(object: &ClusterSPIFFEID, text: String) -> Self {
        let namespaces = LabelFilter::of(object.spec.namespace_selector.as_ref());
        let pods = LabelFilter::of(object.spec.pod_selector.as_ref());
        Self {
            text,
            is_fallback: object.spec.fallback.unwrap_or_default(),
            filters: namespaces.ok().zip(pods.ok()),
        }
    }

    pub(super) fn selects(&self, namespace: &Labels, pod: &Labels) -> bool {
        let filters = self.filters.as_ref();
        filters.is_some_and(|(namespaces, pods)| namespaces.matches(namespace) && pods.matches(pod))
    }
}

impl RuleState {
    pub(super) fn of(object: &ClusterSPIFFEID, name: &str, settings: &Settings) -> Self {
        let rule = admission::rule(&object.spec).map_err(|refused| Invalid::of(object, refused.to_string()));
        Self {
            rule: rule.map(Arc::new),
            rank: Arc::new(Rank::of(&object.metadata)),
            origin: format!("ClusterSPIFFEID {name} of cluster {}", settings.cluster_name).into(),
            generation: object.metadata.generation,
            namespaces: (0, 0),
            pods: 0,
            failed: BTreeMap::new(),
            refused: BTreeMap::new(),
        }
    }

    pub(super) fn count(&mut self, pod: &NamespacedName, outcome: &Outcome) {
        self.pods += 1;
        match outcome {
            Outcome::Failed(text) => self.failed.insert(pod.clone(), text.clone()),
            Outcome::Refused(text) => self.refused.insert(pod.clone(), text.clone()),
            Outcome::Declared(_) | Outcome::NoNode | Outcome::NotNeeded => None,
        };
    }

    /// Forgets what was counted, before all pods are counted again.
    pub(super) fn reset(&mut self) {
        self.pods = 0;
        self.failed.clear();
        self.refused.clear();
    }

    /// Takes back what was counted for a pod.
    pub(super) fn discount(&mut self, pod: &NamespacedName, outcome: &Outcome) {
        self.pods -= 1;
        match outcome {
            Outcome::Failed(_) => self.failed.remove(pod),
            Outcome::Refused(_) => self.refused.remove(pod),
            Outcome::Declared(_) | Outcome::NoNode | Outcome::NotNeeded => None,
        };
    }

    fn status(&self, (set, masked): (i64, i64)) -> RuleStatus {
        let count = |pods: &BTreeMap<_, _>| i64::try_from(pods.len()).unwrap_or(i64::MAX);
        let first = |pods: &BTreeMap<NamespacedName, String>| {
            pods.first_key_value()
                .map(|(pod, text)| format!("{} pods, the first is {pod}: {text}", pods.len()))
        };
        let ready = match (&self.rule, first(&self.failed), first(&self.refused)) {
            (Err(invalid), _, _) => Err(("Invalid", invalid.text.clone())),
            (Ok(_), Some(text), _) => Err(("RenderFailed", text)),
            (Ok(_), None, Some(text)) => Err(("EntryRefused", text)),
            (Ok(_), None, None) => Ok(()),
        };
        RuleStatus {
            stats: ClusterSPIFFEIDStats {
                namespaces_selected: self.namespaces.0,
                namespaces_ignored: self.namespaces.1,
                pods_selected: self.pods,
                pod_entry_render_failures: count(&self.failed),
                entries_masked: masked,
                entries_to_set: set + count(&self.refused),
                entry_failures: count(&self.refused),
            },
            ready,
            generation: self.generation,
        }
    }
}

impl Deriver {
    /// Counts the namespaces that each rule selects.
    pub(super) fn count_namespaces(&mut self) {
        for state in self.rules.values_mut() {
            state.namespaces = (0, 0);
            let Ok(rule) = &state.rule else { continue };
            for (name, labels) in self.objects.namespaces() {
                if rule.namespaces.matches(labels) {
                    state.namespaces.0 += 1;
                    let is_ignored = self.settings.ignored_namespaces.is_match(name);
                    state.namespaces.1 += i64::from(is_ignored);
                }
            }
        }
    }

    /// Puts the statuses that have changed into the pass.
    pub(super) fn changed_statuses(&mut self, pass: &mut Pass) {
        let rules: BTreeMap<_, _> = self
            .rules
            .iter()
            .map(|(name, state)| (name.clone(), state.status(self.keys.counts(name))))
            .collect();
        pass.rules = different(&self.told_rules, &rules);
        self.told_rules = rules;
        let statics: BTreeMap<_, _> = self
            .statics
            .iter()
            .map(|(name, state)| {
                let is_masked = self.keys.is_static_masked(name);
                let ready = match &state.candidate {
                    Err((reason, text)) => Err((*reason, text.clone())),
                    Ok(_) if is_masked => {
                        let text =
                            "an older object, a stored entry or another cluster declares the same entry";
                        Err(("Masked", text.to_owned()))
                    }
                    Ok(_) => Ok(()),
                };
                let status = StaticStatus {
                    is_rendered: !matches!(&state.candidate, Err(("Invalid", _))),
                    is_masked,
                    is_set: ready.is_ok(),
                    ready,
                    generation: state.generation,
                };
                (name.clone(), status)
            })
            .collect();
        pass.statics = different(&self.told_statics, &statics);
        self.told_statics = statics;
    }
}

fn different<T: Clone + PartialEq>(
    before: &BTreeMap<Arc<str>, T>,
    now: &BTreeMap<Arc<str>, T>,
) -> BTreeMap<Arc<str>, T> {
    now.iter()
        .filter(|(name, status)| before.get(*name) != Some(*status))
        .map(|(name, status)| (name.clone(), status.clone()))
        .collect()
}
