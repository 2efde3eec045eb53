//! The result of each rule for one pod, and why. For operators; reads the result of the last pass and changes nothing.

use std::sync::Arc;

use finial_identity::entry::Entry;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use time::OffsetDateTime;

use super::keys::{Counts, Owner};
use super::objects::node_name;
use super::pod::Outcome;
use super::{Deriver, NamespacedName};
use crate::kubernetes::label_filter::{LabelFilter, Labels};
use crate::kubernetes::objects::Pod;
use crate::kubernetes::resources::ClusterSPIFFEID;
use crate::registry::{LabelDifference, NodeReport, PodFacts, RuleOutcome, RuleReport};

/// The condition of a pod that is bound to a node.
pub const SCHEDULED: &str = "PodScheduled";

/// What is said of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Explained {
    /// The pod; none when it is not known.
    pub pod: Option<PodFacts>,
    /// Its node; none before it is bound.
    pub node: Option<NodeReport>,
    /// What each rule makes of it, what concerns it first.
    pub rules: Vec<RuleReport>,
}

/// Names what else gives the same identity for the same facts: a stored entry, or an object of another cluster.
pub type NameRival<'a> = &'a dyn Fn(&Entry) -> Option<String>;

impl Deriver {
    /// Explains what the last pass made of a pod.
    pub fn explain(&self, name: &NamespacedName, name_rival: NameRival<'_>) -> Explained {
        let Some(pod) = self.objects.pod(name) else {
            return Explained::default();
        };
        let namespace = self.objects.namespace(&name.namespace);
        let is_ignored = self.settings.ignored_namespaces.is_match(&name.namespace);
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let mut rules: Vec<RuleReport> = self
            .objects
            .rules()
            .map(|(rule, object)| RuleReport {
                name: rule.clone(),
                is_fallback: object.spec.fallback.unwrap_or_default(),
                outcome: match namespace {
                    None => RuleOutcome::DoesNotMatch("the pod's namespace is not known yet".to_owned()),
                    Some(_) if is_ignored => {
                        RuleOutcome::DoesNotMatch("the pod's namespace is ignored".to_owned())
                    }
                    Some(namespace) => self.outcome(name, (rule, object), (labels, namespace), name_rival),
                },
            })
            .collect();
        rules.sort_by_key(|report| order(&report.outcome));
        Explained {
            pod: Some(self.pod_facts(name, pod, labels, namespace, is_ignored)),
            node: node_name(pod).map(|node| self.node_report(node)),
            rules,
        }
    }

    fn outcome(
        &self,
        name: &NamespacedName,
        (rule, object): (&Arc<str>, &ClusterSPIFFEID),
        (labels, namespace): (&Labels, &Labels),
        name_rival: NameRival<'_>,
    ) -> RuleOutcome {
        let Some(state) = self.rules.get(rule) else {
            return RuleOutcome::OtherClass(object.spec.class_name.clone().unwrap_or_default());
        };
        // From the object, because a rule that is broken elsewhere has no checked form.
        let filters = (
            LabelFilter::of(object.spec.namespace_selector.as_ref()),
            LabelFilter::of(object.spec.pod_selector.as_ref()),
        );
        let (Ok(namespaces), Ok(pods)) = filters else {
            return RuleOutcome::Broken(match &state.rule {
                Err(invalid) => invalid.text.clone(),
                Ok(_) => "a selector of labels is malformed".to_owned(),
            });
        };
        let differences = differences(&namespaces, namespace, true).chain(differences(&pods, labels, false));
        let mut differences: Vec<LabelDifference> = differences.collect();
        match (differences.pop(), differences.first()) {
            (None, _) => {}
            (Some(only), None) => return RuleOutcome::NearlyMatches(only),
            (Some(_), Some(first)) => return RuleOutcome::DoesNotMatch(first.to_string()),
        }
        if let Err(invalid) = &state.rule {
            return RuleOutcome::Broken(invalid.text.clone());
        }
        let outcomes = self.pods.get(name).map(|pod| pod.outcomes.as_slice());
        let outcomes = outcomes.unwrap_or_default();
        match outcomes.iter().find(|(of, _)| of == rule) {
            Some((_, Outcome::Declared(key))) => {
                let owner = Owner::Rule(rule.clone(), name.clone());
                let Some(ranked) = self.keys.ranked(key, &owner) else {
                    return not_applied();
                };
                let entry = ranked.entry.clone();
                match ranked.counts {
                    Counts::This => RuleOutcome::Matches(entry),
                    Counts::Other(origin) => RuleOutcome::Masked {
                        by: format!("{origin}, which is older"),
                        entry,
                    },
                    Counts::Elsewhere => RuleOutcome::Masked {
                        by: name_rival(&entry)
                            .unwrap_or_else(|| "an entry that another cluster declares".to_owned()),
                        entry,
                    },
                }
            }
            Some((_, Outcome::Failed(text) | Outcome::Refused(text))) => RuleOutcome::Broken(text.clone()),
            Some((_, Outcome::NoNode)) => RuleOutcome::WaitsForNode,
            Some((_, Outcome::NotNeeded)) => {
                let covering = outcomes.iter().filter(|(of, outcome)| {
                    matches!(outcome, Outcome::Declared(_) | Outcome::Refused(_)) && !self.is_fallback(of)
                });
                RuleOutcome::FallbackNotUsed(covering.map(|(of, _)| of.clone()).collect())
            }
            None => not_applied(),
        }
    }

