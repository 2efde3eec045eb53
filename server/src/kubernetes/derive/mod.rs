//! From objects to derived entries, statuses and the pods with problems. Pure: the result
//! depends only on the objects, the stored entries and the settings, so that every server and every restart
//! derives the same.
//!
//! [`Deriver`] takes facts one by one in any order and evaluates only the pods whose inputs changed;
//! [`derive`] evaluates everything at once. Both give the same result.

mod explain;
mod keys;
mod objects;
mod pod;
mod statics;
mod statuses;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use finial_identity::entry::Entry;
use finial_identity::spiffe_id::TrustDomain;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use regex::RegexSet;
use uuid::Uuid;

use super::label_filter::Labels;
use super::resources::{ClusterSPIFFEID, ClusterStaticEntry};
use super::template::Template;
use crate::kubernetes::objects::{Node, Pod};
use keys::Keys;
use pod::PodState;
use statics::StaticState;
use statuses::RuleState;

pub use explain::{Explained, NameRival, SCHEDULED};
pub use keys::DerivedEntry;
pub use objects::{NamespacedName, Objects, ServiceEndpoints};
pub use pod::{PodProblem, ProblemKind};
pub use statuses::{RuleStatus, StaticStatus};

/// What a cluster's rules are applied with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The own trust domain.
    pub trust_domain: TrustDomain,
    /// The cluster's name.
    pub cluster_name: String,
    /// For example `cluster.local`; may be empty.
    pub cluster_domain: String,
    /// Namespaces that rules pass over.
    pub ignored_namespaces: RegexSet,
    /// The class of the objects that this server uses.
    pub class_name: Option<String>,
    /// Whether objects without a class are used too.
    pub watches_classless: bool,
    /// The parent ID of a node's entries.
    pub parent_id: Arc<Template>,
    /// The CSI driver by which pods ask for an identity.
    pub csi_driver: String,
}

impl Settings {
    /// Whether objects of this class are used.
    pub fn is_ours(&self, class: Option<&str>) -> bool {
        let class = class.filter(|class| !class.is_empty());
        let own = self.class_name.as_deref().filter(|own| !own.is_empty());
        class == own || (class.is_none() && self.watches_classless)
    }
}

/// One object as it is now; `None` when it is gone.
#[derive(Clone, Debug)]
pub enum Fact {
    /// A pod.
    Pod(NamespacedName, Option<Arc<Pod>>),
    /// A node, by name.
    Node(Arc<str>, Option<Arc<Node>>),
    /// The labels of a namespace.
    Namespace(Arc<str>, Option<Arc<Labels>>),
    /// The pods behind a service, by the name of the object that lists them.
    Endpoints(NamespacedName, Option<Arc<ServiceEndpoints>>),
    /// A `ClusterSPIFFEID`, by name.
    Rule(Arc<str>, Option<Arc<ClusterSPIFFEID>>),
    /// A `ClusterStaticEntry`, by name.
    Static(Arc<str>, Option<Arc<ClusterStaticEntry>>),
}

/// Whether an entry gives way to another that gives the same identity for the same facts: a stored one, or one that
/// another cluster declares.
pub type IsTaken<'a> = &'a dyn Fn(&Entry) -> bool;

/// What a pass changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pass {
    /// Entries that are new or different.
    pub upserts: Vec<DerivedEntry>,
    /// Ids of entries that are gone.
    pub removals: Vec<String>,
    /// Entries that give way to others, new or different.
    pub masked: Vec<DerivedEntry>,
    /// Ids of such entries that are declared no more.
    pub unmasked: Vec<String>,
    /// Statuses of rules that changed, by name.
    pub rules: BTreeMap<Arc<str>, RuleStatus>,
    /// Statuses of static entries that changed, by name.
    pub statics: BTreeMap<Arc<str>, StaticStatus>,
    /// Pods with which something is newly wrong.
    pub problems: Vec<PodProblem>,
    /// How many pods were looked at.
    pub evaluated: usize,
}

/// Everything that follows from the objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Derivation {
    /// The entries by id.
    pub entries: BTreeMap<String, DerivedEntry>,
    /// Those that give way to others, by id.
    pub masked: BTreeMap<String, DerivedEntry>,
    /// The statuses of rules of our class, by name.
    pub rules: BTreeMap<Arc<str>, RuleStatus>,
    /// The statuses of static entries of our class, by name.
    pub statics: BTreeMap<Arc<str>, StaticStatus>,
    /// Pods with which something is wrong, by name.
    pub problems: BTreeMap<NamespacedName, PodProblem>,
}

