//! The objects of a cluster as far as rules depend on them, with indexes that find the pods affected by a change.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::Fact;
use crate::kubernetes::label_filter::Labels;
use crate::kubernetes::objects::{Node, Pod};
use crate::kubernetes::resources::{ClusterSPIFFEID, ClusterStaticEntry};

/// Namespace and name of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamespacedName {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name in it.
    pub name: Arc<str>,
}

impl NamespacedName {
    /// A name in a namespace.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for NamespacedName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The pods behind a service, ready or not, as listed in one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEndpoints {
    /// The service's name.
    pub service: String,
    /// Names and uids of pods in the same namespace.
    pub pods: BTreeSet<(String, String)>,
}

/// All objects that are known.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pods: HashMap<NamespacedName, Arc<Pod>>,
    nodes: HashMap<Arc<str>, Arc<Node>>,
    namespaces: HashMap<Arc<str>, Arc<Labels>>,
    endpoints: BTreeMap<NamespacedName, Arc<ServiceEndpoints>>,
    pub(super) rules: BTreeMap<Arc<str>, Arc<ClusterSPIFFEID>>,
    pub(super) statics: BTreeMap<Arc<str>, Arc<ClusterStaticEntry>>,
    by_node: HashMap<Arc<str>, HashSet<NamespacedName>>,
    by_namespace: HashMap<Arc<str>, HashSet<NamespacedName>>,
    /// Which objects list a pod for services, by the pod's namespace and uid.
    services: HashMap<(Arc<str>, String), BTreeSet<NamespacedName>>,
}

impl Objects {
    /// Every object as a fact.
    pub fn facts(&self) -> impl Iterator<Item = Fact> {
        let nodes = self
            .nodes
            .iter()
            .map(|(name, node)| Fact::Node(name.clone(), Some(node.clone())));
        let namespaces = self
            .namespaces
            .iter()
            .map(|(name, labels)| Fact::Namespace(name.clone(), Some(labels.clone())));
        let endpoints = self
            .endpoints
            .iter()
            .map(|(name, endpoints)| Fact::Endpoints(name.clone(), Some(endpoints.clone())));
        let rules = self
            .rules
            .iter()
            .map(|(name, rule)| Fact::Rule(name.clone(), Some(rule.clone())));
        let statics = self
            .statics
            .iter()
            .map(|(name, object)| Fact::Static(name.clone(), Some(object.clone())));
        let pods = self
            .pods
            .iter()
            .map(|(name, pod)| Fact::Pod(name.clone(), Some(pod.clone())));
        nodes
            .chain(namespaces)
            .chain(endpoints)
            .chain(rules)
            .chain(statics)
            .chain(pods)
    }

    /// The pod with this name.
    pub fn pod(&self, name: &NamespacedName) -> Option<&Arc<Pod>> {
        self.pods.get(name)
    }

    /// The names of all pods.
    pub fn pod_names(&self) -> impl Iterator<Item = &NamespacedName> {
        self.pods.keys()
    }

    /// How many pods there are.
    pub fn pod_count(&self) -> usize {
        self.pods.len()
    }

