//! The entries that rules give to one pod.

use std::sync::Arc;

use finial_identity::selector::Selector;
use finial_identity::spiffe_id::SpiffeId;
use serde_json::Value as Json;
use uuid::Uuid;

use super::keys::{Candidate, Declared, DerivedEntry, Owner, Rank, created_at};
use super::objects::node_name;
use super::{Deriver, NamespacedName, Settings};
use crate::kubernetes::admission::Rule;
use crate::kubernetes::label_filter::Labels;
use crate::kubernetes::objects::{Node, Pod};
use crate::kubernetes::template::Facts;

/// Something is wrong with a pod, for an Event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodProblem {
    /// The pod.
    pub pod: NamespacedName,
    /// Its uid.
    pub uid: String,
    /// When it was created, in Unix seconds.
    pub created_at: i64,
    /// What is wrong.
    pub kind: ProblemKind,
    /// The same for people.
    pub text: String,
}

/// What can be wrong with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProblemKind {
    /// It mounts the SPIFFE CSI volume and no rule selects it.
    NoRule,
    /// A rule selects it and no entry came of that.
    RuleFailed,
}

/// What came of a rule for a pod that it selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The entry with this key was declared.
    Declared(Uuid),
    /// No entry could be made.
    Failed(String),
    /// An entry was made that the server refuses.
    Refused(String),
    /// The pod has no node yet.
    NoNode,
    /// A fallback, and another rule gave the pod an entry.
    NotNeeded,
}

/// A rule that selects a pod.
struct Selecting {
    name: Arc<str>,
    rule: Arc<Rule>,
    rank: Arc<Rank>,
    origin: Arc<str>,
}

/// What the last pass made of a pod.
#[derive(Debug, Default)]
pub(super) struct PodState {
    pub(super) outcomes: Vec<(Arc<str>, Outcome)>,
    pub(super) problem: Option<PodProblem>,
}

/// A node in the form for templates, with the parent ID of its pods' entries.
#[derive(Clone, Debug)]
pub(super) struct NodeState {
    meta: Arc<Json>,
    spec: Arc<Json>,
    pub(super) parent_id: Result<SpiffeId, String>,
}

impl NodeState {
    pub(super) fn of(node: &Node, settings: &Settings) -> Self {
        let meta = json(&node.metadata);
        let spec = json(&node.spec.clone().unwrap_or_default());
        let facts = Facts {
            trust_domain: settings.trust_domain.as_str(),
            cluster_name: &settings.cluster_name,
            cluster_domain: &settings.cluster_domain,
            pod: None,
            node_meta: &meta,
            node_spec: &spec,
        };
        let rendered = settings
            .parent_id
            .render(&facts)
            .map_err(|error| error.to_string());
        let parent_id = rendered
            .and_then(|text| SpiffeId::parse(&text).map_err(|error| format!("parent ID {text:?}: {error}")));
        Self {
            meta: meta.into(),
            spec: spec.into(),
            parent_id,
        }
    }
}

impl Deriver {
    /// Applies all rules to a pod, which may be gone. `is_counted` when the rules' counts have it in them.
    pub(super) fn evaluate(
        &mut self,
        name: NamespacedName,
        is_counted: bool,
        problems: &mut Vec<PodProblem>,
    ) {
        let before = self.pods.remove(&name).unwrap_or_default();
        for (rule, outcome) in before.outcomes.iter().filter(|_| is_counted) {
            if let Some(state) = self.rules.get_mut(rule) {
                state.discount(&name, outcome);
            }
        }
        let Some(pod) = self.objects.pod(&name).cloned() else {
            self.withdraw(&name, &before.outcomes, &[]);
            return;
        };
        let (outcomes, candidates) = self.outcomes(&name, &pod);
        for (rule, outcome) in &outcomes {
            if let Some(state) = self.rules.get_mut(rule) {
                state.count(&name, outcome);
            }
        }
        self.withdraw(&name, &before.outcomes, &outcomes);
        for candidate in candidates {
            self.keys.declare(candidate);
        }
        let problem = self.problem(&name, &pod, &outcomes);
        if let Some(problem) = &problem
            && before.problem.as_ref() != Some(problem)
        {
            problems.push(problem.clone());
        }
        if !outcomes.is_empty() || problem.is_some() {
            self.pods.insert(name, PodState { outcomes, problem });
        }
    }

    /// Takes back what is no longer declared.
    fn withdraw(
        &mut self,
        name: &NamespacedName,
        before: &[(Arc<str>, Outcome)],
        now: &[(Arc<str>, Outcome)],
    ) {
        for old in before {
            if let (rule, Outcome::Declared(key)) = old
                && !now.contains(old)
            {
                self.keys.withdraw(*key, &Owner::Rule(rule.clone(), name.clone()));
            }
        }
    }