/// How much there is, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries from rules: those that are there, masked ones, failures.
    pub rules: [i64; 3],
    /// Entries from static objects: the same.
    pub statics: [i64; 3],
}

/// Derives everything.
pub fn derive(objects: &Objects, settings: &Settings, is_taken: IsTaken<'_>) -> Derivation {
    let mut deriver = Deriver::new(settings.clone());
    for fact in objects.facts() {
        deriver.apply(fact);
    }
    deriver.pass(is_taken);
    deriver.derivation()
}

/// Derives what changed.
#[derive(Debug)]
pub struct Deriver {
    settings: Settings,
    objects: Objects,
    nodes: HashMap<Arc<str>, pod::NodeState>,
    rules: BTreeMap<Arc<str>, RuleState>,
    statics: BTreeMap<Arc<str>, StaticState>,
    pods: HashMap<NamespacedName, PodState>,
    keys: Keys,
    changed: Changed,
    told_rules: BTreeMap<Arc<str>, RuleStatus>,
    told_statics: BTreeMap<Arc<str>, StaticStatus>,
}

/// What the next pass looks at.
#[derive(Debug, Default)]
struct Changed {
    all_pods: bool,
    pods: HashSet<NamespacedName>,
    namespaces: bool,
}

impl Deriver {
    /// Nothing is known yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            objects: Objects::default(),
            nodes: HashMap::new(),
            rules: BTreeMap::new(),
            statics: BTreeMap::new(),
            pods: HashMap::new(),
            keys: Keys::default(),
            changed: Changed::default(),
            told_rules: BTreeMap::new(),
            told_statics: BTreeMap::new(),
        }
    }

    /// The objects that were taken in.
    pub fn objects(&self) -> &Objects {
        &self.objects
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes in a fact. What does not change anything is not looked at again.
    pub fn apply(&mut self, fact: Fact) {
        match fact {
            Fact::Pod(name, pod) => {
                if self.objects.set_pod(&name, pod) {
                    self.changed.pods.insert(name);
                }
            }
            Fact::Node(name, node) => {
                if self.objects.set_node(&name, node) {
                    self.nodes.remove(&name);
                    let bound = self.objects.pods_on(&name).cloned();
                    self.changed.pods.extend(bound);
                }
            }
            Fact::Namespace(name, labels) => {
                if self.objects.set_namespace(&name, labels) {
                    self.changed.namespaces = true;
                    let inside = self.objects.pods_in(&name).cloned();
                    self.changed.pods.extend(inside);
                }
            }
            Fact::Endpoints(name, endpoints) => {
                let behind = self.objects.set_endpoints(name, endpoints);
                self.changed.pods.extend(behind);
            }
            Fact::Rule(name, rule) => {
                self.set_rule(name, rule);
            }
            Fact::Static(name, object) => {
                let object = object.filter(|object| self.settings.is_ours(object.spec.class_name.as_deref()));
                self.set_static(name, object);
            }
        }
    }

    /// Says that stored entries changed, or those of other clusters, so that masking is looked at again.
    pub fn others_changed(&mut self) {
        self.keys.look_again();
    }

    /// Computes what changed since the last pass.
    pub fn pass(&mut self, is_taken: IsTaken<'_>) -> Pass {
        let mut pass = Pass::default();
        let Changed {
            all_pods,
            pods,
            namespaces,
        } = std::mem::take(&mut self.changed);
        let names: Vec<NamespacedName> = if all_pods {
            let gone = self.pods.keys().filter(|name| self.objects.pod(name).is_none());
            self.objects.pod_names().chain(gone).cloned().collect()
        } else {
            pods.into_iter().collect()
        };
        if all_pods {
            self.rules.values_mut().for_each(RuleState::reset);
        }
        pass.evaluated = names.len();
        for name in names {
            self.evaluate(name, !all_pods, &mut pass.problems);
        }
        pass.problems.sort_unstable();
        if namespaces || all_pods {
            self.count_namespaces();
        }
        self.keys.settle(is_taken, &mut pass);
        self.changed_statuses(&mut pass);
        pass
    }

    /// Computes static entries alone, while the objects that pods' entries follow from are not all known. The first
    /// whole pass tells their statuses.
    pub fn pass_statics(&mut self, is_taken: IsTaken<'_>) -> Pass {
        let mut pass = Pass::default();
        // Entries of pods are declared by a whole pass only.
        self.keys.settle(is_taken, &mut pass);
        pass
    }

    /// Everything that follows from the objects, as of the last pass.
    pub fn derivation(&self) -> Derivation {
        let by_id = |entry: &DerivedEntry| (entry.entry.id.clone(), entry.clone());
        let problems = self.pods.iter().filter_map(|(name, state)| {
            let problem = state.problem.clone()?;
            Some((name.clone(), problem))
        });
        Derivation {
            entries: self.keys.published().map(by_id).collect(),
            masked: self.keys.masked().map(by_id).collect(),
            rules: self.told_rules.clone(),
            statics: self.told_statics.clone(),
            problems: problems.collect(),
        }
    }

    /// How much there is.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals::default();
        for status in self.told_rules.values() {
            let stats = &status.stats;
            // Those that were refused should be there, and are not.
            totals.rules[0] += stats.entries_to_set - stats.entry_failures;
            totals.rules[1] += stats.entries_masked;
            totals.rules[2] += stats.pod_entry_render_failures + stats.entry_failures;
        }
        for status in self.told_statics.values() {
            totals.statics[0] += i64::from(status.is_set);
            totals.statics[1] += i64::from(status.is_masked);
            totals.statics[2] += i64::from(status.ready.is_err() && !status.is_masked);
        }
        totals
    }

    fn set_rule(&mut self, name: Arc<str>, rule: Option<Arc<ClusterSPIFFEID>>) {
        let before = self.objects.rules.get(&name);
        if is_another(
            before.map(|rule| &rule.metadata),
            rule.as_ref().map(|rule| &rule.metadata),
        ) {
            self.told_rules.remove(&name);
        }
        if same_rule(before, rule.as_ref()) {
            // The status is ours; the generation is not, and it may move without the spec.
            if let (Some(rule), Some(state)) = (&rule, self.rules.get_mut(&name)) {
                state.generation = rule.metadata.generation;
                self.objects.rules.insert(name, rule.clone());
            }
            return;
        }
        // Rules of other classes are known for those who ask, and nothing follows from them.
        let ours = rule
            .as_ref()
            .filter(|rule| self.settings.is_ours(rule.spec.class_name.as_deref()));
        let state = ours.map(|rule| RuleState::of(rule, &name, &self.settings));
        self.changed.all_pods |= state.is_some() || self.rules.contains_key(&name);
        match state {
            Some(state) => self.rules.insert(name.clone(), state),
            None => self.rules.remove(&name),
        };
        match rule {
            Some(rule) => self.objects.rules.insert(name, rule),
            None => self.objects.rules.remove(&name),
        };
    }

    fn set_static(&mut self, name: Arc<str>, object: Option<Arc<ClusterStaticEntry>>) {
        let before = self.objects.statics.get(&name);
        if is_another(
            before.map(|object| &object.metadata),
            object.as_ref().map(|object| &object.metadata),
        ) {
            self.told_statics.remove(&name);
        }
        let key = |state: &StaticState| state.candidate.as_ref().ok().map(|candidate| candidate.key);
        let old_key = self.statics.get(&name).and_then(key);
        let owner = keys::Owner::Static(name.clone());
        if let Some(key) = old_key {
            self.keys.withdraw(key, &owner);
        }
        let Some(object) = object else {
            self.statics.remove(&name);
            self.objects.statics.remove(&name);
            return;
        };
        let state = StaticState::of(&object, &name, &self.settings);
        if let Ok(candidate) = &state.candidate {
            self.keys.declare(candidate.clone());
        }
        self.statics.insert(name.clone(), state);
        self.objects.statics.insert(name, object);
    }
}

/// Whether it is not the object that was there before under its name. What was told of that one was told to nobody else.
fn is_another(before: Option<&ObjectMeta>, now: Option<&ObjectMeta>) -> bool {
    before.map(|meta| &meta.uid) != now.map(|meta| &meta.uid)
}

/// Whether two versions of a rule mean the same.
fn same_rule(one: Option<&Arc<ClusterSPIFFEID>>, other: Option<&Arc<ClusterSPIFFEID>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            one.spec == other.spec
                && one.metadata.uid == other.metadata.uid
                && one.metadata.creation_timestamp == other.metadata.creation_timestamp
                && one.metadata.deletion_timestamp.is_some() == other.metadata.deletion_timestamp.is_some()
        }
        _ => false,
    }
}

/// The id of the derived entry with a key.
fn entry_id(cluster_name: &str, key: Uuid) -> String {
    format!("k8s.{cluster_name}.{key}")
}

#[cfg(test)]
pub(crate) mod tests;
