//! The fields that templates can use: those of Kubernetes' objects by their Go names, with their types.

use std::collections::{HashMap, HashSet};

use serde_json::Value as Json;

use super::TemplateError;
use super::parser::{Node, Operand, Pipeline};

/// Which facts a template is rendered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Those of a pod and its node.
    Pod,
    /// Those of a node: for the parent ID.
    Node,
}

/// Facts to render with. The objects are in their JSON form.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `.TrustDomain`
    pub trust_domain: &'a str,
    /// `.ClusterName`
    pub cluster_name: &'a str,
    /// `.ClusterDomain`
    pub cluster_domain: &'a str,
    /// `.PodMeta` and `.PodSpec`, except in a node's scope.
    pub pod: Option<(&'a Json, &'a Json)>,
    /// `.NodeMeta`
    pub node_meta: &'a Json,
    /// `.NodeSpec`
    pub node_spec: &'a Json,
}

/// A Go type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Type {
    Text,
    Number,
    Bool,
    Time,
    /// A pointer to a scalar, which may be nil.
    Pointer(&'static Type),
    List(&'static Type),
    Map(&'static Type),
    /// A struct, or a pointer to one that is never nil.
    Struct(&'static Struct),
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Struct {
    pub(super) name: &'static str,
    /// Go's name, the name in JSON, the type.
    pub(super) fields: &'static [(&'static str, &'static str, Type)],
}

impl Struct {
    pub(super) fn field(&self, name: &str) -> Result<(&'static str, Type), String> {
        let found = self.fields.iter().find(|(go, _, _)| *go == name);
        found
            .map(|(_, json, kind)| (*json, *kind))
            .ok_or_else(|| format!("can't evaluate field {name} in type {}", self.name))
    }
}

use Type::{Bool, List, Map, Number, Pointer, Text, Time};

const TEXTS: Type = List(&Text);
const LABELS: Type = Map(&Text);

pub(super) static OBJECT_META: Struct = Struct {
    name: "ObjectMeta",
    fields: &[
        ("Name", "name", Text),
        ("GenerateName", "generateName", Text),
        ("Namespace", "namespace", Text),
        ("UID", "uid", Text),
        ("Generation", "generation", Number),
        ("CreationTimestamp", "creationTimestamp", Time),
        ("Labels", "labels", LABELS),
        ("Annotations", "annotations", LABELS),
        ("Finalizers", "finalizers", TEXTS),
        (
            "OwnerReferences",
            "ownerReferences",
            List(&Type::Struct(&OWNER_REFERENCE)),
        ),
    ],
};

static OWNER_REFERENCE: Struct = Struct {
    name: "OwnerReference",
    fields: &[
        ("APIVersion", "apiVersion", Text),
        ("Kind", "kind", Text),
        ("Name", "name", Text),
        ("UID", "uid", Text),
        ("Controller", "controller", Pointer(&Bool)),
        ("BlockOwnerDeletion", "blockOwnerDeletion", Pointer(&Bool)),
    ],
};

pub(super) static POD_SPEC: Struct = Struct {
    name: "PodSpec",
    fields: &[
        ("ServiceAccountName", "serviceAccountName", Text),
        ("DeprecatedServiceAccount", "serviceAccount", Text),
        ("NodeName", "nodeName", Text),
        ("Hostname", "hostname", Text),
        ("Subdomain", "subdomain", Text),
        ("SchedulerName", "schedulerName", Text),
        ("PriorityClassName", "priorityClassName", Text),
        ("Priority", "priority", Pointer(&Number)),
        ("RuntimeClassName", "runtimeClassName", Pointer(&Text)),
        ("RestartPolicy", "restartPolicy", Text),
        ("DNSPolicy", "dnsPolicy", Text),
        ("NodeSelector", "nodeSelector", LABELS),
        ("HostNetwork", "hostNetwork", Bool),
        ("HostPID", "hostPID", Bool),
        ("HostIPC", "hostIPC", Bool),
        ("ShareProcessNamespace", "shareProcessNamespace", Pointer(&Bool)),
        ("Containers", "containers", List(&Type::Struct(&CONTAINER))),
        (
            "InitContainers",
            "initContainers",
            List(&Type::Struct(&CONTAINER)),
        ),
    ],
};

static CONTAINER: Struct = Struct {
    name: "Container",
    fields: &[
        ("Name", "name", Text),
        ("Image", "image", Text),
        ("Command", "command", TEXTS),
        ("Args", "args", TEXTS),
        ("WorkingDir", "workingDir", Text),
        ("Env", "env", List(&Type::Struct(&ENV_VAR))),
        ("Ports", "ports", List(&Type::Struct(&CONTAINER_PORT))),
        ("ImagePullPolicy", "imagePullPolicy", Text),
    ],
};

static ENV_VAR: Struct = Struct {
    name: "EnvVar",
    fields: &[("Name", "name", Text), ("Value", "value", Text)],
};

static CONTAINER_PORT: Struct = Struct {
    name: "ContainerPort",
    fields: &[
        ("Name", "name", Text),
        ("HostPort", "hostPort", Number),
        ("ContainerPort", "containerPort", Number),
        ("Protocol", "protocol", Text),
        ("HostIP", "hostIP", Text),
    ],
};

pub(super) static NODE_SPEC: Struct = Struct {
    name: "NodeSpec",
    fields: &[
        ("PodCIDR", "podCIDR", Text),
        ("PodCIDRs", "podCIDRs", TEXTS),
        ("ProviderID", "providerID", Text),
        ("Unschedulable", "unschedulable", Bool),
        ("Taints", "taints", List(&Type::Struct(&TAINT))),
        ("DoNotUseExternalID", "externalID", Text),
    ],
};

static TAINT: Struct = Struct {
    name: "Taint",
    fields: &[
        ("Key", "key", Text),
        ("Value", "value", Text),
        ("Effect", "effect", Text),
    ],
};

/// The type of a field at the top.
pub(super) fn root_field(scope: Scope, name: &str) -> Result<Type, String> {
    match (name, scope) {
        ("TrustDomain" | "ClusterName" | "ClusterDomain", _) => Ok(Text),
        ("NodeMeta", _) => Ok(Type::Struct(&OBJECT_META)),
        ("NodeSpec", _) => Ok(Type::Struct(&NODE_SPEC)),
        ("PodMeta", Scope::Pod) => Ok(Type::Struct(&OBJECT_META)),
        ("PodSpec", Scope::Pod) => Ok(Type::Struct(&POD_SPEC)),
        ("PodMeta" | "PodSpec", Scope::Node) => Err(format!(
            "can't evaluate field {name}: a parent ID is about a node"
        )),
        _ => Err(format!(
            "can't evaluate field {name}: the template has no such fact"
        )),
    }
}

/// What is known of a value before it is there.
#[derive(Clone, Copy, Debug)]
enum Known {
    Root,
    Of(Type),
    Nothing,
}

/// Refuses fields that cannot be there.
pub(super) fn check(nodes: &[Node], scope: Scope) -> Result<(), TemplateError> {
    let mut assigned = HashSet::new();
    collect_assigned(nodes, &mut assigned);
    let mut variables = HashMap::from([(String::new(), Known::Root)]);
    Checker { scope, assigned }.list(nodes, Known::Root, &mut variables)
}

/// Variables that are set again after their declaration: what they hold is known when it runs.
fn collect_assigned(nodes: &[Node], found: &mut HashSet<String>) {
    for node in nodes {
        let (pipeline, lists): (&Pipeline, [&[Node]; 2]) = match node {
            Node::Text(_) | Node::Break | Node::Continue => continue,
            Node::Action(pipeline) => (pipeline, [&[], &[]]),
            Node::If {
                condition: pipeline,
                then,
                otherwise,
            }
            | Node::With {
                value: pipeline,
                then,
                otherwise,
            }
            | Node::Range {
                over: pipeline,
                body: then,
                otherwise,
            } => (pipeline, [then, otherwise]),
        };
        if !pipeline.declares {
            found.extend(pipeline.variables.iter().cloned());
        }
        for list in lists {
            collect_assigned(list, found);
        }
    }
}

struct Checker {
    scope: Scope,
    assigned: HashSet<String>,
}

type Variables = HashMap<String, Known>;

impl Checker {
    fn list(&self, nodes: &[Node], dot: Known, variables: &mut Variables) -> Result<(), TemplateError> {
        for node in nodes {
            match node {
                Node::Text(_) | Node::Break | Node::Continue => {}
                Node::Action(pipeline) => {
                    let known = self.pipeline(pipeline, dot, variables)?;
                    let name = match known {
                        Known::Of(Type::Struct(kind)) => Some(kind.name),
                        Known::Root => Some("set of all facts"),
                        Known::Of(_) | Known::Nothing => None,
                    };
                    if let Some(name) = name
                        && pipeline.variables.is_empty()
                    {
                        return Err(refused(pipeline, format!("a {name} cannot be written as text")));
                    }
                    self.set(pipeline, &[known], variables);
                }
                Node::If {
                    condition,
                    then,
                    otherwise,
                } => {
                    let known = self.pipeline(condition, dot, variables)?;
                    let mut inner = variables.clone();
                    self.set(condition, &[known], &mut inner);
                    self.list(then, dot, &mut inner.clone())?;
                    self.list(otherwise, dot, &mut inner)?;
                }
                Node::With {
                    value,
                    then,
                    otherwise,
                } => {
                    let known = self.pipeline(value, dot, variables)?;
                    let mut inner = variables.clone();
                    self.set(value, &[known], &mut inner);
                    self.list(then, known, &mut inner.clone())?;
                    self.list(otherwise, dot, &mut inner)?;
                }
                Node::Range {
                    over,
                    body,
                    otherwise,
                } => {
                    let known = self.pipeline(over, dot, variables)?;
                    let (key, element) = match known {
                        Known::Of(List(element)) => (Known::Of(Number), Known::Of(*element)),
                        Known::Of(Map(element)) => (Known::Of(Text), Known::Of(*element)),
                        _ => (Known::Nothing, Known::Nothing),
                    };
                    let mut inner = variables.clone();
                    if over.variables.len() == 2 {
                        self.set(over, &[key, element], &mut inner);
                    } else {
                        self.set(over, &[element], &mut inner);
                    }
                    self.list(body, element, &mut inner)?;
                    self.list(otherwise, dot, &mut variables.clone())?;
                }
            }
        }
        Ok(())
    }

    fn pipeline(
        &self,
        pipeline: &Pipeline,
        dot: Known,
        variables: &Variables,
    ) -> Result<Known, TemplateError> {
        let mut result = Known::Nothing;
        for command in &pipeline.commands {
            result = Known::Nothing;
            for (n, operand) in command.iter().enumerate() {
                let known = self
                    .operand(operand, dot, variables)
                    .map_err(|error| match error {
                        Refused::Here(text) => refused(pipeline, text),
                        Refused::Within(error) => error,
                    })?;
                if n == 0 && command.len() == 1 {
                    result = known;
                }
            }
        }
        Ok(result)
    }

    fn operand(&self, operand: &Operand, dot: Known, variables: &Variables) -> Result<Known, Refused> {
        Ok(match operand {
            Operand::Dot => dot,
            Operand::Nil | Operand::Function(_) => Known::Nothing,
            Operand::Bool(_) => Known::Of(Bool),
            Operand::Number(_) => Known::Of(Number),
            Operand::Text(_) => Known::Of(Text),
            Operand::Variable(name) => variables.get(name).copied().unwrap_or(Known::Nothing),
            Operand::Nested(inner) => self.pipeline(inner, dot, variables).map_err(Refused::Within)?,
            Operand::Chain(base, fields) => {
                let mut known = self.operand(base, dot, variables)?;
                for field in fields {
                    known = self.field(known, field).map_err(Refused::Here)?;
                }
                known
            }
        })
    }

    fn set(&self, pipeline: &Pipeline, known: &[Known], variables: &mut Variables) {
        for (name, known) in pipeline.variables.iter().zip(known) {
            let known = if self.assigned.contains(name) {
                Known::Nothing
            } else {
                *known
            };
            variables.insert(name.clone(), known);
        }
    }

    fn field(&self, known: Known, name: &str) -> Result<Known, String> {
        match known {
            Known::Nothing => Ok(Known::Nothing),
            Known::Root => root_field(self.scope, name).map(Known::Of),
            Known::Of(Type::Struct(kind)) => kind.field(name).map(|(_, kind)| Known::Of(kind)),
            Known::Of(Map(element)) => Ok(Known::Of(*element)),
            Known::Of(other) => Err(format!("can't evaluate field {name} in type {other:?}")),
        }
    }
}

enum Refused {
    Here(String),
    Within(TemplateError),
}

fn refused(pipeline: &Pipeline, text: String) -> TemplateError {
    TemplateError::Syntax {
        line: pipeline.line,
        text,
    }
}
