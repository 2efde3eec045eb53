//! Values while a template runs.

use std::borrow::Cow;

use serde_json::{Map, Value as Json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::schema::{Facts, NODE_SPEC, OBJECT_META, POD_SPEC, Scope, Struct, Type, root_field};

/// A value. Objects stay where they are; only texts that were made are owned.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    /// What a map has under a key that it does not have, and `nil`: no value, of no type.
    Missing,
    /// A pointer that is nil.
    Nil,
    Bool(bool),
    Number(i64),
    Text(Cow<'a, str>),
    /// A pointer that is not nil, to a scalar.
    Pointer(Box<Value<'a>>),
    List(&'static Type, &'a [Json]),
    Map(&'static Type, Option<&'a Map<String, Json>>),
    Struct(&'static Struct, &'a Json),
    Root(&'a Facts<'a>),
}

/// What Go sees where JSON has nothing.
pub(super) fn typed<'a>(kind: &Type, json: Option<&'a Json>) -> Value<'a> {
    let json = json.filter(|json| !json.is_null());
    match kind {
        Type::Text => Value::Text(match json {
            Some(Json::String(text)) => Cow::Borrowed(text),
            Some(other) => Cow::Owned(other.to_string()),
            None => Cow::Borrowed(""),
        }),
        Type::Number => Value::Number(json.and_then(Json::as_i64).unwrap_or_default()),
        Type::Bool => Value::Bool(json.and_then(Json::as_bool).unwrap_or_default()),
        Type::Time => Value::Text(Cow::Owned(go_time(json.and_then(Json::as_str)))),
        Type::Pointer(inner) => match json {
            Some(json) => Value::Pointer(Box::new(typed(inner, Some(json)))),
            None => Value::Nil,
        },
        Type::List(element) => Value::List(
            element,
            json.and_then(Json::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default(),
        ),
        Type::Map(element) => Value::Map(element, json.and_then(Json::as_object)),
        Type::Struct(kind) => Value::Struct(kind, json.unwrap_or(&Json::Null)),
    }
}

impl<'a> Value<'a> {
    pub(super) fn field(&self, name: &str) -> Result<Value<'a>, String> {
        match self {
            Value::Root(facts) => root(facts, name),
            Value::Struct(kind, json) => {
                let (key, kind) = kind.field(name)?;
                Ok(typed(&kind, json.get(key)))
            }
            Value::Map(element, map) => Ok(map
                .and_then(|map| map.get(name))
                .map_or(Value::Missing, |json| typed(element, Some(json)))),
            Value::Missing => Ok(Value::Missing),
            Value::Nil => Err(format!("nil pointer evaluating field {name}")),
            other => Err(format!(
                "can't evaluate field {name} in type {}",
                other.type_name()
            )),
        }
    }

    /// Go's notion of a value that is not empty.
    pub(super) fn is_true(&self) -> bool {
        match self {
            Value::Missing | Value::Nil => false,
            Value::Bool(value) => *value,
            Value::Number(value) => *value != 0,
            Value::Text(text) => !text.is_empty(),
            Value::List(_, items) => !items.is_empty(),
            Value::Map(_, map) => map.is_some_and(|map| !map.is_empty()),
            Value::Pointer(_) | Value::Struct(..) | Value::Root(_) => true,
        }
    }

    /// As an action writes it, which is Go's `%v`.
    pub(super) fn print(&self, text: &mut String) -> Result<(), String> {
        match self {
            // Of an ID it makes one that does not parse, so that what lacks a label does not get what others share.
            Value::Missing => text.push_str("<no value>"),
            Value::Nil => text.push_str("<nil>"),
            Value::Bool(value) => text.push_str(&value.to_string()),
            Value::Number(value) => text.push_str(&value.to_string()),
            Value::Text(value) => text.push_str(value),
            Value::Pointer(inner) => inner.print(text)?,
            Value::List(element, items) => {
                text.push('[');
                for (n, item) in items.iter().enumerate() {
                    if n > 0 {
                        text.push(' ');
                    }
                    typed(element, Some(item)).print(text)?;
                }
                text.push(']');
            }
            Value::Map(element, map) => {
                text.push_str("map[");
                for (n, (key, item)) in sorted(*map).into_iter().enumerate() {
                    if n > 0 {
                        text.push(' ');
                    }
                    text.push_str(key);
                    text.push(':');
                    typed(element, Some(item)).print(text)?;
                }
                text.push(']');
            }
            Value::Struct(..) | Value::Root(_) => {
                return Err(format!("a {} cannot be written as text", self.type_name()));
            }
        }
        Ok(())
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Value::Missing | Value::Nil => "nil",
            Value::Bool(_) => "bool",
            Value::Number(_) => "int",
            Value::Text(_) => "string",
            Value::Pointer(_) => "pointer",
            Value::List(..) => "list",
            Value::Map(..) => "map",
            Value::Struct(kind, _) => kind.name,
            Value::Root(_) => "set of all facts",
        }
    }
}

/// The members of a map in the order of keys, as Go ranges over them.
pub(super) fn sorted(map: Option<&Map<String, Json>>) -> Vec<(&String, &Json)> {
    let mut members: Vec<(&String, &Json)> = map.into_iter().flatten().collect();
    members.sort_unstable_by_key(|(key, _)| *key);
    members
}

fn root<'a>(facts: &'a Facts<'a>, name: &str) -> Result<Value<'a>, String> {
    let scope = if facts.pod.is_some() {
        Scope::Pod
    } else {
        Scope::Node
    };
    root_field(scope, name)?;
    Ok(match (name, facts.pod) {
        ("TrustDomain", _) => Value::Text(Cow::Borrowed(facts.trust_domain)),
        ("ClusterName", _) => Value::Text(Cow::Borrowed(facts.cluster_name)),
        ("ClusterDomain", _) => Value::Text(Cow::Borrowed(facts.cluster_domain)),
        ("NodeMeta", _) => Value::Struct(&OBJECT_META, facts.node_meta),
        ("NodeSpec", _) => Value::Struct(&NODE_SPEC, facts.node_spec),
        ("PodMeta", Some((meta, _))) => Value::Struct(&OBJECT_META, meta),
        ("PodSpec", Some((_, spec))) => Value::Struct(&POD_SPEC, spec),
        _ => Value::Nil,
    })
}

/// `2026-01-02 03:04:05 +0000 UTC`, as Go prints a time.
fn go_time(text: Option<&str>) -> String {
    let time = text.and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    let time = time.map(|time| time.to_offset(time::UtcOffset::UTC));
    match time {
        Some(time) => format!(
            "{:04}-{:02}-{:02} {:02}:{:02}:{:02} +0000 UTC",
            time.year(),
            u8::from(time.month()),
            time.day(),
            time.hour(),
            time.minute(),
            time.second()
        ),
        None => "0001-01-01 00:00:00 +0000 UTC".to_owned(),
    }
}