    fn outcomes(
        &mut self,
        name: &NamespacedName,
        pod: &Arc<Pod>,
    ) -> (Vec<(Arc<str>, Outcome)>, Vec<Candidate>) {
        let mut outcomes = Vec::new();
        let mut candidates = Vec::new();
        let no_labels = Labels::new();
        let Some(namespace) = self.objects.namespace(&name.namespace).cloned() else {
            return (outcomes, candidates);
        };
        if self.settings.ignored_namespaces.is_match(&name.namespace) {
            return (outcomes, candidates);
        }
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let mut selecting: Vec<Selecting> = self
            .rules
            .iter()
            .filter_map(|(name, state)| {
                let rule = state.rule.as_ref().ok()?;
                (rule.namespaces.matches(&namespace) && rule.pods.matches(labels)).then(|| Selecting {
                    name: name.clone(),
                    rule: rule.clone(),
                    rank: state.rank.clone(),
                    origin: state.origin.clone(),
                })
            })
            .collect();
        if selecting.is_empty() {
            return (outcomes, candidates);
        }
        selecting.sort_by(|one, other| {
            (one.rule.is_fallback, &one.rank).cmp(&(other.rule.is_fallback, &other.rank))
        });
        let node = self.node_of(pod);
        let mut forms = None;
        let mut is_covered = false;
        for Selecting {
            name: rule_name,
            rule,
            rank,
            origin,
        } in selecting
        {
            if rule.is_fallback && is_covered {
                outcomes.push((rule_name, Outcome::NotNeeded));
                continue;
            }
            let outcome = match &node {
                None => Outcome::NoNode,
                Some(Err(text)) => Outcome::Failed(text.clone()),
                Some(Ok(node)) => {
                    let (meta, spec) = forms.get_or_insert_with(|| forms_of(pod));
                    match self.render(name, pod, &rule, node, (meta, spec)) {
                        Err(text) => Outcome::Failed(text),
                        Ok(declared) => {
                            is_covered |= !rule.is_fallback;
                            match declared.entry(&self.settings) {
                                Err(text) => Outcome::Refused(text),
                                Ok((key, entry)) => {
                                    candidates.push(Candidate {
                                        key,
                                        owner: Owner::Rule(rule_name.clone(), name.clone()),
                                        rank,
                                        derived: DerivedEntry {
                                            entry: Arc::new(entry),
                                            origin,
                                        },
                                    });
                                    Outcome::Declared(key)
                                }
                            }
                        }
                    }
                }
            };
            outcomes.push((rule_name, outcome));
        }
        (outcomes, candidates)
    }

    /// The pod's node: none before it is bound, an error when the node is not known.
    fn node_of(&mut self, pod: &Pod) -> Option<Result<NodeState, String>> {
        let name = node_name(pod)?;
        if let Some(state) = self.nodes.get(name) {
            return Some(Ok(state.clone()));
        }
        let Some(node) = self.objects.node(name) else {
            return Some(Err(format!("node {name:?} is not known")));
        };
        let state = NodeState::of(node, &self.settings);
        self.nodes.insert(name.into(), state.clone());
        Some(Ok(state))
    }

