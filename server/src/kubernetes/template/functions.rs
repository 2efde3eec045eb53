//! The functions that Go's `text/template` has built in.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt::Write;

use super::printf::printf;
use super::value::{Value, typed};

/// Name, least and most arguments.
const FUNCTIONS: &[(&str, usize, usize)] = &[
    ("and", 1, usize::MAX),
    ("or", 1, usize::MAX),
    ("not", 1, 1),
    ("eq", 2, usize::MAX),
    ("ne", 2, 2),
    ("lt", 2, 2),
    ("le", 2, 2),
    ("gt", 2, 2),
    ("ge", 2, 2),
    ("len", 1, 1),
    ("index", 1, usize::MAX),
    ("slice", 1, 4),
    ("print", 0, usize::MAX),
    ("printf", 1, usize::MAX),
    ("println", 0, usize::MAX),
    ("html", 0, usize::MAX),
    ("js", 0, usize::MAX),
    ("urlquery", 0, usize::MAX),
    ("call", 1, usize::MAX),
];

pub(super) fn is_known(name: &str) -> bool {
    FUNCTIONS.iter().any(|(known, _, _)| *known == name)
}

pub(super) fn check_arguments(name: &str, count: usize) -> Result<(), String> {
    if name == "call" {
        return Err("call has nothing to call: no fact is a function".to_owned());
    }
    match FUNCTIONS.iter().find(|(known, _, _)| *known == name) {
        Some((_, least, most)) if (*least..=*most).contains(&count) => Ok(()),
        Some(_) => Err(format!("wrong number of args for {name}: got {count}")),
        None => Err(format!("function \"{name}\" not defined")),
    }
}

/// Calls a function; `and` and `or` are the evaluator's, because they may leave arguments out.
pub(super) fn call<'a>(name: &str, arguments: Vec<Value<'a>>) -> Result<Value<'a>, String> {
    let text = |text: String| Ok(Value::Text(Cow::Owned(text)));
    match (name, arguments.as_slice()) {
        ("not", [value]) => Ok(Value::Bool(!value.is_true())),
        ("eq", [first, others @ ..]) => {
            for other in others {
                if equal(first, other)? {
                    return Ok(Value::Bool(true));
                }
            }
            Ok(Value::Bool(false))
        }
        ("ne", [one, other]) => Ok(Value::Bool(!equal(one, other)?)),
        ("lt", [one, other]) => Ok(Value::Bool(compare(one, other)?.is_lt())),
        ("le", [one, other]) => Ok(Value::Bool(compare(one, other)?.is_le())),
        ("gt", [one, other]) => Ok(Value::Bool(compare(one, other)?.is_gt())),
        ("ge", [one, other]) => Ok(Value::Bool(compare(one, other)?.is_ge())),
        ("len", [value]) => {
            let length = match value {
                Value::Text(text) => text.len(),
                Value::List(_, items) => items.len(),
                Value::Map(_, map) => map.map_or(0, |map| map.len()),
                other => return Err(format!("len of type {}", other.type_name())),
            };
            Ok(Value::Number(i64::try_from(length).unwrap_or(i64::MAX)))
        }
        ("index", [value, keys @ ..]) => {
            let mut value = value.clone();
            for key in keys {
                value = index(&value, key)?;
            }
            Ok(value)
        }
        ("slice", [value, bounds @ ..]) => slice(value, bounds),
        ("print", values) => text(sprint(&untyped(values))?),
        ("println", values) => {
            let mut line = String::new();
            for (n, value) in untyped(values).iter().enumerate() {
                if n > 0 {
                    line.push(' ');
                }
                value.print(&mut line)?;
            }
            line.push('\n');
            text(line)
        }
        ("printf", [Value::Text(format), values @ ..]) => text(printf(format, &untyped(values))?),
        ("html", values) => text(html(&sprint(values)?)),
        ("js", values) => text(js(&sprint(values)?)),
        ("urlquery", values) => text(urlquery(&sprint(values)?)),
        (_, values) => Err(format!(
            "cannot take ({})",
            values.iter().map(Value::type_name).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// What the functions of package `fmt` are given: no value is a nil there.
fn untyped<'a>(values: &[Value<'a>]) -> Vec<Value<'a>> {
    let untyped = values.iter().map(|value| match value {
        Value::Missing => Value::Nil,
        other => other.clone(),
    });
    untyped.collect()
}