    /// All nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes.values()
    }

    /// The node with this name.
    pub fn node(&self, name: &str) -> Option<&Arc<Node>> {
        self.nodes.get(name)
    }

    /// All rules, those of other classes too.
    pub fn rules(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<ClusterSPIFFEID>)> {
        self.rules.iter()
    }

    /// The rule with this name.
    pub fn rule(&self, name: &str) -> Option<&Arc<ClusterSPIFFEID>> {
        self.rules.get(name)
    }

    /// The static entry with this name.
    pub fn fixed(&self, name: &str) -> Option<&Arc<ClusterStaticEntry>> {
        self.statics.get(name)
    }

    /// The labels of all namespaces.
    pub fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &Arc<Labels>)> {
        self.namespaces.iter()
    }

    /// The labels of a namespace.
    pub fn namespace(&self, name: &str) -> Option<&Arc<Labels>> {
        self.namespaces.get(name)
    }

    /// The services that select a pod, by name.
    pub fn services_of(&self, namespace: &Arc<str>, uid: &str) -> BTreeSet<&str> {
        let key = (namespace.clone(), uid.to_owned());
        let tellers = self.services.get(&key).into_iter().flatten();
        tellers
            .filter_map(|name| self.endpoints.get(name))
            .map(|endpoints| endpoints.service.as_str())
            .collect()
    }

    pub(super) fn pods_on(&self, node: &str) -> impl Iterator<Item = &NamespacedName> {
        self.by_node.get(node).into_iter().flatten()
    }

    pub(super) fn pods_in(&self, namespace: &str) -> impl Iterator<Item = &NamespacedName> {
        self.by_namespace.get(namespace).into_iter().flatten()
    }

    /// Whether that changes anything.
    pub(super) fn set_pod(&mut self, name: &NamespacedName, pod: Option<Arc<Pod>>) -> bool {
        let before = self.pods.get(name);
        if same_pod(before, pod.as_ref()) {
            if let Some(pod) = pod {
                // Nothing follows from its status, and operators ask for it.
                self.pods.insert(name.clone(), pod);
            }
            return false;
        }
        if let Some(before) = before.cloned() {
            forget(&mut self.by_namespace, &name.namespace, name);
            if let Some(node) = node_name(&before) {
                forget(&mut self.by_node, node, name);
            }
        }
        match pod {
            Some(pod) => {
                let inside = self.by_namespace.entry(name.namespace.clone()).or_default();
                inside.insert(name.clone());
                if let Some(node) = node_name(&pod) {
                    self.by_node.entry(node.into()).or_default().insert(name.clone());
                }
                self.pods.insert(name.clone(), pod);
            }
            None => {
                self.pods.remove(name);
            }
        }
        true
    }

    pub(super) fn set_node(&mut self, name: &Arc<str>, node: Option<Arc<Node>>) -> bool {
        let same = match (self.nodes.get(name), &node) {
            (None, None) => true,
            (Some(before), Some(node)) => {
                before.spec == node.spec && same_meta(&before.metadata, &node.metadata)
            }
            _ => false,
        };
        if same {
            return false;
        }
        match node {
            Some(node) => self.nodes.insert(name.clone(), node),
            None => self.nodes.remove(name),
        };
        true
    }

    pub(super) fn set_namespace(&mut self, name: &Arc<str>, labels: Option<Arc<Labels>>) -> bool {
        if self.namespaces.get(name) == labels.as_ref() {
            return false;
        }
        match labels {
            Some(labels) => self.namespaces.insert(name.clone(), labels),
            None => self.namespaces.remove(name),
        };
        true
    }

    /// The affected pods: those that it listed before, and those that it lists now.
    pub(super) fn set_endpoints(
        &mut self,
        name: NamespacedName,
        endpoints: Option<Arc<ServiceEndpoints>>,
    ) -> HashSet<NamespacedName> {
        let before = self.endpoints.get(&name).cloned();
        if before == endpoints {
            return HashSet::new();
        }
        let mut concerned = HashSet::new();
        for (pod, uid) in before.iter().flat_map(|before| &before.pods) {
            concerned.insert(NamespacedName {
                namespace: name.namespace.clone(),
                name: pod.as_str().into(),
            });
            let key = (name.namespace.clone(), uid.clone());
            if let Some(tellers) = self.services.get_mut(&key) {
                tellers.remove(&name);
                if tellers.is_empty() {
                    self.services.remove(&key);
                }
            }
        }
        for (pod, uid) in endpoints.iter().flat_map(|endpoints| &endpoints.pods) {
            concerned.insert(NamespacedName {
                namespace: name.namespace.clone(),
                name: pod.as_str().into(),
            });
            let key = (name.namespace.clone(), uid.clone());
            self.services.entry(key).or_default().insert(name.clone());
        }
        match endpoints {
            Some(endpoints) => self.endpoints.insert(name, endpoints),
            None => self.endpoints.remove(&name),
        };
        concerned
    }
}

/// The node that a pod is bound to.
pub(super) fn node_name(pod: &Pod) -> Option<&str> {
    let name = pod.spec.as_ref()?.node_name.as_deref()?;
    (!name.is_empty()).then_some(name)
}

fn same_pod(one: Option<&Arc<Pod>>, other: Option<&Arc<Pod>>) -> bool {
    match (one, other) {
        (None, None) => true,
        (Some(one), Some(other)) => one.spec == other.spec && same_meta(&one.metadata, &other.metadata),
        _ => false,
    }
}

/// Whether two versions of an object say the same; the version itself does not count.
fn same_meta(
    one: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
    other: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
) -> bool {
    one.uid == other.uid
        && one.labels == other.labels
        && one.annotations == other.annotations
        && one.owner_references == other.owner_references
        && one.creation_timestamp == other.creation_timestamp
        && one.generate_name == other.generate_name
        && one.generation == other.generation
        && one.finalizers == other.finalizers
}

fn forget(index: &mut HashMap<Arc<str>, HashSet<NamespacedName>>, key: &str, name: &NamespacedName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