    fn is_fallback(&self, rule: &str) -> bool {
        let object = self.objects.rule(rule);
        object.is_some_and(|object| object.spec.fallback.unwrap_or_default())
    }

    fn pod_facts(
        &self,
        name: &NamespacedName,
        pod: &Pod,
        labels: &Labels,
        namespace: Option<&Arc<Labels>>,
        is_namespace_ignored: bool,
    ) -> PodFacts {
        let meta = &pod.metadata;
        let scheduled = pod
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .find(|condition| condition.type_ == SCHEDULED && condition.status == "True");
        PodFacts {
            uid: meta.uid.clone().unwrap_or_default(),
            phase: pod
                .status
                .as_ref()
                .and_then(|status| status.phase.clone())
                .unwrap_or_default(),
            service_account: service_account(pod).to_owned(),
            labels: labels.clone(),
            namespace_labels: namespace.map(|labels| (**labels).clone()),
            is_namespace_ignored,
            is_being_deleted: meta.deletion_timestamp.is_some(),
            created_at: meta.creation_timestamp.as_ref().and_then(instant),
            scheduled_at: scheduled
                .and_then(|condition| condition.last_transition_time.as_ref().and_then(instant)),
            seen_at: None,
            seen_bound_at: None,
            seen_changed_at: None,
            selectors: selectors(name, pod, labels),
        }
    }

    fn node_report(&self, node: &str) -> NodeReport {
        let object = self.objects.node(node);
        NodeReport {
            name: node.to_owned(),
            is_known: object.is_some(),
            parent_id: match (self.nodes.get(node), object) {
                (Some(state), _) => state.parent_id.clone(),
                (None, Some(object)) => super::pod::NodeState::of(object, &self.settings).parent_id,
                (None, None) => Err(format!("node {node:?} is not known")),
            },
        }
    }
}

/// For the time between an object's coming and the pass that takes it in.
fn not_applied() -> RuleOutcome {
    RuleOutcome::DoesNotMatch("the rule was not applied to the pod yet".to_owned())
}

fn differences<'a>(
    filter: &'a LabelFilter,
    labels: &'a Labels,
    of_namespace: bool,
) -> impl Iterator<Item = LabelDifference> {
    filter.failing(labels).map(move |(key, wanted)| LabelDifference {
        of_namespace,
        key: key.to_owned(),
        wanted,
        found: labels.get(key).cloned(),
    })
}

/// What concerns a pod most comes first; of near misses those that look like a slip of the pen.
fn order(outcome: &RuleOutcome) -> (u8, usize) {
    match outcome {
        RuleOutcome::Matches(_) => (0, 0),
        RuleOutcome::Masked { .. } => (1, 0),
        RuleOutcome::Broken(_) => (2, 0),
        RuleOutcome::WaitsForNode => (3, 0),
        RuleOutcome::FallbackNotUsed(_) => (4, 0),
        RuleOutcome::NearlyMatches(difference) => (5, distance(difference)),
        RuleOutcome::OtherClass(_) => (6, 0),
        RuleOutcome::DoesNotMatch(_) => (7, 0),
    }
}

/// How much of a label's value is in the way: what is left without a common beginning and end.
fn distance(difference: &LabelDifference) -> usize {
    let Some(found) = difference.found.as_deref() else {
        return usize::MAX;
    };
    let wanted = difference.wanted.trim_matches('"');
    let same = |pair: &(char, char)| pair.0 == pair.1;
    let start = found.chars().zip(wanted.chars()).take_while(same).count();
    let (found, wanted): (Vec<char>, Vec<char>) = (
        found.chars().skip(start).collect(),
        wanted.chars().skip(start).collect(),
    );
    let end = found.iter().rev().zip(wanted.iter().rev());
    let end = end.take_while(|(one, other)| one == other).count();
    found.len().max(wanted.len()) - end
}

/// The selectors that hold for every process of the pod. What holds for those of one container alone is left out: the
/// agent decides who of the pod asks.
fn selectors(name: &NamespacedName, pod: &Pod, labels: &Labels) -> Vec<String> {
    let mut selectors = vec![
        format!("ns:{}", name.namespace),
        format!("sa:{}", service_account(pod)),
        format!("pod-name:{}", name.name),
        format!("pod-uid:{}", pod.metadata.uid.as_deref().unwrap_or_default()),
        format!("node-name:{}", node_name(pod).unwrap_or_default()),
    ];
    selectors.extend(
        labels
            .iter()
            .map(|(key, value)| format!("pod-label:{key}:{value}")),
    );
    for owner in pod.metadata.owner_references.iter().flatten() {
        selectors.push(format!("pod-owner:{}:{}", owner.kind, owner.name));
        selectors.push(format!("pod-owner-uid:{}:{}", owner.kind, owner.uid));
    }
    selectors.iter().map(|value| format!("k8s:{value}")).collect()
}

fn service_account(pod: &Pod) -> &str {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.service_account_name.as_deref())
        .unwrap_or_default()
}

fn instant(time: &Time) -> Option<OffsetDateTime> {
    OffsetDateTime::from_unix_timestamp(time.0.as_second()).ok()
}