fn equal(one: &Value<'_>, other: &Value<'_>) -> Result<bool, String> {
    match (one, other) {
        (Value::Missing, other) | (other, Value::Missing) => Ok(matches!(other, Value::Missing | Value::Nil)),
        (Value::Text(one), Value::Text(other)) => Ok(one == other),
        (Value::Number(one), Value::Number(other)) => Ok(one == other),
        (Value::Bool(one), Value::Bool(other)) => Ok(one == other),
        (Value::Nil, Value::Nil) => Ok(true),
        (Value::Nil, Value::Pointer(_)) | (Value::Pointer(_), Value::Nil) => Ok(false),
        _ => Err(incompatible(one, other)),
    }
}

fn compare(one: &Value<'_>, other: &Value<'_>) -> Result<Ordering, String> {
    match (one, other) {
        (Value::Text(one), Value::Text(other)) => Ok(one.cmp(other)),
        (Value::Number(one), Value::Number(other)) => Ok(one.cmp(other)),
        _ => Err(incompatible(one, other)),
    }
}

fn incompatible(one: &Value<'_>, other: &Value<'_>) -> String {
    format!(
        "incompatible types for comparison: {} and {}",
        one.type_name(),
        other.type_name()
    )
}

fn index<'a>(value: &Value<'a>, key: &Value<'a>) -> Result<Value<'a>, String> {
    match (value, key) {
        (Value::Map(element, map), Value::Text(key)) => {
            Ok(typed(element, map.and_then(|map| map.get(key.as_ref()))))
        }
        (Value::List(element, items), Value::Number(at)) => usize::try_from(*at)
            .ok()
            .and_then(|at| items.get(at))
            .map(|item| typed(element, Some(item)))
            .ok_or_else(|| format!("index out of range: {at}")),
        (Value::Text(text), Value::Number(at)) => usize::try_from(*at)
            .ok()
            .and_then(|at| text.as_bytes().get(at))
            .map(|byte| Value::Number(i64::from(*byte)))
            .ok_or_else(|| format!("index out of range: {at}")),
        (value, key) => Err(format!(
            "can't index a {} with a {}",
            value.type_name(),
            key.type_name()
        )),
    }
}

fn slice<'a>(value: &Value<'a>, bounds: &[Value<'a>]) -> Result<Value<'a>, String> {
    let length = match value {
        Value::Text(text) => text.len(),
        Value::List(_, items) => items.len(),
        other => return Err(format!("can't slice a {}", other.type_name())),
    };
    if bounds.len() > 2 {
        return Err("a third index is not known".to_owned());
    }
    let bound = |n: usize, default: usize| match bounds.get(n) {
        None => Ok(default),
        Some(Value::Number(at)) => usize::try_from(*at)
            .ok()
            .filter(|at| *at <= length)
            .ok_or_else(|| format!("index out of range: {at}")),
        Some(other) => Err(format!("can't slice with a {}", other.type_name())),
    };
    let (from, to) = (bound(0, 0)?, bound(1, length)?);
    if from > to {
        return Err(format!("invalid slice index: {from} > {to}"));
    }
    match value {
        Value::Text(text) => text
            .get(from..to)
            .map(|part| Value::Text(Cow::Owned(part.to_owned())))
            .ok_or_else(|| "slice would cut a character in two".to_owned()),
        Value::List(element, items) => Ok(Value::List(element, &items[from..to])),
        other => Err(format!("can't slice a {}", other.type_name())),
    }
}

/// As Go's `Sprint`: a space between two operands of which neither is a text.
fn sprint(values: &[Value<'_>]) -> Result<String, String> {
    let mut text = String::new();
    let mut was_text = true;
    for (n, value) in values.iter().enumerate() {
        let is_text = matches!(value, Value::Text(_));
        if n > 0 && !is_text && !was_text {
            text.push(' ');
        }
        value.print(&mut text)?;
        was_text = is_text;
    }
    Ok(text)
}

fn html(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&#34;"),
            '\'' => escaped.push_str("&#39;"),
            '\0' => escaped.push('\u{fffd}'),
            other => escaped.push(other),
        }
    }
    escaped
}

fn js(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '\'' => escaped.push_str("\\'"),
            '"' => escaped.push_str("\\\""),
            '<' | '>' | '&' | '=' | '\0'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{:04X}", u32::from(c));
            }
            other => escaped.push(other),
        }
    }
    escaped
}

fn urlquery(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                escaped.push(char::from(byte));
            }
            b' ' => escaped.push('+'),
            other => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "%{other:02X}");
            }
        }
    }
    escaped
}