    fn render<'r>(
        &self,
        name: &NamespacedName,
        pod: &Pod,
        rule: &'r Rule,
        node: &NodeState,
        forms: (&Json, &Json),
    ) -> Result<Declared<'r>, String> {
        let settings = &self.settings;
        let facts = Facts {
            trust_domain: settings.trust_domain.as_str(),
            cluster_name: &settings.cluster_name,
            cluster_domain: &settings.cluster_domain,
            pod: Some(forms),
            node_meta: &node.meta,
            node_spec: &node.spec,
        };
        let text = rule
            .spiffe_id
            .render(&facts)
            .map_err(|error| format!("spiffeIDTemplate: {error}"))?;
        let spiffe_id = SpiffeId::parse(&text).map_err(|error| format!("SPIFFE ID {text:?}: {error}"))?;
        if !spiffe_id.is_member_of(&settings.trust_domain) {
            return Err(format!(
                "SPIFFE ID {text:?} is not of trust domain {}",
                settings.trust_domain
            ));
        }
        let parent_id = node.parent_id.clone()?;
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let selector = |text: &str| Selector::parse(text).map_err(|error| error.to_string());
        let mut selectors = vec![selector(&format!("k8s:pod-uid:{uid}"))?];
        for template in &rule.selectors {
            let text = template
                .render(&facts)
                .map_err(|error| format!("workloadSelectorTemplates: {error}"))?;
            selectors.push(selector(&text)?);
        }
        let mut dns_names: Vec<String> = Vec::new();
        for template in &rule.dns_names {
            let text = template
                .render(&facts)
                .map_err(|error| format!("dnsNameTemplates: {error}"))?;
            if !dns_names.contains(&text) {
                dns_names.push(text);
            }
        }
        if rule.adds_services {
            for service in self.service_names(name, uid) {
                if !dns_names.contains(&service) {
                    dns_names.push(service);
                }
            }
        }
        Ok(Declared {
            spiffe_id,
            parent_id,
            selectors,
            dns_names,
            store_svid: false,
            created_at: created_at(&pod.metadata),
            copied: &rule.copied,
        })
    }

    /// The names of the services that select the pod, sorted.
    fn service_names(&self, name: &NamespacedName, uid: &str) -> Vec<String> {
        let namespace = &name.namespace;
        let domain = &self.settings.cluster_domain;
        let mut names = Vec::new();
        for service in self.objects.services_of(namespace, uid) {
            names.push(service.to_owned());
            names.push(format!("{service}.{namespace}"));
            names.push(format!("{service}.{namespace}.svc"));
            if !domain.is_empty() {
                names.push(format!("{service}.{namespace}.svc.{domain}"));
            }
        }
        names.sort_unstable();
        names
    }

    /// What is wrong with a rule that selects the pod, which has a node, and of which nothing at all can come.
    fn invalid_rule(
        &self,
        name: &NamespacedName,
        pod: &Pod,
        outcomes: &[(Arc<str>, Outcome)],
    ) -> Option<String> {
        node_name(pod)?;
        let namespace = self.objects.namespace(&name.namespace)?;
        if self.settings.ignored_namespaces.is_match(&name.namespace) {
            return None;
        }
        let no_labels = Labels::new();
        let labels = pod.metadata.labels.as_ref().unwrap_or(&no_labels);
        let is_covered = || {
            outcomes.iter().any(|(rule, outcome)| {
                let state = self.rules.get(rule).and_then(|state| state.rule.as_ref().ok());
                matches!(outcome, Outcome::Declared(_)) && state.is_some_and(|rule| !rule.is_fallback)
            })
        };
        self.rules.iter().find_map(|(rule, state)| {
            let invalid = state.rule.as_ref().err()?;
            let is_meant = invalid.selects(namespace, labels) && !(invalid.is_fallback && is_covered());
            is_meant.then(|| format!("ClusterSPIFFEID {rule}: {}", invalid.text))
        })
    }

    fn problem(
        &self,
        name: &NamespacedName,
        pod: &Pod,
        outcomes: &[(Arc<str>, Outcome)],
    ) -> Option<PodProblem> {
        let failed = outcomes.iter().find_map(|(rule, outcome)| match outcome {
            Outcome::Failed(text) | Outcome::Refused(text) => Some(format!("ClusterSPIFFEID {rule}: {text}")),
            Outcome::Declared(_) | Outcome::NoNode | Outcome::NotNeeded => None,
        });
        let (kind, text) = match failed.or_else(|| self.invalid_rule(name, pod, outcomes)) {
            Some(text) => (ProblemKind::RuleFailed, text),
            None => {
                let is_uncovered = outcomes.is_empty()
                    && node_name(pod).is_some()
                    && mounts(pod, &self.settings.csi_driver)
                    && self.objects.namespace(&name.namespace).is_some();
                if !is_uncovered {
                    return None;
                }
                let text = if self.settings.ignored_namespaces.is_match(&name.namespace) {
                    "the pod mounts a SPIFFE volume and its namespace is ignored"
                } else {
                    "the pod mounts a SPIFFE volume and no ClusterSPIFFEID selects it"
                };
                (ProblemKind::NoRule, text.to_owned())
            }
        };
        Some(PodProblem {
            pod: name.clone(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            created_at: created_at(&pod.metadata),
            kind,
            text,
        })
    }
}

/// Whether the pod has a volume of the CSI driver.
fn mounts(pod: &Pod, driver: &str) -> bool {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| volume.csi.as_ref())
        .any(|csi| csi.driver == driver)
}

fn forms_of(pod: &Pod) -> (Json, Json) {
    (json(&pod.metadata), json(&pod.spec.clone().unwrap_or_default()))
}

fn json(value: &impl serde::Serialize) -> Json {
    // Kubernetes' own types have text keys only, so this does not fail; a template sees zero values if it does.
    serde_json::to_value(value).unwrap_or_default()
}
